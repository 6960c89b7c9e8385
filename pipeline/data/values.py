"""Values of the columns of a table's rows, each refused by name where it cannot be."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from pipeline.errors import FD3DError, counted

LONGEST_TOKEN = 64
"""Characters of a token, as many as a store takes."""
_LONGEST_NAME = 200  # bytes of a scene's name, by which files are named


class ValueFault(FD3DError):
    """A value that cannot be; the message names row and column, and the reader adds the table."""


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
    """Token of a row, which index and store can hold, and by which files are named.

    Args:
        table: the table's file in messages.

    Raises:
        FD3DError: the token is longer, or has other characters.
        TypeError, KeyError: as of :func:`text`.
    """
    value = text(row, "token")
    if not 0 < len(value) <= LONGEST_TOKEN or not value.isascii() or not value.isprintable() or {" ", "/"} & set(value):
        raise FD3DError(
            f"{table} has the token {value!r:.80}; give tokens of 1 to {LONGEST_TOKEN} printable ASCII characters without blanks and slashes, such as a "
            "hash"
        )
    return value


def name_of(row: Mapping[str, Any]) -> str:
    """Name of a scene, which is part of the names of files.

    Raises:
        ValueFault: the name is too long for a file's, or has a slash.
        TypeError, KeyError: as of :func:`text`.
    """
    value = text(row, "name")
    if len(value.encode()) > _LONGEST_NAME:
        raise ValueFault(
            f"name of {row.get('token')} is {value!r:.40} with {counted(len(value.encode()), 'byte')}; files are named by scenes, give {_LONGEST_NAME} bytes at most"
        )
    if "/" in value:
        raise ValueFault(
            f"name of {row.get('token')} is {value!r:.60}; files are named by scenes, give names without slashes"
        )
    return value


def flag(row: Mapping[str, Any], name: str) -> bool:
    """Truth value of a column.

    Raises:
        ValueFault: the value is neither true or false nor 1 or 0; naming the row.
        KeyError: the value is missing.
    """
    value = row[name]
    if value is True or value is False:
        return value
    if value in (0, 1):
        return bool(value)
    raise ValueFault(f"{name} of {row.get('token')} is {value!r:.40}; give true or false")


def whole(row: Mapping[str, Any], name: str) -> int:
    """Whole number of a column; not as text, with which the devkit cannot reckon.

    Raises:
        ValueFault: the value is no whole number; naming the row.
        KeyError: the value is missing.
    """
    value = row[name]
    if type(value) is int:
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    raise ValueFault(f"{name} of {row.get('token')} is {value!r:.40}; give a whole number, of times microseconds")


def time_of(row: Mapping[str, Any]) -> int:
    """Microseconds of a row that may go without; 0 where there is no whole number of them."""
    value = row.get("timestamp")
    return value if type(value) is int and 0 < value < 1 << 62 else 0


def numbers(row: Mapping[str, Any], name: str, *shape: int) -> np.ndarray:
    """Numbers of a column, float64 of that shape.

    Raises:
        ValueFault: the value has another shape, or is no number, such as a text; naming the row.
        KeyError: the value is missing.
    """
    try:
        array = np.array(row[name])
    except (TypeError, ValueError):
        array = np.zeros(0)
    if array.shape != shape or array.dtype.kind not in "iuf":
        size = " x ".join(str(n) for n in shape)
        raise ValueFault(f"{name} of {row.get('token')} is {row[name]!r:.60}; it must be {size} numbers")
    return array.astype(np.float64)
