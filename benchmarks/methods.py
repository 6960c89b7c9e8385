"""Time that each distiller adds to a training step: ``python -m benchmarks.methods STORE``.

Steps of the plain student and of every method by turns, in one process, on the same batches; targets are in memory. The store is a
dense one; methods that a focal one serves read the same.
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
from torch import nn  # noqa: E402

from pipeline.data.frames import frame_dataset  # noqa: E402
from pipeline.distill.build import distiller_config  # noqa: E402
from pipeline.distill.loading import cached_targets  # noqa: E402
from pipeline.distill.methods import method_names  # noqa: E402
from pipeline.models.build import load_config  # noqa: E402
from pipeline.models.load import best_device  # noqa: E402
from pipeline.profile import read_profile  # noqa: E402
from store_schema import StoreReader  # noqa: E402

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    store: Annotated[Path, typer.Argument(help="Store of layout dense.")],
    family: Annotated[str | None, typer.Option(help="Family of detectors; default: the profile's first.")] = None,
    steps: Annotated[int, typer.Option(help="Number of timed steps of each method.", min=1)] = 10,
    params: Annotated[Path, typer.Option(help="Profile.")] = Path("params.yaml"),
) -> None:
    """Print medians and, step by step, the ratio to the plain student."""
    torch.set_num_threads(1)
    profile = read_profile(params)
    pair = profile.family(family)
    cfg = load_config(pair.apprentice.config)
    size, held = cfg.schedule.batch_size, set(StoreReader(store).tokens)
    dataset = DATASETS.build(
        frame_dataset(cfg, profile.data.source("train"), train=True, targets=cached_targets(store))
    )
    places = [i for i, row in enumerate(dataset.rows) if dataset.index[row].token in held][: 4 * size]
    batches = [pseudo_collate([dataset[i] for i in places[k : k + size]]) for k in range(0, len(places), size)]
    models: dict[str, tuple[nn.Module, Any]] = {}
    for method in ("plain", *method_names()):
        plain = method == "plain"
        settings: Any = profile.method(method, pair)
        model = MODELS.build(cfg.model if plain else distiller_config(cfg, store, method, settings)).to(best_device())
        models[method] = (model.train(), build_optim_wrapper(model, cfg.optim_wrapper))
    seconds: dict[str, list[float]] = {method: [] for method in models}
    for i in range(steps + 1):
        for method, (model, optimizer) in models.items():
            started = time.perf_counter()
            model.train_step(batches[i % len(batches)], optimizer)
            seconds[method].append(time.perf_counter() - started)
    print(f"{pair.name}: {size} frames a step, {steps} steps of each by turns, {torch.get_num_threads()} thread")
    for method, found in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(found[1:], seconds["plain"][1:], strict=True))
        print(f"{method:10} {statistics.median(found[1:]) * 1e3:8.1f} ms a step, {ratio:.2f} x plain")


if __name__ == "__main__":
    app()
