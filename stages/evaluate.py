"""Stage ``evaluate``: a detector's nuScenes metrics on a split, the validation split by default."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.profile import CONFIG, read_profile


def evaluate(
    checkpoint: Annotated[Path, typer.Option(help="Checkpoint of a detector.")],
    out: Annotated[Path, typer.Option(help="Folder for submission.json and pr.csv.")],
    metrics: Annotated[Path, typer.Option(help="JSON file for the metrics.")],
    config: Annotated[
        Path | None, typer.Option(help="Config of the detector; default: config.py beside the checkpoint.")
    ] = None,
    split: Annotated[str, typer.Option(help="Split of the profile's section 'data': val, dev or train.")] = "val",
    workers: Annotated[int, typer.Option(help="Number of processes that decode images.")] = 1,
    params: Annotated[Path, typer.Option(help="Profile; its section 'data' is used.")] = Path("params.yaml"),
) -> None:
    """Detect on the scenes of a split and evaluate with the devkit."""
    data = read_profile(params).data
    from pipeline.evaluation.run import evaluate_detector

    found = evaluate_detector(
        config or checkpoint.with_name(CONFIG), checkpoint, data.source(split), data.version, out, metrics, workers
    )
    print(f"{checkpoint}: NDS {found['NDS']}, mAP {found['mAP']}, car AOE {found['errors']['car'].get('orient_err')}")
