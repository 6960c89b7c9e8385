"""Checks of the names and seeds in a grid file."""

import re
from typing import Any

from pipeline.errors import FD3DError

_MOST_SEEDS = 1000


def seeds_of(values: Any, where: str) -> list[int]:
    """Seeds of a list, a number, or a text as '0-4'."""
    span = re.fullmatch(r"(\d+)-(\d+)", values) if isinstance(values, str) else None
    if span:
        first, last = int(span[1]), int(span[2])
        if not 0 <= last - first < _MOST_SEEDS:
            raise FD3DError(f"{where} is {values!r:.80}; first-last counts upwards, {_MOST_SEEDS} seeds at most")
        return list(range(first, last + 1))
    seeds = values if isinstance(values, list) else [values]
    if not seeds or not all(type(seed) is int and 0 <= seed < 2**32 for seed in seeds) or len(set(seeds)) < len(seeds):
        raise FD3DError(f"{where} is {values!r:.80}; give a list of different numbers from 0 on, or first-last")
    return seeds


def name_of(value: Any, where: str) -> str:
    """A text that also names a folder.

    Raises:
        FD3DError: it is none.
    """
    if not isinstance(value, str) or not re.fullmatch(r"[^./\\|\x00-\x1f][^/\\|\x00-\x1f]*", value):
        raise FD3DError(
            f"{where} is {value!r:.80}; a name is a text without slashes and bars that does not begin with a dot"
        )
    return value


def names_of(values: Any, where: str) -> list[str]:
    """Different names, at least one; errors as of :func:`name_of`."""
    if not isinstance(values, list) or not values:
        raise FD3DError(f"{where} is {values!r:.80}; give a list of names")
    names = [name_of(value, where) for value in values]
    if len(set(names)) < len(names):
        raise FD3DError(f"{where} is {values!r:.80}; a name is there twice")
    return names
