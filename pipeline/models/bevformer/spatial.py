"""BEVFormer's spatial cross-attention (Li et al., 2022): BEV cells ask the cameras that see their pillars."""

from dataclasses import dataclass
from functools import cached_property

import torch
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
)
from ..gathering import gather
from .grid import CameraHits


@dataclass
class CameraTokens:
    """Camera features with camera and level embeddings, shared by all encoder layers.

    Attributes:
        levels: (B, V, C, Hl, Wl) each.
        embeddings: (V, levels, C) camera embedding plus level embedding, added to every cell.
    """

    levels: list[Tensor]
    embeddings: Tensor

    @property
    def shapes(self) -> Shapes:
        """Rows and columns of each level."""
        return [(level.shape[-2], level.shape[-1]) for level in self.levels]

    @cached_property
    def joined(self) -> Tensor:
        """Features with embeddings, levels concatenated: (B*V, sum H*W, C)."""
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
            (sum H*W, C) without bias and embeddings, valid until the next call, and (levels, C) that bias
            and embeddings add to each level's cells.
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
        """Add one camera's contribution to the BEV cells that the camera sees, for inference on a CPU.

        Args:
            query: (N, C) of all cells.
            camera: in 0..B*V.
            cells: (t,) numbers of the cells.
            points: (t, D, 2) in 0..1 of the padded image.
            out: (N, C) sums that the contribution is added to.
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
        """Offsets in cells (..., M, levels, P/D, D, 2) and weights (..., M, levels, P) of queries (..., C)."""
        heads, levels, samples = self.num_heads, self.num_levels, self.num_points
        offsets = self.sampling_offsets(query).unflatten(-1, (heads, levels, samples // depth, depth, 2))
        weights = self.attention_weights(query).unflatten(-1, (heads, levels * samples)).softmax(-1)
        return offsets, weights.unflatten(-1, (levels, samples))


class SpatialCrossAttention(nn.Module):
    """Cross-attention of each BEV query to the cameras that see the query's pillar; the mean over the cameras is the update."""

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
        """Sum over the cameras (B, N, C)."""
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
