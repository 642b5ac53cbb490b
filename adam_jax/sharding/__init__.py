"""An optimizer's state on many devices: where it lies, divided over a data axis, or on the host.

* `state_shardings`, `abstract_state`: where each array of any optimizer's state lies;
* `zero`: each device of a data axis keeps and updates its own part (ZeRO-1); `plan` prints how;
* `part_specs`, `scatter_mean`, `part_of`, `gather`: the same by hand inside ``shard_map``;
* `offload`: moments rest in the host's memory between two steps.

What each of n devices sends in a step, of a model of P bytes of parameters, G of gradients and U of
updates (Rajbhandari et al. 2020, section 7; rings):

* replicated state: an all-reduce, 2 G (n - 1) / n;
* `zero`: a reduce-scatter and an all-gather, (G + U) (n - 1) / n, as much where U is G;
* parameters divided as well (ZeRO-3, FSDP), which needs no `zero`, for state lies with its
  parameters: two all-gathers and a reduce-scatter, (2 P + G) (n - 1) / n.

``adam-jax memory MODEL --devices 8,64`` computes it for a model, and the bytes that a device holds.
"""

from adam_jax.sharding.inside import gather, part_of, part_specs, scatter_mean
from adam_jax.sharding.offload import offload
from adam_jax.sharding.placement import abstract_state, state_shardings
from adam_jax.sharding.plan import ParameterPlan, Plan, plan
from adam_jax.sharding.zero import zero

__all__ = [
    "ParameterPlan",
    "Plan",
    "abstract_state",
    "gather",
    "offload",
    "part_of",
    "part_specs",
    "plan",
    "scatter_mean",
    "state_shardings",
    "zero",
]
