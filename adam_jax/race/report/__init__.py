"""A race for people: `report.html`, one page to read, to keep and to send."""

from adam_jax.race.report.again import command, versions
from adam_jax.race.report.page import page
from adam_jax.race.report.profiles import Lines, draw, lines

__all__ = ["Lines", "command", "draw", "lines", "page", "versions"]
