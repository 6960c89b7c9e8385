"""Annotations of a data set as columns: what a row may leave out, and boxes that cannot be."""

from collections.abc import Callable, Collection, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data import CLASSES
from pipeline.data.tokens import ByToken, table_rows
from pipeline.data.values import ValueFault, text
from pipeline.errors import FD3DError, counted

Row = dict[str, Any]
LEVELS = {"v0-40": 1, "v40-60": 2, "v60-80": 3, "v80-100": 4}
"""nuScenes' visibility levels by name."""
FARTHEST = 1e9
"""Metres, beyond which no box is."""
ATTRIBUTES = (
    "cycle.with_rider",
    "cycle.without_rider",
    "pedestrian.moving",
    "pedestrian.sitting_lying_down",
    "pedestrian.standing",
    "vehicle.moving",
    "vehicle.parked",
    "vehicle.stopped",
)
"""Names of the attributes that nuScenes' metrics know."""
_MOST_POINTS = 1_000_000_000  # of a box, LiDAR or radar; two such counts have a sum in int32
_NUMBERS = {"translation": 3, "size": 3, "rotation": 4}
_TYPES = {int, float}
_MAX_TILT = 45.0  # degrees between the z axes of a box and of the map
_MAX_SIZE = 100.0  # metres
_MAX_RANGE = 500.0  # metres between a box and the car
_LONG = [CLASSES.index(name) for name in ("car", "truck", "bus", "trailer", "bicycle", "motorcycle")]


def points_of(row: Row) -> tuple[int, int]:
    """LiDAR and radar points of an annotation; a data set that does not count LiDAR points has one for every box, so that the
    box counts.

    Raises:
        FD3DError: a count cannot be.
        TypeError, ValueError, OverflowError: a value is no number.
    """
    lidar, radar = (1 if uncounted(row) else int(row["num_lidar_pts"])), max(int(row.get("num_radar_pts") or 0), 0)
    if max(lidar, radar) > _MOST_POINTS:
        name = "num_lidar_pts" if lidar > _MOST_POINTS else "num_radar_pts"
        raise FD3DError(f"{name} of annotation {row['token']} is {row[name]}; give the number of points in the box")
    return lidar, radar


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
    level = LEVELS.get(names.get(token, token), 0)
    return level or (int(token) if token in ("1", "2", "3", "4") else 0)


def visibility_levels(folder: Path) -> dict[str, str]:
    """Names of visibility levels by token; none without the table, as levels are often their own tokens."""
    if not (folder / "visibility.json").is_file():
        return {}
    with table_rows(folder, "visibility") as rows:
        return {str(row["token"]): str(row.get("level", "")) for row in rows}


def known_attributes(folder: Path) -> set[str]:
    """Tokens of the attributes that nuScenes' metrics know; none without the table.

    Raises:
        FD3DError: the table is damaged, or a row has no token or no name, without which the devkit reads none.
    """
    if not (folder / "attribute.json").is_file():
        return set()
    with table_rows(folder, "attribute") as rows:
        names = ByToken(folder, "attribute", ((text(row, "token"), text(row, "name")) for row in rows))
    return {token for token, name in names.items() if name in ATTRIBUTES}


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


def check_row(row: Row) -> None:
    """Refuse an annotation that the devkit could not read, also of a category that is no class.

    Raises:
        FD3DError: the row has several attributes, or a translation, size or rotation that is not the right number of numbers.
        TypeError, KeyError, ValueError, OverflowError: another value is missing or of another type.
    """
    attributes_of(row)
    text(row, "token")
    for side in ("prev", "next"):
        if row[side]:
            text(row, side)
    points_of(row)
    place = [row[name] for name in _NUMBERS]
    if (
        list(map(type, place)) == [list] * 3
        and list(map(len, place)) == [3, 3, 4]
        and _TYPES.issuperset(map(type, chain(*place)))
    ):
        return
    for name, count in _NUMBERS.items():
        if not isinstance(row[name], list) or len(row[name]) != count or not _TYPES.issuperset(map(type, row[name])):
            raise ValueFault(
                f"{name} of annotation {row['token']} is {row[name]!r:.60}; annotations must have 3 numbers of translation, 3 of size and 4 of rotation"
            )


def possible(place: np.ndarray) -> np.ndarray:
    """Which boxes can be: finite numbers up to 1e9, sizes above 0, a rotation; bool (n,).

    Args:
        place: (n, 10) translation, size and quaternion.
    """
    finite = np.abs(np.nan_to_num(place, nan=np.inf)) <= FARTHEST
    return finite.all(1) & (np.where(finite, place, 0)[:, 3:6] > 0).all(1) & (place[:, 6:] != 0).any(1)


def check_boxes(
    found: Mapping[str, np.ndarray], cars: np.ndarray, folder: object, tell: Callable[[str], object]
) -> None:
    """Refuse boxes of another unit, frame or order of a quaternion than nuScenes', and tell of sizes that look turned.

    Args:
        found: as of :meth:`Annotations.columns`.
        cars: (frames, 3) positions of the car in the global frame, metres; NaN where unknown.
        folder: the tables' folder in messages.

    Raises:
        FD3DError: with what is wrong of most boxes.
    """
    place, frame = found["place"][found["possible"]], found["frame"][found["possible"]]
    if not len(place):
        return
    source = f"{folder}/sample_annotation.json"
    if (size := np.median(place[:, 3:6].max(1))) > _MAX_SIZE:
        raise FD3DError(f"{source} has boxes of {size:.0f} m (the median); give sizes in metres")
    tilted = tilts(place[:, 6:]) > _MAX_TILT
    if tilted.mean() > 0.25:
        token = found["token"][found["possible"]][np.argmax(tilted)].decode()
        raise FD3DError(
            f"{source} tilts {tilted.sum()} of {counted(len(place), 'box')} by more than {_MAX_TILT:.0f} degrees, first annotation {token}; rotations "
            "are (w, x, y, z) in the global frame"
        )
    away = np.linalg.norm(place[:, :3] - cars[frame], axis=1)
    if len(away := away[np.isfinite(away)]) and (distance := np.median(away)) > _MAX_RANGE:
        raise FD3DError(
            f"{source} has boxes {distance:.0f} m from the car (the median); translations are metres in the global frame, as of ego_pose.json"
        )
    width, length = place[np.isin(found["label"][found["possible"]], _LONG), 3:5].T
    if len(width) and np.median(width / length) > 1:
        tell(f"vehicles of {source} are wider than long; size is (width, length, height)")


def tilts(turns: np.ndarray) -> np.ndarray:
    """Angles between the z axes before and after a rotation, degrees (n,).

    Args:
        turns: (n, 4) quaternions (w, x, y, z), of any length but 0.
    """
    unit = turns / np.linalg.norm(turns, axis=1, keepdims=True)
    return np.degrees(np.arccos(np.clip(1 - 2 * (unit[:, 1] ** 2 + unit[:, 2] ** 2), -1, 1)))


class Annotations:
    """Annotations as flat lists, from which the columns are made: rows as they are would keep the garbage collector busy.

    Args:
        levels: as of :func:`visibility_of`.
        attributes: tokens of the attributes that nuScenes' metrics know.
    """

    def __init__(self, levels: Mapping[str, str], attributes: Collection[str]) -> None:
        self.levels, self.known = levels, attributes
        self.frame: list[int] = []
        self.label: list[int] = []
        self.tokens: list[str] = []
        self.place: list[float] = []
        self.facts: list[int] = []

    def add(self, frame: int, label: int, instance: int, row: Row) -> None:
        """Append a row of the table, which :func:`check_row` has looked at.

        Args:
            instance: number of the object.
        """
        self.frame.append(frame)
        self.label.append(label)
        self.tokens += row["token"], row["prev"] or "", row["next"] or ""
        self.place += row["translation"]
        self.place += row["size"]
        self.place += row["rotation"]
        attributed = any(token in self.known for token in attributes_of(row))
        self.facts += *points_of(row), visibility_of(row, self.levels), instance, attributed

    def columns(self) -> dict[str, np.ndarray]:
        """Columns of the rows; ``possible`` is :func:`possible`, and other boxes have the rotation of the axes."""
        if odd := next((token for token in self.tokens if not token.isascii()), None):
            raise FD3DError(f"sample_annotation.json has the token {odd!r}; give tokens of ASCII characters")
        tokens = np.array(self.tokens, dtype=np.bytes_).reshape(-1, 3)
        facts = np.array(self.facts, dtype=np.int32).reshape(-1, 5)
        place = np.array(self.place, dtype=np.float64).reshape(-1, 10)
        can_be = possible(place)
        place[~can_be, 6:] = 1.0, 0.0, 0.0, 0.0
        place[np.abs(place[:, :3]).max(1) > FARTHEST, :3] = np.nan  # so that no neighbour has a velocity from it
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
            "instance": facts[:, 3],
            "attributed": facts[:, 4] > 0,
        }
