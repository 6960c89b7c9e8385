"""What the parity data's folder describes: its weights, its images, its frames."""

import json
import math
import re
import zlib
from pathlib import Path

import numpy as np
import torch
from mmdet3d.structures import Det3DDataSample, LiDARInstance3DBoxes
from mmengine.structures import InstanceData
from torch import Tensor, nn

from pipeline.data.geometry import can_bus_delta

IMAGE_HW = (256, 416)


def filled_entry(key: str, shape: tuple[int, ...], stem_gain: float) -> Tensor:
    """Value of a floating-point entry of a state dict, of its key and shape only, as the parity data's models had it."""
    leaf = key.rsplit(".", 1)[-1]
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(key.encode())))
    if leaf == "running_mean":
        return noise * 0.1
    if leaf == "running_var":
        return 1 + 0.1 * noise.abs()
    if len(shape) <= 1:
        return 1 + 0.1 * noise if leaf == "weight" else noise * 0.02
    if key.endswith(("_embeds", "embed.weight", "embedding.weight")):
        return noise
    gain = stem_gain if key.endswith("img_backbone.conv1.weight") else 1.0
    value = noise * (gain / math.sqrt(math.prod(shape[1:])))
    if re.search(r"reg_branches\.\d+\.4\.weight$", key):
        value[[0, 1, 4]] *= 0.01
    return value


def fill(model: nn.Module, stem_gain: float) -> None:
    """Weights of :func:`filled_entry`; integers and code weights are left."""
    state = model.state_dict()
    for key, old in state.items():
        if old.is_floating_point() and not key.endswith("code_weights"):
            state[key] = filled_entry(key, tuple(old.shape), stem_gain).to(old.dtype)
    model.load_state_dict(state)


def without_dropout(model: nn.Module) -> None:
    """Set every dropout probability to 0 and GridMask off, so that training mode is deterministic."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0
    model.grid_mask.prob = 0.0


def image(frame: int, norm: dict) -> Tensor:
    """Six normalised images (1, 6, 3, 256, 416) of parity frame 1 or 2."""
    rng = np.random.RandomState(frame)
    low, high = rng.randint(0, 192, (6, 3, 16, 26)), rng.randint(0, 64, (6, 3, *IMAGE_HW))
    pixels = (low.repeat(16, 2).repeat(16, 3) + high).astype(np.uint8)
    mean, std = (np.array(norm[k]).reshape(1, 3, 1, 1) for k in ("mean", "std"))
    out = ((pixels - mean) / std).astype(np.float32)
    out[:, :, 234:] = 0
    return torch.from_numpy(out)[None]


class Case:
    """One model of the parity data.

    Args:
        root: the parity folder.
        keys: name of its keys file.
        arrays: name of its numeric case.
    """

    def __init__(self, root: Path, keys: str, arrays: str) -> None:
        self.keys = json.loads((root / f"{keys}.keys.json").read_text())
        self.arrays = np.load(root / f"{arrays}.npz")

    def meta(self, step: int, motion: np.ndarray) -> dict:
        """Metainfo of frame 1 or 2."""
        matrices = self.arrays["lidar2img"].reshape(-1, 6, 4, 4)
        return {
            "lidar2img": matrices[min(step, len(matrices)) - 1],
            "can_bus": motion.reshape(18),
            "pad_hw": IMAGE_HW,
            "has_history": step > 1,
            "scene_token": "scene",
            "token": f"frame {step}",
        }

    def images(self, steps: int) -> Tensor:
        """(1, steps, 6, 3, H, W)."""
        norm = self.keys["config"]["img_norm_cfg"]
        return torch.stack([image(step, norm) for step in range(1, steps + 1)], 1)

    def training_sample(self, old: bool) -> Det3DDataSample:
        """The sample of a loss case, its queue as long as the case has frames.

        Args:
            old: whether the case's model has the old box convention (mmdet3d < 1.0): it is given boxes of that convention, since the
                code is the same function of both.
        """
        raw = self.arrays["can_bus_raw"] if "can_bus_raw" in self.arrays else np.zeros((1, 18))
        motions = [can_bus_delta(now, before) for before, now in zip([None, *raw], raw, strict=False)]
        boxes = self.arrays["gt_gravity_old" if old else "gt_gravity_new"]
        return self.sample([self.meta(i + 1, motion) for i, motion in enumerate(motions)], boxes)

    def sample(self, metas: list[dict], boxes: np.ndarray | None = None) -> Det3DDataSample:
        """A sample of these frames; boxes (n, 9) with centres of gravity."""
        sample = Det3DDataSample(metainfo={"frames": metas})
        if boxes is not None:
            instances = LiDARInstance3DBoxes(torch.from_numpy(boxes).float(), box_dim=9, origin=(0.5, 0.5, 0.5))
            labels = torch.from_numpy(self.arrays["gt_labels"])
            sample.gt_instances_3d = InstanceData(bboxes_3d=instances, labels_3d=labels)
        return sample
