"""The report: expert, plain and distilled student side by side."""

import csv
import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from pipeline.data import CLASSES
from pipeline.data.geometry import invert, move_boxes
from pipeline.data.index import Frame, FrameIndex
from pipeline.errors import FD3DError
from pipeline.files import between_markers, check_needed, check_outside_stores, write_atomically
from pipeline.profile import Published
from pipeline.report.evaluated import (
    ROLES,
    check_evaluated,
    check_outputs,
    check_submission,
    metrics_file,
    shown_roles,
    without_losses,
)
from pipeline.report.figures import bev_figure, camera_sheet, data_uri, jpeg, stored_energy, to_png
from store_schema import StoreReader

_SHOWN = ("NDS", "mAP", "mATE", "mASE", "mAOE", "mAVE", "mAAE")
_COMPARED = ("NDS", "mAP")  # with published numbers
_FORMATS = {
    f"{kind}_{name}": form for kind, form in (("published", "{:.2f}"), ("difference", "{:+.2f}")) for name in _COMPARED
}
_COLORS = {"annotated": "limegreen", "expert": "tomato", "plain": "deepskyblue", "fd3d": "gold"}
_RGB = {"annotated": (80, 220, 80), "expert": (255, 99, 71), "plain": (0, 191, 255), "fd3d": (255, 215, 0)}
_COLOR_WORDS = {"plain": "blue", "fd3d": "yellow"}
_WORDS = {"expert": "expert", "plain": "plain student", "fd3d": "distilled student"}
_DRAW_FROM = 0.3  # score
_EXTENT = 50.0  # metres, the farthest that nuScenes' metrics count boxes, drawn where no store tells the expert's range


def read_json(path: Path) -> dict[str, Any]:
    """A stage's JSON output.

    Raises:
        FD3DError: the stage that writes it has not run.
    """
    check_needed(output=path)
    return json.loads(path.read_text())


Summary = dict[str, dict[str, dict[str, Any]]]
"""Metrics, seed and training seconds by family and role; where there are published numbers, these and the differences; ``distilled``
is False for a distilled student whose losses were 0 in every step, ``mixing_paused`` the number of its ``updates`` in which mixing paused, if any."""


def summarise(
    families: Sequence[str], metrics: Path, runs: Path, published: Mapping[str, Published] | None = None
) -> Summary:
    """Summary from the evaluate and training stages' outputs, of the roles that are there.

    Args:
        published: published numbers by family; ``difference_NDS`` is the measured NDS minus the published one.
    """
    out: Summary = {}
    for family in families:
        out[family] = {}
        for role in shown_roles(family, runs, metrics):
            found, facts = (
                read_json(metrics_file(metrics, family, role)),
                read_json(runs / family / role / "train.json"),
            )
            out[family][role] = {name: found[name] for name in _SHOWN} | {
                "car_AOE": found["errors"]["car"].get("orient_err"),
                "seed": facts.get("seed"),
                "training_seconds": facts.get("seconds"),
            }
            if role == "fd3d" and without_losses(runs / family / role / "losses.csv"):
                out[family][role]["distilled"] = False
            if facts.get("mixing_paused"):
                out[family][role] |= {"mixing_paused": facts["mixing_paused"], "updates": facts["steps"]}
            scores = getattr((published or {}).get(family), role, None)
            for name in _COMPARED if scores is not None else ():
                known = getattr(scores, name)
                out[family][role] |= {f"published_{name}": known, f"difference_{name}": round(found[name] - known, 2)}
    return out


def flat_summary(summary: Summary) -> dict[str, Any]:
    """Summary as in ``summary.json``: the first family's roles at the top, the others' under their names."""
    first, *others = summary
    return summary[first] | {name: summary[name] for name in others}


def _table(summary: Summary, names: Sequence[str]) -> list[str]:
    """Lines of a table; published numbers and the differences follow their metric where any detector has them."""
    rows = [(family, role, values) for family, roles in summary.items() for role, values in roles.items()]
    shown: list[str] = []
    for name in names:
        more = (f"published_{name}", f"difference_{name}") if name in _COMPARED else ()
        shown += [name, *(extra for extra in more if any(extra in values for *_, values in rows))]
    lines = ["| family | model | " + " | ".join(shown) + " |", "|---|---|" + "---|" * len(shown)]
    for family, role, values in rows:
        cells = [
            "-" if values.get(name) is None else _FORMATS.get(name, "{}").format(values[name]) for name in shown
        ]  # such as the seconds of an expert that was not trained here
        lines.append(f"| {family} | {role} | " + " | ".join(cells) + " |")
    return lines


def markdown(summary: Summary) -> str:
    """The summary as a table, what distillation adds, and which detectors are not there."""
    lines = _table(summary, (*_SHOWN, "car_AOE", "training_seconds"))
    notes = [f"- {family}: {_compared(roles)}." for family, roles in summary.items()]
    return "\n".join([*lines, "", *notes]) + "\n"


def _compared(roles: Mapping[str, Mapping[str, Any]]) -> str:
    """The differences between a family's detectors in words."""
    found, told = {role: roles[role]["NDS"] for role in roles}, []
    if blind := [_WORDS[role] for role in found if found[role] == 0]:
        told.append(
            f"NDS is 0 of the {' and of the '.join(blind)}: no class has a match, so look at the training first"
        )
    if lacking := [_WORDS[role] for role in ROLES if role not in roles]:
        told.append(
            f"there is no {' and no '.join(lacking)}, so nothing is compared with {'it' if len(lacking) == 1 else 'them'}"
        )
    if "plain" in found and "fd3d" in found:
        known = [roles[role].get("published_NDS") for role in ("plain", "fd3d")]
        beside = "" if None in known else f" (published: {known[1] - known[0]:+.2f})"
        gain = round(found["fd3d"] - found["plain"], 2)
        if not roles["fd3d"].get("distilled", True):
            told.append(
                f"the distilled student is {gain:+.2f} NDS from the plain one, of which FD3D's losses added nothing: they were 0 in every step"
            )
        elif gain > 0:
            told.append(f"FD3D adds {gain:+.2f} NDS to the plain student{beside}")
        else:
            level = f"{-gain:.2f} NDS below" if gain < 0 else "level with"
            told.append(f"FD3D adds nothing: the distilled student is {level} the plain student{beside}")
    distilled = roles.get("fd3d", {})
    if paused := distilled.get("mixing_paused"):
        told.append(
            f"mixing paused in {paused:,} of {distilled['updates']:,} updates, as the generators left too much of the expert's pyramid "
            "unexplained (distill.mixed_limit)"
        )
    if "expert" in found:
        student = "plain" if "plain" in found else "fd3d"
        whose = "it" if len(found) == len(ROLES) else f"the {_WORDS[student]}"
        ahead = round(found["expert"] - found[student], 2)
        unit = "" if whose == "it" else "NDS "
        where = f"{ahead:+.2f} {unit}above" if ahead > 0 else f"{-ahead:.2f} {unit}below" if ahead else "level with"
        told.append(f"the expert is {where} {whose}" + ("" if ahead > 0 else ", so it has no gap to close"))
    return "; ".join(told)


_RESULT = "<!-- result -->", "<!-- /result -->"
_RESULT_COLUMNS = ("NDS", "mAP", "mATE", "mAOE", "training_seconds")


def put_result(summary: Summary, document: Path) -> None:
    """Write a narrower table, a line per family and role, between the document's markers.

    Raises:
        FD3DError: there is no document, or the document lacks its markers.
    """
    if not document.is_file():
        raise FD3DError(f"{document} does not exist; give another by --document")
    text = between_markers(document.read_text(), "\n".join(_table(summary, _RESULT_COLUMNS)) + "\n", _RESULT, document)
    write_atomically(document, lambda file: file.write(text))


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
        axes.set(title=name, xlabel="step")
        axes.set_yscale("log", nonpositive="mask")  # a loss that pauses is 0
        if axes.lines:  # not of a training too short for a row
            axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))  # beside the curves, which fill the panel
    return figure


def validation_figure(curves: dict[str, Path]) -> Figure | None:
    """NDS and mAP of the validations during training, in percent over epochs, a line per method; None without a validation."""
    read = {}
    for name, path in curves.items():
        if path.is_file():
            with open(path, newline="") as file:
                read[name] = list(csv.DictReader(file))
    if not any(read.values()):
        return None
    figure = Figure(figsize=(8, 3), layout="constrained")
    for i, metric in enumerate(("NDS", "mAP")):
        axes = figure.add_subplot(1, 2, i + 1)
        for name, rows in read.items():
            points = [(float(row["epoch"]), float(row[metric])) for row in rows]
            axes.plot(*zip(*points, strict=True), color=_COLORS[name], marker=".", label=name)
        axes.set(xlabel="epoch", ylabel=f"{metric}, %")
        axes.grid(alpha=0.3)
    figure.axes[0].legend(fontsize=7)
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
    if panels[CLASSES[0]].lines:
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
    families: Sequence[str],
    index: Path,
    root: Path,
    split: str,
    runs: Path,
    metrics: Path,
    out: Path,
    frames: int = 3,
    published: Mapping[str, Published] | None = None,
) -> Summary:
    """Write ``index.html`` (stands alone), ``summary.md`` and the metrics' ``summary.json``; returns the summary.

    Raises:
        FD3DError: a file is missing, store, metrics or submission are of another index, split or checkpoint, or a place to write
            lies in a store.
    """
    for path in (out, metrics):
        check_outside_stores(path)
    check_outputs(families, runs, metrics)
    ix = FrameIndex.load(index, root)
    check_evaluated(families, ix, split, runs, metrics)
    summary = summarise(families, metrics, runs, published)
    table = markdown(summary)
    sections = [_family_section(family, ix, root, split, runs, metrics, frames) for family in families]
    page = _page(table, "".join(sections))
    write_atomically(out / "index.html", lambda file: file.write(page))
    write_atomically(out / "summary.md", lambda file: file.write(table))
    write_atomically(
        metrics / "summary.json", lambda file: file.write(json.dumps(flat_summary(summary), indent=1) + "\n")
    )
    return summary


def _family_section(family: str, ix: FrameIndex, root: Path, split: str, runs: Path, metrics: Path, frames: int) -> str:
    """Loss and PR curves, a stored frame, and validation frames of one family as HTML."""
    run, evaluated, roles = runs / family, runs / "evaluate" / family, shown_roles(family, runs, metrics)
    students = [role for role in roles if role != "expert"]
    submissions = {role: read_json(evaluated / role / "submission.json")["results"] for role in roles}
    for role, results in submissions.items():
        check_submission(results, family, role, ix, split, runs, metrics)
    losses = loss_figure({role: run / role / "losses.csv" for role in students})
    curves = pr_figure({role: evaluated / role / "pr.csv" for role in roles})
    parts = [
        f"<h2>{html.escape(family)}</h2><h3>Loss terms</h3>{_image(to_png(losses), 'png', 'loss curves')}",
        f"<h3>Precision over recall at 2 m</h3>{_image(to_png(curves), 'png', 'PR curves')}",
    ]
    validations = validation_figure({role: run / role / "validation.csv" for role in students})
    if validations is not None:
        parts.append(f"<h3>Validation during training</h3>{_image(to_png(validations), 'png', 'validation curves')}")
    reader = StoreReader(run / "store") if "fd3d" in roles else None
    extent = _EXTENT if reader is None else reader.manifest["coordinates"]["pc_range"][3]
    if reader is not None:
        ix.check_made(reader.manifest, reader.storage)
        parts.append(_stored_frame(reader, ix, extent))
    drawn = students[-1]
    words = f"annotated green, {_WORDS[drawn]} {_COLOR_WORDS[drawn]}"
    parts.append(f"<h3>Validation frames (cameras: {words})</h3>")
    rows = ix.select(split)
    for row in rows[:: max(1, len(rows) // frames)][:frames]:
        frame = ix[row]
        layers = {"annotated": np.nan_to_num(frame.boxes[frame.num_lidar_pts > 0])}
        layers |= {role: submitted_boxes(submissions[role][frame.token], frame) for role in roles}
        sheet = camera_sheet(root, frame, [(layers[name], _RGB[name]) for name in ("annotated", drawn)])
        bev = bev_figure({name: (boxes, _COLORS[name]) for name, boxes in layers.items()}, extent, frame.lidar2ego)
        parts.append(
            f"<h4>{html.escape(frame.scene_name)}, frame {frame.order}</h4>{_image(jpeg(sheet), 'jpeg', 'cameras')}"
            f"{_image(to_png(bev), 'png', 'bird&apos;s-eye view')}"
        )
    return "".join(parts)


def _stored_frame(reader: StoreReader, ix: FrameIndex, extent: float) -> str:
    """The store's middle frame as HTML: BEV energy and focal cells; nothing of a store without BEV maps."""
    token = reader.tokens[len(reader.tokens) // 2]
    stored = reader.read(token)
    if not reader.schema.bev:
        return ""
    energy = stored_energy(stored, reader.schema.bev[:2])
    kept = stored["query/boxes"][stored["query/score"] >= _DRAW_FROM]
    focal = bev_figure({"expert": (kept, "tomato")}, extent, ix[ix.row(token)].lidar2ego, energy, np.isfinite(energy))
    return (
        f"<h3>What is stored of frame {html.escape(token)}: BEV energy of the expert, outline of the focal cells</h3>"
        f"{_image(to_png(focal), 'png', 'focal areas')}"
    )


def _image(content: bytes, kind: str, alt: str) -> str:
    return f'<img src="{data_uri(content, kind)}" alt="{alt}">'


def _page(table: str, sections: str) -> str:
    rows = [line.strip("|").split("|") for line in table.splitlines() if line.startswith("|") and "---" not in line]
    cells = "".join("<tr>" + "".join(f"<td>{html.escape(c.strip())}</td>" for c in row) + "</tr>" for row in rows)
    notes = "".join(f"<p>{html.escape(line[2:])}</p>" for line in table.splitlines() if line.startswith("- "))
    return f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>FD3D report</title>
<style>body{{font-family:sans-serif;margin:2rem;max-width:1500px}}td{{padding:.2rem .8rem;border-bottom:1px solid #ccc}}img{{max-width:100%}}</style>
<h1>FD3D: expert, plain student, distilled student</h1><table>{cells}</table>{notes}{sections}</html>
"""
