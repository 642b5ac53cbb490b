"""A damaged checkpoint or a full disk is an error of one line, and nothing is lost."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

pytest.importorskip("orbax.checkpoint", reason="Orbax wants a recent JAX; `test` brings it")

import orbax.checkpoint as ocp
from checkpoint_faults import TX, digest
from checks import assert_same_bits
from saved_states import abstract, filled

import adam_jax
from adam_jax import checkpoint

SCRIPT = Path(__file__).with_name("checkpoint_faults.py")
DESCRIPTION = "optimizer_state_description/metadata"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder, and the state that is in it."""
    folder, state = tmp_path_factory.mktemp("adam") / "state", filled(TX, abstract())
    checkpoint.save(folder, state)
    return folder, state


def restored(folder):
    return checkpoint.restore(folder, TX, abstract())


def refusal(folder):
    """What restoring says, in one line that names the folder."""
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        restored(folder)
    said = str(caught.value)
    assert "\n" not in said
    assert str(folder) in said
    return said


def spoken(*arguments):
    """What a child process says, a dict a line."""
    done = subprocess.run(
        [sys.executable, SCRIPT, *map(str, arguments)], check=True, capture_output=True, text=True
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def left_of(data):
    """What may be left of a file."""
    yield from (data[: len(data) // 2], data[:-1], b"", None)


def damaged(whole, path, index, data):
    """A copy of a checkpoint in which one file is what is left of it."""
    folder = whole.parent / f"{path.as_posix().replace('/', '-')}-{index}"
    shutil.copytree(whole, folder)
    (folder / path).unlink() if data is None else (folder / path).write_bytes(data)
    return folder


def test_each_file_that_is_cut_off_or_lost_is_noticed_or_not_needed(saved):
    whole, state = saved
    paths = sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file())
    cases = [
        (path, damaged(whole, path, index, data))
        for path in paths
        for index, data in enumerate(left_of((whole / path).read_bytes()))
    ]
    noticed = set()
    for (path, folder), found in zip(
        cases, spoken("restore", *[folder for _, folder in cases]), strict=True
    ):
        if "gives" in found:
            assert found["gives"] == digest(state), folder
            continue
        assert found["raises"] == "ValueError"
        assert re.match(f"the checkpoint at {folder} |{folder} holds no state", found["says"])
        assert "\n" not in found["says"]
        noticed.add("arrays" if path.parent.name == "d" else path.name)
    assert {"arrays", "_METADATA", "metadata", "manifest.ocdbt"} <= noticed


def test_what_is_no_checkpoint_of_ours_is_refused(saved, tmp_path):
    assert refusal(tmp_path / "nothing") == f"there is no checkpoint at {tmp_path / 'nothing'}"
    ours = "holds no state that adam_jax has saved: no optimizer_state_description is in it"
    (tmp_path / "empty").mkdir()
    assert refusal(tmp_path / "empty") == f"{tmp_path / 'empty'} {ours}"
    (tmp_path / "file").write_text("a pickle, perhaps")
    assert refusal(tmp_path / "file") == f"{tmp_path / 'file'} {ours}"
    foreign = tmp_path / "foreign"
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(foreign, {"w": jnp.ones(3)})
    assert refusal(foreign) == f"{foreign} {ours}"
    # One that a process was killed in writing, under the name that Orbax gives it until it is done.
    (tmp_path / "state.orbax-checkpoint-tmp").mkdir()
    assert refusal(tmp_path / "state.orbax-checkpoint-tmp").endswith(ours)


DESCRIBED = {
    "later": (
        {"version": 99, "written_by": "adam_jax 7.0"},
        "is another: it is in version 99 of its layout, by adam_jax 7.0; this adam_jax reads 1 to ",
    ),
    "before the first": (
        {"version": 0},
        "is another: it is in version 0 of its layout, by adam_jax",
    ),
    "no version": ({"version": None}, "is another: it does not describe a state of adam_jax: "),
    "no leaves": ({"leaves": 3}, "is another: it does not describe a state of adam_jax: "),
    "no arrays": ({"arrays": 3}, "is another: it does not describe a state of adam_jax: "),
    "a leaf of nothing": (
        {"leaves": {"[0].count": {}}},
        "is another: it does not describe a state of adam_jax: ",
    ),
    "numbers for arrays": (
        {"arrays": [3, "[0].count"]},
        "is another: it does not describe a state of adam_jax: ",
    ),
    "other arrays": (
        {"arrays": ["[0].count"]},
        "is another: its list of arrays is not that of its leaves",
    ),
}


@pytest.mark.parametrize("case", DESCRIBED)
def test_a_description_that_cannot_be_read_is_refused(saved, tmp_path, case):
    folder, (change, message) = tmp_path / "state", DESCRIBED[case]
    shutil.copytree(saved[0], folder)
    said = json.loads((folder / DESCRIPTION).read_text())
    (folder / DESCRIPTION).write_text(json.dumps(said | change))
    assert refusal(folder).startswith(f"the checkpoint at {folder} {message}")


def test_a_description_of_something_else_is_refused(saved, tmp_path):
    folder = tmp_path / "state"
    shutil.copytree(saved[0], folder)
    (folder / DESCRIPTION).write_text("[1, 2]")
    assert "does not describe a state of adam_jax: [1, 2]" in refusal(folder)


# --- what is no number ---------------------------------------------------------------------------


def test_nan_is_restored_as_it_is_and_found_by_its_name(tmp_path):
    tx, params = adam_jax.skip_unstable(adam_jax.adam(0.1), threshold=6.0), {"w": jnp.ones((2, 3))}
    state = tx.init(params)
    assert not np.all(np.isfinite(state.norms))  # of no parameter: none has been seen
    checkpoint.require_finite(state, params)
    bad = jnp.ones((2, 3)).at[1, 2].set(jnp.nan).at[0, 0].set(jnp.inf)
    inner = (state.inner_state[0]._replace(nu={"w": bad}), *state.inner_state[1:])
    state = state._replace(inner_state=inner)
    checkpoint.save(tmp_path / "state", state)
    restored = checkpoint.restore(tmp_path / "state", tx, params)
    assert_same_bits(restored, state)
    message = r"^state\.inner_state\[0\]\.nu\['w'\] is not finite in 2 of its 6 entries$"
    with pytest.raises(ValueError, match=message):
        checkpoint.require_finite(restored, params)


def test_nan_in_blocks_is_found():
    params = {"w": jnp.ones((2, 8))}
    _, state = TX.update({"w": jnp.ones((2, 8)).at[0, 0].set(jnp.nan)}, TX.init(params))
    with pytest.raises(
        ValueError, match=r"^state\[0\]\.mu\['w'\]\.scales is not finite in 1 of its 4"
    ):
        checkpoint.require_finite(state, params)


def test_a_state_of_other_parameters_is_not_taken_for_a_finite_one():
    _, state = TX.update({"w": jnp.full((2, 8), jnp.nan)}, TX.init({"w": jnp.ones((2, 8))}))
    for params in (None, {}, {"v": jnp.ones((2, 8))}):
        with pytest.raises(ValueError, match=r"^state\[0\]\.mu\['w'\].* is not finite in"):
            checkpoint.require_finite(state, params)
    checkpoint.require_finite(adam_jax.adam(1e-3).init({}), {})


def test_moments_in_another_form_than_the_parameters_are_checked():
    params, tx = {"w": jnp.ones(3)}, optax.flatten(optax.adam(1e-3))
    checkpoint.require_finite(tx.init(params), params)
    _, state = tx.update({"w": jnp.array([1.0, jnp.nan, 1.0])}, tx.init(params), params)
    with pytest.raises(ValueError, match=r"\.mu is not finite in 1 of its 3 entries"):
        checkpoint.require_finite(state, params)


# --- what is no state, no path, no sharding -------------------------------------------------------

PARAMS = {"w": jnp.ones(3)}
ADAM = adam_jax.adam(1e-3)
SHARDINGS = jax.tree.map(lambda _: "x", ADAM.init(PARAMS))

WRONG_KINDS = {
    "a path": (lambda path: checkpoint.save(3, ADAM.init(PARAMS)), "`path` must be a string or a"),
    "an object": (
        lambda path: checkpoint.save(path, {"a": object()}),
        r"state\['a'\] must be an arr",
    ),
    "a shape": (
        lambda path: checkpoint.save(path, jax.eval_shape(ADAM.init, PARAMS)),
        r"state\[0\].count must be an array, outside of jit, got ShapeDtypeStruct",
    ),
    "a tracer": (
        lambda path: jax.jit(lambda s: checkpoint.save(path, s))(ADAM.init(PARAMS)),
        r"state\[0\].count must be an array, outside of jit, got ",
    ),
    "traced entries": (
        lambda path: jax.jit(lambda s: checkpoint.require_finite(s, PARAMS))(ADAM.init(PARAMS)),
        r"state\[0\].mu\['w'\] must be an array, outside of jit, got ",
    ),
    "a path to read": (lambda path: checkpoint.restore(None, ADAM, PARAMS), "`path` must be a str"),
    "a text": (
        lambda path: checkpoint.restore(path, ADAM, {"w": "f"}),
        r"params\['w'\] must be an",
    ),
    "traced parameters": (
        lambda path: jax.jit(lambda p: checkpoint.restore(path, ADAM, p))(PARAMS),
        r"params\['w'\] must be an array, outside of jit, got a tracer",
    ),
    "shardings": (
        lambda path: checkpoint.restore(path, ADAM, PARAMS, shardings=SHARDINGS),
        r"`shardings`\[0\].count must be a jax.sharding.Sharding, got 'x'",
    ),
}


@pytest.mark.parametrize("fault", WRONG_KINDS)
def test_what_is_of_a_wrong_kind_is_refused_before_anything_is_written(fault, tmp_path):
    call, message = WRONG_KINDS[fault]
    with pytest.raises(TypeError) as found:
        call(tmp_path / "state")
    assert re.match(rf"{message}[^\n]*\Z", str(found.value))
    assert list(tmp_path.iterdir()) == []


# --- a full disk ---------------------------------------------------------------------------------


def assert_the_one_before_is_kept(found, folder, why):
    *before, last = found["there"]
    assert (before, last) == ([True] * len(before), False)
    assert found["raises"] == "OSError"
    assert found["says"].startswith(f"the state cannot be saved to {folder}/{len(before)}: ")
    assert why in found["says"]
    assert "\n" not in found["says"]
    assert found["before"] == {"gives": digest(filled(TX, abstract()))}


def test_where_no_more_can_be_written_the_checkpoint_before_is_kept(tmp_path):
    """The kernel refuses to make a file larger, as it does where a disk is full."""
    (found,) = spoken("save", tmp_path, 2**18)
    assert_the_one_before_is_kept(found, tmp_path, "File too large")


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 3 MiB, where one may be mounted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)]
    if not shutil.which("mount") or subprocess.run(mount, check=False).returncode:
        pytest.skip("not everybody may mount a small disk; a limit of files' sizes is tested too")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_on_a_full_disk_the_checkpoint_before_is_kept(small_disk):
    (found,) = spoken("save", small_disk, 0)
    assert_the_one_before_is_kept(found, small_disk, "No space left on device")


def test_nothing_is_written_over(saved):
    folder, state = saved
    with pytest.raises(FileExistsError, match=r"^`path` must be new, and there is something at /"):
        checkpoint.save(folder, filled(TX, abstract(), seed=1))
    assert_same_bits(restored(folder), state)
