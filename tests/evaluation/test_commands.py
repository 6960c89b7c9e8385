"""``fd3d index`` and ``fd3d evaluate`` on data sets of one's own."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from pipeline.data.index import FrameIndex, build_index
from pipeline.errors import FD3DError
from pipeline.evaluation.submission import write_submission
from pipeline.models.build import load_config, write_config
from stages.cli import app

VERSION = "v1.0-world"


def fd3d(*arguments: object) -> str:
    """Output of a command that succeeds."""
    done = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture
def own(world: Path, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set with splits ``train`` and ``val``, below a folder with its profile, which is the working folder."""
    root = tmp_path / "data"
    shutil.copytree(world / VERSION, root / VERSION)
    for folder in ("samples", "can_bus"):
        (root / folder).symlink_to(world / folder)
    scenes = [row["name"] for row in json.loads((root / VERSION / "scene.json").read_text())]
    (root / VERSION / "splits.json").write_text(json.dumps({"train": scenes[:2], "val": scenes[2:]}))
    (tmp_path / "configs").symlink_to(project / "configs")
    (tmp_path / "checkpoints").symlink_to(project / "checkpoints")
    monkeypatch.chdir(tmp_path)
    profile(project, {})
    return root


def profile(project: Path, data: dict[str, Any]) -> None:
    params = yaml.safe_load((project / "params.yaml").read_text())
    own = {"root": "data", "index": "index.npz", "train": "train", "val": "val", "generate": []}
    params["data"] |= own | data
    Path("params.yaml").write_text(yaml.safe_dump(params))


def repeated(index: FrameIndex, split: str, path: Path) -> Path:
    """A submission that repeats the annotations of a split."""
    frames = [index[row] for row in index.select(split)]
    found = [(f.token, np.nan_to_num(f.boxes), np.linspace(1, 0.5, len(f.labels)), f.labels) for f in frames]
    write_submission(path, index, found)
    return path


def test_a_submission_is_scored_on_own_splits_without_a_detector(own: Path) -> None:
    assert "index.npz: 9 frames in 3 scenes, splits train, val" in fd3d("index")
    for split in ("val", "train", "all"):
        file = repeated(FrameIndex.load("index.npz"), split, Path("given.json"))
        said = fd3d("evaluate", "--submission", file, "--split", split, "--out", "out", "--metrics", "out/m.json")
        found = json.loads(Path("out/m.json").read_text())
        assert found["mAP"] > 50 and f"given.json: NDS {found['NDS']}, mAP {found['mAP']}" in said
        assert Path("out/pr.csv").is_file()
    place = ("--out", "out", "--metrics", "out/m.json")
    with pytest.raises(
        FD3DError, match="has 3 of the 3 samples of val and 6 others, .*: it is of split 'all'; give --split all"
    ):
        fd3d("evaluate", "--submission", "given.json", *place)
    for both in ((), ("--submission", "given.json", "--checkpoint", "checkpoints/world_expert.pth")):
        with pytest.raises(FD3DError, match="give one of --checkpoint and --submission"):
            fd3d("evaluate", *both, *place)


def test_a_submission_of_other_frames_says_whose_it_is(own: Path) -> None:
    fd3d("index")
    place = ("--submission", "given.json", "--out", "out", "--metrics", "out/m.json")
    file = repeated(FrameIndex.load("index.npz"), "train", Path("given.json"))
    with pytest.raises(
        FD3DError, match="given.json has 0 of the 3 samples of val .*: it is of split 'train'; give --split train"
    ):
        fd3d("evaluate", *place)
    whole = json.loads(file.read_text())
    for change, told in (
        (
            lambda results: {f"x{token}": [] for token in results},
            r"none of its samples can be found in index .*index.npz; give .* --index",
        ),
        (lambda results: dict(list(results.items())[1:]), "it is of no whole split; detect on all of the split again"),
        (
            lambda results: results | {"odd": []},
            "1 sample of its 7 cannot be found in index .*; give .* --index, or detect again",
        ),
    ):
        file.write_text(json.dumps(whole | {"results": change(whole["results"])}))
        with pytest.raises(FD3DError, match=told):
            fd3d("evaluate", *place)


def test_a_split_is_the_profiles_or_the_given_indexs_own(own: Path, project: Path) -> None:
    """The profile's val is named 'val' by --split; another index may lack that split, and have one of the setting's name."""
    fd3d("index")
    file = repeated(FrameIndex.load("index.npz"), "val", Path("given.json"))
    place = ("--submission", file, "--out", "out", "--metrics", "out/m.json")
    shutil.move("index.npz", "other.npz")
    other, tables = Path("other"), own / VERSION
    shutil.copytree(own, other, symlinks=True)
    splits = json.loads((tables / "splits.json").read_text())
    (tables / "splits.json").write_text(json.dumps({"learn": splits["train"], "judge": splits["val"]}))
    profile(project, {"train": "learn", "val": "judge"})
    fd3d("index")
    assert " on split 'judge'" in fd3d("evaluate", *place)
    assert " on split 'judge'" in fd3d("evaluate", *place, "--split", "judge")
    assert " on split 'val'" in fd3d("evaluate", *place, "--index", "other.npz", "--root", other)
    with pytest.raises(FD3DError, match="given.json has 0 of the 6 samples of train .*; give --split val"):
        fd3d("evaluate", *place, "--index", "other.npz", "--root", other, "--split", "train")
    profile(project, {"train": "judge", "val": "learn"})
    with pytest.raises(FD3DError, match="given.json has 0 of the 6 samples of learn"):
        fd3d("evaluate", *place)  # the setting, not a split of that name


def test_metrics_say_what_was_evaluated_and_lie_where_the_report_looks(own: Path, project: Path) -> None:
    fd3d("index")
    expert = Path("runs/bevformer/expert")
    expert.mkdir(parents=True)
    shutil.copy(project / "checkpoints/world_expert.pth", expert / "detector.pth")
    write_config(load_config(project / "configs/world/expert.py"), expert / "config.py")
    fd3d("evaluate", "--role", "expert", "--workers", 0)
    (told,) = json.loads(Path("metrics/detectors/bevformer/expert.json").read_text())["evaluated"]
    of = {
        name: hashlib.sha256(path.read_bytes()).hexdigest()
        for name, path in (("checkpoint", expert / "detector.pth"), ("index", Path("index.npz")))
    }
    assert told == {"checkpoint_sha256": of["checkpoint"], "index_sha256": of["index"], "split": "val"}
    submission = Path("runs/evaluate/bevformer/expert/submission.json")
    assert submission.is_file() and submission.with_name("pr.csv").is_file()
    fd3d("evaluate", "--submission", submission, "--family", "detr3d", "--role", "plain")
    (told,) = json.loads(Path("metrics/detectors/detr3d/plain.json").read_text())["evaluated"]
    assert told == {"checkpoint_sha256": None, "index_sha256": of["index"], "split": "val"}
    with pytest.raises(FD3DError, match="runs/bevformer/fd3d/detector.pth does not exist"):
        fd3d("evaluate", "--role", "fd3d")
    with pytest.raises(FD3DError, match="give --out and --metrics, or --role and --family"):
        fd3d("evaluate", "--checkpoint", expert / "detector.pth", "--out", "out")


def test_data_that_a_profile_generates_are_to_be_generated_first(own: Path, project: Path, monkeypatch) -> None:
    profile(project, {"root": "data/mine", "generate": ["mine", "world"]})
    with pytest.raises(
        FD3DError, match="data/mine has no folder v1.0-world; generate .* 'fd3d world --root data/mine'$"
    ):
        fd3d("index")
    shutil.copy("params.yaml", "other.yaml")
    with pytest.raises(FD3DError, match="generate .* 'fd3d world --root data/mine --params other.yaml'"):
        fd3d("index", "--params", "other.yaml")
    made: list[Path] = []

    def generate(root: Path, settings: object, workers: int) -> dict[str, Any]:
        made.append(root)
        return {"scenes": 0, "frames": 0, "rows": {"sample_annotation": 0}}

    monkeypatch.setattr("pipeline.data.world.generate.generate_world", generate)
    fd3d("world")
    fd3d("world", "--root", "data/world")
    profile(project, {})
    fd3d("world")
    assert made == [Path("data/mine"), Path("data/world"), Path("data/world")]
    with pytest.raises(FD3DError, match="data has no folder v1.0-gone; give the data set's root"):
        profile(project, {"version": "v1.0-gone"})
        fd3d("index")


def test_what_a_detector_would_meet_late_is_named_before_it_is_loaded(own: Path, project: Path, monkeypatch) -> None:
    def load(*args: object) -> None:
        raise AssertionError("the detector is loaded")

    fd3d("index")
    monkeypatch.setattr("pipeline.evaluation.run.load_detector", load)
    evaluated = (
        "evaluate",
        "--config",
        "configs/world/expert.py",
        "--out",
        "out",
        "--metrics",
        "out/m.json",
        "--checkpoint",
    )
    index = FrameIndex.load("index.npz")
    gone = index[index.select("val")[-1]].image_paths[3]
    samples = (own / "samples").resolve()
    (own / "samples").unlink()
    shutil.copytree(samples, own / "samples")
    (own / gone).write_bytes(b"")
    with pytest.raises(FD3DError, match=f"image .*{gone} is empty; copy it again"):
        fd3d(*evaluated, "checkpoints/world_expert.pth")
    for section, told in (
        ({"cameras": index.cameras[::-1]}, r"index index.npz was made with data.cameras .*, the profile has \['CAM_"),
        ({"reference": "ego"}, "was made with data.reference LIDAR_TOP, the profile has ego; run 'fd3d index' again"),
        (
            {"classes": {"vehicle.car": "truck"}},
            "was made with data.classes {}, the profile has {'vehicle.car': 'truck'}",
        ),
    ):
        profile(project, section)
        with pytest.raises(FD3DError, match=told):
            fd3d(*evaluated, "checkpoints/world_expert.pth")
    with pytest.raises(FD3DError, match="submission nope.json does not exist; write one with"):
        profile(project, {})
        fd3d("evaluate", "--submission", "nope.json", "--out", "out", "--metrics", "out/m.json")


def changed(submission: dict[str, Any], **values: Any) -> str:
    token = next(token for token, boxes in submission["results"].items() if boxes)
    submission["results"][token][0].update(values)
    return json.dumps(submission)


@pytest.mark.parametrize("annotated", [True, False])
def test_submissions_that_cannot_be_are_one_line_that_names_the_sample(own: Path, annotated: bool) -> None:
    fd3d("index")
    given = repeated(FrameIndex.load("index.npz"), "val", Path("given.json"))
    place = ["--submission", given, "--out", "out", "--metrics", "out/m.json"]
    if not annotated:
        for table in ("sample_annotation", "instance"):
            (own / VERSION / f"{table}.json").write_text("[]")
        fd3d("index", "--root", "data", "--version", VERSION, "--out", "test.npz")
        place += ["--index", "test.npz"]
        told = "split 'val' has no annotations, so there are no metrics; given.json fits it"
        assert told in fd3d("evaluate", *place) and not Path("out/m.json").exists()
    text, sample = given.read_text(), "sample [0-9a-f]{32}"
    first = next(iter(json.loads(text)["results"]))
    for wrong, told in (
        ("garbage", "submission given.json cannot be read: "),
        (f'{text[:-2]}, "{first}": []}}}}', f"has {sample} twice; keep one"),
        (json.dumps({"meta": {}, "results": {}}), "has 0 of the 3 samples of val and 0 others, first "),
        (f'{text[:-1]}, "results": {{}}}}', "cannot be read: 'results' is there twice"),
        (json.dumps({"meta": {}, "results": {first: 5}}), f"has 5 for {sample}; it must be a list of boxes"),
        (json.dumps({"meta": {}, "results": {first: [7]}}), f"has 7 for {sample}, which is no box of this sample"),
        (changed(json.loads(text), sample_token="0" * 32), f"for {sample}, which is no box of this sample"),
        (changed(json.loads(text), detection_score=-1.0), f"has detection_score -1.0 for {sample}; give numbers of 0"),
        (changed(json.loads(text), detection_score=float("nan")), f"has detection_score nan for {sample}; give"),
        (changed(json.loads(text), detection_score="0.5"), f"has detection_score '0.5' for {sample}; give"),
        (changed(json.loads(text), detection_score=10**400), f"has detection_score 10{{37}}.* for {sample}; give"),
        (changed(json.loads(text), detection_score=True), f"has detection_score True for {sample}; give"),
        (changed(json.loads(text), velocity=[10**400, 0]), rf"has velocity \[10{{30}}.* for {sample}; give 2 numbers"),
        (changed(json.loads(text), velocity=["1", "2"]), rf"has velocity \['1', '2'\] for {sample}; give 2 numbers"),
        (changed(json.loads(text), velocity=[None, 0]), rf"has velocity \[None, 0\] for {sample}; give 2 numbers"),
        (changed(json.loads(text), velocity=[[1], [2, 3]]), f"has velocity .* for {sample}; give 2 numbers"),
        (
            changed(json.loads(text), velocity=[1e10, 0]),
            f"a box of {sample} that cannot be: .*velocity .1000.*up to 1e",
        ),
        (changed(json.loads(text), size=[1, 10**400, 1]), rf"has size \[1, 10{{30}}.* for {sample}; give 3 numbers"),
        (changed(json.loads(text), size={"a": 1}), f"has size .'a': 1. for {sample}; give 3 numbers"),
        (changed(json.loads(text), translation=[-(10**30), 0, 0]), f"has translation .* for {sample}; give 3 numbers"),
        (changed(json.loads(text), rotation=[True, 0, 0, 0]), f"has rotation .True.* for {sample}; give 4 numbers"),
        (changed(json.loads(text), ego_translation=[10**400] * 3), f"has ego_translation .* for {sample}; give 3"),
        (
            changed(json.loads(text), num_pts=float("inf")),
            f"has num_pts inf for {sample}; give a whole number, or leave",
        ),
        (changed(json.loads(text), num_pts=float("nan")), f"has num_pts nan for {sample}; give a whole number"),
        (changed(json.loads(text), num_pts=1e300), f"has num_pts 1e.300 for {sample}; give a whole number"),
        (changed(json.loads(text), num_pts=10**400), f"has num_pts 10{{50}}.* for {sample}; give a whole number"),
        (changed(json.loads(text), num_pts=[3]), rf"has num_pts \[3\] for {sample}; give a whole number"),
        (
            changed(json.loads(text), detection_name="a\nb" * 99),
            f"of {sample} that the devkit refuses: .*Unknown.* a ba b",
        ),
        (
            changed(json.loads(text), num_pts=7).replace(" 7", "7" * 5000),
            r"cannot be read: Exceeds the limit .*, in the v",
        ),
        (json.dumps({"results": {"\nb": []}}), r"has 0 of the \d+ samples of val and 1 other, first .nb: "),
        ('{"results": {5: []}}', 'cannot be read: 5 stands where " is expected'),
        (changed(json.loads(text), detection_name="Kfz"), f"has a box of {sample} that the devkit refuses: .*Kfz"),
        (
            changed(json.loads(text), translation=[float("nan")] * 3),
            f"a box of {sample} that the devkit refuses: Asser",
        ),
        (
            changed(json.loads(text), rotation=[0, 0, 0, 0]),
            f"has a box of {sample} that cannot be: .*rotation .0.*; give",
        ),
        (
            changed(json.loads(text), velocity=[float("inf"), 0]),
            f"has a box of {sample} that cannot be: .*velocity .inf",
        ),
        (changed(json.loads(text), size=[-1, 1, 1]), f"has a box of {sample} that cannot be: .*size .-1, 1, 1"),
        (changed(json.loads(text), size=[1, 1]), f"a box of {sample} that the devkit refuses: Asser"),
    ):
        given.write_text(wrong)
        with pytest.raises(FD3DError, match=told) as caught:
            fd3d("evaluate", *place)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
    odd = {"num_pts": 3.0, "extra": {"a": [10**400, None]}, "velocity": [float("nan"), 0]}
    given.write_text(changed(json.loads(text), **odd))
    fd3d("evaluate", *place)


def test_a_split_without_annotations_is_detected_on_and_said_so(own: Path, project: Path) -> None:
    fd3d("index")
    for table in ("sample_annotation", "instance"):
        (own / VERSION / f"{table}.json").write_text("[]")
    profile(project, {"classes": {"vehicle.car": "truck"}, "reference": "ego"})
    with pytest.raises(
        FD3DError,
        match="data.train 'train' has no box that counts; name a split with annotations, or give --out with another file than",
    ):
        fd3d("index")
    fd3d("index", "--out", "test.npz")
    made = FrameIndex.load("test.npz")
    assert (made.reference, made.classes) == ("ego", {"vehicle.car": "truck"})
    profile(project, {})
    Path("index.npz").unlink()  # of the refused profile's settings
    fd3d("index", "--version", VERSION, "--out", "test.npz")
    assert FrameIndex.load("test.npz").classes == {}
    detector = ("--checkpoint", "checkpoints/world_expert.pth", "--config", "configs/world/expert.py", "--workers", 0)
    place = ("--index", "test.npz", "--out", "out", "--metrics", "out/m.json")
    said = fd3d("evaluate", *detector, *place)
    assert "split 'val' has no annotations, so there are no metrics; out/submission.json is the submission" in said
    assert len(json.loads(Path("out/submission.json").read_text())["results"]) == 3
    assert not Path("out/m.json").exists()


def test_a_profile_that_is_given_is_read(own: Path, project: Path) -> None:
    """Of a data set that --root and --version name, for cameras, frame of reference and classes."""
    path = own / VERSION / "category.json"
    path.write_text(json.dumps([row | {"name": f"own.{n}"} for n, row in enumerate(json.loads(path.read_text()))]))
    other = ("--root", "data", "--version", VERSION, "--out", "other.npz")
    with pytest.raises(
        FD3DError,
        match="under data.classes, such as .*: car}; --root and --version read no profile: name one by --params$",
    ):
        fd3d("index", *other)
    with pytest.raises(FD3DError, match="under data.classes, such as {own[.0-9]*: car}$"):
        fd3d("index", *other, "--params", "params.yaml")
    profile(project, {"classes": {f"own.{n}": "car" for n in range(len(json.loads(path.read_text())))}})
    fd3d("index", *other, "--params", "params.yaml")
    fd3d("index")
    assert FrameIndex.load("other.npz").sha256 == FrameIndex.load("index.npz").sha256
    # another version, without the profile's splits
    shutil.copytree(own / VERSION, own / "v1.0-other")
    (own / "v1.0-other/splits.json").unlink()
    fd3d("index", "--version", "v1.0-other", "--out", "third.npz")
    assert FrameIndex.load("third.npz").classes == FrameIndex.load("index.npz").classes != {}


def test_incomplete_frames_are_left_out_as_the_profile_or_the_option_says(own: Path, project: Path) -> None:
    fd3d("index")
    whole = FrameIndex.load("index.npz")
    before, gone = whole.sha256, whole[whole.select("train")[1]]
    profile(project, {"skip_incomplete": True})
    fd3d("index")
    assert FrameIndex.load("index.npz").sha256 == before
    path = own / VERSION / "sample_data.json"
    rows = [row for row in json.loads(path.read_text()) if row["filename"] != gone.image_paths[2]]
    path.write_text(json.dumps(rows))
    assert "are skipped" in fd3d("index")
    assert not FrameIndex.load("index.npz").has(gone.token)
    refused = "1 of 9 frames of .*; data.skip_incomplete: true or --skip-incomplete leaves them out"
    with pytest.raises(FD3DError, match=f"{refused}$"):
        fd3d("index", "--no-skip-incomplete")
    profile(project, {"skip_incomplete": False})
    with pytest.raises(FD3DError, match=f"{refused}$"):
        fd3d("index")
    assert "are skipped" in fd3d("index", "--skip-incomplete")


def test_the_index_prints_what_does_not_count(own: Path, project: Path) -> None:
    path = own / VERSION / "category.json"
    path.write_text(path.read_text().replace("vehicle.car", "Kfz"))
    assert "boxes of 1 category are not mapped: Kfz (" in fd3d("index")
    profile(project, {"classes": {"Kfz": "car"}})
    assert "not mapped" not in fd3d("index")
    index = FrameIndex.load("index.npz")
    file = repeated(index, "val", Path("given.json"))
    fd3d("evaluate", "--submission", file, "--out", "out", "--metrics", "out/m.json")
    assert json.loads(Path("out/m.json").read_text())["AP"]["car"] > 50
    build_index("data", VERSION, "plain.npz")
    assert index.sha256 != FrameIndex.load("plain.npz").sha256
