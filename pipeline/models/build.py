"""Detectors from configs."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mmdet3d.registry import MODELS
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from torch import nn

from pipeline.errors import FD3DError
from pipeline.files import NO_SPACE, check_needed, write_atomically
from pipeline.models.own_modules import module_sha256


def load_config(path: str | Path) -> Config:
    """Read an mmengine config file; ``custom_sources`` says which modules of one's own it imported.

    Raises:
        FD3DError: the file does not exist, is no config, was written by a stage when such a module was another, or has two ranges.
    """
    check_needed(config=Path(path))
    try:
        cfg = Config.fromfile(path)
    except Exception as error:  # a config is code: whatever it raises is the reader's to see, in one line
        if isinstance(error, OSError) and error.errno in NO_SPACE:  # mmengine copies a config before it reads it
            raise
        first: BaseException = error
        while isinstance(first, ImportError) and first.__context__ is not None:
            first = first.__context__
        hint = "; are the folders of its custom_imports on PYTHONPATH?" if isinstance(first, ImportError) else ""
        told = " ".join(str(first).split())
        raise FD3DError(f"config {path} cannot be read: {type(first).__name__}: {told}{hint}") from error
    if not isinstance(cfg.get("model"), dict):
        raise FD3DError(f"config {path} has no model, so it is no detector's config; see configs/ for those that ship")
    # data sets, transforms and models are looked up in mmdet3d's registries
    init_default_scope("mmdet3d")
    note_sources(cfg, path)
    _check_ranges(cfg, path)
    return cfg


def _check_ranges(cfg: Config, path: str | Path) -> None:
    """Refuse a head that has another range than the config, by which boxes and stored cells would be scaled apart.

    Raises:
        FD3DError: with both ranges.
    """
    for place, found in _ranges(cfg.get("model", {}).get("pts_bbox_head") or {}, "model.pts_bbox_head"):
        # coders of mmdet3d's centre heads have the corner's x and y alone
        if "pc_range" in cfg and list(found) != list(cfg.pc_range)[: len(found)]:
            raise FD3DError(
                f"config {path} has pc_range {list(cfg.pc_range)}, but {list(found)} in {place}; give the same range in both"
            )


def _ranges(part: Any, place: str) -> Iterator[tuple[str, Sequence[float]]]:
    """All values named ``pc_range`` in a part of a config, with their places."""
    if isinstance(part, dict):
        if "pc_range" in part:
            yield place, part["pc_range"]
        for name, inner in part.items():
            yield from _ranges(inner, f"{place}.{name}")


def note_sources(cfg: Config, path: str | Path) -> None:
    """Write digests of the imported modules into a config, so that what is made by another adapter is not taken for the same."""
    names = cfg.get("custom_imports", {}).get("imports", [])
    sources = []
    for name in [names] if isinstance(names, str) else names:
        if (digest := module_sha256(name)) is not None:
            sources.append(f"{name} {digest}")
    for line in cfg.get("custom_sources", []):
        if line not in sources:
            raise FD3DError(
                f"config {path} was written with another version of module {line.split()[0]}; run the stage that wrote it again, or take its "
                "custom_sources out to go on with this version"
            )
    if sources:
        cfg.custom_sources = sources


def write_config(cfg: Config, path: Path) -> None:
    """Write a config as one file.

    Raises:
        FD3DError: the disk is full or the folder cannot be written.
    """
    write_atomically(path, lambda file: file.write(cfg.pretty_text))


def build_detector(cfg: Config) -> nn.Module:
    """Build ``cfg.model`` with freshly initialised weights."""
    model = MODELS.build(cfg.model)
    # mmengine logs a line for every parameter that it initialises
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel("WARNING")
    model.init_weights()
    logger.setLevel(level)
    return model
