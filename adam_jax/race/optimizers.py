"""The command `adam-jax optimizers`: every member of the family in a line."""

import json
import shutil
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict

import jax
import jax.numpy as jnp

import adam_jax
from adam_jax.diagnostics import aligned
from adam_jax.race.errors import printing
from adam_jax.race.folding import folded
from adam_jax.race.members import MEMBERS, Member

_MORE = """bytes: of state a parameter, in float32; `adam-jax memory` shows what formats save
try them: adam-jax race digits --entrants all; addresses of the papers: --json"""


def run(arguments: Namespace) -> int:
    """Prints the family, and returns the exit status."""
    if arguments.json:
        text = json.dumps({"optimizers": [_record(each) for each in MEMBERS.values()]}, indent=2)
    else:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        text = f"{table(list(MEMBERS.values()), width)}\n\n{_MORE}"
    with printing():
        print(text)
    return 0


def table(members: Sequence[Member], width: int | None) -> str:
    """A line each; on a terminal too narrow for that, without titles, and folded."""
    rows = [["optimizer", "bytes", "what it does", "paper", "title"]]
    for member in members:
        cited, title = "", ""
        if member.papers:
            cited, title = member.papers[0].short, member.papers[0].title
        rows.append([member.name, f"{_bytes(member):.3g}", member.does, cited, title])
    text = aligned(rows, "<><<<")
    if width is None or max(map(len, text.splitlines())) <= width:
        return text
    return folded([row[:-1] for row in rows], "<><<", 2, width)


def _record(member: Member) -> dict[str, object]:
    return {
        "name": member.name,
        "does": member.does,
        "state_bytes_per_parameter": _bytes(member),
        "papers": [asdict(paper) for paper in member.papers],
    }


def _bytes(member: Member) -> float:
    """Of state a parameter, in a matrix as large as they are where it matters."""
    params = {"w": jax.ShapeDtypeStruct((1024, 1024), jnp.float32)}
    return adam_jax.memory(member.build(1e-3), params).bytes_per_parameter
