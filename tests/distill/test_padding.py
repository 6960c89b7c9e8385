"""Images of several sizes: the padding of the smaller ones counts in no loss and in no statistics."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.distill.foreground import area_weights
from pipeline.distill.methods.cwd import channel_divergence
from pipeline.distill.methods.fgd import GlobalContext, attention_masks, focal_terms
from pipeline.distill.methods.heatmap import channel_cross_entropy
from pipeline.distill.whole_map import mean_squared, without
from pipeline.dumping.moments import shard_moments
from pipeline.expert.rows import level_cells
from pipeline.models.views import own_cells

IMAGE = (64, 64)  # padded
VIEWS = torch.tensor([[[32.0, 64.0], [32.0, 64.0]]])  # two landscape images: the upper half of the map
OWN = own_cells(VIEWS, (8, 8), IMAGE).flatten(0, 1)[:, None]


def context(student: Tensor, expert: Tensor, own: Tensor | None) -> Tensor:
    torch.manual_seed(0)
    block = GlobalContext(4)
    torch.nn.init.ones_(list(block.add.parameters())[-2])  # away from the identity
    made = block(student, own)
    return (made if own is None else made * own).sum()


def focal(student: Tensor, expert: Tensor, own: Tensor | None) -> Tensor:
    objects = torch.zeros(1, 2, *student.shape[-2:], dtype=torch.bool)
    objects[0, :, 1:3, 1:3] = True
    weights = area_weights(objects, None if own is None else own[:, 0])
    return torch.stack(focal_terms(student, expert, *weights, 0.5, own))


LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor | None], Any]] = {
    "squared": mean_squared,
    "cwd": lambda s, t, own: channel_divergence(without(s, own), without(t, own), 0.5),
    "heatmap": lambda s, t, own: channel_cross_entropy(without(s, own), without(t, own), 2.0),
    "masks": lambda s, t, own: attention_masks(s, 0.5, own)[1],
    "focal": focal,
    "context": context,
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_that_of_the_images_without_their_padding(name: str) -> None:
    torch.manual_seed(1)
    loss, (student, expert) = LOSSES[name], torch.randn(2, 2, 4, 8, 8)
    student.requires_grad_(True)
    found = loss(student, expert, OWN)
    torch.testing.assert_close(found, loss(student[:, :, :4], expert[:, :, :4], None))
    (gradient,) = torch.autograd.grad(found.sum(), student)
    assert (gradient[:, :, 4:] == 0).all() and (gradient[:, :, :4] != 0).any()


def test_statistics_of_a_dense_level_are_those_of_the_cameras_own_cells() -> None:
    dense = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    frame: Any = SimpleNamespace(view_hw=np.array([[32, 64], [64, 32]]), image_hw=IMAGE, pv=[torch.zeros(2, 3, 8, 8)])
    own = level_cells(frame)
    found = shard_moments([{"pv/0/dense": dense}] * 2, None, [own, own])["pv/0"]
    want = 2 * np.concatenate([dense[0, :4].reshape(-1, 3), dense[1, :, :4].reshape(-1, 3)]).sum(0, dtype=np.float64)
    assert found["count"] == 2 * 64
    np.testing.assert_allclose(found["sum"], want, rtol=1e-6)
    assert shard_moments([{"pv/0/dense": dense}])["pv/0"]["count"] == 128  # images of one size


def test_a_store_of_whole_maps_has_statistics_without_padding(project: Path, tmp_path: Path, world: Path) -> None:
    from pipeline.data.index import build_index
    from pipeline.data.source import FrameSource
    from pipeline.distill.methods import load_method  # noqa: F401
    from pipeline.dumping.dump import dump
    from pipeline.dumping.settings import DumpSettings
    from pipeline.focal.rule import FocalRule
    from store_schema import StoreReader
    from tests.data.test_rigs import LANDSCAPE, PORTRAIT, VERSION, another_rig, painted

    root = painted(another_rig(world, tmp_path / "own", [PORTRAIT, *[LANDSCAPE] * 4], None))
    build_index(root, VERSION, root / "index.npz")
    source = FrameSource(root / "index.npz", root, "world_val")
    settings = DumpSettings(FocalRule(num_queries=20, min_score=0.0), layout="dense", frames_per_shard=3)
    dump(project / "configs/world/five_expert.py", None, source, tmp_path / "store", settings, workers=0)
    reader = StoreReader(tmp_path / "store")
    for level, (rows, columns, channels, _) in enumerate(reader.schema.pv):
        cells = own_cells(torch.tensor([[[96.0, 64]] + [[64.0, 96]] * 4]), (rows, columns), (96, 96))[0].numpy()
        values = np.concatenate([reader.read(token)[f"pv/{level}/dense"][cells] for token in reader.tokens])
        stats = reader.manifest["statistics"][f"pv/{level}"]
        np.testing.assert_allclose(stats["mean"], values.astype(np.float64).mean(0), rtol=1e-4, atol=1e-5)
        assert len(stats["std"]) == channels
