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
from pipeline.models.depth_error import (
    Displaced,
    draw_errors,
    find_objects,
    log_factors_of,
    move_objects,
    move_radially,
)
from pipeline.models.detector import MultiCameraDetector
from pipeline.models.query_head import HeadOutput

DEPTH_PER = ("frame", "object")
"""What one drawn depth error is for."""


@dataclass(frozen=True)
class Corruption:
    """Entry ``corruption`` of a detector's config. Every draw follows from the seed and the frame's token alone."""

    noise: float = 0.0
    """Standard deviation of Gaussian noise on the pyramid and the BEV map, in units of each channel's own in the frame."""
    depth: float = 0.0
    """Relative error of depth: standard deviation of a frame's factor around 1, or of the logarithm of an object's factor."""
    depth_per: str = "frame"
    """``frame``: one factor for everything in a frame, see :meth:`factor`. ``object``: a factor for each object in a frame, see
    :meth:`displaced`."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("noise", "depth"):
            if getattr(self, name) < 0:
                raise FD3DError(f"corruption.{name} is {getattr(self, name)}; it must not be negative")
        if self.depth_per not in DEPTH_PER:
            raise FD3DError(f"corruption.depth_per is {self.depth_per!r}; use {' or '.join(DEPTH_PER)}")

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
                f"the config's corruption cannot be read ({error}); it has noise, depth, depth_per and seed"
            ) from error

    def generator(self, token: str, what: str) -> torch.Generator:
        """Random generator on the CPU, so that every device draws the same."""
        digest = hashlib.sha256(f"{self.seed} {token} {what}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))

    def factor(self, token: str) -> float:
        """Factor by which everything in a frame lies too far away: from N(1, depth), at least 0.1."""
        return max(1 + self.depth * torch.randn((), generator=self.generator(token, "depth")).item(), 0.1)

    def displaced(self, token: str, boxes: Tensor, scores: Tensor, pc_range: Tensor) -> Displaced:
        """Objects among a frame's boxes (n, 9) in the order of their scores (n,), each with its error.

        An object's log factor is from N(0, depth), for each frame anew, see :func:`~pipeline.models.depth_error.draw_errors`.
        """
        boxes = find_objects(boxes, scores)
        return Displaced(boxes, draw_errors(boxes[:, :2], self.depth, self.generator(token, "depth/object"), pc_range))

    def noisy(self, maps: Tensor, token: str, what: str) -> Tensor:
        """A frame's map (..., C, H, W) or maps (V, C, H, W) with noise; the deviation of a channel is over all of them."""
        others = [i for i in range(maps.dim()) if i != maps.dim() - 3]
        spread = maps.float().std(others, keepdim=True, correction=0)
        drawn = torch.randn(maps.shape, generator=self.generator(token, what)).to(maps.device)
        return (maps + self.noise * spread * drawn).to(maps.dtype)


def corrupt(model: nn.Module, corruption: Corruption) -> None:
    """Make a detector worse, in place, by forward hooks.

    - Noise is added to the pyramid, which an encoder reads as well, and to the BEV map that the head reads.
    - A wrong depth moves the BEV map that the head reads; its decoder finds boxes, references and sampling positions there.
      Of a detector without a BEV map the head's boxes and references are moved: what its queries sampled stays.
    - The objects of a depth error per object are those that the head finds on the unmoved map, or, without a BEV map, those that it
      predicts. All queries of an object have the object's factor, other queries one in between.
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

    def displaced(out: HeadOutput, tokens: list[str]) -> list[Displaced]:
        return [
            corruption.displaced(token, boxes, scores, head.pc_range)
            for token, (boxes, scores, *_) in zip(tokens, head.decode(out), strict=True)
        ]

    def bev(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        def one(cells: Tensor, token: str) -> Tensor:  # (1, H*W, C)
            maps = cells[0].T.unflatten(-1, head.bev_hw)
            if corruption.depth and corruption.depth_per == "object":
                with torch.no_grad():
                    unmoved = head.forward(cells)  # head(cells) would call this hook
                [objects] = displaced(unmoved, [token])
                maps = move_objects(maps, objects, head.pc_range)
            elif corruption.depth:
                maps = move_radially(maps, corruption.factor(token), head.pc_range)
            if corruption.noise:
                maps = corruption.noisy(maps, token, "bev")
            return maps.flatten(1).T[None]

        return _per_frame(args[0], tokens, one), *args[1:]

    def factors(out: HeadOutput) -> Tensor:  # (B, N), or (B, 1) for a whole frame
        if corruption.depth_per == "frame":
            return out.code.new_tensor([corruption.factor(token) for token in tokens])[:, None]
        centres = out.code[-1, ..., :2].float()
        found = zip(centres, displaced(out, tokens), strict=True)
        return torch.stack([log_factors_of(*frame) for frame in found]).exp().to(out.code.dtype)

    def boxes(module: nn.Module, args: tuple[Any, ...], out: HeadOutput) -> HeadOutput:
        factor = factors(out)
        scale = torch.stack([factor, factor, torch.ones_like(factor)], -1)
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
