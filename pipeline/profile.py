"""The profile, ``params.yaml``: read once, and checked whole before any stage works."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.data.source import FrameSource, check_classes, check_different, check_splits
from pipeline.data.world.config import WorldConfig
from pipeline.distill.settings import FD3D, METHODS, PLAIN, DistillSettings, MethodSettings, PlainSettings
from pipeline.dumping.settings import ClusterSettings, DumpSettings
from pipeline.errors import FD3DError, SettingError
from pipeline.focal.rule import FocalRule
from pipeline.settings import from_mapping, mapping, parse_over, read_yaml
from pipeline.training.settings import Initial, RunSettings, Validation

RUNS, METRICS = Path("runs"), Path("metrics/detectors")
"""Folders of the stages' outputs, and of detectors' metrics."""
DETECTOR, CONFIG = "detector.pth", "config.py"
"""Names of a trained detector's checkpoint and config in its run's folder."""
STARTS = ("pretrained/", "checkpoints/")
"""Folders of the files that trainings start from; ``dvc.yaml`` depends on them."""


@dataclass(frozen=True)
class DataSettings:
    """Section ``data``: frames of a data set in nuScenes' format."""

    root: Path
    """Root of the data set."""
    version: str
    """Folder of the data set's tables below the root, for example v1.0-trainval."""
    index: Path
    """Frame index that ``fd3d index`` makes of the data set."""
    train: str
    """Split that the store and the students are made of."""
    val: str
    """Split that detectors are evaluated on."""
    dev: str | None = None
    """Split that settings are chosen on, so that ``val`` decides nothing; none for a profile whose settings are chosen already."""
    generate: tuple[str, ...] = ()
    """Embedded data sets to generate below ``data/``; none for data of your own."""
    classes: dict[str, str | None] = field(default_factory=dict)
    """Detection class of the data set's categories, over nuScenes' own mapping; null for a category that is no class."""
    cameras: tuple[str, ...] = ()
    """Cameras that count, in this order; none for all of the data set's, nuScenes' own first."""
    reference: str | None = None
    """Sensor whose frame boxes and BEV maps are in, or ``ego``; null for LIDAR_TOP, or the ego frame where there is none."""
    skip_incomplete: bool = False
    """Whether the index leaves out frames that lack a camera or the LiDAR; false refuses data that have such frames."""

    def __post_init__(self) -> None:
        check_classes(self.classes)
        check_different(self._chosen, self.version)
        if self.generated and self.root.name not in self.generate:
            raise FD3DError(
                f"data.root {self.root} is none of the data sets that data.generate makes, "
                f"{', '.join(f'data/{name}' for name in self.generate)}; name one of these, or leave generate empty"
            )

    @property
    def generated(self) -> bool:
        """Whether the root lies where ``generate`` writes."""
        return bool(self.generate) and self.root.parent == Path("data")

    def check_splits(self, splits: Mapping[str, Collection[str]]) -> None:
        """Refuse splits that an index (scene names by split) lacks, or that share a scene, by an FD3DError."""
        check_splits(self._chosen, splits, f"{self.root}/{self.version}")

    @property
    def _chosen(self) -> dict[str, str]:
        """Split by setting."""
        return {f"data.{name}": split for name in ("train", "dev", "val") if (split := getattr(self, name)) is not None}

    def source(self, split: str) -> FrameSource:
        """Frames of the split that the setting ``train``, ``dev`` or ``val`` names, or of any other split by its own name.

        Raises:
            FD3DError: ``dev`` names none, or the index was made with other settings.
        """
        from pipeline.data.asked import check_index  # here, since every command reads a profile

        check_index(self.index, self)
        if split == "dev" and self.dev is None:
            raise FD3DError(f"data.dev names no split; the profile has {', '.join(self._chosen)}")
        return FrameSource(self.index, self.root, self._chosen.get(f"data.{split}", split))

    @property
    def validation(self) -> Validation:
        """Frames that trainings are validated on."""
        return Validation(self.source("val"), self.version)


@dataclass(frozen=True)
class ExpertSettings:
    """Section ``expert`` of a family."""

    config: Path
    """Detector config, with an ``adapter``."""
    checkpoint: Path | None = None
    """Checkpoint of the expert; none trains the expert."""
    boxes: str | None = None
    """Box convention of a checkpoint whose notes are lost: ``new``, or ``old`` for mmdet3d before 1.0."""
    classes: tuple[str, ...] | None = None
    """Class names of a checkpoint whose notes are lost, in the file's order."""
    init: Path | None = None
    """Checkpoint below ``pretrained/`` or ``checkpoints/`` that backbone and neck of an expert in training start from:
    torchvision's ResNet, or a detector or classifier of OpenMMLab. Needed where the config freezes parameters."""
    train: RunSettings = field(default_factory=RunSettings)
    """Training of an expert without a checkpoint."""

    def __post_init__(self) -> None:
        if self.boxes not in (None, "old", "new"):
            raise SettingError(f"boxes is '{self.boxes}'; use old or new")
        if (self.boxes or self.classes) and self.checkpoint is None:
            name = "boxes" if self.boxes else "classes"
            raise SettingError(f"{name} tells of a checkpoint, but checkpoint is null; leave it out")
        if self.init and self.checkpoint:
            raise SettingError(f"init is {self.init}, which trains an expert, but checkpoint is given; leave one out")


@dataclass(frozen=True)
class StudentSettings:
    """Section ``apprentice`` of a family: the student."""

    config: Path
    """Detector config."""
    init: Path | None = None
    """Checkpoint below ``pretrained/`` or ``checkpoints/`` that backbone and neck start from, as of the expert's ``init``."""
    train: RunSettings = field(default_factory=RunSettings)
    """Training of the student, plain or distilled."""


@dataclass(frozen=True)
class Scores:
    """Section ``published.ROLE`` of a family: a detector's published metrics on the validation split, in per cent."""

    NDS: float
    """nuScenes detection score, 0..100."""
    mAP: float
    """Mean average precision, 0..100."""

    def __post_init__(self) -> None:
        for name in ("NDS", "mAP"):
            if not 0 <= getattr(self, name) <= 100:
                raise SettingError(f"{name} is {getattr(self, name)}; it must be in 0..100, per cent")


@dataclass(frozen=True)
class Published:
    """Section ``published`` of a family: numbers that the report puts beside the measured ones."""

    expert: Scores | None = None
    """Published metrics of the expert."""
    plain: Scores | None = None
    """Published metrics of the student that distils nothing."""
    fd3d: Scores | None = None
    """Published metrics of the student with FD3D."""


@dataclass(frozen=True)
class Family:
    """An expert and its student, with FD3D's settings for the two."""

    name: str
    expert: ExpertSettings
    apprentice: StudentSettings
    distill: DistillSettings
    published: Published = Published()

    @property
    def folder(self) -> Path:
        """Folder of the family's runs."""
        return RUNS / self.name

    def init(self, role: str) -> Initial:
        """Pretrained start of the ``expert`` or the ``apprentice``."""
        return Initial(getattr(self, role).init, f"families.{self.name}.{role}.init")

    @property
    def detector(self) -> Path:
        """Checkpoint that the expert stage makes; its config lies beside it."""
        return self.folder / "expert" / DETECTOR

    @property
    def store(self) -> Path:
        """Store that the dump stage makes."""
        return self.folder / "store"

    def evaluated(self, role: str) -> tuple[Path, Path, Path]:
        """Checkpoint of the expert or of a method's student, folder of its evaluation, and file of its metrics."""
        return self.folder / role / DETECTOR, RUNS / "evaluate" / self.name / role, METRICS / self.name / f"{role}.json"


@dataclass(frozen=True)
class Profile:
    """All settings of the pipeline.

    Attributes:
        methods: settings by method, of ``plain`` and of all but FD3D.
    """

    path: Path
    data: DataSettings
    world: WorldConfig
    families: dict[str, Family]
    focal: FocalRule
    dump: DumpSettings
    cluster: ClusterSettings
    methods: dict[str, MethodSettings | PlainSettings]

    def family(self, name: str | None = None) -> Family:
        """A family by name, the first one for None.

        Raises:
            FD3DError: no family has this name.
        """
        name = name or next(iter(self.families))
        if name not in self.families:
            raise FD3DError(f"unknown family '{name}' in {self.path}; known: {', '.join(self.families)}")
        return self.families[name]

    def method(self, name: str, family: Family) -> MethodSettings | PlainSettings:
        """Settings of a method for a family: of fd3d the family's, of others ``methods.NAME``.

        Raises:
            FD3DError: no method has this name.
        """
        known = self.methods | {FD3D: family.distill}
        if name not in known:
            raise FD3DError(f"unknown method '{name}'; known: {', '.join((PLAIN, *METHODS))}")
        return known[name]

    def check_checkpoints(self, *families: Family, trained: bool = False) -> None:
        """Refuse a profile that names an expert's checkpoint or a pretrained file which is not there.

        Args:
            families: those whose files are looked for; default: all.
            trained: whether experts are trained whatever their checkpoint is.

        Raises:
            FD3DError: naming the file and its setting.
        """
        for family in families or self.families.values():
            checkpoint = None if trained else family.expert.checkpoint
            if checkpoint is not None and not checkpoint.is_file():
                raise FD3DError(
                    f"families.{family.name}.expert.checkpoint {checkpoint} does not exist; put the file there, name another in {self.path}, or null to train the expert"
                )
            for role in ("expert", "apprentice"):
                family.init(role).check()


def read_profile(path: Path) -> Profile:
    """The profile of a YAML file; arguments and errors as of :func:`parse_profile`."""
    try:
        return parse_profile(read_yaml(path), path)
    except FD3DError as error:
        raise FD3DError(str(error) if str(path) in str(error) else f"{path}: {error}") from error


def parse_profile(values: Mapping[str, Any], path: Path) -> Profile:
    """A profile from plain values.

    Every section is parsed, and settings that must agree are compared: an area that the dump would not store is refused.

    Args:
        values: sections by name; ``methods`` may be left out, and ``world`` where nothing is generated.
        path: named in messages.

    Raises:
        FD3DError: an unknown or missing section, an unknown setting or method, a value of a wrong type or out of range,
            a config that does not exist, or FD3D's settings need what the dump will not store.
    """
    known = ("data", "world", "families", "focal", "dump", "distill", "methods")
    if unknown := [name for name in values if name not in known]:
        raise FD3DError(f"{path}: unknown section '{unknown[0]}'; known: {', '.join(known)}")
    for name in ("data", "families"):
        if not values.get(name):
            raise FD3DError(f"{path} has no section '{name}', or an empty one; configs/profiles/ has examples")
    data: DataSettings = from_mapping(DataSettings, values["data"], "data")
    if "generate" not in mapping(values["data"], "data"):  # of which dvc.yaml makes stages
        raise FD3DError(f"{path}: data has no generate; write 'generate: []' for data of your own")
    for name in ("focal", "dump", "distill", *(["world"] if data.generate else [])):  # else DVC misses one hours later
        if name not in values:
            raise FD3DError(f"{path} has no section '{name}'; write '{name}: {{}}' for the section's defaults")
    rule: FocalRule = from_mapping(FocalRule, values.get("focal"), "focal")
    dump = dict(mapping(values.get("dump"), "dump"))
    cluster: ClusterSettings = from_mapping(ClusterSettings, dump.pop("cluster", None), "dump.cluster")
    settings: DumpSettings = from_mapping(DumpSettings, dump, "dump", rule=rule)
    distill = mapping(values["distill"], "distill")
    parsed = mapping(values["families"], "families").items()
    families = {name: _family(name, family, distill, settings) for name, family in parsed}
    world: WorldConfig = from_mapping(WorldConfig, values.get("world"), "world")
    if data.generated and data.version != world.version:
        raise FD3DError(f"data.version is {data.version}, but data.generate writes world.version, {world.version}")
    return Profile(path, data, world, families, rule, settings, cluster, methods=_methods(values.get("methods")))


def _family(name: Any, values: Any, distill: dict[str, Any], dump: DumpSettings) -> Family:
    where = f"families.{name}"
    if not isinstance(name, str) or not re.fullmatch(r"(?!(evaluate|look)$)[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise FD3DError(
            f"{where!r:.80}: a family's name is a folder below runs/; use letters, digits, _ and -, but not evaluate or look"
        )
    values = mapping(values, where, ("expert", "apprentice", "distill", "published"))
    expert = from_mapping(ExpertSettings, values.get("expert"), f"{where}.expert")
    student = from_mapping(StudentSettings, values.get("apprentice"), f"{where}.apprentice")
    for role, config, init in (("expert", expert.config, expert.init), ("apprentice", student.config, student.init)):
        if not config.is_file():
            raise FD3DError(f"{where}.{role}.config {config} does not exist; see configs/ for those that ship")
        if init is not None and (not init.as_posix().startswith(STARTS) or ".." in init.parts):
            raise FD3DError(
                f"{where}.{role}.init {init} is not below {' or '.join(STARTS)}, whose files dvc.yaml depends on; put the file there"
            )
    if "distill" not in values:  # dvc.yaml depends on the setting, and DVC on its being there
        raise FD3DError(f"{where} has no distill; write 'distill: {{}}' for the section's values")
    own = mapping(values["distill"], f"{where}.distill")
    settings = parse_over(partial(_distill_settings, dump), distill, own, where)
    published = from_mapping(Published, values.get("published"), f"{where}.published")
    return Family(name, expert, student, settings, published)


def _methods(values: Any) -> dict[str, MethodSettings | PlainSettings]:
    kinds: dict[str, Any] = {PLAIN: PlainSettings} | {name: kind for name, kind in METHODS.items() if name != FD3D}
    values = mapping(values, "methods")
    for name in values:
        if name not in kinds:
            hint = "; fd3d's settings are the section 'distill'" if name == FD3D else ""
            raise FD3DError(f"unknown method methods.{name}; known: {', '.join(kinds)}{hint}")
    return {name: from_mapping(kind, values.get(name), f"methods.{name}") for name, kind in kinds.items()}


def _distill_settings(dump: DumpSettings, values: dict[str, Any]) -> DistillSettings:
    """Settings of FD3D; those that need what the dump will not store are refused. Stage 2 checks them against the store itself.

    Raises:
        FD3DError: naming the setting and what the store will cover.
    """
    distill = DistillSettings.from_dict(values)
    dump.rule.of_store(dump.layout).check_covers(distill.rule)
    if distill.dense and dump.layout != "dense":
        raise FD3DError(f"{distill.dense}, but dump.layout is {dump.layout}, which stores focal cells; set it to dense")
    layers = list(distill.layers or ())
    if (most := dump.layers) is not None and distill.head == "frozen" and any(n >= most for n in layers):
        raise FD3DError(f"distill.layers is {layers}, but dump.layers stores the last {most}; layers 0..{most - 1}")
    return distill
