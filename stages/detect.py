"""``detect``: detection on a few frames of a scene, with drawings."""

import resource
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.errors import FD3DError, counted
from pipeline.evaluation.early import check_detection, frames_in_words
from pipeline.files import check_needed
from pipeline.profile import read_profile


def detect(
    *,  # so that CHECKPOINT may be left out although ROOT follows it
    config: Annotated[Path, typer.Argument(help="Detector config.")],
    checkpoint: Annotated[
        list[Path] | None, typer.Argument(metavar="CHECKPOINT", help="Checkpoint, unless --onnx or --random-weights.")
    ] = None,
    root: Annotated[Path, typer.Argument(help="Data root in nuScenes format.")],
    scene: Annotated[str, typer.Option(help="Scene name, for example scene-0103.")],
    version: Annotated[str | None, typer.Option(help="Folder of the tables; default: the root's only one.")] = None,
    index: Annotated[
        Path | None, typer.Option(help="Frame index; default: the profile's, or a new one in --out for other roots.")
    ] = None,
    frames: Annotated[int, typer.Option(help="Number of frames from the scene's start.")] = 4,
    out: Annotated[Path, typer.Option(help="Folder of submission.json and a drawing per frame.")] = Path("runs/detect"),
    min_score: Annotated[float, typer.Option(help="Score from which boxes are drawn and counted.")] = 0.3,
    onnx: Annotated[Path | None, typer.Option(help="File of 'fd3d export' to run by ONNX Runtime.")] = None,
    random_weights: Annotated[bool, typer.Option(help="Random weights in place of a checkpoint.")] = False,
    params: Annotated[Path, typer.Option(help="Profile, read where its data.root is ROOT.")] = Path("params.yaml"),
) -> None:
    """Detect on a few frames of a scene in time order; writes a nuScenes submission and drawings."""
    if len(checkpoint or []) + random_weights + (onnx is not None) != 1:
        raise FD3DError("give CONFIG, one CHECKPOINT and ROOT, or CONFIG and ROOT with --onnx or with --random-weights")
    if index is None and params.is_file():  # which cameras count, in which order, is the profile's to say
        data = read_profile(params).data
        if data.root.resolve() == root.resolve() and version in (None, data.version):
            index = data.index
    weights = checkpoint[0] if checkpoint else None
    check_needed(config=config, checkpoint=weights, exported=onnx, root=root, index=index)
    check_detection(config, root, scene, out, version, index, frames, weights)
    from tqdm import tqdm

    from pipeline.evaluation.scene import detect_scene

    given: dict[str, Any] = dict(version=version, index=index, frames=frames, min_score=min_score)
    found = detect_scene(config, weights, root, scene, out, onnx=onnx, random_weights=random_weights, **given)
    for frame in tqdm(found, total=frames, unit="frame", disable=None):
        boxes = counted(frame.boxes, "box")
        tqdm.write(f"{frame.token}  {frame.seconds:.2f} s  {boxes} from score {min_score}  {frame.drawing}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9  # Linux counts KiB
    told = frames_in_words(index or out / "index.npz", root, scene, frames)
    print(
        f"{out / 'submission.json'}: {told}; {weights or onnx or 'RANDOM weights, seed 0'}; peak memory {peak:.2f} GB"
    )
