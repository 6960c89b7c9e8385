"""float64 copies of targets and features, for comparisons in which only the order of sums may differ."""

import dataclasses
from typing import Any

import torch


def doubled(value: Any) -> Any:
    """The value with every float tensor inside dataclasses, lists, tuples and mappings as float64."""
    if isinstance(value, torch.Tensor):
        return value.double() if value.is_floating_point() else value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: doubled(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return dataclasses.replace(value, **fields)
    if isinstance(value, dict):
        return {name: doubled(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(doubled(entry) for entry in value)
    return value
