"""``verify``: is a store sound, and is it what its expert says?"""

from pathlib import Path
from typing import Annotated

import typer
from tqdm import tqdm

from pipeline.errors import FD3DError, counted
from pipeline.files import check_needed
from pipeline.profile import CONFIG, read_profile
from store_schema import StoreReader
from store_schema import verify as check

LIMIT = 0.01
"""Largest relative error of an array that counts as the same."""


def verify(
    store: Annotated[str, typer.Argument(help="Folder or URL of a finished store.")],
    recompute: Annotated[int, typer.Option(help="Number of random frames to run the expert on again.", min=0)] = 0,
    family: Annotated[str | None, typer.Option(help="Family of detectors; default: the profile's first.")] = None,
    config: Annotated[Path | None, typer.Option(help="Expert config; default: the expert stage's.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Expert checkpoint; default: the expert stage's.")] = None,
    index: Annotated[Path | None, typer.Option(help="Frame index; default: the profile's.")] = None,
    root: Annotated[Path | None, typer.Option(help="Data root; default: the profile's.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the choice of frames.")] = 0,
    params: Annotated[Path, typer.Option(help="Profile; its 'data' and 'families' are used with --recompute.")] = Path(
        "params.yaml"
    ),
) -> None:
    """Check every checksum, size, shape, count and token of a store; exit status 1 with all that is wrong."""
    if recompute and None in (config, checkpoint, index, root):
        profile = read_profile(params)
        detector = profile.family(family).detector
        index, root = index or profile.data.index, root or profile.data.root
        config, checkpoint = config or detector.with_name(CONFIG), checkpoint or detector
    if recompute:
        check_needed(config=config, checkpoint=checkpoint, index=index, root=root)
    report = check(store, progress=lambda items, total: tqdm(items, total=total, leave=False, disable=None))
    for problem in report.problems:
        print(problem)
    if report.problems:
        raise FD3DError(f"{store} has {counted(len(report.problems), 'problem')}")
    print(
        f"{store} is sound: {counted(report.files, 'file')}, {report.bytes / 1e6:.1f} MB, {counted(report.frames, 'frame')}, {report.seconds:.1f} s"
    )
    if config is None or checkpoint is None or index is None or root is None or not recompute:
        return
    from pipeline.dumping.recompute import recompute as run

    errors = run(StoreReader(store), config, checkpoint, index, root, recompute, seed)
    print(f"{'array':24} {'values':>12} {'largest':>10} {'relative':>10} {'cells that differ':>18}")
    for name, error in errors.items():
        print(f"{name:24} {error.values:12} {error.largest:10.3g} {error.relative:10.2e} {error.cells:18}")
    far = [name for name, error in errors.items() if error.relative > LIMIT or error.cells]
    if far:
        raise FD3DError(f"{store} is not what its expert says: {', '.join(far)} differ by more than {LIMIT:.0%}")
