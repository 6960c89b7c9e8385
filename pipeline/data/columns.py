"""Columns of the frame index, scene by scene: geometry, ego motion and annotated boxes of key frames."""

import os
import struct
import warnings
import zlib
from collections import Counter
from collections.abc import Sized
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.data.can_bus import EgoStates
from pipeline.data.checks import MAX_GAP, check_poses
from pipeline.data.geometry import arctan2_of, invert, lidar_turn, move_boxes, product, transform
from pipeline.data.image_kinds import check_kind, check_unknown
from pipeline.data.tables import LIDAR, Chain, FrameTables
from pipeline.errors import FD3DError, counted

DAMAGED = -1, 0
"""Size and CRC-32 of an image file that is missing or damaged."""
_ADVICE = "copy images again that are damaged, then run 'fd3d index' again"


def scene_columns(tables: FrameTables, chain: Chain, states: EgoStates, root: Path) -> dict[str, np.ndarray]:
    """Columns of a scene, as :class:`~pipeline.data.index.Frame` describes them; integers are as narrow as values allow.

    Args:
        root: folder that image paths start from.

    Raises:
        FD3DError: a pose or a calibration is no number, an annotation's neighbour is missing, or an image has another size than the
            tables say.
    """
    rows = chain.rows(tables.complete)
    count, before = len(rows), int(tables.complete[: chain.start].sum())
    poses, sensors, files = tables.poses[rows], tables.sensors[rows], tables.files[rows]
    to_global, mounts = transform(poses[..., :3], poses[..., 3:]), tables.mounts[sensors]
    sensor2global = product(to_global, mounts)
    lidar2global = sensor2global[:, LIDAR]
    lidar2cam = product(invert(sensor2global[:, :LIDAR]), lidar2global[:, None])
    turns = np.array([lidar_turn(mount) for mount in mounts[:, LIDAR]])
    bad = np.flatnonzero(~np.isfinite(lidar2cam).all((1, 2, 3)))
    if len(bad):
        frame = int(bad[0])
        fits = np.isfinite(to_global[frame]).all((1, 2))
        sensor, table = (int(np.argmin(fits)), "ego_pose") if not fits.all() else (0, "calibrated_sensor")
        if fits.all():
            sensor = int(np.argmin(np.isfinite(mounts[frame]).all((1, 2))))
        raise FD3DError(
            f"the pose of {tables.channels[sensor]} of sample {tables.tokens[rows[frame]]} in {tables.folder.name}/{table}.json is no rigid motion; "
            "give finite numbers, and a rotation (w, x, y, z) that is not zero"
        )
    unreadable = _check_images(tables, chain, rows, root)
    tokens = [tables.tokens[row] for row in rows]
    check_poses(chain.name, tokens, tables.timestamps[rows], to_global[:, LIDAR], str(tables.folder))
    order = before + np.arange(count)
    cut: dict[str, str] = {}
    found = np.array([[_contents(os.path.join(root, path), cut) for path in paths] for paths in files], np.int64)
    if cut:
        path, fault = next(iter(cut.items()))
        tables.tell(f"image {path} is {fault}{_more(cut, chain)}; {_ADVICE}")
    found[np.isin(files, unreadable)] = DAMAGED
    return {
        "token": np.array(tokens, dtype=np.bytes_),
        "scene_token": np.array([chain.token] * count, dtype=np.bytes_),
        "scene_name": np.array([chain.name.encode()] * count, dtype=np.bytes_),
        "order": np.arange(count, dtype=np.int32),
        "prev": np.where(order > before, order - 1, -1).astype(np.int32),
        "next": np.where(order + 1 < before + count, order + 1, -1).astype(np.int32),
        "timestamp": tables.timestamps[rows],
        "image_paths": np.array([[path.encode() for path in six] for six in files], dtype=np.bytes_),
        "image_sizes": tables.sizes[rows],
        "image_bytes": found[..., 0],
        "image_crc32": found[..., 1].astype(np.uint32),
        "intrinsics": tables.intrinsics[sensors[:, :LIDAR]],
        "lidar2cam": lidar2cam,
        "lidar2ego": mounts[:, LIDAR],
        "ego2global": to_global[:, LIDAR],
        "can_bus": states.of(chain.name, tables.timestamps[rows], to_global[:, LIDAR], poses[:, LIDAR, 3], turns),
        **_boxes(tables, chain, invert(lidar2global)),
    }


def _check_images(tables: FrameTables, chain: Chain, rows: np.ndarray, root: Path) -> list[str]:
    """Compare the images of frames with the sizes in the tables; only the files' heads are read, which takes some 0.1 ms each.

    Returns:
        paths below the root of the images whose heads cannot be read, which are told.

    Raises:
        FD3DError: an image has another size, or cannot be decoded as recorded.
    """
    unreadable: dict[str, str] = {}
    files = tables.files[rows]
    for name, size in zip(
        (name for frame in files for name in frame), tables.sizes[rows].reshape(-1, 2).tolist(), strict=True
    ):
        path = os.path.join(root, name)
        try:
            with Image.open(path) as image:
                columns, lines = image.size
                check_kind(image, path)
        except FileNotFoundError:
            continue  # counted later
        except FD3DError:
            raise
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            check_unknown(path)
            unreadable[name] = f"image {path} cannot be read ({error!r:.60})"
            continue
        if [lines, columns] != size:
            raise FD3DError(
                f"image {path} has {lines}x{columns} pixels (rows x columns), sample_data.json says {size[0]}x{size[1]}; calibration and images "
                "must be of one size"
            )
    if unreadable:
        tables.tell(f"{next(iter(unreadable.values()))}{_more(unreadable, chain)}; {_ADVICE}")
    return list(unreadable)


def _more(images: Sized, chain: Chain) -> str:
    return f", and {len(images) - 1} more of {chain.name}" if len(images) > 1 else ""


def _contents(path: str, cut: dict[str, str]) -> tuple[int, int]:
    """Size in bytes and CRC-32 of a file; ``DAMAGED`` where it cannot be read, or is cut or damaged, and so added with the fault."""
    try:
        with open(path, "rb") as file:
            content = file.read()
    except OSError:
        return DAMAGED
    if (broken := is_broken(content)) or is_cut(content):
        cut[path] = "damaged: a part has not its checksum" if broken else "cut: its end is missing"
        return DAMAGED
    return len(content), zlib.crc32(content)


def is_cut(content: bytes) -> bool:
    """Whether an image file ends before its format's end: OpenCV would decode what is missing as grey, without a word.

    Nothing is decoded. Of other formats than JPEG, PNG, WebP and BMP without compression nothing is known.
    """
    if content.startswith(b"\xff\xd8"):
        return _is_jpeg_cut(content)
    if content.startswith(b"\x89PNG"):
        return content.rfind(b"IEND\xaeB`\x82") < 0
    if content.startswith(b"RIFF"):
        return int.from_bytes(content[4:8], "little") + 8 > len(content)
    return content.startswith(b"BM") and _is_bmp_cut(content)


def is_broken(content: bytes) -> bool:
    """Whether a part of a PNG file has another checksum than the file says; other formats have none."""
    if not content.startswith(b"\x89PNG"):
        return False
    at, view = 8, memoryview(content)
    while (behind := at + 12 + int.from_bytes(view[at : at + 4], "big")) <= len(content):
        if zlib.crc32(view[at + 4 : behind - 4]) != int.from_bytes(view[behind - 4 : behind], "big"):
            return True
        if view[at + 4 : at + 8] == b"IEND":
            return False
        at = behind
    return False  # but cut


def _is_bmp_cut(content: bytes) -> bool:
    """Whether a Windows bitmap has fewer bytes than its size in pixels needs; False where pixels are compressed."""
    start, header, width, height = struct.unpack_from("<10xIIii", content.ljust(34, b"\0"))
    bits, compression = struct.unpack_from("<28xHI", content.ljust(34, b"\0"))
    if header < 40 or compression not in (0, 3, 6):  # pixels as they are, the latter two with masks of their bits
        return False
    return bool(start + (width * bits + 31) // 32 * 4 * abs(height) > len(content))


def _is_jpeg_cut(content: bytes) -> bool:
    """Whether a JPEG's segments (ITU-T T.81, annex B) do not lead to the end of its image; what follows the end is of no interest.

    Among compressed pixels 0xff is followed by 0, and restart markers may stand there (B.1.1.5).
    """
    data = np.frombuffer(content, np.uint8)
    places = np.flatnonzero(data[:-1] == 0xFF) + 1
    kinds = data[places]
    is_marker = (kinds != 0x00) & (kinds != 0xFF) & ((kinds < 0xD0) | (kinds > 0xD7))
    behind = 2
    for place, kind in zip(places[is_marker].tolist(), kinds[is_marker].tolist(), strict=True):
        if place <= behind:  # within a segment
            continue
        if kind in (0xD8, 0xD9):  # of another image, behind one without an end; or the end
            return bool(kind == 0xD8)
        behind = place + 1
        if kind != 0x01:  # the only other marker without a segment
            behind += int.from_bytes(content[place + 1 : place + 3], "big")
    return True


def warn_of_images(paths: np.ndarray, sizes: np.ndarray, root: Path) -> None:
    """Warn of image files that are missing, empty or damaged.

    Args:
        paths, sizes: (N, V) of all images, as of :class:`~pipeline.data.index.Frame`.
    """
    if missing := int((sizes <= 0).sum()):
        warnings.warn(
            f"missing, empty or damaged: {counted(missing, 'image file')} of {root}, first {paths[sizes <= 0][0].decode()}; copy the files and "
            "run 'fd3d index' again, or dumps, trainings and evaluations on their frames are refused",
            stacklevel=3,
        )


def _boxes(tables: FrameTables, chain: Chain, global2lidar: np.ndarray) -> dict[str, np.ndarray]:
    rows = slice(tables.counts[chain.start], tables.counts[chain.stop])
    found = {name: column[rows] for name, column in tables.annotations.items()}
    width, length, height = found["place"][:, 3:6].T
    turns = transform(np.zeros(3), found["place"][:, 6:])
    yaws = arctan2_of(turns[:, 1, 0], turns[:, 0, 0])
    motion, foreign = _velocities(found, tables.times[found["frame"]])
    tables.foreign += [token.decode() for token in found["token"][foreign].tolist()]
    boxes = np.column_stack([found["place"][:, :3], length, width, height, yaws, motion])
    complete = tables.complete[chain.start : chain.stop]
    frames = found["frame"] - chain.start
    kept = found["possible"] & complete[frames]  # only now: velocities are differences to any neighbour
    place = (np.cumsum(complete) - 1)[frames[kept]]
    return {
        "boxes": move_boxes(boxes[kept], global2lidar[place]).astype(np.float32),
        "labels": found["label"][kept],
        "num_lidar_pts": found["num_lidar_pts"][kept],
        "num_radar_pts": found["num_radar_pts"][kept],
        "visibility": found["visibility"][kept],
    }


def _velocities(found: dict[str, np.ndarray], times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Velocities (n, 2) in the global frame, by differences to the annotations before and after, as the devkit estimates
    them; NaN where an annotation stands alone or its neighbours are too far in time. And which annotations (n,) name one of
    another object, which stand alone on this side."""
    row_of = {token: row for row, token in enumerate(found["token"].tolist())}
    if len(row_of) < len(times):
        token, count = Counter(found["token"].tolist()).most_common(1)[0]
        raise FD3DError(f"sample_annotation.json has annotation {token.decode()} {count} times; keep one")
    here, foreign = np.arange(len(times)), np.zeros(len(times), dtype=bool)
    neighbours, there = {}, {}
    for side in ("prev", "next"):
        there[side] = found[side] != b""
        rows = [row_of.get(token, -1) if token else row for row, token in enumerate(found[side].tolist())]
        neighbours[side] = np.array(rows, dtype=np.int64).reshape(-1)
        lost = here[neighbours[side] < 0]
        if len(lost):
            token, other = (found[name][lost[0]].decode() for name in ("token", side))
            raise FD3DError(f"annotation {token} names {other} as its {side}, which its scene does not have")
        other_object = found["instance"][neighbours[side]] != found["instance"]
        foreign |= other_object
        neighbours[side] = np.where(other_object, here, neighbours[side])
        there[side] &= ~other_object
    first, last = neighbours["prev"], neighbours["next"]
    seconds = 1e-6 * times[last] - 1e-6 * times[first]
    if len(still := np.flatnonzero((there["prev"] | there["next"]) & (seconds <= 0))):
        before, token, after = (found[name][still[0]].decode() or "none" for name in ("prev", "token", "next"))
        raise FD3DError(
            f"annotation {token} has prev {before} and next {after}, which are not in order of time; prev is the annotation of the same object in "
            "the frame before, next in the frame after"
        )
    limit = np.where(there["prev"] & there["next"], 2 * MAX_GAP, MAX_GAP)
    known = (there["prev"] | there["next"]) & (seconds <= limit)
    with np.errstate(divide="ignore", invalid="ignore"):
        motion = (found["place"][last, :2] - found["place"][first, :2]) / seconds[:, None]
    return np.where(known[:, None], motion, np.nan), foreign
