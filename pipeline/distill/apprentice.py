"""Training of the paper's apprentice: a student with a distiller's losses, from the store or beside an online expert."""

from pathlib import Path
from typing import Any

from mmengine.config import Config

from pipeline.data.frames import FrameSource
from pipeline.models.build import load_config
from pipeline.training.run import train
from pipeline.training.settings import Inheritance, RunSettings
from store_schema import StoreReader
from store_schema.manifest import fingerprint

from .build import distiller_config
from .loading import cached_targets, online_targets


def train_apprentice(
    cfg: Config,
    method: str,
    values: dict[str, Any],
    source: FrameSource,
    store: Path,
    out: Path,
    run: RunSettings,
    expert: tuple[Path, Path] | None = None,
    inheritance: Inheritance | None = None,
) -> dict[str, Any]:
    """Train a student with a method's losses; a killed training goes on from its last checkpoint.

    Args:
        cfg: the student's config.
        values: of the method's settings.
        store: the expert's targets; of an online expert its sizes, areas and statistics only.
        out: the finished student's checkpoint.
        expert: config and checkpoint of the expert, for ``expert: online``.

    Returns:
        facts as of :func:`~pipeline.training.run.train`.

    Raises:
        FD3DError: contradictory settings, or a loss that is not finite.
        StoreError: the store cannot be read.
    """
    live = expert if values.get("expert") == "online" else None
    targets = cached_targets(store, run.cache_mb)
    if live is not None:
        from .online import expert_frames  # here, so that training from the store needs nothing of the expert

        targets = online_targets(expert_frames(load_config(live[0]), cfg, source, values["history"]))
    return train(
        cfg,
        distiller_config(cfg, store, method, values, live),
        source,
        out,
        run,
        export=lambda trained: trained.student_state_dict(),
        inheritance=inheritance,
        targets=targets,
        recipe={"store": fingerprint(StoreReader(store).manifest)},
    )
