"""BEVFormer's temporal self-attention (Li et al., 2022): a BEV map asks itself and the map before it."""

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
    softmax_of_few,
)
from ..gathering import gather


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
        """Sampled values (B, N, C)."""
        value = self.value_proj(maps.flatten(0, 1)).unflatten(-1, (self.num_heads, -1))
        offsets, weights = self._reading(maps[:, 0], posed)
        # each map is a sample of its own
        offsets = offsets.permute(0, 3, 1, 2, 4, 5).flatten(0, 1)[..., None, :, :] / per_cell(shapes, posed.device)
        weights = weights.permute(0, 3, 1, 2, 4).flatten(0, 1)[..., None, :]
        locations = references.flatten(0, 1)[:, :, None, None, None] + offsets
        return self.sampler(value, shapes, locations, weights).unflatten(0, (-1, self.num_maps)).mean(1)

    def _gather(self, posed: Tensor, maps: Tensor, references: Tensor, shapes: Shapes) -> Tensor:
        """Sampled values (B, N, C) for inference on a CPU, where the two maps are levels of one table."""
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
        """Offsets in cells (..., M, 2, P, 2) and weights (..., M, 2, P) of history and queries (..., C)."""
        joined = torch.cat([history, posed], -1)
        split = (self.num_heads, self.num_maps, self.num_points)
        offsets = self.sampling_offsets(joined).unflatten(-1, (*split, 2))
        return offsets, softmax_of_few(self.attention_weights(joined).unflatten(-1, split))
