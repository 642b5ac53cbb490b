"""The members written out from their papers in float64 numpy, as slow and plain as they read.

Nothing here comes from the package. Each takes the gradients of all steps, stacked, and returns the
directions of all steps and the moments after the last.
"""

from typing import Any

import numpy as np

Array = Any


def adam(
    gradients: Array,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    nesterov: bool = False,
) -> tuple[Array, dict[str, Array]]:
    """Kingma & Ba 2015, Algorithm 1; with nesterov, Dozat 2016, Algorithm 2, constant b1."""
    g = np.asarray(gradients)
    g = g.astype(np.complex128 if np.iscomplexobj(g) else np.float64)
    m, v = np.zeros_like(g[0]), np.zeros(g.shape[1:])
    directions = []
    for t in range(1, len(g) + 1):
        m = b1 * m + (1 - b1) * g[t - 1]
        v = b2 * v + (1 - b2) * np.abs(g[t - 1]) ** 2
        m_hat = m / (1 - b1**t)
        if nesterov:
            m_hat = b1 * m / (1 - b1 ** (t + 1)) + (1 - b1) * g[t - 1] / (1 - b1**t)
        v_hat = v / (1 - b2**t)
        directions.append(m_hat / (np.sqrt(v_hat + eps_root) + eps))
    return np.stack(directions), {"mu": m, "nu": v}
