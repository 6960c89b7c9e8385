"""Dense, standardised targets on the training device, from cached frames."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.focal.areas import bev_footprints, project_boxes, pv_rectangles_to_cells, trust_map
from store_schema import StoreSchema

from .losses import agreement, query_trust
from .settings import DistillSettings

# arrays (L, K, ...) that say what queries read
_READ = {"bev": ("sampling", "attention"), "cameras": ("points", "camera_weights", "sampled"), "none": ()}

CachedFrame = Mapping[str, np.ndarray]


@dataclass
class ChannelScale:
    """Mean and standard deviation per channel, (C,)."""

    mean: Tensor
    std: Tensor

    def standardise(self, feature: Tensor) -> Tensor:
        """Standardised feature (..., C, H, W)."""
        return (feature - self.mean[:, None, None]) / self.std[:, None, None]

    def restore(self, feature: Tensor) -> Tensor:
        """Inverse of :meth:`standardise`."""
        return feature * self.std[:, None, None] + self.mean[:, None, None]


@dataclass
class ExpertTargets:
    """Targets of a batch that the three losses read.

    Attributes:
        trust: (B, K) trust of the queries.
        pv: per level (B, V, C, Hl, Wl) standardised.
        pv_trust: per level (B, V, Hl, Wl).
        bev: the expert's BEV map, None for an expert without one.
        queries: readings of the expert's queries, by the store's names without ``query/``: ``sampling`` (B, L, K, M, P, 2) and
            ``attention`` (B, L, K, M, P), or ``points`` (B, L, K, 3), ``camera_weights`` (B, L, K, V, levels) and
            ``sampled`` (B, L, K, C), or nothing.
        agreement: share of the batch's trust that annotations leave, scalar; None where annotations are ignored.
            Losses are normalised by trust, and then scaled by this share.
    """

    trust: Tensor
    pv: list[Tensor]
    pv_trust: list[Tensor]
    bev: "BEVTargets | None"
    queries: dict[str, Tensor]
    agreement: Tensor | None = None


@dataclass
class BEVTargets:
    """The expert's BEV map.

    Attributes:
        standardised: (B, C, H, W); cells that are not stored are 0 in ``raw``.
        raw: (B, C, H, W) in the expert's own scale, 0 where not stored.
        trust: (B, H, W) trust inside footprints of stored cells, 0 elsewhere.
    """

    standardised: Tensor
    raw: Tensor
    trust: Tensor


@dataclass
class Spans:
    """Boxes that span a frame's areas.

    Attributes:
        boxes: (n, 9) LiDAR frame.
        trust: (n,) trust of each box.
    """

    boxes: Tensor
    trust: Tensor


def scatter_cells(frame: CachedFrame, name: str, cells: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Dense map (cells, C) float32 of the stored cells of map ``name``, and the mask of stored cells (cells,).

    Features that are stored as uint8 are decoded on ``device``.
    """
    where = torch.from_numpy(frame[f"{name}/index"].astype(np.int64)).to(device)
    values = torch.from_numpy(frame[f"{name}/values"]).to(device).float()
    if f"{name}/affine" in frame:
        scale, offset = torch.from_numpy(frame[f"{name}/affine"]).to(device).split(1, dim=1)
        values = values.mul_(scale).add_(offset)
    dense = torch.zeros(cells, values.shape[-1], device=device)
    dense[where] = values
    stored = torch.zeros(cells, dtype=torch.bool, device=device)
    stored[where] = True
    return dense, stored


def dense_bev(frame: CachedFrame, schema: StoreSchema, device: torch.device) -> tuple[Tensor, Tensor]:
    """The expert's BEV map (C, H, W), 0 where not stored, and the mask of stored cells (H, W)."""
    assert schema.bev is not None
    height, width, channels = schema.bev
    if schema.layout == "dense":
        dense = torch.from_numpy(frame["bev/dense"]).to(device).float()
        return dense.permute(2, 0, 1), torch.ones(height, width, dtype=torch.bool, device=device)
    dense, stored = scatter_cells(frame, "bev", height * width, device)
    return dense.T.reshape(channels, height, width), stored.view(height, width)


def dense_pv(frame: CachedFrame, schema: StoreSchema, level: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """A pyramid level (V, C, Hl, Wl), 0 where not stored, and the mask of stored cells (V, Hl, Wl)."""
    rows, cols, channels, _ = schema.pv[level]
    views = len(schema.cameras)
    if schema.layout == "dense":
        dense = torch.from_numpy(frame[f"pv/{level}/dense"]).to(device).float()
        return dense.permute(0, 3, 1, 2), torch.ones(views, rows, cols, dtype=torch.bool, device=device)
    dense, stored = scatter_cells(frame, f"pv/{level}", views * rows * cols, device)
    return dense.view(views, rows, cols, channels).permute(0, 3, 1, 2), stored.view(views, rows, cols)


def make_targets(
    frames: Sequence[CachedFrame],
    metas: Sequence[Mapping[str, Any]],
    schema: StoreSchema,
    scales: Mapping[str, ChannelScale],
    pc_range: Sequence[float],
    settings: DistillSettings,
    levels: Sequence[int],
    device: torch.device,
    spans: Sequence[Spans | None] | None = None,
    truth: tuple[Sequence[Tensor], Sequence[Tensor]] | None = None,
) -> ExpertTargets:
    """Targets of a batch.

    Areas follow ``settings.rule``, which is as tight as the store's or tighter, intersected with what is stored.

    Args:
        frames: per sample what the store's reader gives, decoded or not.
        metas: per sample the metainfo of the student's current frame: lidar2img to its unpadded image, pad_hw.
        scales: channel statistics by map, on ``device``: ``pv/LEVEL`` of every level, and ``bev`` of a stored one.
        pc_range: (x0, y0, z0, x1, y1, z1) metres of the expert's BEV map.
        settings: rule, trust threshold and exponents.
        levels: pyramid levels wanted.
        spans: per sample the boxes that span the areas in place of the expert's queries, None for all cells with trust 1.
        truth: per sample annotated boxes (n, 9), LiDAR frame, and class numbers (n,), for ``settings.agreement_power``.
    """
    rule, agreement_power, size_power = settings.rule, settings.agreement_power, settings.size_power
    kept = rule.num_queries
    raw: list[Tensor] = []
    bev_trust: list[Tensor] = []
    trusts: list[Tensor] = []
    scored: list[Tensor] = []
    pv: list[list[Tensor]] = [[] for _ in levels]
    pv_trust: list[list[Tensor]] = [[] for _ in levels]
    for b, (frame, meta) in enumerate(zip(frames, metas, strict=True)):
        boxes = torch.from_numpy(frame["query/boxes"][:kept]).to(device)
        score = torch.from_numpy(frame["query/score"][:kept]).to(device)
        trust = query_trust(score, max(settings.trust_threshold, rule.min_score), settings.trust_power)
        scored.append(trust)
        if agreement_power and truth is not None:
            label = torch.from_numpy(frame["query/label"][:kept]).to(device)
            trust = trust * agreement(boxes, label, truth[0][b], truth[1][b]) ** agreement_power
        trusts.append(trust)
        span = Spans(boxes, trust) if spans is None else spans[b]
        if schema.bev:
            dense, stored = dense_bev(frame, schema, device)
            raw.append(dense)
            bev_trust.append(stored.float())
            if span is not None:
                footprints = bev_footprints(span.boxes, pc_range, schema.bev[:2], rule.bev_margin)
                bev_trust[-1] = trust_map(footprints, span.trust, size_power) * stored
        if levels and span is not None:
            lidar2img = torch.as_tensor(meta["lidar2img"], device=device)
            rectangles, valid = project_boxes(span.boxes, lidar2img, meta["pad_hw"])
        for slot, level in enumerate(levels):
            feature, seen = dense_pv(frame, schema, level, device)
            pv[slot].append(scales[f"pv/{level}"].standardise(feature))
            pv_trust[slot].append(seen.float())
            if span is not None:
                cells = pv_rectangles_to_cells(rectangles, valid, schema.pv[level][:2], meta["pad_hw"], rule.pv_margin)
                pv_trust[slot][-1] = trust_map(cells, span.trust, size_power) * seen
    bev = None
    if schema.bev:
        stacked = torch.stack(raw)
        bev = BEVTargets(scales["bev"].standardise(stacked), stacked, torch.stack(bev_trust))
    agreed = None
    if agreement_power and truth is not None:
        agreed = torch.stack(trusts).sum() / torch.stack(scored).sum().clamp(min=1e-6)
    return ExpertTargets(
        trust=torch.stack(trusts),
        pv=[torch.stack(level) for level in pv],
        pv_trust=[torch.stack(level) for level in pv_trust],
        bev=bev,
        queries={
            name: torch.from_numpy(np.stack([f[f"query/{name}"][:, :kept] for f in frames])).to(device).float()
            for name in _READ[schema.reading]
        },
        agreement=agreed,
    )
