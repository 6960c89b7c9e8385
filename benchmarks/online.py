"""Whether a cached expert trains as one in the training step: ``python -m benchmarks.online --check``.

Generates a small embedded world, dumps it once per precision, and trains each family's student on the same frames with
the same seed from every store and with the expert online, which streams each scene from its start as the dump did. Prints the
largest relative differences of the losses to those of the online training, which runs in the finest precision there is.
"""

import csv
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

# Read when torch is imported.
for name, value in (("OMP_NUM_THREADS", "1"), ("OMP_WAIT_POLICY", "PASSIVE"), ("GOMP_SPINCOUNT", "0")):
    os.environ.setdefault(name, value)

import numpy as np  # noqa: E402
import torch  # noqa: E402
import typer  # noqa: E402

from pipeline.data.index import build_index  # noqa: E402
from pipeline.data.source import FrameSource  # noqa: E402
from pipeline.data.world.config import WorldConfig  # noqa: E402
from pipeline.data.world.generate import generate_world  # noqa: E402
from pipeline.distill.apprentice import train_apprentice  # noqa: E402
from pipeline.dumping.dump import dump  # noqa: E402
from pipeline.dumping.settings import DumpSettings  # noqa: E402
from pipeline.focal.rule import FocalRule  # noqa: E402
from pipeline.models.pairs import StudentPlan  # noqa: E402
from pipeline.profile import CONFIG, DETECTOR, Family, read_profile  # noqa: E402
from pipeline.training.expert import take_or_train  # noqa: E402
from pipeline.training.settings import RunSettings  # noqa: E402
from store_schema.schema import VALUES  # noqa: E402

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
LIMIT = 0.01
"""Largest relative difference of a cached training's losses that passes, where nothing was rounded."""
FINEST_FIRST = [values for values in ("float32", "float16", "uint8") if values in VALUES]

Curves = dict[str, np.ndarray]
"""Losses by term, one value per step."""


def make_world(folder: Path, scenes: int, frames: int, height: int = 160, width: int = 288) -> FrameSource:
    """A training split of that many scenes, and its index."""
    config = WorldConfig(train_scenes=scenes, val_scenes=1, frames_per_scene=frames, height=height, width=width)
    generate_world(folder / "world", config, workers=0)
    build_index(folder / "world", "v1.0-world", folder / "index.npz")
    return FrameSource(folder / "index.npz", folder / "world", "world_train")


def read_curves(path: Path) -> Curves:
    """A training's ``losses.csv``."""
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: np.array([float(row[name]) for row in rows]) for name in rows[0] if "loss" in name}


def largest_difference(found: Curves, wanted: Curves, window: int) -> dict[str, float]:
    """By term the largest relative difference between means over ``window`` steps."""

    def means(curve: np.ndarray) -> np.ndarray:
        return curve[: len(curve) // window * window].reshape(-1, window).mean(1)

    return {
        name: float(np.max(np.abs(means(found[name]) - means(curve)) / np.maximum(np.abs(means(curve)), 1e-12)))
        for name, curve in wanted.items()
    }


def compare(
    family: Family,
    rule: FocalRule,
    source: FrameSource,
    folder: Path,
    steps: int,
    frames: int,
) -> dict[str, tuple[Curves, bool]]:
    """Losses of every training of a family, and whether its weights are those of the online one.

    Args:
        family: family of the profile.
        rule: focal rule of the dumps.
        frames: number of frames of a scene.

    Returns:
        by name: ``online`` first, then the cached ones by their stored precision.
    """
    expert = folder / family.name / "expert" / DETECTOR
    take_or_train(
        family.expert.config,
        family.expert.checkpoint,
        family.expert.train,
        source,
        expert,
        StudentPlan(family.apprentice.config),
    )
    settings = RunSettings(max_iters=steps, workers=0, curve_every=1, checkpoint_every=10 * steps)
    found: dict[str, tuple[Curves, bool]] = {}
    weights: dict[str, torch.Tensor] = {}

    def run(name: str, store: Path, **values: Any) -> None:
        out = folder / family.name / name / DETECTOR
        train_apprentice(
            family.apprentice.config,
            "fd3d",
            replace(family.distill, **values),
            source=source,
            store=store,
            expert=expert,
            out=out,
            run=settings,
        )
        state = torch.load(out, weights_only=True)["state_dict"]
        weights.update({} if weights else state)
        found[name] = read_curves(out.with_name("losses.csv")), all(torch.equal(weights[k], state[k]) for k in state)

    for i, values in enumerate(FINEST_FIRST):
        store = folder / family.name / f"store-{values}"
        dump(
            expert.with_name(CONFIG),
            expert,
            source,
            store,
            DumpSettings(rule, values=values, frames_per_shard=frames),
            workers=0,
        )
        if i == 0:
            run("online", store, expert="online", history="scene")
        run(values, store)
    return found


@app.command()
def main(
    families: Annotated[
        list[str] | None, typer.Option("--family", help="Family to compare, repeatable; default: all of the profile.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Number of steps of each training.", min=4)] = 200,
    scenes: Annotated[int, typer.Option(help="Number of scenes of the world.", min=1)] = 20,
    frames: Annotated[int, typer.Option(help="Number of frames per scene.", min=1)] = 6,
    check: Annotated[
        bool, typer.Option(help="Exit status 1 where the finest store's losses are off by over 1 %.")
    ] = False,
    params: Annotated[Path, typer.Option(help="Profile; 'families', 'focal' and 'distill' are used.")] = Path(
        "params.yaml"
    ),
) -> None:
    """Print the differences per family, stored precision and loss term."""
    profile = read_profile(params)
    worst = 0.0
    with tempfile.TemporaryDirectory(prefix="fd3d-online-") as temporary:
        folder = Path(temporary)
        source = make_world(folder, scenes, frames)
        print(f"{steps} steps of each training; largest relative difference to the online expert, in per cent")
        for family in families or list(profile.families):
            results = compare(profile.family(family), profile.focal, source, folder, steps, frames)
            online = results.pop("online")[0]
            for name, (curves, same) in results.items():
                single, mean = (largest_difference(curves, online, window) for window in (1, max(1, steps // 20)))
                if name == FINEST_FIRST[0]:
                    worst = max(worst, *single.values())
                print(f"{family}, {name}: weights at the end are {'the same, bit for bit' if same else 'others'}")
                for term in online:
                    print(
                        f"  {term:20} {100 * single[term]:9.4f} a step {100 * mean[term]:9.4f} means of {max(1, steps // 20)}"
                    )
    if check and worst > LIMIT:
        raise SystemExit(f"cached and online differ by {worst:.2%}, more than {LIMIT:.0%}")


if __name__ == "__main__":
    app()
