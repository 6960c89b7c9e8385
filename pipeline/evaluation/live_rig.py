"""Rig that a detector on live frames was made for: number, names and images of its cameras."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from mmengine.config import Config

from pipeline.data.rig import other_images
from pipeline.errors import FD3DError
from pipeline.export.notes import Notes
from pipeline.models.pairs import check_rig
from pipeline.models.reading import read_checkpoint

Sizes = tuple[tuple[int, int], ...]


class DetectorRig(Protocol):
    """What a detector knows of its cameras."""

    views: int | None
    """Number of cameras; None for any."""
    sizes: Sizes | None
    """Rows and columns of each camera's image; None where these are not known."""
    turn: float | None
    """Degrees by which the frame of reference is turned, see :func:`~pipeline.data.rig.turn_of`; None where it is not known."""

    def check(
        self,
        cameras: Sequence[str],
        reference: str,
        sizes: Sizes | None,
        folder: Path | None,
        turn: float | None = None,
    ) -> None:
        """Refuse another rig; arguments as of :meth:`Detector.check_rig <pipeline.evaluation.live.Detector.check_rig>`."""


class ExportedRig:
    """The rig that an ONNX file tells, as a :class:`DetectorRig`."""

    def __init__(self, notes: Notes, path: str | Path) -> None:
        self._notes, self._path = notes, path
        self.views: int | None = notes.views
        self.sizes: Sizes | None = notes.sizes
        self.turn: float | None = notes.lidar_turn

    def check(
        self,
        cameras: Sequence[str],
        reference: str,
        sizes: Sizes | None,
        folder: Path | None,
        turn: float | None = None,
    ) -> None:
        """See :class:`DetectorRig`."""
        self._notes.check_rig(cameras, reference, self._path, sizes, turn)


class TrainedRig:
    """The rig that a checkpoint of this project tells, as a :class:`DetectorRig`; other checkpoints tell none.

    Args:
        checkpoint: None for random weights.
        views: number of cameras that the detector has weights for; None for any.
    """

    def __init__(self, cfg: Config, checkpoint: Path | None, views: int | None) -> None:
        facts = {} if checkpoint is None else read_checkpoint(checkpoint).training
        self._cfg, self._checkpoint, self.views = cfg, checkpoint, views
        self._cameras = list(facts.get("cameras") or ())
        self.sizes: Sizes | None = None
        self.turn: float | None = facts.get("lidar_turn")
        if self._cameras and facts.get("image_sizes"):
            self.sizes = tuple((rows, columns) for rows, columns in facts["image_sizes"])

    def check(
        self,
        cameras: Sequence[str],
        reference: str,
        sizes: Sizes | None,
        folder: Path | None,
        turn: float | None = None,
    ) -> None:
        """See :class:`DetectorRig`; the images of a rig of other names are taken for the rig's from now on."""
        check_rig(self._cfg, self._checkpoint, cameras, reference, folder, turn)
        if sizes is None:
            return
        if self.sizes is None or list(cameras) != self._cameras:
            self.sizes = tuple(sizes)
        elif odd := other_images(self.sizes, sizes, cameras):
            raise FD3DError(
                f"checkpoint {self._checkpoint} was trained with {odd}; give images of the training's sizes, or train for these"
            )
