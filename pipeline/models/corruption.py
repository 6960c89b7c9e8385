"""Experts made worse on purpose, for measuring what distillation gains from experts of any quality.

The features are changed inside the detector, between the module that makes them and those that read them. What is read
from outside (stage 1) and what the detector predicts (evaluation) is therefore the same worse expert.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import FD3DError
from pipeline.models.boxes import to_metres, to_unit
from pipeline.models.detector import MultiCameraDetector
from pipeline.models.query_head import HeadOutput


@dataclass(frozen=True)
class Corruption:
    """Entry ``corruption`` of a detector's config. Every draw follows from the seed and the frame's token alone."""

    noise: float = 0.0
    """Standard deviation of Gaussian noise on the pyramid and the BEV map, in units of each channel's own in the frame."""
    depth: float = 0.0
    """Relative error of depth: standard deviation of a frame's factor around 1, see :meth:`factor`."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("noise", "depth"):
            if getattr(self, name) < 0:
                raise FD3DError(f"corruption.{name} is {getattr(self, name)}; it must not be negative")

    @classmethod
    def from_config(cls, settings: dict[str, Any]) -> "Corruption":
        """Corruption from a config's entry.

        Raises:
            FD3DError: an unknown setting.
        """
        try:
            return cls(**settings)
        except TypeError as error:
            raise FD3DError(
                f"the config's corruption cannot be read ({error}); it has noise, depth and seed"
            ) from error

    def generator(self, token: str, what: str) -> torch.Generator:
        """Random generator on the CPU, so that every device draws the same."""
        digest = hashlib.sha256(f"{self.seed} {token} {what}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))

    def factor(self, token: str) -> float:
        """Factor by which everything in a frame lies too far away: from N(1, depth), at least 0.1."""
        return max(1 + self.depth * torch.randn((), generator=self.generator(token, "depth")).item(), 0.1)

    def noisy(self, maps: Tensor, token: str, what: str) -> Tensor:
        """A frame's map (..., C, H, W) or maps (V, C, H, W) with noise; the deviation of a channel is over all of them."""
        others = [i for i in range(maps.dim()) if i != maps.dim() - 3]
        spread = maps.float().std(others, keepdim=True, correction=0)
        drawn = torch.randn(maps.shape, generator=self.generator(token, what)).to(maps.device)
        return (maps + self.noise * spread * drawn).to(maps.dtype)


def move_radially(bev: Tensor, factor: float, pc_range: Tensor) -> Tensor:
    """Move a BEV map's content away from the LiDAR; what was beyond the map is zero.

    Args:
        bev: (C, H, W), row = y, column = x, over ``pc_range``.
        factor: factor on every cell's distance.
        pc_range: (x0, y0, z0, x1, y1, z1) metres.
    """
    height, width = bev.shape[-2:]
    low, extent = pc_range[:2], pc_range[3:5] - pc_range[:2]
    x, y = ((torch.arange(n, device=bev.device) + 0.5) / n for n in (width, height))
    target = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1) * extent + low  # (H, W, 2) metres
    grid = (target / factor - low) / extent * 2 - 1
    moved = nn.functional.grid_sample(bev[None].float(), grid[None], padding_mode="zeros", align_corners=False)
    return moved[0].to(bev.dtype)


def corrupt(model: nn.Module, corruption: Corruption) -> None:
    """Make a detector worse, in place, by forward hooks.

    - Noise is added to the pyramid, which an encoder reads as well, and to the BEV map that the head reads.
    - A wrong depth moves the BEV map that the head reads; its decoder finds boxes, references and sampling positions there.
      Of a detector without a BEV map the head's boxes and references are moved: what its queries sampled stays.
    - The history that a BEV encoder reads is neither moved nor has it the map's noise: errors do not add up over a scene.

    Args:
        model: one of this project's detectors, in evaluation mode; its preprocessor is called before each prediction.

    Raises:
        FD3DError: the model is another detector.
    """
    if not isinstance(model, MultiCameraDetector):
        raise FD3DError(f"corruption is for this project's detectors, not for {type(model).__name__}; leave it out")
    head = model.pts_bbox_head
    tokens: list[str] = []

    def note(module: nn.Module, args: tuple[Any, ...], batch: dict[str, Any]) -> None:
        tokens[:] = [sample.token for sample in batch["data_samples"]]

    def pyramid(module: nn.Module, args: tuple[Any, ...], levels: Any) -> list[Tensor]:
        changes = [partial(corruption.noisy, what=f"pv/{i}") for i in range(len(levels))]
        return [_per_frame(level, tokens, change) for level, change in zip(levels, changes, strict=True)]

    def bev(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        def one(cells: Tensor, token: str) -> Tensor:  # (1, H*W, C)
            maps = cells[0].T.unflatten(-1, head.bev_hw)
            if corruption.depth:
                maps = move_radially(maps, corruption.factor(token), head.pc_range)
            if corruption.noise:
                maps = corruption.noisy(maps, token, "bev")
            return maps.flatten(1).T[None]

        return _per_frame(args[0], tokens, one), *args[1:]

    def boxes(module: nn.Module, args: tuple[Any, ...], out: HeadOutput) -> HeadOutput:
        scale = out.code.new_ones(len(tokens), 1, 3)
        scale[..., :2] = out.code.new_tensor([corruption.factor(token) for token in tokens])[:, None, None]
        points = to_metres(out.references, head.pc_range) * scale
        centre = out.code[..., :2] * scale[..., :2]
        return replace(out, code=torch.cat([centre, out.code[..., 2:]], -1), references=to_unit(points, head.pc_range))

    model.data_preprocessor.register_forward_hook(note)
    if corruption.noise:
        model.img_neck.register_forward_hook(pyramid)
    if hasattr(head, "bev_hw"):
        head.register_forward_pre_hook(bev)
    elif corruption.depth:
        head.register_forward_hook(boxes)


def _per_frame(batch: Tensor, tokens: list[str], change: Callable[[Tensor, str], Tensor]) -> Tensor:
    """Change each frame's equal part of a batch (B*n, ...)."""
    parts = batch.unflatten(0, (len(tokens), -1))
    return torch.cat([change(part, token) for part, token in zip(parts, tokens, strict=True)])
