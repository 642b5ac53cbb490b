"""Makes the golden 8-bit state with bitsandbytes itself, or checks that it still holds.

    python tests/parity/make_bitsandbytes.py           # writes bitsandbytes.npz
    python tests/parity/make_bitsandbytes.py --check   # compares with it

It needs what ``pip install -e '.[bench]'`` installs. The file has the state dict of Adam8bit after
some steps, and next to each moment what bitsandbytes itself takes it for.
"""

import argparse
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np

PATH = Path(__file__).parent / "bitsandbytes.npz"
# Rows that are whole blocks of 256, rows that are not, one row, and what stays in float32.
SHAPES = {"whole": (4, 256), "ragged": (3, 300), "row": (700,), "small": (7,)}
STEPS = 20


def make() -> dict[str, np.ndarray]:
    """The arrays of the file, by names."""
    import bitsandbytes as bnb
    import torch

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rng = np.random.default_rng(7)
    leaves = [torch.nn.Parameter(torch.zeros(shape)) for shape in SHAPES.values()]
    optimizer = bnb.optim.Adam8bit(leaves, lr=1e-3, min_8bit_size=512)
    for _ in range(STEPS):
        for leaf in leaves:
            size = 10.0 ** rng.uniform(-4, 0, leaf.shape)
            leaf.grad = torch.tensor(size * rng.normal(size=leaf.shape), dtype=torch.float32)
        optimizer.step()
    state_dict = optimizer.state_dict()
    arrays: dict[str, Any] = {}
    for position, entry in state_dict["state"].items():
        (inner,) = [value for value in entry.values() if isinstance(value, dict)]
        for part, x in inner.items():
            arrays[f"{position}/{part}"] = x.numpy()
        for number in (1, 2):
            if f"absmax{number}" in inner:
                decoded = bnb.functional.dequantize_blockwise(
                    inner[f"state{number}"],
                    absmax=inner[f"absmax{number}"],
                    code=inner[f"qmap{number}"],
                    blocksize=256,
                )
                arrays[f"{position}/decoded{number}"] = decoded.numpy()
    about = {
        "versions": {"bitsandbytes": bnb.__version__, "torch": torch.__version__},
        "step": int(state_dict["state"][0]["step"]),
        "inner": [key for key, value in state_dict["state"][0].items() if isinstance(value, dict)],
        "param_groups": state_dict["param_groups"],
    }
    return {"about": np.array(json.dumps(about)), **arrays}


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--check", action="store_true", help="compare with the file")
    fresh = make()
    if not parser.parse_args().check:
        np.savez_compressed(PATH, **fresh)
        print(f"{PATH}: {PATH.stat().st_size} bytes")
        return 0
    with np.load(PATH) as golden:
        same = set(golden) == set(fresh) and all(
            np.array_equal(golden[key], x) for key, x in fresh.items()
        )
    print("bitsandbytes:", "ok" if same else "FAILED: the state is another")
    return int(not same)


if __name__ == "__main__":
    sys.exit(main())
