"""What a cached frame holds of the expert's maps, on the training device: rows of stored cells, or whole maps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.focal.codes import FeatureCode
from store_schema import StoreSchema

CachedFrame = Mapping[str, np.ndarray]
Codes = Mapping[str, FeatureCode]
"""Codes by map of a store with coded features, on the training device."""


@dataclass
class StoredCells:
    """The expert's features at all stored cells of N maps of H x W: the BEV maps or a pyramid level of B samples.

    Attributes:
        values: (m, C) in the expert's own scale.
        row: (N * H * W,) place of a cell among the values, m for a cell that is not stored.
    """

    values: Tensor
    row: Tensor


def stored_values(frame: CachedFrame, name: str, device: torch.device, codes: Codes | None = None) -> Tensor:
    """Features (m, C) float32 of the stored cells of map ``name`` in their order; codes are decoded on ``device``."""
    if codes and name in codes and frame[f"{name}/values"].dtype == np.uint8:
        return codes[name].decode(torch.from_numpy(frame[f"{name}/values"]).to(device))
    values = torch.from_numpy(frame[f"{name}/values"]).to(device)
    if values.dtype == torch.uint8 and f"{name}/affine" not in frame:
        raise ValueError(f"{name} has codes, and no code was given to decode them")
    values = values.float()
    if f"{name}/affine" in frame:
        scale, offset = torch.from_numpy(frame[f"{name}/affine"]).to(device).split(1, dim=1)
        values = values.mul_(scale).add_(offset)
    return values


def stored_index(frame: CachedFrame, name: str, device: torch.device) -> Tensor:
    """Numbers (m,) of the stored cells of map ``name``."""
    return torch.from_numpy(frame[f"{name}/index"].astype(np.int64)).to(device)


def scatter_cells(frame: CachedFrame, name: str, cells: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Dense map (cells, C) float32 of the stored cells of map ``name``, and the mask of stored cells (cells,)."""
    where, values = stored_index(frame, name, device), stored_values(frame, name, device)
    dense = values.new_zeros(cells, values.shape[-1])
    dense[where] = values
    stored = torch.zeros(cells, dtype=torch.bool, device=device)
    stored[where] = True
    return dense, stored


def stored_cells(
    frames: Sequence[CachedFrame],
    schema: StoreSchema,
    name: str,
    cells: int,
    device: torch.device,
    codes: Codes | None = None,
) -> StoredCells:
    """Stored cells of map ``name``, which has that many cells in every frame."""
    if schema.layout == "dense":
        whole = [torch.from_numpy(frame[f"{name}/dense"]).to(device).float().flatten(0, -2) for frame in frames]
        values = torch.cat(whole)
        return StoredCells(values, torch.arange(len(values), device=device))
    values = torch.cat([stored_values(frame, name, device, codes) for frame in frames])
    index = torch.cat([stored_index(frame, name, device) + b * cells for b, frame in enumerate(frames)])
    row = torch.full((len(frames) * cells,), len(values), device=device)
    row[index] = torch.arange(len(values), device=device)
    return StoredCells(values, row)


def dense_bev(frame: CachedFrame, schema: StoreSchema, device: torch.device) -> tuple[Tensor, Tensor]:
    """The expert's BEV map (C, H, W), 0 where not stored, and the mask of stored cells (H, W)."""
    assert schema.bev is not None
    height, width, channels = schema.bev
    if schema.layout == "dense":
        dense = torch.from_numpy(frame["bev/dense"]).to(device).float()
        return dense.permute(2, 0, 1), torch.ones(height, width, dtype=torch.bool, device=device)
    dense, stored = scatter_cells(frame, "bev", height * width, device)
    return dense.T.reshape(channels, height, width), stored.view(height, width)


def dense_pv(frame: CachedFrame, schema: StoreSchema, level: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """A pyramid level (V, C, Hl, Wl), 0 where not stored, and the mask of stored cells (V, Hl, Wl)."""
    rows, cols, channels, _ = schema.pv[level]
    views = len(schema.cameras)
    if schema.layout == "dense":
        dense = torch.from_numpy(frame[f"pv/{level}/dense"]).to(device).float()
        return dense.permute(0, 3, 1, 2), torch.ones(views, rows, cols, dtype=torch.bool, device=device)
    dense, stored = scatter_cells(frame, f"pv/{level}", views * rows * cols, device)
    return dense.view(views, rows, cols, channels).permute(0, 3, 1, 2), stored.view(views, rows, cols)
