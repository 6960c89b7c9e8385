"""Config of a distiller around a student's config."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from mmengine.config import Config

from pipeline.data.source import FrameSource
from pipeline.errors import FD3DError
from pipeline.expert.adapted import trainable_model
from pipeline.expert.declared import is_foreign
from pipeline.expert.maps import Maps, check_common, measured
from store_schema import StoreReader

from .base import Distiller
from .methods import load_method
from .settings import MethodSettings


def distiller_config(
    cfg: Config,
    store: str | Path,
    method: str,
    settings: MethodSettings,
    expert: tuple[str | Path, str | Path] | None = None,
    source: FrameSource | None = None,
) -> dict[str, Any]:
    """Config of the distiller of ``method`` around a student.

    Args:
        cfg: detector config of the student.
        store: store of the expert's targets.
        method: a file's name in ``pipeline/distill/methods``.
        settings: settings of the method.
        expert: config and checkpoint of an online expert.
        source: frames of the training, on whose first the maps of a student of another project are measured.

    Raises:
        FD3DError: the method is unknown, or a student of another project does not fit it or the store.
    """
    kind = load_method(method)
    student: dict[str, Any] = cfg.model
    if is_foreign(cfg):
        if source is None:
            raise FD3DError(f"the maps of {cfg.filename} are measured on a frame; give the frames of the training")
        student = trainable_model(cfg, source)
        sizes = _foreign_sizes(cfg, store, kind, settings, source)
    else:
        head = cfg.model.pts_bbox_head
        sizes = dict(
            bev_size=(head.bev_h, head.bev_w) if "bev_h" in head else None,
            bev_channels=head.get("embed_dims", 256),
            pv_channels=cfg.model.img_neck.out_channels,
        )
    return dict(
        type=kind.__name__,
        student=student,
        store=str(store),
        settings=asdict(settings),
        expert=None if expert is None else dict(config=str(expert[0]), checkpoint=str(expert[1])),
        **sizes,
    )


def _foreign_sizes(
    cfg: Config, store: str | Path, kind: type[Distiller], settings: MethodSettings, source: FrameSource
) -> dict[str, Any]:
    """Sizes and module paths of a student of another project, measured on a frame and compared with the store.

    Raises:
        FD3DError: the method reads a detection head, or student and store do not fit.
    """
    if kind.reads_head:
        raise FD3DError(
            f"{settings.section} reads the detection head of this project's students; use a method that compares maps"
        )
    maps, reader = measured(cfg, source), StoreReader(store)
    levels = tuple((len(reader.schema.cameras), level[2], level[0], level[1]) for level in reader.schema.pv)
    bev = reader.schema.bev and (reader.schema.bev[2], *reader.schema.bev[:2])
    pc_range = tuple(map(float, reader.manifest["coordinates"]["pc_range"]))
    there = {"pv": f"store {store}"} | ({"bev": ""} if bev else {})
    check_common(Maps(levels, bev, pc_range, there), maps, cfg.filename, settings.levels, settings.section)
    channels = {level[1] for level in maps.pv}
    if len(channels) > 1:
        raise FD3DError(
            f"the pyramid of {cfg.filename} has levels of {sorted(channels)} channels; tap one of equal numbers"
        )
    return dict(
        bev_size=None if maps.bev is None else maps.bev[1:],
        bev_channels=0 if maps.bev is None else maps.bev[0],
        pv_channels=next(iter(channels), 0),
        taps=maps.paths,
    )
