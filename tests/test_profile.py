"""The profile: every one that ships fits the code, and a wrong setting is named before any stage works."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.data.made_for import check_views
from pipeline.distill.settings import METHODS, MGDSettings, PlainSettings
from pipeline.errors import FD3DError
from pipeline.models.build import load_config
from pipeline.profile import DataSettings, parse_profile, read_profile
from pipeline.settings import read_yaml
from pipeline.training.settings import read_schedule
from tests.readme import blocks

ROOT = Path(__file__).parents[1]
PROFILES = [ROOT / "params.yaml", *sorted((ROOT / "configs/profiles").glob("*.yaml"))]


@pytest.fixture(autouse=True)
def at_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_a_shipped_profile_is_read_whole_and_its_configs_load(path: Path):
    profile = read_profile(path)
    for family in profile.families.values():
        assert family.distill.inherit[0] == "pts_bbox_head"
        for name, settings in profile.methods.items():
            if not isinstance(settings, PlainSettings):
                assert settings.inherit == family.distill.inherit, f"{name} starts otherwise than FD3D"
        assert "adapter" in load_config(family.expert.config)
        read_schedule(load_config(family.apprentice.config))


def test_the_table_of_cars_has_the_cameras_and_the_frame_of_their_profiles():
    page = (ROOT / "docs/other_cameras.md").read_text()
    for name in ("argoverse2", "five"):
        data = read_profile(ROOT / f"configs/profiles/{name}.yaml").data
        (row,) = (line for line in page.splitlines() if line.startswith(f"| `configs/profiles/{name}.yaml`"))
        assert data.cameras and f"`{data.cameras[0]}`" in row and f"`{data.reference}`" in row


def test_the_profile_in_the_document_is_complete():
    """For DVC too, which asks for every parameter of its stages."""
    (text,) = blocks(ROOT / "docs/own_data.md", "yaml")
    values = yaml.safe_load(text)
    profile = parse_profile(values, Path("params.yaml"))
    (name,) = profile.families
    for one in (profile.family().expert, profile.family().apprentice):
        check_views(load_config(one.config), len(profile.data.cameras), one.config)
    for stage, body in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].items():
        for param in body.get("do", body)["params"] if stage not in ("check", "world") else ():
            found = values
            for part in param.replace("${key}", name).split("."):
                found = found[part]


def test_the_active_profile_is_the_embedded_one():
    assert read_yaml(PROFILES[0]) == read_yaml(ROOT / "configs/profiles/world.yaml")


def changed(*places: tuple[str, Any]) -> dict[str, Any]:
    """The active profile with values at dotted places."""
    values = read_yaml(ROOT / "params.yaml")
    for place, value in places:
        at = values
        *outer, last = place.split(".")
        for name in outer:
            at = at.setdefault(name, {})
        at[last] = value
    return values


@pytest.mark.parametrize(
    ("place", "value", "told"),
    [
        ("distill.w_bevv", 1, r"unknown setting distill.w_bevv; known: .*w_bev, .*w_pv"),
        ("distil", {}, r"unknown section 'distil'; known: .*distill"),
        ("focal.bev_margn", 1, r"unknown setting focal.bev_margn; known: bev_margin, min_score"),
        ("dump.cluster", {"worker": 2}, r"unknown setting dump.cluster.worker; known: address"),
        ("data.rot", "x", r"unknown setting data.rot; known: .*root"),
        ("world.sed", 1, r"unknown setting world.sed; known: .*seed"),
        ("families.detr3d.student", {}, r"unknown setting families.detr3d.student; known: apprentice, distill, expert"),
        ("families.detr3d.apprentice.train.sed", 1, r"unknown setting families.detr3d.apprentice.train.sed; known"),
        (
            "families.detr3d.distill.areas",
            "everywhere",
            r"^families.detr3d: distill.areas is everywhere, but dump.layout is",
        ),
        ("families.detr3d.distill.layers", [-1], r"^families.detr3d: distill.layers is \[-1\]; give different numbers"),
        ("families.detr3d.distill.wfine", 1, r"families.detr3d: unknown setting distill.wfine"),
        ("methods.magic", {}, r"unknown method methods.magic; known: plain, cwd, fgd"),
        ("methods.fd3d", {}, r"unknown method methods.fd3d; .*fd3d's settings are the section 'distill'"),
        ("methods.plain", {"w_pv": 1}, r"unknown setting methods.plain.w_pv; known: inherit"),
        ("methods.cwd", {"tau": 0}, r"methods.cwd.tau is 0.0; it must be positive"),
        ("distill.w_bev", "high", r"distill.w_bev is 'high'; it must be a finite number"),
        ("distill.w_bev", True, r"distill.w_bev is True; it must be a finite number"),
        ("distill.w_bev", float("nan"), r"distill.w_bev is nan; it must be a finite number"),
        ("distill.w_bev", float("inf"), r"distill.w_bev is inf; it must be a finite number"),
        ("distill.w_bev", 10**400, r"distill.w_bev is 10*; it must be a finite number"),
        ("world.photometric", float("inf"), r"world.photometric is inf; it must be a finite number"),
        ("families", {"a/b": {}}, r"families.a/b.*: a family's name is a folder below runs/"),
        ("families", {1: {}, "1": {}}, r"families.1.*: a family's name is a folder below runs/"),
        ("families", {"evaluate": {}}, r"families.evaluate.*: a family's name is a folder below runs/"),
        (
            "families",
            {"look": {}},
            r"families.look.*: a family's name is a folder below runs/.*, but not evaluate or look",
        ),
        (
            "families.detr3d.apprentice.train.max_iters",
            0,
            r"train.max_iters is 0; it must be at least 4, for the warm-up and decay",
        ),
        ("families.detr3d.apprentice.train.workers", -1, r"train.workers is -1; it must be at least 0"),
        ("families.detr3d.apprentice.train.curve_every", 0, r"train.curve_every is 0; it must be at least 1"),
        ("dump.frames_per_shard", 0, r"dump.frames_per_shard is 0; it must be at least 1"),
        ("dump.autocast", "fp8", r"dump.autocast is 'fp8'; use bf16, fp16 or null"),
        ("distill.levels", [0, 0], r"distill.levels is \[0, 0\]; give different numbers"),
        ("distill.layers", [-1], r"distill.layers is \[-1\]; give different numbers from 0 on"),
        ("distill.block", 1.5, r"distill.block is 1.5; it must be a whole number"),
        ("distill.residual", "yes", r"distill.residual is 'yes'; it must be true or false"),
        ("distill.inherit", "pts_bbox_head", r"distill.inherit is 'pts_bbox_head'; it must be a list"),
        ("distill.rule", [1], r"distill.rule is \[1\]; it must be a mapping"),
        ("distill.rule.num_queries", 61, r"distill.rule.num_queries is 61, but the store covers at most 60"),
        ("distill.areas", "everywhere", r"distill.areas is everywhere, but dump.layout is focal"),
        ("distill.head", "trainable", r"distill.head is trainable, but dump.layout is focal"),
        ("families.detr3d.expert.config", "nowhere.py", r"families.detr3d.expert.config nowhere.py does not exist"),
        ("families.detr3d.expert", {}, r"families.detr3d.expert has no config; give a path"),
        ("families", {}, r"has no section 'families', or an empty one"),
        ("data", None, r"has no section 'data'"),
        ("distill.rule.num_queries", 0, r"^distill.rule.num_queries is 0; it must be at least 1"),
        ("focal.pv_margin", -1, r"^focal.pv_margin is -1.0; it must not be negative"),
        ("data.val", "world_train", r"data.train and data.val are both 'world_train'; name another split"),
        ("data.val", " ", r"data.val is ' '; it must be a text"),
        ("data.dev", "world_val", r"data.dev and data.val are both 'world_val'; name another split"),
        ("data.dev", "world_train", r"data.train and data.dev are both 'world_train'; name another split"),
        ("world.dev_scenes", 1990, r"world.dev_scenes and world.val_scenes are 2014 together; use 2000 at most"),
        ("data.root", "", r"data.root is ''; it must be a path"),
        ("data.index", "x" * 300, r"data.index is 'x+.*it must be a path"),
        ("data.version", "v1.0-mini", r"data.version is v1.0-mini, but data.generate writes world.version, v1.0-world"),
        (
            "data.root",
            "data/other",
            r"data.root data/other is none of the data sets that data.generate makes, data/world",
        ),
        ("world.width", 100_000, r"world image size is 160x100000; use even sizes of 32 to 4096"),
        (
            "data",
            {"root": "a", "version": "v", "index": "i", "train": "t", "val": "e"},
            r"data has no generate; write 'generate: \[\]' for data of your own",
        ),
        (
            "families.detr3d",
            {"expert": {"config": "configs/world/expert.py"}, "apprentice": {"config": "configs/world/apprentice.py"}},
            r"families.detr3d has no distill; write 'distill: \{\}'",
        ),
        ("distill.levels", [], r"distill.levels is \[\]; give different numbers from 0 on, or null for all"),
        ("world.photometric", -1, r"world.photometric is -1.0; it must not be negative"),
    ],
)
def test_a_wrong_setting_is_named(place: str, value: Any, told: str):
    with pytest.raises(FD3DError, match=told):
        parse_profile(changed((place, value)), Path("params.yaml"))


def test_a_fault_of_the_section_that_a_family_overrides_is_the_sections():
    values = changed(("distill.w_pv", -1), ("distill.w_bev", -1), ("families.bevformer.distill", {"w_pv": 3.0}))
    with pytest.raises(FD3DError, match=r"^distill.w_pv is -1.0; it must not be negative"):
        parse_profile(values, Path("params.yaml"))
    hidden = changed(("distill.w_mixed", "x"))  # both families have another
    with pytest.raises(FD3DError, match=r"^distill.w_mixed is 'x'; it must be a finite number"):
        parse_profile(hidden, Path("params.yaml"))


def test_a_profile_without_a_section_that_dvc_asks_for_is_refused_by_every_command(tmp_path: Path):
    """DVC misses a section at the stage that reads it, whose outputs it has removed by then."""
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    assert stages.pop("check")["params"] == [{"params.yaml": None}]  # all of the file
    asked = {param.partition(".")[0] for stage in stages.values() for param in stage.get("do", stage)["params"]}
    assert asked == {"data", "world", "families", "focal", "dump", "distill"}
    for name in asked:
        values = changed()
        del values[name]
        with pytest.raises(FD3DError, match=f"params.yaml has no section '{name}'"):
            parse_profile(values, Path("params.yaml"))
    own = changed(("data.generate", []))
    del own["world"]
    parse_profile(own, Path("params.yaml"))
    for name in ("focal", "dump", "distill"):
        own[name] = None  # as DVC sees 'focal:', which is there
    parse_profile(own, Path("params.yaml"))
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump({name: values for name, values in changed().items() if name != "focal"}))
    for stage in ("check", "index", "train"):
        run = [sys.executable, "-m", "stages.cli", stage, "--params", str(path)]
        done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True)
        told = f"fd3d: {path} has no section 'focal'; write 'focal: {{}}' for the section's defaults"
        assert (done.returncode, done.stderr.splitlines()) == (1, [told])


def test_layers_that_the_dump_leaves_out_are_refused():
    with pytest.raises(FD3DError, match=r"distill.layers is \[1\], but dump.layers stores the last 1"):
        parse_profile(changed(("dump.layers", 1), ("distill.layers", [1])), Path("params.yaml"))
    parse_profile(changed(("dump.layers", 2), ("distill.layers", [1])), Path("params.yaml"))


def test_a_number_is_what_it_is_for_dvc(tmp_path: Path):
    text = (ROOT / "params.yaml").read_text()
    path = tmp_path / "params.yaml"
    path.write_text(text.replace("w_bev: 1.0", "w_bev: 5e-2").replace("bev_margin: 1.0", "bev_margin: 1"))
    profile = read_profile(path)
    assert profile.family().distill.w_bev == 0.05
    assert repr(profile.focal.bev_margin) == "1.0", "1 and 1.0 are one value, so one store"
    path.write_text(text.replace("w_bev: 1.0", "w_bev: yes"))
    with pytest.raises(FD3DError, match="w_bev is 'yes'; it must be a finite number"):
        read_profile(path)


@pytest.mark.parametrize(
    ("text", "told"),
    [("a: [1", "is no YAML"), ("- 1", "must be a mapping of sections"), ("a: 1\na: 2", "is no YAML: .*duplicate key")],
)
def test_a_broken_file_gets_one_line(tmp_path: Path, text: str, told: str):
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(FD3DError, match=told) as error:
        read_profile(path)
    assert "\n" not in str(error.value)
    with pytest.raises(FD3DError, match="nothing.yaml does not exist"):
        read_profile(tmp_path / "nothing.yaml")


def test_a_familys_settings_override_the_profiles():
    values = changed(
        ("families.detr3d.distill", {"w_fine": 4.0, "rule": {"num_queries": 10}}), ("methods.cwd", {"tau": 3})
    )
    profile = parse_profile(values, Path("params.yaml"))
    whole, own = profile.family("bevformer").distill, profile.family("detr3d").distill
    assert (own.w_fine, own.rule.num_queries, own.rule.bev_margin) == (4.0, 10, whole.rule.bev_margin)
    assert (whole.w_fine, whole.rule.num_queries) == (1.0, 60)
    assert profile.method("cwd", profile.family()) == METHODS["cwd"].from_dict({"tau": 3.0})
    assert profile.method("mgd", profile.family()) == MGDSettings()
    with pytest.raises(FD3DError, match="unknown method 'magic'; known: plain, cwd, fd3d"):
        profile.method("magic", profile.family())
    with pytest.raises(FD3DError, match="unknown family 'x' in .*; known: bevformer, detr3d"):
        profile.family("x")


@pytest.mark.parametrize("stage", ["index", "world", "dump", "train", "report"])
def test_every_stage_refuses_a_typo_before_it_works(tmp_path: Path, stage: str):
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(changed(("distill.w_bevv", 2.0))))
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "stages.cli", stage, "--params", str(path)], cwd=ROOT, capture_output=True, text=True
    )
    print(f"{stage}: {time.perf_counter() - started:.2f} s")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"fd3d: {path}: unknown setting distill.w_bevv; known: areas, block")


def test_checking_the_profile_imports_no_torch():
    """That is what makes the check take less than two seconds."""
    code = "import sys, stages.cli, pipeline.profile; sys.exit(any(m in sys.modules for m in ('torch', 'mmengine', 'cv2')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_a_checkpoint_that_is_not_there_is_refused_before_the_index_is_made(tmp_path: Path):
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(changed(("families.detr3d.expert.checkpoint", "checkpoints/none.pth"))))
    done = subprocess.run(
        [sys.executable, "-m", "stages.cli", "index", "--params", str(path)], cwd=ROOT, capture_output=True, text=True
    )
    assert "families.detr3d.expert.checkpoint checkpoints/none.pth does not exist" in done.stderr
    (tmp_path / "none.yaml").write_text(yaml.safe_dump(changed(("families.detr3d.expert.checkpoint", None))))
    read_profile(tmp_path / "none.yaml").check_checkpoints()


def test_a_pretrained_file_lies_where_dvc_sees_it(tmp_path: Path):
    where = "families.detr3d.apprentice.init"
    for path in ("weights/resnet50.pth", "/data/pretrained/resnet50.pth", "pretrained/../resnet50.pth", "."):
        with pytest.raises(
            FD3DError, match=f"{where} .* is not below pretrained/ or checkpoints/, whose files dvc.yaml depends on"
        ):
            parse_profile(changed((where, path)), ROOT / "params.yaml")
    parse_profile(changed((where, "checkpoints/resnet50.pth")), ROOT / "params.yaml")
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(changed((where, "pretrained/none.pth"))))
    profile = read_profile(tmp_path / "params.yaml")
    assert profile.family("detr3d").init("apprentice").checkpoint == Path("pretrained/none.pth")
    with pytest.raises(FD3DError, match=f"{where} pretrained/none.pth does not exist"):
        profile.check_checkpoints()


def test_an_expert_is_trained_or_taken():
    both = changed(("families.detr3d.expert.init", "pretrained/none.pth"))
    with pytest.raises(
        FD3DError, match="families.detr3d.expert.init is pretrained/none.pth, .* but checkpoint is given"
    ):
        parse_profile(both, ROOT / "params.yaml")


def test_conventions_without_a_checkpoint_are_refused():
    where = "families.detr3d.expert"
    with pytest.raises(FD3DError, match="expert.boxes is 'ancient'; use old or new"):
        parse_profile(changed((f"{where}.boxes", "ancient")), ROOT / "params.yaml")
    stated = changed((f"{where}.boxes", "new"))
    assert parse_profile(stated, ROOT / "params.yaml").family("detr3d").expert.boxes == "new"
    stated["families"]["detr3d"]["expert"]["checkpoint"] = None
    with pytest.raises(FD3DError, match="families.detr3d.expert.boxes tells of a checkpoint, but checkpoint is null"):
        parse_profile(stated, ROOT / "params.yaml")


def test_a_shipped_student_with_frozen_norms_has_a_pretrained_file():
    for path in PROFILES:
        for family in read_profile(path).families.values():
            norm = load_config(family.apprentice.config).model.img_backbone.norm_cfg
            assert norm.requires_grad or family.apprentice.init is not None, path


@pytest.mark.parametrize(
    ("train", "val", "told"),
    [
        (
            "trane",
            "val",
            "data.train is 'trane', of which data/nuscenes/v1.0-trainval has no scene; there are train, val, all",
        ),
        ("train", "mini_val", "data.val is 'mini_val', of which .* has no scene"),
        ("all", "val", "data.train 'all' and data.val 'val' share 1 scene, first scene-0003"),
    ],
)
def test_splits_that_cannot_be_are_named(train: str, val: str, told: str):
    splits = {"train": ["scene-0001", "scene-0002"], "val": ["scene-0003"]}

    def settings(train: str, val: str) -> DataSettings:
        return DataSettings(Path("data/nuscenes"), "v1.0-trainval", Path("runs/index.npz"), train, val)

    settings("train", "val").check_splits(splits)
    with pytest.raises(FD3DError, match=told):
        settings(train, val).check_splits(splits)


def test_a_split_for_choices_is_checked_like_the_others(tmp_path: Path):
    splits = {
        "train": ["scene-0001"],
        "val": ["scene-0003"],
        "mini": ["scene-0003", "scene-0004"],
        "dev": ["scene-0005"],
    }

    def settings(dev: str | None) -> DataSettings:
        return DataSettings(Path("data/nuscenes"), "v1.0-trainval", Path("runs/index.npz"), "train", "val", dev)

    settings("dev").check_splits(splits)
    assert settings("dev").source("dev").split == "dev"
    with pytest.raises(FD3DError, match="data.dev is 'dave', of which data/nuscenes/v1.0-trainval has no scene"):
        settings("dave").check_splits(splits)
    with pytest.raises(FD3DError, match="data.dev 'mini' and data.val 'val' share 1 scene, first scene-0003"):
        settings("mini").check_splits(splits)
    with pytest.raises(FD3DError, match="data.train 'train' and data.dev 'all' share 1 scene, first scene-0001"):
        settings("all").check_splits(splits)
    with pytest.raises(FD3DError, match="data.dev names no split; the profile has data.train, data.val"):
        settings(None).source("dev")
    assert settings(None).source("mini_val").split == "mini_val"  # any other is a split of the index


def test_index_refuses_a_split_for_choices_that_is_not_there(tmp_path: Path, world: Path):
    path = tmp_path / "params.yaml"
    places = {
        "data.root": str(world),
        "data.generate": [],
        "data.dev": "world_dev",
        "data.index": str(tmp_path / "i.npz"),
    }
    path.write_text(yaml.safe_dump(changed(*places.items())))
    done = subprocess.run(
        [sys.executable, "-m", "stages.cli", "index", "--params", str(path)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("fd3d: data.dev is 'world_dev', of which")


def test_the_benchmarks_students_share_a_backbone_that_is_not_the_experts():
    profile = read_profile(ROOT / "configs/profiles/benchmark.yaml")
    student, other = (load_config(f.apprentice.config).model.img_backbone for f in profile.families.values())
    assert student == other
    for family in profile.families.values():
        expert, own = (load_config(r.config).model for r in (family.expert, family.apprentice))
        widths = [model.img_backbone.base_channels for model in (expert, own)]
        stages = [model.img_backbone.num_stages for model in (expert, own)]
        assert widths[0] > widths[1] and stages[0] > stages[1]
        assert own.img_neck.in_channels == [widths[1] * 2**stage for stage in own.img_backbone.out_indices]


def test_detectors_are_evaluated_where_dvc_looks(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    words = yaml.safe_load(Path("dvc.yaml").read_text())["stages"]["evaluate"]["cmd"].split()
    places = [Path(words[words.index(name) + 1]) for name in ("--checkpoint", "--out", "--metrics")]
    found = read_profile(Path("params.yaml")).family("detr3d").evaluated("fd3d")
    filled = [str(path).replace("${item.family}", "detr3d").replace("${item.role}", "fd3d") for path in places]
    assert [str(path) for path in found] == filled
