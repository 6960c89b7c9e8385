"""Rows read past zarr-python are the same rows."""

from typing import Any

import numpy as np
import pytest
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec

from store_schema import StoreReader, StoreSchema, StoreWriter
from store_schema.direct import DirectArray, direct_arrays
from store_schema.reader import open_arrays
from tests.store.synthetic import CONSTANTS, SCENES, STATISTICS, make_frame

# more cells than two chunks of 1024 hold
SCHEMA = StoreSchema(
    bev=(50, 60, 4),
    pv=[(20, 30, 3, (8, 8))],
    cameras=("A", "B"),
    queries=2,
    layers=1,
    heads=1,
    points=2,
    query_channels=3,
    bev_kmax=2600,
    pv_kmax=[1200],
)
CELLS = {"a": (0, 0), "b": (1, 1024), "c": (1024, 1025), "d": (1025, 1200), "e": (2600, 7)}


def frame(token: str) -> dict[str, np.ndarray]:
    rng, (bev, pv) = np.random.default_rng(ord(token[0])), CELLS[token[0]]
    return make_frame(token) | {
        "bev/values": rng.normal(size=(bev, 4)).astype(np.float16),
        "bev/index": np.sort(rng.choice(3000, bev, replace=False)),
        "pv/0/values": np.where(rng.random((pv, 3)) < 0.5, 0, rng.normal(size=(pv, 3))).astype(np.float16),
        "pv/0/index": np.sort(rng.choice(1200, pv, replace=False)),
    }


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("direct") / "store"
    constants = {"decoder/value_proj_weight": np.ones((1, 4, 4), np.float32)}
    constants["decoder/value_proj_bias"] = np.zeros((1, 4), np.float32)
    assert constants.keys() == CONSTANTS.keys()
    with StoreWriter(path, SCHEMA, {"expert": {}, "focal": {}}, SCENES, 3) as writer:
        writer.write_constants(constants)
        for shard in writer.pending():
            tokens = [t for name in writer.plan[shard] for t in SCENES[name]]
            writer.write_shard(shard, {token: frame(token) for token in tokens})
        writer.finalise(STATISTICS)
    return path


def shard_file(array, shard: int):
    (file,) = (path for path in (array / "c" / str(shard)).rglob("*") if path.is_file())
    return file


def both(store):
    arrays = open_arrays(zarr.open_group(store, mode="r"), SCHEMA)
    return arrays, direct_arrays(store, arrays)


def test_every_array_but_the_counts_is_read_directly_and_equals_zarr(store):
    arrays, direct = both(store)
    assert {path for path, array in direct.items() if not isinstance(array, DirectArray)} == {"bev/count", "pv/0/count"}
    for path, array in direct.items():
        if not isinstance(array, DirectArray):
            continue
        for row in range(array.shape[0]):  # padding rows and rows of a shard without a file too
            whole = np.asarray(arrays[path][row])
            got = array[row]
            assert got.dtype == whole.dtype and got.tobytes() == whole.tobytes(), (path, row)
            for count in (0, 1, 1024, 1025, 2599):
                assert array[row, :count].tobytes() == np.asarray(arrays[path][row, :count]).tobytes(), (path, row)


def test_what_is_read_may_be_written_to(store):
    row = StoreReader(store).read("d" * 32)
    assert all(array.flags.writeable for array in row.values())
    assert row["bev/values"].shape == (1025, 4)


@pytest.mark.parametrize("where", [0, 0.4, 0.9, -1])  # chunks, the index, its checksum
@pytest.mark.parametrize("path", ["bev/values", "bev/index", "query/boxes", "query/sampling"])
def test_a_flipped_bit_is_refused_as_zarr_refuses_it(store, path, where):
    arrays, direct = both(store)
    file = shard_file(store / path, 0)
    content = file.read_bytes()
    position = len(content) - 1 if where == -1 else int(where * len(content))
    try:
        file.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        outcomes = []
        for array in (arrays[path], direct[path]):
            bad = set()
            for row in range(3):
                try:
                    array[row]
                except (ValueError, RuntimeError) as error:
                    bad.add((row, "checksum" in str(error)))
            outcomes.append(bad)
        assert outcomes[0] == outcomes[1] and outcomes[1] and all(named for _, named in outcomes[1])
    finally:
        file.write_bytes(content)


def test_a_shard_that_is_replaced_stays_whole_for_those_who_have_it_open(store):
    _, direct = both(store)
    array = direct["bev/values"]
    before = array[1]
    file = shard_file(store / "bev/values", 0)
    content = file.read_bytes()
    other = shard_file(store / "bev/values", 1).read_bytes()
    try:
        file.unlink()
        file.write_bytes(other)
        assert array[1].tobytes() == before.tobytes()
        assert both(store)[1]["bev/values"][1].tobytes() != before.tobytes()
    finally:
        file.write_bytes(content)


@pytest.mark.parametrize("odd", ["chunk", "fill", "plain", "split"])
def test_other_layouts_are_left_to_zarr(tmp_path, odd):
    codec = ShardingCodec(
        chunk_shape=(2 if odd == "chunk" else 1, 4, 3 if odd == "split" else 6), codecs=[BytesCodec(), Crc32cCodec()]
    )
    coding: dict[str, Any] = {} if odd == "plain" else dict(serializer=codec, compressors=None)
    array = zarr.create_array(
        tmp_path / "a",
        shape=(4, 8, 6),
        chunks=(2, 8, 6),
        dtype="float16",
        fill_value=1 if odd == "fill" else 0,
        **coding,
    )
    assert DirectArray.of(tmp_path / "a", array) is None
    assert direct_arrays(tmp_path, {"a": array})["a"] is array
