"""Cameras whose images differ in size: each camera's own image in the padded one."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def view_sizes(frames: Sequence[Mapping[str, Any]], device: torch.device) -> Tensor | None:
    """Rows and columns (B, V, 2) of each camera's own image; None where the images of every frame have one size.

    Args:
        frames: metainfo of B frames: ``view_hw`` (V, 2), or ``img_hw`` and ``lidar2img`` of a frame without it.
    """
    if not any("view_hw" in frame for frame in frames):
        return None
    own = [frame.get("view_hw", [frame["img_hw"]] * len(frame["lidar2img"])) for frame in frames]
    return torch.stack([torch.as_tensor(sizes) for sizes in own]).to(device, torch.float32)


def own_extent(image_hw: tuple[int, int], view_hw: Tensor | None) -> Tensor | float:
    """Largest x and y of each camera's own image in 0..1 of the padded image.

    Args:
        image_hw: rows and columns of the padded image.
        view_hw: (B, V, 2) of :func:`view_sizes`.

    Returns:
        (B, V, 1, 2), or 1 where all images have one size.
    """
    if view_hw is None:
        return 1.0
    return (view_hw / view_hw.new_tensor(image_hw)).flip(-1)[:, :, None]


def own_cells(view_hw: Tensor, size: tuple[int, int], image_hw: tuple[int, int]) -> Tensor:
    """Cells of a pyramid level whose centre lies in the camera's own image, bool (B, V, Hl, Wl).

    Args:
        view_hw: (B, V, 2) of :func:`view_sizes`.
        size: rows and columns of the level.
        image_hw: rows and columns of the padded image that the level divides.
    """
    rows, columns = (
        (torch.arange(cells, device=view_hw.device) + 0.5) * (pixels / cells)
        for cells, pixels in zip(size, image_hw, strict=True)
    )
    return (rows < view_hw[..., :1])[..., None] & (columns < view_hw[..., 1:])[..., None, :]
