"""State dicts of PyTorch's form: entries by position or name, and groups with hyperparameters."""

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import jax
import numpy as np

from adam_jax.hyperparameters import brief
from adam_jax.interop.moments import Name
from adam_jax.ownership import Path

StateDict: TypeAlias = Mapping[str, Any]
_keystr = jax.tree_util.keystr


class Entries:
    """A state dict, looked up by names or by positions."""

    def __init__(self, state_dict: StateDict) -> None:
        known = list(state_dict) if isinstance(state_dict, Mapping) else state_dict
        if not isinstance(known, list) or not {"state", "param_groups"} <= set(known):
            rule = "a state dict must have 'state' and 'param_groups'"
            raise ValueError(f"{rule}, got {brief(known)}; in a file of more it is one part")
        self.state = _mapping(state_dict["state"], "'state'")
        self.groups: dict[Any, Mapping[str, Any]] = {}
        self._keys: dict[Name, Any] = {}
        for group in _names(state_dict["param_groups"], "'param_groups'", Mapping, "mappings"):
            keys = _names(group.get("params", ()), "'params' of a group")
            titles = _names(group.get("param_names") or keys, "'param_names' of a group")
            if len(titles) != len(keys):
                raise ValueError(f"a group has {len(keys)} parameters and {len(titles)} names")
            for key, title in zip(keys, titles, strict=True):
                self.groups[key] = group
                self._keys[key] = self._keys[title] = key

    def key(self, name: Name, path: Path) -> Any:
        """How the state dict calls a parameter."""
        if name not in self._keys:
            texts = [known for known in self._keys if isinstance(known, str)]
            has = f"{brief(texts)}" if texts else f"only positions, {len(self.groups)} of them"
            where = f"params{_keystr(path)}"
            raise ValueError(f"`names` has {name!r} for {where}; the state dict has {has}")
        return self._keys[name]

    def title(self, key: Any) -> str:
        """A parameter's name for errors: the state dict's own, or the position."""
        return repr(next((name for name, k in self._keys.items() if k == key and name != key), key))

    def entry(self, key: Any) -> dict[str, Any]:
        """What there is of a parameter."""
        return dict(_mapping(self.state[key], f"the state of {self.title(key)}"))


def _names(x: Any, what: str, kind: Any = Name, rule: str = "names or positions") -> list[Any]:
    listed = isinstance(x, Iterable) and not isinstance(x, str | bytes | Mapping)
    # NumPy's integers are as good as others.
    found = [each.item() if isinstance(each, np.integer) else each for each in x] if listed else []
    if not listed or not all(isinstance(each, kind) for each in found):
        raise TypeError(f"{what} must be a list of {rule}, got {brief(x)}")
    return found


def _mapping(x: Any, what: str) -> Mapping[Any, Any]:
    if not isinstance(x, Mapping):
        raise TypeError(f"{what} of a state dict must be a mapping, got {brief(x)}")
    return x
