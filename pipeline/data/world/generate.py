"""Generate the data set, scene by scene in parallel processes, resuming where a killed run stopped."""

import hashlib
import json
import math
import multiprocessing
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from pipeline.data.geometry import cos_sin, product
from pipeline.errors import FD3DError
from pipeline.files import check_outside_stores, write_atomically

from .appearance import agent_quads, clutter_quads
from .config import ANNOTATION_RANGE, WorldConfig
from .render import Light, draw
from .rig import RIGS, Lidar, rig
from .scene import FRAME_SECONDS, Scene, make_scene, road_pose
from .tables import remove_tables, scene_tables, upright, write_tables

_JPEG_QUALITY = 92
# The devkit's CAN bus reader takes names of four digits only; real scenes end at 1110. Held-out scenes have numbers,
# and so seeds, of their own: they stay when the number of training scenes changes.
_FIRST_TRAINING, _FIRST_HELD_OUT = 2000, 8000
_START_US = 1_700_000_000_000_000


def generate_world(root: Path, config: WorldConfig, workers: int = 2) -> dict[str, Any]:
    """Write a nuScenes-format data set below ``root``.

    Args:
        workers: processes; 0 renders in this one.

    Returns:
        number of scenes, frames and rows of each table.

    Raises:
        FD3DError: ``root`` holds something else, is or lies in a store, or cannot be written.
    """
    check_outside_stores(root)
    records = root / ".scenes"
    if root.exists() and not records.is_dir() and not (root.is_dir() and not any(root.iterdir())):
        raise FD3DError(f"{root} is not empty and no embedded world; choose another folder")
    try:
        records.mkdir(parents=True, exist_ok=True)  # first of all, so that a run killed in its first scene can go on
    except OSError as error:
        raise FD3DError(f"{root} cannot be written: {error.strerror}; choose another folder") from error
    stamp = hashlib.sha256(config.text.encode()).hexdigest()[:16]
    numbers = [(split, number) for split, those in scene_numbers(config).items() for number in those]
    jobs = [(root, config, stamp, number) for _, number in numbers]
    if not all(_is_done(root, stamp, number) for *_, number in jobs):
        remove_tables(root, config)  # images of other settings are about to change: no tables may vouch for them
    bar = tqdm(total=len(jobs), unit="scene", disable=None)
    parts: list[Path] = []
    if workers:
        with multiprocessing.get_context("spawn").Pool(workers) as pool:
            for path in pool.imap(_make_one, jobs):
                parts.append(path)
                bar.update()
    else:
        for job in jobs:
            parts.append(_make_one(job))
            bar.update()
    bar.close()
    scenes: dict[str, list[Any]] = {}
    for (split, _), path in zip(numbers, parts, strict=True):
        scenes.setdefault(split, []).append(json.loads(path.read_text())["tables"])
    rows = write_tables(root, config, scenes)
    return {"scenes": len(jobs), "frames": len(jobs) * config.frames_per_scene, "rows": rows}


def scene_numbers(config: WorldConfig) -> dict[str, range]:
    """Numbers of the scenes of every split that has scenes: ``world_train``, ``world_dev``, ``world_val``."""
    first_val = _FIRST_HELD_OUT + config.dev_scenes
    numbers = {
        "world_train": range(_FIRST_TRAINING, _FIRST_TRAINING + config.train_scenes),
        "world_dev": range(_FIRST_HELD_OUT, first_val),
        "world_val": range(first_val, first_val + config.val_scenes),
    }
    return {split: those for split, those in numbers.items() if those}


def _record(root: Path, number: int) -> Path:
    return root / ".scenes" / f"scene-{number}.json"


def _is_done(root: Path, stamp: str, number: int) -> bool:
    record = _record(root, number)
    return record.exists() and json.loads(record.read_text())["stamp"] == stamp


def _make_one(job: tuple[Path, WorldConfig, str, int]) -> Path:
    """Render one scene unless a finished one of the same settings lies there; returns its record."""
    root, config, stamp, number = job
    record = _record(root, number)
    if _is_done(root, stamp, number):
        return record
    record.unlink(missing_ok=True)  # before its images change
    cv2.setNumThreads(1)
    tables = render_scene(root, config, number)
    write_atomically(record, lambda file: json.dump({"stamp": stamp, "tables": tables}, file))
    return record


def _to_global(poses: np.ndarray, origin: np.ndarray) -> np.ndarray:
    """Move x, y, yaw (..., >=3) of a scene to its place on the map."""
    c, s = cos_sin(origin[2])
    x = origin[0] + c * poses[..., 0] - s * poses[..., 1]
    y = origin[1] + s * poses[..., 0] + c * poses[..., 1]
    return np.round(np.stack([x, y, poses[..., 2] + origin[2]], -1), 9)


def _place(corners: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """Corners (n, 4, 3) from an object's frame to the scene."""
    c, s = cos_sin(pose[2])
    turn = np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])
    return product(corners, turn.T) + np.array([pose[0], pose[1], 0.0])


def render_scene(root: Path, config: WorldConfig, number: int) -> dict[str, Any]:
    """Write a scene's images, points and CAN bus messages and return its table rows."""
    name = f"scene-{number}"
    scene = make_scene(config, number)
    rng = np.random.default_rng([config.seed, number, 1])
    light = Light(rng, config.photometric)
    sensors = RIGS[config.rig]
    cameras = rig(config.height, config.width, config.rig)
    sizes = {camera.name: camera.size for camera in cameras}
    crossing = np.array(road_pose(scene.crossing, 0.0, scene.curvature))
    shapes = [agent_quads(agent) for agent in scene.agents]
    static = [(_place(corners, row), colors) for row in scene.clutter for corners, colors in [clutter_quads(row)]]
    still = _batch([(c, light.shade(c, colors), 0) for c, colors in static])
    seen_by: list[list[dict[str, Any]]] = [[] for _ in scene.agents]
    global_ego = _to_global(scene.ego, scene.origin)
    frames: list[dict[str, Any]] = []
    for t in range(config.frames_per_scene):
        moving = []
        for i, (agent, (corners, colors)) in enumerate(zip(scene.agents, shapes, strict=True)):
            placed = _place(corners, agent.poses[t])
            moving.append((placed, light.shade(placed, colors), i + 1))
        quads = tuple(np.concatenate(pair) for pair in zip(still, _batch(moving), strict=True))
        seen, total = np.zeros(len(scene.agents)), np.zeros(len(scene.agents))
        files: dict[str, str] = {}
        for k, camera in enumerate(cameras):
            shade_seed = (number * 1009 + t * 31 + k) % (2**31)
            image, visible, unoccluded = draw(
                camera,
                camera.size,
                scene.ego[t],
                quads,
                len(scene.agents),
                scene.curvature,
                crossing,
                light,
                shade_seed,
            )
            seen, total = seen + visible, total + unoccluded
            files[camera.name] = f"samples/{camera.name}/{name}_{t:03d}.jpg"
            _write_image(root / files[camera.name], image)
        timestamp = _START_US + number * 60_000_000 + int(t * FRAME_SECONDS * 1e6)
        points = _annotate(config, scene, t, seen, total, seen_by)
        if sensors.lidar is not None:
            files[sensors.lidar.name] = f"samples/{sensors.lidar.name}/{name}_{t:03d}.pcd.bin"
            _write_points(root / files[sensors.lidar.name], scene, t, points, sensors.lidar, rng)
        frames.append({"timestamp": timestamp, "ego": global_ego[t].tolist(), "files": files, "sizes": sizes})
    if sensors.can_bus:
        _write_can_bus(root / "can_bus" / f"{name}_pose.json", frames)
    agents = [
        {"name": agent.name, "size": agent.size, "attribute": agent.attribute, "seen": boxes}
        for agent, boxes in zip(scene.agents, seen_by, strict=True)
    ]
    return scene_tables(name, frames, agents, sensors)


def _batch(parts: list[tuple[np.ndarray, np.ndarray, int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    if not parts:
        return np.zeros((0, 4, 3)), np.zeros((0, 3)), np.zeros(0, np.int64)
    corners, colors, owners = zip(*parts, strict=True)
    return np.concatenate(corners), np.concatenate(colors), np.repeat(np.array(owners), [len(c) for c in corners])


def _annotate(
    config: WorldConfig, scene: Scene, t: int, seen: np.ndarray, total: np.ndarray, seen_by: list[list[dict[str, Any]]]
) -> np.ndarray:
    """Append frame t's annotations of the agents in range; returns LiDAR points per agent."""
    points = np.zeros(len(scene.agents), np.int64)
    for i, agent in enumerate(scene.agents):
        distance = math.hypot(*(agent.poses[t, :2] - scene.ego[t, :2]))
        if distance > ANNOTATION_RANGE:
            continue
        visible = float(seen[i] / total[i]) if total[i] else 0.0
        if seen[i] >= config.min_pixels and distance <= config.lidar_range:
            area = agent.size[2] * math.hypot(agent.size[0], agent.size[1])
            points[i] = max(1, round(visible * area * 2500 / max(distance, 2.0) ** 2))
        pose = _to_global(agent.poses[t, :3], scene.origin)
        seen_by[i].append({"frame": t, "pose": pose.tolist(), "visible": visible, "points": int(points[i])})
    return points


def _write_image(path: Path, image: np.ndarray) -> None:
    encoded, buffer = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    if not encoded:
        raise FD3DError(f"{path} could not be encoded as JPEG")
    _write_bytes(path, buffer.tobytes())


def _write_bytes(path: Path, content: bytes) -> None:
    """Not atomic: a scene counts only when its record is written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    except OSError as error:
        raise FD3DError(f"{path} cannot be written: {error.strerror}; free some space and run again") from error


def _write_points(path: Path, scene: Scene, t: int, points: np.ndarray, lidar: Lidar, rng: np.random.Generator) -> None:
    """A sparse sweep, enough to look at: a few points of each seen box's surface, and rings on the ground."""
    clouds = []
    angle = rng.uniform(-math.pi, math.pi, 300)
    radius = rng.choice([5.0, 8.0, 12.0, 18.0, 27.0], 300)
    clouds.append(np.column_stack([radius * np.cos(angle), radius * np.sin(angle), np.zeros(300)]))
    c, s = cos_sin(-scene.ego[t, 2])
    for agent, count in zip(scene.agents, points, strict=True):
        if not count:
            continue
        number = min(int(count), 30)
        local = rng.uniform(-0.5, 0.5, (number, 3))
        side = rng.integers(0, 2, number)
        local[np.arange(number), side] = np.sign(local[np.arange(number), side]) * 0.5
        local = local * agent.size + [0, 0, agent.size[2] / 2]
        placed = _place(local[:, None], agent.poses[t])[:, 0] - [*scene.ego[t, :2], 0.0]
        x, y, z = placed.T
        clouds.append(np.column_stack([c * x - s * y, s * x + c * y, z]))
    in_ego = np.concatenate(clouds)
    quarter = np.array(
        [[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
    )  # of nuScenes, whose LiDAR looks to the right
    turn = np.linalg.matrix_power(quarter, lidar.right_turns)
    cloud = np.zeros((len(in_ego), 5), np.float32)
    cloud[:, :3] = np.round(product(in_ego - np.array(lidar.position), turn), 4)
    _write_bytes(path, cloud.tobytes())


def _write_can_bus(path: Path, frames: list[dict[str, Any]]) -> None:
    """Pose messages at 10 Hz between the key frames, as in the CAN bus expansion."""
    times = np.array([f["timestamp"] for f in frames], dtype=np.float64)
    ego = np.array([f["ego"] for f in frames])
    ego[:, 2] = np.unwrap(ego[:, 2])
    fine = np.arange(times[0], times[-1] + 1, 100_000.0)
    x, y, yaw = (np.interp(fine, times, ego[:, i]) for i in range(3))
    seconds = fine / 1e6
    gradient = [np.gradient(v, seconds) if len(v) > 1 else np.zeros_like(v) for v in (x, y, yaw)]
    speed = np.hypot(gradient[0], gradient[1])
    accel = np.gradient(speed, seconds) if len(speed) > 1 else np.zeros_like(speed)
    messages = [
        {
            "utime": int(fine[i]),
            "pos": [round(float(x[i]), 9), round(float(y[i]), 9), 0.0],
            "orientation": upright(yaw[i]),
            "accel": [round(float(accel[i]), 7), 0.0, 9.81],
            "rotation_rate": [0.0, 0.0, round(float(gradient[2][i]), 7)],
            "vel": [round(float(speed[i]), 7), 0.0, 0.0],
        }
        for i in range(len(fine))
    ]
    write_atomically(path, lambda file: json.dump(messages, file))
