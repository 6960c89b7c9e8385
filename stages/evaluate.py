"""Stage ``evaluate``: a detector's nuScenes metrics on the validation split."""

import json
from pathlib import Path
from typing import Annotated

import typer

from pipeline.errors import FD3DError
from stages.params import CONFIG, read_params
from stages.train import frame_source


def evaluate(
    checkpoint: Annotated[Path, typer.Option(help="A detector's checkpoint.")],
    out: Annotated[Path, typer.Option(help="Folder for submission.json and pr.csv.")],
    metrics: Annotated[Path, typer.Option(help="JSON file for the metrics.")],
    config: Annotated[Path | None, typer.Option(help="Its config; config.py beside it by default.")] = None,
    workers: Annotated[int, typer.Option(help="Processes that decode images.")] = 1,
    params: Annotated[Path, typer.Option(help="Reads 'data'.")] = Path("params.yaml"),
) -> None:
    """Detect on the validation scenes and evaluate with the devkit."""
    import torch

    from pipeline.data.index import FrameIndex
    from pipeline.evaluation.metrics import evaluate as score
    from pipeline.evaluation.predict import predict
    from pipeline.evaluation.submission import to_submission
    from pipeline.files import write_atomically
    from pipeline.models.build import load_config
    from pipeline.models.load import load_detector

    if not checkpoint.is_file():
        raise FD3DError(f"checkpoint {checkpoint} does not exist; run 'dvc repro', or give another by --checkpoint")
    torch.set_num_threads(1)
    data, source, cfg = (
        read_params(params, "data"),
        frame_source(params, "val"),
        load_config(config or checkpoint.with_name(CONFIG)),
    )
    model = load_detector(cfg, checkpoint)
    submission = to_submission(FrameIndex.load(source.index, source.root), predict(cfg, model, source, workers))
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "submission.json", lambda file: json.dump(submission, file))
    found = score(out / "submission.json", source.root, data["version"], source.split, out)
    write_atomically(metrics, lambda file: json.dump(found, file, indent=1))
    print(f"{checkpoint}: NDS {found['NDS']}, mAP {found['mAP']}, car AOE {found['errors']['car'].get('orient_err')}")
