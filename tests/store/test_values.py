"""Features stored as uint8 with an affine map per cell."""

from pathlib import Path
from typing import cast

import numpy as np
import pytest
import zarr

from store_schema import StoreError, StoreReader, StoreSchema, StoreWriter, dequantise, describe, quantise

TOKEN = "a" * 32
SCHEMA = StoreSchema(
    bev=(40, 50, 64),
    pv=[(4, 5, 8, (8, 8))],
    cameras=("A", "B"),
    queries=2,
    bev_kmax=2000,
    pv_kmax=[40],
    reading="none",
    values="uint8",
)


def features(cells: int, channels: int) -> np.ndarray:
    """Channels with means and spreads of their own, as after layer normalisation."""
    rng = np.random.default_rng(cells)
    mean, spread = rng.normal(0, 0.3, channels), rng.lognormal(-1, 0.5, channels)
    return (mean + spread * rng.normal(size=(cells, channels))).astype(np.float32)


def make_frame(cells: int = 700) -> dict[str, np.ndarray]:
    bev, pv = quantise(features(cells, 64)), quantise(features(7, 8))
    return {
        "bev/values": bev[0],
        "bev/affine": bev[1],
        "bev/index": np.arange(cells) * 2,
        "pv/0/values": pv[0],
        "pv/0/affine": pv[1],
        "pv/0/index": np.arange(7),
        "query/boxes": np.ones((2, 9), np.float32),
        "query/score": np.ones(2, np.float32),
        "query/label": np.zeros(2, np.uint8),
    }


def write(path: Path, frame: dict[str, np.ndarray]) -> Path:
    with StoreWriter(path, SCHEMA, {"expert": {}, "focal": {}}, {"s": [TOKEN]}, 1) as store:
        store.write_constants({})
        store.write_shard(0, {TOKEN: frame})
        store.finalise({})
    return path


def test_a_code_is_the_share_of_its_cells_range():
    # ranges 0..255 and -1..1, and a cell that is the same everywhere
    codes, affine = quantise(np.array([[0, 1, 2.4, 255], [-1, 1, 0.01, 0.5], [0.1, 0.1, 0.1, 0.1]], np.float32))
    np.testing.assert_array_equal(codes, [[0, 1, 2, 255], [0, 255, 129, 191], [0, 0, 0, 0]])
    np.testing.assert_array_equal(affine, np.array([[1, 0], [2 / 255, -1], [0, 0.1]], np.float32))
    np.testing.assert_array_equal(
        dequantise(codes, affine)[[0, 2]], np.array([[0, 1, 2, 255], [0.1, 0.1, 0.1, 0.1]], np.float32)
    )


def test_features_err_by_less_than_a_hundredth():
    exact = features(500, 256)
    error = np.linalg.norm(dequantise(*quantise(exact)) - exact) / np.linalg.norm(exact)
    assert 1e-3 < error < 0.01


def test_a_reader_decodes_and_training_takes_what_is_stored(tmp_path):
    frame, exact = make_frame(), features(700, 64)
    reader = StoreReader(write(tmp_path / "s", frame))
    as_stored, plain = reader.read(TOKEN, decode=False), reader.read(TOKEN)
    assert as_stored.keys() == frame.keys() and plain.keys() == frame.keys() - {"bev/affine", "pv/0/affine"}
    for path, array in frame.items():
        np.testing.assert_array_equal(as_stored[path], array, err_msg=path)
    half = as_stored["bev/affine"][:, :1] * 0.5001
    assert plain["bev/values"].dtype == np.float32 and (np.abs(plain["bev/values"] - exact) <= half).all()


def test_the_files_alone_say_how_to_decode(tmp_path):
    group = zarr.open_group(write(tmp_path / "s", make_frame()), mode="r")
    values, affine, count = (cast(zarr.Array, group[f"bev/{name}"]) for name in ("values", "affine", "count"))
    assert values.attrs["decoded"] == "bev/affine[.., 0] * values + bev/affine[.., 1]"
    assert affine.attrs["affine"] == ["scale", "offset"] and affine.metadata.dimension_names[1:] == (
        "bev_cell",
        "affine",
    )
    scale, offset = np.moveaxis(np.asarray(affine[0, : count[0]]), -1, 0)
    decoded = scale[:, None] * values[0, : count[0]] + offset[:, None]
    np.testing.assert_allclose(decoded, features(700, 64), atol=scale.max())


def test_padding_takes_no_room(tmp_path):
    write(tmp_path / "s", make_frame(cells=10))
    stored = {row["array"]: row["bytes"] for row in describe(tmp_path / "s")}
    metadata = (tmp_path / "s/bev/values/zarr.json").stat().st_size
    assert (
        640 < stored["bev/values"] - metadata < 1500
    )  # 10 cells of 64 bytes; two chunks of 1024 cells would be 131 kB


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "bev/values",
            lambda a: a.astype(np.float32),
            "has type float32, expected uint8; store_schema.quantise or",
        ),
        ("bev/affine", lambda a: a[:5], r"bev/affine has shape \(5, 2\) for \(700,\) cell numbers"),
        ("bev/affine", lambda a: a * np.nan, "bev/affine holds NaN or infinite values"),
        ("bev/affine", None, "lacks bev/affine"),
    ],
)
def test_coded_features_that_do_not_fit_are_refused(tmp_path, name, change, message):
    frame = make_frame()
    array = frame.pop(name)
    with pytest.raises(StoreError, match=message) as caught:
        write(tmp_path / "s", frame if change is None else frame | {name: change(array)})
    assert TOKEN in str(caught.value)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_features_that_are_not_finite_do_not_get_through(tmp_path, bad):
    exact = features(700, 64)
    exact[3, 5] = bad
    codes, affine = quantise(exact)
    with pytest.raises(StoreError, match=f"frame {TOKEN}: bev/affine holds NaN or infinite values"):
        write(tmp_path / "s", make_frame() | {"bev/values": codes, "bev/affine": affine})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(values="int4"), "schema.values is 'int4'; use float16, float32, uint8"),
        (dict(layout="dense"), "schema.values is uint8 but schema.layout is dense"),
    ],
)
def test_contradictory_schemas_are_refused(changes, message):
    with pytest.raises(StoreError, match=message):
        StoreSchema.from_dict(SCHEMA.to_dict() | changes)
