"""Targets on the training device, from cached frames: at the cells that losses compare, or as whole maps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.focal.areas import bev_footprints, project_boxes, pv_spans, trust_map
from store_schema import StoreSchema

from .cells import Cells
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

    def standardise_rows(self, rows: Tensor) -> Tensor:
        """Standardised features (n, C) of cells."""
        return (rows - self.mean) / self.std

    def restore_rows(self, rows: Tensor) -> Tensor:
        """Inverse of :meth:`standardise_rows`."""
        return rows * self.std + self.mean


@dataclass
class StoredCells:
    """The expert's features at all stored cells of N maps of H x W: the BEV maps or a pyramid level of B samples.

    Attributes:
        values: (m, C) in the expert's own scale.
        row: (N * H * W,) place of a cell among the values, m for a cell that is not stored.
    """

    values: Tensor
    row: Tensor


@dataclass
class CellTargets:
    """The expert's features at the cells of N maps that a masked generation loss compares.

    Attributes:
        cells: n stored cells with weight; masks are (N, H, W), N = B for BEV maps and B * V for a pyramid level.
        values: (n, C) standardised, in the order of the cells.
        weight: (n,) trust of every cell, above 0.
    """

    cells: Cells
    values: Tensor
    weight: Tensor

    def weight_map(self) -> Tensor:
        """Weights as maps (N, H, W), 0 at the other cells."""
        return self.weight.new_zeros(self.cells.mask.shape).masked_scatter(self.cells.mask, self.weight)


@dataclass
class ExpertTargets:
    """Targets of a batch that the three losses read.

    Attributes:
        trust: (B, K) trust of the queries.
        pv: targets of every level that is distilled.
        bev: targets of the BEV map, None for an expert without one.
        bev_read: stored cells of the BEV map, which the expert's queries read; None for an expert without one.
        queries: readings of the expert's queries, by the store's names without ``query/``: ``sampling`` (B, L, K, M, P, 2) and
            ``attention`` (B, L, K, M, P), or ``points`` (B, L, K, 3), ``camera_weights`` (B, L, K, V, levels) and
            ``sampled`` (B, L, K, C), or nothing.
        agreement: share of the batch's trust that annotations leave, scalar; None where annotations are ignored.
            Losses are normalised by trust, and then scaled by this share.
    """

    trust: Tensor
    pv: list[CellTargets]
    bev: CellTargets | None
    bev_read: StoredCells | None
    queries: dict[str, Tensor]
    agreement: Tensor | None = None


@dataclass
class Spans:
    """Boxes that span a frame's areas.

    Attributes:
        boxes: (n, 9) LiDAR frame.
        trust: (n,) trust of each box.
    """

    boxes: Tensor
    trust: Tensor


def stored_values(frame: CachedFrame, name: str, device: torch.device) -> Tensor:
    """Features (m, C) float32 of the stored cells of map ``name`` in their order; uint8 is decoded on ``device``."""
    values = torch.from_numpy(frame[f"{name}/values"]).to(device).float()
    if f"{name}/affine" in frame:
        scale, offset = torch.from_numpy(frame[f"{name}/affine"]).to(device).split(1, dim=1)
        values = values.mul_(scale).add_(offset)
    return values


def stored_index(frame: CachedFrame, name: str, device: torch.device) -> Tensor:
    """Numbers (m,) of the stored cells of map ``name``."""
    return torch.from_numpy(frame[f"{name}/index"].astype(np.int64)).to(device)


def scatter_cells(frame: CachedFrame, name: str, cells: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Dense map (cells, C) float32 of the stored cells of map ``name``, and the mask of stored cells (cells,)."""
    where, values = stored_index(frame, name, device), stored_values(frame, name, device)
    dense = values.new_zeros(cells, values.shape[-1])
    dense[where] = values
    stored = torch.zeros(cells, dtype=torch.bool, device=device)
    stored[where] = True
    return dense, stored


def stored_cells(
    frames: Sequence[CachedFrame], schema: StoreSchema, name: str, cells: int, device: torch.device
) -> StoredCells:
    """Stored cells of map ``name``, which has that many cells in every frame."""
    if schema.layout == "dense":
        whole = [torch.from_numpy(frame[f"{name}/dense"]).to(device).float().flatten(0, -2) for frame in frames]
        values = torch.cat(whole)
        return StoredCells(values, torch.arange(len(values), device=device))
    values = torch.cat([stored_values(frame, name, device) for frame in frames])
    index = torch.cat([stored_index(frame, name, device) + b * cells for b, frame in enumerate(frames)])
    row = torch.full((len(frames) * cells,), len(values), device=device)
    row[index] = torch.arange(len(values), device=device)
    return StoredCells(values, row)


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


def rectangle_trust(rows: Tensor, columns: Tensor, trust: Tensor, size_power: float) -> Tensor:
    """:func:`~pipeline.focal.areas.trust_map` of rectangles, whose masks of every query and cell need not be made.

    Args:
        rows, columns: bool (K, V, Hl) and (K, V, Wl) of :func:`~pipeline.focal.areas.pv_spans`.
        trust: (K,).

    Returns:
        (V, Hl, Wl).
    """
    if len(trust) == 0:
        return trust.new_zeros(*rows.shape[1:], columns.shape[-1])
    high, wide = rows.to(trust.dtype), columns.to(trust.dtype)
    weight = trust[:, None]
    if size_power:
        weight = weight / (high.sum(-1) * wide.sum(-1)).clamp(min=1) ** size_power
    return ((high * weight[..., None])[..., None] * wide[..., None, :]).amax(0)


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
    rule, agreement_power = settings.rule, settings.agreement_power
    kept = rule.num_queries
    trusts: list[Tensor] = []
    scored: list[Tensor] = []
    chosen: list[Spans | None] = []
    for b, frame in enumerate(frames):
        boxes = torch.from_numpy(frame["query/boxes"][:kept]).to(device)
        score = torch.from_numpy(frame["query/score"][:kept]).to(device)
        trust = query_trust(score, max(settings.trust_threshold, rule.min_score), settings.trust_power)
        scored.append(trust)
        if agreement_power and truth is not None:
            label = torch.from_numpy(frame["query/label"][:kept]).to(device)
            trust = trust * agreement(boxes, label, truth[0][b], truth[1][b]) ** agreement_power
        trusts.append(trust)
        chosen.append(Spans(boxes, trust) if spans is None else spans[b])
    bev = bev_read = None
    if schema.bev:
        height, width = schema.bev[:2]
        bev_read = stored_cells(frames, schema, "bev", height * width, device)
        bev = _at_cells(bev_read, scales["bev"], _bev_trust(chosen, schema, pc_range, settings, device))
    pv = []
    for level, trust in zip(levels, _pv_trust(chosen, metas, schema, settings, levels, device), strict=True):
        rows, columns = schema.pv[level][:2]
        stored = stored_cells(frames, schema, f"pv/{level}", len(schema.cameras) * rows * columns, device)
        pv.append(_at_cells(stored, scales[f"pv/{level}"], trust))
    agreed = None
    if agreement_power and truth is not None:
        agreed = torch.stack(trusts).sum() / torch.stack(scored).sum().clamp(min=1e-6)
    return ExpertTargets(
        trust=torch.stack(trusts),
        pv=pv,
        bev=bev,
        bev_read=bev_read,
        queries={
            name: torch.from_numpy(np.stack([f[f"query/{name}"][:, :kept] for f in frames])).to(device).float()
            for name in _READ[schema.reading]
        },
        agreement=agreed,
    )


def _bev_trust(
    spans: Sequence[Spans | None],
    schema: StoreSchema,
    pc_range: Sequence[float],
    settings: DistillSettings,
    device: torch.device,
) -> Tensor:
    """Trust inside footprints on the BEV maps, (B, H, W), 0 elsewhere."""
    assert schema.bev is not None
    size, maps = schema.bev[:2], []
    for span in spans:
        if span is None:
            maps.append(torch.ones(size, device=device))
            continue
        footprints = bev_footprints(span.boxes, pc_range, size, settings.rule.bev_margin)
        maps.append(trust_map(footprints, span.trust, settings.size_power))
    return torch.stack(maps)


def _pv_trust(
    spans: Sequence[Spans | None],
    metas: Sequence[Mapping[str, Any]],
    schema: StoreSchema,
    settings: DistillSettings,
    levels: Sequence[int],
    device: torch.device,
) -> list[Tensor]:
    """Trust inside projected boxes on the levels wanted, (B*V, Hl, Wl) each, 0 elsewhere."""
    maps: list[list[Tensor]] = [[] for _ in levels]
    for span, meta in zip(spans, metas, strict=True):
        if span is not None and levels:
            lidar2img = torch.as_tensor(meta["lidar2img"], device=device)
            rectangles, valid = project_boxes(span.boxes, lidar2img, meta["pad_hw"])
        for slot, level in enumerate(levels):
            size = schema.pv[level][:2]
            if span is None:
                maps[slot].append(torch.ones(len(schema.cameras), *size, device=device))
                continue
            rows, columns = pv_spans(rectangles, valid, size, meta["pad_hw"], settings.rule.pv_margin)
            maps[slot].append(rectangle_trust(rows, columns, span.trust, settings.size_power))
    return [torch.cat(level) for level in maps]


def _at_cells(stored: StoredCells, scale: ChannelScale, trust: Tensor) -> CellTargets:
    """Targets at the stored cells where trust (N, H, W) is above 0."""
    cells = Cells((trust > 0) & (stored.row < len(stored.values)).view_as(trust))
    values = stored.values.index_select(0, stored.row[cells.index])
    return CellTargets(cells, scale.standardise_rows(values), trust.flatten()[cells.index])
