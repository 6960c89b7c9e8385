"""Training of a student with a distiller's losses, from the store or beside an online expert."""

import warnings
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.data.index import FrameIndex
from pipeline.data.origin import origin_of
from pipeline.data.source import FrameSource
from pipeline.errors import FD3DError, counted
from pipeline.files import check_outside_stores, file_sha256
from pipeline.models.build import load_config
from pipeline.training.run import finish, train
from pipeline.training.settings import RANDOM, Inheritance, Initial, RunSettings, Validation
from store_schema import StoreReader
from store_schema.manifest import fingerprint

from .build import distiller_config
from .loading import cached_targets, online_targets
from .methods import load_method
from .scores import check_scores
from .settings import MethodSettings


def train_apprentice(
    config: Path,
    method: str,
    settings: MethodSettings,
    *,
    source: FrameSource,
    store: Path,
    expert: Path,
    out: Path,
    run: RunSettings,
    init: Initial = RANDOM,
    validation: Validation | None = None,
    restart: bool = False,
) -> dict[str, Any]:
    """Train a student with a method's losses; a killed training goes on from its last checkpoint.

    Args:
        config: detector config of the student.
        store: store of the expert's targets; with an online expert only sizes, areas and statistics are read.
        expert: checkpoint of the expert, for ``inherit`` and ``expert: online``; the expert's ``config.py`` lies beside.
        out: checkpoint to write, of the finished student.
        init: pretrained file that the student's backbone and neck start from.
        validation, restart: as of :func:`~pipeline.training.run.train`.

    Returns:
        facts as of :func:`~pipeline.training.run.train`, also in ``train.json`` beside ``out``.

    Raises:
        FD3DError: contradictory or changed settings, a store of another index, without frames of the split, without
            cells or without scores to distil, or a loss that is not finite.
        StoreError: the store cannot be read.
    """
    check_outside_stores(out)
    reader = StoreReader(store)
    manifest = reader.manifest
    index = FrameIndex.load(source.index)
    index.check_made(manifest, store)
    if settings.expert == "cached":
        check_frames(reader, index, source.split)
    if load_method(method).reads_maps:
        check_cells(reader, settings)
    check_scores(reader, settings, [index[row].token for row in index.select(source.split)])
    warn_of_expert(manifest["expert"], store, expert if settings.inherit else None)
    cfg, targets, live = load_config(config), cached_targets(store, run.cache_mb), None
    if settings.expert == "online" and settings.history is not None:
        from .online import expert_frames  # here, so that training from the store needs nothing of the expert

        live = (expert.with_name("config.py"), expert)
        targets = online_targets(expert_frames(load_config(live[0]), cfg, source, settings.history))
    facts = train(
        cfg,
        distiller_config(cfg, store, method, settings, live, source),
        source,
        out,
        run,
        export=lambda trained: trained.student_state_dict(),
        facts_of=lambda trained: trained.facts(),
        init=init,
        inheritance=Inheritance(expert, settings.inherit) if settings.inherit else None,
        targets=targets,
        recipe={"store": fingerprint(manifest), settings.section: asdict(settings)},
        validation=validation,
        restart=restart,
    )
    return finish(out, facts | {"method": method})


def check_frames(reader: StoreReader, index: FrameIndex, split: str) -> None:
    """Refuse a store that lacks frames of the split that is trained on; one that has more is fine.

    Raises:
        FD3DError: naming store and split, and whose frames the store has.
    """
    wanted, there = [index[row].token for row in index.select(split)], set(reader.tokens)
    if missing := [token for token in wanted if token not in there]:
        raise FD3DError(
            f"store {reader.storage} lacks {len(missing)} of the {counted(len(wanted), 'frame')} of split '{split}', first {missing[0]}: "
            f"{origin_of(index, there)[0]}; name a store of split '{split}' by --store, or make one with 'fd3d dump --split {split}'"
        )


def check_cells(reader: StoreReader, settings: MethodSettings) -> None:
    """Refuse a store that has no cell of any map that a method reads, and warn of single maps without cells.

    An online expert changes nothing: maps are scaled by the store's statistics, which are of its cells.

    Raises:
        FD3DError: naming store and maps.
        StoreError: counts of the store are damaged; only a store with a map of hardly any cell has its counts read.
    """
    if all(reader.manifest["coverage"].values()):  # shares, rounded; a dense store has none
        return
    left_out = [f"pv/{n}" for n in range(len(reader.schema.pv)) if n not in (settings.levels or range(n + 1))]
    read = {name: int(count.sum()) for name, count in reader.counts().items() if name not in left_out}
    empty = [name for name, cells in read.items() if not cells]
    advice = "no query reached focal.min_score there; look at the expert, or lower focal.min_score and dump again"
    if empty and len(empty) == len(read):
        raise FD3DError(
            f"store {reader.storage} has no cell of {', '.join(empty)} in any frame, so {settings.section} has nothing to distil: {advice}"
        )
    if empty:
        warnings.warn(
            f"store {reader.storage} has no cell of {', '.join(empty)} in any frame, of which nothing is distilled; {advice}",
            stacklevel=3,
        )


def warn_of_expert(made_by: Mapping[str, Any], store: Path, inherited: Path | None) -> None:
    """Warn of targets that teach nothing, and of a student that starts from another expert than the targets'.

    Args:
        made_by: section ``expert`` of the store's manifest.
        inherited: checkpoint that the student's modules start from; None where none do.
    """
    made = made_by.get("checkpoint_sha256")
    if made is None:
        warnings.warn(
            f"store {store} was dumped with random weights, its targets teach nothing; dump with a checkpoint",
            stacklevel=3,
        )
    elif inherited is not None and inherited.is_file() and (here := file_sha256(inherited)) != made:
        warnings.warn(
            f"the student starts from {inherited} (SHA-256 {here[:12]}), but another checkpoint made store {store} ({made[:12]}); name "
            "that expert, or dump its store anew",
            stacklevel=3,
        )
