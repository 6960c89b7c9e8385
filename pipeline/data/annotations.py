"""Annotations of a data set as columns: what a row may leave out, and boxes that cannot be."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from pipeline.errors import FD3DError

Row = dict[str, Any]
LEVELS = {"v0-40": 1, "v40-60": 2, "v60-80": 3, "v80-100": 4}
"""nuScenes' visibility levels by name."""


def points_of(row: Row) -> tuple[int, int]:
    """LiDAR and radar points of an annotation; a data set that does not count LiDAR points has one for every box, so that the
    box counts.

    Raises:
        TypeError, ValueError, OverflowError: a value is no number.
    """
    return (1 if uncounted(row) else int(row["num_lidar_pts"])), max(int(row.get("num_radar_pts") or 0), 0)


def uncounted(row: Row) -> bool:
    """Whether the LiDAR points of an annotation were not counted: the value is missing, below 0, or NaN.

    Raises:
        TypeError: the value is no number.
    """
    lidar = row.get("num_lidar_pts")
    return lidar is None or not lidar >= 0


def visibility_of(row: Row, names: Mapping[str, str]) -> int:
    """Visibility level 1..4 of an annotation, 0 where unknown.

    Args:
        names: name of the level by token, from the table ``visibility``.
    """
    token = str(row.get("visibility_token") or "")
    return int(token) if token.isdecimal() else LEVELS.get(names.get(token, token), 0)


def attributes_of(row: Row) -> list[str]:
    """Attribute tokens of an annotation, none or one.

    Raises:
        FD3DError: there are several.
    """
    tokens = row.get("attribute_tokens") or []
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise FD3DError(f"attribute_tokens of annotation {row['token']} is {tokens!r:.60}; it must be a list of tokens")
    if len(tokens) > 1:
        raise FD3DError(
            f"annotation {row['token']} has {len(tokens)} attributes; the devkit's evaluation takes one at most, keep one in sample_annotation.json"
        )
    return list(tokens)


def possible(place: np.ndarray) -> np.ndarray:
    """Which boxes can be: finite numbers, sizes above 0, a rotation; bool (n,).

    Args:
        place: (n, 10) translation, size and quaternion.
    """
    finite = np.isfinite(place)
    return finite.all(1) & (np.where(finite, place, 0)[:, 3:6] > 0).all(1) & (place[:, 6:] != 0).any(1)


class Annotations:
    """Annotations as flat lists, from which the columns are made: rows as they are would keep the garbage collector busy."""

    def __init__(self) -> None:
        self.frame: list[int] = []
        self.label: list[int] = []
        self.tokens: list[str] = []
        self.place: list[float] = []
        self.facts: list[int] = []

    def add(self, frame: int, label: int, row: Row, levels: Mapping[str, str]) -> None:
        """Append a row of the table.

        Args:
            levels: as of :func:`visibility_of`.

        Raises:
            FD3DError: the row has several attributes, or another number of numbers.
        """
        attributes_of(row)
        if tuple(len(row[name]) for name in ("translation", "size", "rotation")) != (3, 3, 4):
            raise FD3DError(
                f"annotation {row['token']} must have 3 numbers of translation, 3 of size and 4 of rotation"
            )
        self.frame.append(frame)
        self.label.append(label)
        self.tokens += row["token"], row["prev"], row["next"]
        self.place += row["translation"]
        self.place += row["size"]
        self.place += row["rotation"]
        self.facts += *points_of(row), visibility_of(row, levels)

    def columns(self) -> dict[str, np.ndarray]:
        """Columns of the rows; ``possible`` is :func:`possible`, and other boxes have the rotation of the axes."""
        tokens = np.array(self.tokens, dtype=np.bytes_).reshape(-1, 3)
        facts = np.array(self.facts, dtype=np.int32).reshape(-1, 3)
        place = np.array(self.place, dtype=np.float64).reshape(-1, 10)
        can_be = possible(place)
        place[~can_be, 6:] = 1.0, 0.0, 0.0, 0.0
        return {
            "frame": np.array(self.frame, dtype=np.int32),
            "label": np.array(self.label, dtype=np.uint8),
            "token": tokens[:, 0],
            "prev": tokens[:, 1],
            "next": tokens[:, 2],
            "place": place,
            "possible": can_be,
            "num_lidar_pts": facts[:, 0],
            "num_radar_pts": facts[:, 1],
            "visibility": facts[:, 2].astype(np.uint8),
        }
