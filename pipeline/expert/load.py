"""Expert of a store: loading as in stage 1, and the check that an expert made the store."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config

from pipeline.errors import FD3DError
from pipeline.files import file_sha256, refuse_irregular
from pipeline.models.detector import MultiCameraDetector
from pipeline.models.fold import fold_batchnorm
from pipeline.models.load import load_detector
from store_schema.manifest import normalised

from .tapped import TappedExpert, adapter_of


def load_expert(
    cfg: Config, checkpoint: Path | None, num_queries: int, autocast: str | None, seed: int = 0
) -> TappedExpert:
    """The expert as it runs over frames, tapped and frozen.

    Args:
        num_queries: K best queries kept.
        autocast: see :class:`~pipeline.expert.TappedExpert`.
        seed: seed of random weights without a checkpoint.

    Raises:
        FD3DError: the checkpoint is missing or does not fit, or the config's adapter does not.
    """
    model = load_detector(cfg, checkpoint, seed)
    if isinstance(model, MultiCameraDetector):  # of other detectors it is not known in which order their layers run
        fold_batchnorm(model)
    return TappedExpert(model, adapter_of(cfg, model), num_queries, autocast)


def identity(cfg: Config, checkpoint: Path | None) -> dict[str, str | None]:
    """Identity of an expert: SHA-256 of the config and of the checkpoint, None for random weights."""
    return {
        "config_sha256": hash_config(cfg),
        "checkpoint_sha256": file_sha256(checkpoint) if checkpoint else None,
    }


def check_identity(made_by: Mapping[str, Any], cfg: Config, checkpoint: Path, store: object) -> None:
    """Refuse an expert that did not make a store.

    Args:
        made_by: section ``expert`` of the store's manifest.
        store: name of the store in messages.

    Raises:
        FD3DError: the checkpoint is missing, or config or checkpoint are not those that made the store.
    """
    refuse_irregular(checkpoint)
    if not checkpoint.is_file():
        raise FD3DError(f"checkpoint {checkpoint} does not exist; give the one that made store {store}")
    if made_by.get("checkpoint_sha256") is None:
        raise FD3DError(f"store {store} was dumped with random weights; dump it with a checkpoint")
    names = {
        "config_sha256": f"config {cfg.filename} (model, image and range)",
        "checkpoint_sha256": f"checkpoint {checkpoint}",
    }
    for name, here in identity(cfg, checkpoint).items():
        if (made := made_by.get(name)) != here:
            raise FD3DError(
                f"store {store} was not made by {names[name]}: the SHA-256 here is {str(here)[:12]}, the manifest's "
                f"{str(made)[:12]}; give the expert that made the store, or dump this one"
            )


def hash_config(cfg: Config) -> str:
    """SHA-256 of what decides the expert's outputs: model, images, ranges, and where there are such, corruption and modules of one's own.

    A number counts the same however it is spelled, 1 or 1.0.
    """
    deciding = ("model", "image", "pc_range", "corruption", "custom_sources")
    relevant = {name: cfg[name] for name in deciding if name in cfg}
    return hashlib.sha256(json.dumps(normalised(relevant), sort_keys=True, default=str).encode()).hexdigest()
