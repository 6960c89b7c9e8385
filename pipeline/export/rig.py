"""Cameras that a detector is exported for; made without PyTorch."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from pipeline.data.index import FrameIndex
from pipeline.data.rig import sizes_of, turn_of
from pipeline.errors import FD3DError


@dataclass(frozen=True)
class ImageRig:
    """Cameras that a graph is made for.

    Attributes:
        sizes: rows and columns of each camera's images before they are resized by the config's ``image.scale``, or of every
            camera's.
        cameras: names of the cameras; empty where only sizes are known.
        reference: frame of reference of the boxes, as of an index; None likewise.
        folder: of the data set's tables, where they are at hand, to say which frames of reference there are.
        turn: degrees by which the frame of reference is turned, see :func:`~pipeline.data.rig.turn_of`; None where it is not known.
    """

    sizes: tuple[tuple[int, int], ...]
    cameras: tuple[str, ...] = ()
    reference: str | None = None
    folder: Path | None = None
    turn: float | None = None

    def of_training(self, facts: Mapping[str, Any], views: int) -> Self:
        """This rig with what the notes of a training tell of the detector's: the turn, and where only sizes are known the cameras'
        names and the frame of reference.

        Args:
            facts: notes of a training of this project; empty where a checkpoint has none.
            views: number of cameras of the detector.
        """
        sizes, turn = self.sizes * (views // len(self.sizes)), facts.get("lidar_turn")
        whole = replace(self, sizes=sizes, turn=self.turn if turn is None else turn)
        trained = tuple(facts.get("cameras") or ())
        if self.cameras or len(trained) != views:
            return whole
        return replace(whole, cameras=trained, reference=facts.get("reference"))


def rig_of(index: FrameIndex, root: Path | None = None) -> ImageRig:
    """Images and names of a data set's cameras.

    Args:
        root: of the data set, where it is at hand.

    Raises:
        FD3DError: images of one camera differ in size, for which a graph has no mask.
    """
    arrays = index.arrays["image_sizes"]
    sizes = sizes_of(arrays)
    if sizes is None:
        odd = index.cameras[int((arrays != arrays[0]).any((0, 2)).argmax())]
        raise FD3DError(
            f"images of camera {odd} differ in size, an exported graph takes one; give --height and --width"
        )
    folder = None if root is None or not (root / index.version).is_dir() else root / index.version
    return ImageRig(sizes, tuple(index.cameras), index.reference, folder, turn_of(index.arrays["lidar2ego"]))
