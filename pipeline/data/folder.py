"""Folder of a data set's tables."""

from pathlib import Path

from pipeline.errors import FD3DError


def table_folder(root: str | Path, version: str) -> Path:
    """Folder of the tables of a version, directly below the root.

    Raises:
        FD3DError: the root has no such version.
    """
    base = Path(root).expanduser()
    if version != Path(version).name:  # the index has the version by this name, on every machine
        raise FD3DError(
            f"the version is {version!r}; give the name of a folder directly below {root}, such as v1.0-trainval"
        )
    folder = base / version
    if not folder.is_dir():
        known = sorted(path.parent.name for path in base.glob("*/scene.json"))
        has = f" ({', '.join(known)})" if known else ""
        raise FD3DError(f"{root} has no folder {version}; give the data set's root and one of its versions{has}")
    return folder


def only_version(root: Path) -> str:
    """Version of a data set that has one folder of tables.

    Raises:
        FD3DError: there is none, or there are several.
    """
    found = sorted(path.parent.name for path in root.glob("*/sample_data.json"))
    if len(found) != 1:
        raise FD3DError(
            f"{root} has {', '.join(found) or 'no'} folder of nuScenes tables; give a data root and --version"
        )
    return found[0]
