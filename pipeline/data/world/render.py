"""A z-buffered rasteriser of quadrilaterals over a procedural ground and sky, compiled with numba."""

import math

import numpy as np
from numba import njit

from pipeline.data.geometry import arctan2, cos_sin, product

from .rig import Camera
from .scene import LANE

SUPERSAMPLE = 2
_NEAR = 0.2  # metres
_arctan2, _cos_sin = njit(cache=True)(arctan2), njit(cache=True)(cos_sin)


@njit(cache=True)
def _noise(x: float, y: float, seed: int) -> float:
    """Repeatable value noise in -1..1 of an integer lattice point."""
    n = np.int64(math.floor(x)) * 374761393 + np.int64(math.floor(y)) * 668265263 + seed * 69069
    n = (n ^ (n >> 13)) * 1274126177
    return float(((n ^ (n >> 16)) & 0xFFFF) / 32767.5 - 1.0)


@njit(cache=True)
def _background(
    color: np.ndarray,
    depth: np.ndarray,
    rotation: np.ndarray,
    position: np.ndarray,
    focal: float,
    cx: float,
    cy: float,
    curvature: float,
    crossing: np.ndarray,
    lane: float,
    tones: np.ndarray,
    seed: int,
) -> None:
    """Fill colour (H, W, 3) and inverse depth (H, W) with the ground plane z = 0 and the sky.

    rotation maps camera axes to the scene's axes; crossing is x, y, heading of the side road; tones (6, 3) are the
    colours of asphalt, marking, kerb, grass, low sky and high sky.
    """
    height, width = depth.shape
    cos_c, sin_c = _cos_sin(crossing[2])
    for row in range(height):
        v = (row + 0.5 - cy) / focal
        for col in range(width):
            u = (col + 0.5 - cx) / focal
            dz = rotation[2, 0] * u + rotation[2, 1] * v + rotation[2, 2]
            if dz >= -1e-3:
                up = min(max(dz * 2.5, 0.0), 1.0)
                for k in range(3):
                    color[row, col, k] = tones[4, k] * (1 - up) + tones[5, k] * up
                depth[row, col] = 0.0
                continue
            t = -position[2] / dz  # camera depth, since the ray's camera z is 1
            gx = position[0] + t * (rotation[0, 0] * u + rotation[0, 1] * v + rotation[0, 2])
            gy = position[1] + t * (rotation[1, 0] * u + rotation[1, 1] * v + rotation[1, 2])
            if abs(curvature) < 1e-6:
                s, d = gx, gy
            else:
                radius = 1.0 / curvature
                r = math.sqrt(gx * gx + (gy - radius) * (gy - radius))
                d = radius - math.copysign(r, radius)
                s = 0.0
                if abs(abs(d) - lane) < 0.1:  # the arc length decides the dashes alone
                    side = math.copysign(1.0, radius)
                    s = _arctan2(gx * side, (radius - gy) * side) * radius
            along = (gx - crossing[0]) * cos_c + (gy - crossing[1]) * sin_c  # across the side road
            kind = 3
            if abs(along) < lane:
                kind = 0
                if abs(along) < 0.1 and abs(d) > 2 * lane:
                    kind = 1
            if abs(d) < 2 * lane + 0.2:
                kind = 0
                dash = (s - math.floor(s / 6.0) * 6.0) < 3.0
                if abs(d) < 0.12 or (abs(abs(d) - lane) < 0.1 and dash) or abs(abs(d) - 2 * lane) < 0.12:
                    kind = 1
                if abs(along) < lane:
                    kind = 0
            elif abs(d) < 2 * lane + 4.0 and kind == 3:
                kind = 2
            fade = max(0.0, 1.0 - t / 30.0)
            grain = 0.05 * fade * _noise(gx * 4.0, gy * 4.0, seed) + 0.06 * _noise(gx * 0.4, gy * 0.4, seed + 1)
            haze = min(t / 160.0, 0.6)
            for k in range(3):
                color[row, col, k] = (tones[kind, k] * (1.0 + grain * 2.0)) * (1 - haze) + tones[4, k] * haze
            depth[row, col] = 1.0 / t


@njit(cache=True)
def _raster(
    color: np.ndarray,
    depth: np.ndarray,
    owner: np.ndarray,
    stamp: np.ndarray,
    total: np.ndarray,
    quads: np.ndarray,
    shades: np.ndarray,
    owners: np.ndarray,
    focal: float,
    cx: float,
    cy: float,
    near: float,
    haze_tone: np.ndarray,
    texture: float,
    seed: int,
) -> None:
    """Draw quads (n, 4, 3) in camera coordinates with colours (n, 3) into the buffers.

    owner (H, W) takes the number of the quad's object (0 is nobody's), total counts the pixels each object would cover
    if nothing stood before it; quads of one object must follow each other.
    """
    height, width = depth.shape
    poly = np.empty((8, 3))
    px = np.empty(8)
    py = np.empty(8)
    for i in range(quads.shape[0]):
        # clip at the near plane (Sutherland-Hodgman)
        count = 0
        for a in range(4):
            b = (a + 1) % 4
            za, zb = quads[i, a, 2], quads[i, b, 2]
            if za >= near:
                for k in range(3):
                    poly[count, k] = quads[i, a, k]
                count += 1
            if (za >= near) != (zb >= near):
                share = (near - za) / (zb - za)
                for k in range(3):
                    poly[count, k] = quads[i, a, k] + share * (quads[i, b, k] - quads[i, a, k])
                count += 1
        if count < 3:
            continue
        # the plane n.p = c gives inverse depth as an affine function of the pixel
        ax, ay, az = quads[i, 1, 0] - quads[i, 0, 0], quads[i, 1, 1] - quads[i, 0, 1], quads[i, 1, 2] - quads[i, 0, 2]
        bx, by, bz = quads[i, 3, 0] - quads[i, 0, 0], quads[i, 3, 1] - quads[i, 0, 1], quads[i, 3, 2] - quads[i, 0, 2]
        nx, ny, nz = ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx
        c = nx * quads[i, 0, 0] + ny * quads[i, 0, 1] + nz * quads[i, 0, 2]
        if c >= 0:  # seen from behind
            continue
        low_x, high_x, low_y, high_y = 1e9, -1e9, 1e9, -1e9
        for a in range(count):
            px[a] = poly[a, 0] / poly[a, 2] * focal + cx
            py[a] = poly[a, 1] / poly[a, 2] * focal + cy
            low_x, high_x = min(low_x, px[a]), max(high_x, px[a])
            low_y, high_y = min(low_y, py[a]), max(high_y, py[a])
        x0, x1 = max(0, int(math.floor(low_x))), min(width - 1, int(math.ceil(high_x)))
        y0, y1 = max(0, int(math.floor(low_y))), min(height - 1, int(math.ceil(high_y)))
        who = owners[i]
        for row in range(y0, y1 + 1):
            y = row + 0.5
            left, right = 1e9, -1e9
            for a in range(count):
                b = (a + 1) % count
                ya, yb = py[a], py[b]
                if (ya <= y) != (yb <= y):
                    x = px[a] + (y - ya) / (yb - ya) * (px[b] - px[a])
                    left, right = min(left, x), max(right, x)
            for col in range(max(x0, int(math.ceil(left - 0.5))), min(x1, int(math.floor(right - 0.5))) + 1):
                inverse = (nx * (col + 0.5 - cx) / focal + ny * (y - cy) / focal + nz) / c
                if who > 0 and stamp[row, col] != who:
                    stamp[row, col] = who
                    total[who] += 1
                if inverse <= depth[row, col]:
                    continue
                depth[row, col] = inverse
                owner[row, col] = who
                z = 1.0 / inverse
                grain = 1.0 + texture * _noise((col + 0.5 - cx) * z * 8.0 / focal, (y - cy) * z * 8.0 / focal, seed + i)
                haze = min(z / 160.0, 0.6)
                for k in range(3):
                    color[row, col, k] = shades[i, k] * grain * (1 - haze) + haze_tone[k] * haze


class Light:
    """Sun, tint and ground colours of a scene.

    Args:
        rng: the scene's own.
        strength: of the variation between scenes.
    """

    def __init__(self, rng: np.random.Generator, strength: float) -> None:
        angle, height = rng.uniform(-math.pi, math.pi), rng.uniform(0.5, 1.2)
        (ca, sa), (ch, sh) = cos_sin(angle), cos_sin(height)
        self.sun = np.array([ca * ch, sa * ch, sh])
        self.ambient = rng.uniform(0.5, 0.7)
        self.gain = round(math.exp(rng.normal(0, 0.18 * strength)), 9)
        self.tint = 1 + rng.normal(0, 0.05 * strength, 3)
        self.texture = 0.08 * strength
        self.noise = 0.012 * strength
        base = np.array(
            [
                (0.30, 0.30, 0.31),
                (0.78, 0.78, 0.74),
                (0.50, 0.48, 0.46),
                (0.30, 0.38, 0.20),
                (0.72, 0.78, 0.85),
                (0.42, 0.58, 0.82),
            ]
        )
        brightness, hue = rng.normal(0, 0.10 * strength, (6, 1)), rng.normal(0, 0.02 * strength, (6, 3))
        self.tones = np.clip(base * (1 + brightness) + hue, 0.02, 1)

    def shade(self, corners: np.ndarray, colors: np.ndarray) -> np.ndarray:
        """Lambert shading: corners (n, 4, 3) in the scene's frame, colours (n, 3) -> (n, 3)."""
        normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 3] - corners[:, 0])
        length = np.sqrt(
            normal[:, :1] * normal[:, :1] + normal[:, 1:2] * normal[:, 1:2] + normal[:, 2:] * normal[:, 2:]
        )
        normal /= np.maximum(length, 1e-9)
        lit = self.ambient + (1 - self.ambient) * np.maximum(product(normal, self.sun[:, None])[:, 0], 0.0)
        return colors * lit[:, None]


def draw(
    camera: Camera,
    size: tuple[int, int],
    ego: np.ndarray,
    quads: tuple[np.ndarray, np.ndarray, np.ndarray],
    num_objects: int,
    curvature: float,
    crossing: np.ndarray,
    light: Light,
    seed: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Render one image.

    Args:
        size: rows and columns of the result.
        ego: x, y, yaw of the ego car.
        quads: corners (n, 4, 3) in the scene's frame, shaded colours (n, 3), object numbers (n,) with 0 for clutter.
        crossing: x, y, heading of the side road.

    Returns:
        image (H, W, 3) uint8 RGB, and per object the pixels seen and the pixels without occlusion.
    """
    height, width = size[0] * SUPERSAMPLE, size[1] * SUPERSAMPLE
    color = np.empty((height, width, 3), np.float32)
    depth = np.empty((height, width), np.float32)
    owner, stamp = np.zeros((height, width), np.int32), np.zeros((height, width), np.int32)
    total = np.zeros(num_objects + 1, np.int64)
    c, s = cos_sin(ego[2])
    turn = np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])
    rotation = product(turn, camera.rotation)
    position = product(turn, camera.position[:, None])[:, 0] + np.array([ego[0], ego[1], 0.0])
    focal, cx, cy = (camera.intrinsic[i] * SUPERSAMPLE for i in ((0, 0), (0, 2), (1, 2)))
    _background(color, depth, rotation, position, focal, cx, cy, curvature, crossing, LANE, light.tones, seed)
    corners = product(quads[0] - position, rotation)
    ahead = corners[..., 2].max(1) > _NEAR
    _raster(
        color,
        depth,
        owner,
        stamp,
        total,
        corners[ahead],
        quads[1][ahead],
        quads[2][ahead],
        focal,
        cx,
        cy,
        _NEAR,
        light.tones[4],
        light.texture,
        seed,
    )
    seen = np.bincount(owner.ravel(), minlength=num_objects + 1)
    # the mean of each 2x2 block, added in one order; OpenCV's depends on the processor
    quarters = [color[i::SUPERSAMPLE, j::SUPERSAMPLE] for i in range(SUPERSAMPLE) for j in range(SUPERSAMPLE)]
    image = sum(quarters[1:], quarters[0]) / np.float32(SUPERSAMPLE**2)
    image = image * (light.gain * light.tint).astype(np.float32)
    noise = np.random.default_rng(seed).normal(0, light.noise, (size[0], size[1], 1)).astype(np.float32)
    image = (np.clip(image + noise, 0, 1) * 255 + 0.5).astype(np.uint8)
    return image, seen[1:] / SUPERSAMPLE**2, total[1:] / SUPERSAMPLE**2
