"""What each of many devices holds and sends at every step: on paper, from shapes alone.

Of P bytes of parameters, as many of gradients and of updates, each of n devices sends, in rings:

* replicated state: an all-reduce of gradients, 2 P (n - 1) / n;
* state divided (`adam_jax.sharding.zero`): a reduce-scatter and an all-gather, 2 P (n - 1) / n;
* parameters divided as well (FSDP): two all-gathers, a reduce-scatter, 3 P (n - 1) / n.

Rajbhandari et al. 2020, "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models",
section 7, https://arxiv.org/abs/1910.02054.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import AbstractMesh

from adam_jax.diagnostics import aligned, human
from adam_jax.sharding.zero import Division

# Devices of a host. A vocabulary that 512 does not divide may be divided by 64 hosts, and its rows
# by the 8 devices of each: so the mesh has two axes.
_HOST = 8


@dataclass(frozen=True)
class State:
    """A divided state.

    Attributes:
      devices: over how many.
      device_bytes: of it on each.
    """

    devices: int
    device_bytes: int


@dataclass(frozen=True)
class Traffic:
    """What a step costs each device, in bytes.

    Attributes:
      devices: how many there are.
      held_replicated: parameters and gradients, where state is replicated or divided.
      held_divided: parameters and gradients, where these are divided too.
      sent_replicated: where all are replicated.
      sent_zero: where state is divided.
      sent_divided: where parameters are, too.
    """

    devices: int
    held_replicated: int
    held_divided: int
    sent_replicated: int
    sent_zero: int
    sent_divided: int


def divided(state: Any, params: Any, devices: int) -> State:
    """A state, as shapes, of parameters, as shapes, over so many devices."""
    near = math.gcd(devices, _HOST)
    mesh = AbstractMesh((devices // near, near), ("host", "device"))
    layout = Division(mesh, ("host", "device")).of(state, params)
    pairs = zip(jax.tree.leaves(state), jax.tree.leaves(layout.state), strict=True)
    return State(devices, sum(_bytes(s.shard_shape(x.shape), x) for x, s in pairs))


def traffic(params: Any, devices: int) -> Traffic:
    """Of parameters, as shapes, whose gradients and updates have their dtypes."""
    whole = sum(_bytes(x.shape, x) for x in jax.tree.leaves(params))
    part = -(-whole // devices)
    sent = whole * (devices - 1) // devices
    return Traffic(devices, 2 * whole, 2 * part, 2 * sent, 2 * sent, 3 * sent)


def table(models: Sequence[tuple[str, Sequence[Traffic]]]) -> str:
    """What each device sends and holds, a block of lines a model."""
    counts = [cost.devices for cost in models[0][1]]
    rows = [["model", "a device", *(_of(count) for count in counts)]]
    lines = {
        "holds parameters, gradients": "held_replicated",
        "the same, divided too (FSDP)": "held_divided",
        "sends, state replicated": "sent_replicated",
        "sends, state divided (zero)": "sent_zero",
        "sends, all divided (FSDP)": "sent_divided",
    }
    for model, costs in models:
        for line, (words, field) in enumerate(lines.items()):
            cells = [human(getattr(cost, field)) for cost in costs]
            rows.append(["" if line else model, words, *cells])
    return aligned(rows, "<<" + ">" * len(counts))


def _of(count: int) -> str:
    return f"{count:,} device{'s' * (count > 1)}"


def _bytes(shape: tuple[int, ...], x: Any) -> int:
    return math.prod(shape) * int(x.dtype.itemsize)
