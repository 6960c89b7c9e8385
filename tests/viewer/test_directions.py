"""Drawings of a bird's-eye view say rightly where ahead is, whatever the frame of reference."""

import io
import json
import math
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from pipeline.data.index import Frame, FrameIndex
from pipeline.evaluation import scene
from pipeline.report import report
from pipeline.report.directions import Directions
from pipeline.report.figures import bev_figure, to_png
from pipeline.viewer import picture
from pipeline.viewer.page import write_page
from store_schema import StoreReader
from tests.viewer.test_viewer import make_store

Y_AHEAD, X_AHEAD, ODD = -90.0, 0.0, -30.0
"""Degrees of the frame's x axis to the left of forward: nuScenes' LIDAR_TOP, ``ego``, and a LiDAR that is turned by a third."""
FORWARD = {Y_AHEAD: 90.0, X_AHEAD: 0.0, ODD: 30.0}


def mount(degrees: float) -> np.ndarray:
    """Mount (4, 4) of a sensor whose x axis is turned to the left of the car's, a metre ahead."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return np.array([[c, -s, 0, 1], [s, c, 0, 0], [0, 0, 1, 2], [0, 0, 0, 1]])


class TurnedIndex(FrameIndex):
    """The index of a car whose frame of reference is turned."""

    def __init__(self, path: Path, degrees: float) -> None:
        super().__init__(path)
        self.degrees = degrees

    def __getitem__(self, row: int) -> Frame:
        return replace(super().__getitem__(row), lidar2ego=mount(self.degrees))


@pytest.fixture(scope="module")
def reader(world_index: Path, tmp_path_factory: pytest.TempPathFactory) -> StoreReader:
    return make_store(tmp_path_factory.mktemp("directions") / "store", FrameIndex(world_index))


@pytest.mark.parametrize(
    ("degrees", "want"),
    [
        (-90, Directions(90, "right", "forward", "0 right, 90 forward")),
        (-89.2, Directions(90, "right", "forward", "0 right, 90 forward")),  # as nuScenes' cars mount theirs
        (0, Directions(0, "forward", "left", "0 forward, 90 left")),
        (90, Directions(-90, "left", "backward", "0 left, 90 backward")),
        (180, Directions(180, "backward", "right", "0 backward, 90 right")),
        (-179.5, Directions(180, "backward", "right", "0 backward, 90 right")),
    ],
)
def test_axes_along_the_car_have_its_words(degrees: float, want: Directions) -> None:
    assert Directions.of(mount(degrees)) == want


def test_other_axes_have_their_angles() -> None:
    found = Directions.of(mount(ODD))
    assert found.forward == pytest.approx(30)
    assert (found.x, found.y) == ("30° right of forward", "60° left of forward")
    assert found.yaw == "0 along x, 90 along y, 30 forward"


def test_a_sensor_upside_down_has_its_left_at_the_other_side() -> None:
    found = Directions.of(mount(0) @ np.diag([1.0, -1.0, -1.0, 1.0]))
    assert (found.forward, found.x, found.y) == (0, "forward", "right")


def tip(figure: Any) -> float:
    """Degrees to which the ego vehicle's marker points, from the right to the top of the picture."""
    figure.axes[0].set_axis_off()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=400)
    drawn = cv2.imdecode(np.frombuffer(buffer.getvalue(), np.uint8), cv2.IMREAD_COLOR).astype(int)
    rows, columns = (np.abs(drawn - 127).max(-1) < 2).nonzero()  # tab:gray
    middle = columns.mean(), rows.mean()
    far = np.argmax(np.hypot(columns - middle[0], rows - middle[1]))  # an isosceles triangle, higher than wide
    return math.degrees(math.atan2(middle[1] - rows[far], columns[far] - middle[0]))


@pytest.mark.parametrize("degrees", FORWARD)
def test_the_picture_s_marker_points_ahead(degrees: float) -> None:
    assert tip(bev_figure({}, 40.0, mount(degrees))) == pytest.approx(FORWARD[degrees], abs=5)


def test_the_picture_s_axes_say_what_is_ahead() -> None:
    def labels(degrees: float) -> tuple[str, str]:
        axes = bev_figure({}, 40.0, mount(degrees)).axes[0]
        return axes.get_xlabel(), axes.get_ylabel()

    assert labels(X_AHEAD) == ("x (forward), m", "y (left), m")
    assert labels(ODD) == ("x (30° right of forward), m", "y (60° left of forward), m")


def test_a_picture_with_y_ahead_is_what_it_was() -> None:
    boxes = np.array([[5.0, 9, 0, 4, 2, 1, 0.3, 0, 0]])
    now, before = (bev_figure({"expert": (boxes, "tomato")}, 40.0, mount(-89.0)) for _ in range(2))
    before.axes[0].lines[-1].set_marker("^")
    before.axes[0].set(xlabel="x, m", ylabel="y, m")
    assert to_png(now) == to_png(before)


@pytest.fixture
def matrices(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """Matrices that the drawings of frames were given."""
    given: list[np.ndarray] = []

    def seen(layers: Any, extent: float, lidar2ego: np.ndarray, *more: Any):
        given.append(lidar2ego)
        return bev_figure(layers, extent, lidar2ego, *more)

    for module in (picture, scene, report):
        monkeypatch.setattr(module, "bev_figure", seen)
    return given


def test_every_drawing_is_of_its_frame_s_mount(
    reader: StoreReader, world: Path, world_index: Path, tmp_path: Path, matrices: list[np.ndarray]
) -> None:
    index, token = TurnedIndex(world_index, ODD), reader.tokens[0]
    picture.draw_frame(reader, token, index, world, tmp_path / "frame.png", 0.3)
    scene._draw(tmp_path / "detected.jpg", world, index[index.row(token)], np.zeros((0, 9)), 40.0)
    assert "focal areas" in report._stored_frame(reader, index, 40.0)
    assert cv2.imread(str(tmp_path / "frame.png")) is not None and (tmp_path / "detected.jpg").stat().st_size
    assert len(matrices) == 3
    for matrix in matrices:
        np.testing.assert_array_equal(matrix, mount(ODD))


def test_a_token_is_text_in_the_report(reader: StoreReader, world_index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index, stored = FrameIndex(world_index), reader.read(reader.tokens[0])
    monkeypatch.setattr(type(reader), "tokens", ["<script>"])
    monkeypatch.setattr(reader, "read", lambda token: stored)
    monkeypatch.setattr(index, "row", lambda token: 0)
    assert "frame &lt;script&gt;:" in report._stored_frame(reader, index, 40.0)


def run_page(reader: StoreReader, index: FrameIndex, world: Path, out: Path) -> dict[str, Any]:
    """What the page's script draws and says."""
    if (node := shutil.which("node")) is None:
        pytest.skip("no node on this machine")
    write_page(reader, index, world, reader.tokens[:1], out, 0.3, 64)
    done = subprocess.run([node, Path(__file__).with_name("page.mjs"), out], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(
    ("degrees", "x", "y", "yaw"),
    [
        (Y_AHEAD, "x (right), m", "y (forward), m", "0 right, 90 forward"),
        (X_AHEAD, "x (forward), m", "y (left), m", "0 forward, 90 left"),
        (
            ODD,
            "x (30° right of forward), m",
            "y (60° left of forward), m",
            "0 along x, 90 along y, 30 forward",
        ),
    ],
)
def test_the_page_says_and_shows_what_is_ahead(
    degrees: float, x: str, y: str, yaw: str, reader: StoreReader, world: Path, world_index: Path, tmp_path: Path
) -> None:
    found = run_page(reader, TurnedIndex(world_index, degrees), world, tmp_path / "page.html")
    words = [call[1] for call in found["bev"] if call[0] == "fillText" and isinstance(call[1], str)]
    assert words == [x, y]
    assert [text for text in found["texts"] if re.fullmatch(r"-?\d+° \(.*\)", text)][-1].endswith(f"° ({yaw})")
    corners = np.array([call[1:] for call in found["bev"] if call[0] in ("moveTo", "lineTo")][-3:])
    front = corners[0] - corners[1:].mean(0)
    assert math.degrees(math.atan2(-front[1], front[0])) == pytest.approx(FORWARD[degrees], abs=1e-6)
    np.testing.assert_allclose(np.linalg.norm(corners - corners.mean(0), axis=1), [28 / 3, 6.84, 6.84], atol=0.01)
    if degrees == Y_AHEAD:  # the triangle that LIDAR_TOP's pages always had, to the last bit
        middle = 44 + (400 - 54) / 2, 10 + (400 - 54) / 2
        np.testing.assert_array_equal(corners - middle, [[0, -8], [5, 6], [-5, 6]])
