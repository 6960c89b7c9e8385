"""Section ``data`` of a profile against the data set's tables, or against the world that is to be generated."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from pipeline.data.categories import Categories
from pipeline.data.folder import table_folder
from pipeline.data.json_stream import rows_of
from pipeline.data.rig import Rig
from pipeline.data.splits import own_splits, scene_names, scenes_by_split
from pipeline.data.values import ValueFault, whole
from pipeline.data.world.generate import scene_numbers
from pipeline.data.world.tables import static_tables
from pipeline.dumping.early import check_shards
from pipeline.errors import FD3DError
from pipeline.profile import Profile

_LOOKED_AT = 10_000  # rows of sample_data.json


@dataclass(frozen=True)
class KnownData:
    """What tables tell of a data set without its images.

    Attributes:
        cameras: names of the cameras that count, in order.
        reference: frame of reference of boxes and BEV maps, a sensor or ``ego``.
        scenes: number of key frames by scene of the training split.
        image_hw: rows and columns of the images, the largest of all cameras; None where the first rows of the tables do not tell.
    """

    cameras: tuple[str, ...]
    reference: str
    scenes: dict[str, int]
    image_hw: tuple[int, int] | None = None

    @property
    def frames(self) -> int:
        """Frames of the training split."""
        return sum(self.scenes.values())


def check_data(profile: Profile) -> KnownData | None:
    """Refuse a data set that is neither there nor generated, and cameras, a frame of reference, categories, splits and sizes of shards that it does not have.

    Returns:
        what is known of the data; None where a stage makes the tables at a root that the profile spells otherwise, such as by an
        absolute path, and has not made them: the stage ``index`` looks at them.

    Raises:
        FD3DError: naming the folder, the setting and what there is, or a table that cannot be read.
    """
    data, folder = profile.data, profile.data.root / profile.data.version
    rig = Rig(data.cameras, data.reference)
    if data.generated:  # whatever an earlier generation left there
        tables = static_tables(profile.world)
        found = rig.found(tables["sensor"], folder)
        _check_categories(data.classes, tables["category"], folder)
        splits = {
            split: [f"scene-{number}" for number in numbers] for split, numbers in scene_numbers(profile.world).items()
        }
        data.check_splits(splits)
        chosen = splits.get(data.train) or [name for names in splits.values() for name in names]
        frames = dict.fromkeys(chosen, profile.world.frames_per_scene)
        known = KnownData(*found, frames, (profile.world.height, profile.world.width))
    elif _made_by_a_stage(profile) and not folder.is_dir():
        return None
    else:
        table_folder(data.root, data.version)
        try:
            known = _of_tables(profile, rig, folder)
        except (LookupError, TypeError, AttributeError) as error:
            raise FD3DError(f"the tables of {folder} cannot be read: {error!r}; copy them again") from error
        if not (data.root / "samples").is_dir():
            raise FD3DError(
                f"{data.root} has no folder samples, which dvc.yaml depends on; put the images there, or a link to their folder"
            )
    check_shards({name: range(frames) for name, frames in known.scenes.items()}, profile.dump.frames_per_shard)
    return known


def _made_by_a_stage(profile: Profile) -> bool:
    made = [Path("data", name).resolve() for name in profile.data.generate]
    return profile.data.root.resolve() in made and profile.data.version == profile.world.version


def _of_tables(profile: Profile, rig: Rig, folder: Path) -> KnownData:
    data = profile.data
    found = rig.found(list(_rows(folder, "sensor")), folder)
    _check_categories(data.classes, _rows(folder, "category"), folder)
    own_splits(folder, scene_names(folder))
    splits = scenes_by_split(data.root, data.version)
    data.check_splits(splits)
    names = {row["token"]: row["name"] for row in _rows(folder, "scene")}
    count = Counter(names.get(row["scene_token"]) for row in _rows(folder, "sample"))
    frames = {name: count[name] for name in splits[data.train] if count[name]}
    return KnownData(*found, frames, _image_hw(folder, found[0]))


def _check_categories(classes: Mapping[str, str | None], rows: Iterable[Mapping[str, Any]], folder: Path) -> None:
    mapping, known = Categories(classes), {row["name"] for row in rows}
    mapping.check(known, folder)
    mapping.check_any(known, folder)


def _image_hw(folder: Path, cameras: Sequence[str]) -> tuple[int, int] | None:
    """Rows and columns of the largest images, by the first image of each camera: the whole table may have gigabytes."""
    names = {row["token"]: row["channel"] for row in _rows(folder, "sensor")}
    mounted = {row["token"]: names.get(row["sensor_token"]) for row in _rows(folder, "calibrated_sensor")}
    sizes: dict[str, tuple[int, int]] = {}
    for row in islice(_rows(folder, "sample_data"), _LOOKED_AT):
        name = mounted.get(row["calibrated_sensor_token"])
        if name in cameras and name not in sizes:
            sizes[name] = _size(row, folder)
        if len(sizes) == len(cameras):
            return max(rows for rows, _ in sizes.values()), max(columns for _, columns in sizes.values())
    return None


def _size(row: dict[str, Any], folder: Path) -> tuple[int, int]:
    try:
        size = whole(row, "height"), whole(row, "width")
    except ValueFault as error:
        raise FD3DError(f"{folder.name}/sample_data.json: {error}") from error
    if min(size) <= 0:
        raise FD3DError(
            f"{folder.name}/sample_data.json has width or height 0 or below for {row.get('token')}; give the images' size in pixels"
        )
    return size


def _rows(folder: Path, table: str) -> Iterator[dict[str, Any]]:
    path = folder / f"{table}.json"
    try:
        yield from rows_of(path)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise FD3DError(f"{path} cannot be read: {error!r}; copy the tables again") from error
