"""Validation during training: the devkit's metrics of the detector that would be saved, at intervals, as a curve."""

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import all_gather_object, broadcast_object_list, get_rank, get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor, nn

from pipeline.data.images import check_images
from pipeline.data.index import FrameIndex
from pipeline.data.source import FrameSource
from pipeline.errors import FD3DError, SettingError, counted
from pipeline.evaluation.metrics import METRICS, evaluate, evaluated_scenes
from pipeline.evaluation.predict import predict
from pipeline.evaluation.submission import Detection, write_submission
from pipeline.files import write_atomically
from pipeline.models.load import detector_of
from pipeline.training.checkpoints import SUBMISSION, unwrapped
from pipeline.training.processes import average_buffers, tell
from pipeline.training.randomness import random_state_kept
from pipeline.training.schedule import Course
from pipeline.training.settings import RunSettings, Validation

CURVE = "validation.csv"
"""Name of the curve beside the checkpoint."""
COLUMNS = ("epoch", "step", *METRICS, "scenes")
"""Columns of the curve: passes over the training split, optimiser steps, the devkit's metrics (NDS and mAP in percent), and the
number of scenes, which may change when a training is resumed."""

Row = dict[str, float]


def write_curve(path: Path, rows: Sequence[Row] = ()) -> None:
    """Write a curve; without rows the header alone, since DVC wants every output of a stage."""

    def write(file: Any) -> None:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)

    write_atomically(path, write)


def spread(scenes: Sequence[str], count: int | None) -> list[str]:
    """At most ``count`` scenes at even distances, the first one first; all for None."""
    chosen = len(scenes) if count is None else min(count, len(scenes))
    return [scenes[n * len(scenes) // chosen] for n in range(chosen)]


@dataclass(frozen=True)
class Validator:
    """Evaluates detectors on whole scenes of a split.

    Attributes:
        cfg: detector config.
        source: frames of the split.
        version: folder of the tables.
        scenes: names of the scenes.
        workers: processes that decode images.
        submission: file for the detections while they are evaluated.
    """

    cfg: Config
    source: FrameSource
    version: str
    scenes: Sequence[str]
    workers: int
    submission: Path

    def __call__(self, state: dict[str, Tensor], device: torch.device) -> Row:
        """Metrics of the detector with these weights, known to all processes: each detects on its share of the scenes, and the
        main one evaluates while the others wait.

        Raises:
            FD3DError: a detection is not finite.
        """
        with random_state_kept():
            parts = self._detect(state, device)
            found: list[Row | None] = [self._evaluate(parts) if is_main_process() else None]
        if get_world_size() > 1:
            broadcast_object_list(found)
        assert found[0] is not None
        return found[0]

    def _detect(self, state: dict[str, Tensor], device: torch.device) -> list[list[Detection]]:
        """Detections of every process's scenes."""
        # A detector of its own costs the memory of its weights, a quarter of a GB for the largest, while those of a step are
        # free. The one that trains keeps its mode, its taps and its streamed history as they are.
        detector = detector_of(self.cfg, state, device)
        average_buffers(detector)  # as the saved detector's
        index = FrameIndex.load(self.source.index, self.source.root)
        places = _places(index, self.source.split)
        own = self.scenes[get_rank() :: get_world_size()]
        rows = [places[row] for name in own for row in index.scenes.get(name, ())]
        found = list(predict(self.cfg, detector, self.source, self.workers, rows)) if rows else []
        return all_gather_object(found) if get_world_size() > 1 else [found]

    def _evaluate(self, parts: list[list[Detection]]) -> Row:
        index = FrameIndex.load(self.source.index, self.source.root)
        places = _places(index, self.source.split)
        # in the split's order, however the scenes were shared out
        found = sorted((frame for part in parts for frame in part), key=lambda frame: places[index.row(frame[0])])
        try:
            write_submission(self.submission, index, found)
            place = self.source.root, self.version, self.source.split
            metrics = evaluate(self.submission, *place, scenes=self.scenes, index=index)
        finally:
            self.submission.unlink(missing_ok=True)
        return {name: float(metrics[name]) for name in METRICS} | {"scenes": len(self.scenes)}


def _places(index: FrameIndex, split: str) -> dict[int, int]:
    """Numbers of the split's frames in their data set, by row of the index."""
    return {row: place for place, row in enumerate(index.select(split))}


def prepare_validation(
    cfg: Config, settings: RunSettings, validation: Validation | None, folder: Path
) -> Validator | None:
    """What validates a training, checked before it starts; None where the settings ask for none.

    Args:
        folder: of the training's files.

    Raises:
        FD3DError: there are no frames to validate on, or their split or tables cannot be evaluated.
    """
    if settings.validate_every is None:
        return None
    if validation is None:
        raise SettingError(f"train.validate_every is {settings.validate_every}, but no validation frames are given")
    source, version = validation.source, validation.version
    index = FrameIndex.load(source.index, source.root)
    if index.version != version:
        raise FD3DError(
            f"index {source.index} was made from {index.version}, but the tables to validate on are {version}; "
            "make it again with 'fd3d index'"
        )
    rows = index.select(source.split)  # names the splits that have scenes here
    if not index.boxes_of(rows)[1]:
        raise FD3DError(
            f"split '{source.split}' has no box that counts, so nothing can be validated on it; name another split"
        )
    evaluated_scenes(source.root, version, source.split)
    check_images(index, source.root, rows, source.index)
    names = index.arrays["scene_name"][rows].tolist()
    scenes = spread([name.decode() for name in dict.fromkeys(names)], settings.validate_scenes)
    return Validator(cfg, source, version, scenes, settings.workers, folder / SUBMISSION)


class Validate(Hook):
    """Validate at the ends of passes over the training split and after the last update, and write a row for each.

    A training that is validated ends in the same bits as one that is not. Rows are kept with the checkpoints: the curve of a
    resumed training is that of one which was never stopped, even where the file is gone.

    Args:
        path: of the CSV.
        course: course of the training.
        frames: items of a pass over the training split.
        every: passes between validations.
        export: function that gives the state dict to save of the model in training.
        validator: None validates never.
    """

    priority = "LOW"  # after the losses' row (but for a rest of the last updates), before the checkpoint that has both

    def __init__(
        self,
        path: Path,
        course: Course,
        frames: int,
        every: int,
        export: Callable[[nn.Module], dict[str, Tensor]],
        validator: Validator | None,
    ) -> None:
        self.path, self.course, self.frames, self.every = path, course, frames, every
        self.export, self.validator = export, validator
        self.rows: list[Row] = []

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Go on from what :meth:`collect` gave; the first checkpoints of this project had no validations."""
        self.rows = checkpoint["hooks"].get("Validate", {"rows": []})["rows"]

    def collect(self) -> dict[str, Any]:
        """Rows for a checkpoint."""
        return {"rows": self.rows}

    def before_train(self, runner: Runner) -> None:
        """Write the rows of a training that goes on, of others the header."""
        self._write()

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Validate where it is due.

        Raises:
            FD3DError: a detection is not finite.
        """
        update, rest = divmod(runner.iter + 1, self.course.accumulate)
        if self.validator is not None and not rest and self.is_due(update):
            self._validate(runner, self.validator, update)

    def after_train(self, runner: Runner) -> None:
        """Validate a training that was resumed after its last update, and before without validations."""
        done = self.rows[-1]["step"] if self.rows else 0
        if self.validator is not None and done < self.course.updates:
            self._validate(runner, self.validator, self.course.updates)

    def _validate(self, runner: Runner, validator: Validator, update: int) -> None:
        runner.call_hook("before_val")
        model = unwrapped(runner.model)
        try:
            found = validator(self.export(model), next(model.parameters()).device)
        except FD3DError as error:
            raise FD3DError(f"validation after step {update}: {error}") from error
        epoch = round(update * self.course.batch / self.frames, 2)
        self.rows.append({"epoch": epoch, "step": update} | found)
        self._write()
        runner.visualizer.add_scalars(
            {f"val/{name}": found[name] for name in METRICS}, step=update * self.course.accumulate
        )
        tell(
            f"epoch {epoch:g}, step {update:,}: NDS {found['NDS']}, mAP {found['mAP']} on {counted(int(found['scenes']), 'validation scene')}"
        )
        runner.call_hook("after_val")

    def is_due(self, update: int) -> bool:
        """Whether an update, counted from 1, is the last one or completes the passes between two validations."""
        passes = [count * self.course.batch // (self.frames * self.every) for count in (update - 1, update)]
        return update == self.course.updates or passes[0] < passes[1]

    @property
    def facts(self) -> dict[str, Any]:
        """NDS, mAP and scenes of the last update's validation under ``validation``; nothing without one."""
        last = [row for row in self.rows if row["step"] == self.course.updates]
        return {"validation": {name: last[0][name] for name in ("NDS", "mAP", "scenes")}} if last else {}

    def _write(self) -> None:
        if is_main_process():
            write_curve(self.path, self.rows)
