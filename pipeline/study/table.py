"""The table of results: one line per row and seed, sorted, replaced as a whole under a lock."""

import csv
import fcntl
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.errors import FD3DError
from pipeline.files import write_atomically
from pipeline.study.training import VAL

METRICS = ("NDS", "mAP", "mATE", "mASE", "mAOE", "mAVE", "mAAE")
"""Metrics of the devkit: NDS and mAP in per cent, the mean errors in its units (m, 1 - IoU, rad, m/s, 1 - accuracy)."""
KEY = ("group", "split", "row", "family", "method", "seed")
COLUMNS = (*KEY, "store", "expert", *METRICS, "seconds", "device", "store_bytes", "config", "revision", "date")
"""Columns of the table: ``split`` is the profile's split that the line was evaluated on, ``val`` or ``dev``; ``seconds`` is the training time, empty where a killed training was resumed; ``device`` is a GPU's name
or ``cpu``; ``config`` is the hash of what decides the result."""
_OLDER = tuple(name for name in COLUMNS if name != "split")

Line = dict[str, str]


@contextmanager
def folder_lock(folder: Path, stop: Callable[[], bool] | None = None) -> Iterator[int | None]:
    """Hold a folder for this process and the children that inherit the descriptor; the system frees it when all have ended.

    Args:
        stop: called while another process holds the folder; True gives up the wait. Without ``stop`` a held folder is
            not waited for.

    Yields:
        the lock's descriptor, or None when the lock was not had.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        held = _try_lock(descriptor)
        while not held and stop is not None and not stop():
            time.sleep(0.2)
            held = _try_lock(descriptor)
        yield descriptor if held else None
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def read_table(path: Path) -> list[Line]:
    """The lines of a table; none when there is no table yet. Lines of an older table without the column ``split`` are of ``val``.

    Raises:
        FD3DError: the file is not such a table.
    """
    if not path.exists():
        return []
    with open(path, newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) not in (COLUMNS, _OLDER):
            raise FD3DError(f"{path} has other columns than {','.join(COLUMNS)}; move it away")
        return [{name: line.get(name, VAL) for name in COLUMNS} for line in reader]


def key_of(line: Mapping[str, str]) -> tuple[str, ...]:
    """Key of a line; a table has one line per key."""
    return tuple(line[name] for name in KEY)


def _order(line: Mapping[str, str]) -> tuple[Any, ...]:
    return (*key_of(line)[:-1], int(line["seed"]))


def put_lines(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    """Add lines, or replace those of the same group, split, row, family, method and seed; safe beside other writers.

    Raises:
        FD3DError: the file is not such a table, or cannot be written.
    """
    with folder_lock(path.parent, stop=lambda: False):
        table = {key_of(line): line for line in read_table(path)}
        for line in lines:
            ready = {name: str(line[name]) for name in COLUMNS}
            table[key_of(ready)] = ready

        def write(file: Any) -> None:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(sorted(table.values(), key=_order))

        write_atomically(path, write)
