"""Values of a grid's row over those of the profile."""

from typing import Any

from pipeline.errors import FD3DError
from pipeline.settings import mapping
from pipeline.study.training import EXPERT, Params

FAMILY = "FAMILY"
"""Stands for the row's family in an override's key or text."""


def for_family(value: Any, family: str) -> Any:
    """A value with the family's name in place of ``FAMILY``."""
    if isinstance(value, dict):
        return {for_family(k, family): for_family(v, family) for k, v in value.items()}
    if isinstance(value, list):
        return [for_family(v, family) for v in value]
    return value.replace(FAMILY, family) if isinstance(value, str) else value


def over(values: Any, base: Any, where: str) -> Params:
    """Values to lay over ``base``, without sections that are empty or nothing: no section of the base is lost to them.

    Raises:
        FD3DError: another value in place of a section.
    """
    sections = {name: section for name, section in (base or {}).items() if isinstance(section, dict)}
    out = dict(mapping(values, where))
    for name in sections.keys() & out.keys():
        out[name] = over(out[name], sections[name], f"{where}.{name}")
    return {name: value for name, value in out.items() if value != {} and (name not in sections or value)}


def check_effect(values: Params, where: str) -> None:
    """Refuse values of a family in a row that the sweep decides itself.

    Raises:
        FD3DError: naming the value, and where it belongs.
    """
    if mapping(values.get(EXPERT), f"{where}.{EXPERT}"):
        raise FD3DError(f"{where}.{EXPERT} has no effect in a row; name the expert under 'experts', and give its name")
    apprentice = mapping(values.get("apprentice"), f"{where}.apprentice")
    if "seed" in mapping(apprentice.get("train"), f"{where}.apprentice.train"):
        raise FD3DError(f"{where}.apprentice.train.seed has no effect in a row; the group's 'seeds' are trained")
