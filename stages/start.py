"""What every command does first: expand ``~`` in paths, refuse odd numbers, and look whether ``nuscenes`` is the devkit."""

import math
from collections.abc import Callable
from functools import wraps
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pipeline.errors import FD3DError


def started(command: Callable[..., None]) -> Callable[..., None]:
    """Command whose paths may begin with ``~``, the user's home folder, as a shell leaves them behind ``--option=``.

    Raises:
        FD3DError: an option with decimals is negative, infinite or no number; or see :func:`check_devkit`.
    """

    @wraps(command)
    def run(**options: Any) -> None:
        check_devkit()
        for name, value in options.items():
            if isinstance(value, float) and not (math.isfinite(value) and value >= 0):  # scores and rates
                raise FD3DError(f"--{name.replace('_', '-')} is {value}; give a number from 0")
        command(**{name: _expanded(value) for name, value in options.items()})

    return run


def check_devkit() -> None:
    """Refuse a module of the devkit's name in the place of the devkit, as ``configs/_base_/nuscenes.py`` is for
    ``PYTHONPATH=configs/_base_``; without importing either.

    Raises:
        FD3DError: naming the file and the folder that is to leave PYTHONPATH.
    """
    spec = find_spec("nuscenes")
    if spec is None:  # not installed: the import that wants it says so
        return
    folders = [Path(place) for place in spec.submodule_search_locations or ()]
    if not any((folder / "eval").is_dir() for folder in folders):
        found = folders[0] if folders else Path(spec.origin or "nuscenes")
        raise FD3DError(
            f"{found} hides the package nuscenes of nuscenes-devkit; take {found.parent} out of PYTHONPATH, and keep modules "
            "of your own in another folder"
        )


def _expanded(value: Any) -> Any:
    if isinstance(value, list):
        return [_expanded(one) for one in value]
    return value.expanduser() if isinstance(value, Path) else value
