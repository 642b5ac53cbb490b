"""The command line `adam-jax`: its arguments, and how it fails."""

import math
import os
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from adam_jax.race import entrants, grid, listing, memory, optimizers, problem
from adam_jax.race.errors import UsageError, require
from adam_jax.race.models import MODELS
from adam_jax.storage import FORMATS

INTERRUPTED = 130  # what a shell expects of a command that Ctrl-C has ended

_RACE = """Find the optimizer and the learning rate for a problem: train every entrant at every
learning rate from several seeds, and tell which did best. A problem of your own is a Python file
with `init(key)`, `loss(params, batch)`, and either `data` and `batch_size` or `batches(key)`;
`python -m pydoc adam_jax.race.problem` tells more."""

_TUNE = """Find a good learning rate, and other hyperparameters if asked, for one optimizer on a
problem, and how far off one may go: successive halving among candidates that train all at once,
then more values near the best one with the whole budget. It says when that was too little to
tell."""

_MEMORY = """Tell what Adam's state costs for a model, in every storage format: bytes a parameter,
the whole state, and what is saved against float32. Nothing is allocated. KiB, MiB and GiB are units
of 1024. In Python, `print(adam_jax.memory(tx, params))` shows any optimizer's by parameter, and
`adam_jax.sharding.plan` how it is divided over devices."""


_OPTIMIZERS = """List the family: every optimizer of this package, the bytes of its state a
parameter, what it does, and the paper that it is from. `help(adam_jax.NAME)` tells more."""

_PROBLEMS = """List the built-in problems: task and data, how many parameters, the budget and the
learning rates unless you say otherwise, the loss that counts as solved, and how long Adam takes."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit status: 0, 2 for unusable input, 130 for Ctrl-C."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # which a shell has closed
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  for as long as we run
    try:
        given = sys.argv[1:] if argv is None else list(argv)
        arguments = _parser().parse_args(given, Namespace(given=given))
        run: Callable[..., int] = arguments.run
        return run(arguments)
    except UsageError as error:
        # One line, whatever the user's own exception had to say.
        print("adam-jax: error:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("adam-jax: interrupted before anything was finished", file=sys.stderr)
        return INTERRUPTED


class _Parser(ArgumentParser):
    """Fails in one line, without argparse's usage text."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def _parser() -> ArgumentParser:
    parser = _Parser(prog="adam-jax", description="Adam and its family for JAX.")
    commands = parser.add_subparsers(metavar="command", required=True)
    _add_race(commands)
    _add_tune(commands)
    _add_memory(commands)
    _add_optimizers(commands)
    _add_problems(commands)
    return parser


def _add_race(commands: Any) -> None:
    parser = commands.add_parser(
        "race", help="find the optimizer and the learning rate for a problem", description=_RACE
    )
    parser.set_defaults(run=_race)
    add = parser.add_argument
    add(
        "problem",
        help=f"a Python file, or one of: {', '.join(problem.names())}; or several of these with "
        "commas between, or all, for every built-in one: then the entrants have a score over all, "
        "and each problem has a process of its own, as it has where an entrant is your own: what "
        "fails takes no other along",
    )
    add(
        "--entrants",
        default=",".join(entrants.DEFAULT),
        metavar="LIST",
        help="any of `adam-jax optimizers`, which with :FORMAT have both moments of every array, "
        f"small ones too, in that storage format: {', '.join(FORMATS)}; any of Optax's "
        f"{', '.join(entrants.OPTAX)}; {entrants.ALL}, for every one of these; module:function or "
        "file.py:function of your own that take a learning rate and return an Optax transformation "
        "(default: %(default)s)",
    )
    add(
        "--learning-rates",
        type=grid.learning_rates,
        metavar="RATES",
        help="0.001,0.01 or lowest:highest:count, evenly spaced in log "
        f"(default: the problem's, or {problem.DEFAULT_LEARNING_RATES})",
    )
    add("--seeds", type=_seeds, default=3, metavar="N", help="default: %(default)s")
    add(
        "--epochs",
        type=_epochs,
        metavar="N",
        help=f"passes through the data (default: the problem's, or {problem.DEFAULT_EPOCHS})",
    )
    add(
        "--target",
        type=_finite,
        metavar="LOSS",
        help="the loss that steps are counted to, of one problem "
        "(default: the problem's, or 10%% above the lowest final loss)",
    )
    add(
        "--time-limit",
        type=_seconds,
        metavar="SECONDS",
        help="for an entrant on a problem, with its compilation, and before that for all entrants "
        "to be read; what takes longer is ended",
    )
    add(
        "--out",
        type=Path,
        metavar="DIR",
        help="write report.html and pictures there, over older ones, and an entrant's runs to "
        "results.jsonl as it is done; runs of the same problem, entrant, learning rates, seeds and "
        "epochs are taken from there",
    )
    add("--fresh", action="store_true", help="race again what is in results.jsonl, and replace it")
    _add_json(parser)


def _add_tune(commands: Any) -> None:
    parser = commands.add_parser(
        "tune", help="find a good learning rate for one optimizer", description=_TUNE
    )
    parser.set_defaults(run=_tune)
    add = parser.add_argument
    add("problem", help=f"a Python file, or one of: {', '.join(problem.names())}")
    add(
        "--entrant",
        default="adam",
        metavar="NAME",
        help="any that `adam-jax race --entrants` takes (default: %(default)s)",
    )
    add(
        "--learning-rates",
        type=grid.learning_rates,
        metavar="RATES",
        help="0.001,0.01,0.1 or lowest:highest:count, evenly spaced in log (default: 1e-6:10:22)",
    )
    add(
        "--also",
        metavar="RANGES",
        help="other numbers that the entrant takes, such as "
        "b2=0.9:0.9999,eps=1e-10:1e-3,weight_decay=1e-4:1; each adds as many candidates as there "
        "are learning rates",
    )
    add("--seeds", type=_seeds, default=3, metavar="N", help="default: %(default)s")
    add(
        "--epochs",
        type=_epochs,
        metavar="N",
        help=f"the whole budget (default: the problem's, or {problem.DEFAULT_EPOCHS})",
    )
    add(
        "--tolerance",
        type=_share,
        default=0.05,
        metavar="SHARE",
        help="how much above the lowest loss is as good (default: %(default)s)",
    )
    add(
        "--time-limit",
        type=_seconds,
        metavar="SECONDS",
        help="for the entrant to be read, for the problem, and for the search; what is known by "
        "then is kept",
    )
    add(
        "--out",
        type=Path,
        metavar="DIR",
        help="write tune.png and tune.json there, over older ones",
    )
    _add_json(parser)


def _add_memory(commands: Any) -> None:
    parser = commands.add_parser(
        "memory", help="what the state costs, in every storage format", description=_MEMORY
    )
    parser.set_defaults(run=memory.run)
    add = parser.add_argument
    add(
        "models",
        nargs="*",
        metavar="MODEL",
        help="file.py:function or module:function of your own that returns a tree of arrays or "
        "jax.ShapeDtypeStructs, from nothing or a random key, or one of: "
        f"{', '.join(MODELS)} (default: all of these)",
    )
    add(
        "--devices",
        type=_counts,
        default=(),
        metavar="N,N",
        help="and of that each of so many devices' part, as `adam_jax.sharding.zero` divides it, "
        "and what each sends a step, where gradients have the parameters' dtypes",
    )
    _add_json(parser)


def _add_optimizers(commands: Any) -> None:
    parser = commands.add_parser(
        "optimizers", help="every optimizer of the family, in a line", description=_OPTIMIZERS
    )
    parser.set_defaults(run=optimizers.run)
    _add_json(parser)


def _add_problems(commands: Any) -> None:
    parser = commands.add_parser(
        "problems", help="every built-in problem, in a line", description=_PROBLEMS
    )
    parser.set_defaults(run=listing.run)
    _add_json(parser)


def _add_json(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--json", action="store_true", help="print one JSON document in place of the table"
    )


def _race(arguments: Namespace) -> int:
    # Not at the top: the command needs packages of the extra, and this file says which are missing.
    status: int = require("adam_jax.race.command").run(arguments)
    return status


def _tune(arguments: Namespace) -> int:
    status: int = require("adam_jax.race.tune.command").run(arguments)
    return status


def _positive(text: str, most: int) -> int:
    # As a float first: `int` reads no more than 4300 digits.
    number = float(text) if text.strip().isdecimal() else 0.0
    if number < 1:
        raise ArgumentTypeError(f"must be a positive integer, got {text!r}")
    if number > most:
        raise ArgumentTypeError(f"must be at most {most:,}, got {text!r}")
    return int(number)


# More than anyone needs, and less than a slip of the hand.
_seeds = partial(_positive, most=1000)
_epochs = partial(_positive, most=10**9)
_devices = partial(_positive, most=10**6)


def _counts(text: str) -> tuple[int, ...]:
    return tuple(dict.fromkeys(map(_devices, text.split(","))))


def _share(text: str) -> float:
    number = _finite(text)
    if not 0 < number < 1:
        raise ArgumentTypeError(f"must be between 0 and 1, got {text!r}")
    return number


def _seconds(text: str) -> float:
    number = _finite(text)
    if number <= 0:
        raise ArgumentTypeError(f"must be a positive number of seconds, got {text!r}")
    return number


def _finite(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ArgumentTypeError(f"must be a finite number, got {text!r}")
    return number
