"""Experts of other families: the documented ImVoxelNet, and any detector through the plain adapter."""

import csv
import importlib
import os
import re
import shlex
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from mmdet3d.registry import DATASETS, MODELS
from mmdet3d.structures import Det3DDataSample, LiDARInstance3DBoxes
from mmengine.config import Config
from mmengine.structures import InstanceData

import pipeline.distill.methods.fd3d  # noqa: F401  registers FocalDistiller
from pipeline.data.frames import collate, frame_batches, frame_dataset
from pipeline.distill.loading import cached_targets
from pipeline.dumping.dump import dump
from pipeline.dumping.settings import DumpSettings
from pipeline.errors import FD3DError
from pipeline.expert import DetectorAdapter, ExpertFrame, TappedExpert, build_adapter
from pipeline.expert.frame import check_frame
from pipeline.expert.load import identity
from pipeline.expert.maps import check_turned
from pipeline.focal.rule import FocalRule
from pipeline.models.build import load_config, write_config
from pipeline.models.load import load_detector
from store_schema import StoreReader

PROJECT = Path(__file__).resolve().parent.parent
PAGE = (PROJECT / "docs" / "adapters.md").read_text()
# an untrained head's scores would be 0.01, below what spans an area
CONFIDENT = """
model["bbox_head"]["init_cfg"] = dict(
    type="Normal", layer="Conv2d", std=0.01, override=dict(type="Normal", name="conv_cls", std=0.01, bias_prob=0.3)
)
"""


@pytest.fixture(scope="module")
def example(tmp_path_factory, world, world_index) -> Path:
    """A user's folder with the page's adapter and config; its commands have been run."""
    folder = tmp_path_factory.mktemp("example")
    for name, text in re.findall(r"```python\n# (\w+\.py)\n(.*?)```", PAGE, re.DOTALL):
        (folder / name).write_text(text)
    with open(folder / "imvoxelnet.py", "a") as file:
        file.write(CONFIDENT)
    params = yaml.safe_load((PROJECT / "params.yaml").read_text())
    params["data"] |= {"root": str(world), "index": str(world_index)}
    apprentice = {"config": str(PROJECT / "configs/world/apprentice.py"), "train": {"max_iters": 4, "workers": 0}}
    params["families"] = {
        "bevformer": {
            "expert": {"config": str(PROJECT / "configs/world/expert.py")},
            "apprentice": apprentice,
            "distill": {},
        }
    }
    params["distill"]["inherit"] = []  # as the page says
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    commands = re.findall(r"```\n((?:PYTHONPATH=. )?fd3d.*?)```", PAGE, re.DOTALL)[0].strip().splitlines()
    assert len(commands) == 2
    for command, paths in zip(commands, ([folder, PROJECT], [PROJECT]), strict=True):
        _, _, arguments = command.partition("fd3d ")
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths))}
        done = subprocess.run(
            [sys.executable, "-m", "stages.cli", *shlex.split(arguments)],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-2000:]
    return folder


@pytest.fixture(scope="module")
def imvoxelnet(example):
    """The example's expert in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(example)
        importlib.import_module("front_camera")
        cfg = load_config(example / "imvoxelnet.py")
    return TappedExpert(load_detector(cfg, None), build_adapter(cfg), 60), cfg


def test_the_example_stores_its_map_and_boxes_only(example):
    reader = StoreReader(example / "runs/imvoxelnet/store")
    assert (reader.schema.bev, reader.schema.pv, reader.schema.reading) == ((20, 40, 32), [], "none")
    frame = reader.read(reader.tokens[0])
    assert set(frame) == {"bev/values", "bev/index", "query/boxes", "query/score", "query/label"}
    assert len(reader.tokens) == 6 and 0 < len(frame["bev/index"]) < 800
    assert (frame["query/score"][:50] > 0.25).all() and (frame["query/score"][50:] == 0).all()


def test_another_version_of_an_adapter_is_noticed(example, imvoxelnet, tmp_path):
    cfg = imvoxelnet[1]
    assert [line.split()[0] for line in cfg.custom_sources] == ["front_camera"]
    written, code = tmp_path / "config.py", Path(sys.modules["front_camera"].__file__ or "")
    write_config(cfg, written)
    assert load_config(written).custom_sources == cfg.custom_sources
    text, before = code.read_text(), identity(load_config(example / "imvoxelnet.py"), None)
    code.write_text(text + "# another version\n")
    try:
        with pytest.raises(FD3DError, match="written with another version of module front_camera; run the stage"):
            load_config(written)
        assert identity(load_config(example / "imvoxelnet.py"), None) != before
    finally:
        code.write_text(text)
    assert load_config(written).custom_sources == cfg.custom_sources


def test_stored_values_equal_a_direct_forward(example, imvoxelnet, source):
    model, cfg = imvoxelnet[0].model, imvoxelnet[1]
    reader = StoreReader(example / "runs/imvoxelnet/store")
    for batch in frame_batches(cfg, source, None, 0):
        sample, image = batch["data_samples"][0], batch["inputs"]["img"][0][0, 0].float()
        mean, std = (torch.tensor(cfg.model.data_preprocessor[name])[:, None, None] for name in ("mean", "std"))
        sample.set_metainfo(
            dict(lidar2img=sample.frames[0]["lidar2img"][0], img_shape=(160, 288), box_type_3d=LiDARInstance3DBoxes)
        )
        with torch.no_grad():
            inputs = {"imgs": ((image - mean) / std)[None]}  # 160x288 is a multiple of 32: no padding
            (bev,), _ = model.extract_feat(inputs, [sample])
            found = model.predict(inputs, [sample])[0].pred_instances_3d
        row = reader.read(sample.token)
        flat = bev[0].flatten(1).T.numpy()[row["bev/index"]]
        np.testing.assert_allclose(row["bev/values"], flat, rtol=1e-3, atol=1e-3)
        best = found.bboxes_3d.tensor[found.scores_3d.argmax()]
        want = [*best[:2], best[2] + best[5] / 2, *best[3:7], 0.0, 0.0]  # mmdet3d's z is the bottom's
        np.testing.assert_allclose(row["query/boxes"][0], want, atol=1e-5)


def test_rows_of_the_map_are_y_and_columns_x(imvoxelnet, source):
    expert, cfg = imvoxelnet
    # a camera that looks down from everywhere at once: x of -40..40 m to columns 0..288, y to rows 0..160
    down = np.array([[3.6, 0, 0, 144], [0, 2, 0, 80], [0, 0, 0, 1], [0, 0, 0, 1]], np.float32)

    def see(image):
        batch = next(iter(frame_batches(cfg, source, [0], 0)))
        batch["inputs"]["img"] = [image.expand(1, 6, 3, 160, 288)]
        batch["data_samples"][0].frames[-1]["lidar2img"][0] = down
        return expert.run(batch)[0][0].bev

    grey = torch.full((160, 288), 120, dtype=torch.uint8)
    spot = grey.clone()
    x, y = 25.0, -18.0  # the centre of column (25 + 40) / 2 m = 32 and of row (-18 + 40) / 4 m = 5
    row, column = round(2 * y + 80), round(3.6 * x + 144)
    spot[row - 4 : row + 4, column - 4 : column + 4] = 255
    change = (see(spot) - see(grey)).norm(dim=0)
    assert change.shape == (20, 40)
    row, column = divmod(int(change.argmax()), 40)
    # random convolutions shift the peak by a cell or two; a flip would by 9 rows or 25 columns
    assert abs(row - 5) <= 3 and abs(column - 32) <= 3


def test_a_map_alone_trains_with_the_bev_loss_alone(example):
    with open(example / "runs/imvoxelnet/fd3d/losses.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 and all(np.isfinite(float(value)) for row in rows for value in row.values())
    assert {name for name in rows[0] if name in ("loss_pv", "loss_bev", "loss_fine")} == {"loss_bev"}
    assert all(float(row["loss_bev"]) > 0 for row in rows)


def test_a_pyramid_alone_gives_the_perspective_loss_alone(project, source, tmp_path):
    text = (project / "configs/world/detr3d_expert.py").read_text()
    base = str(project / "configs/world/expert.py")
    text = text.replace('"expert.py"', repr(base)).replace('"DETR3DAdapter"', '"DetectorAdapter", pv="img_neck"')
    (tmp_path / "expert.py").write_text(text)
    rule = FocalRule(num_queries=20, min_score=0.0)
    dump(tmp_path / "expert.py", None, source, tmp_path / "store", DumpSettings(rule), 0)
    reader = StoreReader(tmp_path / "store")
    assert (reader.schema.bev, len(reader.schema.pv), reader.schema.reading) == (None, 3, "none")

    cfg = load_config(tmp_path / "expert.py")
    batch = next(iter(frame_batches(cfg, source, [0], 0)))
    token = batch["data_samples"][0].token
    row, model = reader.read(token), load_detector(cfg, None)
    batch = model.data_preprocessor(batch)
    with torch.no_grad():
        levels = model.extract_feat(batch["inputs"]["img"][:, -1])
        best = model.predict(**batch)[0].pred_instances_3d.scores_3d.max().item()
    assert row["query/score"][0] == pytest.approx(best, rel=1e-4)
    for i, level in enumerate(levels):
        flat = level[0].permute(0, 2, 3, 1).flatten(0, 2).numpy()  # (camera, row, col)
        index = row[f"pv/{i}/index"]
        assert 0 < len(index) < len(flat)
        np.testing.assert_allclose(row[f"pv/{i}/values"], flat[index], rtol=1e-3, atol=1e-3)

    for apprentice, bev_size in (("detr3d_apprentice", None), ("apprentice", (25, 25))):
        student = load_config(project / f"configs/world/{apprentice}.py")
        settings = {"trust_threshold": 0.0, "rule": rule.to_dict()}
        sizes = dict(bev_size=bev_size, bev_channels=64, pv_channels=64)
        stored = dict(store=str(tmp_path / "store"), settings=settings)
        distiller = MODELS.build(dict(type="FocalDistiller", student=student.model, **stored, **sizes))
        data = DATASETS.build(frame_dataset(student, source, True, cached_targets(tmp_path / "store")))
        item = distiller.data_preprocessor(collate([data[data.position(token)]]))
        losses = distiller(**item, mode="loss")
        assert losses["loss_pv"].item() > 0 and not losses.keys() & {"loss_bev", "loss_fine"}
    with pytest.raises(FD3DError, match=r"distill.layers is \[0\], but the store has no layers"):
        stored["settings"] |= {"layers": [0]}
        MODELS.build(dict(type="FocalDistiller", student=student.model, **stored, **sizes))


def test_predictions_become_queries_best_first_and_filled_up():
    sample = Det3DDataSample(metainfo={"batch_input_shape": (64, 96)})  # as mmdet3d's preprocessor notes it
    tensor = torch.tensor([[1.0, 2.0, 3.0, 4.0, 2.0, 1.0, 0.5], [5.0, 6.0, 7.0, 1.0, 1.0, 2.0, -0.5]])
    sample.pred_instances_3d = InstanceData(
        bboxes_3d=LiDARInstance3DBoxes(tensor), scores_3d=torch.tensor([0.2, 0.7]), labels_3d=torch.tensor([3, 8])
    )
    levels = torch.arange(2.0 * 3 * 4 * 5).view(2, 3, 4, 5)  # one sample of two cameras
    seen = {"bev": ((), [torch.ones(1, 3, 4, 4)]), "pv": ((), levels)}
    (frame,) = DetectorAdapter(bev="a", pv="b").read(torch.nn.Identity(), seen, [sample], 3)
    assert frame.boxes.tolist() == [[5, 6, 8, 1, 1, 2, -0.5, 0, 0], [1, 2, 3.5, 4, 2, 1, 0.5, 0, 0], [0] * 9]
    assert frame.score.tolist() == pytest.approx([0.7, 0.2, 0]) and frame.label.tolist() == [8, 3, 0]
    assert frame.bev.shape == (3, 4, 4) and frame.image_hw == (64, 96) and torch.equal(frame.pv[0], levels)
    (best,) = DetectorAdapter(bev="a").read(torch.nn.Identity(), {"bev": seen["bev"]}, [sample], 1)
    assert best.label.tolist() == [8] and best.pv == []


def expert_frame(**parts: object) -> ExpertFrame:
    plain: dict[str, Any] = dict(
        boxes=torch.zeros(4, 9),
        score=torch.tensor([0.9, 0.5, 0.5, 0.0]),
        label=torch.tensor([0, 9, 3, 3]),
        bev=torch.zeros(2, 3, 4),
    )
    return ExpertFrame(**plain | parts)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (expert_frame(), None),
        (expert_frame(bev=None, pv=[torch.zeros(6, 2, 3, 4)]), None),
        (expert_frame(pv=[torch.zeros(6, 2, 3, 4)], view_hw=np.zeros((6, 2))), None),
        (
            expert_frame(pv=[torch.zeros(6, 2, 3, 4)], view_hw=np.zeros((5, 2))),
            r"gave view_hw \(5, 2\) for 6 cameras; give rows and columns of each camera's own image",
        ),
        ({"boxes": 1}, "gave dict for a frame; give an ExpertFrame"),
        (None, "gave NoneType for a frame"),
        (expert_frame(boxes=torch.zeros(4, 7)), r"gave boxes \(4, 7\) for 4 queries; give a tensor \(4, 9\)"),
        (expert_frame(boxes=np.zeros((4, 9))), "gave boxes ndarray for 4 queries"),
        (expert_frame(score=torch.zeros(5)), r"gave score \(5,\) for 4 queries"),
        (
            expert_frame(label=torch.tensor([0, 1, 2, 10])),
            "gave the label 10; give numbers of pipeline.data.CLASSES, 0 to 9",
        ),
        (expert_frame(label=torch.tensor([0, 1, 2, -1])), "gave the label"),
        (expert_frame(label=torch.zeros(4)), "gave the label 0"),
        (expert_frame(score=torch.tensor([4.0, 0.5, 0.5, 0.0])), "gave scores of 0 to 4; give scores in 0..1"),
        (
            expert_frame(score=torch.tensor([0.1, 0.5, 0.5, 0.0])),
            "not in the order of their scores; give the best first",
        ),
        (expert_frame(bev=torch.zeros(1, 2, 3, 4)), r"gave bev \(1, 2, 3, 4\); give a tensor of 3 dimensions"),
        (expert_frame(pv=[torch.zeros(2, 3, 4)]), r"gave pv\[0\] \(2, 3, 4\); give a tensor of 4 dimensions"),
    ],
)
def test_what_an_adapter_gives_is_looked_at(given, message):
    with pytest.raises(FD3DError, match=f"MyAdapter.read .*{message}") if message else nullcontext():
        check_frame(given, 4, "MyAdapter")


def test_an_adapter_that_gives_something_else_stops_at_the_first_frame(imvoxelnet, source, monkeypatch):
    expert, cfg = imvoxelnet
    read = expert.adapter.read
    monkeypatch.setattr(
        expert.adapter, "read", lambda *given: [replace(one, score=one.score + 2) for one in read(*given)]
    )
    with pytest.raises(FD3DError, match="FrontCameraAdapter.read gave scores of 2"):
        expert.run(next(iter(frame_batches(cfg, source, [0], 0))))


def test_a_map_whose_rows_are_columns_is_refused():
    cfg = Config({"pc_range": [-40, -20, -5, 40, 20, 3]})
    check_turned(cfg, 20, 40)
    check_turned(cfg, 40, 40)  # cells need not be square
    with pytest.raises(
        FD3DError, match="map of config .* has 40 rows and 20 columns for 80 m along x and 40 m along y"
    ):
        check_turned(cfg, 40, 20)


@pytest.mark.parametrize("name", ["image", "pc_range"])
def test_a_config_without_what_data_are_prepared_by_is_refused(example, imvoxelnet, source, tmp_path, name):
    (tmp_path / "expert.py").write_text((example / "imvoxelnet.py").read_text() + f"\n{name} = None\n")
    with pytest.raises(FD3DError, match=f"expert.py has no '{name}', by which data are prepared"):
        dump(tmp_path / "expert.py", None, source, tmp_path / "store", DumpSettings(FocalRule()), 0)


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        ("", "has no 'adapter'; say how the expert is tapped"),
        ('adapter = dict(type="NoSuchAdapter", bev="neck_3d")', "cannot be built: .*NoSuchAdapter is not in"),
        ('adapter = dict(type="FrontCameraAdapter", map="neck_3d")', "unexpected keyword argument 'map'"),
        ('adapter = dict(type="FrontCameraAdapter")', "taps neither 'bev' nor 'pv'"),
        ('adapter = dict(type="FrontCameraAdapter", bev="neck_4d")', "has no module 'neck_4d'; give the tap's path"),
        ('adapter = dict(type="FrontCameraAdapter", bev="bbox_head.loss_cls")', "tap 'bev' saw nothing"),
        ('adapter = dict(type="FrontCameraAdapter", pv="neck")', r"has 1 camera, the data 6 \(CAM_FRONT, "),
        ('custom_imports = dict(imports=["nowhere"])', "No module named 'nowhere'; are the .* on PYTHONPATH"),
    ],
)
def test_what_cannot_be_tapped_is_refused_in_one_line(example, imvoxelnet, source, tmp_path, adapter, message):
    text = (example / "imvoxelnet.py").read_text()
    text = re.sub(r"^adapter = .*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"^custom_imports = dict\(\n.*\n\)$", "", text, flags=re.MULTILINE) if "custom" in adapter else text
    (tmp_path / "expert.py").write_text(f"{text}\n{adapter}\n")
    with pytest.raises(FD3DError, match=message) as caught:
        dump(tmp_path / "expert.py", None, source, tmp_path / "store", DumpSettings(FocalRule()), 0)
    assert "\n" not in str(caught.value)


def test_a_config_with_imports_of_its_own_finds_what_the_base_config_imports(project, tmp_path):
    (tmp_path / "child.py").write_text(
        f"_base_ = '{project}/configs/world/apprentice.py'\ncustom_imports = dict(imports=['colorsys'])\n"
    )
    code = (
        "from pipeline.models.build import load_config; import sys, pipeline.data.frames; load_config(sys.argv[1]);"
        "from mmdet3d.registry import DATASETS; print(DATASETS.get('FrameDataset').__name__)"
    )
    command = [sys.executable, "-W", "ignore", "-c", code, str(tmp_path / "child.py")]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=120)
    assert done.stdout == "FrameDataset\n", done.stderr
