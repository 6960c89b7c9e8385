"""Config of a distiller around a student's config."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from mmengine.config import Config

from .methods import load_method
from .settings import MethodSettings


def distiller_config(
    cfg: Config,
    store: str | Path,
    method: str,
    settings: MethodSettings,
    expert: tuple[str | Path, str | Path] | None = None,
) -> dict[str, Any]:
    """Config of the distiller of ``method`` around a student.

    Args:
        cfg: detector config of the student.
        store: store of the expert's targets.
        method: a file's name in ``pipeline/distill/methods``.
        settings: settings of the method.
        expert: config and checkpoint of an online expert.

    Raises:
        FD3DError: the method is unknown.
    """
    kind = load_method(method)
    head = cfg.model.pts_bbox_head
    return dict(
        type=kind.__name__,
        student=cfg.model,
        store=str(store),
        settings=asdict(settings),
        bev_size=(head.bev_h, head.bev_w) if "bev_h" in head else None,
        bev_channels=head.get("embed_dims", 256),
        pv_channels=cfg.model.img_neck.out_channels,
        expert=None if expert is None else dict(config=str(expert[0]), checkpoint=str(expert[1])),
    )
