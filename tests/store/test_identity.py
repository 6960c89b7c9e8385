"""A store is what its manifest says, whatever the order of JSON keys, the spelling of numbers, and the time."""

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from store_schema import OtherStoreError, StoreError, StoreReader, StoreSchema, StoreWriter, open_storage, verify
from store_schema.manifest import canonical, differing, fingerprint
from tests.store.synthetic import CONSTANTS, SCENES, STATISTICS, digest, make_frame, write, writer

TOKENS = [token for tokens in SCENES.values() for token in tokens]


def reordered(value: Any) -> Any:
    """A JSON value with the keys of its objects in reverse order."""
    if isinstance(value, dict):
        return {key: reordered(value[key]) for key in reversed(value)}
    return [reordered(inner) for inner in value] if isinstance(value, list) else value


@pytest.mark.parametrize("name", ["manifest.json", "recipe.json", ".done/shard-00000.json", ".done/arrays"])
def test_the_order_of_keys_means_nothing(tmp_path, name):
    """Scene names whose order as text is not their order as numbers or by length."""
    write(tmp_path / "s")
    file = tmp_path / "s" / name
    file.write_text(json.dumps(reordered(json.loads(file.read_text()))))
    reader = StoreReader(tmp_path / "s")
    assert reader.tokens == TOKENS
    for token in TOKENS:
        np.testing.assert_array_equal(reader.read(token)["query/boxes"], make_frame(token)["query/boxes"])
    with writer(tmp_path / "s") as store:
        assert store.pending() == [] and (tmp_path / "s/manifest.json").exists()


def test_rows_follow_the_order_of_the_scenes_names_as_text(tmp_path):
    schema = StoreSchema((2, 2, 1), [], ("A",), 1, 4, [], reading="none")
    scenes = {name: [f"token-{name}"] for name in ("9", "10", "100", "11")}
    store = StoreWriter(tmp_path / "s", schema, {}, scenes, 2)
    assert list(store.layout.rows) == ["token-10", "token-100", "token-11", "token-9"]
    with pytest.raises(StoreError, match="scene 9 has no text for a name"):  # JSON would make it "9", of another order
        StoreWriter(tmp_path / "s", schema, {}, {9: ["a"], 10: ["b"]}, 2)  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ({"margin": 1.0, "edges": (0.5, 2.0)}, {"margin": 1, "edges": [0.5, 2]}),
        ({"margin": -0.0}, {"margin": 0}),
        ({"margin": 1e20}, {"margin": 10**20}),
    ],
)
def test_a_number_is_one_setting_however_it_is_spelled(tmp_path, first, then):
    assert fingerprint({"focal": first}) == fingerprint({"focal": then})
    write(tmp_path / "s", rule=first)
    files = {file: file.stat().st_ino for file in (tmp_path / "s").rglob("c/**/*") if file.is_file()}
    with writer(tmp_path / "s", rule=then) as store:
        assert store.pending() == [] and (tmp_path / "s/manifest.json").exists()
        store.write_constants(CONSTANTS)
        store.finalise(STATISTICS)
    assert verify(tmp_path / "s").problems == []
    assert all(file.stat().st_ino == number for file, number in files.items())


@pytest.mark.parametrize(
    ("first", "then", "field", "values"),
    [
        ({"a": True}, {"a": 1}, "rule.a", ("true", "1")),
        ({"a": None}, {}, "rule.a", ("null", "(absent)")),
        ({"a": 1}, {"a": "1"}, "rule.a", ("1", '"1"')),
        ({"a": list(range(90))}, {"a": [*range(89), 7]}, "rule.a[89]", ("89", "7")),  # beyond what one line shows
        ({"a": [1]}, {"a": [1, 2]}, "rule.a (number of entries)", ("1", "2")),
        ({"a": {"b": 1}}, {"a": []}, "rule.a", ('{"b":1}', "[]")),
    ],
)
def test_whatever_changes_the_fingerprint_is_told_with_both_values_before_anything_is_deleted(
    tmp_path, first, then, field, values
):
    assert fingerprint({"rule": first}) != fingerprint({"rule": then})
    write(tmp_path / "s", rule=first)
    before = digest(tmp_path / "s")
    with pytest.raises(OtherStoreError) as caught, writer(tmp_path / "s", rule=then):
        pass
    assert (caught.value.field, caught.value.stored, caught.value.wanted) == (field, *values)
    assert digest(tmp_path / "s") == before


def test_manifests_differ_exactly_where_their_fingerprints_do():
    rng = np.random.default_rng(0)
    pool = [0, 0.0, -0.0, 1, 1.0, True, None, "1", "", [], [1], [1.0], {}, {"x": 1}, {"x": None}, float("nan")]
    for _ in range(500):
        a, b = ({key: pool[rng.integers(len(pool))] for key in "pq" if rng.random() < 0.8} for _ in range(2))
        assert (differing(a, b) is None) == (fingerprint(a) == fingerprint(b)), (canonical(a), canonical(b))


DENSE = StoreSchema((4, 5, 3), [(2, 3, 3, (8, 8))], ("A", "B"), 2, 10, [12], layout="dense", reading="none")


def write_dense(path: Path, expert: str) -> None:
    with StoreWriter(path, DENSE, {"expert": {"checkpoint_sha256": expert}}, {t: [t] for t in TOKENS}, 1) as store:
        rng = np.random.default_rng(ord(expert))
        for shard in store.pending():
            frame: dict[str, Any] = {p: rng.random(s.shape).astype(np.float32) for p, s in DENSE.arrays().items()}
            store.write_shard(shard, {TOKENS[shard]: frame | {"query/label": np.zeros(2, np.uint8)}})
        store.finalise({})


@pytest.mark.parametrize("make", [write, write_dense])
@pytest.mark.parametrize("sent", [False, True])
def test_a_store_that_is_replaced_under_a_reader_is_refused(tmp_path, make, sent):
    path = tmp_path / "s"
    make(path, "x")
    reader = StoreReader(path)
    reader.read(TOKENS[0])
    if sent:  # as a worker gets it, which opens it again
        reader = pickle.loads(pickle.dumps(reader))
    open_storage(path).clear()
    with pytest.raises(StoreError, match="was deleted or is being dumped again since it was opened"):
        reader.read(TOKENS[1])
    make(path, "y")
    for token in (TOKENS[0], TOKENS[1], TOKENS[4]):
        with pytest.raises(
            StoreError, match="was replaced since it was opened: expert.checkpoint_sha256 was x, now it is y"
        ):
            reader.read(token)
    StoreReader(path).read(TOKENS[0])


def test_the_same_recipe_with_other_values_is_another_store(tmp_path):
    """An expert that is not deterministic, or another machine's: recipe and fingerprint are equal, bytes are not."""
    write(tmp_path / "s")
    reader = StoreReader(tmp_path / "s")
    reader.read(TOKENS[0])
    open_storage(tmp_path / "s").clear()
    with writer(tmp_path / "s") as store:
        store.write_constants(CONSTANTS)
        for shard in store.pending():
            frames = {t: make_frame(t) for t in store.layout.tokens(shard)}
            for frame in frames.values():  # of the same lengths
                frame["bev/values"] = frame["bev/values"][::-1].copy()
            store.write_shard(shard, frames)
        store.finalise(STATISTICS)
    with pytest.raises(StoreError, match="was replaced since it was opened: written.shard 00000.bev/values"):
        reader.read(TOKENS[4])


def test_a_dump_that_changes_nothing_disturbs_no_reader(tmp_path):
    write(tmp_path / "s", libraries={"torch": "1"})
    reader = StoreReader(tmp_path / "s")
    reader.read(TOKENS[0])
    write(tmp_path / "s", libraries={"torch": "1"})
    (tmp_path / "s/manifest.json").touch()
    np.testing.assert_array_equal(reader.read(TOKENS[4])["query/boxes"], make_frame(TOKENS[4])["query/boxes"])


def test_a_folder_that_is_exchanged_under_a_writer_is_noticed(tmp_path):
    with writer(tmp_path / "s") as store:
        shutil.move(tmp_path / "s", tmp_path / "away")
        write(tmp_path / "s", "other")
        with pytest.raises(StoreError, match="was deleted or moved while this dump was writing it"):
            store.write_shard(0, {t: make_frame(t) for t in store.layout.tokens(0)})
    assert verify(tmp_path / "s").problems == []


def test_a_setting_is_told_before_what_follows_from_it() -> None:
    have = {"schema": {"values": "float16"}, "version": 2}
    want = {"code": {"cells": 9}, "schema": {"values": "pq"}, "version": 2}
    assert differing(have, want) == ("schema.values", "float16", "pq")
    assert differing(have, have | {"code": 1}) == ("code", "(absent)", 1)
    have = {"code": {"frames": 10}, "schema": {"code_bits": 8, "code_bytes": 2, "values": "pq"}, "version": 2}
    want = {"code": {"frames": 90}, "schema": {"code_bits": 4, "code_bytes": 4, "values": "pca"}, "version": 2}
    assert differing(have, want) == ("schema.values", "pq", "pca")
    pq = have["schema"]
    assert differing(have, have | {"schema": pq | {"code_bits": 4}}) == ("schema.code_bits", 8, 4)  # type: ignore[operator]
