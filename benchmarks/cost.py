"""Cost of distillation from a store and with the expert online: ``python -m benchmarks.cost``.

Measures on a small embedded world, by turns in one process with one thread, images decoded in it: a scene of the dump per
frame, and training steps of the plain student, of FD3D from the store, and of FD3D with the expert online, which sees the
student's queue or streams the whole scene. From these rates and the profile's frames and steps follow the
hours of one and of ten student runs, and from multiply-adds (:mod:`pipeline.cost.complexity`) their FLOPs. Peak memory is that of a
process which makes one kind of step only.

``--published`` measures FD3D's own pairs at nuScenes' image size instead, with random weights: no published expert is at hand,
and none is needed to see what passes take.
"""

import json
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

# Read when torch is imported.
for name, value in (("OMP_NUM_THREADS", "1"), ("OMP_WAIT_POLICY", "PASSIVE"), ("GOMP_SPINCOUNT", "0")):
    os.environ.setdefault(name, value)

import torch  # noqa: E402
import typer  # noqa: E402
from mmdet3d.registry import DATASETS, MODELS  # noqa: E402
from mmengine.dataset import pseudo_collate  # noqa: E402
from mmengine.logging import MMLogger  # noqa: E402
from mmengine.optim import build_optim_wrapper  # noqa: E402

from benchmarks.online import make_world  # noqa: E402
from pipeline.cost.cameras import rig_cameras  # noqa: E402
from pipeline.cost.complexity import count  # noqa: E402
from pipeline.data.frames import frame_dataset  # noqa: E402
from pipeline.data.index import FrameIndex  # noqa: E402
from pipeline.data.source import FrameSource  # noqa: E402
from pipeline.distill.build import distiller_config  # noqa: E402
from pipeline.distill.loading import cached_targets, online_targets  # noqa: E402
from pipeline.distill.online import expert_frames  # noqa: E402
from pipeline.distill.settings import DistillSettings  # noqa: E402
from pipeline.dumping.dump import dump, make_engine  # noqa: E402
from pipeline.dumping.early import scene_rows  # noqa: E402
from pipeline.dumping.recipe import library_versions, make_manifest  # noqa: E402
from pipeline.dumping.session import Job  # noqa: E402
from pipeline.dumping.settings import ClusterSettings, DumpSettings  # noqa: E402
from pipeline.models.build import build_detector, load_config  # noqa: E402
from pipeline.models.checkpoints import save_checkpoint  # noqa: E402
from pipeline.models.load import best_device  # noqa: E402
from pipeline.profile import read_profile  # noqa: E402
from store_schema import StoreReader, StoreWriter  # noqa: E402

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
KINDS = ("plain", "cached", "queue", "scene")
"""Steps: without an expert, from the store, with the expert online by what it sees."""
BACKWARD = 2
"""Multiply-adds of a backward pass in units of the forward pass: one product each for the gradients of inputs and weights."""
PAIRS = (
    ("configs/bevformer/base_r101.py", "configs/bevformer/tiny.py"),
    ("configs/bevformer/base.py", "configs/bevformer/small.py"),
    ("configs/detr3d/r101.py", "configs/detr3d/r50.py"),
)
"""Expert and student of FD3D's results on nuScenes."""
NUSCENES = Path("configs/profiles/nuscenes.yaml")
IMAGE_HW = (900, 1600)
FRAMES, SCENE, EPOCHS = 28130, 40, 24
"""Figures of nuScenes: training frames, frames of a scene, epochs of FD3D's schedule."""
QUERIES = 100
"""Queries kept at nuScenes' size; where random weights put their boxes, these span about the share of the maps that real frames' boxes do."""
EMBEDDED, PUBLISHED = "<!-- python -m benchmarks.cost -->", "<!-- python -m benchmarks.cost --published -->"
END = "<!-- end -->"


@dataclass(frozen=True)
class Case:
    """A pair on a world: paths and settings that another process can build it from."""

    name: str
    expert_config: str
    expert_checkpoint: str
    apprentice_config: str
    settings: DistillSettings
    source: FrameSource
    store: Path
    frames: int
    """Number of frames per scene."""
    first: int = 0
    """First place in a scene whose frames are trained on."""


class Steps:
    """Training steps of one kind.

    Args:
        case: pair to train.
        kind: one of ``KINDS``.

    Attributes:
        size: frames of a step.
        loading: seconds that each step took to load its batch.
    """

    def __init__(self, case: Case, kind: str) -> None:
        MMLogger.get_current_instance().setLevel("WARNING")  # else a line per parameter
        torch.set_num_threads(1)
        torch.manual_seed(0)
        self.loading: list[float] = []
        cfg, made_by = load_config(case.apprentice_config), (case.expert_config, case.expert_checkpoint)
        self.case, self.size, model, queues = case, cfg.schedule.batch_size, cfg.model, None
        if kind in ("queue", "scene"):
            online = replace(case.settings, expert="online", history=kind)
            model = distiller_config(cfg, case.store, "fd3d", online, made_by)
            queues = expert_frames(load_config(case.expert_config), cfg, case.source, kind)
        elif kind == "cached":
            model = distiller_config(cfg, case.store, "fd3d", case.settings)
        targets: list[dict[str, Any]] = []
        if queues is not None:
            targets = online_targets(queues)
        elif kind == "cached":
            targets = cached_targets(case.store)
        self.dataset = DATASETS.build(frame_dataset(cfg, case.source, True, targets))
        self.model = MODELS.build(model).to(best_device()).train()
        self.optimizer = build_optim_wrapper(self.model, cfg.optim_wrapper)

    def __call__(self, turn: int) -> float:
        """Load and train on one batch; seconds.

        The frames' places in their scenes are mirrored within a batch, so that batches of an even size see scenes of
        the same mean length.
        """
        frames, first, places = self.case.frames, self.case.first, []
        for b in range(self.size):
            place = turn % (frames - first)
            place = first + place if b % 2 == 0 else frames - 1 - place
            places.append((turn + b) % (len(self.dataset) // frames) * frames + place)
        started = time.perf_counter()
        batch = pseudo_collate([self.dataset[i] for i in places])
        self.loading.append(time.perf_counter() - started)
        self.model.train_step(batch, self.optimizer)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - started

    @property
    def passes(self) -> int:
        """Frames that the expert has run."""
        online = getattr(self.model, "online", None)
        return 0 if online is None else int(online.passes)


def resident() -> float:
    """Largest resident set of this process so far, MiB; Linux. ``getrusage`` would give the parent's where that is larger."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) / 1024


def peak_memory(case: Case, kind: str, steps: int) -> tuple[float, float]:
    """MiB that this process takes at most: when its imports are done, and in steps of a kind."""
    before, step = resident(), Steps(case, kind)
    for turn in range(steps):
        step(turn - 1)  # the first one has a scene's last frame
    return before, resident()


def peak_memories(case: Case, kinds: Sequence[str], steps: int) -> dict[str, list[int]]:
    """:func:`peak_memory` by kind, each in a process of its own."""
    found, context = {}, multiprocessing.get_context("spawn")
    for kind in kinds:
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            found[kind] = [round(value) for value in pool.submit(peak_memory, case, kind, steps).result()]
    return found


def measure(case: Case, dumping: DumpSettings, repeats: int, kinds: Sequence[str] = KINDS) -> dict[str, Any]:
    """Median seconds of a dumped frame and of each kind of step and its loading, the median of each kind's ratio to a plain step within a
    turn, expert passes per frame of a step."""
    steps = {kind: Steps(case, kind) for kind in kinds}
    seconds: dict[str, list[float]] = {kind: [] for kind in ("dump", *kinds)}
    cfg, source = load_config(case.expert_config), case.source
    config, checkpoint = Path(case.expert_config), Path(case.expert_checkpoint)
    index = FrameIndex.load(source.index, source.root)
    tokens = {n: [index[row].token for row in rows] for n, rows in scene_rows(index, source.split, None).items()}
    job = Job(cfg.pretty_text, checkpoint, source, dumping, 1, 0, tuple(library_versions().items()))
    manifest = make_manifest(cfg, config, checkpoint, index, source, dumping)
    with tempfile.TemporaryDirectory(prefix="fd3d-cost-") as folder, make_engine(ClusterSettings()) as engine:
        schema, constants = engine.probe(job, next(iter(tokens.values()))[0])
        with StoreWriter(Path(folder) / "store", schema, manifest, tokens, case.frames) as writer:
            writer.write_constants(constants)
            shards = writer.pending()
            for turn in range(-1, repeats):  # the first turn warms up
                started = time.perf_counter()
                engine.run(job, writer.shards, [shards[turn % len(shards)]], lambda shard, done: None)
                seconds["dump"].append((time.perf_counter() - started) / case.frames)
                for kind, step in steps.items():
                    seconds[kind].append(step(turn))
                if turn < 0:
                    warm_up = {kind: step.passes for kind, step in steps.items()}
    timed = {name: values[1:] for name, values in seconds.items()}
    frames = repeats * steps["plain"].size
    return {
        "seconds": {name: statistics.median(values) for name, values in timed.items()},
        "loading": {kind: statistics.median(step.loading[1:]) for kind, step in steps.items()},
        "to_plain": {
            name: statistics.median(a / b for a, b in zip(values, timed["plain"], strict=True))
            for name, values in timed.items()
        },
        "passes": {kind: (step.passes - warm_up[kind]) / frames for kind, step in steps.items()},
    }


@dataclass(frozen=True)
class Plan:
    """Amount of training, as in the profile."""

    frames: int
    """Frames of the training split."""
    steps: int
    batch: int


def total_hours(measured: dict[str, Any], plan: Plan, kind: str, runs: int) -> float:
    """Hours of ``runs`` students of a kind; from the store with its dump."""
    dumped = plan.frames * measured["seconds"]["dump"] if kind == "cached" else 0.0
    return float(dumped + runs * plan.steps * measured["seconds"][kind]) / 3600


def total_passes(measured: dict[str, Any], plan: Plan, kind: str, runs: int) -> float:
    """Frames that the expert runs."""
    return plan.frames if kind == "cached" else runs * plan.steps * plan.batch * float(measured["passes"][kind])


def work(config: str, image_hw: tuple[int, int]) -> dict[str, float]:
    """Multiply-adds of one frame: ``whole``, and ``history``, what a frame of the history takes."""
    found = count(load_config(config), rig_cameras(*image_hw))
    return {"whole": found.full(), "history": sum(found.full(part) for part in ("backbone", "neck", "encoder"))}


def total_flops(
    measured: dict[str, Any],
    plan: Plan,
    kind: str,
    runs: int,
    expert: dict[str, float],
    apprentice: dict[str, float],
    queue: int,
) -> float:
    """FLOPs, two per multiply-add, of ``runs`` students of a kind; from the store with its dump.

    Left out are the distiller's generators, which are the same from the store and online, and the losses.

    Args:
        expert, apprentice: multiply-adds of :func:`work`.
        queue: frames of the student's queue, whose history is run without gradients.
    """
    student = (1 + BACKWARD) * apprentice["whole"] + (queue - 1) * apprentice["history"]
    macs = runs * plan.steps * plan.batch * student
    if kind == "cached":
        macs += plan.frames * expert["whole"]
    elif kind in ("queue", "scene"):
        seen = measured["passes"][kind]
        macs += runs * plan.steps * plan.batch * (expert["whole"] + (seen - 1) * expert["history"])
    return 2 * macs


def table(results: dict[str, dict[str, Any]]) -> str:
    """Markdown: a row per family and kind of step."""
    lines = [
        "| family | expert | s a step | of it loading | x plain | expert passes a frame | passes, 1 / 10 runs | hours, 1 / 10 runs | TFLOP, 1 / 10 runs | "
        "peak memory, MiB |",
        "|" + "---|" * 10,
    ]
    names = {"plain": "none", "cached": "store, dump included", "queue": "online, queue", "scene": "online, scene"}
    for family, found in results.items():
        for kind in found["totals"]:
            sums = [found["totals"][kind][str(runs)] for runs in (1, 10)]
            cells = [
                family,
                names[kind],
                f"{found['seconds'][kind]:.3f}",
                f"{found['loading'][kind]:.3f}",
                f"{found['to_plain'][kind]:.2f}",
                f"{found['passes'][kind]:.2f}",
                " / ".join(f"{one['passes']:,.0f}" for one in sums),
                " / ".join(f"{one['hours']:.2f}" for one in sums),
                " / ".join(f"{one['flops'] / 1e12:,.0f}" for one in sums),
                f"{found['memory'][kind][1]:,}" if found["memory"] else "",
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def summary(family: str, found: dict[str, Any]) -> str:
    """A sentence about ten runs."""
    ten = {kind: total["10"] for kind, total in found["totals"].items()}
    online = [kind for kind in ("queue", "scene") if kind in ten]
    hours, flops = (
        " and ".join(f"{ten['cached'][name] / ten[kind][name]:.2f} with the {kind}" for kind in online)
        for name in ("hours", "flops")
    )
    return (
        f"- {family}: a dumped frame takes {found['seconds']['dump']:.3f} s, {found['to_plain']['dump']:.2f} of a plain step. Ten runs from the store take "
        f"{hours} of the wall time of ten online runs; of their FLOPs {flops}. An expert's frame is {found['macs']['expert']['whole'] / 1e9:.2f}e9 "
        f"multiply-adds, an apprentice's {found['macs']['apprentice']['whole'] / 1e9:.2f}e9; the store holds "
        + ", ".join(f"{share:.1%} of {name}" for name, share in found["cells"].items())
        + "."
    )


def published_pairs() -> str:
    """Markdown: FLOPs of the paper's pairs on nuScenes, where nothing is measured."""
    lines = [
        "| expert | apprentice | expert passes a frame | EFLOP from the store, 1 / 10 runs | online, queue | ratio |",
        "|" + "---|" * 6,
    ]
    for pair in PAIRS:
        expert, apprentice = (work(path, IMAGE_HW) for path in pair)
        queue = load_config(pair[1]).queue_length
        passes = statistics.mean(min(place + 1, queue) for place in range(SCENE))
        plan, sums = Plan(FRAMES, EPOCHS * FRAMES, 1), {}
        for kind in ("cached", "queue"):
            found = {"passes": {kind: passes}}
            sums[kind] = [total_flops(found, plan, kind, runs, expert, apprentice, queue) for runs in (1, 10)]
        cells = [
            *(Path(path).relative_to("configs").with_suffix("").as_posix() for path in pair),
            f"{passes:.2f}",
            *(" / ".join(f"{one / 1e18:.1f}" for one in sums[kind]) for kind in sums),
            " / ".join(f"{a / b:.2f}" for a, b in zip(*sums.values(), strict=True)),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def put_into(document: Path, text: str, marker: str) -> None:
    """Replace what stands between a marker and the end of its part of a document."""
    before, rest = document.read_text().split(marker)
    document.write_text(f"{before}{marker}\n{text}\n{END}{rest.split(END, 1)[1]}")


Measured = tuple[Case, DumpSettings, Plan, tuple[int, int]]
"""Case to measure, and the size of the images."""


def embedded_cases(
    folder: Path, params: Path, families: list[str] | None, scenes: int, frames: int | None
) -> Iterator[Measured]:
    """The profile's families on a small embedded world, with their stores."""
    profile = read_profile(params)
    world = profile.world
    frames = frames or world.frames_per_scene
    dumping = replace(profile.dump, frames_per_shard=frames)
    source = make_world(folder, scenes, frames)
    for family in families or list(profile.families):
        pair = profile.family(family)
        made_by, apprentice = (str(pair.expert.config), str(pair.expert.checkpoint)), str(pair.apprentice.config)
        schedule = load_config(apprentice).schedule
        case = Case(family, *made_by, apprentice, pair.distill, source, folder / family, frames)
        dump(Path(made_by[0]), Path(made_by[1]), source, case.store, dumping, workers=0)
        plan = Plan(world.train_scenes * world.frames_per_scene, schedule.max_iters, schedule.batch_size)
        yield case, dumping, plan, (world.height, world.width)


def published_cases(folder: Path, pairs: Sequence[tuple[str, str]]) -> Iterator[Measured]:
    """FD3D's pairs with random weights, images and settings of nuScenes' profile, on frames whose queue is full, as it is for 37 of a
    nuScenes scene's 40."""
    profile = read_profile(NUSCENES)
    focal = replace(profile.focal, num_queries=QUERIES, min_score=0.0)
    settings = replace(profile.family("bevformer").distill, rule=focal, trust_threshold=0.0)
    queue = max(load_config(apprentice).queue_length for _, apprentice in pairs)
    source = make_world(folder, 1, queue, *IMAGE_HW)
    dumping = replace(profile.dump, rule=focal, frames_per_shard=queue)
    for i, (expert, apprentice) in enumerate(pairs):
        torch.manual_seed(0)
        weights, batch = folder / f"expert-{i}.pth", load_config(apprentice).schedule.batch_size
        save_checkpoint(
            {"state_dict": build_detector(load_config(expert)).state_dict(), "training": {"seed": 0, "steps": 0}},
            weights,
        )
        names = [Path(path).relative_to("configs").with_suffix("").as_posix() for path in (expert, apprentice)]
        case = Case(
            " to ".join(names), expert, str(weights), apprentice, settings, source, folder / str(i), queue, queue - 1
        )
        dump(Path(expert), weights, source, case.store, dumping, workers=0)
        yield case, dumping, Plan(FRAMES, EPOCHS * FRAMES // batch, batch), IMAGE_HW


def costs(measured: Measured, repeats: int, kinds: Sequence[str], memory: bool) -> dict[str, Any]:
    """All figures of a case."""
    case, dumping, plan, image_hw = measured
    # first, while this process is small
    memories = peak_memories(case, kinds, min(3, repeats)) if memory else {}
    found, queue = measure(case, dumping, repeats, kinds), load_config(case.apprentice_config).queue_length
    macs = {"expert": work(case.expert_config, image_hw), "apprentice": work(case.apprentice_config, image_hw)}
    totals = {
        kind: {
            str(runs): {
                "passes": total_passes(found, plan, kind, runs),
                "hours": total_hours(found, plan, kind, runs),
                "flops": total_flops(found, plan, kind, runs, **macs, queue=queue),
            }
            for runs in (1, 10)
        }
        for kind in kinds
    }
    return found | {
        "memory": memories,
        "plan": asdict(plan),
        "macs": macs,
        "cells": shares(case.store),
        "totals": totals,
    }


def shares(store: Path) -> dict[str, float]:
    """Share of every map's cells that a focal store includes."""
    reader = StoreReader(store)
    schema, frames = reader.schema, [reader.read(token, decode=False) for token in reader.tokens]
    cells = {f"pv/{level}": count for level, count in enumerate(schema.pv_cells)}
    cells |= {"bev": schema.bev_cells} if schema.bev else {}
    return {name: statistics.mean(len(frame[f"{name}/index"]) for frame in frames) / cells[name] for name in cells}


@app.command()
def main(
    families: Annotated[
        list[str] | None, typer.Option("--family", help="Family to measure, repeatable; default: all of the profile.")
    ] = None,
    repeats: Annotated[int, typer.Option(help="Number of turns, of which medians are taken.", min=1)] = 10,
    scenes: Annotated[int, typer.Option(help="Number of scenes of the world that is measured on.", min=1)] = 4,
    frames: Annotated[
        int | None, typer.Option(help="Number of frames per scene; default: the profile's.", min=2)
    ] = None,
    published: Annotated[bool, typer.Option(help="FD3D's pairs on large images, with random weights.")] = False,
    pairs: Annotated[
        list[int] | None,
        typer.Option(
            "--pair", help="Published pair, by number from 0, repeatable; default: all.", min=0, max=len(PAIRS) - 1
        ),
    ] = None,
    memory: Annotated[bool, typer.Option(help="Measurement of peak memory too.")] = True,
    json_out: Annotated[
        Path | None,
        typer.Option("--json", help="JSON file for the figures; default: benchmarks/results/cost[_published].json."),
    ] = None,
    document: Annotated[Path | None, typer.Option(help="Document between whose markers the table goes.")] = None,
    params: Annotated[Path, typer.Option(help="Profile; 'world', 'families', 'focal' and 'distill' are used.")] = Path(
        "params.yaml"
    ),
) -> None:
    """Print the table and write the figures."""
    kinds, marker = (KINDS[:3], PUBLISHED) if published else (KINDS, EMBEDDED)
    with tempfile.TemporaryDirectory(prefix="fd3d-cost-") as temporary:
        if published:
            cases = published_cases(Path(temporary), [PAIRS[i] for i in pairs or range(len(PAIRS))])
        else:
            cases = embedded_cases(Path(temporary), params, families, scenes, frames)
        results = {measured[0].name: costs(measured, repeats, kinds, memory) for measured in cases}
    machine = {
        "device": str(best_device()),
        "cores": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 1),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "repeats": repeats,
    }
    json_out = json_out or Path(f"benchmarks/results/cost{'_published' if published else ''}.json")
    json_out.parent.mkdir(parents=True, exist_ok=True)
    json_out.write_text(json.dumps({"machine": machine, "families": results}, indent=1) + "\n")
    sentences = [summary(family, found) for family, found in results.items()]
    text = "\n".join(["", table(results), "", *sentences, "", *([] if published else [published_pairs(), ""])])
    print(f"{machine}\n{text}")
    if document is not None:
        put_into(document, text, marker)


if __name__ == "__main__":
    app()
