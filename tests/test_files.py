"""Files that cannot be written."""

import errno
import os
from pathlib import Path

import pytest

from pipeline.errors import FD3DError
from pipeline.files import check_needed, check_writable, space_errors, write_atomically
from pipeline.settings import read_yaml


def test_want_of_space_is_one_line():
    told = r"runs/a.txt cannot be written: No space left on device: no space or no inodes left \(df -h, df -i\); free some space"
    with pytest.raises(FD3DError, match=told), space_errors():
        raise OSError(errno.ENOSPC, "No space left on device", "runs/a.txt")
    with (
        pytest.raises(FD3DError, match="a file cannot be written: No space left on device: no space or no inodes"),
        space_errors(),
        open("/dev/full", "w") as full,
    ):
        full.write("x")
    with pytest.raises(PermissionError), space_errors():
        raise PermissionError(errno.EACCES, "Permission denied")


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
