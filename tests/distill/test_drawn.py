"""Losses at a drawn share of cells and queries."""

import pytest
import torch

from pipeline.distill.losses import fine_grained_loss
from pipeline.distill.settings import DistillSettings
from pipeline.errors import FD3DError
from pipeline.models.detector import gt_tensors
from tests.distill.steps import APPRENTICES, batch_of, distiller

GEOMETRY = dict(match=True, reanchor=True)


@pytest.mark.parametrize("family", APPRENTICES)
@pytest.mark.parametrize("geometry", [{}, GEOMETRY])
def test_drawn_targets_are_a_share_of_all(project, dense_stores, source, family, geometry):
    settings = dict(geometry=geometry, rule=dict(bev_margin=0.5))
    cfg, model = distiller(project, dense_stores[family], family, **settings)
    _, drawing = distiller(project, dense_stores[family], family, drawn_share=0.25, **settings)
    samples = batch_of(model, cfg, source, dense_stores[family])["data_samples"]
    frames, metas = [sample.expert for sample in samples], [sample.frames[-1] for sample in samples]
    truth = gt_tensors(samples, torch.device("cpu"))
    whole = model.targets(frames, metas, torch.device("cpu"), None, truth)
    kept, seen, reads, draws = 0, 0, 0, 20
    covered = [torch.zeros_like(found.cells.mask) for found in (*whole.pv, whole.bev) if found is not None]
    for _ in range(draws):
        part = drawing.targets(frames, metas, torch.device("cpu"), None, truth)
        pairs = [(a, b) for a, b in zip((*part.pv, part.bev), (*whole.pv, whole.bev), strict=True) if b is not None]
        for (have, want), cells in zip(pairs, covered, strict=True):
            assert torch.equal(have.cells.mask & want.cells.mask, have.cells.mask)
            chosen = have.cells.mask.flatten()[want.cells.index]
            torch.testing.assert_close(have.values, want.values[chosen])
            torch.testing.assert_close(have.weight, want.weight[chosen])
            assert (have.area | ~want.cells.mask).all()  # blocks are hidden around the drawn cells too
            cells |= have.cells.mask
            kept, seen = kept + len(have.cells), seen + len(want.cells)
        assert torch.equal(part.placed, whole.placed)
        reads += int((part.reading > 0).sum())
    assert kept / seen == pytest.approx(0.25, abs=0.1)
    assert reads / int((whole.placed > 0).sum()) / draws == pytest.approx(0.25, abs=0.1)
    assert sum(int(cells.sum()) for cells in covered) > 0.9 * seen / draws  # every cell has its turn


@pytest.mark.parametrize("family", APPRENTICES)
def test_drawn_losses_are_on_average_those_of_all_cells(project, dense_stores, source, family):
    values = {}
    for share, draws in ((1.0, 1), (0.5, 40)):
        cfg, model = distiller(project, dense_stores[family], family, drawn_share=share, mask_ratio=0.0)
        batch = batch_of(model, cfg, source, dense_stores[family])
        with torch.no_grad():
            model(**batch, mode="loss")  # statistics of the normalisations settle the same way
            found = [model(**batch, mode="loss") for _ in range(draws)]
        values[share] = {n: float(torch.stack([loss[n] for loss in found]).mean()) for n in ("loss_pv", "loss_fine")}
    for name, value in values[1.0].items():
        assert values[0.5][name] == pytest.approx(value, rel=0.05)


def test_the_variance_of_drawn_queries_is_that_of_all():
    expert, trust = torch.tensor([[[[0.0], [2.0], [4.0]]]]), torch.ones(1, 3)
    student = expert + torch.tensor([1.0, 3.0, 5.0]).view(1, 1, 3, 1)
    drawn = torch.tensor([[True, False, False]])
    # variance of 0, 2, 4 is 8/3; the one drawn error is 1
    assert fine_grained_loss(student, expert, trust, drawn) == pytest.approx(3 / 8)
    assert fine_grained_loss(student, expert, trust, ~drawn) == pytest.approx(17 * 3 / 8)
    assert fine_grained_loss(student, expert, trust) == fine_grained_loss(student, expert, trust, drawn | True)
    assert fine_grained_loss(student, expert, trust, drawn & False) == 0


@pytest.mark.parametrize("share", [0.0, 1.5])
def test_a_share_of_none_is_refused(share):
    with pytest.raises(FD3DError, match=f"distill.drawn_share is {share}"):
        DistillSettings.from_dict({"drawn_share": share})
