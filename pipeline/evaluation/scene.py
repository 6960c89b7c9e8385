"""Detection on a few frames of a scene: boxes, drawings and times, for any nuScenes-format data."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.folder import only_version, table_folder
from pipeline.data.images import check_images
from pipeline.data.index import Frame, build_index
from pipeline.data.rig import rig_of_tables, turn_of
from pipeline.data.transforms import LoadMultiViewImages
from pipeline.evaluation.early import check_detection, naming_an_index, open_scene
from pipeline.evaluation.live import Calibration, Detector, EgoPose
from pipeline.evaluation.submission import to_submission
from pipeline.files import write_atomically
from pipeline.report.figures import beside, bev_figure, camera_sheet, jpeg


@dataclass(frozen=True)
class DetectedFrame:
    """Result of :func:`detect_scene` on one frame.

    Attributes:
        seconds: time for decoding the images and detecting; the first frame's time includes the one-time set-up.
        boxes: number of boxes with at least ``min_score``.
        drawing: file with six cameras and bird's-eye view.
    """

    token: str
    seconds: float
    boxes: int
    drawing: Path


def detect_scene(
    config: Path,
    checkpoint: Path | None,
    root: Path,
    scene: str,
    out: Path,
    *,
    version: str | None = None,
    index: Path | None = None,
    frames: int = 4,
    min_score: float = 0.3,
    onnx: Path | None = None,
    random_weights: bool = False,
) -> Iterator[DetectedFrame]:
    """Detect on the first frames of a scene, in time order with streamed history.

    After every frame ``out`` has its drawing (annotated boxes green, detected ones red) and in ``submission.json`` the
    nuScenes submission of the frames so far, boxes in the global frame, with all scores.

    Args:
        checkpoint: the detector's weights, unless ``onnx`` or ``random_weights`` is given.
        root: data root in nuScenes format.
        version: folder of the root's tables; default: the only one.
        index: frame index of the root; default: ``out/index.npz``, which is made.
        frames: largest number of frames.
        min_score: score from which boxes are drawn and counted.
        onnx: exported file that runs in place of a checkpoint.
        random_weights: random weights in place of a checkpoint.

    Raises:
        FD3DError: bad input, among it an unknown scene, another rig than an exported file's, or images that are missing.
    """
    check_detection(config, root, scene, out, version, index, frames)
    detector = Detector.open(config, checkpoint, onnx, random_weights)
    if index is None:
        index = out / "index.npz"
        with naming_an_index(root):
            folder = table_folder(root, version or only_version(root))
            if (rig := rig_of_tables(folder)) is not None:  # before minutes of large tables
                detector.check_rig(*rig, folder=folder)
            build_index(root, folder.name, index, tell=print)
    known = open_scene(index, root, scene)
    sizes = known.arrays["image_sizes"][known.scenes[scene][0]].tolist()
    turn = turn_of(known.arrays["lidar2ego"])
    detector.check_rig(known.cameras, known.reference, sizes, Path(root) / known.version, turn)
    rows = known.scenes[scene][:frames]
    check_images(known, root, rows, index)
    submission: dict[str, Any] = {}
    for row in rows:
        frame, started = known[row], time.perf_counter()
        found = detector.step(*live_frame(root, frame))
        seconds = time.perf_counter() - started
        made = to_submission(known, [(frame.token, *found)])
        submission = made | {"results": submission.get("results", {}) | made["results"]}
        write_atomically(out / "submission.json", partial(json.dump, submission))
        kept = found.boxes[found.scores >= min_score]
        drawing = out / f"{frame.order:03d}_{frame.token}.jpg"
        _draw(drawing, root, frame, kept, detector.cfg.pc_range[3])
        yield DetectedFrame(frame.token, seconds, len(kept), drawing)


def live_frame(root: Path, frame: Frame) -> tuple[list[np.ndarray], Calibration, EgoPose]:
    """Arguments of :meth:`Detector.step <pipeline.evaluation.live.Detector.step>` for a frame of an index."""
    decoded = LoadMultiViewImages(to_rgb=True).transform({"root": root, "frames": [{"frame": frame}]})
    images = [
        image[:rows, :columns]
        for image, (rows, columns) in zip(decoded["frames"][0]["img"], frame.image_sizes, strict=True)
    ]
    calibration = Calibration(frame.intrinsics, frame.lidar2cam, frame.lidar2ego)
    return images, calibration, EgoPose(frame.ego2global, frame.timestamp, frame.can_bus)


def _draw(path: Path, root: Path, frame: Frame, boxes: np.ndarray, extent: float) -> None:
    annotated = np.nan_to_num(frame.boxes)
    sheet = camera_sheet(root, frame, [(annotated, (80, 220, 80)), (boxes, (255, 80, 60))])
    layers = {"annotated": (annotated, "limegreen"), "detected": (boxes, "tomato")}
    shown = {name: layer for name, layer in layers.items() if len(layer[0])}
    image = beside(sheet, bev_figure(shown, extent, frame.lidar2ego))
    write_atomically(path, lambda file: file.write(jpeg(image)), binary=True)
