"""Features stored as codes of a few bytes: pq and pca."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr

from pipeline.focal.codes import FeatureCode
from store_schema import MapCode, StoreError, StoreReader, StoreSchema, StoreWriter
from store_schema.codes import Code

TOKENS = ["a" * 32, "b" * 32]
SIZES: dict[str, Any] = dict(
    bev=(40, 50, 8), pv=[(4, 5, 4, (8, 8))], cameras=("A", "B"), queries=2, bev_kmax=2000, pv_kmax=[40], reading="none"
)
CODES = [Code("pq", 2), Code("pq", 4), Code("pca", 4), Code("pca", 2, 4), Code("pca", 1, 8)]


def schema_of(code: Code | None) -> StoreSchema:
    if code is None:
        return StoreSchema(**SIZES)
    return StoreSchema(**SIZES, values=code.kind, code_bytes=code.bytes, code_bits=code.bits)


def map_code(code: Code, channels: int, seed: int = 0) -> MapCode:
    """A code with an orthonormal basis and any means and entries."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.normal(size=(channels, channels)))[0][: code.parts(channels)].astype(np.float32)
    book = rng.normal(size=(code.bytes, 256, channels // code.bytes)).astype(np.float32) if code.kind == "pq" else None
    return MapCode(code, basis, rng.normal(size=channels).astype(np.float32), book)


def make_frame(code: Code | None, count: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(count)
    frame: dict[str, np.ndarray] = {
        "query/boxes": np.ones((2, 9), np.float32),
        "query/score": np.ones(2, np.float32),
        "query/label": np.zeros(2, np.uint8),
    }
    for name, cells, channels in (("bev", count, 8), ("pv/0", 7, 4)):
        frame[f"{name}/index"] = np.arange(cells)
        values = rng.normal(size=(cells, channels)).astype(np.float32)
        frame[f"{name}/values"] = values if code is None else rng.integers(0, 256, (cells, code.bytes), dtype=np.uint8)
    return frame


def constants_of(schema: StoreSchema, seed: int = 0) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for name, channels in schema.maps.items():
        if schema.code:
            found |= map_code(schema.code, channels, seed).constants(name)
    return found


def writer_of(path: Path, schema: StoreSchema) -> StoreWriter:
    return StoreWriter(path, schema, {"expert": {}, "focal": {}}, {"s": TOKENS[:1], "t": TOKENS[1:]}, 1)


def write(path: Path, code: Code | None) -> Path:
    schema = schema_of(code)
    with writer_of(path, schema) as store:
        store.write_constants(constants_of(schema))
        for shard, token in enumerate(TOKENS):
            store.write_shard(shard, {token: make_frame(code, 1200 + shard)})
        store.finalise({})
    return path


def test_features_by_hand():
    book = np.zeros((2, 256, 1), np.float32)
    book[0, 3], book[1, 7] = 10, 100
    basis = np.array([[0, 1], [1, 0]], np.float32)  # the first part is the second channel
    code = MapCode(Code("pq", 2), basis, np.array([0.5, 0.25], np.float32), book)
    np.testing.assert_array_equal(code.decode(np.array([[3, 7], [3, 0]], np.uint8)), [[100.5, 10.25], [0.5, 10.25]])
    steps = np.array([[1, 0, 0], [0, 0.5, 0]], np.float32)
    half = MapCode(Code("pca", 1, 4), steps, np.array([-1, 0, 9], np.float32))
    # 0x53: the first component is 3, the second 5
    np.testing.assert_array_equal(half.decode(np.array([[0x53]], np.uint8)), [[2, 2.5, 9]])


@pytest.mark.parametrize("code", CODES, ids=str)
def test_the_encoder_takes_the_nearest_code(code):
    of_map = map_code(code, 8)
    feature = FeatureCode(of_map)
    codes = torch.randint(0, 256, (5000, code.bytes), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    exact = feature.decode(codes)
    np.testing.assert_allclose(exact.numpy(), of_map.decode(codes.numpy()), atol=1e-4)
    assert torch.equal(feature.encode(exact), codes)  # features that a code has are kept
    noisy = exact + 0.3 * torch.randn(exact.shape, generator=torch.Generator().manual_seed(1))
    found = (feature.decode(feature.encode(noisy)) - noisy).norm(dim=1)
    assert (found <= (exact - noisy).norm(dim=1) + 1e-4).all()  # no other code is nearer than the one found
    assert feature.encode(exact[:0]).shape == (0, code.bytes)


@pytest.mark.parametrize("code", CODES, ids=str)
def test_frames_come_back(tmp_path, code):
    reader = StoreReader(write(tmp_path / "s", code))
    assert reader.schema.code == code
    for shard, token in enumerate(TOKENS):
        frame = make_frame(code, 1200 + shard)
        stored, plain = reader.read(token, decode=False), reader.read(token)
        for name, channels in (("bev", 8), ("pv/0", 4)):
            np.testing.assert_array_equal(stored[f"{name}/values"], frame[f"{name}/values"])
            want = map_code(code, channels).decode(frame[f"{name}/values"])
            np.testing.assert_array_equal(plain[f"{name}/values"], want)


def test_any_zarr_tool_decodes_by_the_attribute(tmp_path):
    """The recipe in the array's attributes, run as it stands."""
    for code in (Code("pq", 2), Code("pca", 4), Code("pca", 2, 4)):
        path = write(tmp_path / f"{code.kind}{code.bits}", code)
        group = zarr.open_group(path, mode="r")
        row = StoreReader(path).row(TOKENS[0])
        arrays: dict[str, Any] = {path: group[path] for path in ("bev/count", "bev/values")}
        k = int(arrays["bev/count"][row])
        values = arrays["bev/values"][row][:k]
        recipe = arrays["bev/values"].attrs["decoded"]
        for name in ("mean", "basis", "book"):
            recipe = recipe.replace(f"code/bev_{name}", name)
        recipe = recipe.replace("for all j", f"for j in range({code.bytes})").replace("concatenate(", "np.concatenate(")
        recipe = recipe.replace("])", "], 1)").replace("stack(", "np.stack(").replace("np.np.", "np.")
        held = {name: group[f"code/bev_{name}"][:] for name in ("mean", "basis", "book") if f"code/bev_{name}" in group}
        names = held | {"np": np, "k": k, "values": values}
        np.testing.assert_allclose(eval(recipe, names), StoreReader(path).read(TOKENS[0])["bev/values"], atol=1e-5)


def test_stores_without_codes_are_as_before(tmp_path):
    manifest = json.loads((write(tmp_path / "s", None) / "manifest.json").read_text())
    assert manifest["schema_version"] == 2 and "code_bytes" not in manifest["schema"]
    coded = json.loads((write(tmp_path / "t", CODES[0]) / "manifest.json").read_text())
    assert coded["schema_version"] == 3 and coded["schema"]["code_bytes"] == 2


def test_a_shard_needs_codes_first(tmp_path):
    first = pytest.raises(StoreError, match="coded features; write its constants before the first shard")
    with writer_of(tmp_path / "s", schema_of(CODES[0])) as store, first:
        store.write_shard(0, {TOKENS[0]: make_frame(CODES[0], 5)})


def test_shards_of_other_codes_are_written_anew(tmp_path):
    schema = schema_of(CODES[0])
    path = write(tmp_path / "s", CODES[0])
    next((path / "code").glob("bev_book/c/0/0/0")).unlink()
    with writer_of(path, schema) as store:
        assert store.constants() is None
        store.write_constants(constants_of(schema))
        assert store.pending() == []  # the same codes again
        store.finalise({})
    next((path / "code").glob("bev_book/c/0/0/0")).unlink()
    with writer_of(path, schema) as store:
        store.write_constants(constants_of(schema, seed=1))
        assert store.pending() == [0, 1]
        with pytest.raises(StoreError, match=r"shards of .* are not written \(2 of 2\)"):
            store.finalise({})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(values="pq"), "schema.code_bytes is 0; it must be at least 1"),
        (dict(values="pq", code_bytes=3), "which does not divide the 8 channels of bev"),
        (dict(values="pca", code_bytes=3, code_bits=4), "6 components of pca, more than the 4 channels of pv/0"),
        (dict(values="pca", code_bytes=3, code_bits=5), "schema.code_bits is 5; use 8 or 4"),
        (dict(values="pq", code_bytes=2, layout="dense"), "schema.values is pq but schema.layout is dense"),
    ],
)
def test_codes_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(StoreError, match=message):
        StoreSchema(**SIZES | changes)


@pytest.mark.parametrize("code", [None, *CODES], ids=str)
def test_what_a_reader_gives_changes_no_later_read(tmp_path: Path, code: Code | None) -> None:
    path = write(tmp_path / "s", code)
    for reader in (StoreReader(path), pickle.loads(pickle.dumps(StoreReader(path)))):
        before, constants = reader.read(TOKENS[0]), {name: a.copy() for name, a in reader.constants.items()}
        for given in (reader.counts(), reader.constants, reader.read(TOKENS[0]), reader.read(TOKENS[0], decode=False)):
            for array in given.values():
                array[...] = 1
        for of_map in reader.codes.values():
            for array in of_map.constants("bev").values():
                with pytest.raises(ValueError, match="read-only"):
                    array += 1
            feature = FeatureCode(of_map)
            feature.mean += 1  # a buffer
        assert all(np.array_equal(reader.read(TOKENS[0])[name], array) for name, array in before.items())
        assert all(np.array_equal(reader.constants[name], array) for name, array in constants.items())
        assert all((counts == (1200, 1201)).all() for name, counts in reader.counts().items() if name == "bev")


@pytest.mark.parametrize("code", CODES, ids=str)
def test_constants_that_their_owner_changes_are_those_that_were_written(tmp_path: Path, code: Code) -> None:
    schema = schema_of(code)
    constants = constants_of(schema)
    with writer_of(tmp_path / "s", schema) as store:
        store.write_constants(constants)
        for array in constants.values():
            array += 1
        codes = store.shards.codes
        for shard, token in enumerate(TOKENS):
            store.write_shard(shard, {token: make_frame(code, 1200 + shard)})
        store.finalise({})
    for name, of_map in StoreReader(tmp_path / "s").codes.items():
        for path, array in of_map.constants(name).items():
            np.testing.assert_array_equal(codes[name].constants(name)[path], array)
