"""BEVFormer's encoder (Li et al., 2022): temporal self-attention and spatial cross-attention over a BEV grid."""

from dataclasses import dataclass
from functools import cached_property

import torch
from mmcv.cnn.bricks.transformer import FFN
from torch import Tensor, nn

from ..attention import (
    DeformableSampler,
    Shapes,
    infers_on_cpu,
    init_projections,
    init_ring_offsets,
    per_cell,
    row_blocks,
    shapes_tensor,
    softmax_of_few,
)
from ..gathering import gather


@dataclass
class CameraHits:
    """Which BEV cells each camera sees and where; made once per frame and shared by all encoder layers.

    Attributes:
        index: (B*V, T) int64 cells seen, padded to the longest list T.
        valid: (B*V, T) False on padding.
        points: (B*V, T, D, 2) x and y of the pillar's D heights in 0..1 of the padded image.
        count: (B, N, 1) number of cameras that see a cell, at least 1.
        lengths: B*V numbers of cells seen.
    """

    index: Tensor
    valid: Tensor
    points: Tensor
    count: Tensor
    lengths: list[int]


@dataclass
class CameraTokens:
    """What BEV queries read from the cameras, with what tells cameras and levels apart; shared by all encoder layers.

    Attributes:
        levels: (B, V, C, Hl, Wl) each.
        embeddings: (V, levels, C), of the camera plus of the level, added to every cell.
    """

    levels: list[Tensor]
    embeddings: Tensor

    @property
    def shapes(self) -> Shapes:
        """Rows and columns of each level."""
        return [(level.shape[-2], level.shape[-1]) for level in self.levels]

    @cached_property
    def joined(self) -> Tensor:
        """(B*V, sum H*W, C)."""
        rows = [
            level.flatten(3).transpose(2, 3) + self.embeddings[:, i, None].to(level.dtype)
            for i, level in enumerate(self.levels)
        ]
        return torch.cat(rows, 2).flatten(0, 1)

    def project_camera(self, linear: nn.Linear, camera: int) -> tuple[Tensor, Tensor]:
        """``linear(joined[camera])`` in two parts, for inference.

        Args:
            camera: in 0..B*V.

        Returns:
            (sum H*W, C) without bias and embeddings, valid until the next call, and what they add to each level's
            cells, (levels, C).
        """
        start, view = 0, camera % len(self.embeddings)
        for level in self.levels:
            cells = level.flatten(0, 1)[camera].permute(1, 2, 0).flatten(0, 1)
            torch.mm(cells, linear.weight.T, out=self._scratch[start : start + len(cells)])
            start += len(cells)
        return self._scratch, linear(self.embeddings[view])

    @cached_property
    def _scratch(self) -> Tensor:
        """One buffer for all cameras and layers: touching fresh memory costs as much as filling it."""
        return self.levels[0].new_empty(sum(h * w for h, w in self.shapes), self.levels[0].shape[2])


def grid_points(height: int, width: int, device: torch.device) -> Tensor:
    """Centres of the BEV cells, (H*W, 2) x and y in 0..1, row-major."""
    ys = (torch.arange(height, device=device, dtype=torch.float32) + 0.5) / height
    xs = (torch.arange(width, device=device, dtype=torch.float32) + 0.5) / width
    y, x = torch.meshgrid(ys, xs, indexing="ij")
    return torch.stack([x, y], -1).flatten(0, 1)


def project_pillars(
    points: Tensor, heights: Tensor, pc_range: Tensor, lidar2img: Tensor, image_hw: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Project every cell's pillar of 3D points into every camera.

    Args:
        points: (N, 2) cell centres in 0..1.
        heights: (D,) heights in 0..1 of pc_range.
        pc_range: (6,) metres.
        lidar2img: (B, V, 4, 4) to pixels of the unpadded image.
        image_hw: rows and columns of the *padded* image; both normalise the result (as official checkpoints expect).

    Returns:
        uv (B, V, N, D, 2) in 0..1 and the mask of points strictly inside an image and in front of it (B, V, N, D).
    """
    eps = 1e-5
    num, depth = len(points), len(heights)
    unit = torch.cat([points[:, None].expand(num, depth, 2), heights[None, :, None].expand(num, depth, 1)], -1)
    metres = unit * (pc_range[3:] - pc_range[:3]) + pc_range[:3]
    homogeneous = torch.cat([metres, torch.ones_like(metres[..., :1])], -1)
    cam = torch.einsum("bvij,ndj->bvndi", lidar2img, homogeneous)
    z = cam[..., 2]
    uv = cam[..., :2] / z.clamp(min=eps)[..., None] / cam.new_tensor([image_hw[1], image_hw[0]])
    mask = (z > eps) & (uv > 0).all(-1) & (uv < 1).all(-1)
    return torch.nan_to_num(uv), mask


def camera_hits(uv: Tensor, mask: Tensor) -> CameraHits:
    """Compact the cells seen per camera, each sample of the batch by its own mask.

    Args:
        uv: (B, V, N, D, 2).
        mask: (B, V, N, D).
    """
    seen = mask.any(-1).flatten(0, 1)  # (B*V, N)
    count = mask.any(-1).sum(1).clamp(min=1)[..., None]
    # The one host sync of the encoder: the lengths of the lists.
    lengths = seen.sum(-1).tolist()
    longest = max(*lengths, 1)
    # A stable sort of "not seen" lists the seen cells first, in cell order.
    index = (~seen).to(torch.uint8).argsort(dim=-1, stable=True)[:, :longest]
    valid = seen.gather(1, index)
    points = uv.flatten(0, 1).gather(1, index[..., None, None].expand(-1, -1, *uv.shape[3:]))
    return CameraHits(index, valid, points, count, lengths)


class TemporalSelfAttention(nn.Module):
    """Deformable attention of the BEV queries to the aligned history and to themselves.

    Args:
        embed_dims: C.
        num_heads: M.
        num_points: P per head and per map.
        dropout: on the output.
    """

    num_maps = 2  # history and current

    def __init__(self, embed_dims: int = 256, num_heads: int = 8, num_points: int = 4, dropout: float = 0.1) -> None:
        super().__init__()
        self.num_heads, self.num_points = num_heads, num_points
        samples = self.num_maps * num_heads * num_points
        self.sampling_offsets = nn.Linear(embed_dims * self.num_maps, samples * 2)
        self.attention_weights = nn.Linear(embed_dims * self.num_maps, samples)
        self.value_proj = nn.Linear(embed_dims, embed_dims)
        self.output_proj = nn.Linear(embed_dims, embed_dims)
        self.dropout = nn.Dropout(dropout)
        self.sampler = DeformableSampler()

    def init_weights(self) -> None:
        """Ring offsets, uniform attention."""
        init_ring_offsets(self.sampling_offsets, self.num_heads, self.num_maps, self.num_points)
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        init_projections(self.value_proj, self.output_proj)

    def forward(self, query: Tensor, query_pos: Tensor, maps: Tensor, references: Tensor, shapes: Shapes) -> Tensor:
        """Attend.

        Args:
            query: (B, N, C).
            query_pos: (B, N, C).
            maps: (B, 2, N, C) history and current.
            references: (B, 2, N, 2) in 0..1, where to look in each map.
            shapes: of the BEV grid, one level.
        """
        attend = self._gather if infers_on_cpu(query, maps) else self._sample
        return query + self.dropout(self.output_proj(attend(query + query_pos, maps, references, shapes)))

    def _sample(self, posed: Tensor, maps: Tensor, references: Tensor, shapes: Shapes) -> Tensor:
        """(B, N, C)."""
        value = self.value_proj(maps.flatten(0, 1)).unflatten(-1, (self.num_heads, -1))
        offsets, weights = self._reading(maps[:, 0], posed)
        # each map is a sample of its own
        offsets = offsets.permute(0, 3, 1, 2, 4, 5).flatten(0, 1)[..., None, :, :] / per_cell(shapes, posed.device)
        weights = weights.permute(0, 3, 1, 2, 4).flatten(0, 1)[..., None, :]
        locations = references.flatten(0, 1)[:, :, None, None, None] + offsets
        return self.sampler(value, shapes, locations, weights).unflatten(0, (-1, self.num_maps)).mean(1)

    def _gather(self, posed: Tensor, maps: Tensor, references: Tensor, shapes: Shapes) -> Tensor:
        """The same for inference on a CPU, where the two maps are levels of one table."""
        sizes = shapes_tensor((*shapes, *shapes), posed.device)
        bias = self.value_proj.bias.expand(self.num_maps, -1).unflatten(-1, (self.num_heads, -1))
        out = torch.empty_like(posed)
        for sample, own in enumerate(maps):
            table = torch.mm(own.flatten(0, 1), self.value_proj.weight.T).unflatten(-1, (self.num_heads, -1))
            for rows in row_blocks(posed.shape[1]):
                offsets, weights = self._reading(own[0, rows], posed[sample, rows])
                starts = references[sample, :, rows].transpose(0, 1)[:, :, None]
                read = gather(table, sizes, offsets, weights / self.num_maps, references=starts, bias=bias)
                out[sample, rows] = read.flatten(1)
        return out

    def _reading(self, history: Tensor, posed: Tensor) -> tuple[Tensor, Tensor]:
        """Of (..., C) each: offsets in cells (..., M, 2, P, 2) and weights (..., M, 2, P)."""
        joined = torch.cat([history, posed], -1)
        split = (self.num_heads, self.num_maps, self.num_points)
        offsets = self.sampling_offsets(joined).unflatten(-1, (*split, 2))
        return offsets, softmax_of_few(self.attention_weights(joined).unflatten(-1, split))


class MSDeformableAttention3D(nn.Module):
    """Deformable attention into one camera's feature pyramid around the projected pillar points.

    Args:
        embed_dims: C.
        num_heads: M.
        num_levels: pyramid levels.
        num_points: P per head and level, a multiple of the pillar heights D; the height is the fastest index.
    """

    def __init__(self, embed_dims: int = 256, num_heads: int = 8, num_levels: int = 4, num_points: int = 8) -> None:
        super().__init__()
        self.num_heads, self.num_levels, self.num_points = num_heads, num_levels, num_points
        samples = num_heads * num_levels * num_points
        self.sampling_offsets = nn.Linear(embed_dims, samples * 2)
        self.attention_weights = nn.Linear(embed_dims, samples)
        self.value_proj = nn.Linear(embed_dims, embed_dims)
        self.sampler = DeformableSampler()

    def init_weights(self) -> None:
        """Ring offsets, uniform attention."""
        init_ring_offsets(self.sampling_offsets, self.num_heads, self.num_levels, self.num_points)
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        init_projections(self.value_proj)

    def forward(self, query: Tensor, tokens: CameraTokens, points: Tensor) -> Tensor:
        """Attend.

        Args:
            query: (B*V, T, C).
            points: (B*V, T, D, 2) in 0..1 of the padded image.

        Returns:
            (B*V, T, C).
        """
        value = self.value_proj(tokens.joined).unflatten(-1, (self.num_heads, -1))
        offsets, weights = self._reading(query, points.shape[2])
        locations = points[:, :, None, None, None] + offsets / per_cell(tokens.shapes, query.device)[:, None]
        return self.sampler(value, tokens.shapes, locations.flatten(4, 5), weights)

    def attend_camera(
        self, query: Tensor, tokens: CameraTokens, camera: int, cells: Tensor, points: Tensor, out: Tensor
    ) -> None:
        """For inference on a CPU: add what one camera gives to the BEV cells that see it.

        Args:
            query: (N, C) of all cells.
            camera: in 0..B*V.
            cells: (t,) numbers of the cells.
            points: (t, D, 2) in 0..1 of the padded image.
            out: (N, C) added to.
        """
        table, bias = tokens.project_camera(self.value_proj, camera)
        heads = (self.num_heads, -1)
        table, bias = table.unflatten(-1, heads), bias.unflatten(-1, heads)
        sizes = shapes_tensor(tuple(tokens.shapes), query.device)
        for rows in row_blocks(len(cells)):
            offsets, weights = self._reading(query[cells[rows]], points.shape[1])
            read = gather(table, sizes, offsets.flatten(3, 4), weights, references=points[rows, None], bias=bias)
            out.index_add_(0, cells[rows], read.flatten(1))

    def _reading(self, query: Tensor, depth: int) -> tuple[Tensor, Tensor]:
        """Of queries (..., C): offsets in cells (..., M, levels, P/D, D, 2) and weights (..., M, levels, P)."""
        heads, levels, samples = self.num_heads, self.num_levels, self.num_points
        offsets = self.sampling_offsets(query).unflatten(-1, (heads, levels, samples // depth, depth, 2))
        weights = self.attention_weights(query).unflatten(-1, (heads, levels * samples)).softmax(-1)
        return offsets, weights.unflatten(-1, (levels, samples))


class SpatialCrossAttention(nn.Module):
    """Each BEV query gathers from the cameras that see its pillar; the mean over those cameras is its update."""

    def __init__(
        self, embed_dims: int = 256, num_heads: int = 8, num_levels: int = 4, num_points: int = 8, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.deformable_attention = MSDeformableAttention3D(embed_dims, num_heads, num_levels, num_points)
        self.output_proj = nn.Linear(embed_dims, embed_dims)
        self.dropout = nn.Dropout(dropout)

    def init_weights(self) -> None:
        """Xavier output projection."""
        init_projections(self.output_proj)

    def forward(self, query: Tensor, tokens: CameraTokens, hits: CameraHits) -> Tensor:
        """query (B, N, C) -> (B, N, C)."""
        slots = self._sum_cameras(query, tokens, hits)
        return query + self.dropout(self.output_proj(slots / hits.count))

    def _sum_cameras(self, query: Tensor, tokens: CameraTokens, hits: CameraHits) -> Tensor:
        """(B, N, C)."""
        batch, num, dims = query.shape
        views = len(hits.index) // batch
        if infers_on_cpu(query, *tokens.levels):
            slots = torch.zeros_like(query)
            for camera, length in enumerate(hits.lengths):
                sample = camera // views
                self.deformable_attention.attend_camera(
                    query[sample],
                    tokens,
                    camera,
                    hits.index[camera, :length],
                    hits.points[camera, :length],
                    slots[sample],
                )
            return slots
        # numbers of the cells in the batch's concatenated maps
        samples = torch.arange(batch * views, device=query.device) // views
        cells = (hits.index + (samples * num)[:, None]).flatten()
        gathered = query.flatten(0, 1)[cells].unflatten(0, hits.index.shape)
        attended = self.deformable_attention(gathered, tokens, hits.points)
        attended = attended.masked_fill(~hits.valid[..., None], 0.0).flatten(0, 1)
        return attended.new_zeros(batch * num, dims).index_add(0, cells, attended).view(batch, num, dims)


class BEVFormerLayer(nn.Module):
    """Temporal self-attention, spatial cross-attention, feed-forward; each followed by LayerNorm."""

    attentions: nn.ModuleList
    norms: nn.ModuleList
    ffns: nn.ModuleList

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        num_levels: int,
        num_points: int,
        feedforward_channels: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.attentions = nn.ModuleList(
            [
                TemporalSelfAttention(embed_dims, num_heads, dropout=dropout),
                SpatialCrossAttention(embed_dims, num_heads, num_levels, num_points, dropout),
            ]
        )
        self.ffns = nn.ModuleList([FFN(embed_dims, feedforward_channels, ffn_drop=dropout)])
        self.norms = nn.ModuleList([nn.LayerNorm(embed_dims) for _ in range(3)])


class BEVFormerEncoder(nn.Module):
    """From camera features to a BEV map.

    Args:
        num_layers: encoder layers.
        pc_range: (x0, y0, z0, x1, y1, z1) metres.
        num_points_in_pillar: D heights, equally spaced over the z range; ``pillar_heights`` (metres) overrides them.
        shift_current: shift the current frame's reference points by the ego motion too. The FD3D release and BEVFormer
            before July 2023 did, by aliasing; needed for checkpoints that come from them.
    """

    pc_range: Tensor
    heights: Tensor

    def __init__(
        self,
        pc_range: list[float],
        num_layers: int = 6,
        embed_dims: int = 256,
        num_heads: int = 8,
        num_levels: int = 4,
        num_points: int = 8,
        num_points_in_pillar: int = 4,
        pillar_heights: list[float] | None = None,
        feedforward_channels: int = 512,
        dropout: float = 0.1,
        shift_current: bool = False,
    ) -> None:
        super().__init__()
        self.shift_current = shift_current
        self.layers = nn.ModuleList(
            BEVFormerLayer(embed_dims, num_heads, num_levels, num_points, feedforward_channels, dropout)
            for _ in range(num_layers)
        )
        self.register_buffer("pc_range", torch.tensor(pc_range), persistent=False)
        low, high = pc_range[2], pc_range[5]
        if pillar_heights is not None:
            heights = (torch.tensor(pillar_heights) - low) / (high - low)
        else:
            heights = torch.linspace(0.5, high - low - 0.5, num_points_in_pillar) / (high - low)
        self.register_buffer("heights", heights, persistent=False)

    def forward(
        self,
        bev_query: Tensor,
        bev_pos: Tensor,
        tokens: CameraTokens,
        bev_hw: tuple[int, int],
        lidar2img: Tensor,
        image_hw: tuple[int, int],
        history: Tensor | None,
        has_history: Tensor,
        shift: Tensor,
    ) -> Tensor:
        """Encode.

        Args:
            bev_query: (B, N, C).
            bev_pos: (B, N, C); enters temporal self-attention only.
            tokens: camera features with camera and level embeddings.
            lidar2img: (B, V, 4, 4).
            image_hw: of the padded image.
            history: (B, N, C) rotated to the current heading, or None.
            has_history: (B,) bool; samples without attend to their own query twice.
            shift: (B, 2) x and y of the ego motion as a fraction of the BEV extent.

        Returns:
            (B, N, C).
        """
        points = grid_points(*bev_hw, bev_query.device)
        bev_shapes = [bev_hw]
        hits = camera_hits(*project_pillars(points, self.heights, self.pc_range, lidar2img, image_hw))
        moved = points + (shift * has_history[:, None])[:, None]
        current = moved if self.shift_current else points.expand_as(moved)
        references = torch.stack([moved, current], 1)
        # With history the "current" map stays the encoder's input in every layer, without it both maps are the query.
        maps = None if history is None else torch.stack([history, bev_query], 1)
        # a GPU would have to be waited for to learn this
        mixed = maps is not None and (has_history.device.type != "cpu" or not has_history.all())
        gate = has_history[:, None, None, None]
        query = bev_query
        for layer in self.layers:
            seen = maps
            if seen is None or mixed:
                own = query[:, None].expand(-1, 2, -1, -1)
                seen = own if maps is None else torch.where(gate, maps, own)
            query = layer.norms[0](layer.attentions[0](query, bev_pos, seen, references, bev_shapes))
            query = layer.norms[1](layer.attentions[1](query, tokens, hits))
            query = layer.norms[2](layer.ffns[0](query))
        return query
