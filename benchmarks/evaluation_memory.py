"""Peak memory and time of writing and evaluating a submission of validation size, for this code and for another checkout's.

nuScenes' validation split has 6,019 frames; a detector gives 300 boxes each. Tables and detections are made up: see
``benchmarks.index_size`` for the tables, 31 annotations a frame as in the split. A sixth of the detections lie within two metres
of an annotation, the rest anywhere in the range, so most of them count and none is cheap.

    python -m benchmarks.evaluation_memory --folder /tmp/tables --code . --code ../another-checkout
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.index_size import VERSION, synthesise

_PROGRAM = """
import resource, sys, time, warnings
from pathlib import Path
warnings.simplefilter("ignore")
import numpy as np
from pipeline.data.index import FrameIndex, build_index
from pipeline.evaluation import metrics, run, submission
root, out, boxes = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
out.mkdir(exist_ok=True)
if sys.argv[4] == "index":
    build_index(root, root.joinpath("version").read_text(), out / "index.npz")
    sys.exit()
index, draw = FrameIndex.load(out / "index.npz"), np.random.default_rng(0)
def detections():
    for frame in index:
        found = np.zeros((boxes, 9), np.float32)
        found[:, :2], found[:, 3:6] = draw.uniform(-50, 50, (boxes, 2)), (4.6, 1.9, 1.7)
        found[:, 6:9] = draw.normal(size=(boxes, 3))
        labels = draw.choice([0, 1, 5, 8, 9], boxes)
        near = draw.integers(0, len(frame.labels), boxes // 6)
        found[: len(near), :3] = frame.boxes[near, :3] + draw.normal(size=(len(near), 3)) * 0.5
        labels[: len(near)] = frame.labels[near]
        yield frame.token, found, draw.random(boxes).astype(np.float32), labels
start = time.process_time()
if hasattr(submission, "write_submission"):
    submission.write_submission(out / "submission.json", index, detections())
else:
    made = submission.to_submission(index, detections())
    run.write_atomically(out / "submission.json", lambda file: run.json.dump(made, file))
written, peak = time.process_time() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
found = metrics.evaluate(out / "submission.json", root, index.version, "made", out)
seconds = time.process_time() - start - written
print(f"{written:.0f}, {peak:.2f}, {seconds:.0f}, {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f}, "
      f"{found['mAP']}, {found['NDS']}")
"""


def main(
    folder: Annotated[Path, typer.Option(help="Folder for the tables, made once, and for the submissions.")],
    code: Annotated[list[Path], typer.Option(help="Checkout whose code is measured; may be given again.")],
    frames: Annotated[int, typer.Option(help="Number of frames.")] = 6019,
    boxes: Annotated[int, typer.Option(help="Detections of a frame.")] = 300,
) -> None:
    """Measure the evaluation."""
    root = folder / f"{frames}-31"
    if not root.exists():
        synthesise(root, frames, 31, sweeps=False)
        names = [scene["name"] for scene in json.loads((root / VERSION / "scene.json").read_text())]
        (root / VERSION / "splits.json").write_text(json.dumps({"made": names}))
        (root / "version").write_text(VERSION)
        _blank(root / "maps" / "m.png")
    print("code, writing CPU s, writing peak GB, evaluating CPU s, peak GB, mAP, NDS")
    for number, checkout in enumerate(code):
        for step in ("index", "evaluate"):
            done = subprocess.run(
                [sys.executable, "-c", _PROGRAM, str(root), str(folder / f"evaluation-{number}"), str(boxes), step],
                env=os.environ | {"PYTHONPATH": str(checkout.resolve())},
                check=True,
                stdout=subprocess.PIPE,
                text=True,
                cwd="/",
            )
        print(f"{checkout}, {done.stdout.strip()}", flush=True)


def _blank(path: Path) -> None:
    import cv2
    import numpy as np

    cv2.imwrite(str(path), np.zeros((4, 4), np.uint8))


if __name__ == "__main__":
    typer.run(main)
