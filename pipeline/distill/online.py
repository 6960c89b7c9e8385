"""The expert inside the training step, in place of the store's frames: the published, online form.

Rows are made by the code of stage 1, in the precision and areas of the store, so a frame that was streamed
from its scene's start has the arrays that the store has. The store still gives sizes, areas and channel statistics, but no
frames.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmdet3d.registry import DATASETS, MODELS
from mmdet3d.structures import Det3DDataSample
from mmengine.config import Config

from pipeline.data.frames import frame_dataset
from pipeline.data.source import FrameSource
from pipeline.expert.load import check_identity, load_expert
from pipeline.expert.rows import focal_cells, store_row
from pipeline.focal.codes import FeatureCode
from pipeline.focal.rule import FocalRule
from pipeline.models.build import load_config
from pipeline.models.detector import MultiCameraDetector
from store_schema import MapCode, StoreSchema, read_back

from .stored import CachedFrame


class OnlineExpert:
    """Frozen expert that runs over the frames which come with each sample.

    An online expert is no module: no optimiser or checkpoint of a training includes one, and making one draws none of the
    training's random numbers.

    Args:
        config, checkpoint: config and checkpoint of the expert that made the store.
        manifest, schema, codes: of the store.
        store: name of the store in messages.

    Attributes:
        passes: frames that the expert has run.

    Raises:
        FD3DError: the store was made by another expert.
    """

    def __init__(
        self,
        config: str | Path,
        checkpoint: str | Path,
        manifest: Mapping[str, Any],
        schema: StoreSchema,
        codes: Mapping[str, MapCode],
        store: object,
    ):
        cfg, made_by = load_config(config), manifest["expert"]
        check_identity(made_by, cfg, Path(checkpoint), store)
        self.schema, self.rule = schema, FocalRule(**manifest["focal"])
        self.pc_range = manifest["coordinates"]["pc_range"]
        with torch.random.fork_rng():
            self.expert = load_expert(cfg, Path(checkpoint), self.rule.num_queries, made_by["autocast"])
        self.codes = {name: FeatureCode.on(code, self.expert.device) for name, code in codes.items()}
        self.passes = 0

    @torch.no_grad()
    def rows(self, queues: Sequence[Mapping[str, Any]]) -> list[CachedFrame]:
        """Arrays of the last frame of every queue, as the store's reader gives them.

        Args:
            queues: frames of :class:`~pipeline.distill.loading.LoadExpertFrames`; each queue begins without history.
        """
        # the student may train in mixed precision; the expert runs as it did for the store
        with torch.autocast(self.expert.device.type, enabled=False):
            return [self._row(queue["img"], queue["frames"]) for queue in queues]

    def _row(self, img: torch.Tensor, metas: Sequence[dict[str, Any]]) -> CachedFrame:
        # frame by frame and sample by sample as in stage 1: other batches would change the last bits
        for step in range(len(metas) - 1):
            self.expert.advance(_one_frame(img, metas, step))
        batch = _one_frame(img, metas, len(metas) - 1)
        (frame,), _ = self.expert.run(batch)
        self.passes += len(metas)
        lidar2img = torch.as_tensor(metas[-1]["lidar2img"], dtype=torch.float32, device=self.expert.device)
        cells = focal_cells(frame, self.rule, self.pc_range, lidar2img, self.schema.layers)
        return read_back(self.schema, store_row(frame, cells, self.schema, self.codes))


def _one_frame(img: torch.Tensor, metas: Sequence[dict[str, Any]], step: int) -> dict[str, Any]:
    meta = {"token": metas[step]["token"], "frames": [metas[step]]}
    return {"inputs": {"img": [img[step : step + 1]]}, "data_samples": [Det3DDataSample(metainfo=meta)]}


def expert_frames(expert: Config, apprentice: Config, source: FrameSource, history: str) -> dict[str, Any]:
    """Data set of the frames that an online expert sees, for :class:`~pipeline.distill.loading.LoadExpertFrames`.

    An expert without history (a detector of this project that does not stream) sees the current frame only.

    Args:
        expert, apprentice: detector configs.
        history: ``scene`` for the scene from its start, as in stage 1, or ``queue`` for the student's queue.
    """
    kind = MODELS.get(expert.model.type)
    single = isinstance(kind, type) and issubclass(kind, MultiCameraDetector) and not hasattr(kind, "stream")
    config = frame_dataset(expert, source, train=False) | {"test_mode": False}
    length = 1 if single else apprentice.queue_length
    if history == "scene" and not single:
        length = max(len(rows) for rows in DATASETS.build(config).index.scenes.values())
    return config | {"queue_length": length}
