"""Stage ``evaluate``: a detector's nuScenes metrics on a split, the validation split by default."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from pipeline.errors import FD3DError
from pipeline.files import check_needed
from pipeline.profile import CONFIG, read_profile


def evaluate(
    out: Annotated[Path, typer.Option(help="Folder for submission.json and pr.csv.")],
    metrics: Annotated[Path, typer.Option(help="JSON file for the metrics.")],
    checkpoint: Annotated[Path | None, typer.Option(help="Checkpoint of a detector, unless --submission.")] = None,
    submission: Annotated[Path | None, typer.Option(help="Submission to score, in place of a detector's.")] = None,
    config: Annotated[
        Path | None, typer.Option(help="Config of the detector; default: config.py beside the checkpoint.")
    ] = None,
    split: Annotated[
        str, typer.Option(help="Split: the profile's val, dev or train, or any name that the index has, or all.")
    ] = "val",
    index: Annotated[Path | None, typer.Option(help="Frame index; default: the profile's.")] = None,
    root: Annotated[Path | None, typer.Option(help="Data root; default: the profile's.")] = None,
    workers: Annotated[int, typer.Option(help="Number of processes that decode images.")] = 1,
    params: Annotated[Path, typer.Option(help="Profile; its section 'data' is used.")] = Path("params.yaml"),
) -> None:
    """Detect on the scenes of a split and evaluate with the devkit."""
    data = read_profile(params).data
    if (checkpoint is None) == (submission is None):
        raise FD3DError("give one of --checkpoint and --submission")
    if checkpoint is not None:
        check_needed(checkpoint=checkpoint, config=config or checkpoint.with_name(CONFIG))
    source = data.source(split)
    source = replace(source, index=index or source.index, root=root or source.root)
    check_needed(submission=submission, index=source.index, root=source.root)
    from pipeline.data.index import FrameIndex
    from pipeline.evaluation.run import check_evaluation, evaluate_detector, score

    version = data.version if index is None else FrameIndex.load(index).version
    if checkpoint is not None:
        path = config or checkpoint.with_name(CONFIG)
        found = evaluate_detector(path, checkpoint, source, version, out, metrics, workers)
    elif submission is not None:
        found = score(submission, check_evaluation(source, version, out, metrics, submission), source, out, metrics)
    if not found:
        written = submission or out / "submission.json"
        print(f"split '{source.split}' has no annotations, so there are no metrics; {written} is the submission")
        return
    aoe = found["errors"]["car"].get("orient_err")
    print(f"{checkpoint or submission}: NDS {found['NDS']}, mAP {found['mAP']}, car AOE {aoe}")
