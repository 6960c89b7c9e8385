"""Stage ``evaluate``: a detector's nuScenes metrics on a split, the validation split by default."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.data.asked import asked_source
from pipeline.errors import FD3DError
from pipeline.evaluation.early import frames_to_evaluate
from pipeline.files import check_needed
from pipeline.profile import CONFIG, read_profile


def evaluate(
    out: Annotated[Path | None, typer.Option(help="Output folder; default: runs/evaluate/FAMILY/ROLE.")] = None,
    metrics: Annotated[
        Path | None, typer.Option(help="JSON file for the metrics; default: metrics/detectors/FAMILY/ROLE.json.")
    ] = None,
    role: Annotated[str | None, typer.Option(help="Detector: expert, or a student's method such as fd3d.")] = None,
    family: Annotated[str | None, typer.Option(help="Family of --role; default: the profile's first.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Checkpoint, unless --role or --submission.")] = None,
    submission: Annotated[Path | None, typer.Option(help="Submission to score, in place of a detector's.")] = None,
    config: Annotated[Path | None, typer.Option(help="Config; default: config.py beside the checkpoint.")] = None,
    split: Annotated[
        str, typer.Option(help="Split: the profile's val, dev or train, or any name that the index has, or all.")
    ] = "val",
    index: Annotated[Path | None, typer.Option(help="Frame index; default: the profile's.")] = None,
    root: Annotated[Path | None, typer.Option(help="Data root; default: the profile's.")] = None,
    workers: Annotated[int, typer.Option(help="Number of processes that decode images.")] = 1,
    params: Annotated[Path, typer.Option(help="Profile; its section 'data' is used.")] = Path("params.yaml"),
) -> None:
    """Detect on the scenes of a split and evaluate with the devkit."""
    data = (profile := read_profile(params)).data
    if role is not None:
        own, folder, file = profile.family(family).evaluated(role)
        checkpoint, out, metrics = checkpoint or (None if submission else own), out or folder, metrics or file
    if out is None or metrics is None:
        raise FD3DError("give --out and --metrics, or --role and --family for a detector of the profile")
    if (checkpoint is None) == (submission is None):
        raise FD3DError("give one of --checkpoint and --submission, or --role")
    path = config or (checkpoint and checkpoint.with_name(CONFIG))
    source = asked_source(data, split, index, root)
    check_needed(checkpoint=checkpoint, config=config, beside=None if config else path, submission=submission)
    check_needed(index=source.index, root=source.root)
    version = frames_to_evaluate(source, None if index else data.version, out, metrics, path, checkpoint).version
    from pipeline.evaluation.run import check_evaluation, evaluate_detector, score

    if checkpoint is not None and path is not None:
        found = evaluate_detector(path, checkpoint, source, version, out, metrics, workers)
    elif submission is not None:
        found = score(submission, check_evaluation(source, version, out, metrics, submission), source, out, metrics)
    if not found:
        rest = f"{submission} fits it" if submission else f"{out / 'submission.json'} is the submission"
        print(f"split '{source.split}' has no annotations, so there are no metrics; {rest}")
        return
    told = f"NDS {found['NDS']}, mAP {found['mAP']}, car AOE {found['errors']['car'].get('orient_err')}"
    print(f"{checkpoint or submission}: {told} on split '{source.split}'")
