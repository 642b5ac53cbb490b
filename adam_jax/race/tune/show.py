"""A search for people: the recommendation, how far off it one may go, and what to make of it."""

from collections.abc import Iterable

from rich import box
from rich.console import Console
from rich.table import Table

from adam_jax.race.results import rounded
from adam_jax.race.tune.results import Findings, Scan
from adam_jax.race.tune.space import Axis
from adam_jax.race.tune.verdict import is_undecided, verdicts

_WIDE = 200  # more than a table has
_DASH = "\N{EN DASH}"


def show(title: str, axes: tuple[Axis, ...], found: Findings) -> None:
    """Prints the findings.

    Args:
      title: what was tuned on what, such as "adam on digits".
      axes: the hyperparameters.
      found: the findings.
    """
    console = Console(markup=False, highlight=False, emoji=False)
    wide = Console(width=_WIDE)  # a number is never cut
    for line in headline(title, axes, found):
        console.print(line, style="bold")
    for scan in found.scans:
        console.print()
        wide.print(_table(scan))
    console.print()
    for verdict in verdicts(found):
        console.print(verdict.text)
    console.print(cost(found), style="dim")


def headline(title: str, axes: tuple[Axis, ...], found: Findings) -> Iterable[str]:
    """The recommendation, a line a hyperparameter."""
    trial = found.recommended
    if trial is None:
        yield f"{title}: no recommendation."
        return
    values = dict(zip((axis.name for axis in axes), trial.values, strict=True))
    loss = f"ends at loss {rounded(trial.final_loss, 3)}"
    doubt = "; the budget is too small to tell" * is_undecided(found)
    chosen = ", ".join(f"{name} {value:.6g}" for name, value in values.items())
    yield f"{title}: {chosen} {loss}{doubt}"
    for scan in found.scans[::-1]:
        alike = scan.span(scan.alike[0], scan.alike[-1])
        wider = not scan.doubtful and scan.alike != scan.good
        more = f"; nothing in {alike} is certainly worse" * wider
        yield f"  {scan.axis.name}: {neighbourhood(scan)}{more}"


def neighbourhood(scan: Scan) -> str:
    """How far off the recommended value one may go."""
    if scan.doubtful:
        return f"nothing in {scan.span(scan.alike[0], scan.alike[-1])} can be told from it"
    return f"anything in {scan.span(scan.low, scan.high)} is within {scan.tolerance:.0%}"


def cost(found: Findings) -> str:
    """What was spent, and what a whole grid would have taken."""
    spent = found.cost.halving + found.cost.scans
    return (
        f"Trained for {spent} epochs, counting each candidate and seed: {found.cost.halving} to "
        f"halve {len(found.trials)} candidates, where all of them with the whole budget take "
        f"{found.cost.grid}, and {found.cost.scans} around the best."
    )


def _table(scan: Scan) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for name in (scan.axis.name.replace("_", " "), "final loss", "range over seeds", "to lowest"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("")
    least = scan.best_trial.final_loss
    for value, trial in scan.trials.items():
        if trial.diverged:
            span, above, loss = "", "", "diverged"
        else:
            above = _above(trial.final_loss, least)
            span = _DASH.join(rounded(end, 2) for end in (min(trial.final), max(trial.final)))
            loss = rounded(trial.final_loss, 3)
        recommended = value == scan.recommended
        note = "recommended" if recommended else f"within {scan.tolerance:.0%}"
        note = note if recommended or value in scan.good else ""
        style = "bold" if recommended else None
        table.add_row(f"{value:.6g}", loss, span, above, note, style=style)
    return table


def _above(loss: float, least: float) -> str:
    """How much a loss is above the lowest one.

    >>> _above(0.3, 0.2), _above(4.0, 0.2), _above(0.1, 0.0)
    ('+50%', 'x 20', '')
    """
    if least <= 0:
        return ""
    return f"{loss / least - 1:+.0%}" if loss < 10 * least else f"x {rounded(loss / least, 2)}"
