"""A plan says what a dump then takes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from pipeline.cost.cameras import rig_cameras
from pipeline.cost.complexity import on_meta
from pipeline.cost.early import pyramid_of
from pipeline.cost.plan import Measured, coverage_of, expert_schema, plan_store, plan_work
from pipeline.data.index import FrameIndex
from pipeline.distill.base import Taps
from pipeline.dumping.settings import DumpSettings
from pipeline.errors import FD3DError
from pipeline.focal.rule import FocalRule
from pipeline.models.build import load_config
from pipeline.settings import read_yaml
from stages.cli import app
from store_schema import StoreError, StoreReader, StoreSchema, StoreWriter, quantise

SCHEMA = StoreSchema(
    bev=(50, 50, 32),
    pv=[(20, 36, 32, (8, 8))],
    cameras=("A", "B"),
    queries=30,
    bev_kmax=2500,
    pv_kmax=[1440],
    values="uint8",
    layers=1,
    heads=2,
    points=4,
    query_channels=32,
)


def disk_bytes(store: Path) -> int:
    """Bytes of all shards and constants."""
    return sum(f.stat().st_size for f in store.rglob("*") if f.is_file() and "c" in f.relative_to(store).parts)


def write_store(path: Path, scenes: int, seed: int) -> Path:
    """Scenes of four frames with features of some structure and some 300 cells per map, in shards of ten rows."""
    rng = np.random.default_rng(seed)
    tokens = {f"s{i}": [f"{seed:04d}{i:024d}{j:04d}" for j in range(4)] for i in range(scenes)}
    mixing = np.random.default_rng(0).normal(size=(4, 32))
    with StoreWriter(path, SCHEMA, {"expert": {}, "focal": {}}, tokens, 10) as writer:
        writer.write_constants({p: rng.normal(size=s.shape).astype(s.dtype) for p, s in SCHEMA.constants().items()})
        for shard in writer.pending():
            frames = {t: make_frame(rng, mixing) for name in writer.plan[shard] for t in tokens[name]}
            writer.write_shard(shard, frames)
        writer.finalise({})
    return path


def make_frame(rng: np.random.Generator, mixing: np.ndarray) -> dict[str, np.ndarray]:
    frame = {
        path: rng.random(spec.shape).astype(spec.dtype if spec.dtype.startswith("f") else "float32")
        for path, spec in SCHEMA.arrays().items()
        if spec.kind == "plain"
    }
    frame["query/label"] = rng.integers(0, 10, 30)
    for name, cells in (("bev", 2500), ("pv/0", 1440)):
        count = int(rng.integers(200, 400))
        start = rng.integers(0, cells - count)
        frame[f"{name}/index"] = np.arange(start, start + count)
        frame[f"{name}/values"], frame[f"{name}/affine"] = quantise(rng.normal(size=(count, 4)) @ mixing)
    return frame


def test_bytes_of_other_scenes_agree_within_five_per_cent(tmp_path):
    known, other = write_store(tmp_path / "known", 20, 1), write_store(tmp_path / "other", 50, 2)
    plan = plan_store(SCHEMA, 200, 10, Measured.of(known))
    assert plan.total == pytest.approx(disk_bytes(other), rel=0.05)
    reader = StoreReader(other)
    for array in plan.arrays:
        if array.total > 1e5:
            assert array.total == pytest.approx(disk_bytes(other / array.path), rel=0.06), array.path
    # two scenes of four fill eight of ten rows
    assert plan.files == 25 * len(SCHEMA.arrays())
    assert sum(len(files) for files in reader.manifest["shards"].values()) == plan.files


def test_its_own_bytes_are_exact_but_for_the_constants(tmp_path):
    store = write_store(tmp_path / "s", 4, 1)
    plan = plan_store(SCHEMA, 16, 10, Measured.of(store))
    for array in plan.arrays:
        if array.path in SCHEMA.arrays():
            assert array.total == pytest.approx(disk_bytes(store / array.path), abs=1), array.path


def test_the_schema_is_the_one_that_the_expert_gives(store, expert_config):
    schema = expert_schema(load_config(expert_config), rig_cameras(160, 288), DumpSettings(FocalRule()))
    assert schema == StoreReader(store).schema


@pytest.mark.parametrize(
    ("config", "bev", "finest", "reading"),
    [
        ("bevformer/base.py", (200, 200, 256), (116, 200, 256, (8, 8)), "bev"),
        ("detr3d/r101.py", None, (116, 200, 256, (8, 8)), "cameras"),
    ],
)
def test_sizes_of_the_papers_experts(project, config, bev, finest, reading):
    settings = DumpSettings(FocalRule(num_queries=300), values="uint8", layers=1)
    schema = expert_schema(load_config(project / "configs" / config), rig_cameras(), settings)
    assert (schema.bev, schema.pv[0], schema.reading) == (bev, finest, reading)
    assert (schema.layers, schema.queries, schema.query_channels) == (1, 300, 256)
    shares = coverage_of(["pv/0=0.5"], schema, {})
    plan = plan_store(schema, 100, 40, Measured(shares, {}))
    at = {array.path: array for array in plan.arrays}
    assert at["pv/0/values"].dense == 6 * 116 * 200 * 256 * 2
    assert at["pv/0/values"].frame == 0.5 * 6 * 116 * 200 * 256
    assert plan.dense > (115e6 if bev else 94e6)


def test_online_distillation_runs_the_expert_for_every_student_and_epoch():
    once, online = plan_work(28130, 2.0, 8), plan_work(28130 * 24 * 3, 2.0, 8)
    assert once.elapsed == pytest.approx(28130 / 2 / 3600 / 8) and once.hours == once.elapsed * 8
    assert online.hours == pytest.approx(72 * once.hours)


@pytest.mark.parametrize("text", ["pv/7=0.1", "bev=2", "bev", "bev=x"])
def test_a_coverage_that_is_none_is_refused(text):
    with pytest.raises(FD3DError, match="give MAP=SHARE with a map of bev, pv/0 and a share in 0..1"):
        coverage_of([text], SCHEMA, {})


def test_the_command_prints_store_and_work(store, expert_config, project):
    options = ["--frames", "2000", "--rate", "5", "--students", "2", "--epochs", "10", "--like", str(store)]
    size = ["--height", "160", "--width", "288", "--params", str(project / "params.yaml")]
    done = CliRunner().invoke(app, ["plan", str(expert_config), *options, *size])
    assert done.exit_code == 0, done.output
    lines = {line[:24].strip(): line[24:].split() for line in done.output.splitlines()}
    assert lines["dump once"][0] == "2000" and lines["online, 2 x 10 epochs"][0] == "40000"
    assert float(lines["dump once"][3]) > 0 and lines["online, 2 x 10 epochs"][3] == "0.00"
    assert "bev/values" in lines and "per GB" in done.output
    assert "shares of cells as of nuScenes" not in done.output


def planned(*options: str) -> str:
    done = CliRunner().invoke(app, ["plan", *options])
    assert done.exit_code == 0, done.output
    return done.output


def test_a_config_without_a_rate_has_bytes_without_hours(expert_config, project, monkeypatch):
    monkeypatch.chdir(project)
    options = ["plan", str(expert_config), "--frames", "2000", "--height", "160", "--width", "288"]
    with_rate, without = (
        CliRunner().invoke(app, [*options, *more], catch_exceptions=False).stdout for more in (["--rate", "5"], [])
    )
    sizes, hours = with_rate.split("worker-hours")[0].rsplit("\n", 1)
    assert "2000 frames, " in sizes and "expert passes" in hours
    assert "shares of cells as of nuScenes' boxes without margins" in sizes
    rest = without.removeprefix(sizes + "\n")
    assert rest != without and "passes" not in rest
    told = f"expert hours need --rate, the frames per second of the expert on one GPU: time 'fd3d dump --config {expert_config} "
    assert rest.startswith(told) and "expert stage" not in rest


def test_a_family_s_plan_has_hours_and_memory_of_its_trainings(project, monkeypatch):
    monkeypatch.chdir(project)
    size = ["--height", "160", "--width", "288", "--frames", "28130"]
    output = planned("--params", "configs/profiles/paper-small.yaml", "--rate", "2", "--train-rate", "4", *size)
    assert output.startswith("== small: configs/bevformer/base.py -> configs/bevformer/small.py, 28130 frames")
    lines = {line[:24].strip(): line[24:].split() for line in output.splitlines()}
    once, online = lines["dump once"], lines["online, 1 x 24 epochs"]
    assert [float(n) for n in once[2:4]] == pytest.approx([28130 / 2 / 3600, 28130 / 2 / 3600 / 8], abs=0.05)
    assert float(once[-1]) > 0 and int(online[0]) == 24 * 28130
    rows = [line.split() for line in output.splitlines() if line.startswith(("plain  ", "fd3d  "))]
    hours = 84_390 * 8 / 4 / 3600
    assert [(row[0], row[1]) for row in rows] == [("plain", "1"), ("plain", "8"), ("fd3d", "1"), ("fd3d", "8")]
    assert [float(row[2]) for row in rows] == pytest.approx([hours, hours / 8] * 2, abs=0.06)
    assert "8 = 8 processes x 1 x 1 accumulated; 84,390 updates" in output
    plain, fd3d = ([float(n) for n in lines[f"{name}, batch 1"]] for name in ("plain", "fd3d"))
    assert plain[-1] == pytest.approx(sum(plain[:-1]), abs=0.03) and plain[4] == 0
    assert fd3d[-1] == pytest.approx(plain[-1] + fd3d[4], abs=0.02) and fd3d[4] > 0


def test_a_plan_refuses_mixed_pyramids_of_other_channels(project, tmp_path, monkeypatch):
    monkeypatch.chdir(project)
    student = tmp_path / "student.py"
    base = project / "configs/world/detr3d_apprentice.py"
    student.write_text(f"_base_ = {str(base)!r}\nmodel = dict(img_neck=dict(out_channels=32))\n")
    values = read_yaml(project / "params.yaml")
    values["families"]["detr3d"]["apprentice"]["config"] = str(student)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
    options = ["--family", "detr3d", "--frames", "9", "--params", str(tmp_path / "params.yaml")]
    done = CliRunner().invoke(app, ["plan", *options, "--height", "160", "--width", "288"])
    told = "families.detr3d: distill.w_mixed is set, but the student's pyramid has 32 channels and level 0 of the expert's 64"
    assert str(done.exception).startswith(told)


@pytest.fixture
def indexed(project, tmp_path, monkeypatch, world_index):
    """The active profile with another index, as a file."""
    monkeypatch.chdir(project)

    def write(index: Path = world_index) -> str:
        values = read_yaml(project / "params.yaml")
        values["data"]["index"] = str(index)
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
        return str(tmp_path / "params.yaml")

    return write


def test_a_plan_without_rates_says_what_to_measure_and_takes_frames_from_the_index(indexed):
    output = planned("--params", indexed(), "--family", "detr3d", "--height", "160", "--width", "288")
    assert "== detr3d: " in output and "== bevformer" not in output and ", 6 frames" in output
    assert "expert hours need --rate" in output and "training hours need --train-rate" in output
    assert "dump once" not in output


def test_shards_are_those_of_the_data_set(indexed, tmp_path):
    """Two scenes of three frames."""
    size = ("--family", "detr3d", "--height", "160", "--width", "288")
    assert "; 1 shard of up to 40 frames, 15 % filled" in planned("--params", indexed(), *size)
    assert "; 1 shard of up to 40 frames, 100 % filled" in planned("--params", indexed(), *size, "--frames", "40")
    assert "; 2 shards of up to 40 frames, 51 % filled" in planned("--params", indexed(), *size, "--frames", "41")
    values = yaml.safe_load((tmp_path / "params.yaml").read_text())
    for rows, told in ((5, "2 shards of up to 5 frames, 60 % filled"), (3, "2 shards of up to 3 frames, 100 % filled")):
        values["dump"]["frames_per_shard"] = rows
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
        assert told in planned("--params", str(tmp_path / "params.yaml"), *size)
    values["dump"]["frames_per_shard"] = 2
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
    done = CliRunner().invoke(app, ["plan", "--params", str(tmp_path / "params.yaml"), *size])
    assert isinstance(done.exception, StoreError) and "has 3 frames, a shard 2; raise" in str(done.exception)


def test_a_last_shard_that_is_hardly_filled_tells_nothing_of_another_store(tmp_path):
    """Five scenes of four frames in shards of ten: two of eight frames, and one of four."""
    assert Measured.of(write_store(tmp_path / "five", 5, 1)).fill == 0.8
    assert Measured.of(write_store(tmp_path / "one", 1, 1)).fill == 1.0


def test_frames_that_nothing_tells_are_asked_for_and_those_of_an_index_taken(indexed, world_index, tmp_path):
    done = CliRunner().invoke(app, ["plan", "--params", indexed(tmp_path / "none.npz")])
    assert isinstance(done.exception, FD3DError) and "give --frames" in str(done.exception)
    named = CliRunner().invoke(app, ["plan", "--params", indexed(), "--index", str(tmp_path / "other.npz")])
    assert isinstance(named.exception, FD3DError) and str(named.exception).startswith(str(tmp_path / "other.npz"))
    given = ["--index", str(world_index), "--rate", "1", "--train-rate", "1"]
    done = CliRunner().invoke(app, ["plan", "--params", indexed(tmp_path / "none.npz"), *given])
    assert done.exit_code == 0 and f", {len(FrameIndex.load(world_index).select('world_train'))} frames" in done.output


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["configs/bevformer/base.py", "--frames", "10", "--rate", "0"], "--rate is 0"),
        (["--frames", "10", "--train-rate", "-1"], "--train-rate is -1"),
        (["--frames", "10", "--rate", "nan"], "--rate is nan"),
        (
            ["--frames", "10", "--rate", "1", "--family", "bevformer"],
            "pyramid level 0 of the student is (",
        ),
        (["configs/bevformer/base.py", "--family", "detr3d"], "--family is of the profile"),
        (["--family", "detr4d", "--frames", "10"], "unknown family 'detr4d'"),
    ],
)
def test_a_plan_that_lacks_something_says_what(project, monkeypatch, options, told):
    monkeypatch.chdir(project)
    done = CliRunner().invoke(app, ["plan", *options])
    assert isinstance(done.exception, FD3DError) and told in str(done.exception)


@pytest.mark.parametrize(
    "name",
    ["world/expert", "world/apprentice", "world/five_apprentice", "bevformer/tiny", "bevformer/base", "detr3d/r101"],
)
def test_a_pyramid_is_told_from_the_config_as_it_is_built(name: str, project: Path) -> None:
    """Sizes that no stride divides; the FPN's own levels are not told."""
    cameras = rig_cameras(450, 806)
    path = project / f"configs/{name}.py"
    cfg = load_config(path)
    if "five" in name:
        cameras = replace(cameras, intrinsics=cameras.intrinsics[:5], lidar2cam=cameras.lidar2cam[:5])
    with on_meta(cfg, cameras) as (model, batch, _):
        taps = Taps(model, {"pv": "img_neck"})
        model(**batch, mode="tensor")
        built = [tuple(level.shape[-2:]) for level in taps.read("pv")]
    told = pyramid_of(path, cameras.image_hw)
    assert len(told) >= 3 and told == built[: len(told)]
    assert pyramid_of(project / "params.yaml", (450, 806)) == []
