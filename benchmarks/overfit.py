"""Whether detectors learn real pixels: five key frames of nuScenes by heart, plain and with FD3D.

A small detector is trained from random weights on all frames of a few scenes, at a quarter of the image size, and evaluated on
the same frames by the devkit: the mAP over the classes that are there nears 1 when images, calibration, boxes and losses fit
each other. Then the detector is dumped, and the same detector is trained again, from random weights, with FD3D's losses::

    python -m benchmarks.overfit --root NUSCENES --version v1.0-mini --family detr3d --figure curves.svg
"""

import csv
import json
from pathlib import Path
from typing import Annotated

import typer
from matplotlib.figure import Figure
from nuscenes.eval.common.config import config_factory
from nuscenes.eval.common.loaders import add_center_dist, filter_eval_boxes, load_gt_of_sample_tokens
from nuscenes.eval.detection.data_classes import DetectionBox

from pipeline.data.devkit import open_scenes
from pipeline.data.index import build_index
from pipeline.data.source import FrameSource
from pipeline.distill.apprentice import train_apprentice
from pipeline.distill.settings import DistillSettings
from pipeline.dumping.dump import dump
from pipeline.dumping.settings import DumpSettings
from pipeline.evaluation.run import evaluate_detector
from pipeline.focal.rule import FocalRule
from pipeline.training.plain import train_plain
from pipeline.training.settings import RunSettings

SPLIT = "overfit"


def place(root: Path, version: str, scenes: list[str], out: Path) -> str:
    """A data root of links with a split of the scenes; the version's name, since the devkit forbids new splits of its own ones."""
    own = "v1.0-overfit"
    (out / own).mkdir(parents=True, exist_ok=True)
    folders = {out / path.name: path for path in root.iterdir() if path.is_dir() and path.name != version}
    for link, path in (folders | {out / own / path.name: path for path in (root / version).glob("*.json")}).items():
        if not link.exists():
            link.symlink_to(path.resolve())
    (out / own / "splits.json").write_text(json.dumps({SPLIT: scenes}))
    return own


def present(root: Path, version: str, scenes: list[str]) -> set[str]:
    """Classes of which the devkit counts a box: within the class's range, with a LiDAR or radar point."""
    nusc = open_scenes(root, version, scenes)
    boxes = load_gt_of_sample_tokens(nusc, [sample["token"] for sample in nusc.sample], DetectionBox)
    ranges = config_factory("detection_cvpr_2019").class_range
    return {box.detection_name for box in filter_eval_boxes(nusc, add_center_dist(nusc, boxes), ranges).all}


def curves(out: Path) -> Figure:
    """Detection loss of the last decoder layer over the steps, in log scale: a panel per family below ``out``, a line per method."""
    families = sorted(path.parent.parent for path in out.glob("*/plain/losses.csv"))
    figure = Figure(figsize=(5 * len(families), 3), layout="constrained")
    for number, family in enumerate(families):
        axes = figure.add_subplot(1, len(families), number + 1)
        for path in sorted(family.glob("*/losses.csv"), reverse=True):
            with open(path, newline="") as file:
                rows = list(csv.DictReader(file))
            losses = [float(row["loss_cls"]) + float(row["loss_bbox"]) for row in rows]
            axes.plot([int(row["step"]) for row in rows], losses, marker=".", label=path.parent.name)
        axes.set(title=family.name, xlabel="step", ylabel="detection loss, last layer", yscale="log")
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


def main(
    root: Annotated[Path, typer.Option(help="Root of the data set.")],
    version: Annotated[str, typer.Option(help="Folder of the tables.")] = "v1.0-mini",
    scene: Annotated[list[str], typer.Option(help="Scene to learn, repeatable.")] = ["scene-0061", "scene-0103"],  # noqa: B006
    family: Annotated[str, typer.Option(help="bevformer or detr3d.")] = "bevformer",
    steps: Annotated[int, typer.Option(help="Optimiser steps of each training.")] = 2000,
    out: Annotated[Path, typer.Option(help="Folder of the runs.")] = Path("runs/overfit"),
    distil: Annotated[bool, typer.Option(help="Whether to train with FD3D too.")] = True,
    figure: Annotated[
        Path | None, typer.Option(help="SVG or PNG for the loss curves of all families in --out.")
    ] = None,
) -> None:
    """Train, evaluate and print the mAP over the classes that are there, plain and with FD3D."""
    config, folder = Path(f"configs/overfit/{family}.py"), out / family
    own = place(root, version, scene, out / "data")
    index = out / "index.npz"
    frames = build_index(out / "data", own, index).select(SPLIT)
    source = FrameSource(index, out / "data", SPLIT)
    there = present(out / "data", own, scene)
    print(f"{len(frames)} frames, classes {', '.join(sorted(there))}")
    run = RunSettings(max_iters=steps, workers=1, curve_every=max(1, steps // 20))

    def judge(method: str) -> None:
        trained = folder / method / "detector.pth"
        found = evaluate_detector(config, trained, source, own, folder / method, folder / f"{method}.json", 1)
        ap = [found["AP"][name] for name in sorted(there)]
        print(f"{family} {method}: mAP over {len(ap)} classes {sum(ap) / len(ap):.1f}, NDS {found['NDS']}", flush=True)

    facts = train_plain(config, source, folder / "plain" / "detector.pth", run)
    print(f"{family} plain: {facts['seconds']} s", flush=True)
    judge("plain")
    if distil:
        _distil(config, folder, source, run)
        judge("fd3d")
    if figure is not None:
        curves(out).savefig(figure)


def _distil(config: Path, folder: Path, source: FrameSource, run: RunSettings) -> None:
    """Dump the plainly trained detector, and train one with FD3D from the store."""
    expert, store = folder / "plain" / "detector.pth", folder / "store"
    dump(expert.with_name("config.py"), expert, source, store, DumpSettings(FocalRule()), replace_other=True)
    facts = train_apprentice(
        config,
        "fd3d",
        DistillSettings(inherit=()),
        source=source,
        store=store,
        expert=expert,
        out=folder / "fd3d" / "detector.pth",
        run=run,
    )
    print(f"{config.stem} fd3d: {facts['seconds']} s", flush=True)


if __name__ == "__main__":
    typer.run(main)
