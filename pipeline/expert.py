"""The expert seen from outside: a detector run frame by frame, with what distillation needs tapped by module path."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from mmdet3d.structures import Det3DDataSample
from torch import Tensor, nn

from pipeline.errors import FD3DError
from pipeline.models.boxes import decode_boxes


@dataclass(frozen=True)
class TapPaths:
    """Module paths inside the expert; ``*`` stands for the decoder layer's number."""

    pv: str = "img_neck"
    """Returns the pyramid, levels of (B*V, C, H, W)."""
    bev: str = "pts_bbox_head.transformer.encoder"
    """Returns the BEV map (B, H*W, C)."""
    head: str = "pts_bbox_head"
    """Returns logits, code, states and references of every decoder layer."""
    sampler: str = "pts_bbox_head.transformer.decoder.layers.*.attentions.1.sampler"
    """Takes (value, shapes, locations, weights): where the object queries look."""
    value_proj: str = "pts_bbox_head.transformer.decoder.layers.*.attentions.1.value_proj"
    """The linear projection of BEV features that the queries of a layer read."""


@dataclass
class ExpertFrame:
    """What the expert made of one frame, on its device.

    Attributes:
        bev: (C, H, W).
        pv: levels of (V, C, Hl, Wl).
        boxes: (K, 9) LiDAR frame; best score first.
        score: (K,) of the best class.
        label: (K,).
        reference: (K, 3) in 0..1, entering the last decoder layer.
        features: (K, C) query states of the last layer.
        sampling: (L, K, M, P, 2) x, y in 0..1 of the BEV extent.
        attention: (L, K, M, P).
    """

    bev: Tensor
    pv: list[Tensor]
    boxes: Tensor
    score: Tensor
    label: Tensor
    reference: Tensor
    features: Tensor
    sampling: Tensor
    attention: Tensor


@dataclass
class TappedExpert:
    """A frozen detector with hooks at its taps.

    Args:
        model: a built detector in evaluation mode that streams a scene's frames in order.
        bev_hw: rows and columns of its BEV grid.
        num_queries: K best queries kept.
        paths: where the taps are.
        autocast: ``bf16`` or ``fp16`` on a GPU, None for float32.
    """

    model: nn.Module
    bev_hw: tuple[int, int]
    num_queries: int
    paths: TapPaths = field(default_factory=TapPaths)
    autocast: str | None = None

    def __post_init__(self) -> None:
        self.layers = self._count_layers()
        if self.autocast not in (None, "bf16", "fp16"):
            raise FD3DError(f"autocast is '{self.autocast}'; use bf16, fp16 or leave it out")
        self.device = next(self.model.parameters()).device

    def _module(self, path: str) -> nn.Module:
        try:
            return self.model.get_submodule(path)
        except AttributeError as error:
            raise FD3DError(f"the expert has no module '{path}'; give the tap's path in the dump settings") from error

    def _count_layers(self) -> int:
        parent = self._module(self.paths.sampler.split(".*")[0])
        return len(list(parent.children()))

    def value_projections(self) -> tuple[Tensor, Tensor]:
        """Weights (L, C, C) and biases (L, C) of the queries' value projections, float32 on the CPU."""
        linears = [self._module(self.paths.value_proj.replace("*", str(i))) for i in range(self.layers)]
        weight = torch.stack([linear.weight.detach().float().cpu() for linear in linears])
        return weight, torch.stack([linear.bias.detach().float().cpu() for linear in linears])

    @contextmanager
    def _tapped(self) -> Iterator[dict[str, Any]]:
        seen: dict[str, Any] = {"sampler": {}}

        def keep(name: str) -> Any:
            return lambda module, args, output: seen.__setitem__(name, output)

        def keep_sampling(layer: int) -> Any:
            return lambda module, args: seen["sampler"].__setitem__(layer, args[2:4])

        hooks = [
            self._module(getattr(self.paths, name)).register_forward_hook(keep(name)) for name in ("pv", "bev", "head")
        ]
        for i in range(self.layers):
            sampler = self._module(self.paths.sampler.replace("*", str(i)))
            hooks.append(sampler.register_forward_pre_hook(keep_sampling(i)))
        try:
            yield seen
        finally:
            for hook in hooks:
                hook.remove()

    @torch.no_grad()
    def run(self, batch: dict[str, Any]) -> tuple[list[ExpertFrame], list[Det3DDataSample]]:
        """One streamed step: a collated batch of the next frame of B different scenes."""
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, None: None}[self.autocast]
        context = torch.autocast(self.device.type, dtype) if dtype else nullcontext()
        with self._tapped() as seen, context:
            batch = self.model.data_preprocessor(batch)
            samples = self.model.predict(**batch)
        return [self._frame(seen, b, len(samples)) for b in range(len(samples))], samples

    def _frame(self, seen: dict[str, Any], b: int, batch: int) -> ExpertFrame:
        head = seen["head"]
        score, label = head.logits[-1, b].float().sigmoid().max(-1)
        score, kept = score.topk(min(self.num_queries, len(score)))
        sampling = torch.stack([seen["sampler"][i][0][b, kept, :, 0] for i in range(self.layers)])
        attention = torch.stack([seen["sampler"][i][1][b, kept, :, 0] for i in range(self.layers)])
        return ExpertFrame(
            bev=seen["bev"][b].transpose(0, 1).unflatten(-1, self.bev_hw).float(),
            pv=[level.unflatten(0, (batch, -1))[b].float() for level in seen["pv"]],
            boxes=decode_boxes(head.code[-1, b, kept].float()),
            score=score,
            label=label[kept],
            reference=head.references[-1, b, kept].float(),
            features=head.states[-1, b, kept].float(),
            sampling=sampling.float(),
            attention=attention.float(),
        )
