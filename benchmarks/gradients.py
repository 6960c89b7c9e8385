"""Share of the parameters that a training reaches: ``python -m benchmarks.gradients [CONFIG ...]``.

Every detector starts as a training would: from a file of the official layout where its config freezes parameters, else from random
weights. Two training steps on six synthetic images and a few boxes tell which of the parameters that are meant to train get a
gradient: two, since the weights that some layers start with are 0, so that what feeds these layers has to wait for the first
update. Without its file a detector with frozen parameters must be refused.
"""

import math
import os
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported

import torch  # noqa: E402
import typer  # noqa: E402
from mmdet3d.structures import Det3DDataSample, LiDARInstance3DBoxes  # noqa: E402
from mmengine.config import Config  # noqa: E402
from mmengine.structures import InstanceData  # noqa: E402
from torch import nn  # noqa: E402

from benchmarks.layouts import write_official  # noqa: E402
from pipeline.errors import FD3DError  # noqa: E402
from pipeline.models.build import build_detector, load_config  # noqa: E402
from pipeline.models.pretrained import check_frozen, take_pretrained  # noqa: E402

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
IMAGE_HW = (96, 160)
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    configs: Annotated[list[Path] | None, typer.Argument(help="Config files; default: all that ship.")] = None,
    bev: Annotated[int, typer.Option(help="Largest side of the BEV map, cells; larger maps are reduced.", min=4)] = 25,
    report: Annotated[bool, typer.Option(help="What was taken from the official file.")] = False,
) -> None:
    """Print a row per config; exit status 1 where a parameter gets no gradient or a missing file is not refused."""
    torch.set_num_threads(1)
    paths = configs or sorted(p for p in CONFIGS.glob("*/*.py") if p.parent.name != "_base_")
    print("config                           init       without     trained, M   with gradient, M    share")
    fine = True
    with tempfile.TemporaryDirectory() as folder:
        for path in paths:
            cfg = reduced(load_config(path), bev)
            layout = official_layout(cfg)
            refused = refused_without_file(cfg)
            init = None if layout is None else write_official(Path(folder) / "init.pth", layout)
            model, told = started(cfg, init)
            silent = without_gradient(model, cfg)
            trained = sum(p.numel() for p in model.parameters() if p.requires_grad) / 1e6
            lost = sum(p.numel() for name, p in model.named_parameters() if name in silent) / 1e6
            name = f"{path.parent.name}/{path.stem}"
            print(
                f"{name:32} {layout or '-':10} {'refused' if refused else 'trains':10} {trained:11.3f} {trained - lost:18.3f} "
                f"{(trained - lost) / trained:8.1%}",
                flush=True,
            )
            for line in (*(told if report else ()), *(f"no gradient: {name}" for name in silent)):
                print(f"    {line}")
            fine &= not silent and refused == (layout is not None)
    sys.exit(0 if fine else 1)


def reduced(cfg: Config, bev: int) -> Config:
    """A config with a BEV map of at most ``bev`` cells a side, without dropout and GridMask."""
    head = cfg.model.pts_bbox_head
    if "bev_h" in head:
        head.bev_h, head.bev_w = min(head.bev_h, bev), min(head.bev_w, bev)
        head.transformer.rotate_center = (head.bev_w // 2, head.bev_h // 2)
    cfg.model.grid_mask = 0.0
    return cfg


def official_layout(cfg: Config) -> str | None:
    """Layout of the file that a training of this config starts from, None where nothing is frozen."""
    backbone = cfg.model.img_backbone
    if backbone.norm_cfg.requires_grad:
        return None
    return "fcos3d" if backbone.get("dcn") else f"resnet{backbone.depth}"


def refused_without_file(cfg: Config) -> bool:
    """Whether a training without a pretrained file is refused."""
    try:
        check_frozen(build_detector(cfg), (), "init")
    except FD3DError:
        return True
    return False


def started(cfg: Config, init: Path | None) -> tuple[nn.Module, tuple[str, ...]]:
    """A detector as a training starts it, in training mode, with the report on what was taken."""
    torch.manual_seed(0)
    model = build_detector(cfg)
    taken = None if init is None else take_pretrained(model, init)
    check_frozen(model, taken.names if taken else (), "init")
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model.train(), taken.report if taken else ()


def without_gradient(model: nn.Module, cfg: Config) -> list[str]:
    """Names of the parameters that are meant to train and whose gradient is zero or missing in both of two steps."""
    frames = min(cfg.queue_length, 2)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (frames, 6, 3, *IMAGE_HW), generator=generator, dtype=torch.uint8)
    batch = model.data_preprocessor({"inputs": {"img": [pixels]}, "data_samples": [sample(frames)]}, True)
    silent = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(silent.values(), lr=1e-4)
    for _ in range(2):
        optimizer.zero_grad()
        losses = model(**batch, mode="loss")
        torch.stack([value for name, value in losses.items() if "loss" in name]).sum().backward()
        optimizer.step()
        silent = {n: p for n, p in silent.items() if p.grad is None or not (p.grad.isfinite().all() and p.grad.any())}
    return list(silent)


def sample(frames: int) -> Det3DDataSample:
    """A sample of frames that move 1 m each, with six cameras around the LiDAR and boxes of every class."""
    cameras = torch.stack([camera(i * math.pi / 3) for i in range(6)]).numpy()
    motion = torch.linspace(-1, 1, 18)
    motion[:2], motion[-1] = torch.tensor([1.0, 0.3]), 4.0
    metas: list[dict[str, Any]] = [
        dict(token=str(i), scene_token="a", lidar2img=cameras, can_bus=motion.numpy(), has_history=i > 0)
        for i in range(frames)
    ]
    made = Det3DDataSample(metainfo={"token": "0", "frames": metas})
    angle = torch.linspace(0, 6, 12)
    centre = torch.stack([20 * angle.cos(), 20 * angle.sin(), angle / 6 - 2], -1)
    boxes = torch.cat([centre, torch.rand(12, 6, generator=torch.Generator().manual_seed(1)) + 1], -1)
    made.gt_instances_3d = InstanceData(
        bboxes_3d=LiDARInstance3DBoxes(boxes, box_dim=9, origin=(0.5, 0.5, 0.5)), labels_3d=torch.arange(12) % 10
    )
    return made


def camera(yaw: float) -> torch.Tensor:
    """4x4 matrix from the LiDAR frame to pixels of a camera that looks along ``yaw``."""
    rows = torch.zeros(4, 4)
    rows[0, :2] = torch.tensor([math.sin(yaw), -math.cos(yaw)])
    rows[1, 2] = -1
    rows[2, :2] = torch.tensor([math.cos(yaw), math.sin(yaw)])
    rows[2, 3], rows[3, 3] = 0.5, 1
    pixels = torch.eye(4)
    pixels[0, 0] = pixels[1, 1] = IMAGE_HW[1] / 2
    pixels[0, 2], pixels[1, 2] = IMAGE_HW[1] / 2, IMAGE_HW[0] / 2
    return pixels @ rows


if __name__ == "__main__":
    app()
