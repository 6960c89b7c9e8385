"""The report: expert, plain and distilled apprentice side by side."""

import csv
import html
import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from pipeline.data import CLASSES
from pipeline.data.geometry import invert, move_boxes
from pipeline.data.index import Frame, FrameIndex
from pipeline.errors import FD3DError
from pipeline.figures import bev_figure, camera_sheet, data_uri, jpeg, stored_energy, to_png
from store_schema import StoreReader

ROLES = ("expert", "plain", "fd3d")
_SHOWN = ("NDS", "mAP", "mATE", "mASE", "mAOE", "mAVE", "mAAE")
_COLORS = {"annotated": "limegreen", "expert": "tomato", "plain": "deepskyblue", "fd3d": "gold"}
_RGB = {"annotated": (80, 220, 80), "expert": (255, 99, 71), "plain": (0, 191, 255), "fd3d": (255, 215, 0)}
_DRAW_FROM = 0.3  # score


def read_json(path: Path) -> dict[str, Any]:
    """A stage's JSON output.

    Raises:
        FD3DError: the stage that writes it has not run.
    """
    if not path.is_file():
        raise FD3DError(f"{path} does not exist; run 'dvc repro'")
    return json.loads(path.read_text())


def summarise(metrics: Path, runs: Path) -> dict[str, dict[str, Any]]:
    """Metrics, seed and training seconds by role."""
    out = {}
    for role in ROLES:
        found = read_json(metrics / f"{role}.json")
        facts = read_json((runs / "expert" if role == "expert" else runs / "apprentice" / role) / "train.json")
        out[role] = {name: found[name] for name in _SHOWN} | {
            "car_AOE": found["errors"]["car"].get("orient_err"),
            "seed": facts.get("seed"),
            "training_seconds": facts.get("seconds"),
        }
    return out


def markdown(summary: dict[str, dict[str, Any]]) -> str:
    """The summary as a table."""
    names = [*_SHOWN, "car_AOE", "training_seconds"]
    lines = ["| model | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    lines += [
        f"| {role} | " + " | ".join(str(values[name]) for name in names) + " |" for role, values in summary.items()
    ]
    expert, plain, fd3d = (summary[role]["NDS"] for role in ROLES)
    lines += [
        "",
        f"FD3D adds {fd3d - plain:+.2f} NDS to the plain apprentice; the expert is {expert - plain:+.2f} above it.",
    ]
    return "\n".join(lines) + "\n"


def loss_figure(curves: dict[str, Path]) -> Figure:
    """Every loss term over the steps, one panel per method."""
    figure = Figure(figsize=(12, 4), layout="constrained")
    for i, (name, path) in enumerate(curves.items()):
        with open(path, newline="") as file:
            rows = list(csv.DictReader(file))
        axes = figure.add_subplot(1, len(curves), i + 1)
        for term in rows[0] if rows else ():
            if term != "step" and not term.startswith(("d0", "d1", "grad")):
                axes.plot([float(r["step"]) for r in rows], [float(r[term] or "nan") for r in rows], label=term)
        axes.set(title=name, xlabel="step", yscale="log")
        axes.legend(fontsize=7)
    return figure


def pr_figure(curves: dict[str, Path]) -> Figure:
    """Precision over recall at 2 m, one panel per class."""
    figure = Figure(figsize=(12, 5), layout="constrained")
    panels = {
        name: figure.add_subplot(2, 5, i + 1, title=name, xlim=(0, 1), ylim=(0, 1)) for i, name in enumerate(CLASSES)
    }
    for role, path in curves.items():
        with open(path, newline="") as file:
            rows = list(csv.DictReader(file))
        for name, axes in panels.items():
            chosen = [(float(r["recall"]), float(r["precision"])) for r in rows if r["class"] == name]
            axes.plot(*zip(*chosen, strict=True), color=_COLORS[role], label=role)
    panels[CLASSES[0]].legend(fontsize=7)
    return figure


def submitted_boxes(records: list[dict[str, Any]], frame: Frame, min_score: float = _DRAW_FROM) -> np.ndarray:
    """Boxes (n, 9) in the LiDAR frame of a submission's records."""
    rows = []
    for r in records:
        if r["detection_score"] >= min_score:
            width, length, height = r["size"]
            yaw = 2 * np.arctan2(r["rotation"][3], r["rotation"][0])
            rows.append([*r["translation"], length, width, height, yaw, *r["velocity"]])
    return move_boxes(np.array(rows).reshape(-1, 9), invert(frame.ego2global @ frame.lidar2ego))


def build_report(
    index: Path, root: Path, split: str, runs: Path, metrics: Path, out: Path, frames: int = 3
) -> dict[str, dict[str, Any]]:
    """Write ``index.html`` (stands alone), ``summary.md`` and the metrics' ``summary.json``; returns the summary."""
    summary = summarise(metrics, runs)
    table = markdown(summary)
    ix = FrameIndex.load(index, root)
    reader = StoreReader(runs / "store")
    extent = reader.manifest["coordinates"]["pc_range"][3]
    submissions = {role: read_json(runs / "evaluate" / role / "submission.json")["results"] for role in ROLES}
    pictures = []
    rows = ix.select(split)
    for row in rows[:: max(1, len(rows) // frames)][:frames]:
        frame = ix[row]
        layers = {"annotated": np.nan_to_num(frame.boxes[frame.num_lidar_pts > 0])}
        layers |= {role: submitted_boxes(submissions[role][frame.token], frame) for role in ROLES}
        sheet = camera_sheet(
            root, frame, [(boxes, _RGB[name]) for name, boxes in layers.items() if name in ("annotated", "fd3d")]
        )
        bev = bev_figure({name: (boxes, _COLORS[name]) for name, boxes in layers.items()}, extent)
        pictures.append(
            (f"{frame.scene_name}, frame {frame.order}", data_uri(jpeg(sheet), "jpeg"), data_uri(to_png(bev), "png"))
        )
    stored_token = reader.tokens[len(reader.tokens) // 2]
    stored = reader.read(stored_token)
    energy = stored_energy(stored, reader.schema.bev[:2])
    kept = stored["query/boxes"][stored["query/score"] >= _DRAW_FROM]
    focal = bev_figure({"expert": (kept, "tomato")}, extent, energy, np.isfinite(energy))
    losses = loss_figure({role: runs / "apprentice" / role / "losses.csv" for role in ("plain", "fd3d")})
    curves = pr_figure({role: runs / "evaluate" / role / "pr.csv" for role in ROLES})
    page = _page(
        table,
        pictures,
        data_uri(to_png(losses), "png"),
        data_uri(to_png(curves), "png"),
        data_uri(to_png(focal), "png"),
        stored_token,
    )
    out.mkdir(parents=True, exist_ok=True)
    (out / "index.html").write_text(page)
    (out / "summary.md").write_text(table)
    (metrics / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    return summary


def _page(table: str, pictures: list[tuple[str, str, str]], losses: str, curves: str, focal: str, token: str) -> str:
    rows = [line.strip("|").split("|") for line in table.splitlines() if line.startswith("|") and "---" not in line]
    cells = "".join("<tr>" + "".join(f"<td>{html.escape(c.strip())}</td>" for c in row) + "</tr>" for row in rows)
    shots = "".join(
        f'<h3>{html.escape(title)}</h3><img src="{cams}" alt="cameras"><img src="{bev}" alt="bird\'s-eye view">'
        for title, cams, bev in pictures
    )
    return f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>FD3D report</title>
<style>body{{font-family:sans-serif;margin:2rem;max-width:1500px}}td{{padding:.2rem .8rem;border-bottom:1px solid #ccc}}img{{max-width:100%}}</style>
<h1>FD3D: expert, plain apprentice, distilled apprentice</h1><table>{cells}</table><p>{html.escape(table.splitlines()[-1])}</p>
<h2>Loss terms</h2><img src="{losses}" alt="loss curves"><h2>Precision over recall at 2 m</h2><img src="{curves}" alt="PR curves">
<h2>What is stored of frame {token}: BEV energy of the expert, outline of the focal cells</h2><img src="{focal}" alt="focal areas">
<h2>Validation frames (cameras: annotated green, distilled apprentice yellow)</h2>{shots}</html>
"""
