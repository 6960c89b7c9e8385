"""Paths on the command line that begin with ``~``, which a shell leaves as they are behind ``--option=``."""

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any


def at_home(command: Callable[..., None]) -> Callable[..., None]:
    """Command whose paths may begin with ``~``, the user's home folder."""

    @wraps(command)
    def run(**options: Any) -> None:
        command(**{name: _expanded(value) for name, value in options.items()})

    return run


def _expanded(value: Any) -> Any:
    if isinstance(value, list):
        return [_expanded(one) for one in value]
    return value.expanduser() if isinstance(value, Path) else value
