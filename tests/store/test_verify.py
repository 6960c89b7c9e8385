"""``verify`` names everything that is wrong with a store; ``--recompute`` compares it with its expert."""

import json
import re
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from pipeline.dumping.recompute import recompute
from pipeline.errors import FD3DError
from stages.cli import app
from store_schema import StoreReader, StoreWriter, verify
from store_schema.manifest import manifest_checksum, seal
from store_schema.storage import LocalStorage
from tests.store import crash
from tests.store.synthetic import write

SCENES = 4


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "store"
    crash.dump(path, SCENES)
    return path


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "store")


def edit_manifest(store: Path, change, consistent: bool = True) -> None:
    """Change the manifest; ``consistent`` gives it the checksum of its new content."""
    manifest = json.loads((store / "manifest.json").read_text())
    change(manifest)
    if consistent:
        manifest["crc32c"] = manifest_checksum(manifest)
    (store / "manifest.json").write_text(json.dumps(manifest))


def edit_json(file: Path, change) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def rewrite(store: Path, path: str, change) -> None:
    """Change an array's values with zarr, and the manifest's sizes and checksums with them."""
    import zarr

    array = zarr.open_array(store / path)
    values = array[:]
    change(values)
    array[:] = values
    from store_schema import open_storage

    storage = open_storage(store)

    def update(manifest):
        for files in [*manifest["shards"].values(), manifest["files"]]:
            for name in files:
                if name.startswith(f"{path}/c/"):
                    files[name] = {"bytes": storage.sizes([name])[name], **storage.checksum(name)}

    edit_manifest(store, update)


def swap_scenes(manifest) -> None:
    scenes = manifest["scenes"]
    scenes["scene-0001"], scenes["scene-0002"] = scenes["scene-0002"], scenes["scene-0001"]


def drop_last(manifest) -> None:
    manifest["shards"].popitem()


def set_at(row, value):
    def change(values) -> None:
        values[row] = value

    return change


def test_a_sound_store_has_no_problems_and_its_figures_are_right(whole):
    report = verify(whole)
    names = set(crash.digest(whole)) - {"manifest.json"}
    assert report.problems == []
    assert report.files == len(names) and report.bytes == sum((whole / name).stat().st_size for name in names)
    assert report.frames == sum(map(len, crash.make_scenes(SCENES).values()))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda s: shutil.rmtree(s), "it is not there"),
        (lambda s: (s / "manifest.json").unlink(), "its dump is not finished"),
        (lambda s: (s / "manifest.json").write_text("{"), "manifest.json of store .* cannot be read"),
        (lambda s: edit_manifest(s, lambda m: m.pop("scenes")), "lacks or has a wrong 'scenes'"),
        (lambda s: edit_manifest(s, lambda m: m["statistics"].clear(), False), "does not have the checksum that it"),
        (lambda s: edit_manifest(s, lambda m: m["expert"].update(checkpoint_sha256="y")), "recipe.json has expert"),
        (lambda s: edit_manifest(s, swap_scenes), "frame/token does not hold the tokens"),
        (
            lambda s: edit_manifest(s, drop_last),
            r"lists other shards \(2\) than its scenes fill \(3\); the first that differs is 00002",
        ),
        (lambda s: edit_manifest(s, lambda m: m["files"].pop("zarr.json")), "does not list zarr.json"),
        (lambda s: edit_manifest(s, lambda m: m["coverage"].update(bev=0.5)), "has coverage .* the counts give"),
        (lambda s: (s / "query/boxes/c/1/0/0").unlink(), "query/boxes/c/1/0/0 is missing"),
        (lambda s: (s / "query/score/c/0/0").write_bytes(b"abc"), "query/score/c/0/0 has 3 bytes, manifest.json says"),
        (lambda s: (s / "decoder/value_proj_bias/c/0/0").unlink(), "decoder/value_proj_bias/c/0/0 is missing"),
        (lambda s: (s / "letter.txt").write_text("hello"), "letter.txt is not in manifest.json; delete it"),
        (lambda s: ((s / ".tmp").mkdir(), (s / ".tmp/x").touch()), ".tmp/x was left by a killed writer"),
        (
            lambda s: edit_json(s / "bev/values/zarr.json", lambda m: m.update(data_type="float32")),
            "bev/values/zarr.json has data_type = .float32., the schema wants .float16.",
        ),
        (
            lambda s: edit_json(s / "query/boxes/zarr.json", lambda m: m["attributes"].update(units="feet")),
            "query/boxes/zarr.json has attributes.units = .feet., the schema wants",
        ),
        (lambda s: rewrite(s, "bev/count", set_at(0, 9999)), "bev/count has counts beyond 0..1600"),
        (lambda s: rewrite(s, "bev/index", set_at((0, slice(0, 3)), 7)), "bev/index of shard 0 does not rise"),
        (lambda s: rewrite(s, "frame/token", set_at(0, 65)), "frame/token does not hold the tokens"),
    ],
)
def test_each_damage_is_named(copy, damage, message):
    damage(copy)
    problems = verify(copy).problems
    assert any(re.search(message, problem) for problem in problems), problems
    assert not any("\n" in problem for problem in problems)


def test_all_problems_are_reported_and_the_command_fails(copy):
    (copy / "query/boxes/c/1/0/0").unlink()
    (copy / "stray").touch()
    result = CliRunner().invoke(app, ["verify", str(copy)])
    assert isinstance(result.exception, FD3DError) and "has 2 problems" in str(result.exception)
    assert "query/boxes/c/1/0/0 is missing" in result.output and "stray is not in manifest.json" in result.output


def test_the_command_prints_one_line_of_a_sound_store(whole):
    result = CliRunner().invoke(app, ["verify", str(whole)])
    assert result.exit_code == 0
    (line,) = result.stdout.strip().splitlines()
    assert line.startswith(f"{whole} is sound: ") and " MB, 10 frames, " in line


def test_thousands_of_shards_are_looked_through_in_no_time(tmp_path):
    """Opening a store asks for markers and file sizes, one after the other; no folder is listed."""
    shards, arrays = 3000, 20
    scenes = {f"s{i:05d}": [f"{i:032d}"] for i in range(shards)}
    writer = StoreWriter(tmp_path, crash.SCHEMA, {}, scenes, 1)
    (tmp_path / ".done").mkdir()
    (tmp_path / "f").write_bytes(b"x")
    files = {"/".join([*["."] * i, "f"]): {"bytes": 1, "crc32c": ""} for i in range(arrays)}  # 20 names of a file
    for shard in range(shards):
        marker: dict[str, Any] = {"fingerprint": writer.fingerprint, "sums": {}}
        marker["files"] = files if shard != 7 else {"gone": {"bytes": 1}}
        (tmp_path / writer.layout.marker(shard)).write_bytes(seal(marker))
    start = time.perf_counter()
    assert writer.pending() == [7]
    assert time.perf_counter() - start < 10


def test_recomputed_frames_equal_the_stored_ones(store, source, expert_config, expert_checkpoint):
    errors = recompute(StoreReader(store), expert_config, expert_checkpoint, source.index, source.root, count=3, seed=1)
    assert {"bev/values", "pv/0/values", "query/boxes", "query/sampling"} <= errors.keys()
    for name, error in errors.items():
        assert error.values > 0 and error.cells == 0 and error.relative < 1e-3, name
    assert errors["query/boxes"].largest < 1e-3


def test_recompute_sees_another_value(store, source, expert_config, expert_checkpoint, monkeypatch):
    read = StoreReader.read

    def changed(self, token):
        frame = read(self, token)
        return frame | {"bev/values": frame["bev/values"] + np.float16(1), "bev/index": frame["bev/index"] + 1}

    monkeypatch.setattr(StoreReader, "read", changed)
    errors = recompute(StoreReader(store), expert_config, expert_checkpoint, source.index, source.root, count=1)
    assert errors["bev/values"].relative > 0.1 and errors["bev/values"].cells > 0
    assert errors["query/boxes"].relative < 1e-3


def test_recompute_refuses_another_checkpoint_config_or_index(
    store, source, project, expert_config, expert_checkpoint, tmp_path
):
    reader, other = StoreReader(store), tmp_path / "other.pth"
    other.write_bytes(expert_checkpoint.read_bytes() + b"x")
    with pytest.raises(FD3DError, match="was not made by checkpoint .*other.pth: the SHA-256 here is"):
        recompute(reader, expert_config, other, source.index, source.root, 1)
    apprentice = project / "configs/world/apprentice.py"
    with pytest.raises(FD3DError, match="was not made by config .*apprentice.py"):
        recompute(reader, apprentice, expert_checkpoint, source.index, source.root, 1)
    with pytest.raises(FD3DError, match="checkpoint .*none.pth does not exist"):
        recompute(reader, expert_config, tmp_path / "none.pth", source.index, source.root, 1)


def test_the_command_recomputes(store, source, expert_config, expert_checkpoint):
    command = ["verify", str(store), "--recompute", "1", "--config", str(expert_config)]
    command += ["--checkpoint", str(expert_checkpoint), "--index", str(source.index), "--root", str(source.root)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "is sound" in result.output and "bev/values" in result.output and "relative" in result.output


def test_a_store_that_is_mended_meanwhile_is_not_called_damaged(tmp_path, monkeypatch):
    """With the same values, so that only the manifest's stamp tells."""
    write(tmp_path / "s")
    (tmp_path / "s/bev/values/c/0/0/0").write_bytes(b"")
    seen = LocalStorage.list

    def slowly(self: LocalStorage, folder: str = "") -> dict[str, int]:
        found = seen(self, folder)
        if not folder:
            monkeypatch.setattr(LocalStorage, "list", seen)
            write(tmp_path / "s")  # the other dump, from beginning to end
        return found

    monkeypatch.setattr(LocalStorage, "list", slowly)
    assert verify(tmp_path / "s").problems == [
        f"store {tmp_path}/s was dumped again while it was verified; verify it again"
    ]
    assert verify(tmp_path / "s").problems == []


def test_temporary_files_of_a_running_dump_are_no_left_overs(tmp_path):
    """It may look for shards to write for minutes, and leaves a readable store readable."""
    write(tmp_path / "s")
    with LocalStorage(tmp_path / "s").lock():
        (tmp_path / "s/.tmp").mkdir()
        (tmp_path / "s/.tmp/tmpabcd1234").touch()
        assert verify(tmp_path / "s").problems == []
    assert verify(tmp_path / "s").problems == [".tmp/tmpabcd1234 was left by a killed writer; delete it"]
