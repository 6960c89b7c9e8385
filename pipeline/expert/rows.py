"""Rows of the store, made from an expert's frames."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import FD3DError
from pipeline.expert import BEVReading, CameraReading, ExpertFrame
from pipeline.focal.areas import bev_footprints, project_boxes, pv_spans, sampling_neighbours, spans_union, union
from pipeline.focal.codes import FeatureCode
from pipeline.focal.rule import FocalRule
from pipeline.models.views import own_cells
from store_schema import MapCode, StoreSchema, dequantise, quantise

_WIDEST = 65_504.0  # of float16
_FAR = 0.5  # error of codes in shares of a frame's features, of which a dump warns
ALGORITHM = 3
"""Number of the algorithm that makes rows, in every store's fingerprint; raised with each change of the code after which the
same expert and frames give other rows, so that a dump after the change does not take old shards for its own."""


@dataclass(frozen=True)
class Areas:
    """Cells around each of K boxes; on pyramid levels as the rows and columns of rectangles.

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
    """Areas of :func:`query_areas` and, in the same pass, of other boxes (n, 9) on the same maps, without margins.

    Args:
        lidar2img: (V, 4, 4) to pixels of the expert's unpadded image.
    """
    queries = frame.boxes[rule.counts(frame.score)]
    together, first = torch.cat([queries, boxes]), slice(len(queries))
    margin = torch.zeros(len(together), 1, 1, dtype=boxes.dtype, device=boxes.device)
    bev, spans, rectangles, valid = None, [], None, None
    if frame.bev is not None:
        margin[first] = rule.bev_margin
        bev = bev_footprints(together, pc_range, (frame.bev.shape[-2], frame.bev.shape[-1]), margin)
    if frame.pv:
        margin[first] = rule.pv_margin
        image_hw = padded_size(frame)
        rectangles, valid = project_boxes(together, lidar2img, image_hw if frame.view_hw is None else frame.view_hw)
        for level in frame.pv:
            height, width = level.shape[-2:]
            spans.append(pv_spans(rectangles, valid, (height, width), image_hw, margin, frame.view_hw))
    everything = Areas(bev, spans, rectangles, valid)
    return everything[first], everything[slice(len(queries), None)]


def joined_cells(frame: ExpertFrame, areas: Areas, rule: FocalRule, layers: int) -> tuple[Tensor | None, list[Tensor]]:
    """Cells to store, from :func:`query_areas`: BEV (H, W), and per pyramid level (V, Hl, Wl); boolean.

    The areas of all queries, and in BEV every cell that sampling at the same queries' positions reads. Queries below the
    rule's score add neither: no loss gives these queries weight.

    Args:
        layers: number of last decoder layers whose positions count; 0 for all.
    """
    bev = None if areas.bev is None else union(areas.bev)
    if bev is not None and isinstance(frame.reading, BEVReading):
        sampling = frame.reading.sampling[-layers:, rule.counts(frame.score)]
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
        FD3DError: the adapter gave a pyramid without this size.
    """
    if frame.image_hw is None:
        raise FD3DError(
            "the adapter gives a pyramid but no image_hw; set ExpertFrame.image_hw to the padded image's size"
        )
    return frame.image_hw


def level_cells(frame: ExpertFrame) -> dict[str, np.ndarray]:
    """Cells of each pyramid level in the cameras' own images, bool (V * Hl * Wl,), by map; none where images have one size."""
    if frame.view_hw is None:
        return {}
    own, image_hw = torch.as_tensor(frame.view_hw)[None], padded_size(frame)
    sizes = [(level.shape[-2], level.shape[-1]) for level in frame.pv]
    return {f"pv/{i}": own_cells(own, size, image_hw).flatten().cpu().numpy() for i, size in enumerate(sizes)}


def packed(
    name: str, feature: Tensor, mask: Tensor, values: str, codes: Mapping[str, FeatureCode], token: str = "?"
) -> dict[str, np.ndarray]:
    """The True cells of a map, channel last, as the store's arrays of that map; feature (..., C, H, W).

    Raises:
        FD3DError: naming the frame ``token``, whose features are beyond float16 and far from those that the codes were learned from.
    """
    last = feature.movedim(-3, -1)
    index = mask.flatten().nonzero()[:, 0]
    cells = last.reshape(-1, last.shape[-1])[index]
    packed = {f"{name}/index": index.cpu().numpy()}
    if name in codes:
        coded = codes[name].encode(cells)
        _tell_far(name, codes[name], coded, cells, token)
        return packed | {f"{name}/values": coded.cpu().numpy()}
    if values != "uint8":
        return packed | {f"{name}/values": _converted(name, cells, values).cpu().numpy()}
    bytes_, affine = quantise(cells.float().cpu().numpy())
    return packed | {f"{name}/values": bytes_, f"{name}/affine": affine}


def _converted(name: str, features: Tensor, values: str) -> Tensor:
    """A copy of a type, as a detector may reuse its map's memory; features that are all too small for it are warned of, once a map."""
    stored = features.to(getattr(torch, values), copy=True)
    if stored.dtype != features.dtype and not stored.any() and features.any():
        warnings.warn(
            f"all features of {name} in a frame are so small that {values} makes them 0; look at the expert's features (a dead map), or use "
            "another dump.values",
            stacklevel=4,
        )
    return stored


def _tell_far(name: str, code: FeatureCode, coded: Tensor, cells: Tensor, token: str) -> None:
    """Warn of features (k, C) far from all that the code was learned from, which it clips; one text, so that it is said once a map."""
    wide = cells.double()  # squares may be beyond float32
    if (code.decode(coded).double() - wide).norm() > _FAR * wide.norm():
        if (most := float(wide.abs().max())) > _WIDEST:
            raise FD3DError(
                f"frame {token}: features of {name} reach {most:.1e}, far from those that the codes were learned from and beyond float16; look at "
                "the expert (does it overflow in this frame?), or use another dump.values"
            )
        warnings.warn(
            f"codes of {name} err by more than {_FAR:.0%} of a frame's features, which are unlike those that the codes were learned from; raise "
            "dump.code_frames, so that such frames are among them, or use another dump.values",
            stacklevel=3,
        )


def store_row(
    frame: ExpertFrame,
    cells: tuple[Tensor | None, list[Tensor]],
    schema: StoreSchema,
    codes: Mapping[str, FeatureCode] | None = None,
    token: str = "?",
) -> dict[str, np.ndarray]:
    """One frame as the store's writer takes it.

    Args:
        codes: by map on the frame's device, for coded features.
        token: of the frame, for messages.

    Raises:
        FD3DError: see :func:`packed`.
    """
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
        if frame.bev is not None:
            row["bev/dense"] = _converted("bev", frame.bev.movedim(0, -1), schema.values).cpu().numpy()
        levels = {
            f"pv/{i}/dense": _converted(f"pv/{i}", f.movedim(1, -1), schema.values) for i, f in enumerate(frame.pv)
        }
        return row | {path: level.cpu().numpy() for path, level in levels.items()}
    bev, masks = cells
    if frame.bev is not None and bev is not None:
        row |= packed("bev", frame.bev, bev, schema.values, codes or {}, token)
    for i, (feature, mask) in enumerate(zip(frame.pv, masks, strict=True)):
        row |= packed(f"pv/{i}", feature, mask, schema.values, codes or {}, token)
    return row


def stored_constants(constants: Mapping[str, Tensor], schema: StoreSchema) -> dict[str, np.ndarray]:
    """The expert's constants, of the layers that are stored."""
    return {path: tensor[-schema.layers :].numpy() for path, tensor in constants.items()}


def stored_values(row: dict[str, np.ndarray], name: str, codes: Mapping[str, MapCode]) -> np.ndarray:
    """Features (n, C) that a row holds of ``bev`` or of a pyramid level, in any layout, as readers decode them."""
    if name in codes:
        return codes[name].decode(row[f"{name}/values"])
    if f"{name}/affine" in row:
        return dequantise(row[f"{name}/values"], row[f"{name}/affine"])
    values = row[f"{name}/values"] if f"{name}/values" in row else row[f"{name}/dense"]
    return values.reshape(-1, values.shape[-1])


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
