"""Timing of one detector on one frame, by part; meant to run in a process of its own."""

import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction, multi_scale_deformable_attn_pytorch
from mmdet3d.registry import MODELS
from mmdet3d.structures import Det3DDataSample
from mmengine.config import Config
from mmengine.logging import MMLogger
from torch import Tensor, nn

from benchmarks.reference import Reference
from benchmarks.weights import fill
from pipeline.data.geometry import invert, lidar2img, transform
from pipeline.data.world.rig import LIDAR_POSITION, LIDAR_ROTATION, rig
from pipeline.models.build import build_detector, load_config
from pipeline.models.fold import fold_batchnorm

PARTS = ("backbone", "neck", "encoder", "head", "whole")
ORIGINAL_HW = (900, 1600)
# Largest absolute differences that float32 explains, as in the tests against the official outputs.
LIMITS = {"bev": 1e-4, "logits": 2e-4, "boxes": 2e-4}
Run = Callable[[Tensor, list[dict[str, Any]], Tensor | None, Callable[[str], None]], tuple[Any, ...]]


@dataclass(frozen=True)
class Case:
    """Case to measure.

    Attributes:
        config: path of an mmengine config.
        batch: frames at once, of different scenes.
        device: ``cpu`` or ``cuda``.
        precision: ``fp32`` (TF32 off) or ``bf16`` (autocast).
        sampler: on a GPU ``op``, mmcv's deformable attention operator, or ``pytorch``, its grid_sample fallback.
        fold: fold batch normalisation into the convolutions of our detector.
        threads: threads of a CPU.
        repeats: timed frames.
    """

    config: str
    batch: int
    device: str
    precision: str
    sampler: str
    fold: bool
    threads: int
    repeats: int

    @property
    def name(self) -> str:
        """Folder and name of the config."""
        path = Path(self.config)
        return f"{path.parent.name}/{path.stem}"


class Clock:
    """Milliseconds since the last mark, summed by part; waits for the device first."""

    def __init__(self, device: str) -> None:
        self.wait = torch.cuda.synchronize if device == "cuda" else lambda: None
        self.parts: dict[str, float] = {}

    def start(self) -> None:
        """Forget the last frame."""
        self.wait()
        self.parts, self.last = {}, time.perf_counter()

    def mark(self, part: str) -> None:
        """A part is done."""
        self.wait()
        now = time.perf_counter()
        self.parts[part] = self.parts.get(part, 0.0) + (now - self.last) * 1e3
        self.last = now


def measure(case: Case, names: tuple[str, ...]) -> list[dict[str, Any]]:
    """Time ``ours``, ``reference`` or both, taking turns frame by frame.

    The frame that is timed is the second of its scene: BEVFormer has a history and the car has moved.

    Returns:
        per name a row: the case, medians in ms per frame by part, peak memory of this process (CPU: resident set; GPU:
        allocated by torch) in MiB, and with both names the largest absolute differences between their outputs.
    """
    MMLogger.get_current_instance().setLevel("WARNING")  # else a line per deformable convolution
    torch.set_num_threads(case.threads)
    torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32 = True, False
    if case.sampler == "pytorch":
        # for good: the process ends with this case
        MultiScaleDeformableAttnFunction.apply = staticmethod(by_grid_sample)
    cfg = load_config(case.config)
    runs = {name: contender(name, cfg, case) for name in names}
    img, (first, second) = inputs(cfg, case.batch)
    img, clock = img.to(case.device), Clock(case.device)
    outputs: dict[str, tuple[Any, ...]] = {}
    times: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    with torch.no_grad(), torch.autocast(case.device, torch.bfloat16, enabled=case.precision == "bf16"):
        clock.start()
        histories = {name: run(img, first, None, clock.mark)[0] for name, run in runs.items()}
        for _ in range(case.repeats):
            for name, run in runs.items():
                clock.start()
                outputs[name] = run(img, second, histories[name], clock.mark)
                times[name].append(clock.parts | {"whole": sum(clock.parts.values())})
    rows = [
        vars(case)
        | {
            "config": case.name,
            "torch": torch.__version__,
            "gpu": torch.cuda.get_device_name() if case.device == "cuda" else None,
            "model": name,
            "fold": case.fold and name == "ours",
            "ms": {p: statistics.median(t[p] for t in parts) / case.batch for p in PARTS if p in parts[0]},
            "peak_mib": peak_mib(case.device),
        }
        for name, parts in times.items()
    ]
    if len(names) > 1:
        rows[0]["difference"] = {
            kind: float((a.float() - b.float()).abs().max())
            for kind, a, b in zip(LIMITS, *outputs.values(), strict=True)
            if a is not None
        }
    return rows


def contender(name: str, cfg: Config, case: Case) -> Run:
    """``ours`` or ``reference`` as a function of one frame."""
    model = build_detector(cfg)
    # images not divided by a standard deviation are some 64 times larger
    fill(model, 1.0 if min(cfg.model.data_preprocessor.std) > 1 else 1 / 64)
    model.to(case.device).eval()
    if name == "reference":
        return Reference(model)
    if case.fold:
        fold_batchnorm(model)
    return partial(ours, model)


def ours(
    model: nn.Module,
    img: Tensor,
    frames: list[dict[str, Any]],
    history: Tensor | None,
    mark: Callable[[str], None],
) -> tuple[Tensor | None, Tensor, Tensor]:
    """One time step of our detector; arguments and results as of :class:`~benchmarks.reference.Reference`, any batch."""
    hooks = [
        getattr(model, f"img_{part}").register_forward_hook(lambda *_, part=part: mark(part))
        for part in ("backbone", "neck")
    ]
    features = model.extract_feat(img)
    for hook in hooks:
        hook.remove()
    bev = None
    if hasattr(model, "encode"):
        has_history = torch.full((len(img),), history is not None, device=img.device)
        bev = model.encode(features, frames, history, has_history)
        mark("encoder")
        out = model.pts_bbox_head(bev)
    else:
        matrices = np.stack([frame["lidar2img"] for frame in frames])
        out = model.pts_bbox_head(features, img.new_tensor(matrices), frames[0]["pad_hw"])
    mark("head")
    return bev, out.logits, out.code


def inputs(cfg: Config, batch: int) -> tuple[Tensor, list[list[dict[str, Any]]]]:
    """Random images (B, V, 3, H, W) as the config's detector takes them, and the metainfo of two time steps.

    Both steps show the same images; between them the car drives 4.6 m and turns by 3.7 degrees.
    """
    scale = cfg.image.scale
    height, width = (round(n * scale) for n in ORIGINAL_HW)
    cameras = rig(*ORIGINAL_HW)
    lidar = transform(list(LIDAR_POSITION), list(LIDAR_ROTATION.elements))
    lidar2cam = []
    for camera in cameras:
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = camera.rotation, camera.position
        lidar2cam.append(invert(pose) @ lidar)
    matrices = lidar2img(np.stack([camera.intrinsic for camera in cameras]), np.stack(lidar2cam), scale)

    still, moved = np.zeros(18), np.zeros(18)
    still[-2] = 0.3
    moved[[0, 1, -2, -1]] = 4.2, 1.9, 0.3, 3.7  # metres, absolute yaw in radians, turn in degrees
    samples = [
        Det3DDataSample(metainfo={"frames": [{"lidar2img": matrices, "can_bus": m} for m in (still, moved)]})
        for _ in range(batch)
    ]
    generator = torch.Generator().manual_seed(0)
    shape = (batch, 1, len(cameras), 3, height, width)
    img = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    preprocess = MODELS.build(cfg.model.data_preprocessor)
    data = preprocess({"inputs": {"img": img}, "data_samples": samples})
    return data["inputs"]["img"][:, 0], [[sample.frames[step] for sample in data["data_samples"]] for step in (0, 1)]


def by_grid_sample(value: Tensor, shapes: Tensor, starts: Tensor, locations: Tensor, weights: Tensor, _: int) -> Tensor:
    """mmcv's fallback with its operator's arguments."""
    return multi_scale_deformable_attn_pytorch(value, shapes, locations, weights)


def peak_mib(device: str) -> float:
    """Most memory that this process has held, MiB."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
