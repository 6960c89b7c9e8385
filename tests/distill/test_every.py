"""Updates between two that distil are plain ones."""

import pytest
import torch

from pipeline.distill.settings import METHODS, DistillSettings
from pipeline.errors import FD3DError
from tests.distill.steps import batch_of, distiller


def test_losses_are_multiplied_where_they_are_computed(project, dense_stores, source):
    store, losses, batch = dense_stores["bevformer"], {}, None
    for every in (1, 3):
        cfg, model = distiller(project, store, every=every, mask_ratio=0.0)
        batch = batch or batch_of(model, cfg, source, store)
        torch.manual_seed(0)
        losses[every] = model(**batch, mode="loss")
    for name, value in losses[1].items():
        distilled = name in ("loss_pv", "loss_bev", "loss_fine")
        torch.testing.assert_close(losses[3][name], value * (3 if distilled else 1))


def test_a_plain_update_reads_nothing_of_the_expert(project, dense_stores, source, monkeypatch):
    cfg, model = distiller(project, dense_stores["bevformer"], every=3)
    batch = batch_of(model, cfg, source, dense_stores["bevformer"])
    kept = []
    for number in range(7):
        model.begin_update(number)
        losses = model(**batch, mode="loss")
        kept.append("loss_pv" in losses)
        if not kept[-1]:
            assert not model.taps.seen
            sum(value for name, value in losses.items() if "loss" in name).backward()
            assert all(p.grad is None for n, p in model.named_parameters() if not n.startswith("student."))
            model.zero_grad()
    assert kept == [True, False, False, True, False, False, True]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_it(method):
    settings = METHODS[method]
    assert settings.from_dict({"every": 2}).every == 2
    with pytest.raises(FD3DError, match=f"{settings.section}.every is 0; it must be at least 1"):
        settings.from_dict({"every": 0})


def test_the_paper_distils_in_every_update():
    assert DistillSettings().every == 1
