"""What a damaged checkpoint or a full disk says: the child process of `test_checkpoint_faults`.

    python checkpoint_faults.py restore FOLDER...
    python checkpoint_faults.py save FOLDER LIMIT

The first restores each folder; the second saves a small state, then large ones until there is no
room, because the disk is full or a file may have no more than LIMIT bytes. Each prints JSON lines.
In a process of its own, for what Orbax leaves running after an error is heard of later.
"""

import hashlib
import json
import resource
import sys
from pathlib import Path

import jax
import numpy as np
from saved_states import abstract, filled

import adam_jax
from adam_jax import checkpoint, storage

SMALL = storage.eight_bit(4, min_size=0)
TX = adam_jax.adam(0.1, mu_dtype=SMALL, nu_dtype=SMALL)
LARGE = {"w": (256, 512)}  # a moment of it is 512 KiB, which do not compress


def outcome(call):
    """What it gives or says."""
    try:
        return {"gives": call()}
    except Exception as error:
        return {"raises": type(error).__name__, "says": str(error)}


def bits(folder):
    """A digest of every bit of the state in a folder."""
    return digest(checkpoint.restore(folder, TX, abstract()))


def digest(state):
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(state):
        found.update(np.asarray(leaf).tobytes())
    return found.hexdigest()


def save_until_full(folder, limit):
    checkpoint.save(folder / "0", filled(TX, abstract()))
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    large = filled(adam_jax.adam(0.1), abstract(LARGE))
    for step in range(1, 9):
        found = outcome(lambda step=step: checkpoint.save(folder / str(step), large))
        if "raises" in found:
            break
    there = [(folder / str(each)).exists() for each in range(step + 1)]
    before = outcome(lambda: bits(folder / "0"))
    return found | {"there": there, "before": before}


def main(do, *arguments):
    if do == "restore":
        for folder in arguments:
            print(json.dumps(outcome(lambda folder=folder: bits(folder))))
    else:
        print(json.dumps(save_until_full(Path(arguments[0]), int(arguments[1]))))


if __name__ == "__main__":
    main(*sys.argv[1:])
