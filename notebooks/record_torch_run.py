"""Trains a small network with PyTorch, and records the run for `10_moving_house.ipynb`.

    python notebooks/record_torch_run.py

It needs scikit-learn and what ``pip install -e '.[parity]'`` installs, and writes `torch_run.npz`:
the loss of every step, and the state dicts of the model and of the optimizer half way and at the
end. Their arrays are under ``<step>/model/<name>`` and ``<step>/optimizer/<position>/<field>``; the
groups, and the versions, are JSON.
"""

import json
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

PATH = Path(__file__).with_name("torch_run.npz")
STEPS, MOVED = 200, 100


def main() -> None:
    """Trains and writes."""
    import sklearn  # noqa: PLC0415 - for who records only
    import torch  # noqa: PLC0415 - likewise

    torch.manual_seed(0)
    torch.set_num_threads(1)
    images, labels = load_digits(return_X_y=True)
    images = torch.tensor(images / 16, dtype=torch.float32)
    labels = torch.tensor(labels)
    model = torch.nn.Sequential()
    model.add_module("hidden", torch.nn.Linear(64, 32))
    model.add_module("relu", torch.nn.ReLU())
    model.add_module("out", torch.nn.Linear(32, 10))
    optimizer = torch.optim.AdamW(model.named_parameters(), lr=0.03, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.998)
    losses, arrays = [], {}
    for step in range(1, STEPS + 1):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if step in (MOVED, STEPS):
            for name, x in model.state_dict().items():
                arrays[f"{step}/model/{name}"] = x.numpy().copy()
            state_dict = optimizer.state_dict()
            for position, entry in state_dict["state"].items():
                for field, x in entry.items():
                    arrays[f"{step}/optimizer/{position}/{field}"] = x.numpy().copy()
    about = {
        "versions": {"torch": torch.__version__, "scikit-learn": sklearn.__version__},
        "moved": MOVED,
        "param_groups": state_dict["param_groups"],
    }
    np.savez_compressed(PATH, about=np.array(json.dumps(about)), losses=losses, **arrays)
    print(f"{PATH.name}: {PATH.stat().st_size} bytes, loss {losses[0]:.3f} to {losses[-1]:.3f}")


if __name__ == "__main__":
    main()
