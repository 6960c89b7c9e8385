"""The 13 tables of a nuScenes-format data set (nuScenes schema, Caesar et al., 2020)."""

import hashlib
import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from pipeline.data import GENERATED_BY
from pipeline.data.geometry import cos_sin
from pipeline.files import write_atomically

from .config import WorldConfig
from .rig import RIGS, SensorRig, rig
from .scene import VEHICLES

ATTRIBUTES = (
    "vehicle.moving",
    "vehicle.stopped",
    "vehicle.parked",
    "cycle.with_rider",
    "cycle.without_rider",
    "pedestrian.sitting_lying_down",
    "pedestrian.standing",
    "pedestrian.moving",
)
VISIBILITY = {"1": "v0-40", "2": "v40-60", "3": "v60-80", "4": "v80-100"}

Table = list[dict[str, Any]]


def token(*parts: object) -> str:
    """A 32-digit token from what it stands for."""
    return hashlib.md5("/".join(map(str, parts)).encode(), usedforsecurity=False).hexdigest()


def visibility_level(share: float) -> str:
    """Token of the nuScenes visibility bin of a visible share in 0..1."""
    return str(1 + sum(share >= limit for limit in (0.4, 0.6, 0.8)))


def static_tables(config: WorldConfig) -> dict[str, Table]:
    """Tables that do not depend on the scenes."""
    calibrated, sensors, lidar = [], [], RIGS[config.rig].lidar
    for camera in rig(config.height, config.width, config.rig):
        rotation = _quaternion(camera.rotation)
        sensors.append({"token": token("sensor", camera.name), "channel": camera.name, "modality": "camera"})
        calibrated.append(
            {
                "token": token("calibrated", camera.name),
                "sensor_token": token("sensor", camera.name),
                "translation": camera.position.tolist(),
                "rotation": rotation,
                "camera_intrinsic": camera.intrinsic.tolist(),
            }
        )
    if lidar is not None:
        sensors.append({"token": token("sensor", lidar.name), "channel": lidar.name, "modality": "lidar"})
        calibrated.append(
            {
                "token": token("calibrated", lidar.name),
                "sensor_token": token("sensor", lidar.name),
                "translation": list(lidar.position),
                "rotation": [round(float(part), 10) for part in lidar.rotation.elements],
                "camera_intrinsic": [],
            }
        )
    categories = RIGS[config.rig].categories.values()
    log = {
        "token": token("log"),
        "logfile": "world",
        "vehicle": "world",
        "date_captured": "2024-01-01",
        "location": "singapore-onenorth",  # the devkit knows four maps by name
    }
    return {
        "category": [{"token": token("category", n), "name": n, "description": ""} for n in categories],
        "attribute": [{"token": token("attribute", n), "name": n, "description": ""} for n in ATTRIBUTES],
        "visibility": [{"token": k, "level": v, "description": ""} for k, v in VISIBILITY.items()],
        "sensor": sensors,
        "calibrated_sensor": calibrated,
        "log": [log],
        "map": [
            {
                "token": token("map"),
                "log_tokens": [token("log")],
                "category": "semantic_prior",
                "filename": "maps/world.png",
            }
        ],
    }


def _quaternion(rotation: np.ndarray) -> list[float]:
    from pyquaternion import Quaternion

    return [round(float(part), 10) for part in Quaternion(matrix=rotation, atol=1e-6).elements]


def upright(yaw: float) -> list[float]:
    """Quaternion (w, x, y, z) of a turn about z, radians."""
    c, s = cos_sin(yaw / 2)
    return [round(c, 10), 0.0, 0.0, round(s, 10)]


def scene_tables(
    name: str, frames: list[dict[str, Any]], agents: list[dict[str, Any]], sensors: SensorRig
) -> dict[str, Table]:
    """Rows of one scene.

    Args:
        frames: per key frame ``timestamp`` (us), ``ego`` (x, y, yaw in the global frame), ``files`` by channel and
            ``sizes`` (rows, columns) by camera.
        agents: ``name``, ``size`` (l, w, h), ``attribute`` and ``seen``: list of dicts with ``frame``, ``pose`` (x, y,
            yaw in the global frame), ``visible`` share, ``points``.
        sensors: rig that saw the scene.
    """
    sample_tokens = [token("sample", name, i) for i in range(len(frames))]
    tables: dict[str, Table] = {k: [] for k in ("sample", "sample_data", "ego_pose", "instance", "sample_annotation")}
    for i, frame in enumerate(frames):
        tables["sample"].append(
            {
                "token": sample_tokens[i],
                "timestamp": frame["timestamp"],
                "prev": sample_tokens[i - 1] if i else "",
                "next": sample_tokens[i + 1] if i + 1 < len(frames) else "",
                "scene_token": token("scene", name),
            }
        )
        x, y, yaw = frame["ego"]
        for channel in sensors.channels:
            data = token("data", name, i, channel)
            tables["ego_pose"].append(
                {
                    "token": data,
                    "timestamp": frame["timestamp"],
                    "rotation": upright(yaw),
                    "translation": [x, y, 0.0],
                }
            )
            height, width = frame["sizes"].get(channel, (0, 0))
            tables["sample_data"].append(
                {
                    "token": data,
                    "sample_token": sample_tokens[i],
                    "ego_pose_token": data,
                    "calibrated_sensor_token": token("calibrated", channel),
                    "timestamp": frame["timestamp"],
                    "fileformat": "jpg" if height else "pcd",
                    "is_key_frame": True,
                    "height": height,
                    "width": width,
                    "filename": frame["files"][channel],
                    "prev": token("data", name, i - 1, channel) if i else "",
                    "next": token("data", name, i + 1, channel) if i + 1 < len(frames) else "",
                }
            )
    for number, agent in enumerate(agents):
        rows = [token("annotation", name, number, seen["frame"]) for seen in agent["seen"]]
        if not rows:
            continue
        instance = token("instance", name, number)
        tables["instance"].append(
            {
                "token": instance,
                "category_token": token("category", sensors.categories[agent["name"]]),
                "nbr_annotations": len(rows),
                "first_annotation_token": rows[0],
                "last_annotation_token": rows[-1],
            }
        )
        length, width, height = agent["size"]
        for k, seen in enumerate(agent["seen"]):
            x, y, yaw = seen["pose"]
            tables["sample_annotation"].append(
                {
                    "token": rows[k],
                    "sample_token": sample_tokens[seen["frame"]],
                    "instance_token": instance,
                    "visibility_token": visibility_level(seen["visible"]),
                    "attribute_tokens": [token("attribute", agent["attribute"])] if agent["attribute"] else [],
                    "translation": [x, y, height / 2],
                    "size": [width, length, height],
                    "rotation": upright(yaw),
                    "prev": rows[k - 1] if k else "",
                    "next": rows[k + 1] if k + 1 < len(rows) else "",
                    "num_lidar_pts": seen["points"],
                    "num_radar_pts": 0,
                }
            )
    traffic = any(agent["name"] in VEHICLES for agent in agents)
    tables["scene"] = [
        {
            "token": token("scene", name),
            "log_token": token("log"),
            "nbr_samples": len(frames),
            "first_sample_token": sample_tokens[0],
            "last_sample_token": sample_tokens[-1],
            "name": name,
            "description": "embedded world" + (", moving traffic" if traffic else ""),
        }
    ]
    return tables


def remove_tables(root: Path, config: WorldConfig) -> None:
    """Remove the tables of an earlier run, ``scene`` first: without it no reader takes the data set for complete."""
    folder = root / config.version
    (folder / "scene.json").unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def write_tables(root: Path, config: WorldConfig, scenes: dict[str, list[dict[str, Table]]]) -> dict[str, int]:
    """Write all tables, the splits and the map mask; ``scenes`` holds each split's scene tables.

    The table ``scene`` comes last, so that a killed run leaves no data set that loads.
    """
    remove_tables(root, config)
    folder = root / config.version
    tables = static_tables(config)
    for parts in scenes.values():
        for part in parts:
            for table, rows in part.items():
                tables.setdefault(table, []).extend(rows)
    mask = root / "maps" / "world.png"
    mask.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(mask), np.full((64, 64), 255, np.uint8))
    splits = {split: [part["scene"][0]["name"] for part in parts] for split, parts in scenes.items()}
    write_atomically(folder / "splits.json", lambda file: json.dump(splits, file, indent=1))
    write_atomically(folder / GENERATED_BY, lambda file: file.write(config.text))
    for table in sorted(tables, key=lambda name: name == "scene"):
        write_atomically(folder / f"{table}.json", partial(json.dump, tables[table]))
    return {table: len(rows) for table, rows in tables.items()}
