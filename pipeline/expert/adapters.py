"""Adapters through which stage 1 reads this project's experts; those of other detectors are in :mod:`pipeline.expert.foreign`.

To bring another mmdet3d detector: register a class with the methods of :class:`ExpertAdapter` in mmdet3d's ``TASK_UTILS`` (most
often a subclass of :class:`~pipeline.expert.foreign.DetectorAdapter` that overrides ``prepare``), import the class's module by
the config's ``custom_imports`` and name the class in the config: ``adapter = dict(type="MyAdapter", bev="my_neck")``.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from mmdet3d.registry import TASK_UTILS
from mmdet3d.structures import Det3DDataSample
from torch import Tensor, nn

from pipeline.errors import FD3DError
from pipeline.models.boxes import decode_boxes, to_metres

from .detections import Detections, class_numbers, detections
from .frame import BEVReading, CameraReading, ExpertFrame

Seen = dict[str, tuple[tuple[Any, ...], Any]]
"""Positional arguments and output of each tapped module in the last forward pass, by the tap's name."""


class ExpertAdapter(Protocol):
    """Adapter between a detector and what stage 1 stores."""

    def taps(self, model: nn.Module) -> dict[str, str]:
        """Module path by name: these modules are watched."""

    def prepare(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The project's batch (``inputs.img``: per sample (1, V, 3, H, W) uint8; ``data_samples`` with the metainfo of
        :class:`~pipeline.data.transforms.PackFrames`) as the model's data preprocessor takes it."""

    def detections(self, samples: list[Det3DDataSample]) -> list[Detections]:
        """Boxes of each frame, from what the model's ``predict`` returned; what is evaluated and drawn."""

    def read(self, model: nn.Module, seen: Seen, samples: list[Det3DDataSample], num_queries: int) -> list[ExpertFrame]:
        """One :class:`ExpertFrame` per frame, from what the taps saw and what the model's ``predict`` returned."""

    def constants(self, model: nn.Module) -> dict[str, Tensor]:
        """Arrays of the store that do not depend on the frame, by path; float32 on the CPU."""


class QueryAdapter(ABC):
    """Base of the adapters of BEVFormer and DETR3D: logits, code, states and references of the head's output.

    Args:
        pv: path of the module that returns the pyramid.
        head: path of the module that returns a :class:`~pipeline.models.query_head.HeadOutput`.
        layers: path of the decoder's list of layers.
    """

    def __init__(
        self,
        pv: str = "img_neck",
        head: str = "pts_bbox_head",
        layers: str = "pts_bbox_head.transformer.decoder.layers",
    ) -> None:
        self.pv, self.head, self.layers = pv, head, layers

    def taps(self, model: nn.Module) -> dict[str, str]:
        """Pyramid, head and the samplers of the cross-attentions, ``sampler.0``, ``sampler.1``, ..."""
        samplers = {f"sampler.{i}": f"{self.cross_attention(i)}.sampler" for i in range(self.num_layers(model))}
        return {"pv": self.pv, "head": self.head} | samplers

    def num_layers(self, model: nn.Module) -> int:
        """Number of decoder layers."""
        return len(list(submodule(model, self.layers).children()))

    def cross_attention(self, layer: int) -> str:
        """Path of a decoder layer's cross-attention."""
        return f"{self.layers}.{layer}.attentions.1"

    def prepare(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch unchanged: the project's detectors take the project's batches."""
        return batch

    def constants(self, model: nn.Module) -> dict[str, Tensor]:
        """None."""
        return {}

    def detections(self, samples: list[Det3DDataSample]) -> list[Detections]:
        """Boxes of each frame as predicted."""
        return [detections(sample.pred_instances_3d, class_numbers(None)) for sample in samples]

    def read(self, model: nn.Module, seen: Seen, samples: list[Det3DDataSample], num_queries: int) -> list[ExpertFrame]:
        """The K queries with the best class scores of the last layer."""
        frames, out = [], seen["head"][1]
        for b, sample in enumerate(samples):
            score, label = out.logits[-1, b].float().sigmoid().max(-1)
            score, kept = score.topk(min(num_queries, len(score)))
            frames.append(
                ExpertFrame(
                    boxes=decode_boxes(out.code[-1, b, kept].float()),
                    score=score,
                    label=label[kept],
                    bev=self._bev(model, seen, b),
                    pv=levels_of(seen["pv"][1], b, len(samples)),
                    image_hw=sample.frames[-1]["pad_hw"],
                    view_hw=sample.frames[-1].get("view_hw"),
                    reference=out.references[-1, b, kept].float(),
                    features=out.states[-1, b, kept].float(),
                    reading=self._reading(model, seen, b, len(samples), kept),
                )
            )
        return frames

    @abstractmethod
    def _bev(self, model: nn.Module, seen: Seen, b: int) -> Tensor | None:
        """BEV map (C, H, W) of sample b."""

    @abstractmethod
    def _reading(
        self, model: nn.Module, seen: Seen, b: int, batch: int, kept: Tensor
    ) -> BEVReading | CameraReading | None:
        """Readings of the kept queries of sample b."""


@TASK_UTILS.register_module()
class BEVFormerAdapter(QueryAdapter):
    """Adapter of BEVFormer: BEV map (B, H*W, C) as given to the head, and sampling positions of the decoder on the map."""

    def constants(self, model: nn.Module) -> dict[str, Tensor]:
        """The value projections, float32 on the CPU."""
        weight, bias = self.value_projections(model)
        return {"decoder/value_proj_weight": weight.float().cpu(), "decoder/value_proj_bias": bias.float().cpu()}

    def value_projections(self, model: nn.Module) -> tuple[Tensor, Tensor]:
        """Weights (L, C, C) and biases (L, C) that queries read BEV features through, without gradient."""
        paths = [f"{self.cross_attention(i)}.value_proj" for i in range(self.num_layers(model))]
        linears = [submodule(model, path) for path in paths]
        return torch.stack([m.weight.detach() for m in linears]), torch.stack([m.bias.detach() for m in linears])

    @staticmethod
    def positions(args: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
        """Positions and attention weights of queries on the BEV map, from the arguments seen by a tap ``sampler.LAYER``.

        Returns:
            positions (B, N, M, P, 2) in 0..1 of the map's extent, and attention weights (B, N, M, P).
        """
        # arguments: value, shapes, locations (B, N, M, 1, P, 2), weights (B, N, M, 1, P)
        return args[2][:, :, :, 0].float(), args[3][:, :, :, 0].float()

    def _bev(self, model: nn.Module, seen: Seen, b: int) -> Tensor:
        return seen["head"][0][0][b].transpose(0, 1).unflatten(-1, submodule(model, self.head).bev_hw).float()

    def _reading(self, model: nn.Module, seen: Seen, b: int, batch: int, kept: Tensor) -> BEVReading:
        read = [self.positions(seen[f"sampler.{i}"][0]) for i in range(self.num_layers(model))]
        return BEVReading(
            torch.stack([positions[b, kept] for positions, _ in read]),
            torch.stack([weights[b, kept] for _, weights in read]),
        )


@TASK_UTILS.register_module()
class DETR3DAdapter(QueryAdapter):
    """Adapter of DETR3D: no BEV map; values that each query's projected reference reads from the cameras."""

    def _bev(self, model: nn.Module, seen: Seen, b: int) -> None:
        return None

    def _reading(self, model: nn.Module, seen: Seen, b: int, batch: int, kept: Tensor) -> CameraReading:
        weights, sampled = [], []
        for i in range(self.num_layers(model)):
            args, out = seen[f"sampler.{i}"]
            # weights (B*V, N, 1, levels, 1), output (B*V, N, C): cameras lie in the batch
            weights.append(args[3][:, :, 0, :, 0].unflatten(0, (batch, -1))[b, :, kept].transpose(0, 1).float())
            sampled.append(out.unflatten(0, (batch, -1))[b, :, kept].sum(0).float())
        head = submodule(model, self.head)
        points = to_metres(seen["head"][1].references[:, b, kept].float(), head.pc_range)
        return CameraReading(points, torch.stack(weights), torch.stack(sampled))


def submodule(model: nn.Module, path: str) -> Any:
    """A module by path.

    Raises:
        FD3DError: the path leads to no module.
    """
    try:
        return model.get_submodule(path)
    except AttributeError as error:
        raise FD3DError(f"the expert has no module '{path}'; give the tap's path in the config's adapter") from error


def padded_hw(sample: Det3DDataSample) -> tuple[int, int] | None:
    """Rows and columns of the padded image: as noted by this project's data preprocessor, or by mmdet3d's."""
    frames = sample.metainfo.get("frames")
    return (frames[-1] if frames else {}).get("pad_hw") or sample.metainfo.get("batch_input_shape")


def own_sizes(sample: Det3DDataSample, pyramid: Sequence[Tensor]) -> np.ndarray | None:
    """Rows and columns (V, 2) of the own images of a pyramid's V cameras, the data's first; None where images have one size.

    Args:
        pyramid: levels (V, C, Hl, Wl).
    """
    frames = sample.metainfo.get("frames")
    sizes = (frames[-1] if frames else {}).get("view_hw")
    return None if sizes is None or not pyramid else sizes[: len(pyramid[0])]


def first_tensor(output: Any) -> Tensor:
    """A module's output, or the first of several."""
    return output if isinstance(output, Tensor) else output[0]


def levels_of(output: Any, b: int, batch: int) -> list[Tensor]:
    """Levels (B*V, C, H, W) of a module's output to those of one sample, (V, C, H, W)."""
    levels = [output] if isinstance(output, Tensor) else output
    return [level.unflatten(0, (batch, -1))[b].float() for level in levels]
