"""What an exported file says about itself: how images become its inputs, and for which rig."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from mmengine.config import Config

from pipeline.data.geometry import own_hw, resized_hw
from pipeline.data.rig import other_images, other_turn, turned_otherwise
from pipeline.errors import FD3DError

KEY = "fd3d"
"""Key of the notes in the file's metadata."""
FORMAT = 3
_READ = (2, FORMAT)  # format 2 tells no turn of the frame of reference


@dataclass(frozen=True)
class Notes:
    """Notes of an ONNX file.

    Attributes:
        detector: class of the detector.
        sizes: rows and columns of each of the V cameras' images before they are resized.
        cameras: names of the cameras in the order of the inputs; empty where the file was exported without an index and the checkpoint tells none.
        reference: frame of reference of the boxes, as of an index; None likewise.
        scale, to_rgb: section ``image`` of the detector's config.
        pc_range: the config's, metres.
        bev_shape: cells and channels of the BEV map that is given back as history; None without history.
        checkpoint_sha256: of the checkpoint's bytes.
        lidar_turn: degrees by which the frame of reference of the training is turned, see :func:`~pipeline.data.rig.turn_of`, or
            of the index where the checkpoint tells none; None where neither does.
    """

    detector: str
    sizes: tuple[tuple[int, int], ...]
    cameras: tuple[str, ...]
    reference: str | None
    scale: float
    to_rgb: bool
    pc_range: tuple[float, ...]
    bev_shape: tuple[int, int] | None
    checkpoint_sha256: str
    lidar_turn: float | None = None

    @property
    def views(self) -> int:
        """Number of cameras."""
        return len(self.sizes)

    @property
    def resized_hw(self) -> tuple[int, int]:
        """Rows and columns of the images that the graph takes, to which smaller ones are padded."""
        return resized_hw(np.max(self.sizes, axis=0), self.scale)

    @property
    def view_hw(self) -> np.ndarray | None:
        """Rows and columns (V, 2) of each camera's resized image; None where all have one size."""
        return None if len(set(self.sizes)) == 1 else own_hw(np.array(self.sizes), self.scale)

    def dumped(self) -> str:
        """The notes as text."""
        return json.dumps({"format": FORMAT} | asdict(self))

    @classmethod
    def of(cls, metadata: Mapping[str, str], path: object) -> "Notes":
        """Notes in a file's metadata.

        Raises:
            FD3DError: the file has none, notes of another format, or a note of another form than an export writes.
        """
        try:
            values = json.loads(metadata[KEY])
            found = values.pop("format")
            if found not in _READ:
                raise FD3DError(f"{path} has format {found}, this program reads {FORMAT}; export the detector again")
            values |= {name: tuple(values[name]) for name in ("cameras", "pc_range")}
            values["sizes"] = tuple(map(tuple, values["sizes"]))
            values["bev_shape"] = None if (shape := values["bev_shape"]) is None else tuple(shape)
            notes = cls(**values)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, FD3DError):
                raise
            raise FD3DError(f"{path} is no file of 'fd3d export'; give one that 'fd3d export' made") from error
        if odd := notes._odd():
            raise FD3DError(
                f"{path} has the note {odd[0]} {getattr(notes, odd[0])!r:.80}; expected {odd[1]}; export the detector again"
            )
        return notes

    def _odd(self) -> tuple[str, str] | None:
        """The first note that no export writes, and what one writes; None where all are as written."""
        named = len(self.cameras) in (0, self.views) and all(isinstance(name, str) for name in self.cameras)
        for name, fits, form in (
            ("sizes", bool(self.sizes) and all(map(_pair, self.sizes)), "rows and columns for each camera"),
            ("bev_shape", self.bev_shape is None or _pair(self.bev_shape), "cells and channels, or none"),
            ("cameras", named, f"{self.views} names or none"),
            ("scale", _number(self.scale) and self.scale > 0, "a number above 0"),
            ("pc_range", len(self.pc_range) == 6 and all(map(_number, self.pc_range)), "six numbers, metres"),
            ("lidar_turn", self.lidar_turn is None or _number(self.lidar_turn), "degrees"),
        ):
            if not fits:
                return name, form
        return None

    def check_rig(
        self,
        cameras: Sequence[str],
        reference: str,
        path: object,
        sizes: Sequence[Sequence[int]] | None = None,
        turn: float | None = None,
    ) -> None:
        """Refuse other cameras, another order, another frame of reference or other images than a file was exported for.

        Args:
            cameras, reference: those of the data, as of an index.
            sizes: rows and columns of each camera's image; None where they are not known.
            turn: degrees by which the data's frame of reference is turned, see :func:`~pipeline.data.rig.turn_of`; None compares
                none, and a file that tells no turn takes any.

        Raises:
            FD3DError: naming what differs, on both sides.
        """
        own, given = list(self.cameras), list(cameras)
        if own and own != given:
            kind = "an order of cameras" if sorted(own) == sorted(given) else "cameras"
            differs = f"{kind} {', '.join(own)}; the data have {', '.join(given)}"
        elif self.views != len(given):
            differs = f"{self.views} cameras; the data have {len(given)} ({', '.join(given)})"
        elif self.reference is not None and self.reference != reference:
            differs = f"boxes in the frame of {self.reference}; the data have {reference}"
        elif sizes is not None and (odd := other_images(self.sizes, sizes, given)):
            differs = odd
        elif turn is not None and self.lidar_turn is not None and other_turn(self.lidar_turn, turn):
            raise FD3DError(
                turned_otherwise(f"{path} was exported for", self.reference, self.lidar_turn, reference, turn)
            )
        else:
            return
        raise FD3DError(
            f"{path} was exported for {differs}; give data of the file's rig, or export a detector that was trained for these with 'fd3d export --index'"
        )

    def check_config(self, cfg: Config, path: object) -> None:
        """Refuse a config that a file was not exported with.

        Raises:
            FD3DError: naming the first difference.
        """
        own = {"model.type": self.detector, "image.scale": self.scale, "image.to_rgb": self.to_rgb}
        own["pc_range"] = list(self.pc_range)
        given = {"model.type": cfg.model.type, "image.scale": cfg.image.scale, "image.to_rgb": cfg.image.to_rgb}
        given["pc_range"] = list(cfg.pc_range)
        for name, value in own.items():
            if value != given[name]:
                raise FD3DError(
                    f"{path} was exported with {name} {value}, the config has {given[name]}; give the config that the file was "
                    "exported with"
                )


def _pair(values: Sequence[object]) -> bool:
    return len(values) == 2 and all(type(n) is int and n > 0 for n in values)


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
