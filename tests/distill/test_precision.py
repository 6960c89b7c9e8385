"""The distillers' losses in mixed precision."""

from pathlib import Path

import pytest
import torch
from mmdet3d.registry import DATASETS, MODELS

from pipeline.data.frames import collate, frame_dataset
from pipeline.distill.build import distiller_config
from pipeline.distill.loading import cached_targets
from pipeline.distill.methods import method_names
from pipeline.distill.settings import MethodSettings
from pipeline.models.build import load_config
from pipeline.profile import read_profile

APPRENTICES = {"bevformer": "apprentice", "detr3d": "detr3d_apprentice"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("family", APPRENTICES)
@pytest.mark.parametrize("method", method_names())
def test_losses_in_mixed_precision_are_near_float32s(
    project: Path, source, dense_stores: dict[str, Path], method: str, family: str, dtype: torch.dtype
):
    store, profile = dense_stores[family], read_profile(project / "params.yaml")
    cfg = load_config(project / f"configs/world/{APPRENTICES[family]}.py")
    data = DATASETS.build(frame_dataset(cfg, source, train=True, targets=cached_targets(store)))
    settings = profile.method(method, profile.family(family))
    assert isinstance(settings, MethodSettings)
    model = MODELS.build(distiller_config(cfg, store, method, settings))
    torch.manual_seed(0)
    model.init_weights()
    batch = model.train().data_preprocessor(collate([data[1], data[5]]))
    found = {}
    for enabled in (False, True):
        torch.manual_seed(0)  # the same random masks
        with torch.autocast("cpu", dtype, enabled=enabled):
            losses = model(**batch, mode="loss")
        found[enabled] = {name: loss.item() for name, loss in losses.items()}
    assert found[True] == pytest.approx(found[False], rel=0.1, abs=1e-4)
    if dtype == torch.float16:
        return  # a CPU's backward pass of convolutions in half takes half a minute
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all(), name
