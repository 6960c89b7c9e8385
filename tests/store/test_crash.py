"""Kills, full disks, two dumps at once: nothing wrong is readable, and a resumed dump ends in the same bytes."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from store_schema import StoreError, StoreReader, verify
from tests.store import crash

PROJECT = Path(__file__).resolve().parents[2]
STATISTICS = {"bev": {"mean": [0.0] * 32, "std": [1.0] * 32}}
SCENES = 4


def python(code: str, *args: object) -> subprocess.Popen:
    """Run code beside this test."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)],
        cwd=PROJECT,
        env=os.environ | {"PYTHONPATH": str(PROJECT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store whose dump nothing disturbed."""
    path = tmp_path_factory.mktemp("calm") / "store"
    crash.dump(path, SCENES)
    return path


def test_random_kills_of_main_and_writer_processes(tmp_path, capsys):
    counts = crash.crash(tmp_path, kills=5, scenes=16, workers=2, seed=1)
    assert counts["differing"] == counts["wrong"] == 0
    # writers that outlive a killed main process may leave the later kills nothing to hit
    assert counts["writing"] + counts["finalising"] >= 1, "the kills came too late to mean anything"


# A dump that kills itself at a given call of rename or unlink, before it or after it; then what the next dump makes of it.
# Forks come before any use of zarr, which owns threads.
EVERY_WINDOW = """
import os, signal, sys
from pathlib import Path
from tests.store import crash
calm, folder, scenes, step, first = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5])

def fork(run):
    child = os.fork()
    if not child:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        try:
            run()
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1]

def dying(path, moment):
    calls = 0
    def around(call):
        def counted(*args, **kwargs):
            nonlocal calls
            for then in (lambda: None, lambda: call(*args, **kwargs)):
                result = then()
                if calls == moment:
                    os.kill(os.getpid(), signal.SIGKILL)
                calls += 1
            return result
        return counted
    os.replace, os.unlink = around(os.replace), around(os.unlink)
    crash.dump(path, scenes)

def check(path):
    assert not crash.wrong(path), crash.wrong(path)

moment = first
while True:
    path = folder / str(moment)
    if fork(lambda: dying(path, moment)) == 0:
        break
    assert fork(lambda: check(path)) == 0, f"wrong after a kill at {moment}"
    assert fork(lambda: crash.dump(path, scenes)) == 0, f"no resume after a kill at {moment}"
    assert crash.digest(path) == crash.digest(calm), f"other bytes after a kill at {moment}"
    moment += step
print(moment)
"""


def test_a_kill_at_any_rename_or_removal(calm, tmp_path):
    """Between temporary file and rename, data and marker, last marker and manifest, and all others; one in thirteen of them."""
    process = python(EVERY_WINDOW, calm, tmp_path, SCENES, 13, 5)
    out, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    assert int(out) > 100


def test_while_shards_are_redone_nothing_is_readable(calm, tmp_path):
    path = tmp_path / "store"
    crash.dump(path, SCENES)
    (path / ".done" / "shard-00001.json").unlink()
    with crash.open_writer(path, SCENES) as store:
        assert store.pending() == [1]
        with pytest.raises(StoreError, match="its dump is not finished"):
            StoreReader(path)
        crash.write_shard(store.shards, 1)
        store.finalise(STATISTICS)
    assert crash.digest(path) == crash.digest(calm)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: (path / ".done" / "shard-00000.json").write_bytes(b""),
        lambda path: (path / ".done" / "shard-00000.json").write_text('{"fingerprint": "another", "files": {}}'),
        lambda path: (path / "query/boxes/c/0/0/0").unlink(),
        lambda path: (path / "bev/values/c/0/0/0").write_bytes(b"short"),
        lambda path: ((path / ".tmp").mkdir(), (path / ".tmp" / "tmpab_d12ef").write_text("half")),
    ],
    ids=["empty marker", "marker of another dump", "missing file", "short file", "temporary file"],
)
def test_what_is_damaged_is_redone_by_the_next_dump(calm, tmp_path, damage):
    crash.dump(tmp_path / "store", SCENES)
    damage(tmp_path / "store")
    crash.dump(tmp_path / "store", SCENES)
    assert crash.digest(tmp_path / "store") == crash.digest(calm)


def test_an_array_that_is_empty_now_leaves_no_old_file_behind(tmp_path):
    """An earlier attempt wrote cells, this one has none: a file left there would be read in place of zeros."""
    empty = {token: crash.make_frame(token) for tokens in crash.make_scenes(1).values() for token in tokens}
    for frame in empty.values():
        frame |= {name: array[:0] for name, array in frame.items() if name.startswith("bev/")}
    with crash.open_writer(tmp_path / "store", 1) as store:
        store.write_constants(crash.make_constants())
        crash.write_shard(store.shards, 0)
        assert (tmp_path / "store" / "bev/values/c/0/0/0").exists()
        store.write_shard(0, empty)
        store.finalise(STATISTICS)
    assert not (tmp_path / "store" / "bev/values/c/0/0/0").exists()
    assert verify(tmp_path / "store").problems == []


def test_a_writer_process_that_outlived_its_dump_does_not_touch_a_finished_store(tmp_path):
    with crash.open_writer(tmp_path / "store", 1) as store:
        orphan = store.shards
    crash.dump(tmp_path / "store", 1)
    with pytest.raises(StoreError, match="is finished"):
        crash.write_shard(orphan, 0)
    assert verify(tmp_path / "store").problems == []


def test_of_two_dumps_at_once_one_is_refused(tmp_path):
    code = "import sys; from tests.store import crash\nwith crash.open_writer(sys.argv[1], 4):\n print('open', flush=True); sys.stdin.read()"
    first = python(code, tmp_path / "store")
    assert first.stdout is not None and first.stdout.readline() == "open\n"
    second = python("import sys; from tests.store import crash; crash.dump(sys.argv[1], 4)", tmp_path / "store")
    error = second.communicate(timeout=60)[1]
    assert second.returncode == 1 and "is being written by another process" in error.splitlines()[-1]
    first.kill()  # its lock goes with it
    first.wait()
    crash.dump(tmp_path / "store", 4)
    assert verify(tmp_path / "store").problems == []


def test_a_full_disk_is_one_line_and_resumes_when_there_is_room(calm, tmp_path):
    """A limit on the size of files stands for the disk: writing fails within a file, as it does on a full disk."""
    path, limits = tmp_path / "store", resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, limits[1]))
        with pytest.raises(StoreError, match=r"cannot be written: File too large \(\d+ MB free\)") as caught:
            crash.dump(path, SCENES)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(caught.value) and list((path / ".tmp").iterdir()) == []
    with pytest.raises(StoreError, match="cannot be read"):
        StoreReader(path)
    crash.dump(path, SCENES)
    assert crash.digest(path) == crash.digest(calm)


@pytest.fixture
def small_disk(tmp_path: Path):
    """A file system of 1 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("no right to mount a tmpfs")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def test_a_small_tmpfs_fills_up_and_is_enlarged(small_disk, tmp_path):
    scenes = 16
    with pytest.raises(
        StoreError, match=r"cannot be written: No space left on device \(0 MB free\): no space or no inodes left"
    ):
        crash.dump(small_disk / "store", scenes)
    done = list((small_disk / "store" / ".done").glob("shard-*"))
    assert done and crash.wrong(small_disk / "store") == []
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    crash.dump(small_disk / "store", scenes)
    crash.dump(tmp_path / "calm", scenes)
    assert crash.digest(small_disk / "store") == crash.digest(tmp_path / "calm")


def test_a_flipped_bit_in_any_array_is_found_by_verify_and_by_finalise(tmp_path):
    path, rng = tmp_path / "store", np.random.default_rng(0)
    crash.dump(path, SCENES)
    for array in crash.SCHEMA.arrays():
        files = sorted(file for file in (path / array / "c").rglob("*") if file.is_file())
        for _ in range(3):
            file = files[rng.integers(len(files))]
            whole = file.read_bytes()
            bits = bytearray(whole)
            bits[rng.integers(len(bits))] ^= 1 << rng.integers(8)
            file.write_bytes(bits)
            name = str(file.relative_to(path))
            assert any(problem.startswith(f"{name} has checksum") for problem in verify(path).problems), name
        # the file stays damaged: the next dump finds it, nothing is readable, and the one after it mends it
        with crash.open_writer(path, SCENES) as store:
            assert store.pending() == []
            with pytest.raises(StoreError, match=rf"^{array}/c/.* does not have the checksum"):
                store.finalise(STATISTICS)
        with pytest.raises(StoreError, match="its dump is not finished"):
            StoreReader(path)
        crash.dump(path, SCENES)
        assert verify(path).problems == []


def test_a_disk_without_inodes_is_told_though_bytes_are_free(small_disk, tmp_path):
    subprocess.run(["mount", "-o", "remount,size=64m,nr_inodes=60", small_disk], check=True)
    told = r"cannot be written: No space left on device \((5\d|6\d) MB free\): no space or no inodes left \(df -h, df -i\); what is done stays"
    with pytest.raises(StoreError, match=told):
        crash.dump(small_disk / "store", 16)
    subprocess.run(["mount", "-o", "remount,nr_inodes=6000", small_disk], check=True)
    crash.dump(small_disk / "store", 16)
    assert crash.wrong(small_disk / "store") == []
