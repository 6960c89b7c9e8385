"""Files that cannot be written."""

import errno

import pytest

from pipeline.errors import FD3DError
from pipeline.files import space_errors, write_atomically


def test_want_of_space_is_one_line():
    told = r"runs/a.txt cannot be written: No space left on device; free some space"
    with pytest.raises(FD3DError, match=told), space_errors():
        raise OSError(errno.ENOSPC, "No space left on device", "runs/a.txt")
    with pytest.raises(FD3DError, match="a file cannot be written"), space_errors(), open("/dev/full", "w") as full:
        full.write("x")
    with pytest.raises(PermissionError), space_errors():
        raise PermissionError(errno.EACCES, "Permission denied")


def test_what_stood_there_stays_when_a_write_fails(tmp_path):
    path = tmp_path / "config.py"
    path.write_text("old")

    def fail(file):
        file.write("new")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(FD3DError, match=r"config.py cannot be written: No space left on device"):
        write_atomically(path, fail)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
