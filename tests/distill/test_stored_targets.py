"""Targets as they are stored beside the expert's own, float32: features, losses' gradients, layers."""

from typing import Any

import numpy as np
import pytest
import torch
from mmdet3d.registry import DATASETS, MODELS

import pipeline.distill.methods.fd3d  # noqa: F401  registers FocalDistiller
from pipeline.data.frames import collate, frame_batches, frame_dataset
from pipeline.distill.cells import rows_of
from pipeline.distill.loading import cached_targets
from pipeline.distill.losses import masked_generation_loss
from pipeline.distill.stored import scatter_cells
from pipeline.dumping.dump import dump
from pipeline.dumping.settings import DumpSettings
from pipeline.errors import FD3DError
from pipeline.expert import BEVFormerAdapter, TappedExpert, build_adapter
from pipeline.focal.rule import FocalRule
from pipeline.models.build import load_config
from pipeline.models.load import load_detector
from pipeline.report.figures import stored_energy
from store_schema import StoreError, StoreReader, quantise

MAPS = ("bev", "pv/0", "pv/1", "pv/2")


def relative(values: np.ndarray, exact: np.ndarray) -> float:
    return float(np.linalg.norm(values.astype(np.float64) - exact) / np.linalg.norm(exact))


@pytest.fixture(scope="module")
def coded(source, expert_config, expert_checkpoint, tmp_path_factory):
    """The tiny world dumped with uint8 features and the last decoder layer only."""
    path = tmp_path_factory.mktemp("coded") / "store"
    settings = DumpSettings(FocalRule(), values="uint8", layers=1, frames_per_shard=3)
    dump(expert_config, expert_checkpoint, source, path, settings, workers=0)
    return path


@pytest.fixture(scope="module")
def live(source, expert_config, expert_checkpoint):
    """The expert's frames by token, float32."""
    cfg = load_config(expert_config)
    expert = TappedExpert(load_detector(cfg, expert_checkpoint), build_adapter(cfg), FocalRule().num_queries)
    runs = [expert.run(batch) for batch in frame_batches(cfg, source, None, 0)]
    return {sample.token: frame for (frame,), (sample,) in runs}


def exact(frame, name: str) -> np.ndarray:
    """A map's cells (cells, C) in the order of the store's cell numbers."""
    feature = frame.bev if name == "bev" else frame.pv[int(name[-1])]
    return feature.movedim(-3, -1).flatten(0, -2).numpy()


def test_features_err_by_less_than_a_hundredth(coded, live):
    reader = StoreReader(coded)
    errors: dict[str, list[Any]] = {name: [] for name in MAPS}
    for token, frame in live.items():
        row = reader.read(token)
        for name in MAPS:
            errors[name].append(relative(row[f"{name}/values"], exact(frame, name)[row[f"{name}/index"]]))
    print({name: f"{100 * max(found):.2f} %" for name, found in errors.items()})
    assert all(1e-4 < error < 0.01 for found in errors.values() for error in found)


def test_statistics_are_of_the_decoded_features(coded):
    reader = StoreReader(coded)
    for name in MAPS:
        values = np.concatenate([reader.read(token)[f"{name}/values"] for token in reader.tokens]).astype(np.float64)
        found = reader.manifest["statistics"][name]
        np.testing.assert_allclose(found["mean"], values.mean(0), rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(found["std"], values.std(0), rtol=1e-6)


def test_the_device_decodes_what_the_reader_decodes(coded):
    reader = StoreReader(coded)
    token = reader.tokens[0]
    as_stored, plain = reader.read(token, decode=False), reader.read(token)
    assert as_stored["bev/values"].dtype == np.uint8 and plain["bev/values"].dtype == np.float32
    for name, cells in (("bev", 2500), ("pv/0", 4320)):
        dense, stored = scatter_cells(as_stored, name, cells, torch.device("cpu"))
        torch.testing.assert_close(dense, scatter_cells(plain, name, cells, torch.device("cpu"))[0])
        np.testing.assert_array_equal(stored.nonzero()[:, 0], plain[f"{name}/index"])
    energy = stored_energy(plain, (50, 50)).ravel()[plain["bev/index"]]
    np.testing.assert_allclose(energy, np.linalg.norm(plain["bev/values"], axis=1), rtol=1e-6)


def test_only_the_last_layers_reading_is_stored(coded, store, live, expert_config, expert_checkpoint):
    few, all_ = StoreReader(coded), StoreReader(store)
    assert (few.schema.layers, all_.schema.layers) == (1, 3)
    for token in live:
        one, three = few.read(token), all_.read(token)
        for name in ("query/sampling", "query/attention"):
            assert one[name].shape[0] == 1
            np.testing.assert_array_equal(one[name][0], three[name][2])
        assert set(one["bev/index"]) < set(three["bev/index"])  # positions of the other layers need no cells
    model = load_detector(load_config(expert_config), expert_checkpoint)
    weight = BEVFormerAdapter().constants(model)["decoder/value_proj_weight"]
    np.testing.assert_array_equal(few.constants["decoder/value_proj_weight"], weight[-1:])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(), r'schema.layers = 1, now it is 3|schema.values = "uint8", now it is "float16"'),
        (dict(values="uint8"), "schema.layers = 1, now it is 3"),
        (dict(layers=1), 'schema.values = "uint8", now it is "float16"'),
    ],
)
def test_a_store_is_not_continued_with_other_values_or_layers(
    coded, source, expert_config, expert_checkpoint, changes, message
):
    with pytest.raises(StoreError, match=message):
        settings = DumpSettings(FocalRule(), frames_per_shard=3, **changes)
        dump(expert_config, expert_checkpoint, source, coded, settings, workers=0)


def test_more_layers_than_the_expert_has_are_refused(source, expert_config, expert_checkpoint, tmp_path):
    with pytest.raises(FD3DError, match="dump.layers is 4, but the expert's reading is known of 3 layers"):
        settings = DumpSettings(FocalRule(), layers=4, frames_per_shard=3)
        dump(expert_config, expert_checkpoint, source, tmp_path / "s", settings, workers=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(values="int8"), "dump.values is 'int8'; use float16, float32, uint8"),
        (dict(values="uint8", layout="dense"), "dump.values is uint8 but dump.layout is dense"),
        (dict(layers=0), "dump.layers is 0; it must be at least 1"),
    ],
)
def test_contradictory_settings_are_refused(changes, message):
    with pytest.raises(FD3DError, match=message):
        DumpSettings(FocalRule(), **changes)


def distiller(project, store, **settings):
    cfg = load_config(project / "configs/world/apprentice.py")
    torch.manual_seed(0)
    model = MODELS.build(
        dict(
            type="FocalDistiller",
            student=cfg.model,
            store=str(store),
            settings={"w_pv": 1.0} | settings,
            bev_size=(25, 25),
            bev_channels=64,
            pv_channels=64,
        )
    )
    model.init_weights()
    return cfg, model


def test_training_reads_codes_and_the_stored_layers_only(project, coded, source):
    cfg, model = distiller(project, coded)
    assert model.layers == (0,) and model.value_proj_weight.shape == (1, 64, 64)
    data = DATASETS.build(frame_dataset(cfg, source, train=True, targets=cached_targets(coded, 10)))
    batch = model.data_preprocessor(collate([data[1], data[5]]))
    assert all(sample.expert["bev/values"].dtype == np.uint8 for sample in batch["data_samples"])
    losses = model(batch["inputs"], batch["data_samples"], mode="loss")
    (losses["loss_pv"] + losses["loss_bev"] + losses["loss_fine"]).backward()
    assert all(losses[name].item() > 0 for name in ("loss_pv", "loss_bev", "loss_fine"))
    assert all(g.isfinite().all() for g in (weight.grad for weight in model.parameters()) if g is not None)


@pytest.fixture(scope="module")
def apprentice(project, store, source):
    """A distiller, its pyramid and BEV map for two frames, and their metainfo."""
    cfg, model = distiller(project, store)
    data = DATASETS.build(frame_dataset(cfg, source, train=True))
    batch = model.data_preprocessor(collate([data[1], data[5]]))
    model.train()
    with torch.no_grad():
        model.student.encode_queue(batch["inputs"]["img"], batch["data_samples"])
    bev, pv = model.taps.read("bev").transpose(1, 2).unflatten(-1, (25, 25)), list(model.taps.read("pv"))
    return model, bev, pv, [sample.frames[-1] for sample in batch["data_samples"]]


def gradients(apprentice, rows) -> dict[str, torch.Tensor]:
    """Of each loss, with respect to the student's maps and the generators' weights."""
    model, bev, pv, metas = apprentice
    leaves = [feature.detach().requires_grad_() for feature in (bev, *pv)]
    targets = model.targets(rows, metas, bev.device)
    modules = (model.restore, model.bev_generator, model.pv_generators)
    weights = [weight for module in modules for weight in module.parameters()]
    torch.manual_seed(3)  # the same hidden blocks
    losses = model.focal_losses(leaves[0], leaves[1:], targets, metas)
    assert losses.keys() == {"loss_pv", "loss_bev", "loss_fine"}
    out = {}
    for name, loss in losses.items():
        found = torch.autograd.grad(loss, leaves + weights, retain_graph=True, allow_unused=True)
        out[name] = torch.cat([g.flatten() for g in found if g is not None])
    return out


@pytest.mark.parametrize("steps", [0, 40])  # at the start, and where generators fit and residuals are small
def test_gradients_from_stored_targets_are_those_from_the_experts(apprentice, store, live, steps):
    model, bev, pv, metas = apprentice
    reader = StoreReader(store)
    half = [reader.read(meta["token"]) for meta in metas]
    full = [
        dict(row)
        | {f"{name}/values": exact(live[meta["token"]], name)[row[f"{name}/index"].astype(int)] for name in MAPS}
        | {"query/sampling": live[meta["token"]].reading.sampling.numpy()}
        | {"query/attention": live[meta["token"]].reading.attention.numpy()}
        for row, meta in zip(half, metas, strict=True)
    ]
    coded = []
    for row, wide in zip(half, full, strict=True):
        pairs = {name: quantise(wide[f"{name}/values"]) for name in MAPS}
        coded.append(dict(row) | {f"{n}/values": c for n, (c, _) in pairs.items()})
        coded[-1] |= {f"{n}/affine": a for n, (_, a) in pairs.items()}
    generators = [*model.restore.parameters(), *model.bev_generator.parameters(), *model.pv_generators.parameters()]
    optimiser = torch.optim.Adam(generators, 1e-3)
    targets = model.targets(full, metas, bev.device)
    for _ in range(steps):
        optimiser.zero_grad()
        losses = model.focal_losses(bev, pv, targets, metas)
        sum(losses.values()).backward()
        optimiser.step()
    want = gradients(apprentice, full)
    for label, rows, limit in (("float16", half, 0.002), ("uint8", coded, 0.02)):
        found = gradients(apprentice, rows)
        errors = {name: ((found[name] - g).norm() / g.norm()).item() for name, g in want.items()}
        print(f"after {steps} steps, {label}:", {name: f"{100 * error:.3f} %" for name, error in errors.items()})
        assert all(0 < error < limit for error in errors.values()), (label, errors)


def test_residual_generators_start_at_what_the_student_has(project, apprentice, store):
    _, model = distiller(project, store, residual=True, mask_ratio=0.0)
    _, bev, pv, metas = apprentice
    targets = model.targets([StoreReader(store).read(meta["token"]) for meta in metas], metas, bev.device)
    losses = model.focal_losses(bev, pv, targets, metas)
    want = torch.zeros(())
    for level, feature in enumerate(pv):
        target = targets.pv[level]
        own = rows_of(model.scale(f"pv/{level}").standardise(feature), target.cells)
        want = want + masked_generation_loss(own, target.values, target.weight)
    assert losses["loss_pv"].item() == pytest.approx(want.item(), rel=1e-5)
    sum(losses.values()).backward()
    assert all(generator[-1].weight.grad.abs().sum() > 0 for generator in (model.bev_generator, *model.pv_generators))


def test_residual_generators_need_equal_channels(project, store):
    cfg = load_config(project / "configs/world/apprentice.py")
    kwargs = dict(type="FocalDistiller", student=cfg.model, store=str(store), settings={"residual": True})
    with pytest.raises(FD3DError, match="pyramid level 0 has 32 channels and the expert's 64; unset it"):
        MODELS.build(kwargs | dict(bev_size=(25, 25), bev_channels=64, pv_channels=32))
