"""Time that reading the store adds to a training step: ``python -m benchmarks.step``.

A distilled student's step with its targets read from the store just before, in the same process, against the same step
with its targets in memory. Nothing is read ahead here, so this is the most that reading can cost; a training's loader
reads beside the step. Images are decoded before.
"""

import os
import statistics
import time
from pathlib import Path
from typing import Annotated, Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported

import torch  # noqa: E402
import typer  # noqa: E402
from mmdet3d.registry import DATASETS, MODELS  # noqa: E402
from mmengine.dataset import pseudo_collate  # noqa: E402
from mmengine.optim import build_optim_wrapper  # noqa: E402
from mmengine.registry import init_default_scope  # noqa: E402

from pipeline.data.frames import frame_dataset  # noqa: E402
from pipeline.distill.build import distiller_config  # noqa: E402
from pipeline.models.build import load_config  # noqa: E402
from pipeline.models.load import best_device  # noqa: E402
from pipeline.profile import read_profile  # noqa: E402
from store_schema import StoreReader  # noqa: E402

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    family: Annotated[str | None, typer.Option(help="Family of detectors; default: the profile's first.")] = None,
    store: Annotated[Path | None, typer.Option(help="Store to read; default: runs/FAMILY/store.")] = None,
    steps: Annotated[int, typer.Option(help="Number of timed steps of each kind.", min=1)] = 40,
    params: Annotated[Path, typer.Option(help="Profile.")] = Path("params.yaml"),
) -> None:
    """Print medians of reading and step, and their ratio."""
    init_default_scope("mmdet3d")
    torch.set_num_threads(1)
    profile = read_profile(params)
    pair = profile.family(family)
    cfg, store = load_config(pair.apprentice.config), store or pair.store
    source, size = profile.data.source("train"), cfg.schedule.batch_size
    reader = StoreReader(store)
    dataset = DATASETS.build(frame_dataset(cfg, source, train=True))
    held = set(reader.tokens)
    places = [i for i, row in enumerate(dataset.rows) if dataset.index[row].token in held]
    order = torch.randperm(len(places), generator=torch.Generator().manual_seed(0)).tolist()
    items = [dataset[places[i]] for i in order[: min(len(order), 8 * size)]]
    batches = [items[i : i + size] for i in range(0, len(items) - size + 1, size)]
    model = MODELS.build(distiller_config(cfg, store, "fd3d", pair.distill)).to(best_device())
    model.train()
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper)

    def read(batch: list[dict[str, Any]]) -> float:
        started = time.perf_counter()
        for item in batch:
            sample = item["data_samples"]
            sample.set_metainfo({"expert": reader.read(sample.token, decode=False)})
        return time.perf_counter() - started

    def step(batch: list[dict[str, Any]]) -> float:
        started = time.perf_counter()
        model.train_step(pseudo_collate(batch), optimizer)
        return time.perf_counter() - started

    for batch in batches:  # files into the page cache, first steps of every shape
        read(batch)
        step(batch)
    inside, alone, reading = [], [], []
    for i in range(steps):
        batch = batches[i % len(batches)]
        alone.append(step(batch))
        reading.append(read(batch))
        inside.append(reading[-1] + step(batch))
    ratio = statistics.median(a / b for a, b in zip(inside, alone, strict=True))
    print(f"{pair.name}: {size} frames a step, {steps} steps of each kind by turns, {torch.get_num_threads()} thread")
    print(f"targets in memory   {statistics.median(alone) * 1e3:8.1f} ms a step")
    print(f"targets read first  {statistics.median(inside) * 1e3:8.1f} ms a step, {ratio:.3f} x")
    print(
        f"reading             {statistics.median(reading) * 1e3:8.2f} ms, {sum(reading) / sum(alone):.1%} of the step"
    )


if __name__ == "__main__":
    app()
