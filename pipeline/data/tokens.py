"""Rows of a table by their tokens."""

from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

from pipeline.errors import FD3DError

Value = TypeVar("Value")


class ByToken(dict[str, Value]):
    """Values of a table's rows by token, each token once.

    Args:
        folder: the tables' folder.
        table: name of the table.
        pairs: token and value of every row.

    Raises:
        FD3DError: a token is there twice; or, by ``self[token]``, not at all.
    """

    def __init__(self, folder: Path, table: str, pairs: Iterable[tuple[str, Value]]) -> None:
        super().__init__()
        self._path = folder / f"{table}.json"
        for token, value in pairs:
            if token in self:
                raise FD3DError(f"{self._path} has the token {token} twice; remove one")
            self[token] = value

    def __missing__(self, token: str) -> Value:
        raise FD3DError(
            f"{self._path} has no row with the token {token!r}, which another table names; copy the tables again"
        )
