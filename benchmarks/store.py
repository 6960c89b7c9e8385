"""The store at BEVFormer-Base size against other ways to cache features: ``python -m benchmarks.store --root ROOT``.

ROOT is a nuScenes-format folder with a few key frames. See :mod:`benchmarks.store_frames` for what is real in the frames
and what is not. Every contender is written and read in processes of its own, so that peaks do not mix.
"""

import json
import multiprocessing
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

# one thread, before torch is imported
for _name, _value in (("OMP_NUM_THREADS", "1"), ("OMP_WAIT_POLICY", "PASSIVE")):
    os.environ.setdefault(_name, _value)

import torch  # noqa: E402
import typer  # noqa: E402

from benchmarks.store_contenders import (  # noqa: E402
    READERS,
    Cost,
    Source,
    frames_of,
    learned,
    read,
    settings_of,
    stored_maps,
    write,
    written,
)
from benchmarks.store_frames import CENTRE, JITTER  # noqa: E402
from pipeline.dumping.recipe import schema_of  # noqa: E402
from pipeline.dumping.settings import DumpSettings  # noqa: E402
from pipeline.expert import ExpertFrame  # noqa: E402
from pipeline.expert.rows import focal_cells, store_row  # noqa: E402
from pipeline.focal.codes import FeatureCode  # noqa: E402
from pipeline.focal.rule import FocalRule  # noqa: E402
from pipeline.models.build import load_config  # noqa: E402
from store_schema import dequantise  # noqa: E402

PROJECT = Path(__file__).resolve().parent.parent
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    root: Annotated[Path, typer.Option(help="nuScenes-format folder with a few key frames.")],
    version: Annotated[str, typer.Option(help="Folder of the root's tables.")] = "v1.0-mini",
    config: Annotated[Path, typer.Option(help="Expert config.")] = PROJECT / "configs/bevformer/base.py",
    scratch: Annotated[Path, typer.Option(help="Folder for 10 GB of files; the expert's outputs stay there.")] = Path(
        "runs/benchmark"
    ),
    out: Annotated[Path, typer.Option(help="JSON file for the figures.")] = PROJECT / "benchmarks/results/store.json",
    queries: Annotated[int, typer.Option(help="Number of queries kept per frame.")] = 300,
    bev_margin: Annotated[float, typer.Option(help="Margin around footprints, metres.")] = 0.5,
    pv_margin: Annotated[float, typer.Option(help="Margin around projected boxes, as a share of a box's size.")] = 0.1,
    centre: Annotated[float, typer.Option(help="Standard deviation of a false box's centre, metres.")] = CENTRE,
    focal_frames: Annotated[int, typer.Option(help="Number of frames of a focal store.")] = 40,
    dense_frames: Annotated[int, typer.Option(help="Number of frames of a dense store.")] = 10,
    reads: Annotated[int, typer.Option(help="Number of timed warm reads.")] = 60,
    cold_reads: Annotated[int, typer.Option(help="Number of timed cold reads.")] = 12,
) -> None:
    """Measure and print one table."""
    torch.set_num_threads(1)
    rule = FocalRule(queries, 0.05, bev_margin, pv_margin)
    settings = DumpSettings(rule, values="uint8", layers=1)
    source = Source(config, root, version, scratch, settings, centre, focal_frames, dense_frames)
    for _ in frames_of(source):
        pass  # runs the expert where its outputs are not there yet
    areas = apart(areas_and_errors, source)
    areas["relative_error_of_codes"] = {name: apart(code_errors, source, name) for name in ("focal pq", "focal pca")}
    costs: dict[str, Any] = {}
    for name in READERS:
        if "hdf5" in name and find_spec("h5py") is None:
            print("h5py is not installed: no row for HDF5")
            continue
        if name == written(name):
            shutil.rmtree(source.folder(name), ignore_errors=True)
            writing = apart(write, source, name)
        else:
            first = asdict(costs[written(name)])
            writing = {key: first[key] for key in ("bytes_per_frame", "write_mb_s", "write_peak_mib")}
        costs[name] = Cost(**writing, **apart(read, source, name, reads, cold_reads))
    naive = areas["naive_bytes_per_frame"]
    lines = table(costs, naive)
    print("\n".join(lines))
    for name in costs:
        shutil.rmtree(source.folder(name), ignore_errors=True)
    ours, dense = costs["focal pq"], costs["dense zarr"]
    figures = {
        "all": {"bytes_per_frame": ours.bytes_per_frame},
        "ratios": {
            "smaller_than_naive_fp16": naive / ours.bytes_per_frame,
            "warm_read_over_pread": ours.warm_ms / ours.pread_warm_ms,
            "cold_read_over_pread": ours.cold_ms / ours.pread_cold_ms,
            "faster_than_dense_zarr_warm": dense.warm_ms / ours.warm_ms,
            "faster_than_dense_pread_warm": dense.pread_warm_ms / ours.warm_ms,
            "faster_than_zarr_python_warm": costs["focal uint8, zarr-python"].warm_ms / costs["focal uint8"].warm_ms,
        },
        "areas": areas,
        "rule": rule.to_dict(),
        "jitter": JITTER | {"centre": centre},
        "contenders": {name: asdict(cost) for name, cost in costs.items()},
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps({key: figures[key] for key in ("all", "ratios", "areas")}, indent=1))


def areas_and_errors(source: Source) -> dict[str, Any]:
    """Coverage and error of what is stored, means over the real frames, and the bytes of a naive frame."""
    torch.set_num_threads(1)
    cfg, settings = load_config(source.config), settings_of(source, "focal uint8")
    rule, frames = settings.rule, []
    naive = 0.0
    for frame in frames_of(source):
        schema = schema_of(frame.expert, settings)
        bev, levels = focal_cells(frame.expert, rule, cfg.pc_range, frame.lidar2img, schema.layers)
        truth = replace(frame.expert, boxes=frame.truth.float(), score=torch.ones(len(frame.truth)), reading=None)
        wanted = focal_cells(truth, replace(rule, bev_margin=0.5, pv_margin=0.05), cfg.pc_range, frame.lidar2img)
        wanted_tight = focal_cells(truth, replace(rule, bev_margin=0.0, pv_margin=0.0), cfg.pc_range, frame.lidar2img)
        row = store_row(frame.expert, (bev, levels), schema)
        found: dict[str, dict[str, float]] = {}
        for name, cells, feature, tight, wide in zip(
            ["bev", *(f"pv/{i}" for i in range(len(levels)))],
            [bev, *levels],
            [frame.expert.bev, *frame.expert.pv],
            [wanted_tight[0], *wanted_tight[1]],
            [wanted[0], *wanted[1]],
            strict=True,
        ):
            true = feature.movedim(-3, -1)[cells]
            error = torch.from_numpy(dequantise(row[f"{name}/values"], row[f"{name}/affine"])) - true
            half = true.half().float() - true
            found[name] = {
                "coverage": float(cells.float().mean()),
                "cells": float(cells.sum()),
                "annotated_boxes_stored": float((cells & tight).sum() / tight.sum()),
                "annotated_boxes_with_margin_stored": float((cells & wide).sum() / wide.sum()),
                "relative_error": float(error.norm() / true.norm()),
                "relative_error_worst_cell": float((error.norm(dim=1) / true.norm(dim=1)).max()),
                "relative_error_fp16": float(half.norm() / true.norm()),
            }
        frames.append(found)
        naive = naive_bytes(frame.expert, cfg.model.pts_bbox_head.num_query)
    maps = {
        name: {key: sum(frame[name][key] for frame in frames) / len(frames) for key in found[name]} for name in found
    }
    return {"naive_bytes_per_frame": naive, "real_frames": len(frames), "maps": maps}


def code_errors(source: Source, name: str) -> dict[str, float]:
    """Relative error by map of the last real frame's coded cells; the codes are learned from the other frames."""
    torch.set_num_threads(1)
    *_, frame = frames_of(source)
    schema, errors = schema_of(frame.expert, settings_of(source, name)), {}
    codes, maps = schema.codes(learned(source, schema, leave_out=1)), stored_maps(source, frame, schema)
    for path, (feature, cells) in maps.items():
        true, code = feature.movedim(-3, -1)[cells], FeatureCode(codes[path])
        errors[path] = float((code.decode(code.encode(true)) - true).norm() / true.norm())
    return errors


def naive_bytes(frame: ExpertFrame, queries: int) -> float:
    """All cells, all queries and all decoder layers as float16."""
    assert frame.bev is not None and frame.features is not None and frame.reading is not None
    layers, _, heads, points = frame.reading.attention.shape  # type: ignore[union-attr]
    per_query = layers * (frame.features.shape[1] + heads * points * 3) + 9
    return 2.0 * (frame.bev.numel() + sum(level.numel() for level in frame.pv) + queries * per_query)


def apart(function: Callable[..., Any], *args: Any) -> Any:
    """Result of a call in a fresh process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.store_contenders"])  # imported once, by a server that measures nothing
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *args).result()


def table(costs: dict[str, Cost], naive: float) -> list[str]:
    """Markdown: a row per contender; x pread is of as many bytes, x dense against dense Zarr."""
    dense = costs["dense zarr"]
    head = [
        "kept as", "MB/frame", "naive fp16 /", "write, MB/s", "warm, ms", "x pread", "dense zarr /", "cold, ms", "x pread",
        "peak writing, MiB", "peak reading, MiB",
    ]  # fmt: skip
    rows = [[*head], [f"naive fp16, {naive / 1e6:.1f} MB", *[""] * (len(head) - 1)]]
    for name, c in costs.items():
        rows.append(
            [
                name,
                f"{c.bytes_per_frame / 1e6:.2f}",
                f"{naive / c.bytes_per_frame:.1f}",
                f"{c.write_mb_s:.0f}",
                f"{c.warm_ms:.2f}",
                f"{c.warm_ms / c.pread_warm_ms:.1f}",
                f"{dense.warm_ms / c.warm_ms:.1f}",
                f"{c.cold_ms:.1f}",
                f"{c.cold_ms / c.pread_cold_ms:.1f}",
                f"{c.write_peak_mib:.0f}",
                f"{c.read_peak_mib:.0f}",
            ]
        )
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return [lines[0], "|" + "---|" * len(head), *lines[2:]]


if __name__ == "__main__":
    app()
