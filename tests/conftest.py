"""Settings of the whole suite, made before JAX starts."""

import gc
import os
import tempfile
import zlib
from collections import defaultdict

# Eight devices on one CPU, so that sharding is tested for real.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import family
import jax
import pytest

# What is compiled twice is compiled once: many tests build one program. A folder a process, for
# JAX's cache is not made for two that write.
COMPILED = tempfile.TemporaryDirectory(prefix="adam_jax-compiled-")
jax.config.update("jax_compilation_cache_dir", COMPILED.name)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.fixture
def x64():
    """64-bit dtypes, for one test."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def pytest_addoption(parser):
    add = parser.addoption
    add("--members", help="a comma list: of the tests by member, only theirs")
    also = "also what takes long, and each member in each format of blocks, and not in one by turns"
    add("--exhaustive", action="store_true", help=also)
    add("--part", metavar="I/N", help="of what takes long, and of no other, the I-th of N parts")


def pytest_configure(config):
    family.exhaustive = bool(config.getoption("--exhaustive") or config.getoption("--part"))


def pytest_collection_modifyitems(config, items):
    for item in items:
        if item.name == "adam_jax.sharding.offload.offload" and not hasattr(jax, "memory"):
            item.add_marker(pytest.mark.skip(reason="this JAX cannot name the host's memory"))
    kept = list(items)
    if chosen := config.getoption("--members"):
        kept = [item for item in kept if member_of(item) in (None, *chosen.split(","))]
    if part := config.getoption("--part"):
        kept = in_part(kept, *map(int, part.split("/")))
    elif not family.exhaustive:
        kept = ordinary(kept, family.OFTEN if chosen is None else chosen.split(","))
    still = set(map(id, kept))
    config.hook.pytest_deselected(items=[item for item in items if id(item) not in still])
    items[:] = kept


def member_of(item):
    member = getattr(item, "callspec", None) and item.callspec.params.get("member")
    return member if isinstance(member, str) else None


def in_part(items, part, parts):
    """Of what an ordinary run leaves out; a test is in the same part whatever the others are."""
    return [
        item
        for item in items
        if (item.get_closest_marker("exhaustive") or item.get_closest_marker("costly"))
        and zlib.crc32(item.nodeid.encode()) % parts == part % parts
    ]


def ordinary(items, members):
    """Without what takes long; of what is costly a case or two, by member of those given."""
    costly = defaultdict(list)
    for item in items:
        if item.get_closest_marker("costly") and member_of(item) in (None, *members):
            costly[item.path, item.originalname].append(item)
    few = {id(item) for cases in costly.values() for item in ends(cases)}
    return [
        item
        for item in items
        if not item.get_closest_marker("exhaustive")
        and (id(item) in few or not item.get_closest_marker("costly"))
    ]


def ends(cases):
    """The first; by member the last too, a wrapper."""
    return cases[:1] + (cases[-1:] if member_of(cases[0]) else [])


def pytest_runtest_teardown():
    """Let Python's garbage collector not look again at what JAX keeps of what it has compiled.

    There are millions of such objects, and the check of leaks collects at every step.
    """
    gc.freeze()
