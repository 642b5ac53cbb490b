"""A race for people: `report.html`, one page to read, to keep and to send."""

from adam_jax.race.report.again import command, versions
from adam_jax.race.report.page import page
from adam_jax.race.report.profiles import Profile

__all__ = ["Profile", "command", "page", "versions"]
