"""The code of docs/store.md runs and gives what the reader gives."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from store_schema import StoreReader, StoreSchema, StoreWriter, quantise

xarray = pytest.importorskip("xarray")

SCHEMA = StoreSchema(
    bev=(4, 5, 3),
    bev_kmax=20,
    pv=[],
    pv_kmax=[],
    cameras=("A",),
    queries=2,
    layers=1,
    heads=2,
    points=2,
    query_channels=3,
)
CODES = {"pq": (3, 8), "pca": (2, 8), "pca-4": (1, 4)}
"""Bytes and bits of a component by kind of values."""
SCENES = {"s1": ["a" * 32, "b" * 32], "s2": ["c" * 30, "d" * 32]}  # shards of three rows: rows 2 and 5 are padding
PC_RANGE = [-40, -20, -5, 40, 60, 3]


def make_frame(seed: int, kind: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    cells = np.sort(rng.choice(19, 4 + seed, replace=False))  # cell 19 is never stored
    plain = {name: rng.random(spec.shape) for name, spec in SCHEMA.arrays().items() if spec.kind == "plain"}
    plain["query/label"] = np.zeros(2, np.int64)
    values = rng.normal(size=(len(cells), 3)).astype(np.float16)
    if kind == "float16":
        return plain | {"bev/values": values, "bev/index": cells}
    if code := CODES.get(kind):
        return plain | {"bev/values": rng.integers(0, 256, (len(cells), code[0]), dtype=np.uint8), "bev/index": cells}
    codes, affine = quantise(values.astype(np.float32))
    return plain | {"bev/values": codes, "bev/affine": affine, "bev/index": cells}


@pytest.fixture(scope="module", params=["float16", "uint8", *CODES])
def store(request, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "store"
    manifest = {"expert": {}, "focal": {}, "coordinates": {"pc_range": PC_RANGE}}
    size, bits = CODES.get(request.param, (0, 8))
    schema = replace(SCHEMA, values=request.param.split("-")[0], code_bytes=size, code_bits=bits)
    rng = np.random.default_rng(0)
    with StoreWriter(path, schema, manifest, SCENES, 3) as writer:
        constants = {name: rng.normal(size=spec.shape).astype(np.float32) for name, spec in schema.constants().items()}
        writer.write_constants(constants)
        for shard in writer.pending():
            tokens = [token for name in writer.plan[shard] for token in SCENES[name]]
            writer.write_shard(shard, {token: make_frame(ord(token[0]) - ord("a"), request.param) for token in tokens})
        writer.finalise({})
    return path


@pytest.fixture(scope="module")
def names(store, project) -> dict:
    """What the document's code defines, its blocks run one after the other."""
    section = (project / "docs" / "store.md").read_text().split("## xarray and dask")[1].split("\n## ")[0]
    blocks = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert len(blocks) >= 6 and blocks[0].count('"runs/bevformer/store"') == 1
    defined: dict = {}
    for block in blocks:
        exec(block.replace("runs/bevformer/store", str(store)), defined)
    return defined


def test_padding_rows_are_left_out(store, names):
    assert names["names"] == StoreReader(store).tokens and list(names["frames"]) == [0, 1, 3, 4]


def test_a_frame_becomes_a_map(store, names):
    frame = StoreReader(store).read(names["names"][0])
    want = np.full((20, 3), np.nan)
    want[frame["bev/index"]] = frame["bev/values"]
    assert names["dense"].chunks[0] == (1, 1, 1, 1)  # lazy, a frame at a time
    np.testing.assert_allclose(names["first"], want.reshape(4, 5, 3), atol=1e-6)


def test_means_are_over_the_frames_that_store_a_cell(store, names):
    reader = StoreReader(store)
    total, count = np.zeros((20, 3)), np.zeros(20)
    for token in reader.tokens:
        frame = reader.read(token)
        total[frame["bev/index"]] += frame["bev/values"]
        count[frame["bev/index"]] += 1
    assert count[19] == 0 and count.max() > 1
    with np.errstate(invalid="ignore"):
        np.testing.assert_allclose(names["mean"].values.reshape(20, 3), total / count[:, None], atol=1e-6)
    np.testing.assert_allclose(names["often"].values.ravel(), count / 4, atol=1e-6)


def test_positions_are_decoded_to_metres(store, names):
    reader = StoreReader(store)
    frame = reader.read(reader.tokens[3])
    want = frame["query/sampling"] * [80, 80] + [-40, -20]
    np.testing.assert_allclose(names["positions"][3], want, atol=2e-3)
    weights = frame["query/attention"].astype(np.float32)[..., None]
    np.testing.assert_allclose(names["centres"][3], (want * weights).sum((2, 3)), atol=1e-2)
    scores = [reader.read(token)["query/score"] for token in reader.tokens]
    np.testing.assert_array_equal(names["cars_per_frame"], [(score > 0.3).sum() for score in scores])
