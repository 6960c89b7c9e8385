"""Training of experts and students with mmengine's Runner: schedule, guards, curves and the final checkpoint."""

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.dist import get_world_size, is_main_process
from mmengine.runner import Runner
from torch import nn

from pipeline.data.frames import frame_dataset
from pipeline.data.source import FrameSource
from pipeline.errors import FD3DError
from pipeline.files import write_atomically
from pipeline.models.build import file_sha256
from pipeline.models.checkpoints import save_checkpoint
from pipeline.training.hooks import unwrapped
from pipeline.training.settings import Inheritance, RunSettings, read_schedule


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
    inheritance: Inheritance | None,
    facts: Mapping[str, Any],
) -> str:
    """SHA-256 over what decides a training's result: a checkpoint of another recipe is not resumed."""
    recipe = {
        "config": cfg.to_dict(),
        "model": dict(model),
        "split": source.split,
        "index": file_sha256(source.index),
        "settings": {k: v for k, v in asdict(settings).items() if k in ("seed", "max_iters", "amp")},
    }
    if inheritance:
        recipe["inherited"] = [file_sha256(inheritance.checkpoint), *inheritance.modules]
    recipe |= facts
    return hashlib.sha256(json.dumps(recipe, sort_keys=True, default=str).encode()).hexdigest()


def train(
    cfg: Config,
    model: dict | ConfigDict,
    source: FrameSource,
    out: Path,
    settings: RunSettings,
    *,
    export: Callable[[nn.Module], dict[str, torch.Tensor]] = lambda model: model.state_dict(),
    inheritance: Inheritance | None = None,
    targets: Sequence[dict] = (),
    recipe: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Train ``model`` on the frames of ``source``; a killed training goes on from its last checkpoint.

    A checkpoint that other settings, frames or targets left behind is not resumed but replaced.

    Args:
        cfg: detector config: image, queue_length, pc_range, optim_wrapper, schedule, augment.
        model: config of the model to build, usually ``cfg.model`` or a distiller around it.
        out: checkpoint of the finished detector; its ``config.py``, ``losses.csv`` and mmengine's work files go beside it.
        export: function that gives the state dict to save of the trained model.
        inheritance: weights that modules of the detector start from; all other modules start from random weights.
        targets: transforms that load the expert's targets, see :func:`~pipeline.data.frames.frame_pipeline`.
        recipe: further plain values that decide the result, besides config, model, frames and settings.

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
    schedule = read_schedule(cfg)
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
        dataset=frame_dataset(cfg, source, True, targets),
        drop_last=True,
    )
    if settings.workers:
        # A fork would copy the locks of torch's and OpenCV's threads in whatever state they are.
        loader |= dict(multiprocessing_context="forkserver", prefetch_factor=4)
    made, recipe_file = (
        _recipe_hash(cfg, model, source, settings, inheritance, recipe or {}),
        work_dir / "recipe.sha256",
    )
    resume = recipe_file.exists() and recipe_file.read_text() == made

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
        write_atomically(recipe_file, lambda file: file.write(made))
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
        save(unwrapped(trained), out, facts)
        cfg.dump(work_dir / "config.py")
        for leftover in work_dir.glob("iter_*.pth"):
            leftover.unlink()
        (work_dir / "last_checkpoint").unlink(missing_ok=True)
        recipe_file.unlink(missing_ok=True)
    return facts


def write_facts(out: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """Write facts on a training as ``train.json`` beside its checkpoint, and return them."""
    if is_main_process():
        write_atomically(out.with_name("train.json"), lambda file: json.dump(facts, file, indent=1))
    return facts
