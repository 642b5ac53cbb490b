"""Settings of the whole suite, made before JAX starts."""

import gc
import os
import tempfile
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


FEW = 4  # cases that an ordinary run takes of a test that is marked costly


@pytest.fixture
def x64():
    """64-bit dtypes, for one test."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def pytest_addoption(parser):
    parser.addoption("--members", help="a comma list: of the tests by member, only theirs")
    help_ = (
        "also what takes long, and each member in each format of blocks, and not in one by turns"
    )
    parser.addoption("--exhaustive", action="store_true", help=help_)


def pytest_configure(config):
    family.exhaustive = config.getoption("--exhaustive")


def pytest_collection_modifyitems(config, items):
    """One worker for the tests of one member, or of one file (--dist loadgroup).

    They share what they compile.
    """
    chosen = config.getoption("--members")
    kept, costly = [], defaultdict(list)
    for item in items:
        if item.name == "adam_jax.sharding.offload.offload" and not hasattr(jax, "memory"):
            item.add_marker(pytest.mark.skip(reason="this JAX cannot name the host's memory"))
        member = getattr(item, "callspec", None) and item.callspec.params.get("member")
        is_of_member = isinstance(member, str)
        item.add_marker(pytest.mark.xdist_group(member if is_of_member else item.path.name))
        if is_of_member and chosen and member not in chosen.split(","):
            continue
        if family.exhaustive or not item.get_closest_marker("exhaustive"):
            kept.append(item)
            often = not is_of_member or chosen or member in family.OFTEN
            if item.get_closest_marker("costly") and not family.exhaustive and often:
                costly[item.path, item.originalname].append(item)
    if not family.exhaustive:
        few = {id(item) for cases in costly.values() for item in evenly(cases, FEW)}
        kept = [i for i in kept if not i.get_closest_marker("costly") or id(i) in few]
    still = set(map(id, kept))
    config.hook.pytest_deselected(items=[item for item in items if id(item) not in still])
    items[:] = kept


def evenly(cases, most):
    """The first and the last, and so many between, as far apart as can be."""
    if len(cases) <= most:
        return cases
    return [cases[i * (len(cases) - 1) // (most - 1)] for i in range(most)]


def pytest_runtest_teardown():
    """Let Python's garbage collector not look again at what JAX keeps of what it has compiled.

    There are millions of such objects, and the check of leaks collects at every step.
    """
    gc.freeze()
