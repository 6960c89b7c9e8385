"""Frames of a nuScenes-format data set: index, geometry, datasets, transforms and the embedded world."""

# The order of classes and cameras is BEVFormer's, which official checkpoints rely on.
CLASSES = (
    "car",
    "truck",
    "construction_vehicle",
    "bus",
    "trailer",
    "barrier",
    "motorcycle",
    "bicycle",
    "pedestrian",
    "traffic_cone",
)
CAMERAS = ("CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_FRONT_LEFT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_BACK_RIGHT")
GENERATED_BY = "world.json"
"""Name of the file beside the tables of a generated data set with the settings that made it."""
