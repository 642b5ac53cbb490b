"""The pictures of the performance profiles."""

import struct

import pytest

from adam_jax.race import profile_pictures
from adam_jax.race.profiles import Profile, Score


def score(entrant, *ratios):
    return Score(entrant, ("p", "q"), Profile(ratios), Profile(ratios), 1e-3)


@pytest.mark.parametrize("count", [1, 3, 12])
def test_pictures(count):
    names = [f"entrant_{index}" for index in range(count)]
    found = [score(name, 1.0 + index / 3, 3.0) for index, name in enumerate(names)]
    files = profile_pictures.draw([*found, score("none", float("inf"), 9.0)], [*names, "none"])
    assert set(files) == {"profile.png", "profile_default.png"}
    for content in files.values():
        width, height = struct.unpack(">II", content[16:24])
        assert 1000 <= width <= 2000
        assert 600 <= height <= 1500
        assert len(content) > 15_000
