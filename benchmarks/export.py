"""Boxes, NDS, file size and time of a detector in PyTorch, as an ONNX file, and with int8 convolutions.

    python -m benchmarks.export CONFIG CHECKPOINT --index INDEX --root ROOT --split world_val

All three see the same frames through ``Detector.step``, history streamed. Times are medians over the frames, preprocessing
included, image decoding not.
"""

import contextlib
import io
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import torch
import typer

from pipeline.data.index import FrameIndex
from pipeline.data.source import FrameSource
from pipeline.data.transforms import LoadMultiViewImages
from pipeline.evaluation.live import Boxes, Calibration, Detector, EgoPose
from pipeline.evaluation.run import score
from pipeline.evaluation.submission import write_submission
from pipeline.export.quantise import calibration_frames, quantise
from pipeline.export.write import export_detector
from pipeline.models.build import load_config
from pipeline.models.load import load_detector


class Run(NamedTuple):
    """Detections of a split and seconds of each frame."""

    tokens: list[str]
    found: list[Boxes]
    seconds: list[float]


def main(
    config: Annotated[Path, typer.Argument(help="Detector config.")],
    checkpoint: Annotated[
        Path | None, typer.Argument(help="Checkpoint of the detector; default: random weights, seed 0.")
    ] = None,
    *,
    index: Annotated[Path, typer.Option(help="Frame index.")],
    root: Annotated[Path, typer.Option(help="Data root.")],
    split: Annotated[str, typer.Option(help="Split to detect on.")] = "world_val",
    train: Annotated[str, typer.Option(help="Split to calibrate int8 on.")] = "world_train",
    calibration: Annotated[int, typer.Option(help="Number of calibration frames; 0: no int8.")] = 32,
    threads: Annotated[int, typer.Option(help="Number of CPU threads.")] = 1,
) -> None:
    """Compare PyTorch, ONNX Runtime and int8."""
    torch.set_num_threads(threads)
    source, known = FrameSource(index, root, split), FrameIndex.load(index, root)
    height, width = (int(n) for n in known.arrays["image_sizes"][0, 0])
    with tempfile.TemporaryDirectory() as folder:
        if checkpoint is None:
            checkpoint, cfg = Path(folder) / "random.pth", load_config(config)
            torch.save({"state_dict": load_detector(cfg, None).state_dict(), "training": {"iterations": 0}}, checkpoint)
        file = Path(folder) / "float32.onnx"
        export_detector(config, checkpoint, file, (height, width))
        files = {"PyTorch": checkpoint, "ONNX": file}
        if calibration:
            files["ONNX int8"] = Path(folder) / "int8.onnx"
            files["ONNX int8"].write_bytes(file.read_bytes())
            quantise(files["ONNX int8"], config, calibration_frames(FrameSource(index, root, train), calibration))
        first = None
        for name, path in files.items():
            detector = Detector.open(config, path) if name == "PyTorch" else Detector.open(config, onnx=path)
            run = driven(detector, known, source)
            first = first or run
            out = Path(folder) / name
            write_submission(
                out / "submission.json", known, zip(run.tokens, *zip(*run.found, strict=True), strict=True)
            )
            with contextlib.redirect_stdout(io.StringIO()):
                metrics = score(out / "submission.json", known, source, out, out / "metrics.json")
            row = {
                "model": name,
                "frames": len(run.found),
                "NDS": metrics.get("NDS"),
                "mAP": metrics.get("mAP"),
                "MB": round(path.stat().st_size / 1e6, 2),
                "ms": round(1e3 * statistics.median(run.seconds), 1),
                "largest difference of boxes": float(f"{differences(first, run):.1e}"),
            }
            print(json.dumps(row), flush=True)


def driven(detector: Detector, index: FrameIndex, source: FrameSource) -> Run:
    """Detections of a detector on the scenes of a split."""
    run, last = Run([], [], []), None
    for token, scene, given in arguments(index, source):
        if scene != last:
            detector.reset()
        last, started = scene, time.perf_counter()
        run.found.append(detector.step(*given))
        run.seconds.append(time.perf_counter() - started)
        run.tokens.append(token)
    return run


def arguments(
    index: FrameIndex, source: FrameSource
) -> Iterator[tuple[str, str, tuple[np.ndarray, Calibration, EgoPose]]]:
    """Token, scene and arguments of ``Detector.step`` of the frames of a split."""
    decode = LoadMultiViewImages(to_rgb=True)
    for row in index.select(source.split):
        frame = index[row]
        images = decode.transform({"root": source.root, "frames": [{"frame": frame}]})["frames"][0]["img"]
        calibration = Calibration(frame.intrinsics, frame.lidar2cam, frame.lidar2ego)
        yield (
            frame.token,
            frame.scene_token,
            (images, calibration, EgoPose(frame.ego2global, frame.timestamp, frame.can_bus)),
        )


def differences(ours: Run, theirs: Run) -> float:
    """Largest difference over all frames of boxes (metres, radians, m/s) and scores, each box against its nearest of its class."""
    return max(difference(one, other) for one, other in zip(ours.found, theirs.found, strict=True))


def difference(ours: Boxes, theirs: Boxes) -> float:
    """Largest difference of two frames' boxes, whose order counts for nothing: equal scores have none."""
    if not len(ours.boxes) and not len(theirs.boxes):
        return 0.0
    if not len(ours.boxes) or not len(theirs.boxes):
        return float("inf")
    apart = np.abs(_rows(ours)[:, None] - _rows(theirs)[None]).max(-1)
    apart[ours.labels[:, None] != theirs.labels[None]] = np.inf
    return float(max(apart.min(0).max(), apart.min(1).max()))


def _rows(found: Boxes) -> np.ndarray:
    yaw = found.boxes[:, 6:7]
    return np.concatenate([found.boxes[:, :6], np.sin(yaw), np.cos(yaw), found.boxes[:, 7:], found.scores[:, None]], 1)


if __name__ == "__main__":
    typer.run(main)
