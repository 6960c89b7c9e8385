"""Settings dataclasses from plain values, and plain values from YAML as DVC reads it."""

import copy
import dataclasses
import sys
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.errors import FD3DError, SettingError
from pipeline.files import refuse_irregular

_WORDS = {float: "a finite number", int: "a whole number", bool: "true or false", str: "a text", Path: "a path"}
_Parsed = TypeVar("_Parsed")
_LONGEST_NAME = 255  # bytes of a file's name that file systems take


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping of a YAML 1.2 file, read by the library that DVC reads it with: ``5e-2`` is a number for both.

    Raises:
        FD3DError: the file is missing, no YAML, or no mapping.
    """
    refuse_irregular(path)
    if not path.is_file():
        raise FD3DError(f"{path} does not exist; run from the project's root, or give another file")
    try:
        content = YAML(typ="safe").load(path.read_text())
    except (YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        told = " ".join(str(error).split())
        raise FD3DError(f"{path} is no YAML: {told[:200]}") from error
    if not isinstance(content, dict):
        raise FD3DError(f"{path} must be a mapping of sections; it is {content!r:.60}")
    return content


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with the values of ``over``, mappings merged at every depth; neither is changed."""
    out = copy.deepcopy(dict(base))
    for key, value in over.items():
        old = out.get(key)
        out[key] = merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else copy.deepcopy(value)
    return out


def parse_over(
    parse: Callable[[dict[str, Any]], _Parsed], base: Mapping[str, Any], over: Mapping[str, Any], where: str
) -> _Parsed:
    """What ``parse`` makes of ``base`` with the values of ``over``.

    Raises:
        FD3DError: from ``parse``; of ``base`` alone where ``base`` has a fault, which ``over`` may hide, else with ``where``, the
            place of ``over``, before it.
    """
    parse(dict(base))
    try:
        return parse(merged(base, over))
    except FD3DError as error:
        raise FD3DError(f"{where}: {error}") from error


def mapping(values: Any, where: str, known: typing.Collection[str] | None = None) -> dict[str, Any]:
    """A mapping, an empty one for None.

    Raises:
        FD3DError: ``values`` is no mapping, or has a name that is not in ``known``.
    """
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise FD3DError(f"{where} is {values!r}; it must be a mapping")
    for name in values:
        if known is not None and name not in known:
            raise FD3DError(f"unknown setting {where}.{name}; known: {', '.join(sorted(known)) or 'none'}")
    return values


def from_mapping(kind: Any, values: Any, where: str, **ready: Any) -> Any:
    """A settings dataclass from plain values, every value of the type that its field is declared with.

    A whole number is taken where a number is wanted, a text where a path is, a list where a tuple is, a mapping where
    another settings dataclass is.

    Args:
        where: the section's name in messages.
        ready: values of fields that are no settings of this section.

    Raises:
        FD3DError: an unknown name, a value of a wrong type or out of range, or one that is missing.
    """
    hints = typing.get_type_hints(kind)
    names = {f.name for f in dataclasses.fields(kind)}
    values = mapping(values, where, names - ready.keys())
    made = {name: _converted(value, hints[name], f"{where}.{name}") for name, value in values.items()} | ready
    for f in dataclasses.fields(kind):
        if f.default is f.default_factory is dataclasses.MISSING and f.name not in made:
            raise FD3DError(f"{where} has no {f.name}; give {_WORDS.get(hints[f.name], 'it a value')}")
    try:
        return kind(**made)
    except SettingError as error:
        raise FD3DError(f"{where}.{error}") from error


def _converted(value: Any, hint: Any, where: str) -> Any:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        (other,) = (kind for kind in inner if kind is not types.NoneType)
        return None if value is None else _converted(value, other, where)
    if origin is dict:
        entries = mapping(value, where)
        if odd := [name for name in entries if not isinstance(name, str)]:
            raise FD3DError(f"{where} has {odd[0]!r}; its names must be texts")
        return {name: _converted(entry, inner[1], f"{where}.{name}") for name, entry in entries.items()}
    if dataclasses.is_dataclass(hint):
        return from_mapping(hint, value, where)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise FD3DError(f"{where} is {value!r}; it must be a list")
        return tuple(_converted(entry, inner[0], f"{where}[{i}]") for i, entry in enumerate(value))
    fits = {
        float: isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max,
        int: isinstance(value, int) and not isinstance(value, bool),
        bool: isinstance(value, bool),
        str: isinstance(value, str) and bool(value.strip()),
        Path: isinstance(value, str | Path) and _is_path(str(value)),
    }
    if hint not in fits:
        raise TypeError(f"{where}: settings have no type {hint}")
    if not fits[hint]:
        raise FD3DError(f"{where} is {value!r:.80}; it must be {_WORDS[hint]}")
    return Path(value).expanduser() if hint is Path else hint(value)


def _is_path(text: str) -> bool:
    parts = Path(text).parts
    return bool(text.strip()) and "\0" not in text and all(len(part.encode()) <= _LONGEST_NAME for part in parts)
