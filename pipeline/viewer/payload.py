"""Payload of the page, for a store and for each frame: plain JSON values, arrays packed as base64."""

import base64
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from pipeline.data import CLASSES
from pipeline.data.geometry import lidar2img
from pipeline.data.index import Frame
from pipeline.data.pixels import AS_RECORDED
from pipeline.errors import FD3DError, listed
from pipeline.report.directions import Directions
from pipeline.report.figures import camera_grid, jpeg
from pipeline.viewer.colours import FeatureScales
from store_schema import StoreReader
from store_schema.coding import pack_sampling
from store_schema.manifest import MADE_BY
from store_schema.schema import SAMPLING_RANGE

_QUALITY = 75


def choose_frames(
    reader: StoreReader, scenes: Sequence[str] | None, tokens: Sequence[str] | None, limit: int
) -> tuple[list[str], int]:
    """Tokens to show in row order, and how many more there are beyond ``limit``.

    Args:
        scenes, tokens: restrict to these; at most one of the two.

    Raises:
        FD3DError: a scene is unknown, both restrictions are given, or the limit is below 1.
        StoreError: a token is unknown.
    """
    if limit < 1:
        raise FD3DError(f"--frames is {limit}; a page has at least 1 frame")
    if scenes and tokens:
        raise FD3DError("--scene and --token exclude each other; give one of them")
    chosen = reader.tokens
    if tokens:
        chosen = sorted(set(tokens), key=reader.row)
    elif scenes:
        known = reader.manifest["scenes"]
        for name in scenes:
            if name not in known:
                raise FD3DError(f"store {reader.storage} has no scene {name}; known: {listed(known)}")
        wanted = {token for name in scenes for token in known[name]}
        chosen = [token for token in chosen if token in wanted]
    return chosen[:limit], max(0, len(chosen) - limit)


def _levels(reader: StoreReader) -> list[tuple[int, int, int, tuple[float, float]]]:
    """Pyramid levels whose stored cells are worth showing: a dense store has all of them."""
    return reader.schema.pv if reader.schema.layout == "focal" else []


def stored_bev(stored: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Stored BEV features (n, C) of a frame and their flat cell numbers (n,), in either layout."""
    if "bev/dense" in stored:
        values = stored["bev/dense"].reshape(-1, stored["bev/dense"].shape[-1])
        return values, np.arange(len(values))
    return stored["bev/values"], stored["bev/index"]


def shown_score(reader: StoreReader) -> float:
    """Score from which queries are drawn where none is asked for: 0.3, or 0 in a store of random weights, whose scores mean nothing."""
    return 0.0 if str(reader.manifest["expert"].get("weights")).startswith("random") else 0.3


def page_facts(reader: StoreReader, scales: FeatureScales | None, min_score: float) -> dict[str, Any]:
    """Facts that all frames of a page share.

    Args:
        scales: scales of the BEV features; None for a store without them.
        min_score: start of the score slider.
    """
    schema = reader.schema
    coverage = reader.manifest["coverage"]
    low, high = SAMPLING_RANGE
    facts: dict[str, Any] = {
        "name": str(reader.storage).rstrip("/").rpartition("/")[2],
        "total": len(reader.tokens),
        "cameras": schema.cameras,
        "grid": camera_grid(schema.cameras),
        "classes": CLASSES,
        "layout": schema.layout,
        "reading": schema.reading,
        "layers": schema.layers,
        "positions": schema.heads * schema.points,
        "sampling_range": [low, high],
        "pc_range": reader.manifest["coordinates"]["pc_range"],
        "min_score": min_score,
        "levels": [
            {"rows": rows, "columns": columns, "stride": stride, "coverage": coverage.get(f"pv/{i}")}
            for i, (rows, columns, _, stride) in enumerate(_levels(reader))
        ],
        "bev": None,
        "manifest": {name: reader.manifest[name] for name in MADE_BY if name in reader.manifest},
    }
    if schema.bev and scales:
        facts["bev"] = {
            "rows": schema.bev[0],
            "columns": schema.bev[1],
            "coverage": coverage.get("bev"),
            "energy": [round(float(scales.low[0]), 3), round(float(scales.high[0]), 3)],
            "explained": [round(float(share), 4) for share in scales.explained],
        }
    return facts


def frame_payload(
    reader: StoreReader, frame: Frame, root: Path, scales: FeatureScales | None, width: int
) -> dict[str, Any]:
    """Payload of one frame. Boxes and points are in the LiDAR frame and metres; image coordinates are shares of width and height.

    Args:
        frame: the index's entry of the frame.
        width: width to which wider images are reduced, pixels.

    Returns:
        ``images``: V JPEGs and ``aspect``, width over height of each; ``projection``: (V, 12) rows of the 3x4 matrix from the LiDAR frame to shares of the
        image times depth; ``boxes`` (K, 9), ``score``, ``label``, ``reference`` (K, 3) of the queries; ``annotated``
        (n, 9) and ``annotated_label``; ``levels``: per pyramid level the bitmap of stored cells and a cell's size in
        shares of each image (V, 2); ``bev``: bitmap and (n, 4) uint8 of the stored cells; ``sampling`` (L, K, M*P, 2) uint16
        and ``attention`` (L, K, M*P) uint8, or ``points`` (L, K, 3) and ``weights`` (L, K, V) uint8, with the value
        that 255 stands for; ``directions``: of the LiDAR frame's axes, as in :class:`~pipeline.report.directions.Directions`.

    Raises:
        FD3DError: an image cannot be read.
        StoreError: the frame's shard is missing or damaged.
    """
    stored, schema = reader.read(frame.token), reader.schema
    heights, widths = frame.image_sizes[:, 0], frame.image_sizes[:, 1]
    projection = lidar2img(frame.intrinsics, frame.lidar2cam)[:, :3]
    projection[:, 0] /= widths[:, None]
    projection[:, 1] /= heights[:, None]
    out: dict[str, Any] = {
        "token": frame.token,
        "scene": frame.scene_name,
        "order": frame.order,
        "images": [_image(root / path, width) for path in frame.image_paths],
        "aspect": np.round(widths / heights, 4).tolist(),
        "projection": [[float(f"{v:.7g}") for v in matrix.ravel()] for matrix in projection],
        "boxes": _rounded(stored["query/boxes"]),
        "score": _rounded(stored["query/score"]),
        "label": stored["query/label"].tolist(),
        "annotated": _rounded(np.nan_to_num(frame.boxes)),
        "annotated_label": frame.labels.tolist(),
        "levels": [],
        "directions": asdict(Directions.of(frame.lidar2ego)),
    }
    pc_range = np.array(reader.manifest["coordinates"]["pc_range"])
    if "query/reference" in stored:
        out["reference"] = _rounded(pc_range[:3] + stored["query/reference"] * (pc_range[3:] - pc_range[:3]))
    scale = reader.manifest["image"]["scale"]
    for i, (rows, columns, _, stride) in enumerate(_levels(reader)):
        mask = np.zeros(len(schema.cameras) * rows * columns, bool)
        mask[stored[f"pv/{i}/index"]] = True
        cell = np.stack([stride[1] / (widths * scale), stride[0] / (heights * scale)], 1).tolist()
        out["levels"].append({"cells": _packed(np.packbits(mask)), "size": cell})
    if schema.bev and scales:
        values, index = stored_bev(stored)
        mask = np.zeros(schema.bev[0] * schema.bev[1], bool)
        mask[index] = True
        out["bev"] = {"cells": _packed(np.packbits(mask)), "values": _packed(scales.quantise(values))}
    if schema.reading == "bev":
        out["sampling"] = _packed(pack_sampling(stored["query/sampling"]))
        out |= _weights("attention", stored["query/attention"])
    elif schema.reading == "cameras":
        out["points"] = _rounded(stored["query/points"])
        out |= _weights("weights", stored["query/camera_weights"].astype(np.float32).sum(-1))
    return out


def _weights(name: str, values: np.ndarray) -> dict[str, Any]:
    """Weights as uint8 with the largest one as 255; what is above zero stays so."""
    wide = values.astype(np.float32).clip(0)
    largest = float(wide.max(initial=0.0)) or 1.0
    return {name: _packed(np.ceil(255 * wide / largest).astype(np.uint8)), "largest": round(largest, 4)}


def _image(path: Path, width: int) -> str:
    image = cv2.imread(str(path), AS_RECORDED) if path.is_file() else None  # of an absent file OpenCV warns by itself
    if image is None:
        raise FD3DError(f"image {path} cannot be read; is the data root complete?")
    if image.shape[1] > width:
        height = round(image.shape[0] * width / image.shape[1])
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    return base64.b64encode(jpeg(image[..., ::-1], _QUALITY)).decode()


def _packed(array: np.ndarray) -> str:
    """Little-endian bytes in C order."""
    return base64.b64encode(array.astype(array.dtype.newbyteorder("<")).tobytes()).decode()


def _rounded(array: np.ndarray) -> list[Any]:
    return np.round(array.astype(np.float64), 3).tolist()
