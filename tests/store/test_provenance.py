"""Each shard tells which versions of libraries wrote it; a mixture is refused, or allowed and listed."""

from pathlib import Path

import pytest

from pipeline.viewer.words import manifest_lines
from store_schema import StoreError, StoreReader, verify
from store_schema.manifest import fingerprint
from tests.store.synthetic import CONSTANTS, STATISTICS, make_frame, write, writer

OLD, NEW = {"torch": "2.1.0", "zarr": "3.1.0"}, {"torch": "2.2.0", "zarr": "3.1.0"}


def dump(path: Path, libraries: dict[str, str], shards: int = 2, allow: bool = False) -> None:
    with writer(path, allow_versions=allow, libraries=libraries) as store:
        store.write_constants(CONSTANTS)
        for shard in store.pending()[:shards]:
            store.write_shard(shard, {t: make_frame(t) for t in store.layout.tokens(shard)})
        if not store.pending():
            store.finalise(STATISTICS)


def test_a_resume_with_other_versions_is_refused_with_both(tmp_path):
    dump(tmp_path, OLD, shards=1)
    with pytest.raises(
        StoreError, match="shard 0 of .* was written with torch 2.1.0, now it is 2.2.0; .*--allow-versions"
    ):
        dump(tmp_path, NEW)
    dump(tmp_path, OLD)
    assert StoreReader(tmp_path).manifest["libraries"] == OLD


def test_an_allowed_mixture_lists_the_versions_of_all_shards(tmp_path):
    dump(tmp_path, OLD, shards=1)
    dump(tmp_path, NEW, allow=True)
    manifest = StoreReader(tmp_path).manifest
    assert manifest["libraries"] == {"torch": ["2.1.0", "2.2.0"], "zarr": "3.1.0"}
    assert manifest["mixed_libraries"] == [
        {"libraries": OLD, "shards": ["00000"]},
        {"libraries": NEW, "shards": ["00001"]},
    ]
    assert any(line.split() == ["torch", "2.1.0,", "2.2.0"] for line in manifest_lines(manifest))
    assert verify(tmp_path).problems == []


def test_a_finished_store_keeps_the_versions_that_wrote_it(tmp_path):
    """A dump that finds nothing to do has written nothing."""
    dump(tmp_path, OLD)
    dump(tmp_path, NEW)
    assert StoreReader(tmp_path).manifest["libraries"] == OLD


def test_a_library_that_was_not_there_is_a_difference_too(tmp_path):
    dump(tmp_path, OLD, shards=1)
    with pytest.raises(StoreError, match=r"was written with zarr 3.1.0, now it is \(absent\)"):
        dump(tmp_path, {"torch": "2.1.0"})


def test_versions_make_no_other_store(tmp_path):
    write(tmp_path, libraries=OLD)
    manifest = StoreReader(tmp_path).manifest
    assert fingerprint(manifest) == fingerprint(manifest | {"libraries": NEW, "mixed_libraries": []})


def test_a_library_that_an_older_list_leaves_out_is_unknown_and_no_other_version(tmp_path):
    dump(tmp_path, OLD, shards=1)
    listed = OLD | {"opencv": "4.11.0"}
    with pytest.raises(StoreError, match="was written with torch 2.1.0, now it is 2.2.0"):
        dump(tmp_path, NEW | {"opencv": "4.11.0"})
    dump(tmp_path, listed)
    manifest = StoreReader(tmp_path).manifest
    assert manifest["libraries"] == {"opencv": ["unknown", "4.11.0"], "torch": "2.1.0", "zarr": "3.1.0"}
    assert manifest["mixed_libraries"] == [
        {"libraries": OLD, "shards": ["00000"]},
        {"libraries": listed, "shards": ["00001"]},
    ]
    assert verify(tmp_path).problems == []


def test_shards_that_tell_no_library_at_all_are_other_ones(tmp_path):
    dump(tmp_path, {}, shards=1)
    with pytest.raises(StoreError, match=r"was written with torch \(absent\), now it is 2.1.0"):
        dump(tmp_path, OLD)
