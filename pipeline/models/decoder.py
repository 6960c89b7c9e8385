"""The detection decoder that BEVFormer and DETR3D share: object queries, their cross-attention, box refinement."""

from collections.abc import Callable
from typing import Any

import torch
from mmcv.cnn.bricks.transformer import FFN, MultiheadAttention
from mmdet.models.layers.transformer import inverse_sigmoid
from torch import Tensor, nn


class DecoderLayer(nn.Module):
    """Decoder layer: self-attention, cross-attention, feed-forward; each followed by LayerNorm.

    Args:
        cross_attention: called with (query, query_pos, references, *context); adds its own residual.
    """

    def __init__(
        self,
        cross_attention: nn.Module,
        embed_dims: int = 256,
        num_heads: int = 8,
        feedforward_channels: int = 512,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self_attention = MultiheadAttention(
            embed_dims,
            num_heads,
            attn_drop=dropout,
            dropout_layer={"type": "Dropout", "drop_prob": dropout},
            batch_first=True,
        )
        self.attentions = nn.ModuleList([self_attention, cross_attention])
        self.ffns = nn.ModuleList([FFN(embed_dims, feedforward_channels, ffn_drop=dropout)])
        self.norms = nn.ModuleList([nn.LayerNorm(embed_dims) for _ in range(3)])

    def forward(self, query: Tensor, query_pos: Tensor, references: Tensor, context: tuple[Any, ...]) -> Tensor:
        """query, query_pos (B, N, C), references (B, N, 3) -> (B, N, C)."""
        query = self.norms[0](self.attentions[0](query, query_pos=query_pos))
        query = self.norms[1](self.attentions[1](query, query_pos, references, *context))
        return self.norms[2](self.ffns[0](query))


class DetectionDecoder(nn.Module):
    """Decoder layers with iterative box refinement; references are detached between layers.

    Args:
        cross_attention: makes the cross-attention of a layer from (embed_dims, num_heads, dropout).
        num_layers: decoder layers.
    """

    def __init__(
        self,
        cross_attention: Callable[[int, int, float], nn.Module],
        num_layers: int = 6,
        embed_dims: int = 256,
        num_heads: int = 8,
        feedforward_channels: int = 512,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            DecoderLayer(
                cross_attention(embed_dims, num_heads, dropout), embed_dims, num_heads, feedforward_channels, dropout
            )
            for _ in range(num_layers)
        )

    def forward(
        self,
        query: Tensor,
        query_pos: Tensor,
        references: Tensor,
        reg_branches: nn.ModuleList,
        context: tuple[Any, ...],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Decode.

        Args:
            query, query_pos: (B, N, C).
            references: (B, N, 3) in 0..1 of the point-cloud range.
            reg_branches: one per layer, (B, N, C) -> (B, N, 10).
            context: what the cross-attentions take after their references.

        Returns:
            query states (L, B, N, C), raw box branches with references added in logit space and squashed, that is
            (cx, cy, cz) in 0..1 (L, B, N, 10), and references entering each layer (L, B, N, 3).
        """
        states, codes, entered = [], [], []
        for layer, branch in zip(self.layers, reg_branches, strict=True):
            query = layer(query, query_pos, references, context)
            raw = branch(query).float()
            centre = (raw[..., [0, 1, 4]] + inverse_sigmoid(references, eps=1e-5)).sigmoid()
            states.append(query)
            codes.append(torch.cat([centre[..., :2], raw[..., 2:4], centre[..., 2:], raw[..., 5:]], -1))
            entered.append(references)
            references = centre.detach()
        return torch.stack(states), torch.stack(codes), torch.stack(entered)
