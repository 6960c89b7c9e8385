"""What detectors compute, in operators that ONNX has: a second forward path for export alone, equal to the first up to rounding.

The models' own path gathers whole channel vectors by compiled code, lists the cells that a camera sees, and skips what a frame
without history does not need. ONNX has no such code, and the shapes in a graph must not follow the data: here deformable
sampling is ``grid_sample``, every camera is asked for every cell of the BEV map, and masks leave out what is not seen.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.models import attention, decoder
from pipeline.models.attention import DeformableSampler, Shapes
from pipeline.models.bevformer import spatial, temporal, transformer
from pipeline.models.bevformer.encoder import BEVFormerEncoder
from pipeline.models.bevformer.grid import CameraHits, grid_points, project_pillars
from pipeline.models.bevformer.spatial import CameraTokens, SpatialCrossAttention
from pipeline.models.deform_conv import DeformConv2d
from pipeline.models.detr3d import cross_attention, queries


def sample(self: nn.Module, value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """:meth:`DeformableSampler.forward` by one ``grid_sample`` a level."""
    heads = value.shape[2]
    # a point one map's extent outside reads zero as any point further away; ONNX Runtime makes NaN of positions near infinity
    grids = locations.clamp(-1.0, 2.0) * 2 - 1
    total, start = None, 0
    for level, (rows, cols) in enumerate(shapes):
        cells = value[:, start : start + rows * cols].permute(0, 2, 3, 1)
        maps = cells.flatten(0, 1).unflatten(-1, (rows, cols))  # (B*M, C/M, H, W)
        grid, shares = (t[:, :, :, level].transpose(1, 2).flatten(0, 1) for t in (grids, weights))
        read = nn.functional.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        read = (read * shares[:, None]).sum(-1)  # (B*M, C/M, N)
        total, start = read if total is None else total + read, start + rows * cols
    assert total is not None
    return total.unflatten(0, (-1, heads)).flatten(1, 2).transpose(1, 2)


def deform(self: Any, x: Tensor) -> Tensor:
    """:meth:`DeformConv2d.forward` by one ``grid_sample`` and a matrix product a tap."""
    first, second, mask = self.conv_offset(x).chunk(3, dim=1)
    offset, mask = torch.cat((first, second), dim=1), mask.sigmoid()
    height, width = x.shape[-2:]
    out_h, out_w = mask.shape[-2:]
    kernel_h, kernel_w = self.weight.shape[2:]
    row = torch.arange(out_h, dtype=torch.float32) * self.stride[0] - self.padding[0]
    col = torch.arange(out_w, dtype=torch.float32) * self.stride[1] - self.padding[1]
    total = None
    for tap in range(kernel_h * kernel_w):
        at_row, at_col = divmod(tap, kernel_w)
        down = offset[:, 2 * tap] + (row + at_row * self.dilation[0])[:, None]
        across = offset[:, 2 * tap + 1] + (col + at_col * self.dilation[1])
        grid = torch.stack([(across * 2 + 1) / width - 1, (down * 2 + 1) / height - 1], -1).clamp(-3.0, 3.0)
        read = nn.functional.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        part = nn.functional.conv2d(read * mask[:, tap, None], self.weight[:, :, at_row, at_col, None, None])
        total = part if total is None else total + part
    assert total is not None
    return total if self.bias is None else total + self.bias[:, None, None]


def every_cell(uv: Tensor, mask: Tensor) -> CameraHits:
    """:func:`~pipeline.models.bevformer.grid.camera_hits` with every cell in every camera's list; ``valid`` says which are seen."""
    seen = mask.any(-1)
    cells = torch.arange(uv.shape[2], device=uv.device).expand(seen.shape[0] * seen.shape[1], -1)
    return CameraHits(cells, seen.flatten(0, 1), uv.flatten(0, 1), seen.sum(1).clamp(min=1)[..., None], [])


def sum_cameras(self: SpatialCrossAttention, query: Tensor, tokens: CameraTokens, hits: CameraHits) -> Tensor:
    """:meth:`SpatialCrossAttention._sum_cameras` for hits of :func:`every_cell`."""
    views = tokens.levels[0].shape[1]
    asked = query[:, None].expand(-1, views, -1, -1).flatten(0, 1)
    attended = self.deformable_attention(asked, tokens, hits.points).masked_fill(~hits.valid[..., None], 0.0)
    return attended.unflatten(0, (-1, views)).sum(1)


def encode(
    self: BEVFormerEncoder,
    bev_query: Tensor,
    bev_pos: Tensor,
    tokens: CameraTokens,
    bev_hw: tuple[int, int],
    lidar2img: Tensor,
    image_hw: tuple[int, int],
    history: Tensor,
    has_history: Tensor,
    shift: Tensor,
    view_hw: Tensor | None = None,
) -> Tensor:
    """:meth:`BEVFormerEncoder.forward` with a history always given, which ``has_history`` switches off."""
    points = grid_points(*bev_hw, bev_query.device)
    hits = every_cell(*project_pillars(points, self.heights, self.pc_range, lidar2img, image_hw, view_hw))
    moved = points + (shift * has_history[:, None])[:, None]
    references = torch.stack([moved, moved if self.shift_current else points.expand_as(moved)], 1)
    maps, gate = torch.stack([history, bev_query], 1), has_history[:, None, None, None]
    query = bev_query
    for layer in self.layers:
        seen = torch.where(gate, maps, query[:, None].expand(-1, 2, -1, -1))
        query = layer.norms[0](layer.attentions[0](query, bev_pos, seen, references, [bev_hw]))
        query = layer.norms[1](layer.attentions[1](query, tokens, hits))
        query = layer.norms[2](layer.ffns[0](query))
    return query


def rotation_grid(degrees: Tensor, size: tuple[int, int], center: tuple[float, float] | None) -> Tensor:
    """:func:`~pipeline.models.bevformer.transformer._rotation_grid` in float32: TensorRT has no float64."""
    height, width = size
    cx, cy = (0.0, 0.0) if center is None else (center[0] - width * 0.5, center[1] - height * 0.5)
    angle = (-torch.pi / 180.0) * degrees[:, None, None]
    cos, sin = angle.cos(), angle.sin()
    x = (torch.arange(width, device=degrees.device) - (width - 1) * 0.5 - cx).float()
    y = (torch.arange(height, device=degrees.device) - (height - 1) * 0.5 - cy).float()[:, None]
    read_x, read_y = cos * x + sin * y + cx, cos * y - sin * x + cy
    return torch.stack([read_x / (0.5 * width), read_y / (0.5 * height)], -1)


def ego_shift(can_bus: Tensor, pc_range: Tensor) -> Tensor:
    """:func:`~pipeline.models.bevformer.transformer.ego_shift` without the arctangent, by the sum formulas of sine and cosine."""
    dx, dy, yaw = can_bus[:, 0], can_bus[:, 1], can_bus[:, -2]
    cos, sin = yaw.cos(), yaw.sin()
    return torch.stack([sin * dx - cos * dy, cos * dx + sin * dy], -1) / (pc_range[3:5] - pc_range[:2])


def unproject(pixels: Tensor, depth: Tensor, lidar2img: Tensor) -> Tensor:
    """:func:`~pipeline.models.detr3d.queries.unproject` with the inverse of a 3x3 matrix by cross products of its rows."""
    seen = torch.cat([pixels * depth[..., None], depth[..., None]], -1) - lidar2img[..., :3, 3]
    a, b, c = lidar2img[..., :3, :3].unbind(-2)
    columns = torch.stack([_cross(b, c), _cross(c, a), _cross(a, b)], -1)
    return (columns * seen[..., None, :]).sum(-1) / (a * columns[..., 0]).sum(-1, keepdim=True)


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """Logit of x in 0..1, at most that of 1 - eps, with no clamp of a clamp: torch's optimiser of ONNX graphs breaks such pairs."""
    return torch.log(x.clamp(eps, 1.0) / (1 - x).clamp(eps, 1.0))


def _cross(a: Tensor, b: Tensor) -> Tensor:
    (x, y, z), (u, v, w) = a.unbind(-1), b.unbind(-1)
    return torch.stack([y * w - z * v, z * u - x * w, x * v - y * u], -1)


def _never(*tensors: Tensor) -> bool:
    return False


def _forget_constants() -> None:
    for constant in (attention.shapes_tensor, attention.level_starts):
        constant.cache_clear()


_STAND_INS: tuple[tuple[Any, str, Any], ...] = (
    (DeformableSampler, "forward", sample),
    (DeformConv2d, "forward", deform),
    (BEVFormerEncoder, "forward", encode),
    (SpatialCrossAttention, "_sum_cameras", sum_cameras),
    (transformer, "_rotation_grid", rotation_grid),
    (transformer, "ego_shift", ego_shift),
    (queries, "unproject", unproject),
    (decoder, "inverse_sigmoid", inverse_sigmoid),
    (cross_attention, "inverse_sigmoid", inverse_sigmoid),
    *((module, "infers_on_cpu", _never) for module in (attention, spatial, temporal)),
)


@contextmanager
def standard_operators() -> Iterator[None]:
    """Let this project's detectors compute in operators that ONNX has; for one thread, since classes are changed meanwhile."""
    originals = [getattr(owner, name) for owner, name, _ in _STAND_INS]
    _forget_constants()
    try:
        for owner, name, stand_in in _STAND_INS:
            setattr(owner, name, stand_in)
        yield
    finally:
        _forget_constants()  # those of a trace are tensors without numbers
        for (owner, name, _), original in zip(_STAND_INS, originals, strict=True):
            setattr(owner, name, original)
