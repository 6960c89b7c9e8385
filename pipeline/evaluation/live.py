"""A detector on live frames: arrays in, boxes out, history streamed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
from mmcv.transforms import Compose
from mmengine.config import Config

from pipeline.data.can_bus import EgoStates
from pipeline.data.frames import collate, frame_pipeline
from pipeline.data.geometry import can_bus_delta, lidar2img, lidar_turn, resize_factors
from pipeline.data.rig import EGO
from pipeline.data.transforms import padded
from pipeline.errors import FD3DError
from pipeline.evaluation.live_input import (
    check_calibration,
    check_pose,
    check_sizes,
    check_state,
    check_step,
    check_turn,
    checked_images,
)
from pipeline.evaluation.live_rig import DetectorRig, ExportedRig, TrainedRig
from pipeline.evaluation.predict import batch_detector
from pipeline.export.graph import detector_views
from pipeline.export.runtime import ExportedDetector, graph_arguments
from pipeline.models.build import load_config
from pipeline.models.detector import MultiCameraDetector
from pipeline.models.load import load_detector


@dataclass(frozen=True)
class Calibration:
    """Calibration of a rig of V cameras.

    Attributes:
        intrinsics: (V, 3, 3) pixels of the original images.
        lidar2cam: (V, 4, 4) reference frame to camera frame (x right, y down, z ahead), metres. The reference frame is the one that
            the detector was trained in: a LiDAR's, whose x axis looks to the right and y axis ahead on nuScenes' car, or the ego
            frame (x ahead, y left, z up), where a car has no LiDAR; motion between the exposures may be part of it, as in an index.
        lidar2ego: (4, 4) reference frame to ego frame: the mount of the LiDAR, or the identity where the ego frame is the reference.
    """

    intrinsics: np.ndarray
    lidar2cam: np.ndarray
    lidar2ego: np.ndarray


@dataclass(frozen=True)
class EgoPose:
    """Pose of the car at the time of a frame.

    Attributes:
        ego2global: (4, 4) ego frame to global frame, metres, in any frame that does not move while frames are streamed.
        timestamp: microseconds.
        state: (18,) absolute ego state of :class:`~pipeline.data.can_bus.EgoStates`, where measured. None derives velocity and turn
            rate from this pose and the one before.
    """

    ego2global: np.ndarray
    timestamp: int
    state: np.ndarray | None = None


class Boxes(NamedTuple):
    """Detections of a frame.

    Attributes:
        boxes: (n, 9) float32 (x, y, z, dx, dy, dz, yaw, vx, vy) in the reference frame: centre of gravity, metres, radians, m/s.
        scores: (n,) falling.
        labels: (n,) numbers in ``pipeline.data.CLASSES``.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray


class Detector:
    """A detector that takes frame after frame; made by :meth:`open`.

    ::

        detector = Detector.open("runs/bevformer/fd3d/config.py", "runs/bevformer/fd3d/detector.pth")
        for images, pose in drive:
            boxes, scores, labels = detector.step(images, calibration, pose)

    Attributes:
        cfg: the detector's config.
    """

    def __init__(
        self,
        cfg: Config,
        detect: Callable[[dict[str, Any]], Any],
        rig: DetectorRig,
    ) -> None:
        self.cfg, self._detect, self._rig = cfg, detect, rig
        self._pack = Compose(frame_pipeline(cfg, train=False)[1:])
        self._drive = 0
        self._last: EgoPose | None = None
        self._state: np.ndarray | None = None
        self._sizes: list[tuple[int, int]] | None = None

    @classmethod
    def open(
        cls,
        config: str | Path,
        checkpoint: str | Path | None = None,
        onnx: str | Path | None = None,
        random_weights: bool = False,
    ) -> "Detector":
        """A detector in PyTorch on the best device, or in ONNX Runtime.

        Args:
            config: the detector's config.
            checkpoint: the checkpoint.
            onnx: file that ``fd3d export`` made with the config, in place of a checkpoint.
            random_weights: random weights in place of a checkpoint, for a try of data and model.

        Raises:
            FD3DError: a file is missing, damaged, or does not fit the config; not one of checkpoint, ONNX file and random weights is
                given; or ONNX Runtime is missing.
        """
        given = [str(path) for path in (checkpoint, onnx) if path is not None] + ["random weights"] * random_weights
        if len(given) != 1:
            raise FD3DError(
                f"given to the detector: {' and '.join(given) or 'no weights'}; give a checkpoint or an ONNX file (onnx=...), or "
                "random_weights=True for a try"
            )
        cfg = load_config(config)
        if onnx is not None:
            exported = ExportedDetector(Path(onnx))
            exported.notes.check_config(cfg, onnx)
            return cls(cfg, lambda batch: exported(*graph_arguments(batch)), ExportedRig(exported.notes, onnx))
        weights = None if checkpoint is None else Path(checkpoint)
        model = load_detector(cfg, weights)
        views = detector_views(model) if isinstance(model, MultiCameraDetector) else None
        detect = batch_detector(cfg, model)
        return cls(cfg, lambda batch: detect(batch)[0][1:], TrainedRig(cfg, weights, views))

    def check_rig(
        self,
        cameras: Sequence[str],
        reference: str,
        sizes: Sequence[Sequence[int]] | None = None,
        folder: Path | None = None,
        turn: float | None = None,
    ) -> None:
        """Refuse a rig that the exported file was not made for, or that the checkpoint was not trained with.

        Args:
            cameras: names of the cameras in order.
            reference: frame of reference, as of an index: ``ego``, or the name of the sensor that ``lidar2ego`` of a
                :class:`Calibration` is of.
            sizes: rows and columns of each camera's image; a checkpoint takes those of a rig of other names from now on.
            folder: of the data set's tables.
            turn: degrees by which the frame of reference is turned, see :func:`~pipeline.data.rig.turn_of`; None compares none.

        Raises:
            FD3DError: naming both, or no frame of reference is given.
        """
        if not isinstance(reference, str) or not reference:  # whether boxes are in the same frame would be a guess
            raise FD3DError(
                f"the frame of reference is {reference!r}; give '{EGO}', or the name of the sensor that Calibration.lidar2ego is of"
            )
        given = None if sizes is None else tuple((int(h), int(w)) for h, w in sizes)
        self._rig.check(cameras, reference, given, folder, turn)

    def reset(self) -> None:
        """Forget the frames so far: the next one starts another drive."""
        self._drive, self._last, self._state, self._sizes = self._drive + 1, None, None, None

    def step(self, images: Sequence[np.ndarray] | np.ndarray, calibration: Calibration, pose: EgoPose) -> Boxes:
        """Detect on the next frame.

        Args:
            images: V images (H, W, 3) uint8 RGB of their original sizes, in the order of cameras that the detector was trained with.

        Raises:
            FD3DError: another rig than the detector's or a frame of reference with other axes, a camera without image, arrays of other shapes, matrices that are no
                calibration or no pose, or a frame that cannot follow the last one. The history stays as it was.
        """
        images = checked_images(images, self._rig.views, self._rig.sizes)
        if not isinstance(calibration, Calibration) or not isinstance(pose, EgoPose):
            kinds = f"{type(calibration).__name__} and {type(pose).__name__}"
            raise FD3DError(f"calibration and pose are {kinds}; give a Calibration and an EgoPose")
        sizes = [(image.shape[0], image.shape[1]) for image in images]
        check_sizes(sizes, self._sizes)
        check_calibration(calibration.intrinsics, calibration.lidar2cam, calibration.lidar2ego, sizes)
        check_turn(calibration.lidar2ego, self._rig.turn)
        self._check_pose(pose, calibration.lidar2ego)
        matrices = (calibration.intrinsics, calibration.lidar2cam, calibration.lidar2ego)
        calibration = Calibration(*(np.asarray(matrix, np.float64) for matrix in matrices))
        state = self._ego_state(calibration, pose) if pose.state is None else np.asarray(pose.state, np.float64)
        stacked = padded(images)
        factors = resize_factors(stacked.shape[1:3], self.cfg.image.scale)
        token = f"{self._drive}/{pose.timestamp}"
        frame = SimpleNamespace(
            token=token,
            scene_token=str(self._drive),
            timestamp=pose.timestamp,
            lidar2cam=calibration.lidar2cam,
            image_sizes=np.array(sizes),
        )
        entry = {
            "frame": frame,
            "img": stacked if self.cfg.image.to_rgb else np.ascontiguousarray(stacked[..., ::-1]),
            "scale": self.cfg.image.scale,
            "lidar2img": lidar2img(calibration.intrinsics, calibration.lidar2cam, factors),
            "can_bus": can_bus_delta(state, self._state),
            "has_history": self._last is not None,
        }
        found = Boxes(*self._detect(collate([self._pack({"token": token, "frames": [entry]})])))
        self._last, self._state, self._sizes = pose, state, sizes
        return found

    def _check_pose(self, pose: EgoPose, lidar2ego: np.ndarray) -> None:
        check_pose(pose.ego2global, pose.timestamp)
        if pose.state is not None:
            check_state(pose.state, pose.ego2global, lidar_turn(np.asarray(lidar2ego, np.float64)))
        if self._last is not None:
            check_step(self._last.ego2global, self._last.timestamp, pose.ego2global, pose.timestamp)

    def _ego_state(self, calibration: Calibration, pose: EgoPose) -> np.ndarray:
        """The state (18,) that an index without CAN bus has for the last of its scene's frames."""
        known = [pose] if self._last is None else [self._last, pose]
        poses = np.stack([np.asarray(one.ego2global, np.float64) for one in known])
        real_parts = np.sqrt(np.maximum(1 + np.trace(poses[:, :3, :3], axis1=1, axis2=2), 0)) / 2
        times, turn = np.array([one.timestamp for one in known]), lidar_turn(calibration.lidar2ego)
        return EgoStates(Path()).of("", times, poses, real_parts, turn)[-1]
