"""The backbone that every student of the benchmark starts from, pretrained on another task in another generated world.

Stands in for ImageNet and FCOS3D, from which published students start. A world of its own is generated (another seed than
the benchmark's), and a ResNet with a small head learns from single images, at the student's size, which class the nearest
annotated box over a cell has and how deep the box lies: what a camera sees, and nothing of the ego frame. The head is
thrown away::

    python -m benchmarks.pretrain
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from mmdet3d.registry import DATASETS, MODELS
from mmengine.config import Config
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler
from tqdm import tqdm

from pipeline.data import CLASSES
from pipeline.data.frames import collate, frame_dataset
from pipeline.data.index import build_index
from pipeline.data.source import FrameSource
from pipeline.data.workers import loader_options
from pipeline.data.world.config import WorldConfig
from pipeline.data.world.generate import generate_world
from pipeline.errors import FD3DError
from pipeline.focal.areas import project_boxes, pv_rectangles_to_cells
from pipeline.models.build import load_config
from pipeline.models.checkpoints import save_checkpoint
from pipeline.models.detector import gt_tensors, stack_meta

BACKGROUND = len(CLASSES)
"""Label of the cells without a box."""
STRIDE = 4
"""Pixels of a cell's side: the stride of the backbone's first stage."""


@dataclass(frozen=True)
class Labels:
    """What a cell of an image shows.

    Attributes:
        classes: (V, H, W) class of the box over the cell that lies nearest to the camera, ``BACKGROUND`` without one.
        log_depth: (V, H, W) natural logarithm of the depth in metres of that box's centre, 0 without one.
    """

    classes: Tensor
    log_depth: Tensor


def dense_labels(boxes: Tensor, labels: Tensor, lidar2img: Tensor, image_hw: tuple[int, int]) -> Labels:
    """2D labels of a frame's images from its annotated boxes.

    Args:
        boxes: (K, 9) in the LiDAR frame, z of the centre.
        labels: (K,) classes.
        lidar2img: (V, 4, 4) from metres in the LiDAR frame to pixels.
        image_hw: rows and columns of the images, multiples of ``STRIDE``.
    """
    size = image_hw[0] // STRIDE, image_hw[1] // STRIDE
    cells = pv_rectangles_to_cells(*project_boxes(boxes, lidar2img, image_hw), size, image_hw)  # (K, V, H, W)
    depth = (lidar2img[:, 2, :3] @ boxes[:, :3].T + lidar2img[:, 2, 3:]).T  # (K, V)
    cells &= (depth > 1.0)[..., None, None]  # a centre beside or behind the camera has no depth to see
    nobody = torch.full((1, *cells.shape[1:]), torch.inf)
    at = torch.cat([torch.where(cells, depth[..., None, None], torch.inf), nobody])
    nearest, which = at.min(0)
    classes = torch.cat([labels, labels.new_tensor([BACKGROUND])])[which]
    classes[nearest == torch.inf] = BACKGROUND
    return Labels(classes, torch.where(classes < BACKGROUND, nearest, 1.0).log())


class DenseNet2D(nn.Module):
    """A backbone and a head on all its stages together, without a pyramid.

    Args:
        backbone: config of a backbone whose first output has stride ``STRIDE``.
        channels: channels of each output.
        hidden: channels of the head.
    """

    def __init__(self, backbone: dict, channels: list[int], hidden: int = 48) -> None:
        super().__init__()
        self.backbone = MODELS.build(backbone)
        self.mix = nn.Sequential(nn.Conv2d(sum(channels), hidden, 3, padding=1), nn.ReLU())
        self.classify, self.measure = nn.Conv2d(hidden, len(CLASSES), 1), nn.Conv2d(hidden, 1, 1)
        self.loss_class = MODELS.build(dict(type="mmdet.FocalLoss", use_sigmoid=True, loss_weight=1.0))
        self.loss_depth = MODELS.build(dict(type="mmdet.SmoothL1Loss", beta=0.1, loss_weight=1.0))
        # a one-in-a-hundred prior, as in RetinaNet (Lin et al., 2017), and 20 m
        for layer, value in ((self.classify, -4.6), (self.measure, 3.0)):
            assert layer.bias is not None
            nn.init.constant_(layer.bias, value)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits (N, classes, H, W) and logarithms of depth (N, H, W) of images (N, 3, rows, columns)."""
        stages = self.backbone(images.contiguous(memory_format=torch.channels_last))
        size = stages[0].shape[-2:]
        grown = [nn.functional.interpolate(s, size, mode="bilinear", align_corners=False) for s in stages[1:]]
        mixed = self.mix(torch.cat([stages[0], *grown], 1))
        return self.classify(mixed), self.measure(mixed)[:, 0]

    def loss(self, logits: Tensor, log_depth: Tensor, labels: Labels) -> tuple[Tensor, Tensor]:
        """Focal loss of the classes and smooth L1 loss of the depths, both over the number of cells with a box."""
        shown = labels.classes < BACKGROUND
        count = max(int(shown.sum()), 1)
        classes = self.loss_class(logits.permute(0, 2, 3, 1).flatten(0, 2), labels.classes.flatten(), avg_factor=count)
        return classes, self.loss_depth(log_depth[shown], labels.log_depth[shown], avg_factor=count)


def make_world(root: Path, index: Path, world: WorldConfig, workers: int) -> dict[str, FrameSource]:
    """Generate a world and index it; what is there of the same settings stays.

    Returns:
        frames to train on (``train``) and held-out frames (``val``).
    """
    generate_world(root, world, workers)
    build_index(root, world.version, index)
    return {name: FrameSource(index, root, f"world_{name}") for name in ("train", "val")}


def batches(cfg: Config, source: FrameSource, count: int, frames: int, workers: int, seed: int) -> Iterator[Any]:
    """``count`` batches of ``frames`` frames drawn at random: images (frames x V, 3, H, W) and :class:`Labels` of each."""
    cfg = cfg.copy()
    cfg.queue_length = 1
    dataset = DATASETS.build(frame_dataset(cfg, source, train=True))
    normalise = MODELS.build(cfg.model.data_preprocessor)
    generator = torch.Generator().manual_seed(seed)
    sampler = RandomSampler(dataset, replacement=True, num_samples=count * frames, generator=generator)
    loader = DataLoader(
        dataset, frames, sampler=sampler, num_workers=workers, collate_fn=collate, **loader_options(workers)
    )
    for batch in loader:
        ready = normalise(batch)
        images, samples = ready["inputs"]["img"].flatten(0, 2), ready["data_samples"]
        lidar2img = stack_meta([sample.frames[-1] for sample in samples], "lidar2img", images.device)
        found = [
            dense_labels(*one, tuple(images.shape[-2:]))
            for one in zip(*gt_tensors(samples, images.device), lidar2img, strict=True)
        ]
        yield images, Labels(torch.cat([f.classes for f in found]), torch.cat([f.log_depth for f in found]))


@torch.no_grad()
def evaluate(model: DenseNet2D, held_out: Iterator[Any]) -> dict[str, float]:
    """Shares over held-out cells.

    Returns:
        ``class_accuracy``, of cells with a box, whose best class is the box's; ``depth_error``, the mean of
        |log of predicted over true depth| of these cells; ``guess_accuracy`` and ``guess_error``, those of the most
        frequent class and of the median depth.
    """
    model.eval()
    right, error, classes, depths = [], [], [], []
    for images, labels in held_out:
        logits, log_depth = model(images)
        shown = labels.classes < BACKGROUND
        right.append((logits.argmax(1) == labels.classes)[shown])
        error.append((log_depth - labels.log_depth)[shown].abs())
        classes.append(labels.classes[shown])
        depths.append(labels.log_depth[shown])
    every, depth = torch.cat(classes), torch.cat(depths)
    return {
        "class_accuracy": round(float(torch.cat(right).float().mean()), 4),
        "guess_accuracy": round(float((every == every.mode().values).float().mean()), 4),
        "depth_error": round(float(torch.cat(error).mean()), 4),
        "guess_error": round(float((depth - depth.median()).abs().mean()), 4),
    }


def pretrain(
    cfg: Config, sources: dict[str, FrameSource], iterations: int, frames: int, workers: int, seed: int = 0
) -> tuple[DenseNet2D, list[float], dict[str, float]]:
    """Train backbone and head.

    Args:
        cfg: the student's config: image, data preprocessor and backbone.
        sources: frames as of :func:`make_world`.
        iterations: optimiser steps.
        frames: frames of six images in a batch.

    Returns:
        the model, the loss of every step, and the held-out shares of :func:`evaluate`.

    Raises:
        FD3DError: a loss is not finite.
    """
    torch.manual_seed(seed)
    np.random.seed(seed)  # colours are drawn from numpy's generator
    model = DenseNet2D(cfg.model.img_backbone, cfg.model.img_neck.in_channels)
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, iterations, pct_start=0.1)
    losses: list[float] = []
    model.train()
    bar = tqdm(total=iterations, unit="step", disable=None)
    for images, labels in batches(cfg, sources["train"], iterations, frames, workers, seed):
        logits, log_depth = model(images)
        classes, depth = model.loss(logits, log_depth, labels)
        loss = classes + depth
        losses.append(loss.item())
        if not np.isfinite(losses[-1]):
            raise FD3DError(f"the loss is {losses[-1]} at step {len(losses)}; lower the learning rate")
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 35)
        optimiser.step()
        schedule.step()
        bar.update()
        bar.set_postfix(classes=f"{classes.item():.3f}", depth=f"{depth.item():.3f}")
        if bar.disable and (len(losses) % 250 == 0 or len(losses) == iterations):
            print(f"step {len(losses)} of {iterations}: loss {np.mean(losses[-250:]):.3f}", flush=True)
    bar.close()
    plain = cfg.copy()
    plain.augment = dict()
    held_out = batches(plain, sources["val"], max(1, min(50, iterations)), frames, workers, seed)
    return model, losses, evaluate(model, held_out)


def save_backbone(model: DenseNet2D, path: Path, notes: dict[str, Any]) -> None:
    """Write the backbone in float32 under ``backbone.*``, the layout of OpenMMLab's classifiers, with notes as JSON."""
    state = {f"backbone.{name}": tensor.detach().clone() for name, tensor in model.backbone.state_dict().items()}
    save_checkpoint({"state_dict": state, "meta": {"pretrained": json.dumps(notes, indent=1)}}, path)


def main(
    config: Annotated[Path, typer.Option(help="Config of a student with the backbone to pretrain.")] = Path(
        "configs/benchmark/apprentice.py"
    ),
    out: Annotated[Path, typer.Option(help="Checkpoint to write.")] = Path("checkpoints/benchmark_backbone.pth"),
    root: Annotated[Path, typer.Option(help="Folder of the generated world.")] = Path("data/pretrain"),
    index: Annotated[Path, typer.Option(help="Index of the world.")] = Path("runs/pretrain/index.npz"),
    seed: Annotated[int, typer.Option(help="Seed of the world; another than the benchmark's.")] = 11,
    scenes: Annotated[int, typer.Option(help="Number of training scenes of the world.")] = 200,
    iterations: Annotated[int, typer.Option(help="Number of optimiser steps.")] = 2500,
    frames: Annotated[int, typer.Option(help="Frames of six images in a batch.")] = 4,
    workers: Annotated[int, typer.Option(help="Number of processes that decode images; 0 decodes in this one.")] = 0,
) -> None:
    """Generate the world, train, print the held-out shares, and write the backbone."""
    torch.set_num_threads(1)
    world = WorldConfig(
        seed=seed, train_scenes=scenes, val_scenes=max(1, scenes // 10), density=1.2, clutter=1.3, photometric=1.3
    )
    sources = make_world(root, index, world, max(workers, 1))
    cfg = load_config(config)
    model, losses, found = pretrain(cfg, sources, iterations, frames, workers)
    notes = {
        "command": f"python -m benchmarks.pretrain {' '.join(sys.argv[1:])}".strip(),
        "task": "class and depth of the nearest annotated box over a cell, single images",
        "world": asdict(world),
        "backbone": cfg.model.img_backbone.to_dict(),
        "image_scale": cfg.image.scale,
        "iterations": iterations,
        "images": frames * 6,
        "last_loss": round(float(np.mean(losses[-100:])), 4),
        "held_out": found,
    }
    save_backbone(model, out, notes)
    print(
        f"{out}: held-out cells with a box: class right {found['class_accuracy']:.1%} (most frequent class "
        f"{found['guess_accuracy']:.1%}), depth off by a factor of e^{found['depth_error']:.3f} (median depth e^{found['guess_error']:.3f})"
    )


if __name__ == "__main__":
    typer.run(main)
