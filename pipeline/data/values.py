"""Values of the columns of a table's rows, each refused by name where it cannot be."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from pipeline.errors import FD3DError

LONGEST_TOKEN = 64
"""Characters of a token, as many as a store takes."""


def text(row: Mapping[str, Any], name: str) -> str:
    """Text of a column.

    Raises:
        TypeError, KeyError: the value is no text that a file's name can have, or is missing.
    """
    value = row[name]
    if not isinstance(value, str) or "\0" in value or not (value.isascii() or _is_unicode(value)):
        raise TypeError(f"{name} is {value!r:.40}, no text")
    return value


def _is_unicode(value: str) -> bool:
    try:
        return bool(value.encode())
    except UnicodeEncodeError:  # half a character, which JSON can have
        return False


def token_of(row: Mapping[str, Any], table: object) -> str:
    """Token of a row, which index and store can hold.

    Args:
        table: the table's file in messages.

    Raises:
        FD3DError: the token is longer, or has other characters.
        TypeError, KeyError: as of :func:`text`.
    """
    value = text(row, "token")
    if not 0 < len(value) <= LONGEST_TOKEN or not value.isascii() or not value.isprintable() or " " in value:
        raise FD3DError(
            f"{table} has the token {value!r:.80}; give tokens of 1 to {LONGEST_TOKEN} printable ASCII characters without blanks, such as a hash"
        )
    return value


def flag(row: Mapping[str, Any], name: str) -> bool:
    """Truth value of a column.

    Raises:
        FD3DError: the value is neither true or false nor 1 or 0; naming the row.
        KeyError: the value is missing.
    """
    value = row[name]
    if value is True or value is False:
        return value
    if value in (0, 1):
        return bool(value)
    raise FD3DError(f"{name} of {row.get('token')} is {value!r:.40}; give true or false")


def whole(row: Mapping[str, Any], name: str) -> int:
    """Whole number of a column, also as text.

    Raises:
        FD3DError: the value is no whole number; naming the row.
        KeyError: the value is missing.
    """
    value = row[name]
    if type(value) is int:
        return value
    try:
        if isinstance(value, str) or (isinstance(value, float) and value.is_integer()):
            return int(value)
    except ValueError:
        pass
    raise FD3DError(f"{name} of {row.get('token')} is {value!r:.40}; give a whole number, of times microseconds")


def numbers(row: Mapping[str, Any], name: str, *shape: int) -> np.ndarray:
    """Numbers of a column, float64 of that shape.

    Raises:
        FD3DError: the value has another shape, or is no number; naming the row.
        KeyError: the value is missing.
    """
    try:
        array = np.array(row[name], dtype=np.float64)
    except (TypeError, ValueError):
        array = np.zeros(0)
    if array.shape != shape:
        size = " x ".join(str(n) for n in shape)
        raise FD3DError(f"{name} of {row.get('token')} is {row[name]!r:.60}; it must be {size} numbers")
    return array
