"""Pretrained files of official layouts with random weights: names and shapes are facts, no value is."""

import math
import zlib
from pathlib import Path

import torch

Shapes = dict[str, tuple[int, ...]]
BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
"""Bottleneck blocks of each stage, by depth."""


def resnet(depth: int, deformable: tuple[int, ...] = ()) -> Shapes:
    """Names and shapes of a ResNet of bottleneck blocks without its classifier, as torchvision and mmdet spell them.

    Args:
        deformable: stages, from 1, whose 3x3 convolutions are deformable (DCNv2).
    """
    shapes: Shapes = {"conv1.weight": (64, 3, 7, 7)} | _norm("bn1", 64)
    channels = 64
    for stage, blocks in enumerate(BLOCKS[depth], 1):
        width = 32 * 2**stage
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            shapes[f"{name}.conv1.weight"] = (width, channels, 1, 1)
            shapes |= _norm(f"{name}.bn1", width)
            shapes[f"{name}.conv2.weight"] = (width, width, 3, 3)
            if stage in deformable:  # two offsets and a mask for each of nine taps
                shapes |= {
                    f"{name}.conv2.conv_offset.weight": (27, width, 3, 3),
                    f"{name}.conv2.conv_offset.bias": (27,),
                }
            shapes |= _norm(f"{name}.bn2", width)
            shapes[f"{name}.conv3.weight"] = (4 * width, width, 1, 1)
            shapes |= _norm(f"{name}.bn3", 4 * width)
            if block == 0:
                shapes[f"{name}.downsample.0.weight"] = (4 * width, channels, 1, 1)
                shapes |= _norm(f"{name}.downsample.1", 4 * width)
            channels = 4 * width
    return shapes


def torchvision_resnet(depth: int) -> Shapes:
    """torchvision's ``resnet50`` or ``resnet101``."""
    return resnet(depth) | {"fc.weight": (1000, 2048), "fc.bias": (1000,)}


def fcos3d_r101_dcn() -> Shapes:
    """FCOS3D with R101-DCN of mmdet3d's model zoo: backbone, neck of three laterals and five levels, head on nuScenes."""
    shapes = {f"backbone.{name}": shape for name, shape in resnet(101, deformable=(3, 4)).items()}
    for level, channels in enumerate((512, 1024, 2048)):
        shapes |= _conv(f"neck.lateral_convs.{level}.conv", 256, channels, 1)
    for level in range(5):
        shapes |= _conv(f"neck.fpn_convs.{level}.conv", 256, 256, 3)
    for branch in ("cls_convs", "reg_convs"):
        shapes |= _hidden(f"bbox_head.{branch}.0", 256) | _hidden(f"bbox_head.{branch}.1", 256, deformable=True)
    groups = {0: 2, 1: 1, 2: 3, 3: 1, 4: 2}  # offset, depth, size, rotation, velocity
    shapes |= _hidden("bbox_head.conv_cls_prev.0", 256) | _conv("bbox_head.conv_cls", 10, 256, 1)
    for group, channels in groups.items():
        if group < 4:  # velocity reads the branch itself
            shapes |= _hidden(f"bbox_head.conv_reg_prevs.{group}.0", 256)
        shapes |= _conv(f"bbox_head.conv_regs.{group}", channels, 256, 1)
    shapes |= _hidden("bbox_head.conv_dir_cls_prev.0", 256) | _conv("bbox_head.conv_dir_cls", 2, 256, 1)
    shapes |= _hidden("bbox_head.conv_attr_prev.0", 256) | _conv("bbox_head.conv_attr", 9, 256, 1)
    shapes |= _hidden("bbox_head.conv_centerness_prev.0", 256, 64) | _conv("bbox_head.conv_centerness", 1, 64, 1)
    return shapes | {f"bbox_head.scales.{level}.{i}.scale": () for level in range(5) for i in range(3)}


def write_official(path: Path, layout: str) -> Path:
    """Write a file of a layout with random weights: ``resnet50``, ``resnet101`` (bare, torchvision's) or ``fcos3d``."""
    if layout == "fcos3d":
        meta = {"mmdet3d_version": "0.6.1", "mmdet_version": "2.5.0", "mmcv_version": "1.1.6", "epoch": 12}
        torch.save({"meta": meta, "state_dict": filled(fcos3d_r101_dcn(), 1 / 60)}, path)
    else:
        torch.save(filled(torchvision_resnet(int(layout.removeprefix("resnet"))), 1.0), path)
    return path


def filled(shapes: Shapes, stem_gain: float) -> dict[str, torch.Tensor]:
    """Random tensors by name, those of a trained network in size.

    Args:
        stem_gain: factor on the first convolution, small for images in 0..255.
    """
    state = {}
    for name, shape in shapes.items():
        leaf = name.rsplit(".", 1)[-1]
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
        if leaf == "num_batches_tracked":
            state[name] = torch.tensor(1000)
        elif leaf == "running_var" or (leaf == "weight" and len(shape) == 1):
            state[name] = 1 + 0.1 * noise.abs()
            if name.endswith("bn3.weight"):  # so that a hundred residual branches do not add up
                state[name] = state[name] * 0.2
        elif len(shape) < 2:
            state[name] = noise * 0.02
        else:
            gain = (
                0.1 if "conv_offset" in name else stem_gain if name.endswith("conv1.weight") and shape[1] == 3 else 1.4
            )
            state[name] = noise * gain / math.sqrt(math.prod(shape[1:]))
    return state


def _norm(name: str, channels: int) -> Shapes:
    leaves = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{leaf}": (channels,) for leaf in leaves} | {f"{name}.num_batches_tracked": ()}


def _conv(name: str, out: int, channels: int, size: int) -> Shapes:
    return {f"{name}.weight": (out, channels, size, size), f"{name}.bias": (out,)}


def _hidden(name: str, channels: int, out: int = 256, deformable: bool = False) -> Shapes:
    """3x3 convolution with group normalisation."""
    shapes = _conv(f"{name}.conv", out, channels, 3)
    if deformable:
        shapes |= {f"{name}.conv.conv_offset.weight": (27, channels, 3, 3), f"{name}.conv.conv_offset.bias": (27,)}
    return shapes | {f"{name}.gn.weight": (out,), f"{name}.gn.bias": (out,)}
