"""The expert of a family: a checkpoint that is checked and taken, or a training."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config

from pipeline.data.source import FrameSource
from pipeline.models.build import build_detector, load_config
from pipeline.models.checkpoints import convert_checkpoint, load_checkpoint
from pipeline.models.pretrained import check_frozen
from pipeline.training.hooks import start_weights
from pipeline.training.run import finish, train, write_facts
from pipeline.training.settings import RANDOM, Initial, RunSettings, Validation, read_schedule
from pipeline.training.validation import CURVE, write_curve


def take_or_train(
    config: Path,
    checkpoint: Path | None,
    run: RunSettings,
    source: FrameSource,
    out: Path,
    student: Path,
    *,
    init: Initial = RANDOM,
    boxes: str | None = None,
    classes: tuple[str, ...] | None = None,
    student_init: Initial = RANDOM,
    inherited: Sequence[str] = (),
    validation: Validation | None = None,
    restart: bool = False,
) -> dict[str, Any]:
    """Write the expert's checkpoint, its ``config.py`` and facts on its training; ``validation.csv`` has rows where it is trained.

    Args:
        checkpoint: checkpoint to take if it fits the config; None trains the expert.
        source: frames of the training.
        out: checkpoint to write.
        student: config of the family's student, whose schedule and start are checked here, before the hours that stage 1
            takes.
        init: pretrained file that an expert in training starts from.
        boxes, classes: conventions of a checkpoint that does not tell them, which is then converted.
        student_init: pretrained file that the student will start from.
        inherited: modules that the student will inherit.
        validation, restart: as of :func:`~pipeline.training.run.train`.

    Returns:
        facts on the training, also in ``train.json`` beside ``out``.

    Raises:
        FD3DError: a config cannot be read, the checkpoint does not fit, or a loss is not finite.
    """
    cfg = load_config(config)
    _check_student(load_config(student), student_init, inherited)
    if checkpoint is None:
        shared: Any = dict(init=init, validation=validation, restart=restart)
        return finish(out, train(cfg, cfg.model, source, out, run, **shared))
    if boxes or classes:
        notes = convert_checkpoint(checkpoint, out, config, boxes or "auto", classes)
        cfg.dump(out.with_name("config.py"))
        facts = {"checkpoint": str(checkpoint)} | {name: notes[name] for name in ("boxes", "classes")}
    else:
        found = load_checkpoint(build_detector(cfg), checkpoint)
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(checkpoint, out)
        cfg.dump(out.with_name("config.py"))
        facts = found.training | {"checkpoint": str(checkpoint)}
    write_curve(out.with_name(CURVE))
    return write_facts(out, facts)


def _check_student(cfg: Config, init: Initial, inherited: Sequence[str]) -> None:
    """Refuse a student that cannot be trained: a schedule with a fault, or frozen parameters without a start."""
    read_schedule(cfg)
    model = build_detector(cfg)
    given = {name for name in model.state_dict() if any(name.startswith(f"{module}.") for module in inherited)}
    check_frozen(model, given.union(*(taken.names for taken in start_weights(model, init))), init.setting)
