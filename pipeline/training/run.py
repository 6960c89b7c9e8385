"""Training of experts and students with mmengine's Runner: schedule, guards, curves and the final checkpoint."""

import importlib.util
import json
import logging
import os
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from mmdet3d.registry import DATASETS
from mmengine.config import Config, ConfigDict
from mmengine.dist import barrier, get_rank, is_main_process
from mmengine.runner import Runner
from torch import nn

from pipeline.data.frames import batch_bytes, frame_dataset
from pipeline.data.images import check_images
from pipeline.data.index import FrameIndex
from pipeline.data.made_for import check_views, tells_cameras_apart
from pipeline.data.rig import sizes_of, turn_of
from pipeline.data.source import FrameSource
from pipeline.data.workers import check_shared_memory, loader_options, worker_errors
from pipeline.errors import FD3DError, counted
from pipeline.files import check_needed, check_outside_stores, file_sha256, write_atomically
from pipeline.models.build import write_config
from pipeline.models.checkpoints import save_checkpoint
from pipeline.models.conventions import declared_classes
from pipeline.models.pairs import check_trained_rig
from pipeline.training import hooks, loop  # noqa: F401  registers what the Runner is told by name
from pipeline.training.checkpoints import Unfinished, flat, forget_unfinished, take_up, unwrapped
from pipeline.training.heights import warn_of_heights
from pipeline.training.processes import average_buffers, join_processes, launched, model_wrapper, tell
from pipeline.training.randomness import collate_with_state, start_worker
from pipeline.training.schedule import Course, plan_course
from pipeline.training.settings import RANDOM, Inheritance, Initial, RunSettings, Validation, read_schedule
from pipeline.training.validation import CURVE, Validate, prepare_validation
from pipeline.training.work_folder import WorkFolder


def _recipe(
    cfg: Config,
    model: dict | ConfigDict,
    source: FrameSource,
    settings: RunSettings,
    course: Course,
    init: Initial,
    inheritance: Inheritance | None,
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """Plain values by dotted name that decide a training's result: a checkpoint of another recipe is not resumed."""
    recipe = {
        "config": {name: value for name, value in cfg.to_dict().items() if name != "model"},
        # a store is told by its fingerprint, wherever it lies, and a distiller's settings by their section of the profile
        "model": {name: value for name, value in dict(model).items() if name not in ("store", "settings")},
        "data.split": source.split,
        "data.index": file_sha256(source.index),
        "train": {name: value for name, value in asdict(settings).items() if name in ("seed", "max_iters", "amp")},
        "course": asdict(course),
    }
    if init.checkpoint:
        recipe["init"] = file_sha256(init.checkpoint)
    if inheritance:
        recipe |= {"inherited": inheritance.modules, "inherited_sha256": file_sha256(inheritance.checkpoint)}
    return flat(recipe | dict(facts))


def train(
    cfg: Config,
    model: dict | ConfigDict,
    source: FrameSource,
    out: Path,
    settings: RunSettings,
    *,
    export: Callable[[nn.Module], dict[str, torch.Tensor]] = lambda model: model.state_dict(),
    facts_of: Callable[[Any], dict[str, Any]] = lambda model: {},
    init: Initial = RANDOM,
    inheritance: Inheritance | None = None,
    targets: Sequence[dict] = (),
    recipe: Mapping[str, Any] | None = None,
    validation: Validation | None = None,
    restart: bool = False,
) -> dict[str, Any]:
    """Train ``model`` on the frames of ``source``; a killed training goes on from its last checkpoint, to the same bits.

    Under a launcher such as torchrun all its processes train one model: see :func:`~pipeline.training.schedule.plan_course`
    for how they share an update.

    Args:
        cfg: detector config: image, queue_length, pc_range, optim_wrapper, schedule, augment.
        model: config of the model to build, usually ``cfg.model`` or a distiller around it.
        out: checkpoint of the finished detector; its ``config.py``, ``losses.csv``, ``validation.csv`` (the header alone
            without validations) and mmengine's work files go beside it.
        export: function that gives the state dict to save of the trained model.
        facts_of: function that gives further facts of the trained model, plain values by name.
        init: pretrained file that backbone and neck start from.
        inheritance: weights of an expert that modules start from. All other modules start from random weights.
        targets: transforms that load the expert's targets, see :func:`~pipeline.data.frames.frame_pipeline`.
        recipe: further plain values that decide the result, besides config, model, frames and settings.
        validation: frames for ``settings.validate_every``, which decides no result and may change before a resume.
        restart: give up an unfinished training of other settings, frames or targets; without it that is refused.

    Returns:
        seed, seconds of training in this process without its validations, steps, processes, batch, seconds_per_step and
        peak_memory_mb (:class:`~pipeline.training.hooks.StepTimes`), of the last validation NDS, mAP and scenes, and ``facts_of``; the
        checkpoint has them under ``training``.

    Raises:
        FD3DError: ``out`` lies in a store, contradictory settings, settings of an unfinished training that changed, a file to start from that does not
            fit or was trained with the cameras in another order or in another frame of reference or one that is turned otherwise, frozen parameters that would keep random weights, frames that cannot be validated on, or a loss that is not
            finite.
    """
    check_outside_stores(out)
    check_machine(settings)
    if inheritance:
        check_needed(expert=inheritance.checkpoint)
    init.check()
    schedule, index = read_schedule(cfg), FrameIndex.load(source.index, source.root)
    check_views(cfg, len(index.cameras), cfg.filename)
    turn = turn_of(index.arrays["lidar2ego"])
    if inheritance:
        folder = source.root / index.version
        check_trained_rig(
            inheritance.checkpoint, index.cameras, index.reference, folder, turn, tells_cameras_apart(cfg)
        )
    if not index.boxes_of(index.select(source.split))[1]:
        raise FD3DError(
            f"split '{source.split}' has no box that counts, so nothing can be trained on it; name another split"
        )
    check_images(index, source.root, index.select(source.split), source.index)
    warn_of_heights(cfg, index, index.select(source.split))
    torch.set_num_threads(settings.threads)
    validator = prepare_validation(cfg, settings, validation, out.parent)
    processes, data = join_processes(), frame_dataset(cfg, source, True, targets)
    frames = len(DATASETS.build(data)) if schedule.epochs or validator else 0
    course = plan_course(schedule, settings, frames, processes)
    check_course(course, settings, source.split, len(index.select(source.split)))
    tell(str(course))
    work_dir = out.parent
    made = _recipe(cfg, model, source, settings, course, init, inheritance, recipe or {})
    found = take_up(work_dir, made, restart)
    barrier()  # every process has looked before the main one removes anything
    if found is None and out.is_file():
        tell(f"{out} is there; it is replaced when this training ends")
    optim = cfg.optim_wrapper.to_dict() if isinstance(cfg.optim_wrapper, ConfigDict) else dict(cfg.optim_wrapper)
    optim["accumulative_counts"] = course.accumulate
    if settings.amp:
        optim["type"] = "AmpOptimWrapper"
    log_every = max(1, min(50, course.updates // 20))
    loader, states = _loader(data, settings, course, found)
    if settings.workers:
        workers = settings.workers * int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        ahead = batch_bytes(cfg, index, cfg.queue_length, course.batch_size, train=True)
        if validator:  # the training's workers wait with what they have decoded
            ahead += batch_bytes(cfg, index, 1, 1)
        check_shared_memory(ahead, workers)

    def save(trained: nn.Module, path: Path, facts: dict[str, Any]) -> None:
        state = {name: tensor.detach().cpu() for name, tensor in export(trained).items()}
        sizes = sizes_of(index.arrays["image_sizes"])
        rig: dict[str, Any] = {"cameras": list(index.cameras), "reference": index.reference, "lidar_turn": turn}
        rig |= {} if sizes is None else {"image_sizes": [list(hw) for hw in sizes]}
        classes = list(declared_classes(cfg.get("adapter")))
        if all(
            name is None or isinstance(name, str) for name in classes
        ):  # an own adapter may mean something else by them
            rig["classes"] = classes
        save_checkpoint({"state_dict": state, "training": facts | rig}, path)

    def keep(trained: nn.Module, steps: int) -> None:
        save(trained, out.with_stem(f"{out.stem}-{steps}"), {"seed": settings.seed, "steps": steps})

    each = dict(accumulate=course.accumulate)
    times = hooks.StepTimes(**each)
    validate = Validate(work_dir / CURVE, course, frames, settings.validate_every or 1, export, validator)
    work = WorkFolder(work_dir, begun=found is not None)

    def begin() -> None:
        work.begin()
        forget_unfinished(work_dir)

    with work:
        runner = Runner(
            model=model,
            work_dir=str(work_dir),
            train_dataloader=loader,
            optim_wrapper=optim,
            param_scheduler=[],
            train_cfg=dict(type="UpdateLoop", max_iters=course.iterations, **each),
            default_hooks=dict(
                logger=dict(type="LoggerHook", interval=log_every * course.accumulate, log_metric_by_epoch=False),
                checkpoint=dict(
                    type="Checkpoints", interval=settings.checkpoint_every * course.accumulate, recipe=made
                ),
            ),
            custom_hooks=[
                dict(type="RandomStates", workers=settings.workers, states=states),
                dict(type="LearningRate", course=course, base=optim["optimizer"]["lr"]),
                dict(type="NaNGuard"),
                dict(
                    type="LossCurve", path=work_dir / "losses.csv", interval=settings.curve_every or log_every, **each
                ),
                validate,
                dict(type="Snapshots", updates=settings.snapshots, save=keep, **each),
                dict(type="StartFrom", init=init, inheritance=inheritance, begin=begin, adapter=cfg.get("adapter")),
                dict(type="Progress", **each),
                times,
            ],
            visualizer=_visualizer() if settings.tensorboard else None,
            # mmengine hands a visualiser on to the next Runner of the same name, and its own names differ by seconds only
            experiment_name=uuid.uuid4().hex,
            log_processor=dict(by_epoch=False),
            launcher="pytorch" if launched() else "none",
            randomness=dict(seed=settings.seed),
            default_scope="mmdet3d",
            env_cfg=dict(cfg.env_cfg),
            log_level="WARNING" if not logging.getLogger().isEnabledFor(logging.INFO) else "INFO",
            load_from=None if found is None else str(found.path),
            resume=found is not None,
            cfg=dict(model_wrapper_cfg=model_wrapper()) if launched() else None,
        )
        # frozen parameters, of which mmengine tells one by one: check_frozen has looked at them
        runner.logger.addFilter(lambda record: "is skipped since its requires_grad=False" not in record.getMessage())
        if found is not None:
            tell(f"going on from {found.path}, after {counted(found.iterations // course.accumulate, 'update')}")
        started = time.perf_counter()
        with worker_errors():
            trained = runner.train()
    seconds = time.perf_counter() - started - times.validating
    average_buffers(unwrapped(trained))
    facts = {
        "seed": settings.seed,
        "seconds": round(seconds, 1),
        "steps": course.updates,
        "world_size": processes,
        "batch": course.batch,
        **times.facts(),
        **validate.facts,
        **facts_of(unwrapped(trained)),
    }
    told = f"{facts['seconds_per_step']:g} s a step (median), " if "seconds_per_step" in facts else ""
    tell(f"{told}at most {facts['peak_memory_mb']:,} MB of memory a process")
    if is_main_process():
        save(unwrapped(trained), out, facts)
        write_config(cfg, work_dir / "config.py")
    return facts


def check_machine(settings: RunSettings) -> None:
    """Refuse settings that need what this machine lacks.

    Raises:
        FD3DError: naming the setting.
    """
    if settings.amp and not torch.cuda.is_available():
        raise FD3DError("amp is set but there is no GPU; leave it off on a CPU")
    if settings.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise FD3DError("train.tensorboard is set, but there is no TensorBoard: pip install fd3d[tensorboard]")


def check_course(course: Course, settings: RunSettings, split: str, frames: int | None) -> None:
    """Refuse snapshots that a course does not pass, and iterations of more frames than a split has.

    Args:
        frames: of the split; None where the number is not known yet.

    Raises:
        FD3DError: naming the setting.
    """
    if late := [update for update in settings.snapshots if not 0 < update <= course.updates]:
        raise FD3DError(f"train.snapshots has {late[0]}, but the training has the updates 1 to {course.updates}")
    together = course.processes * course.batch_size
    if frames is not None and together > frames:
        raise FD3DError(
            f"an iteration takes {counted(together, 'different frame')}, but split '{split}' has {frames}; lower train.batch_size"
        )


def _visualizer() -> dict[str, Any]:
    """Config of mmengine's visualiser with TensorBoard's files beside its own; one for each Runner, which writes into it."""
    return dict(type="Visualizer", vis_backends=[dict(type="LocalVisBackend"), dict(type="TensorboardVisBackend")])


def _loader(
    data: dict[str, Any], settings: RunSettings, course: Course, found: Unfinished | None
) -> tuple[dict[str, Any], list[dict[str, Any] | None]]:
    """Config of the data loader from where an unfinished training stopped, and the states that its workers start from."""
    batches, workers = 0 if found is None else found.iterations, settings.workers
    states: list[dict[str, Any] | None] = [None] * workers
    if found is not None and len(found.workers[get_rank()]) == workers:
        states = found.workers[get_rank()]
    elif found is not None:
        tell("warning: the number of data workers has changed: random distortions go on with other random numbers")
    loader: dict[str, Any] = dict(
        batch_size=course.batch_size,
        num_workers=workers,
        persistent_workers=workers > 0,
        sampler=dict(type="ResumableSampler", seed=settings.seed, start=batches * course.batch_size),
        collate_fn=dict(type=collate_with_state),
        dataset=data,
        drop_last=True,
    )
    if workers:
        start = dict(type=start_worker, workers=workers, seed=settings.seed, batches=batches, states=states)
        loader |= dict(loader_options(workers), worker_init_fn=start)
    return loader, states


def finish(out: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """Write facts on a training as ``train.json`` beside its checkpoint, remove what only a resume needs, return the facts."""
    write_facts(out, facts)
    if is_main_process():
        forget_unfinished(out.parent)
    return facts


def write_facts(out: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """Write facts on a training as ``train.json`` beside its checkpoint, and return them."""
    if is_main_process():
        write_atomically(out.with_name("train.json"), lambda file: json.dump(facts, file, indent=1))
    return facts
