"""The detection decoder: self-attention among object queries, deformable attention into the BEV map, box refinement."""

import torch
from mmcv.cnn.bricks.transformer import FFN, MultiheadAttention
from mmdet.models.layers.transformer import inverse_sigmoid
from torch import Tensor, nn

from ..attention import DeformableSampler, init_projections, init_ring_offsets


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

    def forward(self, query: Tensor, query_pos: Tensor, bev: Tensor, references: Tensor, shapes: Tensor) -> Tensor:
        """query, query_pos (B, N, C); bev (B, H*W, C); references (B, N, 2) in 0..1; shapes (1, 2) -> (B, N, C)."""
        batch, num, _ = query.shape
        heads, points = self.num_heads, self.num_points
        posed = query + query_pos
        offsets = self.sampling_offsets(posed).view(batch, num, heads, 1, points, 2)
        weights = self.attention_weights(posed).view(batch, num, heads, 1, points).softmax(-1)
        locations = references[:, :, None, None, None] + offsets / shapes.flip(-1)[:, None]
        value = self.value_proj(bev).unflatten(-1, (heads, -1))
        return query + self.dropout(self.output_proj(self.sampler(value, shapes, locations, weights)))


class DecoderLayer(nn.Module):
    """Self-attention, BEV attention, feed-forward; each followed by LayerNorm."""

    def __init__(
        self, embed_dims: int, num_heads: int, num_points: int, feedforward_channels: int, dropout: float
    ) -> None:
        super().__init__()
        self.attentions = nn.ModuleList(
            [
                MultiheadAttention(
                    embed_dims,
                    num_heads,
                    attn_drop=dropout,
                    dropout_layer={"type": "Dropout", "drop_prob": dropout},
                    batch_first=True,
                ),
                BEVDeformableAttention(embed_dims, num_heads, num_points, dropout),
            ]
        )
        self.ffns = nn.ModuleList([FFN(embed_dims, feedforward_channels, ffn_drop=dropout)])
        self.norms = nn.ModuleList([nn.LayerNorm(embed_dims) for _ in range(3)])

    def forward(self, query: Tensor, query_pos: Tensor, bev: Tensor, references: Tensor, shapes: Tensor) -> Tensor:
        """Shapes as in BEVDeformableAttention."""
        query = self.norms[0](self.attentions[0](query, query_pos=query_pos))
        query = self.norms[1](self.attentions[1](query, query_pos, bev, references, shapes))
        return self.norms[2](self.ffns[0](query))


class DetectionDecoder(nn.Module):
    """Decoder layers with iterative box refinement; references are detached between layers."""

    def __init__(
        self,
        num_layers: int = 6,
        embed_dims: int = 256,
        num_heads: int = 8,
        num_points: int = 4,
        feedforward_channels: int = 512,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            DecoderLayer(embed_dims, num_heads, num_points, feedforward_channels, dropout) for _ in range(num_layers)
        )

    def forward(
        self,
        query: Tensor,
        query_pos: Tensor,
        bev: Tensor,
        references: Tensor,
        bev_hw: tuple[int, int],
        reg_branches: nn.ModuleList,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Decode.

        Args:
            query, query_pos: (B, N, C).
            bev: (B, H*W, C).
            references: (B, N, 3) in 0..1 of the point-cloud range.
            reg_branches: one per layer, (B, N, C) -> (B, N, 10).

        Returns:
            query states (L, B, N, C), raw box branches with references added in logit space and squashed, that is
            (cx, cy, cz) in 0..1 (L, B, N, 10), and references entering each layer (L, B, N, 3).
        """
        shapes = torch.tensor([bev_hw], device=bev.device)
        states, codes, entered = [], [], []
        for layer, branch in zip(self.layers, reg_branches, strict=True):
            query = layer(query, query_pos, bev, references[..., :2], shapes)
            raw = branch(query).float()
            logit = inverse_sigmoid(references, eps=1e-5)
            centre = (raw[..., [0, 1, 4]] + logit).sigmoid()
            states.append(query)
            codes.append(torch.cat([centre[..., :2], raw[..., 2:4], centre[..., 2:], raw[..., 5:]], -1))
            entered.append(references)
            references = centre.detach()
        return torch.stack(states), torch.stack(codes), torch.stack(entered)
