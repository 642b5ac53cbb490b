"""The command `adam-jax problems`: every built-in problem in a line."""

import json
import shutil
import sys
from argparse import Namespace
from collections.abc import Sequence

from adam_jax.diagnostics import aligned
from adam_jax.race import problem
from adam_jax.race.errors import printing
from adam_jax.race.folding import folded
from adam_jax.race.problem import Problem
from adam_jax.race.results import rounded

_MORE = """budget: epochs x steps an epoch; target: the training loss that counts as solved
seconds: Adam's race from three seeds, start and compilation included, in processor time over two
cores (benchmarks/problems.py)
try one: adam-jax race digits; your own: python -m pydoc adam_jax.race.problem"""


def run(arguments: Namespace) -> int:
    """Prints the problems, and returns the exit status."""
    found = [problem.read(name) for name in problem.names()]
    if arguments.json:
        text = json.dumps({"problems": [_record(each) for each in found]}, indent=2)
    else:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        text = f"{table(found, width)}\n\n{_MORE}"
    with printing():
        print(text)
    return 0


def table(found: Sequence[Problem], width: int | None) -> str:
    """A line each, folded on a terminal too narrow for that."""
    header = ["problem", "parameters", "budget", "rates", "target", "seconds", "task: data"]
    rows = [header, *(_row(each) for each in found)]
    sides = "<>><>><"
    text = aligned(rows, sides)
    if width is None or max(map(len, text.splitlines())) <= width:
        return text
    return folded(rows, sides, len(header) - 1, width)


def _row(found: Problem) -> list[str]:
    rates = found.learning_rates
    return [
        found.name,
        f"{found.size:,}",
        f"{found.epochs} x {found.steps}",
        f"{rates[0]:.3g} to {rates[-1]:.3g}, {len(rates)}",
        "" if found.target is None else f"{found.target:.3g}",
        "" if found.seconds is None else rounded(found.seconds, 2),
        found.about,
    ]


def _record(found: Problem) -> dict[str, object]:
    return {
        "name": found.name,
        "about": found.about,
        "parameters": found.size,
        "epochs": found.epochs,
        "steps_per_epoch": found.steps,
        "learning_rates": list(found.learning_rates),
        "target": found.target,
        "seconds": found.seconds,
    }
