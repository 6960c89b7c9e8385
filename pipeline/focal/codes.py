"""Coded features on a device: the encoder of a dump, and the decoder of a training step."""

from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from store_schema import MapCode

_BLOCK, _CPU_BLOCK = 4096, 128
"""Cells that are compared with the entries of all codebooks at once: 32 bytes a cell take 134 MB, on a CPU 4 MB, which its cache holds."""


class FeatureCode(nn.Module):
    """Code of one map; its constants are buffers that no checkpoint includes, since the store has them.

    Args:
        code: kind and constants, see :mod:`store_schema.codes`.
    """

    basis: Tensor
    mean: Tensor
    book: Tensor

    def __init__(self, code: MapCode) -> None:
        super().__init__()
        self.code = code.code
        none = code.basis[:0]
        for name, array in (("basis", code.basis), ("mean", code.mean), ("book", code.book)):
            # a copy: a module's buffers are written to, and a reader's arrays are read-only
            tensor = torch.from_numpy(np.array(none if array is None else array, np.float32))
            self.register_buffer(name, tensor, persistent=False)

    @classmethod
    def on(cls, code: MapCode, device: torch.device) -> Self:
        """The code with its constants on a device."""
        return cls(code).to(device)

    def decode(self, codes: Tensor) -> Tensor:
        """Features (k, C) float32 from codes (k, bytes) uint8."""
        if self.code.kind == "pq":
            number = torch.arange(self.code.bytes, device=codes.device) * 256
            parts = self.book.flatten(0, 1)[codes.long() + number].flatten(1)
        else:
            parts = (torch.stack([codes & 15, codes >> 4], -1).flatten(1) if self.code.bits == 4 else codes).float()
        with torch.autocast(codes.device.type, enabled=False):  # mixed precision would multiply in half
            return torch.addmm(self.mean, parts, self.basis)

    @torch.no_grad()
    def encode(self, features: Tensor) -> Tensor:
        """Codes (k, bytes) uint8 of features (k, C): of ``pq`` the nearest entries, of ``pca`` the nearest numbers in range."""
        with torch.autocast(features.device.type, enabled=False):
            return self._encoded(features)

    def _encoded(self, features: Tensor) -> Tensor:
        centred = features.float() - self.mean
        if self.code.kind == "pq":
            parts = centred @ self.basis.T
            blocks = parts.split(_CPU_BLOCK if parts.device.type == "cpu" else _BLOCK)
            return torch.cat([self._nearest(block) for block in blocks] or [parts.new_zeros(0, self.code.bytes).byte()])
        numbers = centred @ (self.basis / self.basis.square().sum(1, keepdim=True)).T
        codes = numbers.round_().clamp_(0, 2**self.code.bits - 1).byte()
        if self.code.bits == 4:
            low, high = codes.unflatten(1, (-1, 2)).unbind(-1)
            codes = low | high << 4
        return codes

    def _nearest(self, parts: Tensor) -> Tensor:
        parts = parts.unflatten(1, (self.code.bytes, -1)).transpose(0, 1)  # (bytes, k, entries)
        # |p - b|^2 less |p|^2, which is the same for all entries
        distance = torch.baddbmm(self.book.square().sum(-1)[:, None], parts, self.book.mT, alpha=-2)
        if distance.device.type == "cpu":  # numpy's search is vectorised, nine times as fast as torch's
            return torch.from_numpy(distance.numpy().argmin(-1)).T.byte()
        return distance.argmin(-1).T.byte()
