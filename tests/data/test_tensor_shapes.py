"""What a config says of a checkpoint's shapes is what the detector has, and a file is read without PyTorch."""

import os
import pickle
from pathlib import Path

import pytest
import torch
from mmdet3d.registry import MODELS

from pipeline.data.made_for import check_shapes
from pipeline.data.tensor_shapes import tensor_shapes
from pipeline.errors import FD3DError
from pipeline.models.build import load_config

PROJECT = Path(__file__).resolve().parents[2]
CONFIGS = sorted(
    path for name in ("bevformer", "detr3d", "world") for path in (PROJECT / "configs" / name).glob("*.py")
)
"""All shipped detectors; those of configs/benchmark have the sizes of the world's."""


def saved(config: Path, out: Path, prefix: str = "") -> Path:
    """Checkpoint of a detector; every tensor is expanded from one number, since shapes alone count."""
    with torch.device("meta"):
        state = MODELS.build(load_config(config).model).state_dict()
    tensors = {f"{prefix}{name}": torch.zeros(()).expand(tensor.shape) for name, tensor in state.items()}
    torch.save({"state_dict": tensors, "meta": {"path": out.name}}, out)
    return out


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_shipped_config_takes_the_checkpoint_of_its_own_detector(config: Path, tmp_path: Path) -> None:
    path, cfg = saved(config, tmp_path / "own.pth", "module."), load_config(config)
    assert {name: tuple(shape) for name, shape in tensor_shapes(path).items()}["pts_bbox_head.code_weights"] == (10,)
    check_shapes(cfg, path, config)


@pytest.mark.parametrize(
    ("config", "other", "told"),
    [
        ("world/expert", "world/detr3d_expert", "no pts_bbox_head.bev_embedding.weight"),
        (
            "world/detr3d_expert",
            "world/expert",
            r"bev_embedding.weight \(2500, 64\), which the config's detector has not",
        ),
        ("world/apprentice", "world/expert", r"bev_embedding.weight \(2500, 64\) instead of \(625,\)"),
        ("world/detr3d_apprentice", "world/detr3d_expert", r"cls_branches.2.0.weight \(64, 64\), which"),
        ("bevformer/base_r101", "bevformer/public_tiny", "bev_embedding.weight"),
        ("detr3d/r101", "detr3d/r50", "no img_backbone.layer3.22.conv1.weight"),
        ("detr3d/r50", "detr3d/r101", "img_backbone.layer3.6.conv1.weight .*, which"),
        ("detr3d/r50", "world/detr3d_expert", "no pts_bbox_head.query_embedding.weight"),
    ],
)
def test_a_checkpoint_of_another_config_is_refused_by_its_shapes(
    config: str, other: str, told: str, tmp_path: Path
) -> None:
    path, name = saved(PROJECT / f"configs/{other}.py", tmp_path / "other.pth"), PROJECT / f"configs/{config}.py"
    with pytest.raises(
        FD3DError, match=f"other.pth does not fit the config .*{config}.py: it has .*{told}.*; give the"
    ):
        check_shapes(load_config(name), path, name)


class Opening:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("opened",)


def test_nothing_in_a_file_is_run_and_what_cannot_be_told_is_left_to_the_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    head, path = {"pts_bbox_head.a": torch.zeros(2, 3)}, tmp_path / "file.pth"
    for content, told in (
        (head, {"pts_bbox_head.a": (2, 3)}),
        ({"state_dict": head, "hook": Opening()}, {"pts_bbox_head.a": (2, 3)}),
        ({"state_dict": {"student.pts_bbox_head.a": torch.zeros(1), "teacher.pts_bbox_head.a": torch.zeros(2)}}, {}),
        (head | {"odd": 5}, {}),
        ([1], {}),
    ):
        torch.save(content, path)
        assert tensor_shapes(path) == told
    torch.save(head, path, _use_new_zipfile_serialization=False)
    assert tensor_shapes(path) == {}
    path.write_bytes(pickle.dumps(head))
    assert tensor_shapes(path) == {} and tensor_shapes(tmp_path / "none.pth") == {}
    assert not (tmp_path / "opened").exists()
