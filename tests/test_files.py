"""Files that cannot be written."""

import errno
import os
from pathlib import Path

import pytest

from pipeline.errors import FD3DError
from pipeline.files import check_needed, check_writable, system_errors, write_atomically
from pipeline.settings import read_yaml
from stages.cli import main


def test_want_of_space_is_one_line():
    told = r"runs/a.txt cannot be written: No space left on device: no space or no inodes left \(df -h, df -i\); free some space"
    with pytest.raises(FD3DError, match=told), system_errors():
        raise OSError(errno.ENOSPC, "No space left on device", "runs/a.txt")
    with (
        pytest.raises(FD3DError, match="a file cannot be written: No space left on device: no space or no inodes"),
        system_errors(),
        open("/dev/full", "w") as full,
    ):
        full.write("x")
    with pytest.raises(PermissionError), system_errors():
        raise PermissionError(errno.EACCES, "Permission denied")


LONG = "a" * 300
COMMANDS = (
    ("inspect", "{}"),
    ("inspect", "store", "--out", "x.png", "--params", "{}"),
    ("inspect", "store", "--html", "x.html", "--index", "{}", "--root", "."),
    ("verify", "{}"),
    ("verify", "store", "--recompute", "1", "--params", "{}"),
    ("dump", "--params", "{}"),
    ("dump", "--params", "{params}", "--config", "{}"),
    ("dump", "--params", "{params}", "--config", "{params}", "--index", "{}"),
    ("plan", "--index", "{}", "--frames", "10"),
)


@pytest.mark.parametrize("long", [LONG, f"none/{LONG}", f"{LONG}/s"])
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_name_that_is_too_long_is_one_line(project, tmp_path, monkeypatch, capsys, command, long):
    """The store's own line, or that of the command."""
    monkeypatch.chdir(project)
    folder = tmp_path / "none"
    folder.mkdir()
    given = long.replace("none", str(folder))
    said = refused(monkeypatch, capsys, [word.format(given, params="params.yaml") for word in command])
    assert "File name too long" in said or "is not there; run" in said or "does not exist" in said


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_folder_without_permission_is_one_line(project, tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(project)
    stat = os.stat

    def refusing(path, *rest, **more):  # root may enter all
        if str(path).startswith(str(tmp_path)):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return stat(path, *rest, **more)

    monkeypatch.setattr(os, "stat", refusing)
    said = refused(monkeypatch, capsys, [word.format(tmp_path / "s", params="params.yaml") for word in command])
    assert "Permission denied" in said and "check owner and permissions" in said


def refused(monkeypatch, capsys, command: list[str]) -> str:
    """What a command says that ends with one line, or with a list of problems and one."""
    monkeypatch.setattr("sys.argv", ["fd3d", *command])
    with pytest.raises(SystemExit) as caught:
        main()
    out, error = capsys.readouterr()
    assert caught.value.code == 1 and error.startswith("fd3d: ") and error.count("\n") == 1
    return out + error


def test_what_stood_there_stays_when_a_write_fails(tmp_path):
    path = tmp_path / "config.py"
    path.write_text("old")

    def fail(file):
        file.write("new")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(
        FD3DError, match=r"config.py cannot be written: No space left on device: no space or no inodes left"
    ):
        write_atomically(path, fail)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("instead", [os.mkfifo, os.mkdir])
def test_a_pipe_or_folder_is_not_called_missing(tmp_path, instead):
    instead(tmp_path / "f")
    for kind in ("config", "checkpoint", "expert", "exported", "index", "submission", "output"):
        with pytest.raises(FD3DError, match="/f is no regular file but a folder, pipe, socket or device; give a file"):
            check_needed(**{kind: tmp_path / "f"})
    with pytest.raises(FD3DError, match="/f is no regular file"):
        read_yaml(tmp_path / "f")
    with pytest.raises(FD3DError, match="index .*/none does not exist"):
        check_needed(index=tmp_path / "none")
    with pytest.raises(FD3DError, match="data root .*/none does not exist"):
        check_needed(root=tmp_path / "none")


@pytest.mark.parametrize("name", ["expert.safetensors", "expert.pth"])
def test_safetensors_are_told_by_name_or_content(tmp_path: Path, name: str) -> None:
    header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    (tmp_path / name).write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 4)
    with pytest.raises(FD3DError, match=rf"{name} is of safetensors; write it as PyTorch's, .*expert_torch.pth'\)$"):
        check_needed(checkpoint=tmp_path / name)


def test_a_look_whether_a_place_can_be_written_leaves_nothing(tmp_path: Path) -> None:
    check_writable(tmp_path / "a/b/c.json")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    for place, told in (
        ("file/a.json", "Not a directory"),
        ("file/a/b.json", "Not a directory"),
        ("link/a.json", "No such file or directory"),
        (f"a/{'x' * 300}/b.json", "File name too long"),
        (f"a/{'x' * 300}", "File name too long"),
        (".", "Is a directory"),
    ):
        with pytest.raises(FD3DError, match=f"cannot be written: {told}"):
            check_writable(tmp_path / place)
