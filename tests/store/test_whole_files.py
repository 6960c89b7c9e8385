"""Every file of a store is checked against the checksum that it was written with, and a dump mends it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from store_schema import StoreError, StoreReader, verify
from store_schema.manifest import seal, unseal
from tests.store.synthetic import CONSTANTS, SCENES, digest, make_frame, write, writer

TOKENS = [token for tokens in SCENES.values() for token in tokens]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "store"
    write(path)
    return path


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "store")


def small_files(path: Path) -> list[str]:
    """Files that are no shards, and the first shard's count."""
    arrays = ("bev", "pv", "query")
    return sorted(name for name in digest(path) if "/c/" not in name or not name.startswith(arrays)) + ["bev/count/c/0"]


def flip(data: bytes, seed: int) -> bytes:
    rng, bits = np.random.default_rng(seed), bytearray(data)
    bits[rng.integers(len(bits))] ^= 1 << rng.integers(8)
    return bytes(bits)


def damage(file: Path, number: int) -> None:
    """Flip a bit, cut, empty or delete."""
    data = file.read_bytes()
    if number % 4 == 3:
        file.unlink()
    else:
        file.write_bytes((flip(data, number), data[: len(data) // 2], b"")[number % 4])


def values_are_as_written(path: Path) -> bool:
    """Whether all that a new reader gives is what was written; False where the reader refuses."""
    try:
        reader = StoreReader(path)
        constants, frames = reader.constants, {token: reader.read(token) for token in reader.tokens}
    except StoreError:
        return False
    assert sorted(frames) == sorted(TOKENS)
    for path_, array in CONSTANTS.items():
        np.testing.assert_array_equal(constants[path_], array)
    for token, frame in frames.items():
        for name, array in make_frame(token).items():
            np.testing.assert_allclose(frame[name].astype(np.float64), array.astype(np.float64), atol=2e-5)
    return True


@pytest.mark.parametrize("first", range(4))
def test_damage_of_any_small_file_is_named_never_read_and_mended(copy, whole, first):
    """Every fourth file, in turn with a flipped bit, cut, emptied and deleted."""
    for number, name in enumerate(small_files(whole)[first::4], first):
        damage(copy / name, number)
        said = verify(copy).problems
        gone = name == "manifest.json" and not (copy / name).exists()
        assert any(("its dump is not finished" if gone else name) in problem for problem in said), (name, said)
        values_are_as_written(copy)
        for _ in range(2):  # finalising finds a damaged shard, the next dump writes it anew
            try:
                write(copy)
                break
            except StoreError as error:
                assert "run the dump again" in str(error)
        assert digest(copy) == digest(whole), name


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "decoder/value_proj_weight/c/0/0/0",
            "decoder/value_proj_weight/c/0/0/0 of store .* does not have the checksum",
        ),
        ("frame/token/c/0/0", "frame/token/c/0/0 of store .* does not have the checksum"),
        ("bev/values/zarr.json", "bev/values/zarr.json of store .* does not have the checksum"),
        ("zarr.json", "zarr.json of store .* does not have the checksum"),
        ("manifest.json", "manifest.json of store .* (does not have the checksum|cannot be read)"),
    ],
)
def test_opening_checks_every_file_but_the_shards(copy, name, message):
    (copy / name).write_bytes(flip((copy / name).read_bytes(), 1))
    with pytest.raises(StoreError, match=message):
        StoreReader(copy).read(TOKENS[0])
    with pytest.raises(StoreError, match=message):
        StoreReader(copy).constants  # noqa: B018


def test_a_checksum_is_never_taken_from_a_damaged_file(copy, whole):
    """Damaged while the dump runs: after opening, before the manifest."""
    with writer(copy) as store:
        file = copy / "decoder/value_proj_weight/c/0/0/0"
        file.write_bytes(flip(file.read_bytes(), 0))
        with pytest.raises(StoreError, match="does not have the checksum it was written with"):
            store.finalise({})
    with pytest.raises(StoreError, match="its dump is not finished"):
        StoreReader(copy)
    write(copy)
    assert digest(copy) == digest(whole)


def test_sums_of_a_changed_marker_do_not_get_into_the_statistics(copy):
    marker = copy / ".done/shard-00000.json"
    content = json.loads(marker.read_text())
    marker.write_text(json.dumps(content | {"sums": {"moments": 1}}))
    with writer(copy) as store:
        assert store.pending() == [0]


def test_a_file_that_goes_missing_after_it_was_checked_is_not_read_as_zeros(copy):
    reader = StoreReader(copy)
    reader.read(TOKENS[0])
    for array in reader._arrays.values():
        getattr(array, "_files", {}).clear()  # as when other shards were read in between
    (copy / "query/boxes/c/0/0/0").unlink()
    with pytest.raises(StoreError, match=r"is damaged: .*query/boxes/c/0/0/0"):
        reader.read(TOKENS[0])


def test_the_recipe_is_made_anew_from_what_is_whole_or_named(copy, whole):
    recipe = copy / "recipe.json"
    recipe.write_bytes(recipe.read_bytes().replace(b'"x"', b'"y"'))
    with pytest.raises(StoreError, match='checkpoint_sha256 = "x", now it is "z"'), writer(copy, "z"):
        pass
    write(copy)
    assert digest(copy) == digest(whole)
    for name in ("manifest.json", "recipe.json", ".done/arrays", ".done/constants"):
        (copy / name).write_bytes(b"{")
    for marker in (copy / ".done").glob("shard-*"):
        marker.unlink()
    with pytest.raises(StoreError, match="recipe.json of store .* is damaged, and no whole file says"), writer(copy):
        pass


def test_a_store_of_an_earlier_revision_is_read_but_not_continued(copy):
    """Its recipe and markers have no checksums of their own, and its manifest does not list them."""
    for file in (copy / "recipe.json", *(copy / ".done").glob("shard-*")):
        file.write_text(
            json.dumps({key: value for key, value in json.loads(file.read_text()).items() if key != "crc32c"})
        )
    for name in ("arrays", "constants"):
        (copy / ".done" / name).write_text(json.loads((copy / ".done/shard-00000.json").read_text())["fingerprint"])
    manifest = unseal((copy / "manifest.json").read_bytes())
    assert manifest is not None
    manifest["files"] = {n: e for n, e in manifest["files"].items() if n != "recipe.json" and not n.startswith(".done")}
    (copy / "manifest.json").write_bytes(seal(manifest))
    assert verify(copy).problems == [] and values_are_as_written(copy)
    before = digest(copy)
    with pytest.raises(StoreError, match="written by an earlier revision.* delete it and dump again"), writer(copy):
        pass
    assert digest(copy) == before


def test_a_shard_file_of_another_store_is_not_taken_for_its_own(copy, whole, tmp_path):
    """Its chunks are sound and as long as the store's own, so all but its tag is as in the store's file."""
    with writer(tmp_path / "other", "y") as store:
        store.write_constants(CONSTANTS)
        for shard in store.pending():
            frames = {token: make_frame(token) for token in store.layout.tokens(shard)}
            for frame in frames.values():
                frame["query/features"] = frame["query/features"][::-1].copy()
                frame["bev/values"] = frame["bev/values"][::-1].copy()
            store.write_shard(shard, frames)
    for name in ("query/features/c/0/0/0", "bev/values/c/1/0/0"):
        own, foreign = (copy / name).read_bytes(), (tmp_path / "other" / name).read_bytes()
        assert len(own) == len(foreign) and own[-52:] == foreign[-52:] and own != foreign
        (copy / name).write_bytes(foreign)
        for through_zarr in (False, True):
            reader = StoreReader(copy)
            if through_zarr:
                reader.path = None
            with pytest.raises(StoreError, match=f"is damaged: .*{name} is another shard"):
                reader.read(reader.layout.tokens(int(name.split("/c/")[1][0]))[0])
        assert any(problem.startswith(f"{name} has checksum") for problem in verify(copy).problems)
        with pytest.raises(StoreError, match=f"^{name} of .* does not have the checksum it was written with"):
            write(copy)
        write(copy)
        assert digest(copy) == digest(whole)


@pytest.mark.parametrize(
    ("name", "by"),
    [
        (".done/arrays", ".done/constants"),
        (".done/constants", ".done/arrays"),
        (".done/shard-00000.json", ".done/shard-00001.json"),
    ],
)
def test_a_marker_is_not_taken_for_another(copy, whole, name, by):
    """Both are whole and of this dump."""
    shutil.copy(whole / by, copy / name)
    write(copy)
    assert digest(copy) == digest(whole)


RECORDS = ("recipe.json", "manifest.json", ".done/arrays", ".done/constants", ".done/shard-00000.json")


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_in_the_place_of_another_is_not_taken_for_it(tmp_path, name):
    """Each record has a checksum of its own, which is right in any place."""
    path = tmp_path / "store"
    write(path)
    before = digest(path)
    for other in RECORDS:
        shutil.copyfile(path / other, tmp_path / "other")
        if other == name:
            continue
        (path / name).write_bytes((tmp_path / "other").read_bytes())
        assert verify(path).problems, other
        if name == "manifest.json":
            with pytest.raises(StoreError, match=r"manifest.json of store .* \(its content is another file's\)"):
                StoreReader(path)
        write(path)
        assert digest(path) == before, other
