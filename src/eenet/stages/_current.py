"""Whether the stages are still those of the network: what it consisted of when it was cut, and what it gives now."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

# Settings that can be compared by value; what else a module holds is compared by identity, or not at all.
_PLAIN = (bool, int, float, complex, str, bytes, type(None))


@dataclass(frozen=True)
class Contents:
    """What a network consists of: its modules, their forward methods, settings, parameters and buffers, by name."""

    modules: dict[str, nn.Module]
    forwards: dict[str, Any]
    settings: dict[str, dict[str, Any]]
    tensors: dict[str, tuple[int, ...]]

    @classmethod
    def of(cls, network: nn.Module) -> Contents:
        """The present contents of a network, without copying anything."""
        modules = dict(network.named_modules(remove_duplicate=False))
        return cls(
            modules,
            {name: _forward(module) for name, module in modules.items()},
            {name: _settings(module) for name, module in modules.items()},
            {
                name: tuple(tensor.shape)
                for found in (network.named_parameters(remove_duplicate=False), network.named_buffers())
                for name, tensor in found
            },
        )

    def change(self, now: Contents) -> tuple[str, str] | None:
        """The first change that the stages cannot follow: the module, and what happened to it."""
        for name, module in self.modules.items():
            there = now.modules.get(name)
            if there is not module:
                what = "was removed" if there is None else f"was replaced by another {type(there).__name__}"
                return name, what
        for name, module in now.modules.items():
            if name not in self.modules:
                return name, f"(a {type(module).__name__}) was added"
        for name, forward in self.forwards.items():
            if now.forwards[name] != forward:
                return name, "has another forward method"
        for name, shape in self.tensors.items():
            owner, _, leaf = name.rpartition(".")
            found = now.tensors.get(name)
            if found != shape:
                return owner, f"has another {leaf}: " + ("none" if found is None else f"shape {found}, not {shape}")
        added = next((name for name in now.tensors if name not in self.tensors), None)
        if added is not None:
            owner, _, leaf = added.rpartition(".")
            return owner, f"has another {leaf}, which it had not"
        return None

    def changed_setting(self, now: Contents) -> tuple[str, str] | None:
        """The first attribute with another value, which may or may not change what the network gives."""
        for name, before in self.settings.items():
            for key, value in before.items():
                there = now.settings.get(name, {}).get(key)
                if type(there) is not type(value) or there != value:
                    return name, f"has {key}={there!r}, which was {value!r}"
        return None


def _forward(module: nn.Module) -> Any:
    """What runs when the module is called: a forward of its own, or that of its class."""
    return vars(module).get("forward", getattr(type(module), "forward", None))


def _settings(module: nn.Module) -> dict[str, Any]:
    return {key: value for key, value in vars(module).items() if key != "training" and _plain(value)}


def _plain(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(isinstance(item, _PLAIN) for item in value)
    return isinstance(value, _PLAIN) and not isinstance(value, Tensor)
