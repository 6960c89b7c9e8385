"""Settings dataclasses from plain values."""

from dataclasses import fields
from typing import Any

from pipeline.errors import FD3DError


def from_mapping(kind: type, values: dict[str, Any], where: str, convert: dict[str, Any] | None = None) -> Any:
    """A settings dataclass from plain values; unknown names are refused.

    Raises:
        FD3DError: naming the unknown setting and those that exist.
    """
    known = {f.name for f in fields(kind)}
    unknown = [name for name in values if name not in known]
    if unknown:
        raise FD3DError(f"{where}.{unknown[0]} is no setting; there are {', '.join(sorted(known))}")
    convert = convert or {}
    ready = {k: convert[k](v) if k in convert else (tuple(v) if isinstance(v, list) else v) for k, v in values.items()}
    try:
        return kind(**ready)
    except TypeError as error:
        raise FD3DError(f"{where} cannot be read: {error}") from error
