"""The expert of a family: a checkpoint that is checked and taken, or a training."""

import shutil
from pathlib import Path
from typing import Any

from pipeline.data.source import FrameSource
from pipeline.models.build import build_detector, load_config
from pipeline.models.checkpoints import load_checkpoint
from pipeline.training.run import finish, train, write_facts
from pipeline.training.settings import RunSettings, read_schedule


def take_or_train(
    config: Path,
    checkpoint: Path | None,
    run: RunSettings,
    source: FrameSource,
    out: Path,
    student: Path,
    restart: bool = False,
) -> dict[str, Any]:
    """Write the expert's checkpoint, its ``config.py`` and facts on its training.

    Args:
        checkpoint: checkpoint to take if it fits the config; None trains the expert.
        source: frames of the training.
        out: checkpoint to write.
        restart: as of :func:`~pipeline.training.run.train`.
        student: config of the family's student, whose schedule is checked here, before the hours that stage 1 takes.

    Returns:
        facts on the training, also in ``train.json`` beside ``out``.

    Raises:
        FD3DError: a config cannot be read, the checkpoint does not fit, or a loss is not finite.
    """
    cfg = load_config(config)
    read_schedule(load_config(student))
    if checkpoint is None:
        return finish(out, train(cfg, cfg.model, source, out, run, restart=restart))
    found = load_checkpoint(build_detector(cfg), checkpoint)
    out.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(checkpoint, out)
    cfg.dump(out.with_name("config.py"))
    return write_facts(out, found.training | {"checkpoint": str(checkpoint)})
