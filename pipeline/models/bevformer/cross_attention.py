"""Cross-attention of BEVFormer's object queries to the BEV map."""

from torch import Tensor, nn

from ..attention import DeformableSampler, Shapes, init_projections, init_ring_offsets, per_cell


class BEVDeformableAttention(nn.Module):
    """Deformable attention of object queries into one BEV map (Zhu et al., 2021, with one level)."""

    def __init__(self, embed_dims: int = 256, num_heads: int = 8, num_points: int = 4, dropout: float = 0.1) -> None:
        super().__init__()
        self.num_heads, self.num_points = num_heads, num_points
        self.sampling_offsets = nn.Linear(embed_dims, num_heads * num_points * 2)
        self.attention_weights = nn.Linear(embed_dims, num_heads * num_points)
        self.value_proj = nn.Linear(embed_dims, embed_dims)
        self.output_proj = nn.Linear(embed_dims, embed_dims)
        self.dropout = nn.Dropout(dropout)
        self.sampler = DeformableSampler()

    def init_weights(self) -> None:
        """Ring offsets, uniform attention."""
        init_ring_offsets(self.sampling_offsets, self.num_heads, 1, self.num_points)
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        init_projections(self.value_proj, self.output_proj)

    def forward(self, query: Tensor, query_pos: Tensor, references: Tensor, bev: Tensor, shapes: Shapes) -> Tensor:
        """query, query_pos (B, N, C); references (B, N, 3) in 0..1; bev (B, H*W, C), shapes of its one level -> (B, N, C)."""
        batch, num, _ = query.shape
        heads, points = self.num_heads, self.num_points
        posed = query + query_pos
        offsets = self.sampling_offsets(posed).view(batch, num, heads, 1, points, 2)
        weights = self.attention_weights(posed).view(batch, num, heads, 1, points).softmax(-1)
        locations = references[:, :, None, None, None, :2] + offsets / per_cell(shapes, bev.device)
        value = self.value_proj(bev).unflatten(-1, (heads, -1))
        return query + self.dropout(self.output_proj(self.sampler(value, shapes, locations, weights)))
