"""Frames per second of a dump: ``python -m benchmarks.dump [--values pq]``.

Compares, taking turns in one process, the expert's inference alone with the dump that writes its shards, and the dump in
one process with that of dask workers. Rates count from the first frame that is done, so that starting processes and
reading checkpoints, which a long dump does once, are left out. The last shard's writing overlaps with nothing and is in:
compare runs of many shards.
"""

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

# As the stages do: idle threads sleep, those that spin on busy cores slow the others down. Read when torch is imported.
for name, value in (("OMP_NUM_THREADS", "1"), ("OMP_WAIT_POLICY", "PASSIVE"), ("GOMP_SPINCOUNT", "0")):
    os.environ.setdefault(name, value)

import torch  # noqa: E402
import typer  # noqa: E402

from pipeline.data.frames import frame_batches  # noqa: E402
from pipeline.data.index import FrameIndex  # noqa: E402
from pipeline.data.source import FrameSource  # noqa: E402
from pipeline.dumping.dump import make_engine  # noqa: E402
from pipeline.dumping.early import scene_rows  # noqa: E402
from pipeline.dumping.engine import Engine  # noqa: E402
from pipeline.dumping.recipe import library_versions, make_manifest  # noqa: E402
from pipeline.dumping.session import Job, session_of  # noqa: E402
from pipeline.dumping.settings import ClusterSettings, DumpSettings  # noqa: E402
from pipeline.focal.rule import FocalRule  # noqa: E402
from pipeline.models.build import load_config  # noqa: E402
from store_schema import StoreWriter  # noqa: E402

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class Rate:
    """Frames per second from the first report to :meth:`stop`."""

    def __init__(self, frames: int) -> None:
        self.frames, self.first = frames, 0.0

    def __call__(self, shard: int, done: int) -> None:
        """Count the frames that a shard has done."""
        if done and not self.first:
            self.first = time.perf_counter()

    def stop(self) -> float:
        """Frames after the first one, per second."""
        return (self.frames - 1) / (time.perf_counter() - self.first)


@app.command()
def main(
    config: Annotated[Path, typer.Option(help="Expert config.")] = Path("configs/world/expert.py"),
    checkpoint: Annotated[Path | None, typer.Option(help="Expert checkpoint.")] = Path("checkpoints/world_expert.pth"),
    index: Annotated[Path, typer.Option(help="Frame index.")] = Path("runs/index.npz"),
    root: Annotated[Path, typer.Option(help="Data root.")] = Path("data/world"),
    split: Annotated[str, typer.Option(help="Split.")] = "world_train",
    scenes: Annotated[int, typer.Option(help="Number of first scenes of the split to dump.", min=2)] = 16,
    frames_per_shard: Annotated[int, typer.Option(help="Frames per shard, as in the dump's settings.")] = 10,
    values: Annotated[str, typer.Option(help="Form of the stored features, as in the dump's settings.")] = "float16",
    workers: Annotated[int, typer.Option(help="Number of dask workers of the second comparison.", min=2)] = 2,
    decoders: Annotated[
        int, typer.Option(help="Number of processes or threads that decode images, per worker.", min=0)
    ] = 0,
    repeats: Annotated[int, typer.Option(help="Number of turns, of which the medians are printed.", min=1)] = 5,
    json_out: Annotated[Path | None, typer.Option("--json", help="JSON file for the figures.")] = None,
) -> None:
    """Print the rates and their ratios."""
    source = FrameSource(index.absolute(), root.absolute(), split)
    settings = DumpSettings(FocalRule(), values=values, frames_per_shard=frames_per_shard)
    frame_index, cfg = FrameIndex.load(source.index, source.root), load_config(config)
    names = list(scene_rows(frame_index, split, None))[:scenes]
    tokens = {
        name: [frame_index[row].token for row in rows] for name, rows in scene_rows(frame_index, split, names).items()
    }
    everything = [token for name in names for token in tokens[name]]
    versions = tuple(library_versions().items())
    job = Job(cfg.pretty_text, checkpoint and checkpoint.absolute(), source, settings, 1, decoders, versions)
    rates: dict[str, list[float]] = {"inference": [], "one": [], "workers": []}
    with make_engine(ClusterSettings()) as one, make_engine(ClusterSettings(workers=workers)) as many:
        schema, constants = one.probe(job, everything[0])
        if schema.code is not None:
            constants |= one.learn(job, schema, list(tokens.values()), lambda frames: None)
        manifest = make_manifest(cfg, config, checkpoint, frame_index, source, settings)

        def inference() -> float:
            session, rate = session_of(job), Rate(len(everything))
            for batch in frame_batches(session.cfg, source, [session.number[t] for t in everything], decoders):
                session.expert.run(batch)
                rate(0, 1)
            return rate.stop()

        def dump(engine: Engine) -> float:
            with tempfile.TemporaryDirectory(prefix="fd3d-dump-") as folder:
                rate = Rate(len(everything))
                with StoreWriter(Path(folder) / "store", schema, manifest, tokens, frames_per_shard) as writer:
                    writer.write_constants(constants)
                    engine.run(job, writer.shards, writer.pending(), rate)
                    return rate.stop()

        turns: dict[str, Callable[[], float]] = {
            "inference": inference,
            "one": lambda: dump(one),
            "workers": lambda: dump(many),
        }
        many.probe(job, everything[0])  # tells the engine the workers' kind of device
        dump(many)  # the workers read their expert
        for _ in range(repeats):
            for name, turn in turns.items():
                rates[name].append(turn())
    median = {name: statistics.median(values) for name, values in rates.items()}
    figures = {
        "frames_per_second": {name: round(value, 3) for name, value in median.items()},
        # within a turn, so that what else the machine does falls on both sides
        "writing_on": round(statistics.median(a / b for a, b in zip(rates["one"], rates["inference"], strict=True)), 3),
        "workers_to_one": round(
            statistics.median(a / b for a, b in zip(rates["workers"], rates["one"], strict=True)), 3
        ),
        "workers": workers,
        "cores": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[0],
        "torch": torch.__version__,
    }
    print(f"{config}: {len(everything)} frames, {repeats} turns, {figures['cores']} cores, load {figures['load']:.1f}")
    print(f"inference alone       {median['inference']:8.2f} frames/s")
    print(f"dump, one process     {median['one']:8.2f} frames/s   {figures['writing_on']:.3f} x inference alone")
    print(
        f"dump, {workers} dask workers  {median['workers']:8.2f} frames/s   {figures['workers_to_one']:.3f} x one process"
    )
    if json_out is not None:
        json_out.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    app()
