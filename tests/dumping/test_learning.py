"""Dumps whose features are coded: learning the codes, resuming, and what a student reads."""

import copy
import json
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from mmdet3d.registry import DATASETS, MODELS

from pipeline.data.frames import collate, frame_dataset
from pipeline.distill.build import distiller_config
from pipeline.distill.loading import cached_targets
from pipeline.distill.settings import DistillSettings
from pipeline.dumping.dump import dump
from pipeline.dumping.learning import CellSample, learn_code, sample_frames
from pipeline.dumping.moments import shard_moments
from pipeline.dumping.recompute import recompute
from pipeline.dumping.settings import DumpSettings
from pipeline.errors import FD3DError
from pipeline.expert.rows import packed
from pipeline.focal.codes import FeatureCode
from pipeline.focal.rule import FocalRule
from pipeline.models.build import load_config
from store_schema import StoreReader, verify
from store_schema.codes import Code

KINDS: dict[str, dict[str, Any]] = {"pq": dict(values="pq"), "pca": dict(values="pca", code_bytes=32, code_bits=8)}


def settings_of(kind: str) -> DumpSettings:
    return DumpSettings(FocalRule(), frames_per_shard=3, code_frames=4, **KINDS.get(kind, dict(values=kind)))


@pytest.fixture(scope="module")
def stores(source, expert_config, expert_checkpoint, tmp_path_factory):
    """Stores of the tiny world by kind of values."""
    made = {}
    for kind in ("float32", *KINDS):
        made[kind] = tmp_path_factory.mktemp(kind) / "store"
        dump(expert_config, expert_checkpoint, source, made[kind], settings_of(kind), workers=0)
    return made


@pytest.mark.parametrize(("kind", "limit"), [("pq", 0.15), ("pca", 0.25)])
def test_features_are_near_the_experts(stores, kind, limit):
    exact, coded = StoreReader(stores["float32"]), StoreReader(stores[kind])
    assert verify(stores[kind]).problems == []
    for name in coded.schema.maps:
        pairs = [(coded.read(t)[f"{name}/values"], exact.read(t)[f"{name}/values"]) for t in coded.tokens]
        have, want = (np.concatenate(side) for side in zip(*pairs, strict=True))
        error = np.sqrt(((have - want) ** 2).sum() / ((want - want.mean(0)) ** 2).sum())
        print(kind, name, f"{error:.3f}")
        assert 0.001 < error < limit
        found = coded.manifest["statistics"][name]
        np.testing.assert_allclose(found["mean"], have.astype(np.float64).mean(0), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(found["std"], have.astype(np.float64).std(0), rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_dump_goes_on_with_the_codes_that_it_has(
    stores, kind, source, expert_config, expert_checkpoint, tmp_path, monkeypatch
):
    settings = settings_of(kind)
    path = tmp_path / "s"
    dump(expert_config, expert_checkpoint, source, path, settings, workers=0)
    first = StoreReader(stores[kind])
    for name, array in StoreReader(path).constants.items():
        np.testing.assert_array_equal(array, first.constants[name])  # the same codes in every dump

    def forbidden(*args):
        raise AssertionError("codes were learned again")

    (path / "manifest.json").unlink()
    next(iter(sorted((path / ".done").glob("shard-*")))).unlink()
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.dumping.session.learn_code", forbidden)
        dump(expert_config, expert_checkpoint, source, path, settings, workers=0)
    assert json.loads((path / "manifest.json").read_text())["shards"] == first.manifest["shards"]
    damaged = path / "code" / "bev_mean" / "c" / "0"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\0")
    dump(expert_config, expert_checkpoint, source, path, settings, workers=0)
    assert verify(path).problems == []


def test_recomputed_frames_have_the_same_codes(stores, source, expert_config, expert_checkpoint):
    reader = StoreReader(stores["pq"])
    errors = recompute(reader, expert_config, expert_checkpoint, source.index, source.root, 2)
    assert {"bev/values", "pv/0/values"} <= errors.keys()
    assert all(error.relative < 1e-3 and error.cells == 0 for error in errors.values())


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_near_those_of_exact_features(stores, kind, source, project):
    found = {}
    cfg = load_config(project / "configs/world/apprentice.py")
    data = DATASETS.build(frame_dataset(cfg, source, True, targets=cached_targets(stores["float32"])))
    items = [data[1], data[4]]
    for name in ("float32", kind):
        torch.manual_seed(0)
        model = MODELS.build(distiller_config(cfg, stores[name], "fd3d", DistillSettings()))
        model.init_weights()
        model.train()
        batch = model.data_preprocessor(collate(copy.deepcopy(items)), True)
        for sample in batch["data_samples"]:
            sample.set_metainfo({"expert": StoreReader(stores[name]).read(sample.token, decode=False)})
        torch.manual_seed(0)
        losses = model(**batch, mode="loss")
        sum(losses[f"loss_{term}"] for term in ("pv", "bev", "fine")).backward()
        own = [p.grad.flatten() for p in model.student.img_neck.parameters() if p.grad is not None]
        found[name] = torch.cat(own)
        assert not any(key.startswith("_codes") for key in model.state_dict())
    error = (found[kind] - found["float32"]).norm() / found["float32"].norm()
    print(kind, f"gradient {error:.3f}")
    assert 0 < error < 0.05


def test_codes_are_learned_from_whole_scenes_all_over_the_split():
    scenes = {f"s{i}": [f"{i}-{k}" for k in range(10)] for i in range(20)}
    chosen = sample_frames(scenes, 35)
    assert [len(tokens) for tokens in chosen] == [10] * 4
    assert [tokens[0] for tokens in chosen] == ["0-0", "13-0", "18-0", "5-0"]  # by names: s0, s1, s10, ...
    assert len(sample_frames(scenes, 10_000)) == 20


def test_pq_spreads_the_variance_over_its_bytes():
    rng = np.random.default_rng(0)
    features = (rng.normal(size=(3000, 8)) * [8, 4, 2, 1, 0.5, 0.25, 0.1, 0.05]).astype(np.float32)
    code = learn_code("bev", Code("pq", 4), features)
    spread = ((features - code.mean) @ code.basis.T).std(0).reshape(4, 2).prod(1)
    assert spread.max() / spread.min() < 1.5  # 8 * 0.05, 4 * 0.1, 2 * 0.25, 1 * 0.5
    np.testing.assert_allclose(code.basis @ code.basis.T, np.eye(8), atol=1e-5)


def test_few_or_equal_features():
    with pytest.raises(FD3DError, match="200 stored cells of bev .* fewer than 256; raise dump.code_frames"):
        learn_code("bev", Code("pq", 2), np.zeros((200, 4), np.float32))
    constant = learn_code("bev", Code("pq", 2), np.full((400, 4), 3, np.float32))
    np.testing.assert_allclose(constant.decode(np.zeros((1, 2), np.uint8)), np.full((1, 4), 3.0), atol=1e-5)
    constant = learn_code("bev", Code("pca", 1, 4), np.full((400, 4), 3, np.float32))
    np.testing.assert_allclose(constant.decode(np.zeros((1, 1), np.uint8)), np.full((1, 4), 3.0), atol=1e-5)


def test_a_feature_of_tiny_variance_by_hand():
    """Channel 0 takes 0..15, channel 1 is 1e-6 or -1e-6, channel 2 is always 7: components of steps 1, 2e-6 / 15 and the least."""
    rows = [(k, s * 1e-6, 7, 0) for k in range(16) for s in (1, -1)]
    features = np.array(rows * 13, np.float32)
    code = learn_code("bev", Code("pca", 2, 4), features)
    np.testing.assert_allclose(np.abs(code.basis).max(1), [1, 2e-6 / 15, 1e-12, 1e-12], rtol=1e-6)
    np.testing.assert_allclose(code.mean, [0, -1e-6, 7, 0], rtol=1e-6, atol=1e-9)
    coder = FeatureCode(code)
    codes = coder.encode(torch.from_numpy(features[:32]))
    np.testing.assert_array_equal(codes[:, 0], [k | (15 if s > 0 else 0) << 4 for k in range(16) for s in (1, -1)])
    for back in (coder.decode(codes).numpy(), code.decode(codes.numpy())):
        np.testing.assert_allclose(back, features[:32], rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("code", [Code("pca", 4, 8), Code("pca", 4, 4), Code("pq", 4)])
@pytest.mark.parametrize("value", [0.0, 3.0, -0.1, 1e-5, 6e4, 1e-20, 17.0, 60.0])
@pytest.mark.parametrize("noise", [0.0, 1e-6])
def test_features_that_are_all_but_constant_are_kept(code: Code, value: float, noise: float) -> None:
    """Also where the noise is of float32's last bits, 4e-6 at 60; of a map that comes to life, codes are finite."""
    plain = (value + noise * np.random.default_rng(0).normal(size=(2000, 8))).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = learn_code("bev", code, plain)
    coder = FeatureCode(made)
    for array in (made.basis, made.mean, *([] if made.book is None else [made.book])):
        assert np.isfinite(array).all()
    back = coder.decode(coder.encode(torch.from_numpy(plain))).numpy()
    assert np.abs(back - plain).max() <= 5 * noise + 1e-6 * abs(value)
    far = torch.tensor([[1.0, -1.0] * 4, [6e4] * 8, [-1e30, 1e30] * 4])
    assert coder.decode(coder.encode(far)).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("spread", [1e-5, 1.0, 1e5])
@pytest.mark.parametrize("code", [Code("pca", 8, 8), Code("pq", 4)])
def test_codes_are_float32s_in_mixed_precision(code: Code, spread: float, dtype: torch.dtype) -> None:
    """Half precision has no numbers for steps of 1e-7, nor for features of 1e5."""
    features = spread * torch.from_numpy(np.random.default_rng(0).normal(size=(2000, 8))).float()
    coder = FeatureCode(learn_code("bev", code, features.numpy()))
    codes = coder.encode(features)
    with torch.autocast("cpu", dtype):
        assert torch.equal(coder.encode(features), codes)
        found = coder.decode(codes)
    assert found.dtype == torch.float32 and torch.equal(found, coder.decode(codes))


def test_one_frame_is_enough_where_it_has_the_cells():
    assert sample_frames({"s": ["a"]}, 100) == [["a"]]
    sample, cells = CellSample(16_384), torch.from_numpy(np.random.default_rng(0).normal(size=(8, 20, 20))).float()
    mask = torch.ones(20, 20, dtype=torch.bool)
    mask[:3] = False
    sample.add(cells, mask)
    made = learn_code("bev", Code("pca", 8, 8), sample.features())
    assert len(sample.features()) == 340
    assert (
        FeatureCode(made).decode(FeatureCode(made).encode(cells.flatten(1).T)) - cells.flatten(1).T
    ).norm() < 0.2 * cells.norm()
    few = CellSample(16_384)
    few.add(cells, mask & (torch.arange(20) < 15))
    with pytest.raises(FD3DError, match="255 stored cells of bev found to learn dump.values: pca from, fewer than 256"):
        learn_code("bev", Code("pca", 8, 8), few.features())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(values="float16", code_bytes=8), "dump.code_bytes is 8, but dump.values is float16"),
        (dict(values="pq", code_bits=4), "dump.code_bits is 4, but dump.values is pq"),
        (dict(values="pca", code_bits=6), "dump.code_bits is 6; use 8 or 4"),
        (dict(values="pq", code_bytes=0), "dump.code_bytes is 0; it must be at least 1"),
        (dict(values="pq", code_frames=0), "dump.code_frames is 0; it must be at least 1"),
        (dict(values="pq", layout="dense"), "dump.values is pq but dump.layout is dense"),
    ],
)
def test_settings_that_contradict_each_other(settings, message):
    with pytest.raises(FD3DError, match=message):
        DumpSettings(FocalRule(), **settings)


@pytest.mark.parametrize("kind", ["pq", "pca"])
def test_features_far_from_what_a_code_was_learned_from_are_warned_of(kind: str) -> None:
    """A code holds no values beyond its sample's, such as those of the first night in a dump."""
    plain = np.random.default_rng(0).normal(size=(2000, 8)).astype(np.float32)
    code = Code(kind, 8, 8)
    coders = {"bev": FeatureCode(learn_code("bev", code, plain))}
    mask = torch.ones(20, 25, dtype=torch.bool)
    cells = torch.from_numpy(plain[:500].T.reshape(8, 20, 25))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        packed("bev", cells, mask, kind, coders)
    with pytest.warns(UserWarning, match="codes of bev err by more than 50% of a frame's features, which are unlike"):
        packed("bev", cells * 10, mask, kind, coders)


@pytest.mark.parametrize("kind", ["pq", "pca"])
def test_features_beyond_float16_are_refused_by_token_where_a_code_does_not_know_them(kind: str) -> None:
    """At 1e20 the squares are beyond float32, at 1e30 those of the sample's spread, too."""
    plain = np.random.default_rng(0).normal(size=(2000, 8)).astype(np.float32)
    mask, cells = torch.ones(20, 25, dtype=torch.bool), torch.from_numpy(plain[:500].T.reshape(8, 20, 25))
    coders = {"bev": FeatureCode(learn_code("bev", Code(kind, 8, 8), plain))}
    for scale in (1e5, 1e20, 1e30):
        with (
            warnings.catch_warnings(),
            pytest.raises(FD3DError, match=r"^frame abc: features of bev reach .*, far from"),
        ):
            warnings.simplefilter("error")
            packed("bev", cells * scale, mask, kind, coders, "abc")
    large = {"bev": FeatureCode(learn_code("bev", Code(kind, 8, 8), plain * 1e6))}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        packed("bev", cells * 1e6, mask, kind, large, "abc")  # what the code was learned from


@pytest.mark.parametrize("values", ["float16", "float32"])
def test_features_that_float16_makes_zero_are_warned_of(values: str) -> None:
    mask, cells = torch.ones(4, 5, dtype=torch.bool), torch.randn(8, 4, 5, generator=torch.manual_seed(0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        packed("bev", cells, mask, values, {})
        packed("bev", cells * 0, mask, values, {})
        packed("bev", cells, mask & False, values, {})
        if values == "float32":
            packed("bev", cells * 1e-9, mask, values, {})
    if values == "float16":
        with pytest.warns(UserWarning, match="all features of bev in a frame are so small that float16 makes them 0"):
            packed("bev", cells * 1e-9, mask, values, {})


def test_sums_of_features_that_the_writer_refuses_warn_of_nothing() -> None:
    rows = [{"bev/values": np.array([[np.inf, 1], [-np.inf, 1]], np.float16)}]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shard_moments(rows)


@pytest.mark.parametrize("code", [Code("pca", 8, 8), Code("pca", 4, 4), Code("pq", 4)])
@pytest.mark.parametrize("offset", [0.0, 3.0])
@pytest.mark.parametrize("scale", [1e-45, 1e-38, 1e-25, 1e-20, 1e-13, 1e-10, 1.0, 1e16, 1e18, 1e25, 1e37])
def test_features_beyond_the_range_of_a_code_are_refused_by_their_spread(
    code: Code, scale: float, offset: float
) -> None:
    """Nothing else is said; what is within the range is coded as well as features of spread 1."""
    plain = (offset + scale * np.random.default_rng(0).normal(size=(2000, 8))).astype(np.float32)
    least = 1e-18 if code.kind == "pq" else 1e-11
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if offset and scale < 1e-6:  # a constant map, but for last bits
            learn_code("bev", code, plain)
        elif least < scale < 1e17:
            coder, given = FeatureCode(learn_code("bev", code, plain)), torch.from_numpy(plain)
            assert (coder.decode(coder.encode(given)) - given).double().norm() < 0.15 * (given - offset).double().norm()
        else:
            told = (
                f"features of bev vary by .*, but dump.values: {code.kind} is for those that vary by {least:.0e} to 1e"
            )
            with pytest.raises(FD3DError, match=told):
                learn_code("bev", code, plain)


def test_dead_channels_beside_live_ones_are_coded_without_a_word() -> None:
    """All entries of their part of a codebook coincide."""
    plain = np.random.default_rng(0).normal(size=(2000, 8)).astype(np.float32)
    plain[:, 4:] *= 1e-25
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for code in (Code("pq", 8), Code("pca", 8, 8)):
            coder, given = FeatureCode(learn_code("bev", code, plain)), torch.from_numpy(plain)
            assert (coder.decode(coder.encode(given)) - given).norm() < 0.1 * given.norm()


@pytest.mark.parametrize("kind", ["pq", "pca"])
def test_a_code_that_says_less_than_the_mean_is_refused(kind: str) -> None:
    """Codes that are too small, and a feature so large that a code of components cuts it."""
    rng = np.random.default_rng(0)
    plain = rng.normal(size=(2000, 8)).astype(np.float32)
    code = Code(kind, 4, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learn_code("bev", Code(kind, 8, 8), plain)
    plain[0] = 1e6
    if kind == "pca":
        with pytest.raises(
            FD3DError, match="codes of bev .dump.values: pca, 4 bytes. err by 100% of the features' spread"
        ):
            learn_code("bev", code, plain)
    else:
        learn_code("bev", code, plain)
    with pytest.warns(UserWarning, match=f"codes of bev .dump.values: {kind}, 1 byte. err by [5-9][0-9]% of the"):
        learn_code("bev", Code(kind, 1, 8), rng.normal(size=(2000, 24)).astype(np.float32))
