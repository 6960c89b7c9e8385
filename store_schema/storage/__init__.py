"""Where a store's files lie: a local folder, or a prefix of an object store by fsspec URL."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from ..errors import StoreError
from .base import LEASE, LOCK, MANIFEST, RECIPE, TEMPORARY, Storage
from .local import LocalStorage
from .remote import RemoteStorage

__all__ = [
    "LEASE",
    "LOCK",
    "MANIFEST",
    "RECIPE",
    "TEMPORARY",
    "LocalStorage",
    "RemoteStorage",
    "Storage",
    "open_storage",
]


def open_storage(path: str | Path | Storage, options: Mapping[str, Any] | None = None) -> Storage:
    """The storage that a local path or a URL names.

    Args:
        path: a folder, ``file://`` or any URL that fsspec knows, such as ``s3://bucket/prefix``.
        options: of the fsspec file system, such as ``{"endpoint_url": ...}``; the environment variables of the
            cloud's library (``AWS_ENDPOINT_URL``, ``AWS_PROFILE``, ...) work without.

    Raises:
        StoreError: fsspec or the file system's package is not installed, or the URL is not understood.
    """
    if isinstance(path, Storage):
        return path
    if not str(path):
        raise StoreError("the store's path is empty; name a folder or a URL")
    scheme, _, rest = str(path).partition(":/")  # a Path holds a URL's two slashes as one
    if "\0" in str(path):
        raise StoreError(f"the store's path {str(path)!r} has a character that no name has; correct it")
    if not rest or "/" in scheme or len(scheme) < 2:
        try:
            return LocalStorage(Path(path).expanduser())
        except RuntimeError as error:  # of a user that is not there
            raise StoreError(f"the store's path {path} is not understood: {error}; give a folder") from error
        except FileNotFoundError as error:  # of a path relative to a folder that is gone
            raise StoreError(
                f"the store's path {path} is relative, and the working folder was removed; change to one that is there"
            ) from error
    *chain, last = scheme.split("::")
    on_disk = last.lower() in ("file", "local")
    if on_disk and not chain:
        return LocalStorage(Path("/", unquote(rest.removeprefix("/localhost/").lstrip("/"))))
    if last not in ("http", "https") and (odd := re.search(r"[*?\[]", rest)):
        raise StoreError(
            f"the store's URL {path} has the character {odd[0]}, which fsspec takes for a pattern of names; use another name"
        )
    storage = RemoteStorage(f"{scheme}://{'/' * on_disk}{rest.strip('/')}", dict(options or {}))
    storage.filesystem()  # a package that is missing is found here, not in a worker
    return storage
