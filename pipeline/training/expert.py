"""The expert of a family: a checkpoint that is checked and taken, or a training."""

import shutil
from pathlib import Path
from typing import Any

from mmengine.config import Config

from pipeline.data.source import FrameSource
from pipeline.errors import FD3DError
from pipeline.models.build import build_detector, load_config
from pipeline.models.checkpoints import convert_checkpoint, load_checkpoint
from pipeline.models.pretrained import check_frozen
from pipeline.training.hooks import start_weights
from pipeline.training.run import finish, train, write_facts
from pipeline.training.settings import RANDOM, Initial, RunSettings, StudentPlan, Validation, read_schedule
from pipeline.training.validation import CURVE, write_curve


def take_or_train(
    config: Path,
    checkpoint: Path | None,
    run: RunSettings,
    source: FrameSource,
    out: Path,
    student: StudentPlan,
    *,
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
        init: pretrained file that an expert in training starts from.
        boxes, classes: conventions of a checkpoint that does not tell them, which is then converted.
        validation, restart: as of :func:`~pipeline.training.run.train`.

    Returns:
        facts on the training, also in ``train.json`` beside ``out``.

    Raises:
        FD3DError: a config cannot be read, the checkpoint does not fit, or a loss is not finite.
    """
    cfg = load_config(config)
    _check_student(student, cfg)
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


def _check_student(plan: StudentPlan, expert: Config) -> None:
    """Refuse a student that cannot be trained as planned.

    Raises:
        FD3DError: the schedule has a fault, a module to inherit or a number to distil does not exist, or frozen parameters
            have no start; naming the setting.
    """
    cfg = load_config(plan.config)
    read_schedule(cfg)
    model = build_detector(cfg)
    names = dict(model.named_modules()).keys() - {""}
    if unknown := [module for module in plan.inherit if module not in names]:
        known = ", ".join(name for name, _ in model.named_children())
        raise FD3DError(
            f"{plan.section}.inherit has {unknown[0]!r:.80}, no module of {plan.config}; there are {known} and modules below"
        )
    decoders = [cfg.model.get("pts_bbox_head", {}).get("transformer", {}).get("decoder", {}) for cfg in (expert, cfg)]
    sizes = {
        "levels": [cfg.model.get("img_neck", {}).get("num_outs") for cfg in (expert, cfg)],
        "layers": [decoders[0].get("num_layers")],  # only the expert's are read
    }
    for name, counts in sizes.items():
        numbers, count = getattr(plan, name), min((count for count in counts if count), default=None)
        if numbers is not None and count is not None and max(numbers) >= count:
            raise FD3DError(f"{plan.section}.{name} is {list(numbers)}; this family has {name} 0..{count - 1}")
    given = {name for name in model.state_dict() if any(name.startswith(f"{module}.") for module in plan.inherit)}
    check_frozen(model, given.union(*(taken.names for taken in start_weights(model, plan.init))), plan.init.setting)
