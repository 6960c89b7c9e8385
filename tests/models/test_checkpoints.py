import math
import pickle
import resource
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer, MMLogger
from mmengine.optim.scheduler import OneCycleLR
from typer.testing import CliRunner

from pipeline.data import CLASSES
from pipeline.errors import FD3DError, warn_once
from pipeline.files import file_sha256
from pipeline.models.boxes import decode_boxes
from pipeline.models.build import build_detector, load_config
from pipeline.models.checkpoints import box_convention, convert_checkpoint, load_checkpoint
from pipeline.models.reading import read_checkpoint
from pipeline.report.figures import corners
from stages.cli import app

BEVFORMER = 'model = dict(pts_bbox_head=dict(query_source="learned", num_query=20))'
DETR3D = """
model = dict(
    type="DETR3D",
    pts_bbox_head=dict(
        _delete_=True,
        type="DETR3DHead",
        pc_range=[-40.0, -40.0, -5.0, 40.0, 40.0, 3.0],
        embed_dims=64,
        num_query=20,
        transformer=dict(num_levels=3, decoder=dict(num_layers=2, num_heads=4, feedforward_channels=64)),
    ),
)
"""
OLD = {
    "mmdet3d_version": "0.17.1",
    "mmdet_version": "2.14.0",
    "mmcv_version": "1.4.0",
    "time": "Sat Jun 11 10:20:30 2022",
    "CLASSES": list(CLASSES),
}
REG, CLS = "pts_bbox_head.reg_branches", "pts_bbox_head.cls_branches"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


def tiny(folder: Path, project: Path, body: str) -> Path:
    """A small detector's config."""
    path = folder / f"{'detr3d' if 'DETR3D' in body else 'bevformer'}.py"
    path.write_text(f'_base_ = "{project}/configs/world/expert.py"\n{body}\n')
    return path


@pytest.fixture(scope="module", params=[BEVFORMER, DETR3D], ids=["bevformer", "detr3d"])
def config(request, folder: Path, project: Path) -> Path:
    return tiny(folder, project, request.param)


@pytest.fixture(scope="module")
def bevformer(folder: Path, project: Path) -> Path:
    return tiny(folder, project, BEVFORMER)


@pytest.fixture(scope="module")
def state(bevformer: Path) -> dict[str, torch.Tensor]:
    """Weights of the tiny BEVFormer as if trained: no two rows alike."""
    return random_model(bevformer).state_dict()


def random_model(config: Path) -> torch.nn.Module:
    model = build_detector(load_config(config))
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        if name.startswith((REG, CLS)):
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.2)
    return model


def official(path: Path, state: dict, meta: dict | None = None, **more: object) -> Path:
    torch.save({"meta": OLD if meta is None else meta, "state_dict": state, **more}, path)
    return path


def old_corners(boxes: torch.Tensor) -> torch.Tensor:
    """Corners (n, 8, 3) of boxes before mmdet3d 1.0: (x, y, z, w, l, h, yaw), w along x and l along y at yaw 0, yaw
    turning clockwise seen from above."""
    signs = torch.tensor([[i & 1, (i >> 1) & 1, (i >> 2) & 1] for i in range(8)]) - 0.5
    local = signs * boxes[:, None, 3:6]
    c, s = boxes[:, 6, None].cos(), boxes[:, 6, None].sin()
    turned = torch.stack(
        [c * local[..., 0] + s * local[..., 1], c * local[..., 1] - s * local[..., 0], local[..., 2]], -1
    )
    return turned + boxes[:, None, :3]


def test_converted_branches_give_the_same_physical_boxes(config, tmp_path):
    model: Any = random_model(config)
    states = torch.randn(50, 64, generator=torch.Generator().manual_seed(1))
    before = [decode_boxes(branch(states)) for branch in model.pts_bbox_head.reg_branches]
    convert_checkpoint(official(tmp_path / "old.pth", model.state_dict()), tmp_path / "new.pth", config)
    load_checkpoint(model, tmp_path / "new.pth")
    for old, branch in zip(before, model.pts_bbox_head.reg_branches, strict=True):
        new = decode_boxes(branch(states)).detach()
        distance = torch.cdist(old_corners(old.detach()), torch.from_numpy(corners(new.numpy())).float())
        assert distance.min(-1).values.max() < 1e-4 and distance.min(-2).values.max() < 1e-4
        # which end is the front: nuScenes headings were read from old boxes as -yaw - pi / 2
        turned = new[:, 6] + old[:, 6] + math.pi / 2
        torch.testing.assert_close(turned.cos(), torch.ones(50), atol=1e-5, rtol=0)
        torch.testing.assert_close(new[:, [0, 1, 2, 5, 7, 8]], old[:, [0, 1, 2, 5, 7, 8]], atol=1e-5, rtol=1e-5)


def test_a_code_converted_by_hand(bevformer, state, tmp_path):
    # a car 1.9 m wide and 4.6 m long, 1.7 m high, heading along +x: yaw was -pi / 2 and is 0
    old = torch.tensor([3.0, 4.0, math.log(1.9), math.log(4.6), -1.0, math.log(1.7), -1.0, 0.0, 5.0, 0.0])
    new = torch.tensor([3.0, 4.0, math.log(4.6), math.log(1.9), -1.0, math.log(1.7), 0.0, 1.0, 5.0, 0.0])
    given = state | {f"{REG}.2.4.bias": old, "pts_bbox_head.code_weights": torch.arange(10.0)}
    meta = convert_checkpoint(official(tmp_path / "old.pth", given), tmp_path / "new.pth", bevformer)
    found = read_checkpoint(tmp_path / "new.pth").state
    torch.testing.assert_close(found[f"{REG}.2.4.bias"], new)
    assert found["pts_bbox_head.code_weights"].tolist() == [0, 1, 3, 2, 4, 5, 7, 6, 8, 9]
    turned = {f"{REG}.{i}.4.{leaf}" for i in range(3) for leaf in ("weight", "bias")} | {"pts_bbox_head.code_weights"}
    assert {name for name in given if not torch.equal(found[name], given[name])} == turned
    assert list(found) == list(given)
    assert meta == read_checkpoint(tmp_path / "new.pth").meta
    assert meta["source_sha256"] == file_sha256(tmp_path / "old.pth") and meta["config"] == "bevformer.py"
    assert meta["boxes"] == "converted from old, told by mmdet3d_version 0.17.1"


@pytest.mark.parametrize(
    ("meta", "convention"),
    [
        ({"mmdet3d_version": "0.17.1", "mmcv_version": "1.4.0"}, "old"),  # BEVFormer, FD3D
        ({"mmdet3d_version": np.str_("0.18.1")}, "old"),  # the last before
        ({"mmdet3d_version": "1.0.0rc0"}, "new"),  # the first after
        ({"mmdet3d_version": "1.4.0", "mmdet_version": "2.14.0"}, "new"),  # the better witness
        ({"mmdet3d_version": "0.17.1", "detr3d_convert_tag": True}, "new"),  # by mmdetection3d's converter
        ({"mmengine_version": "0.7.1"}, "new"),  # mmengine came after
        ({"mmdet_version": "2.18.1"}, "old"),  # mmdet3d 1.0.0rc0 asked for 2.19
        ({"mmdet_version": "2.24.0", "mmcv_version": "1.4.8"}, None),  # mmdet3d 0.18 and 1.0 took both
        ({"mmdet_version": "2.24.0", "mmcv_version": "1.5.2"}, "new"),  # mmdet3d 0.18 took at most 1.5.0
        ({"mmcv_version": "1.3.14"}, "old"),  # mmdet3d 1.0.0rc0 asked for 1.3.17
        ({"mmdet3d_version": "unknown"}, None),
        ({}, None),
    ],
)
def test_versions_tell_the_convention(meta, convention):
    assert box_convention(meta)[0] == convention


def test_auto_refuses_what_the_file_does_not_tell(bevformer, state, tmp_path):
    source = official(tmp_path / "mute.pth", state, {"epoch": 24, "time": OLD["time"]})
    with pytest.raises(FD3DError, match="does not tell its box convention; give --boxes old if .* --boxes new if"):
        convert_checkpoint(source, tmp_path / "out.pth", bevformer)
    with pytest.raises(FD3DError, match="--boxes is 'ancient'; use auto, old, new"):
        convert_checkpoint(source, tmp_path / "out.pth", bevformer, "ancient")
    assert not (tmp_path / "out.pth").exists()
    with pytest.raises(FD3DError, match="does not tell the order of its classes; give --classes NAME"):
        convert_checkpoint(source, tmp_path / "out.pth", bevformer, "new")
    made = convert_checkpoint(source, tmp_path / "out.pth", bevformer, "new", CLASSES)
    assert made["boxes"] == "new as they were, told by --boxes"
    assert all(torch.equal(t, state[k]) for k, t in read_checkpoint(tmp_path / "out.pth").state.items())


def test_an_option_against_the_files_notes_is_warned_of_with_both_values(bevformer, state, tmp_path):
    """And counts: notes may be wrong."""
    other = [*CLASSES[1:], CLASSES[0]]
    for meta, options, told in (
        (
            OLD,
            {"boxes": "new"},
            "--boxes is new, but checkpoint .*in.pth tells old .mmdet3d_version 0.17.1.; the option counts",
        ),
        (
            OLD | {"mmdet3d_version": "1.0.0"},
            {"boxes": "old"},
            "--boxes is old, but .* tells new .mmdet3d_version 1.0.0.",
        ),
        (OLD, {"classes": other}, "--classes is truck, .*, car, but .* tells car, .*, traffic_cone .its notes."),
        (OLD, {"shift": "false"}, "--shift-current is false, but .* tells true .time .* 2022, before 27 July 2023."),
    ):
        warn_once.cache_clear()
        with pytest.warns(UserWarning, match=told) as given:
            convert_checkpoint(official(tmp_path / "in.pth", state, meta), tmp_path / "out.pth", bevformer, **options)
        assert len(given) == 1
    warn_once.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        source = official(tmp_path / "in.pth", state, OLD | {"CLASSES": [name.upper() for name in CLASSES]})
        convert_checkpoint(source, tmp_path / "out.pth", bevformer, "old", CLASSES, "true")


def damaged(source: Path, out: Path, place: int, change: Callable[[bytes], bytes], size: int = 1) -> Path:
    raw = bytearray(source.read_bytes())
    raw[place : place + size] = change(bytes(raw[place : place + size]))
    out.write_bytes(raw)
    return out


@pytest.mark.parametrize(
    ("size", "change"),
    [(1, lambda given: bytes([given[0] ^ 1])), (65536, lambda given: bytes(len(given)))],
    ids=["a bit", "64 KiB of zeros"],
)
def test_damaged_weights_are_refused_by_their_checksum(state, tmp_path, size, change):
    source = official(tmp_path / "whole.pth", state)
    read_checkpoint(source)
    with zipfile.ZipFile(source) as archive:
        largest = max(archive.infolist(), key=lambda record: record.file_size)
    place = largest.header_offset + 30 + 64 + largest.file_size // 2  # in the record's bytes, or those of the next
    bad = damaged(source, tmp_path / "bad.pth", place, change, size)
    torch.load(bad, weights_only=True)  # which sees nothing
    with pytest.raises(
        FD3DError, match=r"bad.pth is damaged: the bytes of its record whole/data/\d+ are not .*; copy"
    ) as error:
        read_checkpoint(bad)
    assert "\n" not in str(error.value)
    bad.write_bytes(source.read_bytes())  # mended at the same place
    read_checkpoint(bad)


def test_files_without_checksums_are_read(state, tmp_path):
    old = tmp_path / "old.pth"
    torch.save({"meta": OLD, "state_dict": state}, old, _use_new_zipfile_serialization=False)
    read_checkpoint(old)
    torch.serialization.set_crc32_options(False)
    try:
        source = official(tmp_path / "bare.pth", state)
    finally:
        torch.serialization.set_crc32_options(True)
    with zipfile.ZipFile(source) as archive:
        assert {record.CRC for record in archive.infolist()} == {0}
    found = read_checkpoint(source).state
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())


def test_checksums_are_compared_once_in_a_process(state, tmp_path, monkeypatch):
    source = official(tmp_path / "whole.pth", state)
    read_checkpoint(source)
    monkeypatch.setattr("pipeline.models.checksums.zipfile", None)
    read_checkpoint(source)


def test_nothing_is_converted_twice(bevformer, state, expert_config, expert_checkpoint, tmp_path):
    convert_checkpoint(official(tmp_path / "old.pth", state), tmp_path / "new.pth", bevformer)
    before = (tmp_path / "new.pth").read_bytes()
    for boxes in ("auto", "old", "new"):
        with pytest.raises(FD3DError, match="in this project's conventions already"):
            convert_checkpoint(tmp_path / "new.pth", tmp_path / "twice.pth", bevformer, boxes)
    with pytest.raises(FD3DError, match="in this project's conventions already"):
        convert_checkpoint(expert_checkpoint, tmp_path / "twice.pth", expert_config, "old")
    tagged = official(tmp_path / "tagged.pth", state, OLD | {"detr3d_convert_tag": True})
    with pytest.raises(FD3DError, match="was converted by mmdetection3d"):
        convert_checkpoint(tagged, tmp_path / "twice.pth", bevformer, "old")
    with pytest.raises(FD3DError, match="is the checkpoint itself"):
        convert_checkpoint(tmp_path / "new.pth", tmp_path / "new.pth", bevformer)
    assert not (tmp_path / "twice.pth").exists() and (tmp_path / "new.pth").read_bytes() == before


def moved(state: dict, prefix: str) -> dict:
    return {prefix + name: tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    ("dress", "left_out"),
    [
        (lambda state: (moved(state, "module."), {}), 0),  # saved from a parallel wrapper
        (
            lambda state: (moved(state, "student.") | {"teacher.a": torch.ones(1), "bev.b": torch.ones(1)}, {}),
            2,
        ),  # FD3D's
        (
            lambda state: (state | {f"ema_{k.replace('.', '_')}": v * 0 for k, v in state.items()}, {}),
            None,
        ),  # mmcv's EMAHook
        (
            lambda state: (
                state,
                {
                    "optimizer": {"state": {0: {"step": 9, "exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 2e-4}]},
                    "amp": {"loss_scaler0": {"loss_scale": 65536.0}},
                },
            ),
            0,
        ),
    ],
    ids=["module", "student", "ema", "optimizer"],
)
def test_wrappings_of_official_files_make_no_difference(bevformer, state, tmp_path, dress, left_out):
    dressed, more = dress(state)
    meta = OLD | {"epoch": 24, "hook_msgs": {"best_score": np.float64(0.5), "iter": np.int64(7)}}
    plain = official(tmp_path / "plain.pth", state)
    source = official(tmp_path / "dressed.pth", dressed, meta, **more)
    convert_checkpoint(plain, tmp_path / "a.pth", bevformer)
    made = convert_checkpoint(source, tmp_path / "b.pth", bevformer)
    a, b = (read_checkpoint(tmp_path / name).state for name in ("a.pth", "b.pth"))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    assert made["left_out"] == (len(state) if left_out is None else left_out)


def lightning(state: dict) -> dict[str, object]:
    """Entries that Lightning writes beside a state dict."""

    class AttributeDict(dict):
        pass

    AttributeDict.__module__, AttributeDict.__qualname__ = "lightning_fabric.utilities.data", "AttributeDict"
    return {
        "epoch": 3,
        "global_step": 12,
        "pytorch-lightning_version": "2.4.0",
        "state_dict": state,
        "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {},
        "optimizer_states": [{"state": {}, "param_groups": [{"lr": 1e-4, "params": [0]}]}],
        "lr_schedulers": [],
        "hparams_name": "kwargs",
        "hyper_parameters": AttributeDict(lr=1e-4),
    }


@pytest.mark.parametrize(
    ("dress", "left_out"),
    [
        (lambda state: {"state_dict": moved(state, "model.")}, 0),
        (lambda state: {"state_dict": moved(state, "module.model.")}, 0),
        (lambda state: {"state_dict": moved(state, "model._orig_mod.")}, 0),
        (lambda state: {"model": state}, 0),  # as DETR's and detectron2's
        (lambda state: {"model_state_dict": moved(state, "module.")}, 0),  # as torch's tutorials
        (lambda state: moved(state, "module.") | {"n_averaged": torch.tensor(9)}, 1),  # torch's AveragedModel
        (lambda state: {"state_dict": moved(state, "model.") | moved(state, "ema_model.module.")}, None),
        (lambda state: {"state_dict": state | moved(state, "ema_model.")}, None),
        (lambda state: {"state_dict": moved(state, "module.") | moved(state, "module.model_ema.module.")}, None),
        (lambda state: state | moved(state, "ema.module.") | {"n_averaged": torch.tensor(9)}, -1),
        (lambda state: lightning(moved(state, "detector.")), 0),
        (lambda state: lightning(moved(state, "model.") | {"criterion.weight": torch.ones(10)}), 1),
        (lambda state: lightning(moved(state, "net._orig_mod.")), 0),
    ],
    ids=[
        "model",
        "module.model",
        "compiled",
        "detr",
        "tutorial",
        "averaged",
        "ema",
        "plain-ema",
        "module-ema",
        "counted-ema",
        "lightning",
        "criterion",
        "net",
    ],
)
def test_wrappings_of_other_frameworks_make_no_difference(state, tmp_path, monkeypatch, dress, left_out):
    made = dress(state)
    for name, value in made.items():  # torch.save looks the class of an object up by its module
        if type(value).__name__ == "AttributeDict":
            for path in ("lightning_fabric", "lightning_fabric.utilities", "lightning_fabric.utilities.data"):
                monkeypatch.setitem(sys.modules, path, module := ModuleType(path))
            module.AttributeDict = type(value)  # type: ignore[attr-defined]
            assert name == "hyper_parameters"
    torch.save(made, tmp_path / "file.ckpt")
    monkeypatch.undo()  # a reader has no Lightning
    found = read_checkpoint(tmp_path / "file.ckpt")
    assert list(found.state) == list(state) and all(torch.equal(found.state[k], t) for k, t in state.items())
    assert found.left_out == {None: len(state), -1: len(state) + 1}.get(left_out, left_out)
    assert not found.distilled


class Wrapping(torch.nn.Module):
    """A detector of another project whose own names begin with ``model.``."""

    def __init__(self) -> None:
        super().__init__()
        self.model = torch.nn.Linear(2, 2)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_detector_that_has_its_parts_in_a_module_called_model_is_loaded(tmp_path, prefix):
    given, model = Wrapping(), Wrapping()
    torch.save({"state_dict": moved(given.state_dict(), prefix)}, tmp_path / "file.pth")
    load_checkpoint(model, tmp_path / "file.pth")
    assert torch.equal(model.model.weight, given.model.weight)


class Averaging(torch.nn.Module):
    """A detector of another project with a module of its own called like averages."""

    def __init__(self) -> None:
        super().__init__()
        self.ema_head, self.backbone = torch.nn.Linear(2, 2), torch.nn.Conv2d(1, 1, 1)


def test_a_module_of_the_detectors_own_is_not_taken_for_averages(tmp_path):
    given, model = Averaging(), Averaging()
    torch.save(given.state_dict(), tmp_path / "file.pth")
    load_checkpoint(model, tmp_path / "file.pth")
    assert torch.equal(model.ema_head.weight, given.ema_head.weight)


def test_plain_names_are_taken_and_averages_left_out(bevformer, state, tmp_path):
    averages = {f"ema_model.{name}": torch.zeros_like(tensor) for name, tensor in state.items()}
    torch.save({"state_dict": state | averages, "training": {"seed": 0}}, tmp_path / "file.pth")
    model = build_detector(load_config(bevformer))
    assert load_checkpoint(model, tmp_path / "file.pth").left_out == len(state)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    torch.save({"state_dict": averages, "training": {"seed": 0}}, tmp_path / "averages.pth")
    with pytest.raises(FD3DError, match=r"has the detector's tensors below 'ema_model\.'; save these alone"):
        load_checkpoint(model, tmp_path / "averages.pth")
    torch.save({"state_dict": state | moved(state, "copy."), "training": {"seed": 0}}, tmp_path / "copy.pth")
    with pytest.raises(FD3DError, match=rf"does not fit the config: {len(state)} unexpected \(copy\."):
        load_checkpoint(model, tmp_path / "copy.pth")


def test_a_checkpoint_of_another_detector_is_refused_in_a_short_line(bevformer, state, tmp_path):
    model = build_detector(load_config(bevformer))
    other = {f"{name}_": tensor for name, tensor in state.items()}
    torch.save({"state_dict": other, "training": {"seed": 0}}, tmp_path / "file.pth")
    with pytest.raises(
        FD3DError, match=r"; give the config that it was trained with, or a checkpoint of this config's detector$"
    ) as told:
        load_checkpoint(model, tmp_path / "file.pth")
    assert len(str(told.value).replace(str(tmp_path), "")) < 500
    name = "pts_bbox_head.transformer.cams_embeds"
    torch.save({"state_dict": state | {name: state[name][:4]}, "training": {"seed": 0}}, tmp_path / "four.pth")
    with pytest.raises(
        FD3DError, match=r"; it was trained with 4 cameras, the config has 6: train a detector for these, or list"
    ):
        load_checkpoint(model, tmp_path / "four.pth")


def test_an_unknown_wrapper_is_named(bevformer, state, tmp_path):
    torch.save({"state_dict": moved(state, "student_a.body.")}, tmp_path / "file.pth")
    with pytest.raises(FD3DError, match=r"has the detector's tensors below 'student_a\.body\.'; save these alone"):
        load_checkpoint(build_detector(load_config(bevformer)), tmp_path / "file.pth")


def test_a_file_of_safetensors_is_refused_with_the_way_to_write_it_anew(tmp_path):
    (tmp_path / "detector.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    with pytest.raises(
        FD3DError, match=r"is of safetensors; .*torch.save\({'state_dict': safetensors.torch.load_file\('"
    ):
        read_checkpoint(tmp_path / "detector.safetensors")


def test_entries_of_a_file_without_a_state_dict_are_named(state, tmp_path):
    torch.save({"epoch": 3, "weights": {"a": 1}}, tmp_path / "file.pth")
    with pytest.raises(FD3DError, match="holds no state dict but epoch, weights; expected"):
        read_checkpoint(tmp_path / "file.pth")


NAME = "img_neck.fpn_convs.2.conv.weight"


def odd_entries() -> dict[str, dict]:
    weight = torch.ones(2, 2)
    return {
        f"a tensor of float8_e4m3fn under '{NAME}'": {NAME: weight.to(torch.float8_e4m3fn)},
        f"a quantised tensor under '{NAME}'": {NAME: torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8)},
        f"a tensor of layout sparse_coo under '{NAME}'": {NAME: weight.to_sparse()},
        f"a tensor without values .of the meta device. under '{NAME}'": {NAME: weight.to("meta")},
        "a value of type str under 'note'": {"note": "best"},
        "a tensor with a key of type int under 5": {5: weight},
    }


@pytest.mark.filterwarnings("ignore:.*quantized")
@pytest.mark.parametrize("under", ["state_dict", "module", ""])
def test_an_odd_entry_of_a_state_dict_is_named(state, tmp_path, under):
    for told, entry in odd_entries().items():
        torch.save({under: state | entry} if under else state | entry, tmp_path / "odd.pth")
        with pytest.raises(
            FD3DError, match=rf"odd.pth has {told} of its state dict \(1 odd value of {len(state | entry)}\)"
        ) as caught:
            read_checkpoint(tmp_path / "odd.pth")
        assert "\n" not in str(caught.value)


def test_an_odd_entry_is_one_line_without_warnings_of_torch(tmp_path):
    torch.save({"a": torch.ones(2, 2).to_sparse_csr()}, tmp_path / "odd.pth")
    code = (
        "import sys; from pipeline.models.reading import read_checkpoint; from pipeline.errors import FD3DError\n"
        "try: read_checkpoint(sys.argv[1])\n"
        "except FD3DError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "odd.pth"], capture_output=True, text=True, check=True
    )
    assert "has a tensor of layout sparse_csr under 'a'" in done.stdout and "Sparse CSR" not in done.stderr


@pytest.mark.parametrize(
    ("notes", "told"),
    [
        ({"cameras": 5}, "training.cameras 5; expected a list of names"),
        ({"cameras": "CAM_FRONT"}, "training.cameras 'CAM_FRONT'; expected a list of names"),
        ({"cameras": [1, 2]}, r"training.cameras \[1, 2\]; expected a list of names"),
        ({"reference": 7}, "training.reference 7; expected the name of a sensor, or ego"),
        ({"lidar_turn": "left"}, "training.lidar_turn 'left'; expected degrees"),
        ({"lidar_turn": float("nan")}, "training.lidar_turn nan; expected degrees"),
        ({"image_sizes": "x"}, r"training.image_sizes 'x'; expected \[rows, columns\] for each camera"),
        ({"image_sizes": [["a", "b"]]}, r"training.image_sizes .* expected \[rows, columns\]"),
        ({"image_sizes": [[0, 2]]}, r"training.image_sizes .* expected \[rows, columns\]"),
        ({"classes": "car"}, "training.classes 'car'; expected a list of names, or None for a class that"),
        ({"classes": ["car", 3]}, r"training.classes \['car', 3\]; expected a list of names"),
        ({"cameras": ["a", "b"], "image_sizes": [[1, 2]]}, "training.image_sizes for 1 camera, but names 2 under"),
    ],
)
def test_notes_on_the_rig_that_no_training_writes_are_refused(tmp_path, notes, told):
    torch.save({"state_dict": {"a": torch.ones(1)}, "training": notes}, tmp_path / "file.pth")
    with pytest.raises(FD3DError, match=f"file.pth has {told}.*; correct the note"):
        read_checkpoint(tmp_path / "file.pth")


@pytest.mark.parametrize("classes", [{}, {"CLASSES": "car"}, {"CLASSES": []}, {"dataset_meta": {"classes": "car"}}])
def test_notes_without_an_order_of_classes_do_not_pass_for_this_projects(bevformer, state, tmp_path, classes):
    """mmdet3d's own order differs."""
    source = official(tmp_path / "file.pth", state, {"mmdet3d_version": "1.4.0", "time": OLD["time"]} | classes)
    model = build_detector(load_config(bevformer))
    way = r"'fd3d convert .* --classes NAME,...', or for the expert in the profile \(families.NAME.expert.classes\)"
    with pytest.raises(FD3DError, match=f"file.pth does not tell the order of its classes .*; state it in {way}"):
        load_checkpoint(model, source)
    with pytest.raises(FD3DError, match="file.pth does not tell the order of its classes; give --classes NAME"):
        convert_checkpoint(source, tmp_path / "out.pth", bevformer)
    convert_checkpoint(source, tmp_path / "out.pth", bevformer, classes=CLASSES)
    load_checkpoint(model, tmp_path / "out.pth")


def test_a_negative_variance_is_refused(bevformer, state, tmp_path):
    name = next(name for name in state if name.endswith(".running_var"))
    source = official(tmp_path / "file.pth", state | {name: -state[name]})
    for read in (
        lambda: load_checkpoint(build_detector(load_config(bevformer)), source),
        lambda: read_checkpoint(source),
    ):
        with pytest.raises(FD3DError, match=f"file.pth: {name} has negative values, which are no variance"):
            read()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(state, tmp_path, value):
    name = "img_neck.fpn_convs.2.conv.weight"
    torch.save({"state_dict": state | {name: torch.full_like(state[name], value)}}, tmp_path / "broken.pth")
    with pytest.raises(FD3DError, match=rf"NaN or infinite values in {name} \(1 of .* tensors\); take an earlier one"):
        read_checkpoint(tmp_path / "broken.pth")


def test_whole_numbers_in_place_of_weights_are_refused(bevformer, state, tmp_path):
    name = "img_neck.fpn_convs.2.conv.weight"
    rounded = official(tmp_path / "rounded.pth", state | {name: state[name].round().to(torch.int8)})
    with pytest.raises(FD3DError, match=rf"1 mismatched \({name} torch.int8\)"):
        load_checkpoint(build_detector(load_config(bevformer)), rounded)


def test_after_reading_a_checkpoint_a_training_can_still_resume_from_its_own(state, tmp_path):
    """An online student reads its expert before mmengine reads the student's unfinished checkpoint."""
    torch.save({"state_dict": state}, tmp_path / "expert.pth")
    hub = {"loss": np.ones(2), "step": np.int64(7)}
    torch.save({"state_dict": state, "message_hub": hub}, tmp_path / "iter_500.pth")
    read_checkpoint(tmp_path / "expert.pth")
    assert torch.load(tmp_path / "iter_500.pth", weights_only=True)["message_hub"]["step"] == 7


def test_a_file_that_does_not_fit_gets_one_list(bevformer, state, tmp_path):
    given = dict(state)
    del given["img_backbone.conv1.weight"]
    given["stranger"] = torch.zeros(1)
    given[f"{CLS}.0.6.bias"] = torch.zeros(3)
    source = official(tmp_path / "partial.pth", given)
    (tmp_path / "out.pth").write_text("earlier")
    message = (
        r"1 missing \(img_backbone.conv1.weight\); 1 unexpected \(stranger\); "
        r"1 mismatched \(pts_bbox_head.cls_branches.0.6.bias \(3,\) instead of \(10,\)\)"
    )
    with pytest.raises(FD3DError, match=message):
        convert_checkpoint(source, tmp_path / "out.pth", bevformer)
    with pytest.raises(FD3DError, match=message):
        load_checkpoint(build_detector(load_config(bevformer)), source)
    with pytest.raises(FD3DError, match="out.pth/new.pth cannot be written: "):
        convert_checkpoint(official(tmp_path / "whole.pth", state), tmp_path / "out.pth" / "new.pth", bevformer)
    assert (tmp_path / "out.pth").read_text() == "earlier"


def test_a_full_disk_leaves_what_was_there(bevformer, state, tmp_path, monkeypatch):
    # the limit is meant for the checkpoint: a log that an earlier training in this process opened is longer than that
    monkeypatch.setattr(MMLogger.get_current_instance(), "handlers", [])
    source = official(tmp_path / "old.pth", state)
    (tmp_path / "out.pth").write_text("earlier")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(FD3DError, match="out.pth cannot be written: File too large"):
            convert_checkpoint(source, tmp_path / "out.pth", bevformer)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "out.pth").read_text() == "earlier"
    assert {path.name for path in tmp_path.iterdir()} == {"old.pth", "out.pth"}


@pytest.mark.parametrize("where", ["mmcv", "mmengine"])
def test_classes_in_another_order_are_reordered_and_nothing_else(bevformer, state, tmp_path, where):
    names = [*CLASSES[1:], CLASSES[0]]  # the car last
    meta = {"mmdet3d_version": "1.4.0", "time": OLD["time"]} | (
        {"CLASSES": names} if where == "mmcv" else {"dataset_meta": {"classes": names}}
    )
    source = official(tmp_path / "other.pth", state, meta)
    with pytest.raises(FD3DError, match="classes in another order; convert it with 'fd3d convert"):
        load_checkpoint(build_detector(load_config(bevformer)), source)
    made = convert_checkpoint(source, tmp_path / "new.pth", bevformer)
    found = read_checkpoint(tmp_path / "new.pth").state
    changed = {f"{CLS}.{i}.6.{leaf}" for i in range(3) for leaf in ("weight", "bias")}
    assert {name for name in state if not torch.equal(found[name], state[name])} == changed
    for name in changed:
        assert torch.equal(found[name][0], state[name][9]) and torch.equal(found[name][1:], state[name][:9])
    assert made["classes"] == "reordered, rows [9, 0, 1, 2, 3, 4, 5, 6, 7, 8]"
    official(
        tmp_path / "kitti.pth", state, {"mmdet3d_version": "1.4.0", "CLASSES": ["Car", "Cyclist"], "time": OLD["time"]}
    )
    with pytest.raises(FD3DError, match="detects Car, Cyclist; needed are nuScenes'"):
        convert_checkpoint(tmp_path / "kitti.pth", tmp_path / "out.pth", bevformer)


def test_an_official_file_is_not_used_unconverted(bevformer, state, tmp_path):
    model = build_detector(load_config(bevformer))
    source = official(tmp_path / "old.pth", state)
    with pytest.raises(FD3DError, match="boxes of mmdet3d before 1.0 .*; convert it with 'fd3d convert"):
        load_checkpoint(model, source)
    done = CliRunner().invoke(
        app, ["convert", str(source), str(tmp_path / "new.pth"), "--config", str(bevformer)], catch_exceptions=False
    )
    assert done.exit_code == 0 and "converted from old, told by mmdet3d_version 0.17.1" in done.stdout
    load_checkpoint(model, tmp_path / "new.pth")


def test_foreign_files_are_refused_without_running_anything(bevformer, tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    (tmp_path / "evil.pth").write_bytes(pickle.dumps({"state_dict": Evil()}))
    torch.save({"state_dict": {"a": torch.ones(1)}, "meta": {"x": Evil()}}, tmp_path / "evil_zip.pth")
    (tmp_path / "short.pth").write_bytes(b"PK\x03\x04")
    (tmp_path / "empty.pth").write_bytes(b"")
    for name in ("evil.pth", "evil_zip.pth", "short.pth", "empty.pth"):
        with pytest.raises(FD3DError, match="not a plain PyTorch checkpoint"):
            read_checkpoint(tmp_path / name)
        with pytest.raises(FD3DError, match="not a plain PyTorch checkpoint"):
            convert_checkpoint(tmp_path / name, tmp_path / "out.pth", bevformer, "old")
    assert not (tmp_path / "executed").exists() and not (tmp_path / "out.pth").exists()
    torch.save([torch.ones(1)], tmp_path / "list.pth")
    with pytest.raises(FD3DError, match="holds no state dict"):
        read_checkpoint(tmp_path / "list.pth")


def test_a_bare_state_dict_tells_nothing_and_is_refused(bevformer, state, tmp_path):
    torch.save(state, tmp_path / "bare.pth")
    model = build_detector(load_config(bevformer))
    with pytest.raises(
        FD3DError, match=r"does not tell its conventions .* 'fd3d convert .* --boxes old\|new --classes NAME"
    ):
        load_checkpoint(model, tmp_path / "bare.pth")
    official(tmp_path / "mute.pth", state, {"epoch": 24})  # notes that tell nothing of boxes
    with pytest.raises(FD3DError, match="does not tell its conventions"):
        load_checkpoint(model, tmp_path / "mute.pth")
    out, shift = tmp_path / "out.pth", ("--shift-current", "false")
    with pytest.raises(FD3DError, match="give --boxes old if"):
        convert_checkpoint(tmp_path / "bare.pth", out, bevformer)
    with pytest.raises(FD3DError, match="does not tell the order of its classes; give --classes NAME"):
        convert_checkpoint(tmp_path / "bare.pth", out, bevformer, "new")
    with pytest.raises(FD3DError, match="--classes detects car, bus; needed are"):
        convert_checkpoint(tmp_path / "bare.pth", out, bevformer, "new", ["car", "bus"])
    # mmdet3d's own order: the bus comes fourth there
    order = ["car", "truck", "trailer", "bus", "construction_vehicle"]
    order += ["bicycle", "motorcycle", "pedestrian", "traffic_cone", "barrier"]
    command = ["convert", str(tmp_path / "bare.pth"), str(out), "--config", str(bevformer), "--boxes", "new"]
    done = CliRunner().invoke(app, [*command, "--classes", ", ".join(order), *shift], catch_exceptions=False)
    assert done.exit_code == 0 and "told by --classes" in done.stdout
    load_checkpoint(model, out)
    for row, name in enumerate(CLASSES):
        assert torch.equal(model.state_dict()[f"{CLS}.0.6.bias"][row], state[f"{CLS}.0.6.bias"][order.index(name)])


class Other(torch.nn.Module):
    """A detector without a head of this project."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)


def test_a_foreign_detector_needs_no_notes(tmp_path):
    torch.save(Other().state_dict(), tmp_path / "other.pth")
    load_checkpoint(Other(), tmp_path / "other.pth")
    load_checkpoint(Other(), tmp_path / "other.pth", {"type": "DetectorAdapter", "classes": list(CLASSES)})
    with pytest.raises(FD3DError, match="other.pth does not tell its classes; declare them in the config's adapter"):
        load_checkpoint(Other(), tmp_path / "other.pth", {"type": "DetectorAdapter"})


@pytest.mark.parametrize("averaged", [False, True], ids=["plain", "ema"])
def test_files_of_mmengine_are_read_with_their_notes(bevformer, state, tmp_path, averaged):
    """What its Runner writes: log histories, the optimiser, a one-cycle schedule with its function, moving averages."""
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([parameter])
    parameter.sum().backward()
    optimizer.step()
    schedule = OneCycleLR(optimizer, eta_max=1e-3, total_steps=8)
    info = {"epoch": 1, "best": np.float64(0.5), "dataset_meta": {"classes": CLASSES}}
    content = {
        "meta": {
            "mmengine_version": "0.10.7",
            "time": "20261128_064540",
            "cfg": "",
            "dataset_meta": {"classes": CLASSES},
        },
        "state_dict": state,
        "message_hub": {"log_scalars": {"train/loss": HistoryBuffer([1.0, 2.0], [1, 1])}, "runtime_info": info},
        "optimizer": optimizer.state_dict(),
        "param_schedulers": [schedule.state_dict()],
    }
    if averaged:  # EMAHook swaps: the averages are under state_dict
        content["ema_state_dict"] = {"steps": torch.tensor(8)} | moved({k: v * 0 for k, v in state.items()}, "module.")
    torch.save(content, tmp_path / "epoch_2.pth")
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "epoch_2.pth", weights_only=True)
    found = load_checkpoint(build_detector(load_config(bevformer)), tmp_path / "epoch_2.pth")
    assert all(torch.equal(found.state[name], tensor) for name, tensor in state.items())
    assert found.meta["mmengine_version"] == "0.10.7" and found.left_out == averaged * (len(state) + 1)
    with pytest.raises(pickle.UnpicklingError):  # what was allowed for the reading is forbidden again
        torch.load(tmp_path / "epoch_2.pth", weights_only=True)


def test_reading_mmengines_files_looks_nothing_up(bevformer, state, tmp_path):
    class Sneaky:
        def __reduce__(self):
            return getattr, (HistoryBuffer, "register_statistics")

    torch.save({"state_dict": state, "meta": {"x": Sneaky()}}, tmp_path / "sneaky.pth")
    assert read_checkpoint(tmp_path / "sneaky.pth").meta == {"x": None}


JUNE = "Sat Jun 11 10:20:30 2022"
LATER = "Tue Aug 01 10:20:30 2023"


@pytest.mark.parametrize(
    ("meta", "names", "option", "shift"),
    [
        ({"time": JUNE}, "", "auto", True),
        ({"time": "20220611_102030"}, "", "auto", True),  # mmengine's form
        ({"time": "Wed Jul 26 23:59:59 2023"}, "", "auto", True),  # the day before the repair
        ({"time": LATER}, "", "auto", None),  # a copy of the old code may have made it
        ({"time": "Thu Jul 27 00:00:00 2023"}, "", "auto", None),
        ({}, "", "auto", None),
        ({"time": LATER}, "student.", "auto", True),  # FD3D's release
        ({"time": LATER, "config": "model = dict(type='HeatmapDetectionDistiller')"}, "", "auto", True),
        ({"time": LATER}, "", "true", True),
        ({"time": JUNE}, "", "false", False),
    ],
)
def test_the_file_tells_whether_current_points_were_shifted(bevformer, state, tmp_path, meta, names, option, shift):
    notes = {k: v for k, v in OLD.items() if k != "time"} | meta
    source, out = official(tmp_path / "old.pth", moved(state, names), notes), tmp_path / "new.pth"
    if shift is None:
        with pytest.raises(FD3DError, match="does not tell whether its code shifted .* give --shift-current true"):
            convert_checkpoint(source, out, bevformer, shift=option)
        return
    assert convert_checkpoint(source, out, bevformer, shift=option)["shift_current"] is shift
    model: Any = build_detector(load_config(bevformer))
    assert not model.pts_bbox_head.transformer.encoder.shift_current
    load_checkpoint(model, out)
    assert model.pts_bbox_head.transformer.encoder.shift_current is shift


@pytest.mark.parametrize("said", [False, True])
def test_a_config_that_contradicts_the_file_is_refused(bevformer, state, folder, tmp_path, said):
    config = tmp_path / "saying.py"
    config.write_text(
        f'_base_ = "{bevformer}"\nmodel = dict(pts_bbox_head=dict(transformer=dict(encoder=dict(shift_current={said}))))'
    )
    source = official(tmp_path / "old.pth", state, OLD | {"time": JUNE})
    convert_checkpoint(source, tmp_path / "new.pth", bevformer)
    if said:
        convert_checkpoint(source, tmp_path / "same.pth", config)
        load_checkpoint(build_detector(load_config(config)), tmp_path / "new.pth")
        # a file that does not tell is taken as the config says
        mute = official(tmp_path / "mute.pth", state, OLD | {"time": LATER})
        assert convert_checkpoint(mute, tmp_path / "told.pth", config)["shift_current"] is True
        return
    message = (
        r"encoder.shift_current is False, but checkpoint .* was trained with True \(time .* 2022, before 27 July 2023\)"
    )
    with pytest.raises(FD3DError, match=message):
        load_checkpoint(build_detector(load_config(config)), tmp_path / "new.pth")
    with pytest.raises(FD3DError, match=message):
        convert_checkpoint(source, tmp_path / "refused.pth", config)
    assert not (tmp_path / "refused.pth").exists()
