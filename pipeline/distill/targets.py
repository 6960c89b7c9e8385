"""Targets on the training device, from cached frames: at the cells that losses compare, or as whole maps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.focal.areas import bev_footprints, project_boxes, pv_spans, query_weights, trust_map
from pipeline.models.views import own_cells
from store_schema import StoreSchema

from .cells import Cells
from .geometry import Anchors, reanchored
from .losses import query_trust
from .placing import place_queries, student_positions
from .settings import DistillSettings
from .stored import CachedFrame, Codes, StoredCells, stored_cells

# arrays (L, K, ...) that say what queries read
_READ = {"bev": ("sampling", "attention"), "cameras": ("points", "camera_weights", "sampled"), "none": ()}


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
        trust: (B, K) trust of the queries, which the pyramid follows.
        placed: (B, K) trust that annotations leave to the queries, which the BEV and the fine-grained term follow;
            ``trust`` where annotations are ignored.
        pv: targets of every level that is distilled.
        bev: targets of the BEV map, None for an expert without one.
        bev_read: stored cells of the BEV map, which the expert's queries read; None for an expert without one.
        queries: readings of the expert's queries, by the store's names without ``query/``: ``sampling`` (B, L, K, M, P, 2) and
            ``attention`` (B, L, K, M, P), or ``points`` (B, L, K, 3), ``camera_weights`` (B, L, K, V, levels) and
            ``sampled`` (B, L, K, C), or nothing.
        student: positions that the student's maps are read at, ``sampling`` or ``points``, where these are not the
            expert's.
        share: share of the batch's trust that annotations leave, scalar; None where annotations are ignored. Losses are
            normalised by ``placed``, and then scaled by this share.
        anchors: per sample where the queries belong; None where annotations are ignored.
    """

    trust: Tensor
    placed: Tensor
    pv: list[CellTargets]
    bev: CellTargets | None
    bev_read: StoredCells | None
    queries: dict[str, Tensor]
    student: dict[str, Tensor] = field(default_factory=dict)
    share: Tensor | None = None
    anchors: list[Anchors] | None = None


@dataclass
class Spans:
    """Boxes that span a frame's areas.

    Attributes:
        boxes: (n, 9) LiDAR frame.
        trust: (n,) trust of each box.
        number: (n,) numbers of the boxes' queries; None where the boxes are not those of queries.
    """

    boxes: Tensor
    trust: Tensor
    number: Tensor | None = None


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
    codes: Codes | None = None,
) -> ExpertTargets:
    """Targets of a batch.

    Areas follow ``settings.rule``, which is as tight as the store's or tighter, intersected with what is stored.

    Args:
        frames: per sample what the store's reader gives, decoded or not.
        metas: per sample the metainfo of the student's current frame: lidar2img to its unpadded image, pad_hw.
        scales: channel statistics by map, on ``device``: ``pv/LEVEL`` of every level, and ``bev`` of a stored one.
        pc_range: (x0, y0, z0, x1, y1, z1) metres of the expert's BEV map.
        settings: rule, trust threshold, exponents and geometry.
        levels: pyramid levels wanted.
        spans: per sample the boxes that span the areas in place of the expert's queries, None for all cells with trust 1.
        truth: per sample annotated boxes (n, 9), LiDAR frame, and class numbers (n,), for ``settings.geometry``.
        codes: by map, for frames with coded features.
    """
    rule, geometry = settings.rule, settings.geometry
    kept = rule.num_queries
    trusts: list[Tensor] = []
    placed: list[Tensor] = []
    anchors: list[Anchors] = []
    seen: list[Spans | None] = []
    standing: list[Spans | None] = []
    for b, frame in enumerate(frames):
        boxes = torch.from_numpy(frame["query/boxes"][:kept]).to(device)
        score = torch.from_numpy(frame["query/score"][:kept])
        trust = query_trust(score, max(settings.trust_threshold, rule.min_score), settings.trust_power)
        # areas are of the queries with trust, often few; found before a device would have to be waited for
        trusted, trust = trust.nonzero()[:, 0].to(device), trust.to(device)
        trusts.append(trust)
        placed.append(trust)
        seen.append(Spans(boxes[trusted], trust[trusted], trusted) if spans is None else spans[b])
        standing.append(seen[b])
        if geometry.asks and truth is not None:
            label = torch.from_numpy(frame["query/label"][:kept]).to(device)
            found, weight = place_queries(boxes, label, trust, truth[0][b], truth[1][b], metas[b], geometry)
            anchors.append(found)
            there = found.target[trusted]
            placed[b] = weight
            standing[b] = Spans(there if geometry.reanchor else boxes[trusted], weight[trusted], trusted)
            if geometry.pyramid:
                seen[b] = Spans(there, trust[trusted], trusted)
    bev = bev_read = None
    if schema.bev:
        height, width = schema.bev[:2]
        bev_read = stored_cells(frames, schema, "bev", height * width, device, codes)
        weights, owners = _bev_trust(standing, schema, pc_range, settings, device)
        if geometry.reanchor and anchors:
            bev = _reanchored(bev_read, scales["bev"], weights, owners, anchors, pc_range)
        else:
            bev = _at_cells(bev_read, scales["bev"], weights)
    pv = []
    for level, trust in zip(levels, _pv_trust(seen, metas, schema, settings, levels, device), strict=True):
        rows, columns = schema.pv[level][:2]
        stored = stored_cells(frames, schema, f"pv/{level}", len(schema.cameras) * rows * columns, device, codes)
        pv.append(_at_cells(stored, scales[f"pv/{level}"], trust))
    queries = {
        name: torch.from_numpy(np.stack([f[f"query/{name}"][:, :kept] for f in frames])).to(device).float()
        for name in _READ[schema.reading]
    }
    trust_of_all = torch.stack(trusts)
    return ExpertTargets(
        trust=trust_of_all,
        placed=torch.stack(placed),
        pv=pv,
        bev=bev,
        bev_read=bev_read,
        queries=queries,
        student=student_positions(queries, anchors, pc_range) if geometry.reanchor else {},
        share=torch.stack(placed).sum() / trust_of_all.sum().clamp(min=1e-6) if anchors else None,
        anchors=anchors or None,
    )


def _bev_trust(
    spans: Sequence[Spans | None],
    schema: StoreSchema,
    pc_range: Sequence[float],
    settings: DistillSettings,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """Trust inside footprints on the BEV maps, (B, H, W), 0 elsewhere; and for re-anchoring the number of the query."""
    assert schema.bev is not None
    size, maps, owners = schema.bev[:2], [], []
    for span in spans:
        owners.append(torch.zeros(size, dtype=torch.long, device=device))
        if span is None:
            maps.append(torch.ones(size, device=device))
            continue
        footprints = bev_footprints(span.boxes, pc_range, size, settings.rule.bev_margin)
        if settings.geometry.reanchor and span.number is not None and len(span.number):
            most, owner = query_weights(footprints, span.trust, settings.size_power).max(0)
            owners[-1] = span.number[owner]
            maps.append(most)
        else:
            maps.append(trust_map(footprints, span.trust, settings.size_power))
    return torch.stack(maps), torch.stack(owners)


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
            rectangles, valid = project_boxes(span.boxes, lidar2img, meta.get("view_hw", meta["pad_hw"]))
        for slot, level in enumerate(levels):
            size = schema.pv[level][:2]
            if span is None:
                whole = torch.ones(len(schema.cameras), *size, device=device)
                if "view_hw" in meta:  # what is outside a camera's own image is padding
                    own = torch.as_tensor(meta["view_hw"], device=device)[None]
                    whole = own_cells(own, size, meta["pad_hw"])[0].float()
                maps[slot].append(whole)
                continue
            rows, columns = pv_spans(
                rectangles, valid, size, meta["pad_hw"], settings.rule.pv_margin, meta.get("view_hw")
            )
            maps[slot].append(rectangle_trust(rows, columns, span.trust, settings.size_power))
    return [torch.cat(level) for level in maps]


def _at_cells(stored: StoredCells, scale: ChannelScale, trust: Tensor) -> CellTargets:
    """Targets at the stored cells where trust (N, H, W) is above 0."""
    cells = Cells((trust > 0) & (stored.row < len(stored.values)).view_as(trust))
    values = stored.values.index_select(0, stored.row[cells.index])
    return CellTargets(cells, scale.standardise_rows(values), trust.flatten()[cells.index])


def _reanchored(
    stored: StoredCells,
    scale: ChannelScale,
    weights: Tensor,
    owners: Tensor,
    anchors: Sequence[Anchors],
    pc_range: Sequence[float],
) -> CellTargets:
    """Targets at the annotations' cells; see :func:`~pipeline.distill.geometry.reanchored`."""
    mask, values = reanchored(stored.values, stored.row, weights, owners, anchors, pc_range)
    cells = Cells(mask)
    return CellTargets(cells, scale.standardise_rows(values), weights.flatten()[cells.index])
