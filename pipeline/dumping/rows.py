"""From an expert's frame to a row of the store, and what a store's manifest says."""

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from torch import Tensor

from pipeline.data import CAMERAS
from pipeline.data.index import FrameIndex
from pipeline.errors import FD3DError
from pipeline.expert import BEVReading, CameraReading, ExpertFrame
from pipeline.focal import (
    FocalRule,
    bev_footprints,
    project_boxes,
    pv_spans,
    sampling_neighbours,
    spans_union,
    union,
)
from pipeline.models.build import file_sha256
from pipeline.training import FrameSource
from store_schema import StoreSchema, dequantise, quantise
from store_schema.schema import VALUES


@dataclass(frozen=True)
class DumpSettings:
    """How the store is written; which areas are stored is the focal rule's."""

    rule: FocalRule
    """Queries kept and areas stored around them."""
    layout: str = "focal"
    """``focal`` stores only the areas, ``dense`` the whole maps."""
    values: str = "float16"
    """Features as ``float16``, as ``float32``: twice the bytes, nothing rounded; or, in layout ``focal``, as ``uint8`` with
    a scale and an offset per cell: half the bytes."""
    layers: int | None = None
    """Last decoder layers whose reading is stored, and whose positions' cells; all by default."""
    frames_per_shard: int = 40
    """Rows of one shard; a shard holds whole scenes, so this is at least the longest scene."""
    bev_capacity: float = 1.0
    """Largest share of BEV cells that a frame may store; bounds the padded length, costs no space."""
    pv_capacity: float = 1.0
    """The same for the cells of each pyramid level over all cameras."""
    autocast: str | None = None
    """``bf16`` or ``fp16`` on a GPU."""
    seed: int = 0
    """Seed of random weights when no checkpoint is given."""

    def __post_init__(self) -> None:
        if self.layout not in ("focal", "dense"):
            raise FD3DError(f"dump.layout is '{self.layout}'; use focal or dense")
        if self.values not in VALUES:
            raise FD3DError(f"dump.values is '{self.values}'; use {', '.join(VALUES)}")
        if self.values == "uint8" and self.layout == "dense":
            raise FD3DError(
                "dump.values is uint8 but dump.layout is dense; dense maps are float16 or float32, or use layout focal"
            )
        if self.layers is not None and self.layers < 1:
            raise FD3DError(f"dump.layers is {self.layers}; it must be at least 1, or null for all layers")
        for name in ("bev_capacity", "pv_capacity"):
            if not 0 < getattr(self, name) <= 1:
                raise FD3DError(f"dump.{name} is {getattr(self, name)}; it is a share in (0, 1]")


@dataclass(frozen=True)
class Areas:
    """Cells around each of K boxes; those of pyramid levels as the rows and columns of rectangles.

    Attributes:
        bev: bool (K, H, W); None without a BEV map.
        pv: per level bool (K, V, Hl) and (K, V, Wl), see :func:`~pipeline.focal.pv_spans`.
        rectangles: (K, V, 4) in pixels; None without a pyramid.
        valid: bool (K, V); None likewise.
    """

    bev: Tensor | None
    pv: list[tuple[Tensor, Tensor]]
    rectangles: Tensor | None = None
    valid: Tensor | None = None

    def __getitem__(self, some: slice) -> "Areas":
        bev, rectangles, valid = (None if t is None else t[some] for t in (self.bev, self.rectangles, self.valid))
        return Areas(bev, [(rows[some], columns[some]) for rows, columns in self.pv], rectangles, valid)


def query_areas(frame: ExpertFrame, rule: FocalRule, pc_range: Sequence[float], lidar2img: Tensor) -> Areas:
    """Cells around each query that is kept, best first; ``lidar2img`` as of :func:`areas_beside`."""
    return areas_beside(frame, rule, frame.boxes[:0], pc_range, lidar2img)[0]


def areas_beside(
    frame: ExpertFrame, rule: FocalRule, boxes: Tensor, pc_range: Sequence[float], lidar2img: Tensor
) -> tuple[Areas, Areas]:
    """:func:`query_areas`, and in the same pass those of other boxes (n, 9) on the same maps, without margins.

    Args:
        lidar2img: (V, 4, 4) to pixels of the expert's unpadded image.
    """
    queries = frame.boxes[frame.score >= rule.min_score]
    together, first = torch.cat([queries, boxes]), slice(len(queries))
    margin = torch.zeros(len(together), 1, 1, dtype=boxes.dtype, device=boxes.device)
    bev, spans, rectangles, valid = None, [], None, None
    if frame.bev is not None:
        margin[first] = rule.bev_margin
        bev = bev_footprints(together, pc_range, (frame.bev.shape[-2], frame.bev.shape[-1]), margin)
    if frame.pv:
        margin[first] = rule.pv_margin
        image_hw = padded_size(frame)
        rectangles, valid = project_boxes(together, lidar2img, image_hw)
        for level in frame.pv:
            height, width = level.shape[-2:]
            spans.append(pv_spans(rectangles, valid, (height, width), image_hw[0] / height, margin))
    everything = Areas(bev, spans, rectangles, valid)
    return everything[first], everything[slice(len(queries), None)]


def joined_cells(frame: ExpertFrame, areas: Areas, rule: FocalRule, layers: int) -> tuple[Tensor | None, list[Tensor]]:
    """Cells to store, from :func:`query_areas`: BEV (H, W), and per pyramid level (V, Hl, Wl); boolean.

    The areas of all queries, and in BEV every cell that sampling at the same queries' positions reads. Queries below the
    rule's score have neither: no loss gives them weight.

    Args:
        layers: last decoder layers whose positions count; 0 for all.
    """
    bev = None if areas.bev is None else union(areas.bev)
    if bev is not None and isinstance(frame.reading, BEVReading):
        sampling = frame.reading.sampling[-layers:, frame.score >= rule.min_score]
        bev = bev | sampling_neighbours(sampling.flatten(0, -2), (bev.shape[0], bev.shape[1]))
    return bev, [spans_union(*spans) for spans in areas.pv]


def focal_cells(
    frame: ExpertFrame, rule: FocalRule, pc_range: Sequence[float], lidar2img: Tensor, layers: int = 0
) -> tuple[Tensor | None, list[Tensor]]:
    """Cells to store of one frame, see :func:`joined_cells`; arguments as of :func:`query_areas`."""
    return joined_cells(frame, query_areas(frame, rule, pc_range, lidar2img), rule, layers)


def padded_size(frame: ExpertFrame) -> tuple[int, int]:
    """Rows and columns of the padded image that the pyramid divides.

    Raises:
        FD3DError: the adapter gave a pyramid without it.
    """
    if frame.image_hw is None:
        raise FD3DError(
            "the adapter gives a pyramid but no image_hw; set ExpertFrame.image_hw to the padded image's size"
        )
    return frame.image_hw


def _packed(name: str, feature: Tensor, mask: Tensor, values: str) -> dict[str, np.ndarray]:
    """The True cells of a map, channel last, as the store's arrays of that map; feature (..., C, H, W)."""
    last = feature.movedim(-3, -1)
    index = mask.flatten().nonzero()[:, 0]
    cells = last.reshape(-1, last.shape[-1])[index]
    packed = {f"{name}/index": index.cpu().numpy()}
    if values != "uint8":
        return packed | {f"{name}/values": cells.to(getattr(torch, values)).cpu().numpy()}
    codes, affine = quantise(cells.float().cpu().numpy())
    return packed | {f"{name}/values": codes, f"{name}/affine": affine}


def store_row(
    frame: ExpertFrame, cells: tuple[Tensor | None, list[Tensor]], schema: StoreSchema
) -> dict[str, np.ndarray]:
    """One frame as the store's writer takes it."""
    tensors = {"boxes": frame.boxes, "score": frame.score, "label": frame.label}
    if frame.features is not None and frame.reference is not None:
        tensors |= {"reference": frame.reference, "features": frame.features.half()}
    last = slice(-schema.layers, None)
    if isinstance(frame.reading, BEVReading):
        tensors |= {"sampling": frame.reading.sampling[last], "attention": frame.reading.attention[last].half()}
    elif isinstance(frame.reading, CameraReading):
        reading = frame.reading
        tensors |= {
            "points": reading.points[last],
            "camera_weights": reading.weights[last].half(),
            "sampled": reading.sampled[last].half(),
        }
    row: dict[str, np.ndarray] = {f"query/{name}": tensor.cpu().numpy() for name, tensor in tensors.items()}
    if schema.layout == "dense":
        dtype = getattr(torch, schema.values)  # a copy in any case: a detector may reuse its map's memory
        if frame.bev is not None:
            row["bev/dense"] = frame.bev.movedim(0, -1).to(dtype, copy=True).cpu().numpy()
        levels = {f"pv/{i}/dense": f.movedim(1, -1).to(dtype, copy=True) for i, f in enumerate(frame.pv)}
        return row | {path: level.cpu().numpy() for path, level in levels.items()}
    bev, masks = cells
    if frame.bev is not None and bev is not None:
        row |= _packed("bev", frame.bev, bev, schema.values)
    for i, (feature, mask) in enumerate(zip(frame.pv, masks, strict=True)):
        row |= _packed(f"pv/{i}", feature, mask, schema.values)
    return row


def stored_constants(constants: Mapping[str, Tensor], schema: StoreSchema) -> dict[str, np.ndarray]:
    """The expert's constants, of the layers that are stored."""
    return {path: tensor[-schema.layers :].numpy() for path, tensor in constants.items()}


def stored_values(row: dict[str, np.ndarray], name: str) -> np.ndarray:
    """Features (n, C) that a row holds of ``bev`` or of a pyramid level, in any layout, as readers decode them."""
    if f"{name}/affine" in row:
        return dequantise(row[f"{name}/values"], row[f"{name}/affine"])
    values = row[f"{name}/values"] if f"{name}/values" in row else row[f"{name}/dense"]
    return values.reshape(-1, values.shape[-1])


def make_manifest(
    cfg: Config, config: Path, checkpoint: Path | None, index: FrameIndex, source: FrameSource, settings: DumpSettings
) -> dict[str, Any]:
    """What made this store; any difference here is another store."""
    processor = cfg.model.get("data_preprocessor") or {}
    return {
        "expert": {
            "config": config.name,
            "config_sha256": hash_config(cfg),
            "checkpoint_sha256": file_sha256(checkpoint) if checkpoint else None,
            "weights": "checkpoint" if checkpoint else f"random, seed {settings.seed}",
            "autocast": settings.autocast,
            "adapter": dict(cfg.adapter),
            **({"corruption": dict(cfg.corruption)} if "corruption" in cfg else {}),
        },
        "data": {"index_sha256": index.sha256, "split": source.split},
        "image": {
            "scale": cfg.image.scale,
            "channels": "RGB" if cfg.image.to_rgb else "BGR",
            "mean": list(processor.get("mean", ())),
            "std": list(processor.get("std", ())),
            "pad_divisor": processor.get("pad_divisor", processor.get("pad_size_divisor", 1)),
        },
        "history": "streamed through each scene in time order, reset at its first frame",
        "coordinates": {
            "boxes": "LiDAR frame, x y z of the centre of gravity, dx dy dz, yaw, vx vy; metres, radians, metres/second",
            "bev": "row = y, column = x, cell centres",
            "pv": "flat cell = (camera * rows + row) * columns + column",
            "pc_range": list(cfg.pc_range),
        },
        "focal": settings.rule.to_dict(),
        "libraries": library_versions(),
    }


def library_versions() -> dict[str, str]:
    """Versions of what decides the numbers in a store."""
    names = ("torch", "mmcv", "mmdet", "mmdet3d", "zarr", "numcodecs", "numpy")
    return {name: version(name) for name in names} | {"python": platform.python_version()}


def hash_config(cfg: Config) -> str:
    """SHA-256 of what decides the expert's outputs: model, images, ranges, and corruption where there is one."""
    relevant = {name: cfg[name] for name in ("model", "image", "pc_range", "corruption") if name in cfg}
    return hashlib.sha256(json.dumps(relevant, sort_keys=True, default=str).encode()).hexdigest()


def schema_of(frame: ExpertFrame, settings: DumpSettings) -> StoreSchema:
    """The store's shape, from the expert's first frame."""
    views = [len(f) for f in frame.pv if len(f) != len(CAMERAS)]
    if views:
        raise FD3DError(
            f"the expert's pyramid has {views[0]} cameras, a store {len(CAMERAS)} ({', '.join(CAMERAS)}); tap one of all cameras"
        )
    levels = [(f.shape[2], f.shape[3], f.shape[1], round(padded_size(frame)[0] / f.shape[2])) for f in frame.pv]
    reading: dict[str, Any] = {"reading": "none"}
    known = 0
    if isinstance(frame.reading, BEVReading):
        known, _, heads, points = frame.reading.attention.shape
        reading = {"reading": "bev", "heads": heads, "points": points}
    elif isinstance(frame.reading, CameraReading):
        reading, known = {"reading": "cameras"}, len(frame.reading.points)
    layers = known if settings.layers is None else settings.layers
    if layers > known:
        raise FD3DError(
            f"dump.layers is {layers}, but the expert's reading is known of {known} layers; use null for all"
        )
    bev = None if frame.bev is None else (*frame.bev.shape[-2:], frame.bev.shape[0])
    return StoreSchema(
        bev=bev,
        pv=levels,
        cameras=CAMERAS,
        queries=len(frame.boxes),
        query_channels=0 if frame.features is None else frame.features.shape[-1],
        layout=settings.layout,
        values=settings.values,
        layers=layers,
        bev_kmax=0 if bev is None else max(1, round(settings.bev_capacity * bev[0] * bev[1])),
        pv_kmax=[max(1, round(settings.pv_capacity * len(CAMERAS) * h * w)) for h, w, _, _ in levels],
        **reading,
    )


def check_finite(frame: ExpertFrame, token: str) -> None:
    """Raises FD3DError naming the frame and what of it is NaN or infinite."""
    arrays = {"bev": frame.bev, "boxes": frame.boxes, "query features": frame.features}
    arrays |= {f"pv level {i}": level for i, level in enumerate(frame.pv)}
    given = {name: tensor for name, tensor in arrays.items() if tensor is not None}
    # one number per tensor and one transfer; a sum that overflows only costs the exact look
    if torch.isfinite(torch.stack([tensor.sum() for tensor in given.values()])).all():
        return
    for name, tensor in given.items():
        if not torch.isfinite(tensor).all():
            raise FD3DError(
                f"the expert's {name} of frame {token} is not finite; check the checkpoint and this frame's images"
            )


def scene_rows(index: FrameIndex, split: str, scenes: Sequence[str] | None) -> dict[str, list[int]]:
    """Index rows by scene name, in time order; the scenes by name, as the store has them.

    Raises:
        FD3DError: a scene is not in the split.
    """
    chosen = set(index.select(split))
    available = {name: [r for r in rows if r in chosen] for name, rows in index.scenes.items()}
    available = {name: available[name] for name in sorted(available) if available[name]}
    if scenes is None:
        return available
    unknown = [name for name in scenes if name not in available]
    if unknown:
        raise FD3DError(f"scene {unknown[0]} is not in split {split}; it has {', '.join(sorted(available)[:5])}, ...")
    return {name: rows for name, rows in available.items() if name in scenes}
