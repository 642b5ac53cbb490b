"""Arrays of any framework as NumPy's."""

from typing import Any

import numpy as np

from adam_jax.hyperparameters import brief


def array_of(x: Any, what: str) -> np.ndarray:
    """An array, tensor, variable or number as NumPy's, in its own dtype; on the host, a copy.

    NumPy has no bfloat16 that PyTorch knows: its bfloat16 becomes float32, which holds all of it.

    Args:
      x: has ``__array__``, or ``detach`` as tensors of PyTorch have; or is a number.
      what: its name, for errors.

    Raises:
      TypeError: it is none of these.

    Example:
      >>> array_of(np.float32(2), "x"), array_of(None, "step of 'w'")
      Traceback (most recent call last):
      TypeError: step of 'w' must be an array, got None
    """
    if hasattr(x, "detach"):
        x = x.detach().cpu()
        x = x.float() if str(x.dtype) == "torch.bfloat16" else x
        x = x.numpy() if hasattr(x, "numpy") else x
    try:
        array = np.array(x)
    except Exception as error:
        raise TypeError(f"{what} must be an array, got {brief(x)}") from error
    if array.dtype.kind in "OUSM":
        raise TypeError(f"{what} must be an array, got {brief(x)}")
    return array
