"""Would DVC notice? Settings that a stage reads are under its ``params`` in dvc.yaml."""

import copy
import dataclasses
import re
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from pipeline.errors import FD3DError
from pipeline.profile import DataSettings, Profile, parse_profile
from pipeline.report.settings import SECTIONS
from pipeline.training.settings import Initial
from stages.dump import dump
from stages.evaluate import evaluate
from stages.expert import expert
from stages.index import index
from stages.report import report
from stages.train import train
from stages.world import world

FAMILY = "bevformer"
OUT = {"out": Path("out"), "metrics": Path("metrics.json"), "checkpoint": Path(f"runs/{FAMILY}/plain/detector.pth")}
WORK: dict[str, tuple[str, Callable[..., None], dict[str, Any]]] = {
    "world": ("pipeline.data.world.generate.generate_world", world, {}),
    "index": ("pipeline.data.index.build_index", index, {}),
    "expert": ("pipeline.training.expert.take_or_train", expert, {"family": FAMILY}),
    "dump": ("pipeline.dumping.dump.dump", dump, {"family": FAMILY}),
    "apprentice-plain": ("pipeline.training.plain.train_plain", train, {"family": FAMILY, "method": "plain"}),
    "apprentice-fd3d": ("pipeline.distill.apprentice.train_apprentice", train, {"family": FAMILY, "method": "fd3d"}),
    "evaluate": ("pipeline.evaluation.run.evaluate_detector", evaluate, OUT),
    "report": ("pipeline.report.report.build_report", report, {}),
}
"""Work of each stage of dvc.yaml, the command that calls the work, and the command's options."""
CHECKED_ONLY = {
    "expert": (
        *(
            f"{of}.{name}"
            for of in ("distill", f"families.{FAMILY}.distill")
            for name in ("inherit", "levels", "layers", "head", "residual", "w_mixed")
        ),
        f"families.{FAMILY}.apprentice",
    ),
    # refused where it is set, since no stage would name the expert's checkpoint
    "apprentice-plain": ("methods.plain.inherit",),
}
"""Settings that a stage looks at before its work, and that change nothing of what the stage writes."""
NOT_READ = ("methods.", "data.dev", "data.generate")
"""Settings that no stage's work is given: those of methods that dvc.yaml does not train, a split that ``fd3d index`` checks, and the
names that dvc.yaml makes stages of."""
WITH: dict[str, dict[str, Any]] = {
    r"dump\.code_bytes": {"dump.values": "pq"},
    r"dump\.code_bits": {"dump.values": "pca"},
    r"(.*)\.history": {r"\1.expert": "online", r"\1.history": "scene"},
    r".*\.(areas|head)": {"dump.layout": "dense"},
    r"distill\.geometry\.(reanchor|pyramid|w_relation|ray_.*)": {"distill.geometry.match": True},
    r"distill\.geometry\.ray_across": {"distill.geometry.ray_along": 0.2},
    r"(families\..*\.)?distill\.w_mixed": {f"families.{FAMILY}.distill": {}},
    r"(.*)\.expert\.init": {r"\1.expert.checkpoint": None},
    r"(.*\.published\.plain)\..*": {r"\1": {"NDS": 2, "mAP": 2}},
    r"data\.root|(data|world)\.version": {"data.generate": []},
    r"data\.generate": {"data.root": "elsewhere"},
}
"""Other settings that settings need, by their pattern."""
TOGETHER: dict[str, dict[str, Any]] = {r"(distill|.*\.distill|methods\..*)\.expert": {r"\1.history": "scene"}}
"""Other settings that a changed value needs."""
VALUES: tuple[Any, ...] = (
    *(False, True, 1, 2, 5, 8, 10, 0.01, 0.3, 0.7, 0.06, 1.5, 400, 70.0),
    *(
        "other",
        "dense",
        "pq",
        "float32",
        "bf16",
        "annotations",
        "trainable",
        "online",
        "queue",
        "new",
        "argoverse2",
        "v1.0-other",
    ),
    *("configs/world/detr3d_expert.py", "pretrained/other.pth", "tcp://host:1"),
    *(["other"], [1, 2], {"other": "car"}, {"NDS": 1, "mAP": 1}),
)
"""Values, of which the first that a setting takes and does not have changes it."""


def settings() -> Iterator[str]:
    """Every setting of the profile by its path, for one family."""
    for names, kind in SECTIONS:
        hints = typing.get_type_hints(kind)
        for name in names.split(", ") if "(of a config)" not in names else ():
            for field in dataclasses.fields(kind):
                inner = [hints[field.name], *typing.get_args(hints[field.name])]
                if not any(dataclasses.is_dataclass(one) for one in inner):
                    yield f"{name}.{field.name}".replace("FAMILY", FAMILY).replace("ROLE", "plain")


def put(values: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    made = copy.deepcopy(values)
    *folders, last = path.split(".")
    inner = made
    for folder in folders:
        inner[folder] = inner.get(folder) or {}
        inner = inner[folder]
    inner[last] = value
    return made


def put_all(values: dict[str, Any], path: str, needed: dict[str, dict[str, Any]]) -> dict[str, Any]:
    for pattern, others in needed.items():
        if match := re.fullmatch(pattern, path):
            for other, value in others.items():
                values = put(values, match.expand(other), value)
    return values


def changed(base: dict[str, Any], path: str) -> tuple[Profile, Profile]:
    """Profiles that differ in one setting."""
    base = put_all(base, path, WITH)
    before = parse_profile(base, Path("params.yaml"))
    for value in VALUES:
        try:
            after = parse_profile(put_all(put(base, path, value), path, TOGETHER), Path("params.yaml"))
        except FD3DError:
            continue
        if after != before:
            return before, after
    raise AssertionError(f"no value of VALUES changes {path}; add one")


class Seen(Exception):
    """Raised in place of a stage's work."""


def given(stage: str, profile: Profile) -> str:
    """What a stage's work is given, or why the command refuses."""
    module = WORK[stage][1].__module__
    with pytest.MonkeyPatch.context() as patch:

        def work(*args: Any, **options: Any) -> None:
            raise Seen(re.sub(r" at 0x\w+", "", repr((args, options))))

        patch.setattr(WORK[stage][0], work)
        patch.setattr(f"{module}.read_profile", lambda path: profile)
        patch.setattr(Profile, "check_checkpoints", lambda *args, **options: None)
        patch.setattr(Initial, "check", lambda self: None)
        patch.setattr("pipeline.data.splits.scenes_by_split", lambda root, version: {})
        patch.setattr(DataSettings, "check_splits", lambda self, splits: None)
        for name in ("check_needed", "check_split", "frames_to_dump", "table_folder", "check_generated"):
            patch.setattr(f"{module}.{name}", lambda *args, **options: None, raising=False)
        asked = {
            "place_of": lambda out: out,
            "frames_to_evaluate": lambda source, version, *places: SimpleNamespace(version=version),
        }
        for name, answer in asked.items():
            patch.setattr(f"{module}.{name}", answer, raising=False)
        patch.setattr("store_schema.StoreReader", lambda *args, **options: None)
        try:
            WORK[stage][1](**WORK[stage][2])
        except (Seen, FD3DError) as error:
            return str(error)
    raise AssertionError(f"{stage} does not call {WORK[stage][0]}")


@pytest.fixture(scope="module")
def base(project: Path) -> dict[str, Any]:
    return yaml.safe_load((project / "params.yaml").read_text())


@pytest.fixture(scope="module")
def params(project: Path) -> dict[str, list[str]]:
    """Parameters of each stage, for one family."""
    stages = yaml.safe_load((project / "dvc.yaml").read_text())["stages"]
    return {
        name: [param.replace("${key}", FAMILY) for param in body.get("do", body)["params"]]
        for name, body in stages.items()
        if name not in ("check", "start")  # which read every setting, and write no number
    }


def covered(path: str, by: typing.Iterable[str]) -> bool:
    return any(path == one or path.startswith(f"{one}.") for one in by)


@pytest.fixture(scope="module")
def readers(base: dict[str, Any], project: Path) -> dict[str, set[str]]:
    """Stages whose work is given another value where a setting changes, by setting."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        found = {}
        for path in settings():
            before, after = changed(base, path)
            found[path] = {stage for stage in WORK if given(stage, before) != given(stage, after)}
        return found


def test_dvc_notices_every_setting_that_a_stage_reads(readers, params):
    assert params.keys() == WORK.keys()
    missed = {
        path: sorted(unnoticed)
        for path, stages in readers.items()
        if (unnoticed := {s for s in stages if not covered(path, [*params[s], *CHECKED_ONLY.get(s, ())])})
    }
    assert missed == {}


def test_every_other_setting_is_read_by_a_stage(readers):
    assert len(readers) > 100
    unread = {path for path, stages in readers.items() if not stages}
    assert sorted(path for path in unread if not path.startswith(NOT_READ)) == []


def test_settings_that_are_only_checked_are_looked_at(readers):
    for stage, paths in CHECKED_ONLY.items():
        for path in paths:
            assert any(covered(one, [path]) and stage in stages for one, stages in readers.items()), path
