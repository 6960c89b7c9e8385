"""Stores on an S3-compatible server that the test starts."""

import logging
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pipeline.dumping.early import place_of
from store_schema import StoreError, StoreReader, StoreWriter, open_storage, verify
from store_schema.storage import LOCK, RemoteStorage, remote
from tests.store import crash

PROJECT = Path(__file__).resolve().parents[2]
SCENES = 3  # two shards
# several leases and beats must fit a test
LEASE = 1.2


@pytest.fixture(scope="module")
def server():
    pytest.importorskip("moto", reason="moto[server] is not installed (extra 'dev')")
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    variables = {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        import s3fs

        s3fs.S3FileSystem().mkdir("bucket")
        yield f"http://127.0.0.1:{port}"
        s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


@pytest.fixture
def url(server: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(remote, "LEASE_SECONDS", LEASE)
    return f"s3://bucket/{request.node.name.strip('[]')}/store"


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("local") / "store"
    crash.dump(path, SCENES)
    return path


def contents(url: str) -> dict[str, bytes]:
    """Every object of a store by name."""
    remote = open_storage(url)
    return remote.read_many(remote.list())


def start(code: str, url: str) -> subprocess.Popen:
    code = f"import sys; from tests.store import crash; from store_schema.storage import remote; remote.LEASE_SECONDS = {LEASE}\n{code}"
    return subprocess.Popen(
        [sys.executable, "-c", code, url],
        cwd=PROJECT,
        env=os.environ | {"PYTHONPATH": str(PROJECT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_dump_to_s3_has_the_same_bytes_and_reads_alike(url, local):
    crash.dump(url, SCENES)
    assert contents(url) == {name: (local / name).read_bytes() for name in crash.digest(local)}
    reader, near = StoreReader(url), StoreReader(local)
    for token in near.tokens:
        back, want = reader.read(token), near.read(token)
        assert back.keys() == want.keys()
        for name in want:
            np.testing.assert_array_equal(back[name], want[name])
    np.testing.assert_array_equal(
        reader.constants["decoder/value_proj_weight"], near.constants["decoder/value_proj_weight"]
    )
    report = verify(url)
    assert report.problems == [] and report.frames == len(near.tokens) and report.files > 30


def test_options_reach_the_file_system(server, url, monkeypatch):
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    options = {"endpoint_url": server, "key": "test", "secret": "test"}
    with StoreWriter(url, crash.SCHEMA, {"expert": {}}, crash.make_scenes(1), 4, options) as store:
        store.write_constants(crash.make_constants())
        crash.write_shard(store.shards, 0)
        store.finalise({})
    assert len(StoreReader(url, options).tokens) == 1 and verify(url, options).problems == []


def test_a_dump_killed_while_writing_to_s3_resumes(url, local):
    slow = "import time; write = crash.write_shard\ndef slowly(*a):\n write(*a); print('shard', flush=True); time.sleep(0.3)\n"
    process = start(f"{slow}crash.write_shard = slowly\ncrash.dump(sys.argv[1], {SCENES})", url)
    assert process.stdout is not None
    while process.stdout.readline() != "shard\n":
        assert process.poll() is None, process.stderr and process.stderr.read()
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with pytest.raises(StoreError, match=r"not finished \(shards written: [12]\)"):
        StoreReader(url)
    begun = time.monotonic()
    crash.dump(url, SCENES)  # waits until the dead process's lease has run out
    assert time.monotonic() - begun > LEASE
    assert contents(url) == {name: (local / name).read_bytes() for name in crash.digest(local)}


def test_damage_on_s3_is_found_and_mended(url):
    """A changed byte by verify and finalise; objects that are gone or have another length by the next dump."""
    crash.dump(url, SCENES)
    remote, name = open_storage(url), "bev/values/c/0/0/0"
    data = bytearray(remote.read(name))
    data[len(data) // 2] ^= 1
    remote.write(name, bytes(data))
    assert any(problem.startswith(f"{name} has checksum") for problem in verify(url).problems)
    remote.delete("query/boxes/c/1/0/0")
    with crash.open_writer(url, SCENES) as store:
        assert store.pending() == [1]
        with pytest.raises(StoreError, match="its dump is not finished"):
            StoreReader(url)
        crash.write_shard(store.shards, 1)
        with pytest.raises(StoreError, match=f"{name} of s3://"):
            store.finalise({})
        assert store.pending() == [0]
    remote.write("bev/values/c/1/0/0", b"short")
    crash.dump(url, SCENES)
    assert verify(url).problems == []


def test_of_two_dumps_at_once_on_s3_one_is_refused_at_once(url):
    hold = f"with crash.open_writer(sys.argv[1], {SCENES}):\n print('open', flush=True); sys.stdin.read()"
    process = start(f"import time\n{hold.replace('sys.stdin.read()', 'time.sleep(60)')}", url)
    assert process.stdout is not None and process.stdout.readline() == "open\n"
    begun = time.monotonic()
    with pytest.raises(StoreError, match=rf"is being written by process {process.pid} on "):
        crash.dump(url, SCENES)
    assert time.monotonic() - begun < LEASE
    process.kill()
    process.wait()
    crash.dump(url, SCENES)
    assert LOCK not in open_storage(url).list()  # given back at the end


def test_a_dump_whose_lease_was_taken_over_stops(url, monkeypatch):
    monkeypatch.setattr(remote, "LEASE_SECONDS", 0.3)
    with crash.open_writer(url, SCENES) as store:
        said = ""
        for _ in range(50):  # a renewal that had begun may write over the first one
            open_storage(url).write(LOCK, b"another 1 process 1 on elsewhere")
            time.sleep(0.2)
            with pytest.raises(StoreError) as caught:
                store.write_shard(0, {})  # refused in any case: its frames are missing
            said = str(caught.value)
            if "was given other frames" not in said:
                break
        assert "was taken over by another process" in said
    assert open_storage(url).read(LOCK).startswith(b"another")  # not ours to remove


def test_an_object_is_created_once_only(url):
    """What the lock stands on: S3 refuses a conditional PUT."""
    remote = open_storage(url)
    assert isinstance(remote, RemoteStorage)
    remote.create("one", b"first")
    with pytest.raises(FileExistsError):
        remote.create("one", b"second")
    assert remote.read("one") == b"first"


def test_a_server_that_is_not_there_is_one_line():
    options = {
        "endpoint_url": "http://127.0.0.1:9",
        "key": "a",
        "secret": "b",
        "config_kwargs": {"retries": {"total_max_attempts": 1}, "connect_timeout": 1},
    }
    pytest.importorskip("s3fs", reason="s3fs is not installed (extra 's3')")
    with pytest.raises(StoreError, match="store s3://nowhere/store cannot be read: .*127.0.0.1:9") as caught:
        StoreReader("s3://nowhere/store", options)
    assert "\n" not in str(caught.value)


@pytest.fixture
def mute(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server that takes connections, and says nothing."""
    monkeypatch.setattr(remote, "ANSWER", 1)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def test_a_server_that_does_not_answer_is_one_line(mute, monkeypatch):
    for package in ("s3fs", "aiohttp"):
        pytest.importorskip(package, reason=f"{package} is not installed (extra 's3')")
    for name, value in (("ENDPOINT_URL", mute), ("ACCESS_KEY_ID", "a"), ("SECRET_ACCESS_KEY", "b")):
        monkeypatch.setenv(f"AWS_{name}", value)
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()  # made with the endpoint of another test
    web, s3 = f"{mute}/store", open_storage("s3://nowhere/store")
    told = f"{mute} did not answer within 1 s; check URL and access, then run again"
    for call, line in (
        (lambda: StoreReader(s3), f"store s3://nowhere/store cannot be read: {told}"),
        (lambda: place_of(str(s3)), f"store s3://nowhere/store cannot be read: {told}"),
        (lambda: s3.lock().__enter__(), f"store s3://nowhere/store cannot be read: {told}"),
        (lambda: StoreReader(web), f"store {web} cannot be read: {told.replace(mute, 'its server')}"),
    ):
        begun = time.monotonic()
        with pytest.raises(StoreError) as caught:
            call()
        assert str(caught.value) == line and time.monotonic() - begun < 10
    begun = time.monotonic()
    with pytest.raises(StoreError, match=f"store {web} cannot be read: "):
        open_storage(web).read("manifest.json")
    assert time.monotonic() - begun < 10
    s3fs.S3FileSystem.clear_instance_cache()


def test_other_urls(tmp_path):
    pytest.importorskip("fsspec", reason="fsspec is not installed")
    crash.dump(f"file://{tmp_path}/a%20store", 1)
    assert verify(tmp_path / "a store").problems == []
    crash.dump("memory://store", 1)  # lives and ends with this process
    assert verify("memory://store").problems == []
    with pytest.raises(StoreError, match="is not understood: .*; give a path or a URL"):
        open_storage("nonsense://x")


@pytest.mark.parametrize("inside", ["", "a/store"])
def test_a_store_in_an_archive(tmp_path, local, monkeypatch, inside):
    pytest.importorskip("fsspec", reason="fsspec is not installed")
    shutil.copytree(local, tmp_path / "all" / inside)
    archive = shutil.make_archive(str(tmp_path / "store"), "zip", tmp_path / "all")
    url = f"zip://{inside}::{archive}"
    assert open_storage(url).list() == open_storage(local).list()
    assert verify(url).problems == []
    reader, near = StoreReader(url), StoreReader(local)
    with monkeypatch.context() as patch:
        patch.setattr(RemoteStorage, "read", lambda storage, name: pytest.fail(f"{name} is read again"))
        for token in near.tokens:
            for name, want in near.read(token).items():
                np.testing.assert_array_equal(reader.read(token)[name], want)
    again = pickle.loads(pickle.dumps(reader))
    assert again.read(near.tokens[0]).keys() == near.read(near.tokens[0]).keys()


@pytest.mark.parametrize(
    ("content", "told"), [(None, "No such file or directory: .*s.zip"), (b"PK", "File is not a zip file")]
)
def test_an_archive_that_is_none_is_one_line(tmp_path, content, told):
    pytest.importorskip("fsspec", reason="fsspec is not installed")
    if content is not None:
        (tmp_path / "s.zip").write_bytes(content)
    for look in (verify, StoreReader):
        with pytest.raises(
            StoreError,
            match=f"^store zip://::.*s.zip cannot be read: .*{told}.*; check URL and access, then run again$",
        ):
            look(f"zip://::{tmp_path}/s.zip")


def test_without_the_package_the_extra_is_named():
    pytest.importorskip("fsspec", reason="fsspec is not installed")
    code = (
        "import sys; sys.modules['s3fs'] = None; from store_schema import StoreReader; StoreReader('s3://bucket/store')"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True)
    assert "StoreError: store s3://bucket/store needs fd3d[s3]: " in out.stderr.splitlines()[-1]


def test_a_store_at_a_buckets_root_and_data_beside_a_store_are_never_deleted(server, url):
    import s3fs

    fs = s3fs.S3FileSystem(use_listings_cache=False)
    fs.mkdir("rooted")
    crash.dump("s3://rooted", 1)
    fs.pipe_file("rooted/team/raw.bin", b"precious")
    with pytest.raises(StoreError, match="s3://rooted is the root of a bucket, where nothing is deleted"):
        open_storage("s3://rooted").clear()
    other = crash.open_writer("s3://rooted", 1, "another")
    other.replacing = lambda error: None
    with pytest.raises(StoreError, match="is the root of a bucket"), other:
        pass
    assert verify("s3://rooted").problems == ["team/raw.bin is not in manifest.json; delete it"]
    crash.dump(url, 1)
    beside = [f"{url}/mine.txt", f"{url}-v2/raw.bin"]  # the second has the store's name for a prefix
    for path in beside:
        fs.pipe_file(path, b"precious")
    open_storage(url).clear()
    assert [fs.cat_file(path) for path in beside] == [b"precious"] * 2
    assert list(open_storage(url).list()) == ["mine.txt"]


def test_another_store_within_one_on_s3_is_named_once(url, local):
    crash.dump(url, SCENES)
    for name in crash.digest(local):
        open_storage(url).write(f"night/{name}", (local / name).read_bytes())
    assert verify(url).problems == ["night is another store; move it out of this one"]


def test_a_store_replaced_on_s3_is_noticed_and_an_object_that_is_gone_is_not_zeros(url):
    crash.dump(url, SCENES)
    reader = StoreReader(url)
    first, last = reader.tokens[0], reader.tokens[-1]
    reader.read(first)
    open_storage(url).delete("query/boxes/c/0/0/0")
    with pytest.raises(StoreError, match="is damaged: query/boxes/c/0/0/0 is missing"):
        reader.read(first)
    open_storage(url).clear()
    with pytest.raises(StoreError, match="was deleted or is being dumped again"):
        reader.read(first)
    with crash.open_writer(url, SCENES, "another") as store:
        store.write_constants(crash.make_constants())
        for shard in store.pending():
            crash.write_shard(store.shards, shard)
        store.finalise({})
    for token in (first, last):
        with pytest.raises(
            StoreError, match="was replaced since it was opened: expert.checkpoint_sha256 was crash, now"
        ):
            reader.read(token)


def test_a_bucket_that_is_not_there_is_one_line(server):
    with pytest.raises(StoreError, match="s3://none/store cannot be written: its bucket is not there; create it"):
        crash.dump("s3://none/store", 1)
    with pytest.raises(StoreError, match="s3://none/store cannot be read: it is not there"):
        StoreReader("s3://none/store")


def test_of_a_foreign_prefix_a_part_is_listed(url, monkeypatch):
    from s3fs import S3FileSystem

    place, asked = open_storage(url), []
    place.write_all((f"photo{number:03d}", b"x") for number in range(8))
    with monkeypatch.context() as patch:
        patch.setattr(S3FileSystem, "find", lambda *args, **more: asked.append(args))
        assert place.first(lambda name: name.endswith("3")) == "photo003"
        assert place.first(lambda name: name == "none") is None and asked == []
    monkeypatch.setattr(remote, "_FIRST", 4)
    assert place.first(lambda name: name.endswith("7")) == "photo007"  # after more than are looked at
    assert open_storage(f"{url}-none").first(lambda name: True) is None
    with pytest.raises(StoreError, match=r"is no store \(it has photo000\); nothing is deleted"):
        place.clear()
