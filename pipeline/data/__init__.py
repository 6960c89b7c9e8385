"""Frames of a nuScenes-format data set: index, geometry, datasets, transforms and the embedded world."""

# The order of classes and cameras is BEVFormer's, which official checkpoints rely on.
CATEGORIES = {
    "car": "vehicle.car",
    "truck": "vehicle.truck",
    "construction_vehicle": "vehicle.construction",
    "bus": "vehicle.bus.rigid",
    "trailer": "vehicle.trailer",
    "barrier": "movable_object.barrier",
    "motorcycle": "vehicle.motorcycle",
    "bicycle": "vehicle.bicycle",
    "pedestrian": "human.pedestrian.adult",
    "traffic_cone": "movable_object.trafficcone",
}
"""By detection class a category of nuScenes that the devkit counts as the class."""
CLASSES = tuple(CATEGORIES)
CAMERAS = ("CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_FRONT_LEFT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_BACK_RIGHT")
GENERATED_BY = "world.json"
"""Name of the file beside the tables of a generated data set with the settings that made it."""
