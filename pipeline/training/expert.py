"""The expert of a family: a checkpoint that is checked and taken, or a training."""

import shutil
from functools import partial
from pathlib import Path
from typing import Any

from mmengine.config import Config

from pipeline.data.conversion import class_rows
from pipeline.data.index import FrameIndex
from pipeline.data.made_for import check_views
from pipeline.data.source import FrameSource
from pipeline.errors import FD3DError
from pipeline.expert.adapted import trainable_model
from pipeline.expert.declared import is_foreign
from pipeline.expert.maps import check_foreign
from pipeline.files import check_outside_stores, write_atomically
from pipeline.models.build import build_detector, load_config, write_config
from pipeline.models.checkpoints import convert_checkpoint, in_own_conventions, load_checkpoint
from pipeline.models.pairs import StudentPlan, check_data, planned_student
from pipeline.models.reading import read_checkpoint
from pipeline.training.hooks import check_start
from pipeline.training.run import finish, train, write_facts
from pipeline.training.settings import RANDOM, Initial, RunSettings, Validation, read_schedule
from pipeline.training.validation import CURVE, write_curve


def take_or_train(
    config: Path,
    checkpoint: Path | None,
    run: RunSettings,
    source: FrameSource,
    out: Path,
    student: StudentPlan,
    *,
    student_init: Initial = RANDOM,
    init: Initial = RANDOM,
    boxes: str | None = None,
    classes: tuple[str, ...] | None = None,
    validation: Validation | None = None,
    restart: bool = False,
) -> dict[str, Any]:
    """Write the expert's checkpoint, its ``config.py`` and facts on its training; ``validation.csv`` has rows where it is trained.

    Args:
        checkpoint: checkpoint to take if it fits the config; None trains the expert.
        source: frames of the training.
        out: checkpoint to write.
        student: plan of the family's student, checked here, before the hours that stage 1 takes.
        student_init: pretrained file that the student starts from.
        init: pretrained file that an expert in training starts from.
        boxes, classes: conventions of a checkpoint that does not tell them, which is then converted.
        validation, restart: as of :func:`~pipeline.training.run.train`.

    Returns:
        facts on the training, also in ``train.json`` beside ``out``.

    Raises:
        FD3DError: ``out`` lies in a store, a config cannot be read or is made for another number of cameras, the checkpoint does not fit, an expert of another
            project does not fit its adapter or the student, or a loss is not finite.
    """
    check_outside_stores(out)
    cfg = load_config(config)
    if source.index.is_file():
        index = FrameIndex.load(source.index, source.root)
        check_data(cfg, checkpoint, index, source.root)
        check_views(load_config(student.config), len(index.cameras), student.config)
    read_schedule(load_config(student.config))
    told = bool(boxes or classes)
    check_student(student, config, None if told else checkpoint, student_init)
    if checkpoint is None:
        shared: Any = dict(init=init, validation=validation, restart=restart)
        return finish(out, train(cfg, trainable_model(cfg, source), source, out, run, **shared))
    if told:
        check_told(cfg, checkpoint, boxes, classes)
        notes = convert_checkpoint(checkpoint, out, config, boxes or "auto", classes)
        planned_student(student, config, out)
        write_config(cfg, out.with_name("config.py"))
        facts = {"checkpoint": str(checkpoint)} | {name: notes[name] for name in ("boxes", "classes")}
    else:
        found = load_checkpoint(build_detector(cfg), checkpoint, cfg.get("adapter"))
        if source.index.is_file():
            check_foreign(cfg, checkpoint, source, student)
        with open(checkpoint, "rb") as source_file:
            write_atomically(out, partial(shutil.copyfileobj, source_file), binary=True)
        write_config(cfg, out.with_name("config.py"))
        facts = found.training | {"checkpoint": str(checkpoint)}
    write_curve(out.with_name(CURVE))
    return write_facts(out, facts)


def check_student(student: StudentPlan, config: Path, checkpoint: Path | None, init: Initial) -> None:
    """Refuse a student that cannot be distilled as planned, or cannot start from its files.

    Args:
        config, checkpoint: of the expert; no checkpoint leaves the expert's weights out of the comparison.
        init: pretrained file that the student starts from.

    Raises:
        FD3DError: as of :func:`~pipeline.models.pairs.planned_student` and :func:`~pipeline.training.hooks.check_start`.
    """
    planned = planned_student(student, config, checkpoint)
    given = {name for name in planned.state_dict() if any(name.startswith(f"{module}.") for module in student.inherit)}
    check_start(planned, init, given)


def check_told(cfg: Config, checkpoint: Path, boxes: str | None, classes: tuple[str, ...] | None) -> None:
    """Refuse conventions that a profile tells of an expert's checkpoint (``boxes``, ``classes``) which needs none.

    Raises:
        FD3DError: the detector is of another project, the checkpoint is in this project's conventions by its notes, or the classes are others; naming the setting.
    """
    given = " and ".join(f"expert.{name}" for name, value in (("boxes", boxes), ("classes", classes)) if value)
    if is_foreign(cfg):
        raise FD3DError(
            f"{given}: {cfg.model.type} is another project's detector, whose checkpoints are never converted; remove {given}, and declare "
            f"classes and boxes in the adapter of {cfg.filename}"
        )
    if in_own_conventions(read_checkpoint(checkpoint)):
        raise FD3DError(
            f"{given}: checkpoint {checkpoint} is in this project's conventions already, by its notes; remove {given}"
        )
    class_rows(classes, "expert.classes")
