"""Time that each distiller adds to a training step: ``python -m benchmarks.methods``.

Steps (forward, backward, optimiser) of the plain student and of every method by turns, in one process with one thread, on the same
batches; images are decoded and targets read before. Without ``--store``, a small world is generated and dumped twice: methods
that compare whole maps read the dense store, the others the focal one. FD3D is timed as the profile has it, and with mixed pyramids
where the profile has none, or without.

``--published N`` takes a pair of the FD3D paper at nuScenes' image size instead (:func:`benchmarks.cost.published_cases`): random
weights, a focal store, and so only methods that read one, and FD3D without mixed pyramids.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported

import torch  # noqa: E402
import typer  # noqa: E402
from mmdet3d.registry import DATASETS, MODELS  # noqa: E402
from mmengine.config import Config  # noqa: E402
from mmengine.dataset import pseudo_collate  # noqa: E402
from mmengine.logging import MMLogger  # noqa: E402
from mmengine.optim import build_optim_wrapper  # noqa: E402
from torch import nn  # noqa: E402

from benchmarks.cost import PAIRS, published_cases  # noqa: E402
from benchmarks.online import make_world  # noqa: E402
from pipeline.data.frames import frame_dataset  # noqa: E402
from pipeline.data.source import FrameSource  # noqa: E402
from pipeline.distill.base import Distiller  # noqa: E402
from pipeline.distill.build import distiller_config  # noqa: E402
from pipeline.distill.loading import cached_targets  # noqa: E402
from pipeline.distill.methods import method_names  # noqa: E402
from pipeline.distill.settings import FD3D, METHODS, PLAIN  # noqa: E402
from pipeline.dumping.dump import dump  # noqa: E402
from pipeline.models.build import load_config  # noqa: E402
from pipeline.models.load import best_device  # noqa: E402
from pipeline.profile import Profile, read_profile  # noqa: E402
from store_schema import StoreReader  # noqa: E402

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
Rows = Mapping[str, tuple[str, Path, Any]]
"""Method, store and settings by the name that is printed."""


def small_world(folder: Path, profile: Profile, family: str, methods: list[str]) -> tuple[FrameSource, Rows]:
    """Two generated scenes, and every method with the store that the method reads."""
    pair, frames = profile.family(family), 6
    source = make_world(folder, 2, frames, profile.world.height, profile.world.width)
    layouts = {method: "dense" if METHODS[method].compares_maps else "focal" for method in methods}
    for layout in set(layouts.values()):
        settings = replace(profile.dump, layout=layout, frames_per_shard=frames)
        dump(pair.expert.config, pair.expert.checkpoint, source, folder / layout, settings, workers=0)
    return source, {
        method: (method, folder / layout, profile.method(method, pair)) for method, layout in layouts.items()
    }


def with_other_mixing(rows: Rows) -> Rows:
    """The rows, and after FD3D's the same with mixed pyramids, or without where they are mixed already."""
    found = {}
    for name, (method, store, settings) in rows.items():
        found[name] = method, store, settings
        if method == FD3D:
            other = replace(settings, w_mixed=0.0 if settings.w_mixed else 1.0)
            found[f"{name}, w_mixed {other.w_mixed:g}"] = method, store, other
    return found


def time_steps(cfg: Config, source: FrameSource, rows: Rows, steps: int, batches: int = 4) -> dict[str, list[float]]:
    """Seconds of every step by row, ``plain`` first, after a step of each on every batch that is not counted.

    Args:
        cfg: config of the student.
        source: frames, of which those that the stores include are trained on; at most ``batches`` batches of the latest.
        rows: rows beside ``plain``.
    """
    size, items = cfg.schedule.batch_size, {}
    for store in dict.fromkeys(store for _, store, _ in rows.values()):
        dataset, held = DATASETS.build(frame_dataset(cfg, source, True, cached_targets(store))), StoreReader(store)
        places = [i for i, row in enumerate(dataset.rows) if dataset.index[row].token in held.tokens][-batches * size :]
        loaded = [dataset[i] for i in places]
        items[store] = [pseudo_collate(loaded[k : k + size]) for k in range(0, len(loaded), size)]
    models: dict[str, tuple[nn.Module, Any, Path]] = {}
    torch.manual_seed(0)
    _, first, _ = next(iter(rows.values()))
    configs = {PLAIN: (cfg.model, first)} | {
        name: (distiller_config(cfg, store, method, settings), store)
        for name, (method, store, settings) in rows.items()
    }
    for name, (config, store) in configs.items():
        model = MODELS.build(config).to(best_device()).train()
        models[name] = (model, build_optim_wrapper(model, cfg.optim_wrapper), store)
    seconds: dict[str, list[float]] = {name: [] for name in models}
    warm_up = len(next(iter(items.values())))
    for i in range(warm_up + steps):
        for name, (model, optimizer, store) in models.items():
            if isinstance(model, Distiller):
                model.begin_update(i)
            started = time.perf_counter()
            model.train_step(items[store][i % len(items[store])], optimizer)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - started)
    return {name: found[warm_up:] for name, found in seconds.items()}


def _means(seconds: list[float], count: int) -> list[float]:
    """Means of ``count`` steps each; a rest is left out."""
    return [statistics.mean(seconds[k : k + count]) for k in range(0, len(seconds) - count + 1, count)]


@app.command()
def main(
    family: Annotated[str | None, typer.Option(help="Family of detectors; default: the profile's first.")] = None,
    methods: Annotated[
        list[str] | None, typer.Option("--method", help="Method to time, repeatable; default: all that apply.")
    ] = None,
    store: Annotated[
        Path | None, typer.Option(help="Store of layout dense that all methods read; default: a small world.")
    ] = None,
    published: Annotated[
        int | None, typer.Option(help="Number of a pair of the paper, from 0.", min=0, max=len(PAIRS) - 1)
    ] = None,
    steps: Annotated[int, typer.Option(help="Number of timed steps of each method.", min=1)] = 20,
    params: Annotated[Path, typer.Option(help="Profile.")] = Path("params.yaml"),
) -> None:
    """Print medians and, turn by turn, the ratio to the plain student; a step is the mean over as many as ``every`` says."""
    MMLogger.get_current_instance().setLevel("WARNING")  # else a line per parameter
    torch.set_num_threads(1)
    profile = read_profile(params)
    pair = profile.family(family)
    wanted = methods or method_names()
    with tempfile.TemporaryDirectory(prefix="fd3d-methods-") as temporary:
        if published is not None:
            case, *_ = next(published_cases(Path(temporary), [PAIRS[published]]))
            cfg, source, name, batches = load_config(case.apprentice_config), case.source, case.name, 1
            rows: Rows = {FD3D: (FD3D, case.store, case.settings)}
        else:
            cfg, name, batches = load_config(pair.apprentice.config), pair.name, 4
            if store is None:
                source, rows = small_world(Path(temporary), profile, pair.name, wanted)
            else:
                source = profile.data.source("train")
                rows = {method: (method, store, profile.method(method, pair)) for method in wanted}
            rows = with_other_mixing(rows)
        seconds = time_steps(cfg, source, rows, steps, batches)
    size, threads = cfg.schedule.batch_size, torch.get_num_threads()
    print(f"{name}: {size} frames a step, {steps} steps of each by turns, {threads} thread, {best_device()}")
    for name, found in seconds.items():
        every = 1 if name == PLAIN else rows[name][2].every
        found, plain = (_means(times, every) for times in (found, seconds[PLAIN]))
        ratio = statistics.median(a / b for a, b in zip(found, plain, strict=True))
        print(f"{name:18} {statistics.median(found) * 1e3:8.1f} ms a step, {ratio:.3f} x plain")


if __name__ == "__main__":
    app()
