"""Boxes, NDS, file size and time of a detector in PyTorch, as an ONNX file, and with int8 convolutions.

    python -m benchmarks.export CONFIG CHECKPOINT --index INDEX --root ROOT --split world_val

All three see the same frames through ``Detector.step``, history streamed. Times are medians over the frames of the processor's
time, so that a busy machine counts less, preprocessing included, image decoding not. Without a checkpoint every weight is seeded
noise: weights as a training starts with would give all boxes one score, and boxes that no feature moves.
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
import onnx
import torch
import typer
from mmengine.config import Config

from benchmarks.weights import fill
from pipeline.data.index import FrameIndex
from pipeline.data.source import FrameSource
from pipeline.evaluation.differences import difference
from pipeline.evaluation.live import Boxes, Calibration, Detector, EgoPose
from pipeline.evaluation.run import score
from pipeline.evaluation.scene import live_frame
from pipeline.evaluation.submission import write_submission
from pipeline.export.early import calibration_frames
from pipeline.export.quantise import quantised
from pipeline.export.rig import rig_of
from pipeline.export.write import export_detector
from pipeline.models.build import load_config
from pipeline.models.load import load_detector


class Run(NamedTuple):
    """Detections of a split and the processor's seconds of each frame."""

    tokens: list[str]
    found: list[Boxes]
    seconds: list[float]


def main(
    config: Annotated[Path, typer.Argument(help="Detector config.")],
    checkpoint: Annotated[
        Path | None, typer.Argument(help="Checkpoint of the detector; default: seeded noise in every weight.")
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
    with tempfile.TemporaryDirectory() as folder:
        if checkpoint is None:
            checkpoint = _filled(load_config(config), Path(folder) / "noise.pth")
        files = {"PyTorch": checkpoint, "ONNX": Path(folder) / "float32.onnx"}
        export_detector(config, checkpoint, files["ONNX"], rig_of(known))
        if calibration:
            files["ONNX int8"] = Path(folder) / "int8.onnx"
            frames = calibration_frames(FrameSource(index, root, train), calibration)
            onnx.save(quantised(onnx.load(files["ONNX"]), load_config(config), frames), files["ONNX int8"])
        first = None
        for name, path in files.items():
            detector = Detector.open(config, path) if name == "PyTorch" else Detector.open(config, onnx=path)
            run = driven(detector, known, source)
            if first is None:
                first, alone = run, driven(detector, known, source, streamed=False)
            out = Path(folder) / name
            write_submission(
                out / "submission.json", known, zip(run.tokens, *zip(*run.found, strict=True), strict=True)
            )
            with contextlib.redirect_stdout(io.StringIO()):
                metrics = score(out / "submission.json", known, source, out, out / "metrics.json")
            boxes, scores = differences(first, run)
            best = [frame.scores for frame in run.found if len(frame.scores)]
            row = {
                "model": name,
                "frames": len(run.found),
                "boxes": sum(len(frame.boxes) for frame in run.found),
                "scores": [f"{min(s[-1] for s in best):.3f}", f"{max(s[0] for s in best):.3f}"],
                "NDS": metrics.get("NDS"),
                "mAP": metrics.get("mAP"),
                "MB": round(path.stat().st_size / 1e6, 2),
                "ms": round(1e3 * statistics.median(run.seconds), 1),
                "difference of boxes": float(f"{boxes:.1e}"),
                "difference of scores": float(f"{scores:.1e}"),
                "difference of scores without history": float(f"{_ranks(run, alone):.1e}"),
            }
            print(json.dumps(row), flush=True)


def _ranks(ours: Run, theirs: Run) -> float:
    """Largest difference of the n-th scores of a frame: what is left where boxes have no counterparts."""
    pairs = zip(ours.found, theirs.found, strict=True)
    return max(
        float(np.abs(a.scores[:n] - b.scores[:n]).max()) for a, b in pairs if (n := min(len(a.scores), len(b.scores)))
    )


def _filled(cfg: Config, path: Path) -> Path:
    """Checkpoint of a detector with seeded noise in every weight."""
    model = load_detector(cfg, None).cpu()
    fill(model, stem_gain=1 / 64 if max(cfg.model.data_preprocessor.std) == 1 else 1.0)
    torch.save({"state_dict": model.state_dict(), "training": {"iterations": 0}}, path)
    return path


def driven(detector: Detector, index: FrameIndex, source: FrameSource, streamed: bool = True) -> Run:
    """Detections of a detector on the scenes of a split; without ``streamed`` each frame is a drive of its own."""
    run, last = Run([], [], []), None
    for token, scene, given in arguments(index, source):
        if scene != last or not streamed:
            detector.reset()
        last, started = scene, time.process_time()
        run.found.append(detector.step(*given))
        run.seconds.append(time.process_time() - started)
        run.tokens.append(token)
    return run


def arguments(
    index: FrameIndex, source: FrameSource
) -> Iterator[tuple[str, str, tuple[list[np.ndarray], Calibration, EgoPose]]]:
    """Token, scene and arguments of ``Detector.step`` of the frames of a split."""
    for row in index.select(source.split):
        yield index[row].token, index[row].scene_token, live_frame(source.root, index[row])


def differences(ours: Run, theirs: Run) -> tuple[float, float]:
    """Largest difference of boxes (metres, radians, m/s) and of scores over all frames, each box against its nearest of its class."""
    found = [difference(one, other) for one, other in zip(ours.found, theirs.found, strict=True)]
    return max(boxes for boxes, _ in found), max(scores for _, scores in found)


if __name__ == "__main__":
    typer.run(main)
