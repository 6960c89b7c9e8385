"""``fd3d check`` refuses what later stages would: after hours, or with their outputs removed."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from pipeline.data import CLASSES
from pipeline.errors import FD3DError
from pipeline.models.reading import read_checkpoint
from stages.check import check
from tests import foreign

TRAINED = ("families.bevformer.expert.checkpoint", None)
FOREIGN = [("families.bevformer.apprentice.config", "own/student.py")]
OTHER = ("families.bevformer.expert.config", "configs/world/detr3d_expert.py")
REFUSED: dict[str, tuple[list[tuple[str, Any]], str]] = {
    "level": ([("distill.levels", [7])], r"families.bevformer: distill.levels is \[7\]; this family has levels 0..2"),
    "level beside": (
        [("families.detr3d.distill.levels", [0])],
        r"families.detr3d: distill.levels is \[0\], but the expert's queries read all 3 levels; take all, or set distill.w_fine to 0",
    ),
    "layer": ([("distill.layers", [5])], r"distill.layers is \[5\]; this family has layers 0..2"),
    "module": ([("distill.inherit", ["pts_head"])], r"distill.inherit has 'pts_head', no module of configs/world/app"),
    "module of the expert": (
        [TRAINED, OTHER, ("families.bevformer.distill.inherit", ["pts_bbox_head.transformer.encoder"])],
        r"nothing below 'pts_bbox_head.transformer.encoder' fits the expert of configs/world/detr3d_expert.py; name a module",
    ),
    "module of a method": ([("methods.cwd.inherit", ["pts_head"])], r"methods.cwd.inherit has 'pts_head', no module"),
    "level of a method": ([("methods.cwd.levels", [9])], r"methods.cwd.levels is \[9\]; this family has levels 0..2"),
    "module of plain": ([("methods.plain.inherit", ["pts"])], r"methods.plain.inherit has 'pts', no module of"),
    "head": (
        [("dump.layout", "dense"), ("families.detr3d.distill.head", "trainable")],
        r"families.detr3d: distill.head is trainable, but store runs/detr3d/store includes no whole BEV map",
    ),
    "margin": (
        [("distill.geometry", {"match": True, "reanchor": True})],
        r"distill.geometry.reanchor .* dump with focal.bev_margin: 2.1",
    ),
    "queries": (
        [("focal.num_queries", 6000), ("distill.rule.num_queries", 60)],
        r"families.bevformer: focal.num_queries is 6000, but the expert of config configs/world/expert.py has 100 queries",
    ),
    "stored layers": (
        [("dump.layers", 9), TRAINED],
        r"dump.layers is 9, but the expert's reading is known of 3 layers",
    ),
    "code": (
        [("dump.values", "pq"), ("dump.code_bytes", 7), TRAINED],
        r"families.bevformer: dump.code_bytes is 7, which does not divide the 64 channels of pv/0",
    ),
    "components": (
        [("dump.values", "pca"), ("dump.code_bytes", 400)],
        r"dump.code_bytes is 400: 800 components of pca, more than the 64 channels of pv/0",
    ),
    "shard": (
        [("dump.frames_per_shard", 9)],
        r"^dump.frames_per_shard is 9, too few: scene scene-2000 has 10 frames, a shard 9",
    ),
    "number of cameras": (
        [("data.cameras", ["CAM_FRONT"])],
        r"config configs/world/expert.py has weights for 6 cameras, the data 1; set num_cams=1",
    ),
    "camera": ([("data.cameras", ["CAM_X"])], r"^data.cameras names CAM_X, which data/world/v1.0-world does not have"),
    "order of cameras": (
        [
            (
                "data.cameras",
                [f"CAM_{n}" for n in ("BACK", "FRONT", "FRONT_LEFT", "FRONT_RIGHT", "BACK_LEFT", "BACK_RIGHT")],
            )
        ],
        r"checkpoint checkpoints/world_expert.pth was trained with the cameras CAM_FRONT, .*, the data have CAM_BACK, ",
    ),
    "reference": ([("data.reference", "LIDAR_X")], r"^data.reference is LIDAR_X, which .* name one of LIDAR_TOP, ego"),
    "frame": ([("data.reference", "ego")], r"was trained with boxes in the frame of LIDAR_TOP, the data have ego"),
    "split": (
        [("data.train", "world_trane")],
        r"^data.train is 'world_trane', of which data/world/v1.0-world has no sc",
    ),
    "split for choices": ([("data.dev", "world_dev")], r"^data.dev is 'world_dev', of which .* has no scene"),
    "sizes": (
        [("world.width", 320), ("families.bevformer.apprentice.config", "own/large.py")],
        r"families.bevformer: pyramid level 0 of the student is \(\d+, \d+\), of the expert \(\d+, \d+\); choose image sizes",
    ),
    "sizes of a pyramid without weight": (
        [("world.width", 320), ("families.bevformer.apprentice.config", "own/large.py"), ("distill.w_pv", 0)],
        r"families.bevformer: pyramid level 0 of the student is \(\d+, \d+\), of the expert \(\d+, \d+\); choose image sizes",
    ),
    "mixed pyramids of another project's student": (
        [*FOREIGN, ("families.bevformer.distill", {"inherit": [], "levels": [0, 1], "w_mixed": 1.0})],
        r"families.bevformer: distill.w_mixed is for students of this project, and own/student.py is another project's; leave it out",
    ),
    "trainable head of another project's student": (
        [
            *FOREIGN,
            ("dump.layout", "dense"),
            ("families.bevformer.distill", {"inherit": [], "levels": [0, 1], "head": "trainable"}),
        ],
        r"families.bevformer: distill.head is for students of this project, and own/student.py is another project's; leave it out",
    ),
    "snapshot": (
        [("families.detr3d.apprentice.train.snapshots", [10**6])],
        r"families.detr3d: train.snapshots has 1000000, but the training has the updates 1 to 1600",
    ),
    "batch": (
        [("families.detr3d.apprentice.train.batch_size", 5000)],
        r"an iteration takes 5000 different frames, but split 'world_train' has 2000; lower train.batch_size",
    ),
    "checkpoint": (
        [("families.bevformer.expert.checkpoint", "checkpoints/world_detr3d_expert.pth")],
        r"families.bevformer: checkpoint checkpoints/world_detr3d_expert.pth does not fit the config: 51 missing",
    ),
    "frozen": (
        [("families.bevformer.apprentice.config", "configs/bevformer/tiny.py")],
        r"set families.bevformer.apprentice.init to a pretrained checkpoint, or let the detector inherit img_backbone",
    ),
    "no detector": (
        [("families.detr3d.apprentice.config", "configs/_base_/runtime.py")],
        r"config configs/_base_/runtime.py has no model, so it is no detector's config",
    ),
}
"""Changed settings, and what is said of them."""


@pytest.fixture
def profile(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Function that writes the active profile with values at dotted places, in a project without data."""
    monkeypatch.chdir(tmp_path)
    for name in ("configs", "checkpoints"):
        (tmp_path / name).symlink_to(project / name)
    (tmp_path / "own").mkdir()
    (tmp_path / "own/large.py").write_text("_base_ = '../configs/world/apprentice.py'\nimage = dict(scale=1.0)\n")

    foreign.write_student(tmp_path / "own", project)

    def write(*places: tuple[str, Any]) -> Path:
        values = yaml.safe_load((project / "params.yaml").read_text())
        for place, value in places:
            at = values
            *outer, last = place.split(".")
            for name in outer:
                at = at.setdefault(name, {})
            at[last] = value
        Path("params.yaml").write_text(yaml.safe_dump(values))
        return Path("params.yaml")

    return write


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_later_stage_would_refuse_is_refused_first(profile, name: str):
    places, told = REFUSED[name]
    with pytest.raises(FD3DError, match=told) as error:
        check(None, profile(*places))
    assert "\n" not in str(error.value) and not Path("runs/profile.txt").exists()


def test_what_needs_a_gpu_is_refused_without_one(profile, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for places, told in (
        ([("dump.autocast", "bf16")], "dump.autocast is bf16 but there is no GPU"),
        ([("families.bevformer.apprentice.train.amp", True)], "families.bevformer: amp is set but there is no GPU"),
    ):
        with pytest.raises(FD3DError, match=told):
            check(None, profile(*places))
    # workers at an address have devices of their own
    check(None, profile(("dump.autocast", "bf16"), ("dump.cluster", {"address": "tcp://host:1"})))


def test_what_fits_is_let_through_without_data(profile, capsys):
    check(None, profile())
    check("detr3d", Path("params.yaml"))
    assert Path("runs/profile.txt").is_file() and Path("runs/detr3d/start/expert.txt").is_file()
    online = [("distill.expert", "online"), ("distill.history", "scene")]
    check(None, profile(*online, ("methods.plain.inherit", ["pts_bbox_head"]), ("dump.values", "pq")))
    # a method that one family can be trained with
    check(None, profile(("methods.cwd.inherit", ["pts_bbox_head.transformer.encoder"])))
    # a root that the stage world makes, by its absolute path: nothing is known of its tables
    own = [("data.root", str(Path("data/world").absolute())), ("data.train", "any")]
    check(None, profile(*own, ("dump.frames_per_shard", 1)))


@pytest.mark.parametrize(
    ("places", "told"),
    [
        (
            [("data.generate", []), ("data.root", "{world}"), ("data.version", "v1.0-quad")],
            r"^{world} has no folder v1.0-quad; give the data set's root and one of its versions \(v1.0-world\)$",
        ),
        ([("data.generate", []), ("data.root", "/elsewhere")], r"^/elsewhere has no folder v1.0-world; give the data "),
        ([("data.generate", [])], r"^data/world has no folder v1.0-world; give the data set's root"),
        ([("data.root", "/elsewhere/world")], r"^/elsewhere/world has no folder v1.0-world; give the data set's root"),
        (
            [("data.root", "{absolute}"), ("data.version", "v1.0-quad")],
            r"^{absolute} has no folder v1.0-quad; give the data set's root",
        ),
    ],
)
def test_tables_that_no_stage_makes_have_to_be_there(profile, world: Path, places: list[tuple[str, Any]], told: str):
    names = {"{world}": str(world), "{absolute}": str(Path("data/world").absolute())}
    for name, value in names.items():
        places = [(place, given.replace(name, value) if isinstance(given, str) else given) for place, given in places]
        told = told.replace(name, value)
    with pytest.raises(FD3DError, match=told):
        check(None, profile(*places))
    assert not Path("runs").exists()


def test_a_data_set_without_the_folder_that_dvc_watches_is_refused(profile, world: Path, tmp_path: Path):
    shutil.copytree(world / "v1.0-world", tmp_path / "copy/v1.0-world")
    path = profile(("data.generate", []), ("data.root", str(tmp_path / "copy")))
    with pytest.raises(FD3DError, match=r"copy has no folder samples, which dvc.yaml depends on; put the images there"):
        check(None, path)
    (tmp_path / "copy/samples").symlink_to(world / "samples")
    check(None, path)


BARE = ("families.bevformer.expert.checkpoint", "own/bare.pth")
SAYS = ("families.bevformer.expert.config", "own/expert.py")


@pytest.mark.parametrize(
    ("places", "told"),
    [
        (
            [("families.bevformer.expert.classes", [*CLASSES])],
            r"^families.bevformer: expert.classes: checkpoint checkpoints/world_expert.pth is in this project's conventions already, by its notes; remove expert.classes$",
        ),
        (
            [("families.bevformer.expert.boxes", "old"), ("families.bevformer.expert.classes", [*CLASSES])],
            r"is in this project's conventions already, by its notes; remove expert.boxes and expert.classes$",
        ),
        (
            [BARE, SAYS, ("families.bevformer.expert.boxes", "new"), ("families.bevformer.expert.classes", ["car"])],
            r"^families.bevformer: expert.classes detects car; needed are nuScenes' car, truck",
        ),
        (
            [BARE, SAYS, ("families.bevformer.expert.classes", [*CLASSES])],
            r"^families.bevformer: checkpoint own/bare.pth does not tell its box convention; give --boxes old if",
        ),
    ],
)
def test_conventions_that_are_told_of_a_checkpoint_are_held_against_it(
    profile, expert_checkpoint: Path, places: list[tuple[str, Any]], told: str
):
    torch.save(read_checkpoint(expert_checkpoint).state, "own/bare.pth")
    Path("own/expert.py").write_text(
        '_base_ = "../configs/world/expert.py"\nmodel = dict(pts_bbox_head=dict(transformer=dict(encoder=dict(shift_current=False))))'
    )
    with pytest.raises(FD3DError, match=told):
        check(None, profile(*places))
    assert not Path("runs").exists()
    told_of_bare = [("families.bevformer.expert.boxes", "new"), ("families.bevformer.expert.classes", [*CLASSES])]
    check(None, profile(BARE, SAYS, *told_of_bare))


@pytest.mark.parametrize(
    ("place", "value", "told"),
    [
        (
            "data.train",
            "train",
            r"data.train is 'train', of which .* has no scene; there are world_train, world_val, all",
        ),
        ("data.val", "all", r"data.train 'world_train' and data.val 'all' share 2 scenes"),
        (
            "data.cameras",
            ["CAM_SIDE"],
            r"data.cameras names CAM_SIDE, which .*/v1.0-world does not have; it has CAM_FRONT",
        ),
        ("data.cameras", ["CAM_FRONT"], r"has weights for 6 cameras, the data 1"),
        ("data.reference", "TOP", r"data.reference is TOP, which .* name one of LIDAR_TOP, ego"),
        ("data.reference", "CAM_BACK", r"data.reference is CAM_BACK, a camera of .*: name one of LIDAR_TOP, ego"),
        ("data.classes", {"TRUK": "truck"}, r"data.classes has 'TRUK', no category of .*; there are human"),
        ("dump.frames_per_shard", 2, r"dump.frames_per_shard is 2, too few: scene scene-2000 has 3 frames, a shard 2"),
        (
            "families.bevformer.apprentice.config",
            "own/large.py",
            r"pyramid level 0 of the student is .*, of the expert .*; choose image sizes and strides that agree, or name the levels",
        ),
        ("families.bevformer.apprentice.train.batch_size", 8, r"an iteration takes 8 different frames, .* has 6"),
    ],
)
def test_tables_that_are_there_are_looked_at(profile, world: Path, place: str, value: Any, told: str):
    own = [("data.generate", []), ("data.root", str(world))]
    check(None, profile(*own, ("families.detr3d.apprentice.train.batch_size", 2)))
    with pytest.raises(FD3DError, match=told):
        check(None, profile(*own, (place, value)))


@pytest.mark.parametrize("index", ["/", ".", "configs", "own/../own", "runs", "data", "data/world"])
def test_an_index_in_the_place_of_a_folder_is_refused(profile, index: str):
    with pytest.raises(
        FD3DError, match=rf"^data.index is {index}, (which is a folder|where the folder .* lies); name a file"
    ):
        check(None, profile(("data.index", index)))
    assert not Path("runs").exists()


def test_an_index_that_cannot_be_written_is_refused(profile):
    with pytest.raises(FD3DError, match=r"^data.index: params.yaml/index.npz cannot be written: Not a directory"):
        check(None, profile(("data.index", "params.yaml/index.npz")))


@pytest.mark.parametrize(
    "place", ["runs/bevformer/expert/detector.pth", "runs/detr3d/fd3d/config.py", "metrics/detectors/detr3d/plain.json"]
)
def test_a_folder_in_the_place_of_an_output_is_refused(profile, place: str):
    Path(place).mkdir(parents=True)
    with pytest.raises(FD3DError, match=f"^{place} is a folder where a stage writes a file; move it elsewhere"):
        check(None, profile())


def test_damaged_tables_are_named(profile, world: Path, tmp_path: Path):
    copy = tmp_path / "copy"
    shutil.copytree(world / "v1.0-world", copy / "v1.0-world")
    path = profile(("data.generate", []), ("data.root", str(copy)))
    for name, told in (
        ("sample.json", r"sample.json cannot be read: .*; copy the tables again"),
        ("splits.json", r"splits.json cannot be read as JSON"),
        ("sensor.json", r"sensor.json cannot be read: .*; copy the tables again"),
        ("sensor.json", r"the tables of .*v1.0-world cannot be read: KeyError\('channel'\); copy them again"),
    ):
        (copy / "v1.0-world" / name).write_text('[{"name": "x"}]' if "KeyError" in told else "[{")
        with pytest.raises(FD3DError, match=told):
            check(None, path)


@pytest.mark.parametrize(
    ("height", "told"),
    [
        ("160", "sample_data.json: height of .* is '160'; give a whole number"),
        (0, "has width or height 0 or below for"),
    ],
)
def test_sizes_of_images_that_cannot_be_are_named(profile, world: Path, tmp_path: Path, height: Any, told: str):
    copy = tmp_path / "copy"
    shutil.copytree(world / "v1.0-world", copy / "v1.0-world")
    path = copy / "v1.0-world/sample_data.json"
    path.write_text(json.dumps([row | {"height": height} for row in json.loads(path.read_text())]))
    with pytest.raises(FD3DError, match=told):
        check(None, profile(("data.generate", []), ("data.root", str(copy))))
