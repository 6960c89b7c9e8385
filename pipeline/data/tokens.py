"""Rows of a table, and their values by tokens."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pipeline.data.json_stream import rows_of
from pipeline.data.values import ValueFault
from pipeline.errors import FD3DError

Value = TypeVar("Value")


@contextmanager
def table_rows(folder: Path, name: str) -> Iterator[Iterator[dict[str, Any]]]:
    """Rows of a table; what is raised as they are read and used becomes one line that names the table.

    Raises:
        FD3DError: the table is missing or damaged, or a row has not the columns, or not the values, that are used.
    """
    path = folder / f"{name}.json"
    try:
        yield rows_of(path)
    except ValueFault as error:
        raise FD3DError(f"{folder.name}/{path.name}: {error}") from error
    except FD3DError:
        raise
    except (OSError, ValueError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise FD3DError(f"the tables in {folder} cannot be read: {path.name}: {reason}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise FD3DError(f"the tables in {folder} do not fit each other: {path.name}: {error!r}") from error


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
