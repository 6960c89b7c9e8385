"""A store that other code of the project wrote: kept where that code made the same, told and dumped again where it did not."""

import os
import shutil
from dataclasses import replace

import cv2
import numpy as np
import pytest

from pipeline.dumping import session, shared
from pipeline.dumping.dump import dump
from pipeline.dumping.settings import ClusterSettings
from pipeline.dumping.unchanged import Note, _relative
from pipeline.expert.tapped import TappedExpert
from store_schema import OtherStoreError, StoreError, StoreReader, open_storage, verify
from store_schema.manifest import seal, unseal


@pytest.fixture
def edited(monkeypatch) -> str:
    """The digest of code that was edited since the store was made."""
    digest = "e" * 64
    for module in ("dump", "recipe", "shared", "unchanged"):
        monkeypatch.setattr(f"pipeline.dumping.{module}.source_sha256", lambda: digest)
    return digest


def other_rows(monkeypatch, change) -> None:
    """Let the edit change rows before they are written."""
    make = session.store_row

    def edited(*args, **kwargs):
        row = make(*args, **kwargs)
        change(row)
        return row

    monkeypatch.setattr(session, "store_row", edited)


def unfinish(store, shard: int, manifest: bool = False) -> None:
    (store / f".done/shard-{shard:05d}.json").unlink()
    if not manifest:
        (store / "manifest.json").unlink()


def rename_source(store, shard: int, name: str, **content) -> None:
    """Let other code have written a shard."""
    marker = store / f".done/shard-{shard:05d}.json"
    old = unseal(marker.read_bytes())
    assert old is not None
    marker.write_bytes(seal(old | {"source_sha256": name * 64} | content))


def scaled(by: float):
    def change(row):
        row["query/boxes"] = (row["query/boxes"] * np.float32(by)).astype(row["query/boxes"].dtype)

    return change


def fewer(row):
    kept = len(row["bev/index"]) * 95 // 100
    for name in ("index", "values"):
        row[f"bev/{name}"] = row[f"bev/{name}"][:kept]


def moved(row):
    """The same number of cells, some at other places."""
    taken = set(row["bev/index"].tolist())
    free = [cell for cell in range(min(taken), max(taken) + 200) if cell not in taken]
    count = max(len(taken) // 40, 1)
    row["bev/index"] = np.sort(np.r_[row["bev/index"][count:], free[:count]]).astype(row["bev/index"].dtype)


def test_an_edit_that_changes_no_value_keeps_the_store(
    scenes, settings, expert_config, whole, digest, edited, tmp_path, capsys
):
    shutil.copytree(whole, tmp_path / "s")
    dump(expert_config, None, scenes, tmp_path / "s", settings, workers=0)
    assert "now it is eeeeeeeeeeee; shard 0 made again is the same, so the store is kept" in capsys.readouterr().out
    assert digest(tmp_path / "s") == digest(whole)


def test_a_store_is_compared_once_with_each_version_of_the_code(
    scenes, settings, expert_config, whole, digest, edited, tmp_path, capsys, runs, monkeypatch
):
    shutil.copytree(whole, tmp_path / "s")
    dump(expert_config, None, scenes, tmp_path / "s", settings, workers=0)
    first = len(runs)
    assert "so the store is kept" in capsys.readouterr().out and first > 1
    dump(expert_config, None, scenes, tmp_path / "s", settings, workers=0)
    assert len(runs) == first + 1 and "made again" not in capsys.readouterr().out
    assert digest(tmp_path / "s") == digest(whole)
    assert {file.name for file in tmp_path.iterdir()} == {"s", ".s.same"}
    for module in ("dump", "recipe", "shared", "unchanged"):
        monkeypatch.setattr(f"pipeline.dumping.{module}.source_sha256", lambda: "f" * 64)
    dump(expert_config, None, scenes, tmp_path / "s", settings, workers=0)
    assert "now it is ffffffffffff; shard 0 made again is the same" in capsys.readouterr().out


def test_a_note_is_of_one_store_only(whole, tmp_path):
    for name in ("a", "b"):
        shutil.copytree(whole, tmp_path / name)
    manifest = unseal((tmp_path / "b/manifest.json").read_bytes())
    assert manifest is not None
    (tmp_path / "b/manifest.json").write_bytes(seal(manifest | {"source_sha256": "c" * 64}))
    marker = ".done/shard-00000.json"
    a, b = (Note.of(open_storage(tmp_path / name), [marker]) for name in ("a", "b"))
    assert a is not None and b is not None and not a.says("1" * 64)
    a.write("1" * 64)
    assert a.says("1" * 64) and not a.says("2" * 64)
    shutil.copy(a.path, b.path)
    assert not b.says("1" * 64)
    a.path.write_bytes(b"cut")
    assert not a.says("1" * 64)
    a.path.unlink()
    os.mkfifo(a.path)
    assert not a.says("1" * 64)
    a.path.unlink()
    a.write("1" * 64)
    with open(
        tmp_path / "a" / marker, "ab"
    ) as file:  # as a shard of another store with its marker, under the same manifest
        file.write(b" ")
    other = Note.of(open_storage(tmp_path / "a"), [marker])
    assert other is not None and a.says("1" * 64) and not other.says("1" * 64)
    (tmp_path / "a/manifest.json").unlink()
    assert Note.of(open_storage(tmp_path / "a"), []) is None and Note.of(open_storage("memory://note/a"), []) is None
    Note(tmp_path / "b/manifest.json/none", "").write("1" * 64)  # a place that cannot be written


def test_nobody_replaces_a_store_that_is_being_compared(
    scenes, settings, expert_config, whole, edited, tmp_path, monkeypatch
):
    """From the comparison to the end of the dump, what learns codes included."""
    shutil.copytree(whole, tmp_path / "s")
    tried = []

    def locked(call):
        def first(*args, **kwargs):
            with (
                pytest.raises(StoreError, match="is being written by another process"),
                open_storage(tmp_path / "s").lock(),
            ):
                pass
            tried.append(call)
            return call(*args, **kwargs)

        return first

    for module, name in (("engine", "InProcess.again"), ("dump", "learned"), ("engine", "InProcess.run")):
        owner = __import__(f"pipeline.dumping.{module}", fromlist=["x"])
        for part in name.split(".")[:-1]:
            owner = getattr(owner, part)
        monkeypatch.setattr(owner, name.split(".")[-1], locked(getattr(owner, name.split(".")[-1])))
    dump(expert_config, None, scenes, tmp_path / "s", settings, workers=0)
    assert len(tried) == 3
    with open_storage(tmp_path / "s").lock():
        pass


def test_the_same_code_makes_nothing_again(scenes, settings, expert_config, whole, runs, tmp_path):
    shutil.copytree(whole, tmp_path / "s")
    dump(expert_config, None, scenes, tmp_path / "s", settings, workers=0)
    assert len(runs) == 1  # the frame that tells the store's shape


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (scaled(1.01), r"query/boxes of shard 0 made again differs by 9\.\d times"),
        (fewer, "bev/values of shard 0 made again differs by"),
        (moved, "bev/values of shard 0 made again differs by"),
    ],
)
def test_an_edit_that_changes_values_is_told_before_anything_is_deleted(
    scenes, settings, expert_config, whole, digest, edited, tmp_path, capsys, monkeypatch, change, what
):
    other_rows(monkeypatch, change)
    shutil.copytree(whole, tmp_path / "s")
    with pytest.raises(OtherStoreError, match=rf"was made with fd3d's code = \w+, now it is e+, and .*{what}"):
        dump(expert_config, None, scenes, tmp_path / "s", settings, workers=0)
    assert digest(tmp_path / "s") == digest(whole)
    dump(expert_config, None, scenes, tmp_path / "s", settings, workers=0, replace_other=True)
    assert "it is deleted" in capsys.readouterr().out
    assert StoreReader(tmp_path / "s").manifest["source_sha256"] == edited and verify(tmp_path / "s").problems == []
    dump(expert_config, None, scenes, tmp_path / "s", settings, workers=0)  # now its own


def test_last_bits_of_another_processor_keep_the_store(
    scenes, settings, expert_config, whole, digest, edited, tmp_path, capsys, monkeypatch
):
    other_rows(monkeypatch, scaled(1 + 1e-5))
    shutil.copytree(whole, tmp_path / "s")
    dump(expert_config, None, scenes, tmp_path / "s", settings, workers=0)
    assert "shard 0 made again differs by last bits, most of all query/boxes, so the store is kept" in (
        capsys.readouterr().out
    )
    assert digest(tmp_path / "s") == digest(whole)


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("section", ["moments", "coverage"])
def test_sums_that_changed_are_told_too(
    scenes, settings, expert_config, whole, edited, tmp_path, monkeypatch, section, finished
):
    """Their rows are the same, and trainings and the report read the sums."""
    sums_of = session.sums_of

    def other(writer, result):
        sums = sums_of(writer, result)
        entry = next(iter(sums[section].values()))
        key = next(key for key in entry if np.any(entry[key]))
        entry[key] = (np.asarray(entry[key]) * (1 + 5e-4)).tolist()
        return sums

    monkeypatch.setattr(session, "sums_of", other)
    shutil.copytree(whole, tmp_path / "s")
    if not finished:
        unfinish(tmp_path / "s", 3)
    with pytest.raises(OtherStoreError, match=f"{section} of .* made again differs"):
        dump(expert_config, None, scenes, tmp_path / "s", settings, workers=0)


def test_a_dump_that_was_stopped_goes_on_after_an_edit_that_changes_nothing(
    scenes, settings, expert_config, whole, edited, tmp_path
):
    shutil.copytree(whole, tmp_path / "s")
    unfinish(tmp_path / "s", 3)
    before = StoreReader(whole).manifest
    dump(expert_config, None, scenes, tmp_path / "s", settings, workers=0)
    manifest = StoreReader(tmp_path / "s").manifest
    assert manifest["source_sha256"] == [before["source_sha256"], edited]
    assert manifest["statistics"] == before["statistics"]


@pytest.mark.parametrize("manifest", [True, False])
def test_a_dump_that_was_stopped_does_not_go_on_after_an_edit_that_changes_values(
    scenes, settings, expert_config, whole, edited, tmp_path, monkeypatch, manifest
):
    """Not even last bits, which would mix two versions in one store; also where a finished store has lost a marker."""
    other_rows(monkeypatch, scaled(1 + 1e-5))
    shutil.copytree(whole, tmp_path / "s")
    unfinish(tmp_path / "s", 3, manifest)
    with pytest.raises(OtherStoreError, match="and a file of shard 0 made again differs; delete the store"):
        dump(expert_config, None, scenes, tmp_path / "s", settings, workers=0)


@pytest.mark.parametrize("values", ["pq", "pca"])
def test_codes_are_learned_anew_where_values_changed(
    scenes, settings, expert_config, edited, digest, tmp_path, monkeypatch, capsys, values
):
    with monkeypatch.context() as before:
        for module in ("dump", "recipe", "shared", "unchanged"):
            before.setattr(f"pipeline.dumping.{module}.source_sha256", lambda: "b" * 64)
        coded = replace(settings, values=values, code_frames=12)
        dump(expert_config, None, scenes, tmp_path / "s", coded, workers=0)
    made = digest(tmp_path / "s")
    dump(expert_config, None, scenes, tmp_path / "s", coded, workers=0)
    assert digest(tmp_path / "s") == made and "were learned by" not in capsys.readouterr().out
    with monkeypatch.context() as other:
        other.setattr("pipeline.dumping.dump.learning_sha256", lambda: "d" * 64)
        dump(expert_config, None, scenes, tmp_path / "s", coded, workers=0)
    told = f"were learned by another version of pipeline/dumping/learning.py or store_schema/codes.py ({shared.learning_sha256()[:12]}, now dddddddddddd)"
    assert told in capsys.readouterr().out and digest(tmp_path / "s") == made
    run = TappedExpert.run

    def brighter(self, batch):
        frames, states = run(self, batch)
        return [replace(frame, pv=[level * 3 for level in frame.pv]) for frame in frames], states

    monkeypatch.setattr(TappedExpert, "run", brighter)
    for module in ("dump", "recipe", "shared", "unchanged"):
        monkeypatch.setattr(f"pipeline.dumping.{module}.source_sha256", lambda: "f" * 64)
    dump(expert_config, None, scenes, tmp_path / "s", coded, workers=0, replace_other=True)
    books = [name for name in made if name.startswith("code/") and "/c/" in name]
    assert books and any(made[name] != digest(tmp_path / "s").get(name) for name in books)


def test_workers_make_the_shard_again(scenes, settings, expert_config, whole, tmp_path, capsys):
    """Their code is the main process's, so the store's digest is changed here."""
    shutil.copytree(whole, tmp_path / "s")
    for shard in range(6):
        rename_source(tmp_path / "s", shard, "a")
    (tmp_path / "s/manifest.json").unlink()
    dump(expert_config, None, scenes, tmp_path / "s", settings, workers=0, cluster=ClusterSettings(workers=2))
    assert "fd3d's code = aaaaaaaaaaaa" in capsys.readouterr().out
    assert StoreReader(tmp_path / "s").manifest["source_sha256"] == "a" * 64


def test_each_code_that_wrote_a_part_is_compared(scenes, settings, expert_config, whole, tmp_path, runs):
    shutil.copytree(whole, tmp_path / "s")
    rename_source(tmp_path / "s", 1, "a")
    wrong = unseal((tmp_path / "s/.done/shard-00004.json").read_bytes())
    assert wrong is not None
    name = next(iter(wrong["files"]))
    files = wrong["files"] | {name: wrong["files"][name] | {"crc32": "00000000"}}
    rename_source(tmp_path / "s", 4, "b", files=files)
    (tmp_path / "s/manifest.json").unlink()
    (tmp_path / "s/.done/shard-00005.json").unlink()
    with pytest.raises(
        OtherStoreError, match="fd3d's code = b+, now it is .*, and a file of shard 4 made again differs"
    ):
        dump(expert_config, None, scenes, tmp_path / "s", settings, workers=0)
    assert len(runs) == 1 + 2 * 2  # two shards of two frames


@pytest.mark.parametrize(("by", "finished", "what"), [(1.01, True, " by 9"), (1.0005, False, ";")])
def test_constants_that_changed_are_told(
    scenes, settings, expert_config, whole, edited, tmp_path, monkeypatch, by, finished, what
):
    made = session.stored_constants

    def other(*args):
        return {path: array * np.float32(by) for path, array in made(*args).items()}

    monkeypatch.setattr(session, "stored_constants", other)
    shutil.copytree(whole, tmp_path / "s")
    if not finished:
        unfinish(tmp_path / "s", 3)
    with pytest.raises(OtherStoreError, match=f"decoder/.* of shard 0 made again differs{what}"):
        dump(expert_config, None, scenes, tmp_path / "s", settings, workers=0)


def test_a_damaged_shard_says_nothing_of_the_code(
    scenes, settings, expert_config, whole, edited, tmp_path, monkeypatch, capsys
):
    """Shard 0 cannot be read, so shard 1 is compared; the damage is found by the command that looks for it."""
    other_rows(monkeypatch, scaled(1 + 1e-5))
    shutil.copytree(whole, tmp_path / "s")
    file = tmp_path / "s/query/boxes/c/0/0/0"
    content = file.read_bytes()
    file.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    with pytest.raises(StoreError, match="query/boxes/c/0/0/0 of .* does not have the checksum it was written with"):
        dump(expert_config, None, scenes, tmp_path / "s", settings, workers=0)
    assert "shard 1 made again differs by last bits" in capsys.readouterr().out


def test_another_library_is_told_before_the_code(scenes, settings, expert_config, whole, edited, tmp_path):
    shutil.copytree(whole, tmp_path / "s")
    unfinish(tmp_path / "s", 3)
    for shard in (0, 1, 2, 4, 5):
        rename_source(tmp_path / "s", shard, "a", libraries={"torch": "0.1"})
    with pytest.raises(StoreError, match="shard 0 of .* was written with .*, now it is"):
        dump(expert_config, None, scenes, tmp_path / "s", settings, workers=0)
    dump(expert_config, None, scenes, tmp_path / "s", settings, workers=0, allow_versions=True)
    assert StoreReader(tmp_path / "s").manifest["source_sha256"] == ["a" * 64, edited]


def test_the_digest_is_of_the_code_that_was_imported(tmp_path, monkeypatch):
    before = shared.source_sha256()
    for name in ("pipeline/a.py", "pipeline/deep/b.py", "store_schema/c.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    monkeypatch.setattr(shared, "_CODE", tmp_path)
    assert shared.source_sha256() == before
    there = shared._source()
    (tmp_path / "pipeline/.#a.py").symlink_to("someone@host.1")  # an editor's lock
    (tmp_path / "pipeline/folder.py").mkdir()
    (tmp_path / "pipeline/.ipynb_checkpoints").mkdir()
    (tmp_path / "pipeline/.ipynb_checkpoints/a.py").write_text("old")
    assert shared._source() == there != before
    (tmp_path / "store_schema/c.py").write_text("edited")
    assert shared._source() != there


def test_another_shape_and_what_is_not_finite_are_no_small_differences():
    one, two = np.ones(2), np.ones((2, 2))
    assert _relative(one, one) == 0 and _relative(one, one * 2) == 0.5
    assert _relative(one, two) == _relative(one, one * np.nan) == _relative(one * np.nan, one) == np.inf


@pytest.mark.parametrize("gone", ["manifest.json", "zarr.json"])
def test_other_code_s_store_that_cannot_be_opened_is_compared_by_its_bits(
    scenes, settings, expert_config, whole, edited, tmp_path, monkeypatch, gone
):
    shutil.copytree(whole, tmp_path / "same")
    (tmp_path / "same" / gone).unlink()
    dump(expert_config, None, scenes, tmp_path / "same", settings, workers=0)
    other_rows(monkeypatch, scaled(2.0))
    shutil.copytree(whole, tmp_path / "s")
    (tmp_path / "s" / gone).unlink()
    with pytest.raises(OtherStoreError, match="made with fd3d's code = "):
        dump(expert_config, None, scenes, tmp_path / "s", settings, workers=0)


def test_other_versions_that_are_allowed_do_not_allow_other_code(
    scenes, settings, expert_config, whole, edited, tmp_path, monkeypatch
):
    other_rows(monkeypatch, scaled(2.0))
    shutil.copytree(whole, tmp_path / "s")
    rename_source(tmp_path / "s", 0, "c", libraries={"torch": "0"})
    unfinish(tmp_path / "s", 1)
    with pytest.raises(OtherStoreError, match="made with fd3d's code = "):
        dump(expert_config, None, scenes, tmp_path / "s", settings, workers=0, allow_versions=True)


def test_codes_that_are_damaged_do_not_let_other_code_s_shards_in(
    scenes, settings, expert_config, edited, tmp_path, monkeypatch
):
    with monkeypatch.context() as before:
        for module in ("dump", "recipe", "shared", "unchanged"):
            before.setattr(f"pipeline.dumping.{module}.source_sha256", lambda: "b" * 64)
        coded = replace(settings, values="pca", code_frames=12)
        dump(expert_config, None, scenes, tmp_path / "s", coded, workers=0)
    file = next(path for path in sorted((tmp_path / "s/code").rglob("c/*")) if path.is_file())
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(OtherStoreError, match="its codes are damaged, so its shards cannot be compared"):
        dump(expert_config, None, scenes, tmp_path / "s", coded, workers=0)


def brighter(monkeypatch) -> None:
    """Another OpenCV, by whose version and pixels."""
    decode = cv2.imdecode
    monkeypatch.setattr(cv2, "__version__", "9.9.9")
    monkeypatch.setattr(
        cv2, "imdecode", lambda *given: np.clip(decode(*given).astype(int) + 8, 0, 255).astype(np.uint8)
    )


def test_another_opencv_is_another_library(scenes, settings, expert_config, whole, tmp_path, monkeypatch):
    assert StoreReader(whole).manifest["libraries"]["opencv"] == cv2.__version__
    shutil.copytree(whole, tmp_path / "s")
    unfinish(tmp_path / "s", 3)
    brighter(monkeypatch)
    with pytest.raises(StoreError, match=r"shard 0 of .* was written with opencv .*, now it is 9.9.9"):
        dump(expert_config, None, scenes, tmp_path / "s", settings, workers=0)


@pytest.mark.parametrize("same", [True, False])
def test_shards_that_list_no_opencv_are_compared_by_their_bits(
    scenes, settings, expert_config, whole, edited, tmp_path, monkeypatch, capsys, same
):
    """As of a dump before OpenCV was listed, which had other code than today's."""
    shutil.copytree(whole, tmp_path / "s")
    unfinish(tmp_path / "s", 3)
    libraries = StoreReader(whole).manifest["libraries"]
    listed = {name: version for name, version in libraries.items() if name not in ("opencv", "numba", "mmengine")}
    for shard in (0, 1, 2, 4, 5):
        rename_source(tmp_path / "s", shard, "a", libraries=listed)
    if not same:
        brighter(monkeypatch)
        with pytest.raises(OtherStoreError, match="made with fd3d's code = aaaaaaaaaaaa, .* made again differs"):
            dump(expert_config, None, scenes, tmp_path / "s", settings, workers=0)
        return
    dump(expert_config, None, scenes, tmp_path / "s", settings, workers=0)
    assert "shard 0 made again is the same, so the store is kept" in capsys.readouterr().out
    manifest = StoreReader(tmp_path / "s").manifest
    assert manifest["libraries"]["opencv"] == ["unknown", cv2.__version__]
    assert manifest["libraries"]["torch"] == libraries["torch"]
