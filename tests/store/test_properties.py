"""Whatever is written comes back, or is refused by name."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from store_schema import StoreError, StoreReader, StoreSchema, StoreWriter, dequantise, quantise
from store_schema.codes import CODED
from store_schema.coding import check_frame
from store_schema.schema import VALUES

few = settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
many = settings(max_examples=200, deadline=None, derandomize=True)
halves = st.floats(width=16, allow_nan=False, allow_infinity=False)
BROKEN = [np.nan, np.inf, -np.inf]


def write(path: Path, schema: StoreSchema, frames: dict[str, dict[str, np.ndarray]], per_shard: int) -> StoreReader:
    with StoreWriter(path, schema, {"expert": {}, "focal": {}}, {t: [t] for t in frames}, per_shard) as store:
        store.write_constants({})
        for shard in store.pending():
            store.write_shard(shard, {t: frames[t] for t in store.plan[shard]})
        store.finalise({})
    return StoreReader(path)


def focal(values: np.ndarray, index: list[int], coded: bool) -> dict[str, np.ndarray]:
    arrays = dict(zip(("bev/values", "bev/affine"), quantise(values), strict=True)) if coded else {"bev/values": values}
    return arrays | {"bev/index": np.array(index, np.int64)}


@st.composite
def stores(draw: st.DrawFn, values: str) -> tuple[StoreSchema, dict[str, np.ndarray], dict[str, dict[str, Any]], int]:
    """A schema, each frame's features before they are coded, the frames, and rows per shard."""
    rows, columns, channels = draw(st.integers(1, 4)), draw(st.integers(1, 4)), draw(st.integers(1, 3))
    cells, kept = rows * columns, draw(st.integers(1, 3))
    kmax = draw(st.sampled_from([cells, draw(st.integers(1, cells))]))
    schema = StoreSchema(
        bev=(rows, columns, channels),
        pv=[],
        cameras=("A",),
        queries=kept,
        bev_kmax=kmax,
        pv_kmax=[],
        reading="none",
        values=values,
    )
    kind = np.float32 if values == "float32" else np.float16
    exact, frames = {}, {}
    for token in (letter * 32 for letter in "abcdef"[: draw(st.integers(1, 6))]):
        k = draw(st.sampled_from([0, kmax, draw(st.integers(0, kmax))]))  # empty, full, in between
        index = sorted(draw(st.permutations(range(cells)))[:k])
        exact[token] = draw(arrays(kind, (k, channels), elements=halves | st.sampled_from([-0.0, 65504.0])))
        frames[token] = focal(exact[token], index, values == "uint8") | {
            "query/boxes": draw(
                arrays(np.float32, (kept, 9), elements=st.floats(width=32, allow_nan=False, allow_infinity=False))
            ),
            "query/score": draw(arrays(np.float32, kept, elements=st.floats(0, 1, width=32))),
            "query/label": draw(arrays(np.uint8, kept)),
        }
    return schema, exact, frames, draw(st.integers(1, 3))


def check(made: tuple[StoreSchema, dict[str, np.ndarray], dict[str, dict[str, Any]], int]) -> None:
    schema, exact, frames, per_shard = made
    with tempfile.TemporaryDirectory() as folder:
        reader = write(Path(folder) / "s", schema, frames, per_shard)
        assert reader.tokens == list(frames)
        for token, frame in frames.items():
            as_stored, plain = reader.read(token, decode=False), reader.read(token)
            assert as_stored.keys() == frame.keys()
            for path, array in frame.items():
                np.testing.assert_array_equal(as_stored[path], array, err_msg=path)
            values, wide = plain["bev/values"], exact[token].astype(np.float64)
            assert values.shape == wide.shape and not np.signbit(values[values == 0]).any()  # -0.0 became 0.0
            if schema.values == "uint8":
                margin = 0.5001 * as_stored["bev/affine"][:, :1] + 2e-7 * np.abs(wide).max(initial=0)
                assert (np.abs(values - wide) <= margin).all()
            else:
                np.testing.assert_array_equal(values, exact[token])


@few
@given(st.sampled_from(["float16", "float32"]).flatmap(stores))
def test_floating_point_frames_come_back_as_they_were_given(made):
    check(made)


@few
@given(stores("uint8"))
def test_uint8_frames_come_back_within_half_a_step(made):
    check(made)


@few
@given(
    made=st.sampled_from([values for values in VALUES if values not in CODED]).flatmap(stores),
    path=st.sampled_from(["bev/values", "query/boxes", "query/score"]),
    bad=st.sampled_from(BROKEN),
    data=st.data(),
)
def test_what_is_not_finite_is_refused_wherever_it_is(made, path, bad, data):
    schema, exact, frames, per_shard = made
    token = data.draw(st.sampled_from(sorted(frames)))
    frame = frames[token]
    if path == "bev/values":
        values = np.concatenate([exact[token], exact[token]])[: max(1, len(exact[token]))].astype(np.float32)
        if not len(values):
            values = np.zeros((1, schema.bev[2]), np.float32)
        values.flat[data.draw(st.integers(0, values.size - 1))] = bad
        index = frame["bev/index"] if len(frame["bev/index"]) else [0]
        broken = frame | focal(values, list(index), schema.values == "uint8")
    else:
        array = frame[path].copy()
        array.flat[data.draw(st.integers(0, array.size - 1))] = bad
        broken = frame | {path: array}
    with tempfile.TemporaryDirectory() as folder, pytest.raises(StoreError, match=f"frame {token}: .* NaN or infinite"):
        write(Path(folder) / "s", schema, frames | {token: broken}, per_shard)


@pytest.mark.parametrize("coded", [False, True])
@pytest.mark.parametrize(
    ("grid", "dtype"),
    [((256, 256), np.uint16), ((256, 257), np.uint32), ((1, 65535), np.uint16), ((1, 65537), np.uint32)],
)
def test_cell_numbers_take_the_smallest_type_that_holds_them(tmp_path, grid, dtype, coded):
    values = "uint8" if coded else "float16"
    cells = grid[0] * grid[1]
    schema = StoreSchema((*grid, 1), [], ("A",), 1, cells, [], reading="none", values=values)
    queries = {"query/boxes": np.zeros((1, 9), np.float32), "query/score": np.zeros(1, np.float32)}
    queries |= {"query/label": np.zeros(1, np.uint8)}
    frames = {  # the last cells, and all of them
        "a" * 32: queries | focal(np.ones((2, 1), np.float16), [cells - 2, cells - 1], coded),
        "b" * 32: queries | focal(np.ones((cells, 1), np.float16), list(range(cells)), coded),
    }
    reader = write(tmp_path / "s", schema, frames, 2)
    for token, frame in frames.items():
        back = reader.read(token)
        assert back["bev/index"].dtype == dtype and (back["bev/values"] == 1).all()
        np.testing.assert_array_equal(back["bev/index"], frame["bev/index"])
    for wrong in ([0, cells], [0, 2**32], [-1, 0], [1, 1]):  # would wrap around, or name a cell twice
        odd = queries | focal(np.ones((2, 1), np.float16), wrong, coded)
        with pytest.raises(StoreError, match=f"must rise strictly within 0..{cells - 1}"):
            check_frame(schema, "a" * 32, odd)


@many
@given(
    arrays(
        np.float32, st.tuples(st.integers(0, 4), st.integers(1, 6)), elements=st.floats(-(2.0**100), 2.0**100, width=32)
    )
)
def test_codes_span_each_cells_range(values):
    codes, affine = quantise(values)
    back = dequantise(codes, affine).astype(np.float64)
    scale, offset = affine[:, 0].astype(np.float64), affine[:, 1]
    np.testing.assert_array_equal(offset, values.min(1) + np.float32(0))
    assert (scale >= 0).all() and np.isfinite(affine).all() and not np.signbit(affine[affine == 0]).any()
    # half a step, rounding of float32, and what is smaller than its smallest normal number
    margin = 0.5001 * scale + 4e-7 * np.abs(values.astype(np.float64)).max(1, initial=0) + 1e-37
    assert (np.abs(back - values) <= margin[:, None]).all()
    alike = values.min(1) == values.max(1)
    np.testing.assert_array_equal(back[alike], values[alike])
