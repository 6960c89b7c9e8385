"""What is where over time: a road, the ego car, agents of ten classes and clutter."""

import math
from dataclasses import dataclass, field

import numpy as np

from pipeline.data.geometry import cos_sin

from .config import WorldConfig

FRAME_SECONDS = 0.5
LANE = 3.5

# length, width, height in metres: mean and relative spread, near the means of nuScenes' training set
SIZES = {
    "car": ((4.6, 1.95, 1.73), 0.10),
    "truck": ((6.9, 2.5, 2.85), 0.15),
    "construction_vehicle": ((6.4, 2.85, 3.2), 0.15),
    "bus": ((11.0, 2.95, 3.45), 0.10),
    "trailer": ((11.5, 2.9, 3.85), 0.12),
    "barrier": ((0.5, 2.5, 0.98), 0.08),
    "motorcycle": ((2.1, 0.8, 1.5), 0.08),
    "bicycle": ((1.7, 0.6, 1.35), 0.08),
    "pedestrian": ((0.72, 0.66, 1.77), 0.09),
    "traffic_cone": ((0.42, 0.42, 1.07), 0.12),
}
# agents drawn per scene at density 1 (Poisson means); where no free place is found for one, it is left out
COUNTS = {
    "car": 8,
    "truck": 3,
    "construction_vehicle": 2,
    "bus": 2.2,
    "trailer": 2.4,
    "barrier": 3.5,
    "motorcycle": 3,
    "bicycle": 3,
    "pedestrian": 5.5,
    "traffic_cone": 4.5,
}
VEHICLES = ("car", "truck", "construction_vehicle", "bus", "trailer")
CYCLES = ("motorcycle", "bicycle")


@dataclass
class Agent:
    """One annotated object.

    Attributes:
        size: length, width, height, metres.
        poses: (T, 4) x, y, yaw, speed in the scene's frame; the box stands on the ground.
        attribute: nuScenes attribute name, or empty.
        look: seed of its colours.
    """

    name: str
    size: tuple[float, float, float]
    poses: np.ndarray
    attribute: str
    look: int


@dataclass
class Scene:
    """A scene in a frame of its own: the road starts at the origin along x, the ground at z = 0.

    Attributes:
        curvature: of the road, 1/m, left positive.
        crossing: arc length at which a straight side road crosses, metres.
        ego: (T, 3) x, y, yaw.
        agents: annotated objects.
        origin: (3,) x, y, yaw of the scene's frame in the global frame.
        clutter: (n, 9) x, y, yaw, length, width, height, kind (0 house, 1 tree, 2 pole), colour seed, ground clearance.
    """

    curvature: float
    crossing: float
    ego: np.ndarray
    agents: list[Agent]
    clutter: np.ndarray
    origin: np.ndarray = field(default_factory=lambda: np.zeros(3))


def road_pose(s: float, d: float, curvature: float) -> tuple[float, float, float]:
    """Arc length and left offset (metres) to x, y and the road's heading."""
    if abs(curvature) < 1e-6:
        return s, d, 0.0
    angle, radius = s * curvature, 1.0 / curvature
    cosine, sine = cos_sin(angle)
    return (radius - d) * sine, radius - (radius - d) * cosine, angle


def make_scene(config: WorldConfig, number: int) -> Scene:
    """Draw scene ``number``; the same for the same seed."""
    rng = np.random.default_rng([config.seed, number])
    frames = config.frames_per_scene
    times = np.arange(frames) * FRAME_SECONDS
    curvature = float(rng.uniform(-0.008, 0.008))
    speed = float(rng.choice([0.0, rng.uniform(2, 8), rng.uniform(4, 11)], p=[0.15, 0.5, 0.35]))
    travel = speed * times[-1]
    crossing = float(rng.uniform(-25, travel + 30))
    ego = np.round(np.array([road_pose(speed * t, -LANE / 2, curvature) for t in times]), 9)
    agents: list[Agent] = []
    tracks = [np.column_stack([ego[:, :2], np.full(frames, 2.6)])]  # x, y, radius: the ego car keeps its place
    for name, count in COUNTS.items():
        for _ in range(rng.poisson(count * config.density)):
            for _ in range(12):
                agent = _draw_agent(rng, name, curvature, crossing, travel, times)
                radius = 0.5 * math.hypot(agent.size[0], agent.size[1]) * (0.75 if name in VEHICLES else 1.0)
                track = np.column_stack([agent.poses[:, :2], np.full(frames, radius)])
                if all((np.hypot(*(track - t)[:, :2].T) > track[:, 2] + t[:, 2]).all() for t in tracks):
                    agents.append(agent)
                    tracks.append(track)
                    break
    origin = np.round([rng.uniform(300, 1500), rng.uniform(300, 1500), rng.uniform(-math.pi, math.pi)], 9)
    return Scene(curvature, crossing, ego, agents, _draw_clutter(rng, config, curvature, crossing, travel), origin)


def _draw_agent(
    rng: np.random.Generator,
    name: str,
    curvature: float,
    crossing: float,
    travel: float,
    times: np.ndarray,
) -> Agent:
    mean, spread = SIZES[name]
    common = rng.normal(1, spread)
    size = tuple(float(m * np.clip(common * rng.normal(1, spread / 2), 0.7, 1.4)) for m in mean)
    length, width, height = size
    s, d, yaw, speed, attribute = 0.0, 0.0, 0.0, 0.0, ""
    middle = travel / 2
    across = False
    if name in VEHICLES or name in CYCLES:
        mode = rng.choice(["with", "against", "cross", "parked"], p=[0.3, 0.3, 0.15, 0.25])
        side = -1 if mode == "with" else 1
        moving = mode != "parked" and rng.random() < 0.85
        speed = float(rng.uniform(2, 10)) * (0.6 if name in CYCLES or name == "construction_vehicle" else 1.0) * moving
        lane = rng.choice([0.5, 1.5])
        d = side * LANE * lane + rng.normal(0, 0.3)
        if name in CYCLES:
            d = side * (LANE * 2 - 0.6) + rng.normal(0, 0.4)
        yaw = 0.0 if side < 0 else math.pi
        s = middle + rng.uniform(-42, 42) - (speed if side < 0 else -speed) * times[-1] / 2
        if mode == "cross":
            across, direction = True, rng.choice([-1, 1])
            s = crossing + direction * LANE / 2 + rng.normal(0, 0.2)
            d = rng.uniform(-35, 35) - direction * speed * times[-1] / 2
            yaw = direction * math.pi / 2
        if mode == "parked":
            side = rng.choice([-1, 1])
            angled = rng.random() < 0.35
            d = side * (LANE * 2 + (2.2 + length / 2 if angled else 1.3 + width / 2))
            yaw = rng.uniform(-math.pi, math.pi) if angled else (0.0 if side < 0 else math.pi)
        if name in VEHICLES:
            kind = "moving" if speed > 0 else ("parked" if mode == "parked" else "stopped")
            attribute = f"vehicle.{kind}"
        else:
            attribute = "cycle.with_rider" if speed > 0 else "cycle.without_rider"
        yaw += rng.normal(0, 0.04)
    elif name == "pedestrian":
        side = rng.choice([-1, 1])
        moving = rng.random() < 0.7
        s, d = middle + rng.uniform(-38, 38), side * (LANE * 2 + rng.uniform(1.0, 6.0))
        yaw = rng.choice([0.0, math.pi]) + rng.normal(0, 0.3)
        if rng.random() < 0.25:  # crosses the road
            d, yaw = rng.uniform(-7, 7), rng.choice([-1, 1]) * math.pi / 2 + rng.normal(0, 0.2)
        speed = float(rng.uniform(0.7, 1.8)) * moving
        attribute = "pedestrian.moving" if moving else "pedestrian.standing"
    else:  # barriers and cones, along the kerb or around a work site
        side = rng.choice([-1, 1])
        s, d = middle + rng.uniform(-36, 36), side * (LANE * 2 + rng.uniform(-1.2, 1.2))
        if rng.random() < 0.3:
            d = side * rng.uniform(8, 14)
        yaw = rng.choice([0.0, math.pi / 2]) + rng.normal(0, 0.15) + (math.pi if side > 0 else 0.0)
    poses = []
    for t in times:
        if across or name == "pedestrian":
            x, y, heading = road_pose(s, 0.0, curvature)
            ahead = cos_sin(heading)
            left, direction = np.array([-ahead[1], ahead[0]]), np.array(cos_sin(heading + yaw))
            x, y = np.array([x, y]) + left * d + direction * speed * t
        else:
            x, y, heading = road_pose(s + math.copysign(speed, math.cos(yaw)) * t, d, curvature)
        poses.append((x, y, heading + yaw, speed))
    size = round(length, 9), round(width, 9), round(height, 9)
    return Agent(name, size, np.round(np.array(poses), 9), attribute, int(rng.integers(2**31)))


def _draw_clutter(
    rng: np.random.Generator, config: WorldConfig, curvature: float, crossing: float, travel: float
) -> np.ndarray:
    rows = []
    for _ in range(rng.poisson(34 * config.clutter)):
        kind = int(rng.choice([0, 1, 2], p=[0.4, 0.35, 0.25]))
        s, side = rng.uniform(-70, travel + 70), rng.choice([-1, 1])
        if abs(s - crossing) < 11:
            continue
        if kind == 0:
            d, box = side * rng.uniform(24, 42), (rng.uniform(7, 20), rng.uniform(7, 14), rng.uniform(4, 16))
        elif kind == 1:
            d, box = side * rng.uniform(14, 28), (rng.uniform(2, 5), rng.uniform(2, 5), rng.uniform(4, 9))
        else:
            d, box = side * rng.uniform(8.2, 13), (0.3, 0.3, rng.uniform(3, 8))
        x, y, heading = road_pose(s, d, curvature)
        clearance = box[2] * 0.35 if kind == 1 else 0.0
        rows.append((x, y, heading + rng.normal(0, 0.05), *box, kind, rng.integers(2**31), clearance))
    return np.round(np.array(rows, dtype=np.float64).reshape(-1, 9), 9)
