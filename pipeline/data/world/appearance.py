"""Agents and clutter as coloured quadrilaterals, fronts and backs told apart by shape and colour.

A part is a box in the agent's frame (x forward, y left, z up, origin on the ground below the centre); a decal is a
rectangle on one of its faces. Colours are RGB in 0..1.
"""

from dataclasses import dataclass, field

import numpy as np

from pipeline.data.geometry import product

from .scene import CYCLES, Agent

Color = tuple[float, float, float]
Point = tuple[float, float, float]

WHITE, BLACK, RED, GLASS = (0.95, 0.95, 0.9), (0.06, 0.06, 0.07), (0.85, 0.05, 0.05), (0.08, 0.10, 0.14)
ORANGE, YELLOW, SKIN = (0.95, 0.40, 0.05), (0.92, 0.70, 0.08), (0.80, 0.60, 0.48)
# corners of the faces of a unit box, counter-clockwise from outside, and the two axes that span each
_FACES = {
    "front": ((1, -1, -1), (1, 1, -1), (1, 1, 1), (1, -1, 1)),
    "back": ((-1, 1, -1), (-1, -1, -1), (-1, -1, 1), (-1, 1, 1)),
    "left": ((1, 1, -1), (-1, 1, -1), (-1, 1, 1), (1, 1, 1)),
    "right": ((-1, -1, -1), (1, -1, -1), (1, -1, 1), (-1, -1, 1)),
    "top": ((1, -1, 1), (1, 1, 1), (-1, 1, 1), (-1, -1, 1)),
}
_PAINTS = (
    (0.75, 0.75, 0.78),
    (0.15, 0.15, 0.18),
    (0.55, 0.57, 0.6),
    (0.12, 0.22, 0.5),
    (0.5, 0.1, 0.12),
    (0.1, 0.35, 0.2),
    (0.85, 0.85, 0.82),
    (0.4, 0.3, 0.2),
)
_LIFT = 0.04  # metres that a decal stands off its face, against z-fighting


@dataclass
class Quads:
    """Corners (n, 4, 3) in the agent's frame and colours (n, 3)."""

    corners: list[np.ndarray] = field(default_factory=list)
    colors: list[Color] = field(default_factory=list)

    def part(self, low: Point, high: Point, color: Color, **faces: Color) -> None:
        """An axis-aligned box without floor, to which later decals stick; single faces may have their own colour."""
        self._start = len(self.corners)
        low_, high_ = np.array(low), np.array(high)
        for name, signs in _FACES.items():
            self.corners.append(np.where(np.array(signs) > 0, high_, low_))
            self.colors.append(faces.get(name, color))

    def decal(self, face: str, u: tuple[float, float], v: tuple[float, float], color: Color) -> None:
        """A rectangle on a face of the last part: shares in 0..1, u left to right seen from outside, v upwards."""
        base = self.corners[self._start + list(_FACES).index(face)]
        origin, across, up = base[0], base[1] - base[0], base[3] - base[0]
        normal = np.cross(across, up)
        lift = normal / np.sqrt(product(normal[None], normal[:, None])[0]) * _LIFT
        shares = ((u[0], v[0]), (u[1], v[0]), (u[1], v[1]), (u[0], v[1]))
        self.corners.append(np.array([origin + across * a + up * b for a, b in shares]) + lift)
        self.colors.append(color)

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Corners (n, 4, 3) and colours (n, 3)."""
        return np.array(self.corners), np.array(self.colors)


def _paint(rng: np.random.Generator) -> Color:
    base = np.array(_PAINTS[rng.integers(len(_PAINTS))]) + rng.normal(0, 0.04, 3)
    red, green, blue = np.clip(base, 0.03, 0.97)
    return float(red), float(green), float(blue)


def _mix(a: Color, b: Color, share: float) -> Color:
    red, green, blue = (x * (1 - share) + y * share for x, y in zip(a, b, strict=True))
    return red, green, blue


def _lights(q: Quads, low: float = 0.35, high: float = 0.75) -> None:
    """White head lamps and a red rear on the last part."""
    q.decal("front", (0.0, 0.28), (low, high), (1.0, 1.0, 0.85))
    q.decal("front", (0.72, 1.0), (low, high), (1.0, 1.0, 0.85))
    q.decal("front", (0.3, 0.7), (low, high), BLACK)
    q.decal("back", (0.0, 0.36), (low, high), RED)
    q.decal("back", (0.64, 1.0), (low, high), RED)


def _rider(q: Quads, length: float, height: float, rng: np.random.Generator) -> None:
    q.part(
        (-0.2 * length, -0.22, height * 0.45),
        (0.05 * length, 0.22, height * 0.85),
        _paint(rng),
        back=_mix(RED, BLACK, 0.3),
    )
    q.part((-0.1 * length, -0.13, height * 0.85), (0.08 * length, 0.13, height), _paint(rng), front=SKIN)


def agent_quads(agent: Agent) -> tuple[np.ndarray, np.ndarray]:
    """Corners (n, 4, 3) in the agent's frame and colours (n, 3); they fill the agent's box."""
    rng = np.random.default_rng(agent.look)
    length, w, h = agent.size
    x, y = length / 2, w / 2
    paint, q = _paint(rng), Quads()
    if agent.name == "car":
        roof = rng.uniform(0.5, 0.62) * length
        q.part((-x, -y, 0.18 * h), (x, y, 0.6 * h), paint, front=_mix(paint, WHITE, 0.55), back=_mix(paint, RED, 0.5))
        _lights(q)
        q.part(
            (-x + 0.04 * length, -0.9 * y, 0.6 * h),
            (-x + roof, 0.9 * y, h),
            paint,
            front=GLASS,
            back=_mix(GLASS, RED, 0.35),
        )
        q.decal("left", (0.05, 0.9), (0.1, 0.8), GLASS)
        q.decal("right", (0.1, 0.95), (0.1, 0.8), GLASS)
        q.part((-0.8 * x, -0.98 * y, 0), (0.8 * x, 0.98 * y, 0.18 * h), BLACK)
    elif agent.name == "truck":
        cab = rng.uniform(0.24, 0.32) * length
        q.part((x - cab, -0.95 * y, 0.15 * h), (x, 0.95 * y, 0.8 * h), paint, front=_mix(paint, WHITE, 0.3))
        _lights(q, 0.08, 0.3)
        q.decal("front", (0.05, 0.95), (0.5, 0.95), GLASS)
        q.decal("left", (0.15, 0.75), (0.5, 0.9), GLASS)
        q.decal("right", (0.25, 0.85), (0.5, 0.9), GLASS)
        cargo = _mix(_paint(rng), WHITE, 0.6)
        q.part((-x, -y, 0.3 * h), (x - cab - 0.1, y, h), cargo, back=_mix(cargo, BLACK, 0.35))
        q.decal("back", (0.0, 1.0), (0.0, 0.22), RED)
        q.part((-x, -0.8 * y, 0), (x, 0.8 * y, 0.3 * h), BLACK, back=_mix(BLACK, RED, 0.4))
    elif agent.name == "bus":
        body = [(0.9, 0.75, 0.15), (0.15, 0.35, 0.7), (0.9, 0.9, 0.9), (0.75, 0.15, 0.15)][rng.integers(4)]
        q.part((-x, -y, 0.1 * h), (x, y, h), body, front=_mix(body, WHITE, 0.2), back=_mix(body, BLACK, 0.3))
        q.decal("front", (0.04, 0.96), (0.35, 0.9), GLASS)
        q.decal("front", (0.02, 0.25), (0.05, 0.2), (1.0, 1.0, 0.85))
        q.decal("front", (0.75, 0.98), (0.05, 0.2), (1.0, 1.0, 0.85))
        q.decal("back", (0.0, 1.0), (0.05, 0.3), RED)
        for i in range(5):
            q.decal("left", (0.03 + 0.19 * i, 0.17 + 0.19 * i), (0.45, 0.85), GLASS)
            q.decal("right", (0.03 + 0.19 * i, 0.17 + 0.19 * i), (0.45, 0.85), GLASS)
        q.part((-0.9 * x, -0.95 * y, 0), (0.9 * x, 0.95 * y, 0.1 * h), BLACK)
    elif agent.name == "trailer":
        tarp = _mix(_paint(rng), WHITE, 0.35)
        q.part((-x, -y, 0.28 * h), (x * 0.9, y, h), tarp, front=_mix(tarp, BLACK, 0.55), back=_mix(tarp, WHITE, 0.2))
        q.decal("back", (0.0, 1.0), (0.0, 0.15), RED)
        q.decal("back", (0.47, 0.53), (0.15, 1.0), BLACK)
        q.decal("left", (0.0, 1.0), (0.0, 0.1), YELLOW)
        q.decal("right", (0.0, 1.0), (0.0, 0.1), YELLOW)
        q.part((-0.95 * x, -0.9 * y, 0), (-0.35 * x, 0.9 * y, 0.28 * h), BLACK)
        q.part((0.5 * x, -0.1, 0.2 * h), (x, 0.1, 0.28 * h), (0.3, 0.3, 0.3))
    elif agent.name == "construction_vehicle":
        tone = _mix(YELLOW, ORANGE, float(rng.uniform(0, 0.5)))
        q.part((-0.6 * x, -y, 0), (0.5 * x, y, 0.28 * h), (0.2, 0.19, 0.18))
        q.part((-x, -0.85 * y, 0.28 * h), (0.1 * x, 0.85 * y, 0.62 * h), tone, back=_mix(tone, RED, 0.65))
        q.part((-0.35 * x, -0.5 * y, 0.62 * h), (0.15 * x, 0.7 * y, h), tone, front=GLASS, left=GLASS, right=GLASS)
        q.part((0.1 * x, -0.15 * w, 0.5 * h), (0.8 * x, 0.1 * w, 0.72 * h), _mix(tone, BLACK, 0.25))
        q.part((0.7 * x, -0.7 * y, 0.02), (x, 0.7 * y, 0.4 * h), (0.35, 0.33, 0.3), front=(0.75, 0.75, 0.72))
    elif agent.name == "barrier":
        q.part((-x, -y, 0), (x, y, h), WHITE, back=(0.75, 0.75, 0.78))
        for i in range(3):
            q.decal("front", (0.05 + 0.33 * i, 0.2 + 0.33 * i), (0.15, 0.85), ORANGE)
            q.decal("back", (0.05 + 0.33 * i, 0.2 + 0.33 * i), (0.15, 0.85), (0.6, 0.15, 0.1))
    elif agent.name == "traffic_cone":
        q.part((-x, -y, 0), (x, y, 0.1 * h), BLACK)
        q.part((-0.7 * x, -0.7 * y, 0.1 * h), (0.7 * x, 0.7 * y, 0.45 * h), ORANGE)
        q.part((-0.5 * x, -0.5 * y, 0.45 * h), (0.5 * x, 0.5 * y, 0.68 * h), WHITE)
        q.part((-0.3 * x, -0.3 * y, 0.68 * h), (0.3 * x, 0.3 * y, h), ORANGE)
    elif agent.name in CYCLES:
        motor = agent.name == "motorcycle"
        ridden = agent.attribute == "cycle.with_rider"
        top = (0.62 if ridden else 0.85) * h
        body = paint if motor else _mix(paint, WHITE, 0.5)
        thick = 0.55 * y if motor else 0.2 * y
        q.part((-x, -thick * 0.5, 0), (-0.35 * x, thick * 0.5, 0.42 * h), BLACK, back=RED)
        q.part((0.35 * x, -thick * 0.5, 0), (x, thick * 0.5, 0.42 * h), BLACK, front=WHITE)
        q.part((-0.5 * x, -thick, 0.25 * h), (0.5 * x, thick, 0.52 * h), body, front=(1.0, 1.0, 0.85), back=RED)
        q.part((0.3 * x, -y, 0.52 * h), (0.42 * x, y, top), _mix(body, BLACK, 0.4), front=WHITE)
        if ridden:
            _rider(q, length, h, rng)
    else:  # pedestrian: clothes, a face at the front and a bag at the back
        clothes = _paint(rng)
        q.part((-0.3 * x, -0.6 * y, 0), (0.3 * x, 0.6 * y, 0.47 * h), _mix(_paint(rng), BLACK, 0.4))
        q.part((-0.45 * x, -y, 0.47 * h), (0.5 * x, y, 0.84 * h), clothes, front=_mix(clothes, WHITE, 0.4))
        q.part((-x, -0.7 * y, 0.5 * h), (-0.45 * x, 0.7 * y, 0.8 * h), _mix(RED, BLACK, float(rng.uniform(0.2, 0.6))))
        q.part((-0.3 * x, -0.35 * y, 0.84 * h), (0.35 * x, 0.35 * y, h), BLACK, front=SKIN)
    return q.arrays()


def clutter_quads(row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A house, tree or pole of :class:`Scene`; corners in its own frame and colours."""
    rng = np.random.default_rng(int(row[7]))
    x, y, h, kind, clear = row[3] / 2, row[4] / 2, row[5], int(row[6]), row[8]
    q = Quads()
    if kind == 0:
        wall = _mix(_paint(rng), (0.6, 0.5, 0.42), 0.6)
        q.part((-x, -y, 0), (x, y, h), wall)
        floors = max(1, int(h / 3))
        for face in ("front", "back", "left", "right"):
            for floor in range(floors):
                low = (floor + 0.35) / floors
                q.decal(face, (0.08, 0.92), (low, low + 0.35 / floors), _mix(wall, BLACK, float(rng.uniform(0.3, 0.7))))
    elif kind == 1:
        leaf = (float(rng.uniform(0.08, 0.25)), float(rng.uniform(0.25, 0.42)), float(rng.uniform(0.05, 0.15)))
        q.part((-0.15, -0.15, 0), (0.15, 0.15, clear), (0.3, 0.2, 0.12))
        q.part((-x, -y, clear), (x, y, 0.85 * h), leaf)
        q.part((-0.6 * x, -0.6 * y, 0.85 * h), (0.6 * x, 0.6 * y, h), leaf)
    else:
        q.part((-x, -y, 0), (x, y, h), (0.35, 0.35, 0.37))
    return q.arrays()
