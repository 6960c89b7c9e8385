import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import store_schema
from store_schema import StoreError, StoreReader, StoreSchema, StoreWriter
from store_schema.encoding import TAG
from tests.store.synthetic import CONSTANTS, SCENES, SCHEMA, STATISTICS, digest, make_frame, write, writer


@pytest.fixture
def store(tmp_path: Path) -> Path:
    write(tmp_path / "store")
    return tmp_path / "store"


def test_frames_come_back_as_they_were_given(store):
    reader = StoreReader(store)
    assert reader.tokens == [t for tokens in SCENES.values() for t in tokens]
    for token in reader.tokens:
        back, want = reader.read(token), make_frame(token)
        assert back.keys() == want.keys()
        for name, array in want.items():
            tolerance = 2e-5 if name == "query/sampling" else 0
            np.testing.assert_allclose(
                back[name].astype(np.float64), array.astype(np.float64), atol=tolerance, err_msg=name
            )
    np.testing.assert_array_equal(reader.constants["decoder/value_proj_weight"], CONSTANTS["decoder/value_proj_weight"])


WHOLE = dict(bev=(4, 5, 3), pv=[(2, 3, 3, (8, 8))], cameras=("A", "B"), queries=2, bev_kmax=10, pv_kmax=[12])
FLAT = WHOLE | dict(bev=None, bev_kmax=0)


@pytest.mark.parametrize(
    ("settings", "absent", "present"),
    [
        (  # DETR3D: no BEV map, what queries read from two cameras' one level
            FLAT | dict(reading="cameras", layers=1, query_channels=3),
            ("bev/", "query/sampling", "query/attention"),
            {"query/points": (1, 2, 3), "query/camera_weights": (1, 2, 2, 1), "query/sampled": (1, 2, 3)},
        ),
        (WHOLE | dict(reading="none"), ("query/sampling", "query/attention", "query/reference", "query/features"), {}),
        (WHOLE | dict(reading="none", pv=[], pv_kmax=[]), ("pv/", "query/features", "decoder/"), {}),
        (FLAT | dict(reading="none", query_channels=3), ("bev/",), {"query/features": (2, 3)}),
    ],
)
def test_stores_of_other_readings_come_back_as_they_were_given(tmp_path, settings, absent, present):
    schema = StoreSchema(**settings)
    assert StoreSchema.from_dict(json.loads(json.dumps(schema.to_dict()))) == schema and not schema.constants()
    assert not [path for path in schema.arrays() if path.startswith(absent)]
    rng = np.random.default_rng(0)
    known = make_frame("a" * 32) | {path: rng.random(shape).astype(np.float16) for path, shape in present.items()}
    frame = {path: known[path] for path in schema.frame_keys()}
    with StoreWriter(tmp_path / "s", schema, {"expert": {}, "focal": {}}, {"s1": ["a" * 32]}, 3) as store:
        store.write_constants({})
        store.write_shard(0, {"a" * 32: frame})
        store.finalise({})
    reader = StoreReader(tmp_path / "s")
    back = reader.read("a" * 32)
    assert reader.schema == schema and reader.constants == {} and back.keys() == frame.keys() >= present.keys()
    for path, array in frame.items():
        np.testing.assert_array_equal(back[path], array, err_msg=path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(reading="lidar"), "schema.reading is 'lidar'; use bev, cameras, none"),
        (dict(bev=None, bev_kmax=0), "schema.reading is 'bev' but schema.bev is None"),
        (dict(heads=0), "schema.heads is 0; it must be at least 1"),
        (dict(bev_kmax=0), "schema.bev_kmax is 0; it must be at least 1"),
        (dict(bev=None, reading="none"), "schema.bev_kmax is 10, more than the grid's 0 cells"),
        (dict(reading="cameras", pv=[], pv_kmax=[]), "schema.reading is 'cameras' but schema.pv is empty"),
        (dict(reading="cameras", layers=0), "schema.layers is 0; it must be at least 1"),
        (dict(reading="cameras", query_channels=0), "schema.query_channels is 0; it must be at least 1"),
        (dict(pv_kmax=[]), "schema.pv and schema.pv_kmax differ in length, 1 and 0"),
    ],
)
def test_sizes_that_contradict_each_other_are_refused(changes, message):
    read = dict(layers=1, heads=1, points=2, query_channels=3) | changes
    with pytest.raises(StoreError, match=message):
        StoreSchema(**(WHOLE | read))


@pytest.mark.parametrize(("bev", "pv"), [(0, 0), (10, 12), (1, 12)])  # empty, full, mixed
def test_any_number_of_cells_up_to_the_capacity(tmp_path, bev, pv):
    tokens = [t for tokens in SCENES.values() for t in tokens]
    with writer(tmp_path / "s") as store:
        store.write_constants(CONSTANTS)
        for shard in store.pending():
            store.write_shard(shard, {t: make_frame(t, bev, pv) for n in store.plan[shard] for t in SCENES[n]})
        store.finalise(STATISTICS)
    back = StoreReader(tmp_path / "s").read(tokens[0])
    assert len(back["bev/index"]) == bev and len(back["pv/0/values"]) == pv


def broken(name: str, change) -> dict[str, np.ndarray]:
    frame = make_frame("a" * 32)
    if change is None:
        frame.pop(name)
    else:
        frame[name] = change(frame[name]) if name in frame else change(None)
    return frame


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("query/boxes", None, "lacks query/boxes"),
        ("extra", lambda _: np.zeros(1), "has unknown extra"),
        ("query/boxes", lambda a: a[:1], r"query/boxes has shape \(1, 9\), expected \(2, 9\)"),
        ("bev/values", lambda a: a[:2], r"expected \(k, 3\) and \(k,\)"),
        ("bev/values", lambda a: a * np.float16("nan"), "NaN or infinite"),
        ("query/boxes", lambda a: a * np.float32("inf"), "NaN or infinite"),
        ("query/features", lambda a: np.full_like(a, 1e6, dtype=np.float32), "beyond float16's 65504"),
        ("query/features", lambda a: a.astype(np.float32) * np.float32("nan"), "NaN or infinite"),
        ("query/boxes", lambda a: np.full_like(a, 1e39, dtype=np.float64), r"beyond float32's 3.40282e\+38"),
        ("bev/index", lambda a: a[::-1].copy(), "must rise strictly"),
        ("bev/index", lambda a: np.array([0, 1, 2, 99]), r"within 0\.\.19"),
        ("query/score", lambda a: a.astype(np.int64), "expected floating point"),
        # values that their types would cut to fit
        ("query/label", lambda a: np.array([0, 300]), r"query/label has 300, which uint8 cannot hold \(0..255\)"),
        ("query/label", lambda a: np.array([-1, 0]), "query/label has -1, which uint8 cannot hold"),
        ("query/label", lambda a: np.array([0, 2**63], np.uint64), "query/label has 9223372036854775808, which uint8"),
        ("query/label", lambda a: np.array([0, 2.7]), "query/label has type float64, expected whole numbers"),
        ("query/label", lambda a: np.array([0, np.nan]), "query/label has type float64, expected whole numbers"),
        ("query/label", lambda a: np.array([True, False]), "query/label has type bool, expected whole numbers"),
        ("query/label", lambda a: a.astype(complex), "query/label has type complex128, expected whole numbers"),
        ("query/sampling", lambda a: (a * 65535).astype(np.uint16), "has type uint16, expected floating point"),
        ("query/sampling", lambda a: a * np.float32("nan"), "query/sampling holds NaN or infinite"),
        ("query/boxes", lambda a: a.astype(complex), "query/boxes has type complex128, expected floating point"),
        ("bev/values", lambda a: a.astype(np.int64), "bev/values has type int64, expected floating point"),
        # what the checks of a masked array leave out, and what has no type
        ("query/score", lambda a: np.ma.masked_invalid([np.nan, 0.5]), "query/score is a masked array"),
        ("query/label", lambda a: np.ma.masked_array([300, 1], [True, False]), "query/label is a masked array"),
        ("query/features", lambda a: np.ma.masked_array(a, a > 0), "query/features is a masked array"),  # float16
        ("bev/index", lambda a: np.ma.masked_array(a), "bev/index is a masked array"),
        ("query/boxes", lambda a: a.tolist(), "query/boxes is of type list, expected a NumPy array"),
        ("bev/index", lambda a: a.tolist(), "bev/index is of type list, expected a NumPy array"),
        ("query/boxes", torch.from_numpy, "query/boxes is of type Tensor, expected a NumPy array"),
        ("query/score", lambda a: np.float32(1), "query/score is of type float32, expected a NumPy array"),
    ],
)
def test_frames_that_do_not_fit_are_refused_by_name(tmp_path, name, change, message):
    with writer(tmp_path / "s") as store, pytest.raises(StoreError, match=message) as caught:
        frames = {t: make_frame(t) for n in store.plan[0] for t in SCENES[n]}
        store.write_shard(0, frames | {"a" * 32: broken(name, change)})
    assert "\n" not in str(caught.value) and "a" * 32 in str(caught.value)


@pytest.mark.parametrize(
    ("scenes", "message"),
    [
        ({"s": ["x" * 65]}, "token 'x{65}' of scene s does not fit frame/token, which holds 1 to 64 printable ASCII"),
        ({"s": ["straße-1"]}, "token 'straße-1' of scene s does not fit"),
        ({"s": [""]}, "token '' of scene s does not fit"),
        ({"s": ["a", "a "]}, "token 'a ' of scene s does not fit"),  # padded with blanks both are equal
        ({"s": ["a\0"]}, r"token 'a\\x00' of scene s does not fit"),
        ({"s": [7]}, "token 7 of scene s does not fit"),
        ({"s": ["a"], "t": ["b", "a"]}, "token a is in scene s and again in scene t; tokens are unique"),
        ({"s": ["a"], "t": []}, "scene t has no frames; leave it out"),
        ({}, "there are no scenes to store"),
        ({None: ["a"]}, "scene None has no text for a name"),
    ],
)
def test_scenes_and_tokens_that_a_store_would_cut_or_mix_up_are_refused(tmp_path, scenes, message):
    with pytest.raises(StoreError, match=message):
        StoreWriter(tmp_path / "s", SCHEMA, {}, scenes, 3)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("rows", [0, -1, 2.0, True, "3"])
def test_rows_of_a_shard_are_a_whole_number(tmp_path, rows):
    with pytest.raises(StoreError, match="frames_per_shard is .*; it is a whole number of at least 1"):
        StoreWriter(tmp_path / "s", SCHEMA, {}, SCENES, rows)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("decoder/value_proj_bias", lambda a: a[:, :2], r"value_proj_bias is \(1, 2\), expected shape \(1, 3\)"),
        ("decoder/value_proj_bias", lambda a: None, "value_proj_bias is nothing"),
        ("decoder/value_proj_bias", lambda a: a * np.nan, "value_proj_bias has .* values that are NaN"),
        ("decoder/value_proj_bias", lambda a: a + 1e39, "value_proj_bias has .* beyond float32"),
        ("decoder/value_proj_bias", lambda a: a.astype(np.int64), "value_proj_bias has type int64"),
        ("decoder/value_proj_bias", lambda a: a.tolist(), "value_proj_bias is of type list, expected a NumPy array"),
        ("decoder/value_proj_bias", lambda a: np.ma.masked_array(a, a == 0), "value_proj_bias is a masked array"),
        (
            "decoder/other",
            lambda a: np.zeros(1),
            "constant decoder/other is not of the schema, which has decoder/value",
        ),
    ],
)
def test_constants_that_do_not_fit_are_refused_by_name(tmp_path, name, change, message):
    changed = {**CONSTANTS, name: change(CONSTANTS.get(name, np.zeros(1)).astype(np.float64))}
    constants = {path: array for path, array in changed.items() if array is not None}
    with writer(tmp_path / "s") as store, pytest.raises(StoreError, match=message):
        store.write_constants(constants)


def test_values_that_json_cannot_hold_are_refused(tmp_path):
    with pytest.raises(StoreError, match="does not fit: .*give finite plain values"):
        writer(tmp_path / "s", rule={"margin": float("nan")})
    write(tmp_path / "s")
    with writer(tmp_path / "s") as store, pytest.raises(StoreError, match="does not fit: .*give finite plain values"):
        store.finalise({"bev": {"mean": [float("inf")]}})


def test_a_stride_may_be_one_number():
    known: dict[str, Any] = dict(WHOLE, reading="none")
    assert StoreSchema(**known) == StoreSchema(**known | {"pv": [(2, 3, 3, 8)]})


def test_too_many_cells_name_the_capacity(tmp_path):
    with writer(tmp_path / "s") as store, pytest.raises(StoreError, match="has 11 cells, more than the capacity 10"):
        store.write_shard(0, {t: make_frame(t, bev_cells=11) for n in store.plan[0] for t in SCENES[n]})


def test_another_expert_is_refused_with_both_values(store):
    with pytest.raises(StoreError, match='expert.checkpoint_sha256 = "x", now it is "y"'), writer(store, "y"):
        pass


def test_a_second_writer_is_refused(tmp_path):
    with (
        writer(tmp_path / "s"),
        pytest.raises(StoreError, match="being written by another process"),
        writer(tmp_path / "s"),
    ):
        pass


def test_an_unfinished_or_missing_store_is_not_read(tmp_path):
    with pytest.raises(StoreError, match="it is not there"):
        StoreReader(tmp_path / "none")
    with writer(tmp_path / "s") as store:
        store.write_constants(CONSTANTS)
        store.write_shard(0, {t: make_frame(t) for n in store.plan[0] for t in SCENES[n]})
        with pytest.raises(StoreError, match=r"not written \(1 of 2\)"):
            store.finalise(STATISTICS)
    with pytest.raises(StoreError, match=r"not finished \(shards written: 1\)"):
        StoreReader(tmp_path / "s")


def test_a_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / "letters.txt").write_text("mine")
    with pytest.raises(StoreError, match="not empty and no store"), writer(tmp_path):
        pass
    assert (tmp_path / "letters.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["bev/values", "bev/index", "query/boxes", "query/sampling"])
def test_a_flipped_bit_is_found_by_a_read(store, name):
    shard = next(f for f in (store / name).rglob("*") if f.is_file() and f.name != "zarr.json")
    content = bytearray(shard.read_bytes())
    content[2] ^= 4
    shard.write_bytes(content)
    with pytest.raises(StoreError, match="is damaged"):
        for token in StoreReader(store).tokens:
            StoreReader(store).read(token)


def test_unknown_token_and_schema_version_are_named(store):
    with pytest.raises(StoreError, match="has no frame zz"):
        StoreReader(store).read("zz")
    text = (store / "manifest.json").read_text().replace('"schema_version": 2', '"schema_version": 9')
    (store / "manifest.json").write_text(text)
    with pytest.raises(StoreError, match="schema version 9, this program reads 2"):
        StoreReader(store)


def test_killed_writers_resume_to_the_same_bytes(store, tmp_path, project):
    path = tmp_path / "killed"
    code = f"from pathlib import Path; from tests.store.synthetic import write; write(Path({str(path)!r}), pause=0.15)"
    for delay in (0.9, 1.1, 1.3):
        process = subprocess.Popen(
            [sys.executable, "-c", code], cwd=project, env=os.environ | {"PYTHONPATH": str(project)}
        )
        time.sleep(delay)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    write(path)
    assert digest(path) == digest(store)


def test_xarray_opens_it_with_names_and_decoded_positions(store):
    xarray = pytest.importorskip("xarray")
    group = xarray.open_zarr(store, group="query", consolidated=False)
    assert group["boxes"].dims == ("frame", "query", "box")
    want = make_frame("a" * 32)["query/sampling"]
    np.testing.assert_allclose(group["sampling"][0].to_numpy(), want, atol=2e-5)


def test_readers_work_in_spawned_processes(store):
    import multiprocessing

    reader = StoreReader(store)
    reader.read("a" * 32)  # opened here; the child opens its own
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        back = pool.apply(reader.read, ("c" * 32,))
    np.testing.assert_array_equal(back["query/boxes"], make_frame("c" * 32)["query/boxes"])


def test_import_needs_numpy_and_zarr_only(store, tmp_path):
    """An environment of links to numpy, zarr and what zarr brings; fsspec, dask and torch are not in it."""
    wanted = ("numpy", "zarr", "numcodecs", "google_crc32c", "donfig", "yaml", "packaging", "typing_extensions")
    for entry in Path(np.__file__).parents[1].iterdir():
        if entry.name.lower().startswith(wanted):
            (tmp_path / entry.name).symlink_to(entry)
    (tmp_path / "store_schema").symlink_to(Path(store_schema.__file__).parent)
    code = """
import sys
sys.path.insert(0, sys.argv[1])
import store_schema
store_schema.StoreReader(sys.argv[2]).read("a" * 32)
assert store_schema.verify(sys.argv[2]).problems == []
try:
    store_schema.open_storage("s3://bucket/store")
except store_schema.StoreError as error:
    print(error)
"""
    command = [sys.executable, "-I", "-S", "-c", code, str(tmp_path), str(store)]
    out = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert out.returncode == 0, out.stderr
    assert out.stdout.startswith("store s3://bucket/store needs fd3d[s3]: No module named 'fsspec'")


def test_zarr_reads_a_shard_as_it_was_given_and_writes_one_of_the_same_length(tmp_path):
    """Chunks of zeros are left out of ours as of zarr's; the order of the others is free."""
    import zarr

    sizes: dict[str, Any] = dict(WHOLE, bev=(60, 50, 3), bev_kmax=3000, reading="none")
    schema, tokens = StoreSchema(**sizes), ["a" * 32, "b" * 32, "c" * 32]
    rng, frames = np.random.default_rng(0), {}
    for token, cells in zip(tokens, (1025, 0, 7), strict=True):
        frame = {path: make_frame(token)[path] for path in schema.frame_keys() if not path.startswith("bev/")}
        index = np.sort(rng.choice(3000, cells, replace=False))
        values = rng.normal(size=(cells, 3)).astype(np.float16)
        values[:1024] *= -0.0 if token == "a" * 32 else 1.0  # a whole chunk of zeros of both signs
        frames[token] = frame | {"bev/values": values, "bev/index": index}
    with StoreWriter(tmp_path / "s", schema, {}, {"s1": tokens}, 4) as store:
        store.write_shard(0, frames)
    file = tmp_path / "s/bev/values/c/0/0/0"
    array, length = zarr.open_array(tmp_path / "s/bev/values"), file.stat().st_size
    full = np.asarray(array[:])
    for row, token in enumerate(tokens):
        values = frames[token]["bev/values"]
        np.testing.assert_array_equal(full[row, : len(values)], values)
        assert not full[row, len(values) :].any()
    file.unlink()
    array[:] = full
    assert file.stat().st_size == length - TAG
