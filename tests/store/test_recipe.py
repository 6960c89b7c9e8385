"""The code of docs/store.md runs and gives what the reader gives."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

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


def make_frame(seed: int, kind: str, schema: StoreSchema = SCHEMA) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    cells = np.sort(rng.choice(19, 4 + seed, replace=False))  # cell 19 is never stored
    plain = {name: rng.random(spec.shape) for name, spec in schema.arrays().items() if spec.kind == "plain"}
    plain["query/label"] = np.zeros(2, np.int64)
    if not schema.bev:  # a store of DETR3D
        return plain | {"pv/0/values": rng.normal(size=(2, 4)).astype(np.float16), "pv/0/index": np.arange(2)}
    if schema.layout == "dense":
        return plain | {"bev/dense": rng.normal(size=schema.bev).astype(np.float16)}
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
    size, bits = CODES.get(request.param, (0, 8))
    schema = replace(SCHEMA, values=request.param.split("-")[0], code_bytes=size, code_bits=bits)
    write_store(path, schema, request.param)
    return path


def write_store(path: Path, schema: StoreSchema, kind: str) -> None:
    manifest = {"expert": {}, "focal": {}, "coordinates": {"pc_range": PC_RANGE}}
    rng = np.random.default_rng(0)
    with StoreWriter(path, schema, manifest, SCENES, 3) as writer:
        constants = {name: rng.normal(size=spec.shape).astype(np.float32) for name, spec in schema.constants().items()}
        writer.write_constants(constants)
        for shard in writer.pending():
            tokens = [token for name in writer.plan[shard] for token in SCENES[name]]
            writer.write_shard(shard, {token: make_frame(ord(token[0]) - ord("a"), kind, schema) for token in tokens})
        writer.finalise({})


@pytest.fixture(scope="module")
def names(store, project) -> dict:
    """What the document's code defines, its blocks run one after the other."""
    return run_blocks(project, store)


def run_blocks(project: Path, store: Path, left_out: str | None = None) -> dict:
    """Names that the document's blocks define, but for those below a heading."""
    section = (project / "docs" / "store.md").read_text().split("\n## xarray and dask")[1].split("\n## ")[0]
    parts = section.split("\n### ")
    assert left_out is None or any(part.startswith(left_out) for part in parts)
    section = "".join(part for part in parts if left_out is None or not part.startswith(left_out))
    blocks = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert len(blocks) >= (6 if left_out is None else 4) and blocks[0].count('"runs/bevformer/store"') == 1
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


def test_a_store_without_bev_maps_needs_the_other_sections_only(project, tmp_path):
    level: dict[str, Any] = dict(pv=[(2, 3, 4, (8, 8))], pv_kmax=[6])
    schema = replace(SCHEMA, bev=None, bev_kmax=0, reading="cameras", heads=0, points=0, **level)
    write_store(tmp_path / "store", schema, "float16")
    defined = run_blocks(project, tmp_path / "store", left_out="BEV maps")
    reader = StoreReader(tmp_path / "store")
    assert defined["names"] == reader.tokens
    frame = reader.read(reader.tokens[3])
    np.testing.assert_array_equal(defined["centres"][3], frame["query/points"])
    np.testing.assert_allclose(defined["cameras"][3], frame["query/camera_weights"].astype(np.float32).sum(-1))


def test_a_dense_store_has_its_maps_as_they_are(project, tmp_path):
    write_store(tmp_path / "store", replace(SCHEMA, layout="dense"), "float16")
    defined = run_blocks(project, tmp_path / "store", left_out="BEV maps")
    expression = re.findall(r"`(open_group\(\"bev\"\).*?)`", (project / "docs" / "store.md").read_text())
    assert len(expression) == 1
    dense = eval(expression[0], defined)
    reader = StoreReader(tmp_path / "store")
    np.testing.assert_array_equal(dense[2], reader.read(reader.tokens[2])["bev/dense"])
