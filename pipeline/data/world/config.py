"""Size and difficulty of the embedded world."""

import json
import re
from dataclasses import asdict, dataclass

from pipeline.errors import FD3DError

from .rig import RIGS

GENERATOR = 3
"""Number of the algorithm; raised with each change of the code after which the same settings give other bytes."""
ANNOTATION_RANGE = 55.0  # metres from the ego car; agents beyond have no box


@dataclass(frozen=True)
class WorldConfig:
    """Everything that decides the bytes of a generated data set."""

    seed: int = 0
    """Each scene draws from (seed, scene number), so scenes do not depend on how many there are."""
    train_scenes: int = 200
    """Scenes of the split ``world_train``."""
    val_scenes: int = 24
    """Scenes of the split ``world_val``; none is in another split."""
    frames_per_scene: int = 10
    """Key frames of a scene, at 2 Hz."""
    height: int = 160
    """Rows of an image."""
    width: int = 288
    """Columns of an image; focal lengths follow it."""
    density: float = 1.0
    """Scales the number of agents; 1 gives about 32 boxes within 40 m of the ego car, 28 of them with LiDAR points."""
    clutter: float = 1.0
    """Scales the number of houses, trees and poles that occlude agents."""
    photometric: float = 1.0
    """Strength of the variation of light, tint and texture between scenes."""
    lidar_range: float = 42.0
    """Boxes farther from the ego car than this have no LiDAR points, metres."""
    min_pixels: int = 4
    """Image pixels, over all cameras, that a box must show to count as seen."""
    version: str = "v1.0-world"
    """Name of the folder with the tables, ``v1.0-`` and letters, digits, ``_`` or ``-``."""
    dev_scenes: int = 0
    """Scenes of the split ``world_dev``, on which settings are chosen: the first validation scenes, ``world_val`` starts after them."""

    rig: str = "nuscenes"
    """Cameras, LiDAR and category names: ``nuscenes``, ``argoverse2`` (seven cameras, one portrait; a LiDAR that looks ahead) or
    ``five`` (five cameras of two sizes, no LiDAR)."""

    def __post_init__(self) -> None:
        if self.rig not in RIGS:
            raise FD3DError(f"world.rig is '{self.rig}'; use one of {', '.join(RIGS)}")
        if self.seed < 0:
            raise FD3DError(f"world.seed is {self.seed}; it must not be negative")
        for name in ("train_scenes", "val_scenes", "frames_per_scene", "min_pixels"):
            if getattr(self, name) < 1:
                raise FD3DError(f"world.{name} is {getattr(self, name)}; it must be at least 1")
        if self.dev_scenes < 0:
            raise FD3DError(f"world.dev_scenes is {self.dev_scenes}; it must not be negative")
        if self.train_scenes > 6000:
            raise FD3DError(f"world.train_scenes is {self.train_scenes}; use 6000 at most")
        if (held_out := self.dev_scenes + self.val_scenes) > 2000:
            raise FD3DError(f"world.dev_scenes and world.val_scenes are {held_out} together; use 2000 at most")
        if self.frames_per_scene > 120:
            raise FD3DError(f"world.frames_per_scene is {self.frames_per_scene}; use 120 at most")
        if any(not 32 <= size <= 4096 or size % 2 for size in (self.height, self.width)):
            raise FD3DError(f"world image size is {self.height}x{self.width}; use even sizes of 32 to 4096")
        for name in ("density", "clutter", "photometric"):
            if not getattr(self, name) >= 0:
                raise FD3DError(f"world.{name} is {getattr(self, name)}; it must not be negative")
        if not 0 < self.lidar_range <= ANNOTATION_RANGE:
            raise FD3DError(f"world.lidar_range is {self.lidar_range}; it must be in 0..{ANNOTATION_RANGE} m")
        if not re.fullmatch(r"v1\.0-[\w-]+", self.version):
            raise FD3DError(f"world.version is '{self.version}'; it must be a name such as v1.0-world")

    @property
    def text(self) -> str:
        """All settings and the algorithm's number as JSON: what a generated data set and its scenes record."""
        settings = asdict(self)
        if not self.dev_scenes:
            # worlds without the split are as they were before the setting was: same text, so none is generated again
            del settings["dev_scenes"]
        if self.rig == "nuscenes":  # likewise
            del settings["rig"]
        return json.dumps({"generator": GENERATOR} | settings, indent=1)
