"""Other Zarr implementations read the same values from a store: tensorstore (C++) and zarrita (TypeScript)."""

import hashlib
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from store_schema import StoreReader, StoreSchema, StoreWriter, quantise

SCENES = {"s1": ["a" * 32, "b" * 32], "s2": ["c" * 32]}
CELLS = {"a": (0, 5), "b": (1500, 1), "c": (2500, 1200)}
OFFLINE = ("ENOTFOUND", "ECONNREFUSED", "EAI_AGAIN", "ETIMEDOUT", "ENETUNREACH", "ECONNRESET")


def schema_of(values: str) -> StoreSchema:
    sizes: dict[str, Any] = dict(
        bev=(50, 60, 4), pv=[(20, 30, 3, (8, 8))], cameras=("A", "B"), queries=3, bev_kmax=2600, pv_kmax=[1200]
    )
    return StoreSchema(
        **sizes, code_bytes=int(values == "pq"), values=values, layers=1, heads=2, points=2, query_channels=4
    )


def make_frame(token: str, schema: StoreSchema) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(ord(token[0]))
    frame: dict[str, np.ndarray] = {
        "query/label": rng.integers(0, 10, 3),
        "query/sampling": rng.random((1, 3, 2, 2, 2)),
    }
    for path, spec in schema.arrays().items():
        if spec.kind == "plain" and path not in frame:
            frame[path] = rng.normal(size=spec.shape).astype(spec.dtype)
    for name, cells, count, channels in (("bev", 3000, CELLS[token[0]][0], 4), ("pv/0", 1200, CELLS[token[0]][1], 3)):
        values = rng.normal(size=(count, channels)).astype(np.float16)
        frame[f"{name}/index"] = np.sort(rng.choice(cells, count, replace=False))
        frame[f"{name}/values"] = values
        if schema.values == "pq":
            frame[f"{name}/values"] = rng.integers(0, 256, (count, 1), dtype=np.uint8)
        if schema.values == "uint8":
            frame[f"{name}/values"], frame[f"{name}/affine"] = quantise(values)
    return frame


@pytest.fixture(scope="module", params=["float16", "uint8", "pq"])
def store(request, tmp_path_factory) -> Path:
    path, schema = tmp_path_factory.mktemp(request.param) / "store", schema_of(request.param)
    with StoreWriter(path, schema, {"expert": {}, "focal": {}}, SCENES, 2) as writer:
        writer.write_constants({name: np.full(s.shape, 0.5, s.dtype) for name, s in schema.constants().items()})
        for shard in writer.pending():
            tokens = [token for name in writer.plan[shard] for token in SCENES[name]]
            writer.write_shard(shard, {token: make_frame(token, schema) for token in tokens})
        writer.finalise({})
    return path


def expected(store: Path) -> dict[str, zarr.Array]:
    """Every array of the store by path, as zarr-python reads it."""
    group, schema = zarr.open_group(store, mode="r"), StoreReader(store).schema
    arrays = {path: group[path] for path in (*schema.arrays(), *schema.constants(), "frame/token")}
    kinds = {str(array.dtype) for array in arrays.values()}
    assert kinds == {"float16", "float32", "uint8", "uint16", "int32"}
    return {path: array for path, array in arrays.items() if isinstance(array, zarr.Array)}


def test_tensorstore_reads_every_array(store):
    tensorstore = pytest.importorskip("tensorstore", reason="tensorstore is not installed (pip install tensorstore)")
    for path, array in expected(store).items():
        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(store / path)}}
        other = tensorstore.open(spec, read=True).result()
        assert other.domain.labels == tuple(name or "" for name in array.metadata.dimension_names), path
        values = other.read().result()
        assert values.dtype == array.dtype and values.tobytes() == np.asarray(array[:]).tobytes(), path


@pytest.fixture(scope="module")
def node_folder(tmp_path_factory) -> Path:
    """A folder with zarrita installed."""
    if shutil.which("npm") is None:
        pytest.skip("node is not installed")
    folder = tmp_path_factory.mktemp("node")
    for name in ("package.json", "package-lock.json", "read.mjs"):
        shutil.copy(Path(__file__).parent / name, folder / name)
    done = subprocess.run(["npm", "ci", "--silent", "--no-audit"], cwd=folder, capture_output=True, text=True)
    if done.returncode and any(reason in done.stdout + done.stderr for reason in OFFLINE):
        pytest.skip("the npm registry cannot be reached")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_zarrita_reads_every_array(store, node_folder):
    arrays = expected(store)
    done = subprocess.run(["node", "read.mjs", str(store), *arrays], cwd=node_folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for path, got in json.loads(done.stdout).items():
        values = np.ascontiguousarray(arrays[path][:])
        assert got["shape"] == list(values.shape), path
        assert got["sha256"] == hashlib.sha256(values.tobytes()).hexdigest(), path
    assert json.loads(done.stdout).keys() == arrays.keys()
