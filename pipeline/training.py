"""Training of experts and apprentices with mmengine's Runner: schedule, guards, curves and the final checkpoint."""

import csv
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config, ConfigDict
from mmengine.dist import get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn
from tqdm import tqdm

from pipeline.data.transforms import refuse_pixel_moving
from pipeline.errors import FD3DError
from pipeline.files import write_atomically
from pipeline.models.build import file_sha256
from pipeline.models.checkpoints import inherit_weights, save_checkpoint
from store_schema import StoreReader
from store_schema.manifest import fingerprint


@dataclass(frozen=True)
class FrameSource:
    """Where training frames come from."""

    index: Path
    """The frame index (``fd3d index``)."""
    root: Path
    """Root of the nuScenes-format data set that the index describes."""
    split: str
    """Devkit split, or one of the data set's ``splits.json``."""


@dataclass(frozen=True)
class RunSettings:
    """How one training runs; what it trains stands in its config."""

    seed: int = 0
    """Seeds weights, shuffling and augmentation."""
    max_iters: int | None = None
    """Overrides the config's schedule."""
    workers: int = 1
    """Processes that decode images."""
    threads: int = 1
    """Torch threads of each process; two that spin on busy cores are far slower than one."""
    amp: bool = False
    """Mixed precision; needs a GPU."""
    checkpoint_every: int = 500
    """Iterations between checkpoints that a killed training resumes from."""
    cache_mb: int = 0
    """MB of the expert's targets that each of the ``workers`` keeps in memory."""
    curve_every: int | None = None
    """Iterations averaged into one row of ``losses.csv``; by default a twentieth of the schedule, 50 at most."""
    snapshots: tuple[int, ...] = ()
    """Iterations whose weights are kept besides the last ones, as ``detector-ITERATION.pth``."""


@dataclass(frozen=True)
class Inheritance:
    """Weights that a training starts from."""

    checkpoint: Path
    """The expert's."""
    modules: tuple[str, ...]
    """Paths of the apprentice's modules that start from it."""


def _unwrapped(model: nn.Module) -> nn.Module:
    """The model inside mmengine's wrapper for several processes."""
    inner = getattr(model, "module", None)
    return inner if isinstance(inner, nn.Module) else model


def _number(value: Any) -> float:
    return float(value.detach() if isinstance(value, torch.Tensor) else value)


class LossCurve(Hook):
    """Write every logged loss term to a CSV file, one row per ``interval`` iterations, and survive a resume.

    Args:
        path: of the CSV.
        interval: iterations averaged into one row.
    """

    priority = "LOW"

    def __init__(self, path: Path, interval: int) -> None:
        self.path, self.interval = path, interval
        self.rows: list[dict[str, float]] = []
        self.sums: dict[str, float] = {}

    def before_train(self, runner: Runner) -> None:
        """Keep the rows of the part that is already trained."""
        if self.path.exists() and runner.iter > 0:
            with open(self.path, newline="") as file:
                rows = [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]
            self.rows = [row for row in rows if row["step"] <= runner.iter]

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Accumulate, and write at the interval."""
        for name, value in (outputs or {}).items():
            self.sums[name] = self.sums.get(name, 0.0) + _number(value)
        step = runner.iter + 1
        if step % self.interval or not is_main_process():
            return
        self.rows.append({"step": step} | {k: round(v / self.interval, 5) for k, v in self.sums.items()})
        self.sums = {}
        names = list(dict.fromkeys(name for row in self.rows for name in row))

        def write(file: Any) -> None:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(self.rows)

        write_atomically(self.path, write)


class Progress(Hook):
    """A progress bar, quiet when not on a terminal (then the logger's lines tell)."""

    priority = "LOWEST"

    def before_train(self, runner: Runner) -> None:
        """Open the bar where a resumed run continues."""
        self.bar = tqdm(total=runner.max_iters, initial=runner.iter, unit="step", disable=None)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """One step further."""
        self.bar.update()

    def after_train(self, runner: Runner) -> None:
        """Close the bar."""
        self.bar.close()


class NaNGuard(Hook):
    """Stop at the first loss that is not finite and name the frames; runs before any checkpoint is written."""

    priority = "VERY_HIGH"

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Check the step's losses."""
        bad = [name for name, value in (outputs or {}).items() if not np.isfinite(_number(value))]
        if bad:
            tokens = ", ".join(sample.token for sample in data_batch["data_samples"])
            raise FD3DError(
                f"{', '.join(bad)} is not finite at step {runner.iter + 1}, frames {tokens}; look at these frames, or "
                f"lower the learning rate; the last checkpoint in {runner.work_dir} is from before"
            )


class Snapshots(Hook):
    """Keep the weights of early iterations, for experts of falling quality.

    Args:
        iterations: those kept.
        save: writes the model's weights of an iteration.
    """

    def __init__(self, iterations: Sequence[int], save: Callable[[nn.Module, int], None]) -> None:
        self.iterations, self.save = iterations, save

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Save where it is due."""
        if runner.iter + 1 in self.iterations and is_main_process():
            self.save(_unwrapped(runner.model), runner.iter + 1)


class Inherit(Hook):
    """Start from inherited weights; a resumed training has them already."""

    def __init__(self, inheritance: Inheritance) -> None:
        self.inheritance = inheritance

    def before_train(self, runner: Runner) -> None:
        """Load them over the freshly initialised ones."""
        if runner.iter == 0:
            detector = _unwrapped(runner.model)
            inherit_weights(
                getattr(detector, "student", detector), self.inheritance.checkpoint, self.inheritance.modules
            )


class PlainCheckpoint(Hook):
    """Keep functions out of checkpoints, so that a resume can load them with ``weights_only``.

    mmengine's one-cycle scheduler puts its annealing function into its state (on loading it keeps its own), and its log
    history the functions that smooth it (curves are :class:`LossCurve`'s).
    """

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Drop callables from the schedulers' states, and the log history."""
        checkpoint["message_hub"]["log_scalars"] = {}
        states = checkpoint.get("param_schedulers", [])
        checkpoint["param_schedulers"] = [{k: v for k, v in state.items() if not callable(v)} for state in states]


for hook in (LossCurve, Progress, NaNGuard, Snapshots, Inherit, PlainCheckpoint):
    HOOKS.register_module(module=hook)


def frame_pipeline(
    cfg: Config, train: bool, store: Path | None = None, cache_mb: int = 0, expert_frames: dict | None = None
) -> list[dict]:
    """The transforms of a detector config: decode, augment, and for a distiller load what it needs of the expert.

    Args:
        store: read the expert's targets from here.
        expert_frames: instead load the expert's images: data set of
            :class:`~pipeline.data.transforms.LoadExpertFrames`.

    Raises:
        FD3DError: an augmentation moves pixels beside the expert's targets.
    """
    augment = cfg.get("augment", {}) if train else {}
    steps: list[dict] = [dict(type="LoadMultiViewImages", scale=cfg.image.scale, to_rgb=cfg.image.to_rgb)]
    if augment.get("photometric"):
        steps.append(dict(type="PhotometricDistortion"))
    if augment.get("world_flip"):
        steps.append(dict(type="WorldFlip", prob=augment.world_flip))
    if train:
        steps.append(dict(type="LoadBoxes", pc_range=list(cfg.pc_range)))
    if expert_frames is not None:
        steps.append(dict(type="LoadExpertFrames", dataset=expert_frames))
    elif store is not None:
        steps.append(dict(type="LoadExpertTargets", store=str(store), cache_bytes=cache_mb * 1_000_000))
    steps.append(dict(type="PackFrames"))
    refuse_pixel_moving(steps)
    return steps


def frame_dataset(
    cfg: Config,
    source: FrameSource,
    train: bool,
    store: Path | None = None,
    cache_mb: int = 0,
    expert_frames: dict | None = None,
) -> dict:
    """mmengine dataset config; arguments as of :func:`frame_pipeline`."""
    return dict(
        type="FrameDataset",
        index=str(source.index),
        root=str(source.root),
        split=source.split,
        queue_length=cfg.queue_length if train else 1,
        pipeline=frame_pipeline(cfg, train, store, cache_mb, expert_frames),
        test_mode=not train,
    )


def _schedulers(policy: str, lr: float, max_iters: int, warmup: int) -> list[dict]:
    if policy == "onecycle":
        rise = min(warmup / max_iters, 0.9)
        return [dict(type="OneCycleLR", eta_max=lr, total_steps=max_iters, pct_start=rise, by_epoch=False)]
    return [
        dict(type="LinearLR", start_factor=1 / 3, by_epoch=False, begin=0, end=warmup),
        dict(type="CosineAnnealingLR", eta_min_ratio=1e-3, by_epoch=False, begin=warmup, end=max_iters),
    ]


def _recipe_hash(
    cfg: Config,
    model: dict | ConfigDict,
    source: FrameSource,
    settings: RunSettings,
    store: Path | None,
    inheritance: Inheritance | None,
) -> str:
    """SHA-256 over what decides a training's result: a checkpoint of another recipe is not resumed."""
    recipe = {
        "config": cfg.to_dict(),
        "model": dict(model),
        "split": source.split,
        "index": file_sha256(source.index),
        "store": fingerprint(StoreReader(store).manifest) if store else None,
        "settings": {k: v for k, v in asdict(settings).items() if k in ("seed", "max_iters", "amp")},
    }
    if inheritance:
        recipe["inherited"] = [file_sha256(inheritance.checkpoint), *inheritance.modules]
    return hashlib.sha256(json.dumps(recipe, sort_keys=True, default=str).encode()).hexdigest()


def train(
    cfg: Config,
    model: dict | ConfigDict,
    source: FrameSource,
    out: Path,
    settings: RunSettings,
    store: Path | None = None,
    export: Callable[[nn.Module], dict[str, torch.Tensor]] = lambda model: model.state_dict(),
    *,
    inheritance: Inheritance | None = None,
    expert_frames: dict | None = None,
) -> dict[str, Any]:
    """Train ``model`` on the frames of ``source``; a killed training goes on from its last checkpoint.

    A checkpoint that other settings, frames or targets left behind is not resumed but replaced.

    Args:
        cfg: detector config: image, queue_length, pc_range, optim_wrapper, schedule, augment.
        model: what to build, usually ``cfg.model`` or a distiller around it.
        out: checkpoint of the finished detector; its ``config.py``, ``losses.csv`` and mmengine's work files go beside it.
        store: the expert's targets, when the model needs them.
        export: the state dict to save from the trained model.
        inheritance: what the detector starts from; all else starts from random weights.
        expert_frames: for an online expert, see :func:`frame_pipeline`; the store's frames are then not read.

    Returns:
        seed, seconds of training in this process, steps, processes; the checkpoint has them under ``training``.

    Raises:
        FD3DError: contradictory settings, or a loss that is not finite.
    """
    if settings.amp and not torch.cuda.is_available():
        raise FD3DError("amp is set but there is no GPU; leave it off on a CPU")
    if inheritance and not inheritance.checkpoint.is_file():
        raise FD3DError(
            f"the expert's checkpoint {inheritance.checkpoint} does not exist; run the expert stage, or inherit nothing"
        )
    schedule = cfg.schedule
    max_iters = settings.max_iters or schedule.max_iters
    if max_iters < 4:
        raise FD3DError(f"max_iters is {max_iters}; a schedule with warm-up and decay needs at least 4")
    torch.set_num_threads(settings.threads)
    work_dir = out.parent
    work_dir.mkdir(parents=True, exist_ok=True)
    warmup = min(schedule.warmup_iters, max_iters // 2)
    optim = cfg.optim_wrapper.to_dict() if isinstance(cfg.optim_wrapper, ConfigDict) else dict(cfg.optim_wrapper)
    if settings.amp:
        optim["type"] = "AmpOptimWrapper"
    log_every = max(1, min(50, max_iters // 20))
    loader = dict(
        batch_size=schedule.batch_size,
        num_workers=settings.workers,
        persistent_workers=settings.workers > 0,
        sampler=dict(type="InfiniteSampler", shuffle=True, seed=settings.seed),
        collate_fn=dict(type="pseudo_collate"),
        dataset=frame_dataset(cfg, source, True, store, settings.cache_mb, expert_frames),
        drop_last=True,
    )
    if settings.workers:
        # A fork would copy the locks of torch's and OpenCV's threads in whatever state they are.
        loader |= dict(multiprocessing_context="forkserver", prefetch_factor=4)
    recipe, recipe_file = _recipe_hash(cfg, model, source, settings, store, inheritance), work_dir / "recipe.sha256"
    resume = recipe_file.exists() and recipe_file.read_text() == recipe

    def save(trained: nn.Module, path: Path, facts: dict[str, Any]) -> None:
        state = {name: tensor.detach().cpu() for name, tensor in export(trained).items()}
        save_checkpoint({"state_dict": state, "training": facts}, path)

    def keep(trained: nn.Module, steps: int) -> None:
        save(trained, out.with_stem(f"{out.stem}-{steps}"), {"seed": settings.seed, "steps": steps})

    runner = Runner(
        model=model,
        work_dir=str(work_dir),
        train_dataloader=loader,
        optim_wrapper=optim,
        param_scheduler=_schedulers(schedule.policy, optim["optimizer"]["lr"], max_iters, warmup),
        train_cfg=dict(type="IterBasedTrainLoop", max_iters=max_iters, val_interval=max_iters + 1),
        default_hooks=dict(
            logger=dict(type="LoggerHook", interval=log_every, log_metric_by_epoch=False),
            checkpoint=dict(
                type="CheckpointHook",
                by_epoch=False,
                interval=settings.checkpoint_every,
                max_keep_ckpts=1,
                save_last=False,
            ),
        ),
        custom_hooks=[
            dict(type="NaNGuard"),
            dict(type="LossCurve", path=work_dir / "losses.csv", interval=settings.curve_every or log_every),
            dict(type="Snapshots", iterations=settings.snapshots, save=keep),
            dict(type="PlainCheckpoint"),
            *([dict(type="Inherit", inheritance=inheritance)] if inheritance else []),
            dict(type="Progress"),
        ],
        log_processor=dict(by_epoch=False),
        launcher="pytorch" if "LOCAL_RANK" in os.environ else "none",
        randomness=dict(seed=settings.seed),
        default_scope="mmdet3d",
        env_cfg=dict(cfg.env_cfg, dist_cfg=dict(backend="nccl" if torch.cuda.is_available() else "gloo")),
        log_level="WARNING" if not logging.getLogger().isEnabledFor(logging.INFO) else "INFO",
        resume=resume and (work_dir / "last_checkpoint").exists(),
    )
    # Every process has read the recipe by now: a runner is not built before all have met.
    if is_main_process() and not resume:
        (work_dir / "last_checkpoint").unlink(missing_ok=True)
        write_atomically(recipe_file, lambda file: file.write(recipe))
    started = time.perf_counter()
    trained = runner.train()
    seconds = time.perf_counter() - started
    facts = {
        "seed": settings.seed,
        "seconds": round(seconds, 1),
        "steps": max_iters,
        "world_size": get_world_size(),
    }
    if is_main_process():
        save(_unwrapped(trained), out, facts)
        cfg.dump(work_dir / "config.py")
        for leftover in work_dir.glob("iter_*.pth"):
            leftover.unlink()
        (work_dir / "last_checkpoint").unlink(missing_ok=True)
        recipe_file.unlink(missing_ok=True)
    return facts
