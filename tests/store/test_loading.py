"""Reading as training does: workers of any start method, threads, memory, damage, and nothing but numpy and zarr."""

import functools
import multiprocessing
import pickle
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from store_schema import StoreError, StoreReader, StoreSchema, StoreWriter, quantise

TOKENS = [letter * 32 for letter in "abcdef"]
SCHEMA = StoreSchema(
    bev=(4, 5, 3),
    pv=[(2, 3, 3, (8, 8)), (300, 300, 3, (4, 4))],  # the second has cell numbers of 32 bits
    cameras=("A", "B"),
    queries=2,
    layers=1,
    heads=1,
    points=2,
    query_channels=3,
    bev_kmax=10,
    pv_kmax=[12, 2000],
    values="uint8",
)
CAMERAS = StoreSchema(
    bev=None,
    pv=[(2, 3, 3, (8, 8))],
    cameras=("A", "B"),
    queries=2,
    layers=2,
    query_channels=3,
    bev_kmax=0,
    pv_kmax=[12],
    reading="cameras",
)
DENSE = StoreSchema((4, 5, 3), [(2, 3, 3, (8, 8))], ("A", "B"), 2, 10, [12], layout="dense", reading="none")


def make_frame(schema: StoreSchema, token: str) -> dict[str, np.ndarray]:
    rng, frame = np.random.default_rng(ord(token[0])), {}
    for path, spec in schema.arrays().items():
        if spec.kind == "index":
            k = min(spec.shape[0], 1500) - 2
            frame[path] = np.sort(rng.choice(spec.attributes["cells"], k, replace=False))
            values = rng.normal(size=(k, 3)).astype(np.float16)
            name = path.removesuffix("/index")
            if schema.values == "uint8":
                frame[f"{name}/values"], frame[f"{name}/affine"] = quantise(values)
            else:
                frame[f"{name}/values"] = values
        elif spec.kind == "plain":
            kind = np.uint8 if spec.dtype == "uint8" else np.float32
            frame[path] = (rng.random(spec.shape) + 0.1).astype(np.float16).astype(kind) + kind(1) * (kind is np.uint8)
    return frame


def write(path: Path, schema: StoreSchema) -> Path:
    with StoreWriter(path, schema, {"expert": {}, "focal": {}}, {token: [token] for token in TOKENS}, 3) as store:
        store.write_constants({p: np.ones(spec.shape, np.float32) for p, spec in schema.constants().items()})
        for shard in store.pending():
            store.write_shard(shard, {token: make_frame(schema, token) for token in store.plan[shard]})
        store.finalise({})
    return path


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("loading") / "s", SCHEMA)


@pytest.fixture(scope="module")
def frames(store) -> dict[str, dict[str, np.ndarray]]:
    reader = StoreReader(store)
    return {token: reader.read(token, decode=False) for token in TOKENS}


def equal(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[path], b[path]) for path in a)


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_workers_read_after_their_parent_has_read(store, frames, method):
    reader = StoreReader(store, cache_bytes=10**6)
    reader.read(TOKENS[0])
    order = [TOKENS[i] for i in (3, 0, 5, 0, 1, 4, 2, 3)]
    loader: DataLoader[Any] = DataLoader(
        cast(Dataset[str], order),
        batch_size=None,
        num_workers=2,
        multiprocessing_context=method,
        collate_fn=functools.partial(reader.read, decode=False),
        timeout=120,
    )
    for token, frame in zip(order, loader, strict=True):
        assert equal(frame, frames[token])


def _read_into(queue, reader: StoreReader, token: str) -> None:
    queue.put(len(reader.cache))
    queue.put(reader.read(token, decode=False))


def test_a_fork_amid_a_read_of_another_thread_does_not_hang(store, frames):
    reader, context = StoreReader(store, cache_bytes=10**6), multiprocessing.get_context("fork")
    reader.read(TOKENS[0])
    queue = context.SimpleQueue()
    child = context.Process(target=_read_into, args=(queue, reader, TOKENS[1]), daemon=True)
    with reader.cache._lock:  # as a thread would hold it
        child.start()
    child.join(60)
    assert child.exitcode == 0 and queue.get() == 0 and equal(queue.get(), frames[TOKENS[1]])


def test_threads_share_a_reader_within_its_budget(store, frames):
    size = sum(array.nbytes for array in frames[TOKENS[0]].values())
    reader, wrong = StoreReader(store, cache_bytes=2 * size + 10), []

    def work(seed: int) -> None:
        for i in np.random.default_rng(seed).integers(0, 6, 25):
            if not equal(reader.read(TOKENS[i], decode=False), frames[TOKENS[i]]) or reader.cache.used > 2 * size + 10:
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and len(reader.cache) == 2 and reader.cache.used == 2 * size


def test_frames_read_last_are_kept_within_the_budget(store, frames, monkeypatch):
    size = sum(array.nbytes for array in frames[TOKENS[0]].values())
    from_disk: list[str] = []
    reader = StoreReader(store, cache_bytes=2 * size)
    checked = reader._checked

    def recorded(token: str, read: Callable[[int], Any]) -> Any:
        from_disk.append(token[0])
        return checked(token, read)

    monkeypatch.setattr(reader, "_checked", recorded)
    for letter in "abacab":  # b is forgotten for c, then c for b
        reader.read(letter * 32)
    assert "".join(from_disk) == "abcb" and reader.cache.used == 2 * size
    small = StoreReader(store, cache_bytes=size - 1)
    small.read(TOKENS[0])
    assert len(small.cache) == 0


def test_a_reader_sent_to_another_process_starts_with_nothing_in_memory(store, frames):
    reader = StoreReader(store, cache_bytes=10**6)
    reader.read(TOKENS[0])
    sent = pickle.loads(pickle.dumps(reader))
    assert len(reader.cache) == 1 and len(sent.cache) == 0 and sent.cache.budget == 10**6
    assert equal(sent.read(TOKENS[0], decode=False), frames[TOKENS[0]])


def test_arrays_become_tensors_in_place_and_belong_to_their_reader(store, frames):
    reader = StoreReader(store, cache_bytes=10**6)
    for _ in range(3):  # from disk, then twice from memory
        for decode in (True, False):
            frame = reader.read(TOKENS[0], decode)
            for path, array in frame.items():
                with warnings.catch_warnings():
                    warnings.simplefilter("error")
                    tensor = torch.from_numpy(array)
                assert tensor.data_ptr() == array.ctypes.data, path
                tensor.zero_()
    assert equal(reader.read(TOKENS[0], decode=False), frames[TOKENS[0]])


@pytest.mark.parametrize("schema", [SCHEMA, CAMERAS, DENSE], ids=["bev", "cameras", "dense"])
def test_a_flipped_bit_anywhere_in_a_shard_is_refused_with_the_frames_token(tmp_path, schema):
    path = write(tmp_path / "s", schema)
    rng = np.random.default_rng(0)
    for name, spec in schema.arrays().items():
        file = path / name / "/".join(["c", "1", *["0"] * len(spec.shape)])
        content = file.read_bytes()
        # the first chunk, somewhere, the offsets of the sharding index, its checksum
        for at in (1, int(rng.integers(len(content))), len(content) - 9, len(content) - 1):
            damaged = bytearray(content)
            damaged[at] ^= 1 << int(rng.integers(8))
            file.write_bytes(damaged)
            reader, refused = StoreReader(path), ""
            for token in TOKENS[3:]:
                try:
                    reader.read(token)
                except StoreError as error:
                    refused = str(error)
                    break
            assert f"frame {token} of {path} (shard 1) is damaged" in refused, f"{name}: byte {at} of {len(content)}"
        reader.read(TOKENS[0])  # the other shard is whole
        file.write_bytes(content)


ALONE = """
import importlib.machinery, sys
ALLOWED = {"numpy", "zarr", "numcodecs", "google_crc32c", "donfig", "yaml", "_yaml", "packaging", "typing_extensions"}
class Only(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        known = name.split(".")[0] in ALLOWED | set(sys.stdlib_module_names) | {"store_schema"}
        return super().find_spec(name, path, target) if known else None
sys.meta_path[:] = [importlib.machinery.BuiltinImporter, importlib.machinery.FrozenImporter, Only]
sys.path.insert(0, sys.argv[1])
for name in ("torch", "pandas"):
    try:
        __import__(name)
        raise SystemExit(f"{name} was imported")
    except ModuleNotFoundError:
        pass
import numpy as np
from store_schema import StoreReader, StoreSchema, StoreWriter, describe, quantise
for values in ("float16", "uint8"):
    path = sys.argv[2] + values
    schema = StoreSchema((2, 2, 4), [], ("A",), 1, 4, [], reading="none", values=values)
    exact = np.arange(8, dtype=np.float16).reshape(2, 4)
    frame = {"query/boxes": np.zeros((1, 9), np.float32), "query/score": np.ones(1, np.float32)}
    frame |= {"query/label": np.zeros(1, np.uint8), "bev/index": np.array([0, 3]), "bev/values": exact}
    if values == "uint8":
        frame["bev/values"], frame["bev/affine"] = quantise(exact)
    with StoreWriter(path, schema, {"expert": {}, "focal": {}}, {"s": ["a" * 32]}, 1) as store:
        store.write_constants({})
        store.write_shard(0, {"a" * 32: frame})
        store.finalise({})
    back = StoreReader(path).read("a" * 32)
    assert np.allclose(back["bev/values"], exact, atol=0.01) and describe(path)
print(sorted({m.split(".")[0] for m in sys.modules} & {"torch", "mmcv", "mmdet", "mmengine", "dask", "scipy", "pandas"}))
"""


def test_a_store_is_written_and_read_with_nothing_but_numpy_and_zarr(project, tmp_path):
    command = [sys.executable, "-c", ALONE, str(project), str(tmp_path / "s-")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
