"""Parameters and multiply-adds of a detector by part, from shapes alone (of another project's, from a frame of black images).

The model runs on torch's meta device, where tensors have shapes and no data, and forward hooks count. Only the projection
of the BEV pillars into the cameras is computed: this projection decides how many queries spatial cross-attention gets.

Two conventions come from one count. The *paper's* is mmcv's ``get_model_complexity_info`` run on the official code, which
reproduces the GFLOPS column of FD3D (Zeng et al., 2023): multiply-accumulates of convolutions and linear layers, bias of
convolutions, 2 per element of a norm, 1 per element of ReLU and pooling. The paper's convention leaves out whatever is
no such module (``LEFT_OUT``); the *full* count adds these operations. Softmax, sigmoid and additions of tensors are in
neither.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmdet3d.registry import MODELS
from mmdet3d.structures import Det3DDataSample
from mmengine.config import Config
from torch import Tensor, nn

from pipeline.cost.cameras import Cameras
from pipeline.cost.counting import PARTS, REPEATED, Counts, counting, part_of
from pipeline.cost.foreign import count_foreign
from pipeline.data.geometry import lidar2img, resize_factors, resized_hw
from pipeline.data.made_for import check_views
from pipeline.errors import FD3DError
from pipeline.expert.declared import is_foreign
from pipeline.models.attention import DeformableSampler
from pipeline.models.bevformer import encoder
from pipeline.models.bevformer.grid import CameraHits, camera_hits, grid_points, project_pillars
from pipeline.models.deform_conv import DeformConv2d
from pipeline.models.detector import MultiCameraDetector

# GFLOPS as published in FD3D's table of nuScenes results.
PUBLISHED = {
    "bevformer/base_r101": 1845.36,
    "bevformer/tiny": 381.95,
    "bevformer/base": 1323.41,
    "bevformer/small": 416.46,
    "detr3d/r101": 1016.83,
    "detr3d/r50": 876.94,
}

# Kinds of operation that the paper's column leaves out.
LEFT_OUT = ("deformable convolution", "attention", "sampling")


@dataclass(frozen=True)
class Complexity:
    """Cost of one sample: all cameras, first frame of a scene.

    Attributes:
        image_hw: rows and columns that the backbone sees, padding included.
        query_rows: length of the longest list of BEV cells that a camera sees, to which the lists of all cameras are
            padded; None without a BEV encoder.
        parameters: by part.
        macs: multiply-adds by part and kind of operation.
    """

    image_hw: tuple[int, int]
    query_rows: int | None
    parameters: dict[str, int]
    macs: dict[str, Counts]

    def kind(self, name: str) -> int:
        """Multiply-adds of one kind in all parts."""
        return sum(counts[name] for counts in self.macs.values())

    def paper(self, part: str | None = None) -> int:
        """Multiply-adds in the paper's convention, of a part or of all."""
        return self._total(part, LEFT_OUT)

    def full(self, part: str | None = None) -> int:
        """Multiply-adds with everything, of a part or of all."""
        return self._total(part, (REPEATED,))

    def _total(self, part: str | None, without: Sequence[str]) -> int:
        chosen = self.macs.values() if part is None else [self.macs[part]]
        return sum(n for counts in chosen for kind, n in counts.items() if kind not in without)


def count(cfg: Config, cameras: Cameras) -> Complexity:
    """Count a detector config's parameters and multiply-adds for one sample.

    Args:
        cameras: calibrated cameras, whose images are resized by ``image.scale`` and padded as the config's preprocessor does.

    Raises:
        FD3DError: the config is no detector, includes a layer without a counting rule, or is a detector of another project that does
            not fit its adapter.
    """
    longest, kind = None, (cfg.get("model") or {}).get("type")
    if kind and MODELS.get(kind) and is_foreign(cfg):
        image_hw, sizes, macs = count_foreign(cfg, cameras)
    else:
        with on_meta(cfg, cameras) as (model, batch, longest), counting(model) as macs:
            model(**batch, mode="tensor")
        image_hw = batch["data_samples"][0].frames[0]["pad_hw"]
        sizes = {path: parameter.numel() for path, parameter in model.named_parameters()}
    parameters = Counter(dict.fromkeys(PARTS, 0))
    for path, size in sizes.items():
        parameters[part_of(path)] += size
    return Complexity(image_hw, longest, dict(parameters), macs)


@contextmanager
def on_meta(
    cfg: Config, cameras: Cameras, training: int | None = None
) -> Iterator[tuple[MultiCameraDetector, dict[str, Any], int | None]]:
    """A config's detector on the meta device, one preprocessed sample for it, and the longest list of BEV cells.

    Args:
        training: number of samples, each with the config's queue of frames, for a detector in training mode and with
            gradients; None is one frame for a detector in evaluation mode.

    Raises:
        FD3DError: the config is no detector of this project.
    """
    kind = cfg.get("model", {}).get("type")
    registered = MODELS.get(kind) if kind else None
    if not (isinstance(registered, type) and issubclass(registered, MultiCameraDetector)):
        raise FD3DError(
            f"model type {kind!r} is not a detector of this project; give a config whose model is BEVFormer or DETR3D"
        )
    check_views(cfg, len(cameras.intrinsics), cfg.filename)
    if "image" not in cfg:
        raise FD3DError(f"config {cfg.filename} has no 'image'; add image = dict(scale=..., to_rgb=...)")
    try:
        model = MODELS.build(cfg.model).train(training is not None)
    except (TypeError, KeyError, ValueError) as error:
        raise FD3DError(f"the model of config {cfg.filename} cannot be built: {error}") from error
    transformer = model.pts_bbox_head.transformer
    # buffers that the projection needs; the model's own lose their data below
    volume = (transformer.encoder.heights, transformer.encoder.pc_range) if hasattr(transformer, "encoder") else None
    model.to("meta")

    size, factors = resized_hw(cameras.image_hw, cfg.image.scale), resize_factors(cameras.image_hw, cfg.image.scale)
    projection = lidar2img(cameras.intrinsics, cameras.lidar2cam, factors).astype(np.float32)
    frame = {"lidar2img": projection, "can_bus": np.zeros(18), "scene_token": "", "token": ""}
    samples, queue = (1, 1) if training is None else (training, cfg.queue_length)
    batch = model.data_preprocessor(
        {
            "inputs": {"img": torch.empty(samples, queue, len(projection), 3, *size, device="meta")},
            "data_samples": [
                Det3DDataSample(metainfo={"frames": [frame | {"has_history": step > 0} for step in range(queue)]})
                for _ in range(samples)
            ],
        }
    )
    image_hw = batch["data_samples"][0].frames[0]["pad_hw"]

    hits, longest = None, None
    if volume is not None:
        rows, columns = model.pts_bbox_head.bev_hw
        points = grid_points(rows, columns, torch.device("cpu"))
        seen_from = torch.from_numpy(projection).expand(samples, -1, -1, -1)
        found = camera_hits(*project_pillars(points, *volume, seen_from, image_hw))
        longest = found.index.shape[1]
        moved: dict[str, Any] = {k: v.to("meta") for k, v in vars(found).items() if isinstance(v, Tensor)}
        hits = replace(found, **moved)
    with torch.set_grad_enabled(training is not None), stand_ins(hits):
        yield model, batch, longest


class _Kept(torch.autograd.Function):
    """Shape of an operator's result, with the tensors that the operator keeps for its backward pass."""

    @staticmethod
    def forward(ctx: Any, shape: tuple[int, ...], *kept: Tensor) -> Tensor:
        ctx.save_for_backward(*kept)
        return kept[0].new_empty(shape)


@contextmanager
def stand_ins(hits: CameraHits | None = None) -> Iterator[None]:
    """Let a model run on the meta device.

    Inside, deformable samplers and deformable convolutions (other than their offset layers) only give the shape of their
    results, and keep for a backward pass what mmcv's operators on a GPU keep; BEVFormer's encoder takes ``hits`` for what its
    cameras see.
    """

    def sample(self: nn.Module, value: Tensor, shapes: Any, locations: Tensor, weights: Tensor, *more: Any) -> Tensor:
        shape = (*locations.shape[:2], value.shape[2] * value.shape[3])
        read: Tensor = _Kept.apply(shape, value.contiguous(), locations.contiguous(), weights.contiguous())
        return read

    def deform(self: Any, x: Tensor) -> Tensor:
        first, second, mask = self.conv_offset(x).chunk(3, dim=1)
        shape = (len(x), self.weight.shape[0], *mask.shape[-2:])
        offset = torch.cat((first, second), dim=1)
        made: Tensor = _Kept.apply(shape, x.contiguous(), offset.contiguous(), mask.sigmoid().contiguous(), self.weight)
        return made

    def seen(*args: Any, **kwargs: Any) -> CameraHits | None:
        return hits

    places: list[tuple[Any, str, Any]] = [
        (DeformableSampler, "forward", sample),
        (DeformConv2d, "forward", deform),
        (encoder, "camera_hits", seen),
    ]
    originals = [getattr(owner, name) for owner, name, _ in places]
    try:
        for owner, name, stand_in in places:
            setattr(owner, name, stand_in)
        yield
    finally:
        for (owner, name, _), original in zip(places, originals, strict=True):
            setattr(owner, name, original)


def markdown(found: dict[str, Complexity]) -> str:
    """Two tables of models by config path: totals beside the published figures, and the parts.

    Multiply-adds are in 1e9 and parameters in 1e6.
    """
    head = ["config", "image", "query rows", "published", "paper's convention", "difference, %", "full count"]
    totals = [[*head, *(f"of it {kind}" for kind in LEFT_OUT), "parameters"]]
    parts = [["config", "", *PARTS, "all"]]
    for name, one in found.items():
        published = PUBLISHED.get("/".join(Path(name).with_suffix("").parts[-2:]))
        paper, full, parameters = one.paper(), one.full(), sum(one.parameters.values())
        totals.append(
            [
                name,
                f"{one.image_hw[0]}x{one.image_hw[1]}",
                "-" if one.query_rows is None else str(one.query_rows),
                "-" if published is None else f"{published:.2f}",
                f"{paper / 1e9:.2f}",
                "-" if published is None else f"{100 * (paper / 1e9 / published - 1):+.3f}",
                *(f"{n / 1e9:.2f}" for n in (full, *map(one.kind, LEFT_OUT))),
                f"{parameters / 1e6:.2f}",
            ]
        )
        for title, unit, values, total in (
            ("paper's convention", 1e9, map(one.paper, PARTS), paper),
            ("full count", 1e9, map(one.full, PARTS), full),
            ("parameters", 1e6, map(one.parameters.__getitem__, PARTS), parameters),
        ):
            parts.append([name, title, *(f"{n / unit:.3f}" for n in (*values, total))])
    return f"{_table(totals)}\n\n{_table(parts)}"


def _table(rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["| " + " | ".join(cell.ljust(n) for cell, n in zip(row, widths, strict=True)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "|".join("-" * (n + 2) for n in widths) + "|", *lines[1:]])
