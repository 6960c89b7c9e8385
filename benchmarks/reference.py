"""The forward pass the way the official BEVFormer and DETR3D repositories compute it, on a detector of ours.

A yardstick for speed and an independent check of numbers: the same parameters, but images in NCHW, batch normalisation
unfused, mmcv's own deformable operators, per-camera query lists made anew in every encoder layer, box branches run once
in the decoder and once more in the head. One frame at a time.
"""

import copy
from collections.abc import Callable
from types import MethodType
from typing import Any

import numpy as np
import torch
from mmcv.ops import ModulatedDeformConv2dPack
from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction, multi_scale_deformable_attn_pytorch
from mmdet.models.layers.transformer import inverse_sigmoid
from torch import Tensor, nn

from pipeline.models.bevformer.transformer import rotate_bev

CrossAttention = Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]


class Reference:
    """The official forward pass of a detector; the detector itself stays as it is.

    Args:
        model: a BEVFormer with learned queries or a DETR3D as built, in evaluation mode; not folded, not converted to
            another memory format.
    """

    def __init__(self, model: nn.Module) -> None:
        # typed as Any: the parts are read attribute by attribute, which torch types as "Tensor | Module"
        parts: Any = model
        self.neck, self.head = parts.img_neck, parts.pts_bbox_head
        self.backbone = with_official_dcn(parts.img_backbone)
        self.pc_range: list[float] = self.head.pc_range.tolist()

    @torch.no_grad()
    def __call__(
        self, img: Tensor, frames: list[dict[str, Any]], history: Tensor | None, mark: Callable[[str], None]
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        """Detect on one frame.

        Args:
            img: (1, V, 3, H, W) normalised.
            frames: metainfo of the frame: lidar2img (V, 4, 4), can_bus (18,), pad_hw.
            history: (1, H*W, C) BEV map of the previous frame, or None.
            mark: called with a part's name when it is done.

        Returns:
            BEV map (1, H*W, C), None for DETR3D; logits (L, 1, N, classes); box code (L, 1, N, 10) in metres.
        """
        (frame,) = frames
        outputs = self.backbone(img[0])
        mark("backbone")
        levels = self.neck(outputs)
        mark("neck")
        if not hasattr(self.head, "bev_embedding"):
            logits, code = self._decode(lambda *args: self._read_cameras(levels, frame, *args))
            mark("head")
            return None, logits, code
        bev = self._encode(levels, frame, history)
        mark("encoder")
        shapes = torch.tensor([[self.head.bev_h, self.head.bev_w]], device=bev.device)
        logits, code = self._decode(lambda *args: read_bev(bev, shapes, *args))
        mark("head")
        return bev, logits, code

    def _encode(self, levels: list[Tensor], frame: dict[str, Any], history: Tensor | None) -> Tensor:
        """Levels (V, C, Hl, Wl) to a BEV map (1, H*W, C)."""
        head, transformer, encoder = self.head, self.head.transformer, self.head.transformer.encoder
        height, width = head.bev_h, head.bev_w
        query = head.bev_embedding.weight[None]
        pos = head.positional_encoding(query.new_zeros(1, height, width)).flatten(2).transpose(1, 2)
        can_bus = np.asarray(frame["can_bus"])
        shift = query.new_tensor(self._shift(can_bus))
        if history is not None:
            # Shared with ours: nearest neighbour turns the last bit of another way of rounding into other cells.
            maps = history.transpose(1, 2).unflatten(-1, (height, width))
            degrees = maps.new_tensor(can_bus[-1:])
            maps = rotate_bev(maps, degrees, transformer.rotate_center, transformer.rotate_mode)
            history = maps.flatten(2).transpose(1, 2)
        query = query + transformer.can_bus_mlp(query.new_tensor(can_bus)[None])[:, None]

        tokens = []
        for number, level in enumerate(levels):
            token = level.flatten(2).transpose(1, 2) + transformer.cams_embeds[:, None]
            tokens.append(token + transformer.level_embeds[number])
        value = torch.cat(tokens, 1)
        shapes = torch.tensor([level.shape[-2:] for level in levels], device=query.device)
        bev_shapes = shapes.new_tensor([[height, width]])

        cells = bev_cells(height, width, query.device)
        points, mask = self._project_pillars(cells, frame)
        moved = cells + shift if history is not None else cells
        current = moved if encoder.shift_current else cells
        references = torch.stack([moved, current])
        maps = None if history is None else torch.cat([history, query])
        for layer in encoder.layers:
            temporal, spatial = layer.attentions
            query = layer.norms[0](temporal_self_attention(temporal, query, pos, maps, references, bev_shapes))
            query = layer.norms[1](spatial_cross_attention(spatial, query, value, points, mask, shapes))
            query = layer.norms[2](layer.ffns[0](query))
        return query

    def _shift(self, can_bus: np.ndarray) -> np.ndarray:
        """(2,) x and y of the ego motion as a fraction of the BEV extent."""
        low_x, low_y, _, high_x, high_y, _ = self.pc_range
        angle = can_bus[-2] - np.arctan2(can_bus[1], can_bus[0])
        length = np.hypot(can_bus[0], can_bus[1])
        return length * np.array([np.sin(angle) / (high_x - low_x), np.cos(angle) / (high_y - low_y)])

    def _project_pillars(self, cells: Tensor, frame: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Cells (N, 2) in 0..1 to image points (V, N, D, 2) in 0..1 and what is in an image (V, N, D)."""
        heights = self.head.transformer.encoder.heights
        unit = torch.cat(
            [
                cells[None].expand(len(heights), -1, -1),
                heights[:, None, None].expand(-1, len(cells), 1),
            ],
            -1,
        )
        points, visible = self._project(unit[:, None], frame)  # (D, V, N, .)
        return points.permute(1, 2, 0, 3), visible.permute(1, 2, 0)

    def _project(self, unit: Tensor, frame: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Points (..., 1, N, 3) in 0..1 of the range to every camera: (..., V, N, 2) in 0..1, in the image (..., V, N)."""
        eps = 1e-5
        points = unit.clone()
        for axis in range(3):
            low, high = self.pc_range[axis], self.pc_range[axis + 3]
            points[..., axis] = points[..., axis] * (high - low) + low
        points = torch.cat([points, torch.ones_like(points[..., :1])], -1)
        lidar2img = points.new_tensor(np.asarray(frame["lidar2img"]))
        views, num = len(lidar2img), points.shape[-2]
        # One matrix per point, as the official code has it: the memory is part of what it costs.
        outer = points.shape[:-3]
        matrices = lidar2img[:, None].repeat(*outer, 1, num, 1, 1)
        points = points.repeat(*[1] * len(outer), views, 1, 1)
        seen = torch.matmul(matrices, points[..., None])[..., 0]
        depth = seen[..., 2:3]
        uv = seen[..., :2] / torch.maximum(depth, torch.full_like(depth, eps))
        uv[..., 0] /= frame["pad_hw"][1]
        uv[..., 1] /= frame["pad_hw"][0]
        visible = (depth[..., 0] > eps) & (uv > 0).all(-1) & (uv < 1).all(-1)
        return uv, visible

    def _decode(self, cross: CrossAttention) -> tuple[Tensor, Tensor]:
        """Object queries through the decoder: logits (L, 1, N, classes) and box code (L, 1, N, 10) in metres."""
        head, transformer = self.head, self.head.transformer
        pos, query = head.query_embedding.weight[:, None].chunk(2, -1)  # (N, 1, C), as nn.MultiheadAttention takes them
        references = transformer.reference_points(pos.transpose(0, 1)).sigmoid()
        states, entered = [], []
        for layer, branch in zip(transformer.decoder.layers, head.reg_branches, strict=True):
            self_attention, cross_attention = layer.attentions
            posed = query + pos
            query = layer.norms[0](query + self_attention.attn(posed, posed, query)[0])
            query = layer.norms[1](cross(cross_attention, query, pos, references))
            query = layer.norms[2](layer.ffns[0](query))
            states.append(query.transpose(0, 1))
            entered.append(references)
            raw = branch(states[-1])
            references = (raw[..., [0, 1, 4]] + inverse_sigmoid(references, eps=1e-5)).sigmoid()
        logits, codes = [], []
        for number, state in enumerate(states):
            logits.append(head.cls_branches[number](state))
            code = head.reg_branches[number](state)
            centre = (code[..., [0, 1, 4]] + inverse_sigmoid(entered[number], eps=1e-5)).sigmoid()
            for axis, column in enumerate((0, 1, 4)):
                low, high = self.pc_range[axis], self.pc_range[axis + 3]
                code[..., column] = centre[..., axis] * (high - low) + low
            codes.append(code)
        return torch.stack(logits), torch.stack(codes)

    def _read_cameras(
        self,
        levels: list[Tensor],
        frame: dict[str, Any],
        attention: nn.Module,
        query: Tensor,
        pos: Tensor,
        references: Tensor,
    ) -> Tensor:
        """DETR3D's cross-attention: levels (V, C, Hl, Wl); query, pos (N, 1, C); references (1, N, 3) in 0..1."""
        num, views = len(query), len(levels[0])
        uv, visible = self._project(references, frame)
        grid = (uv * 2 - 1)[:, :, None]  # (V, N, 1, 2): every point a row
        read = [nn.functional.grid_sample(level, grid, align_corners=False) for level in levels]
        sampled = torch.stack([r[..., 0].permute(1, 2, 0) for r in read], -1)  # (C, N, V, levels)
        weights = attention.attention_weights(query + pos).view(num, views, len(levels)).sigmoid()
        weights = weights * visible.transpose(0, 1)[..., None]
        update = (torch.nan_to_num(sampled) * weights).sum(-1).sum(-1).transpose(0, 1)[:, None]
        position = attention.position_encoder(inverse_sigmoid(references, eps=1e-5)).transpose(0, 1)
        return attention.output_proj(update) + query + position


def with_official_dcn(backbone: nn.Module) -> nn.Module:
    """A copy of a backbone on the same tensors, its deformable convolutions run by mmcv's layer."""
    tensors = [*backbone.parameters(), *backbone.buffers()]
    copied = copy.deepcopy(backbone, {id(tensor): tensor for tensor in tensors})
    for module in copied.modules():
        if hasattr(module, "conv_offset"):
            module.forward = MethodType(ModulatedDeformConv2dPack.forward, module)
    return copied


def bev_cells(height: int, width: int, device: torch.device) -> Tensor:
    """Centres of BEV cells, (H*W, 2) x and y in 0..1."""
    ys = torch.linspace(0.5, height - 0.5, height, device=device) / height
    xs = torch.linspace(0.5, width - 0.5, width, device=device) / width
    y, x = torch.meshgrid(ys, xs, indexing="ij")
    return torch.stack([x.reshape(-1), y.reshape(-1)], -1)


def sample(value: Tensor, shapes: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    """Deformable attention by mmcv: its operator on a GPU, grid_sample per level elsewhere.

    value (B, sum H*W, M, C/M), shapes (levels, 2), locations (B, N, M, levels, P, 2) and weights (B, N, M, levels, P)
    to (B, N, C).
    """
    if value.is_cuda:
        starts = torch.cat([shapes.new_zeros(1), shapes.prod(1).cumsum(0)[:-1]])
        return MultiScaleDeformableAttnFunction.apply(value, shapes, starts, locations, weights, 64)
    return multi_scale_deformable_attn_pytorch(value, shapes, locations, weights)


def temporal_self_attention(
    attention: nn.Module, query: Tensor, pos: Tensor, maps: Tensor | None, references: Tensor, shapes: Tensor
) -> Tensor:
    """query, pos (1, N, C); maps (2, N, C), history and current, None for the query twice; references (2, N, 2)."""
    _, num, dims = query.shape
    heads = attention.num_heads
    maps = torch.cat([query, query]) if maps is None else maps
    joined = torch.cat([maps[:1], query + pos], -1)
    value = attention.value_proj(maps).view(2, num, heads, -1)
    offsets = attention.sampling_offsets(joined).view(num, heads, 2, 1, -1, 2)
    weights = attention.attention_weights(joined).view(num, heads, 2, 1, -1).softmax(-1)
    offsets = offsets.permute(2, 0, 1, 3, 4, 5).contiguous()
    weights = weights.permute(2, 0, 1, 3, 4).contiguous()
    locations = references[:, :, None, None, None] + offsets / shapes.flip(-1)[:, None]
    fused = sample(value, shapes, locations, weights).permute(1, 2, 0).view(num, dims, 1, 2).mean(-1)
    return attention.output_proj(fused.permute(2, 0, 1)) + query


def spatial_cross_attention(
    attention: Any, query: Tensor, value: Tensor, points: Tensor, mask: Tensor, shapes: Tensor
) -> Tensor:
    """query (1, N, C), value (V, sum H*W, C), points (V, N, D, 2) and mask (V, N, D) of the projected pillars."""
    lists = [camera.sum(-1).nonzero().squeeze(-1) for camera in mask]
    views, longest = len(lists), max(len(index) for index in lists)
    queries = query.new_zeros(views, longest, query.shape[-1])
    aims = points.new_zeros(views, longest, *points.shape[2:])
    for view, index in enumerate(lists):
        queries[view, : len(index)] = query[0, index]
        aims[view, : len(index)] = points[view, index]
    attended = pillar_attention(attention.deformable_attention, queries, value, aims, shapes)
    slots = torch.zeros_like(query)
    for view, index in enumerate(lists):
        slots[0, index] += attended[view, : len(index)]
    count = (mask.sum(-1) > 0).sum(0).clamp(min=1)
    return attention.output_proj(slots / count[:, None]) + query


def pillar_attention(attention: nn.Module, query: Tensor, value: Tensor, points: Tensor, shapes: Tensor) -> Tensor:
    """query (V, T, C), value (V, sum H*W, C), points (V, T, D, 2), of which D is the fastest sample index."""
    views, num, _ = query.shape
    heads, levels, depth = attention.num_heads, len(shapes), points.shape[2]
    value = attention.value_proj(value).view(views, -1, heads, query.shape[-1] // heads)
    offsets = attention.sampling_offsets(query).view(views, num, heads, levels, -1, depth, 2)
    weights = attention.attention_weights(query).view(views, num, heads, -1).softmax(-1)
    locations = points[:, :, None, None, None] + offsets / shapes.flip(-1)[:, None, None]
    return sample(value, shapes, locations.flatten(4, 5), weights.view(views, num, heads, levels, -1))


def read_bev(
    bev: Tensor, shapes: Tensor, attention: nn.Module, query: Tensor, pos: Tensor, references: Tensor
) -> Tensor:
    """BEVFormer's decoder cross-attention: bev (1, H*W, C); query, pos (N, 1, C); references (1, N, 3) in 0..1."""
    num, heads = len(query), attention.num_heads
    posed = (query + pos).transpose(0, 1)
    value = attention.value_proj(bev).view(1, bev.shape[1], heads, -1)
    offsets = attention.sampling_offsets(posed).view(1, num, heads, 1, -1, 2)
    weights = attention.attention_weights(posed).view(1, num, heads, -1).softmax(-1)
    locations = references[:, :, None, None, None, :2] + offsets / shapes.flip(-1)[:, None]
    read = attention.output_proj(sample(value, shapes, locations, weights.unsqueeze(3)))
    return read.transpose(0, 1) + query
