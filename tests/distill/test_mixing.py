"""The student's head on mixed maps: the expert's features inside the areas, the student's own elsewhere."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pipeline.distill import mixing
from pipeline.distill.cells import Cells
from pipeline.distill.methods import fd3d
from pipeline.distill.mixing import MixingGate, check_mixed, loss_on_mixed, mixed_map
from pipeline.distill.settings import DistillSettings
from pipeline.distill.targets import CellTargets, ChannelScale
from pipeline.errors import FD3DError
from pipeline.study.hashes import deciding
from store_schema import StoreReader
from tests.distill.steps import APPRENTICES, batch_of, distiller

SCALE = ChannelScale(torch.tensor([10.0]), torch.tensor([2.0]))  # a standardised 1 is a 12


def mixed(cells, values, own):
    """A map of one channel, 4 x 4 cells of the expert's with standardised ``values`` at ``cells``."""
    mask = torch.zeros(1, 4, 4, dtype=torch.bool)
    for row, column in cells:
        mask[0, row, column] = True
    target = CellTargets(Cells(mask), torch.tensor(values)[:, None], torch.ones(len(cells)))
    return mixed_map(own, target, SCALE)[0, 0]


def test_the_experts_cells_stand_in_the_students_map():
    own = torch.arange(16.0).view(1, 1, 4, 4)
    found = mixed([(0, 1), (3, 2)], [1.0, -1.0], own)
    assert found[0, 1] == 12 and found[3, 2] == 8
    found[0, 1], found[3, 2] = 1, 14
    assert found.equal(own[0, 0])


@pytest.mark.parametrize(("family", "layout"), [("bevformer", "focal"), ("bevformer", "dense"), ("detr3d", "dense")])
def test_the_loss_trains_the_students_head_alone(project, store, dense_stores, source, family, layout):
    store = dense_stores[family] if layout == "dense" else store
    cfg, model = distiller(project, store, family, w_mixed=0.5)
    batch = batch_of(model, cfg, source, store)
    loss = model(**batch, mode="loss")["loss_mixed"]
    assert loss > 0 and not model.taps.seen  # the encoder's tap has seen the second pass too
    named = dict(model.named_parameters())
    gradients = torch.autograd.grad(loss, [p for p in named.values() if p.requires_grad], allow_unused=True)
    names = [name for name, p in named.items() if p.requires_grad]
    reached = {
        name for name, found in zip(names, gradients, strict=True) if found is not None and found.abs().sum() > 0
    }
    assert reached and all(name.startswith("student.pts_bbox_head.") for name in reached)
    parts = {"decoder", "heatmap_queries"} | ({"encoder"} if family == "bevformer" else set())
    assert all(any(f".{part}." in name for name in reached) for part in parts)
    twice = distiller(project, store, family, w_mixed=1.0)[1]
    assert twice(**batch, mode="loss")["loss_mixed"].item() == pytest.approx(2 * loss.item(), rel=1e-4)


@pytest.mark.parametrize("family", APPRENTICES)
def test_without_weight_or_limit_nothing_changes(project, dense_stores, source, family):
    store = dense_stores[family]
    cfg, model = distiller(project, store, family)
    batch = batch_of(model, cfg, source, store)
    with_weight = distiller(project, store, family, w_mixed=1.0)[1]
    with_limit = distiller(project, store, family, w_mixed=1.0, mixed_limit=0.8)[1]
    losses = []
    for one in (model, with_weight, with_limit):
        torch.manual_seed(1)
        losses.append(one(**batch, mode="loss"))
    assert "loss_mixed" not in losses[0] and set(losses[1]) == {*losses[0], "loss_mixed"}
    assert all(torch.equal(losses[0][name], losses[1][name]) for name in losses[0])
    assert all(torch.equal(losses[1][name], losses[2][name]) for name in losses[1])
    assert set(losses[2]) == set(losses[1])
    assert model.facts() == with_weight.facts() == {}


@pytest.mark.parametrize("family", APPRENTICES)
def test_the_gate_sees_errors_and_means_by_trust(project, dense_stores, source, family):
    """The channels' means leave the sum of w T^2 over that of w, a channel."""
    store = dense_stores[family]
    cfg, model = distiller(project, store, family, w_pv=2.0, w_mixed=1.0, mixed_limit=0.8)
    batch = batch_of(model, cfg, source, store)
    samples = batch["data_samples"]
    found = model(**batch, mode="loss")
    targets = model.targets([sample.expert for sample in samples], [sample.frames[-1] for sample in samples], "cpu")
    left = sum((t.weight @ t.values.square()).sum() / (t.weight.sum() * t.values.shape[1]) for t in targets.pv)
    assert len({round(w, 3) for t in targets.pv for w in t.weight.tolist()}) > 2  # cells of different trust
    assert model.mixing.seen[:2].tolist() == pytest.approx([found["loss_pv"].item() / 2, left.item()], rel=1e-5)


def test_a_head_reads_the_expert_better_where_its_own_maps_are_noise(project, dense_stores, source):
    """With the expert's head and only noise of the student's own, objects are found by what is mixed in."""
    store = dense_stores["bevformer"]
    cfg, model = distiller(project, store, w_mixed=1.0)
    batch = batch_of(model, cfg, source, store)
    state = torch.load(project / "checkpoints/world_expert.pth", weights_only=True)["state_dict"]
    own = model.student.state_dict()
    model.student.load_state_dict(own | {k: v for k, v in state.items() if k in own and v.shape == own[k].shape})
    seen = model(**batch, mode="loss")
    plain = sum(value for name, value in seen.items() if name not in ("loss_pv", "loss_bev", "loss_fine", "loss_mixed"))
    assert seen["loss_mixed"] < plain


def with_noise(frame, noise, draw):
    """A dense frame of the store with noise on the pyramid, in deviations of its channels."""
    dirty = dict(frame)
    for name, values in frame.items():
        if name.startswith("pv/"):
            spread = values.astype(np.float32).std(axis=(0, 1, 2))
            dirty[name] = (values + noise * spread * draw.normal(size=values.shape)).astype(values.dtype)
    return dirty


@pytest.mark.parametrize(("noise", "closes"), [(0.0, False), (2.0, True)])
def test_mixing_pauses_where_the_generators_explain_little(project, dense_stores, source, monkeypatch, noise, closes):
    """Some updates on two frames: the generators learn the features of an expert, and not the noise on them."""
    monkeypatch.setattr(mixing, "BLOCK", 5)
    monkeypatch.setattr(mixing, "FIRST", 25)
    passes = []

    def counted(*given):
        passes.append(given)
        return loss_on_mixed(*given)

    monkeypatch.setattr(fd3d, "loss_on_mixed", counted)
    store = dense_stores["detr3d"]
    settings = {"residual": True, "mask_ratio": 0.0, "w_pv": 3.0, "w_mixed": 1.0, "mixed_limit": 0.7}
    cfg, model = distiller(project, store, "detr3d", **settings)
    batch, draw = batch_of(model, cfg, source, store), np.random.default_rng(0)
    clean = [sample.expert for sample in batch["data_samples"]]
    step = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3)
    mixed = []
    for number in range(27):
        for sample, frame in zip(batch["data_samples"], clean, strict=True):
            sample.set_metainfo({"expert": with_noise(frame, noise, draw)})
        model.begin_update(number)
        losses = model(**batch, mode="loss")
        mixed.append(losses["loss_mixed"].item())
        step.zero_grad()
        (losses["loss_pv"] / 3 + losses["loss_mixed"]).backward()
        step.step()
    assert min(mixed[:25]) > 0 and model.mixing.closed is closes
    assert (mixed[25:] == [0, 0]) is closes and len(passes) == (25 if closes else 27)  # a pause saves the second pass
    assert not model.mixing.seen.requires_grad


def train(gate, errors, of_means, first, updates=mixing.BLOCK, batches=1):
    """Updates ``first`` and on, of several batches each."""
    for number in range(first, first + updates):
        gate.begin_update(number)
        for _ in range(batches):
            gate.see(torch.tensor(errors), torch.tensor(of_means))


@pytest.fixture
def told(monkeypatch) -> list[str]:
    """What the gates tell."""
    lines: list[str] = []
    monkeypatch.setattr(mixing.MMLogger, "get_current_instance", lambda: SimpleNamespace(warning=lines.append))
    return lines


@pytest.mark.parametrize("batches", [1, 8])
def test_the_gate_closes_and_opens(told, batches):
    gate, never = MixingGate(0.8), MixingGate(0.0)
    for one in (gate, never):
        train(one, [3.0, 3.0], [1.0, 1.0], 0, 150, batches)  # a student explains nothing at its start
        train(one, [1.0, 0.7], [1.0, 1.0], 150, 50, batches)  # 0.85: the sum of all levels counts
        assert not one.closed
        train(one, [0.5, 0.7], [1.0, 1.0], 200, 30, batches)  # 0.6
    assert gate.closed and not never.closed and not never.state_dict()
    again = MixingGate(0.8)  # of a training that is resumed within a block
    again.load_state_dict({name: value.clone() for name, value in gate.state_dict().items()})
    for one in (gate, again):
        train(one, [0.5, 0.7], [1.0, 1.0], 230, 20, batches)
        assert one.closed
        train(one, [0.0, 0.0], [0.0, 0.0], 250, 50, batches)
        assert not one.closed
        train(one, [1.0, 0.7], [1.0, 1.0], 300, 50, batches)  # the block before had no area: it tells nothing
        assert not one.closed
        train(one, [0.0, 0.0], [0.0, 0.0], 350, 51, batches)
        assert one.closed
    opens = "mixing starts again after 250 updates: the generators leave 0.60 of the expert's pyramid unexplained (distill.mixed_limit is 0.8)"
    first, second = (
        opens.replace("starts again after 250", f"pauses after {n}").replace("0.60", "0.85") for n in (200, 350)
    )
    assert told == [
        first,
        opens,
        second,
        first.replace("after 200 updates", "").replace("pauses ", "still pauses"),
        opens,
        second,
    ]
    assert (
        gate.facts() == again.facts() == {"mixing_paused": 101, "unexplained": 0.85}
    )  # 50, a block, and the last update
    assert never.facts() == {}


def test_the_first_judgement_is_told_also_where_nothing_changes(told):
    gate = MixingGate(0.7)
    train(gate, [0.4], [1.0], 0, 401)
    assert gate.facts() == {"mixing_paused": 0, "unexplained": 0.4}
    train(gate, [0.3], [1.0], 401, 100)
    assert gate.facts() == {"mixing_paused": 0, "unexplained": 0.3}  # told or not
    assert MixingGate(0.7).facts() == {"mixing_paused": 0, "unexplained": None}
    assert [line[:66] for line in told] == ["mixing goes on after 200 updates: the generators leave 0.40 of the"]


def test_a_gate_of_an_earlier_revision_goes_on(told):
    """Its state does not say what share was judged, and mmengine loads what is there."""
    gate = MixingGate(0.7)
    gate.load_state_dict({"seen": torch.tensor([0.0, 0.0, 1.0])}, strict=False)
    train(gate, [0.9], [1.0], 300, 20)
    assert gate.closed and told == ["mixing still pauses"] and gate.facts()["unexplained"] is None


def test_processes_come_to_one_end(told, monkeypatch):
    """Another process saw worse features: both close, by the mean of both."""

    def with_another(seen, op):
        assert op == "mean"
        seen[:2] = (seen[:2] + torch.tensor([50.0, 50.0])) / 2

    monkeypatch.setattr(mixing, "all_reduce", with_another)
    gate = MixingGate(0.7)
    train(gate, [0.5], [1.0], 150, 51)
    assert gate.closed and "leave 0.75" in told[0]


def test_the_limit_is_a_share(project, dense_stores):
    for wrong in (-0.1, 1.1):
        with pytest.raises(FD3DError, match=f"mixed_limit is {wrong}; it must be in 0..1"):
            DistillSettings.from_dict({"mixed_limit": wrong})
    with_w_pv, without = ({"w_mixed": 1.0, "mixed_limit": 0.7, "w_pv": w_pv} for w_pv in (1.0, 0.0))
    assert distiller(project, dense_stores["detr3d"], "detr3d", **with_w_pv)[1].mixing.limit == 0.7
    assert distiller(project, dense_stores["detr3d"], "detr3d", **without)[1].mixing.limit == 0  # nothing to judge by


def test_a_limit_that_does_nothing_is_in_no_hash():
    plain, mixed = deciding(DistillSettings()), deciding(DistillSettings(w_mixed=1.0))
    assert deciding(DistillSettings(mixed_limit=0.7)) == plain and "mixed_limit" not in plain | mixed
    assert deciding(DistillSettings(w_mixed=1.0, w_pv=0.0, mixed_limit=0.7)).keys() == mixed.keys()
    assert deciding(DistillSettings(w_mixed=1.0, mixed_limit=0.7)) == mixed | {"mixed_limit": 0.7}


def test_what_the_head_cannot_read_is_refused(project, dense_stores):
    bevformer, detr3d = (StoreReader(dense_stores[family]).schema for family in APPRENTICES)
    for given, message in (
        ((bevformer, (0,), True, 64), "for students of this project"),
        ((bevformer, (0, 1, 2), False, 32), "student's pyramid has 32 channels and level 0 of the expert's 64"),
        ((detr3d, (), False, 64), "no level of the pyramid is distilled"),
    ):
        with pytest.raises(FD3DError, match=message):
            check_mixed(*given)
    for schema in (bevformer, detr3d):
        check_mixed(schema, (0, 1, 2), False, 64)
    with pytest.raises(FD3DError, match="w_mixed is -1.0; it must not be negative"):
        DistillSettings.from_dict({"w_mixed": -1.0})
