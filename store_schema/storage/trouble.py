"""What a failed system call means to a person, and what to do about it."""

import errno
import os

from ..errors import StoreError
from .regular import irregular

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
ABSENT = (FileNotFoundError, NotADirectoryError)
UNSUPPORTED = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)
"""Answers of a file system that lacks a call."""
_ADVICE = {
    errno.EMFILE: "raise the limit of open files (ulimit -n) and run again",
    errno.ENFILE: "the whole machine has too many files open; close programs and run again",
    errno.EACCES: "check owner and permissions of its folders and files, and run again",
    errno.EPERM: "check owner and permissions of its folders and files, and run again",
    errno.EROFS: "the file system can only be read; mount it for writing or choose another folder",
    errno.EIO: "the disk or its connection fails; check it (dmesg) before running again",
    errno.ESTALE: "the network mount was lost; mount it anew and run again",
    errno.ENOTCONN: "the network mount was lost; mount it anew and run again",
    errno.ELOOP: "its path leads through links in a ring; mend the links",
    errno.ENAMETOOLONG: "choose a folder with a shorter path",
    errno.ENOENT: "a folder was removed meanwhile, or a link on its path leads nowhere; mend that and run again",
    errno.ENOTDIR: "a file lies where a folder of its path is wanted; choose another folder",
    errno.EEXIST: "a link that leads nowhere or a file lies where a folder is wanted; remove it or choose another folder",
    errno.EXDEV: "a folder of the store lies on another disk or mount, and files cannot be renamed from one to another; move the whole store there",
    errno.ENOMEM: "free memory and run again",
}


def trouble(storage: object, verb: str, error: OSError, free: float | None = None) -> StoreError:
    """The one line for a failed call, which is no damage of the store.

    Args:
        verb: what the store cannot be, such as ``read``.
        free: megabytes left on the disk, for the errors of a full one.
    """
    what = error.strerror or str(error) or type(error).__name__
    if error.errno == errno.EISDIR:
        return irregular(error.filename2 or error.filename or storage)
    if error.errno in FULL:
        room = "" if free is None else f" ({free:.0f} MB free)"
        if error.errno == errno.ENOSPC:  # also of a disk with free bytes
            room += ": no space or no inodes left (df -h, df -i)"
        return StoreError(
            f"store {storage} cannot be {verb}: {what}{room}; what is done stays, make room and run the dump again"
        )
    name = error.filename2 or error.filename  # of a rename, the place and not the temporary file
    where = f" ({name})" if isinstance(name, str) else ""
    advice = _ADVICE.get(error.errno or 0, "what is done stays; mend this and run again")
    return StoreError(f"store {storage} cannot be {verb}: {what}{where}; {advice}")


def unwritable_lock(storage: object, error: OSError) -> StoreError:
    """The line for a lock that may not be opened for writing, or not be made."""
    place = error.filename if os.path.exists(error.filename) else os.path.dirname(error.filename)
    try:
        mode = f"{os.stat(place).st_mode & 0o7777:04o}"
    except OSError:
        mode = "unknown"
    return StoreError(
        f"store {storage} cannot be locked: {error.strerror} to write {place} (mode {mode}); make it writable (chmod u+w, or by its owner), "
        "or choose another folder"
    )
