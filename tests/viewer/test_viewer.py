"""The page of ``fd3d inspect --html``: what it holds, and how it behaves in a real browser."""

import base64
import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml
from typer.testing import CliRunner

from pipeline.data import CAMERAS
from pipeline.data.geometry import lidar2img
from pipeline.data.index import FrameIndex
from pipeline.errors import FD3DError
from pipeline.focal.areas import project_boxes
from pipeline.viewer import page
from pipeline.viewer.colours import FeatureScales
from pipeline.viewer.page import write_page
from pipeline.viewer.payload import choose_frames, frame_payload, page_facts
from stages.cli import app
from store_schema import StoreError, StoreReader, StoreSchema, StoreWriter

QUERIES, LAYERS = 6, 2
PC_RANGE = [-40.0, -40.0, -5.0, 40.0, 40.0, 3.0]
BEV, LEVEL = (20, 20, 8), (20, 36, 8, (8, 8))
STEP = 11  # every eleventh cell is stored: a pattern that no mirror image of a map has


def make_store(path: Path, index: FrameIndex, **settings) -> StoreReader:
    """Random targets for the tiny world's training frames: boxes around annotated ones, the best score 0.95."""
    known: dict[str, Any] = dict(
        bev=BEV, bev_kmax=400, pv=[LEVEL], pv_kmax=[4320], reading="bev", layers=LAYERS, heads=2, points=3
    )
    schema = StoreSchema(cameras=CAMERAS, queries=QUERIES, **(known | {"query_channels": 8} | settings))
    scenes: dict[str, list[str]] = {}
    for row in index.select("world_train"):
        scenes.setdefault(index[row].scene_name, []).append(index[row].token)
    manifest = {"expert": {}, "focal": {}, "image": {"scale": 1.0}, "coordinates": {"pc_range": PC_RANGE}}
    manifest["data"] = {"index_sha256": index.sha256}
    with StoreWriter(path, schema, manifest, scenes, 3) as writer:
        writer.write_constants({name: np.zeros(spec.shape, np.float32) for name, spec in schema.constants().items()})
        for shard in writer.pending():
            tokens = [token for name in writer.plan[shard] for token in scenes[name]]
            writer.write_shard(shard, {token: make_frame(schema, index[index.row(token)]) for token in tokens})
        writer.finalise({})
    return StoreReader(path)


def make_frame(schema: StoreSchema, frame) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(frame.order)
    out: dict[str, np.ndarray] = {}
    for name, spec in schema.arrays().items():
        if spec.kind == "plain":
            out[name] = rng.random(spec.shape).astype(np.float32)
    for name, cells in [("bev", schema.bev_cells), *((f"pv/{i}", n) for i, n in enumerate(schema.pv_cells))]:
        if f"{name}/values" in schema.arrays():
            out[f"{name}/index"] = np.arange(0, cells, STEP)
            out[f"{name}/values"] = rng.normal(size=(len(range(0, cells, STEP)), 8)).astype(np.float16)
    out["query/label"] = np.arange(QUERIES)
    out["query/score"] = np.linspace(0.95, 0.2, QUERIES).astype(np.float32)
    boxes = np.nan_to_num(frame.boxes[:QUERIES])
    out["query/boxes"] = np.concatenate([boxes, np.tile([[5, 5, 0, 4, 2, 1.5, 0, 0, 0]], (QUERIES - len(boxes), 1))])
    if "query/camera_weights" in out:
        out["query/camera_weights"][..., 1:, :] = 0
    return {name: np.asarray(array) for name, array in out.items()}


@pytest.fixture(scope="module")
def index(world_index, world) -> FrameIndex:
    return FrameIndex.load(world_index, world)


@pytest.fixture(scope="module")
def reader(index, tmp_path_factory) -> StoreReader:
    return make_store(tmp_path_factory.mktemp("viewer") / "store", index)


def unpacked(text: str, dtype=np.uint8) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype)


def test_a_frame_is_packed_as_documented(reader, index, world):
    frame = index[index.row(reader.tokens[1])]
    stored = reader.read(frame.token)
    scales = FeatureScales.fit([stored["bev/values"]])
    packed = frame_payload(reader, frame, world, scales, 100)
    image = cv2.imdecode(unpacked(packed["images"][0]), cv2.IMREAD_COLOR)
    assert len(packed["images"]) == 6 and image.shape == (56, 100, 3)  # 160x288 made 100 wide
    np.testing.assert_allclose(packed["boxes"], stored["query/boxes"], atol=1e-3)
    reference = np.array(packed["reference"]) / [80, 80, 8] + [0.5, 0.5, 0.625]
    np.testing.assert_allclose(reference, stored["query/reference"], atol=1e-3)
    for name, cells in ((packed["levels"][0]["cells"], 4320), (packed["bev"]["cells"], 400)):
        np.testing.assert_array_equal(np.unpackbits(unpacked(name))[:cells].nonzero()[0], np.arange(0, cells, STEP))
    assert packed["levels"][0]["size"] == [[8 / 288, 8 / 160]] * 6
    np.testing.assert_array_equal(
        unpacked(packed["bev"]["values"]).reshape(-1, 4), scales.quantise(stored["bev/values"])
    )
    sampling = unpacked(packed["sampling"], "<u2").reshape(LAYERS, QUERIES, 6, 2) / 65535 * 2 - 0.5
    np.testing.assert_allclose(sampling, stored["query/sampling"].reshape(sampling.shape), atol=2e-5)
    attention = unpacked(packed["attention"]) / 255 * packed["largest"]
    np.testing.assert_allclose(attention, stored["query/attention"].ravel(), atol=1 / 255)
    # the annotated boxes' centres fall where the index's own matrices put them
    for camera, matrix in enumerate(packed["projection"]):
        u, v, depth = np.reshape(matrix, (3, 4)) @ np.append(frame.boxes[0, :3], 1)
        pixel = frame.intrinsics[camera] @ (frame.lidar2cam[camera] @ np.append(frame.boxes[0, :3], 1))[:3]
        np.testing.assert_allclose([u * 288, v * 160, depth], pixel, rtol=1e-4, atol=1e-3)


def test_cells_of_unequal_sides_cover_the_image(index, world, tmp_path):
    level = (15, 25, 8, (160 / 15, 288 / 25))
    reader = make_store(tmp_path / "s", index, pv=[level], pv_kmax=[2250])
    packed = frame_payload(reader, index[index.row(reader.tokens[0])], world, None, 100)
    np.testing.assert_allclose(packed["levels"][0]["size"], [[1 / 25, 1 / 15]] * 6)  # shares of width and height
    assert page_facts(reader, None, 0.3)["levels"][0]["stride"] == level[3]


def test_components_find_the_directions_of_most_variance():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(4000, 5)) * [0.1, 3, 0.1, 2, 1] + 7
    scales = FeatureScales.fit([values[:1000], values[1000:]])
    np.testing.assert_allclose(scales.axes.T, np.eye(5)[[1, 3, 4]], atol=0.05)  # signs too: largest entry positive
    np.testing.assert_allclose(scales.explained, np.array([9, 4, 1]) / 14.02, atol=0.02)
    codes = scales.quantise(values)
    assert np.corrcoef(codes[:, 0], np.linalg.norm(values, axis=1))[0, 1] > 0.99
    assert np.corrcoef(codes[:, 1], values[:, 1])[0, 1] > 0.99
    assert FeatureScales.fit([np.ones((3, 2))]).quantise(np.ones((3, 2))).shape == (3, 4)  # fewer channels than colours
    assert FeatureScales.fit([np.ones((0, 4))]).quantise(np.ones((0, 4))).shape == (0, 4)  # no cell stored


OTHERS: dict[str, dict[str, Any]] = {
    "cameras": dict(bev=None, bev_kmax=0, reading="cameras", heads=0, points=0),
    "no pyramid": dict(pv=[], pv_kmax=[]),
    "dense": dict(layout="dense"),
    "none": dict(reading="none", layers=0, heads=0, points=0, query_channels=0, bev=None, bev_kmax=0),
}


@pytest.mark.parametrize("name", OTHERS)
def test_stores_of_other_kinds_make_pages(name, index, world, tmp_path):
    reader = make_store(tmp_path / "store", index, **OTHERS[name])
    size = write_page(reader, index, world, reader.tokens[:2], tmp_path / "page.html", 0.3, 640)
    text = (tmp_path / "page.html").read_text()
    assert size == len(text.encode())
    payload = json.loads(text.split('id="payload">')[1].split("</script>")[0])
    frame, facts = payload["frames"][0], payload["store"]
    assert (facts["bev"] is None) == ("bev" not in frame) == (reader.schema.bev is None)
    assert len(facts["levels"]) == len(frame["levels"]) == (1 if name in ("cameras", "none") else 0)
    assert ("weights" in frame) == (name == "cameras") and ("sampling" in frame) == (name in ("no pyramid", "dense"))
    if name == "cameras":
        weights = unpacked(frame["weights"]).reshape(LAYERS, QUERIES, 6)
        assert (weights[..., 0] > 0).all() and not weights[..., 1:].any()
    if name == "dense":
        assert len(unpacked(frame["bev"]["values"])) == 4 * 400


def test_frames_are_chosen_in_row_order_up_to_the_limit(reader):
    tokens = reader.tokens
    second = sorted(reader.manifest["scenes"])[1]
    assert choose_frames(reader, None, None, 4) == (tokens[:4], 2)
    assert choose_frames(reader, [second], None, 40) == (tokens[3:], 0)
    assert choose_frames(reader, None, [tokens[5], tokens[0], tokens[5]], 40) == ([tokens[0], tokens[5]], 0)


@pytest.mark.parametrize(
    ("chosen", "error", "message"),
    [
        ((None, None, 0), FD3DError, "--frames is 0; a page has at least 1"),
        ((["none"], None, 4), FD3DError, "has no scene none; known: scene-"),
        ((None, ["none"], 4), StoreError, "has no frame none"),
        ((["a"], ["b"], 4), FD3DError, "--scene and --token exclude each other"),
    ],
)
def test_what_cannot_be_chosen_is_named(reader, chosen, error, message):
    with pytest.raises(error, match=message):
        choose_frames(reader, *chosen)


def test_a_page_too_large_and_a_missing_image_are_refused(reader, index, world, tmp_path, monkeypatch):
    with pytest.raises(FD3DError, match=r"image .*CAM_FRONT.* cannot be read"):
        write_page(reader, index, tmp_path, reader.tokens, tmp_path / "page.html", 0.3, 640)
    monkeypatch.setattr(page, "MAX_BYTES", 50_000)
    with pytest.raises(FD3DError, match=r"a page of 6 frames takes more than 0 MB .*lower --frames"):
        write_page(reader, index, world, reader.tokens, tmp_path / "page.html", 0.3, 640)
    assert not (tmp_path / "page.html").exists()


def test_cameras_are_those_of_the_store(index, tmp_path):
    store = make_store(tmp_path / "s", index, **OTHERS["no pyramid"])
    facts = page_facts(store, None, 0.3)
    assert [facts["cameras"][slot] for slot in facts["grid"]][:3] == ["CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT"]
    store.schema = StoreSchema.from_dict(store.schema.to_dict() | {"cameras": ["A", "B"]})
    facts = page_facts(store, None, 0.3)
    assert facts["cameras"] == ("A", "B") and facts["grid"] == (0, 1)


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on this machine")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser, world, index, tmp_path):
    """Open the page of a store; afterwards neither an error nor a request but that of the file itself was seen."""
    seen: list[str] = []

    def open_page(reader: StoreReader, width: int = 1280, scheme: str = "light"):
        path = tmp_path / "page.html"
        write_page(reader, index, world, reader.tokens, path, 0.3, 640)
        view = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        view.on("console", lambda message: seen.append(f"console: {message.text}"))
        view.on("pageerror", lambda error: seen.append(f"error: {error}"))
        allowed = (path.as_uri(), "data:")
        view.on("request", lambda asked: seen.append(asked.url) if not asked.url.startswith(allowed) else None)
        view.goto(path.as_uri())
        return view

    yield open_page
    assert seen == []


def settled(view) -> None:
    """Wait until the images are decoded and what was asked for is drawn."""
    view.wait_for_function("load(state.frame).images.every((image) => image.complete)")
    view.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def pixels(view, canvas: str) -> np.ndarray:
    settled(view)
    text = view.evaluate(f"document.getElementById('{canvas}').toDataURL().split(',')[1]")
    return cv2.imdecode(unpacked(text), cv2.IMREAD_UNCHANGED)


def drawn(view) -> list[int]:
    """Expert boxes by camera, then in the bird's-eye view, as the pictures' labels tell."""
    settled(view)
    labels = [view.get_attribute(f"#{name}", "aria-label") for name in (*CAMERAS, "bev")]
    return [int(label.split(": ")[1].split()[0]) for label in labels]


def set_score(view, score: float) -> None:
    view.fill("#score", str(score))


def test_the_slider_filters_boxes_in_all_pictures(opened, reader):
    view = opened(reader)
    set_score(view, 0)
    every = drawn(view)
    before = pixels(view, "bev"), pixels(view, "CAM_FRONT")
    assert every[-1] == QUERIES == view.locator("#list > div").count() and sum(every[:-1]) > 0
    set_score(view, 0.9)
    assert drawn(view)[-1] == 1 == view.locator("#list > div").count()
    assert view.text_content("#shown") == f"1 of {QUERIES} queries"
    set_score(view, 1)
    assert drawn(view) == [0] * 7
    after = pixels(view, "bev"), pixels(view, "CAM_FRONT")
    assert (before[0] != after[0]).any() and (every[0] == 0 or (before[1] != after[1]).any())


def at_centres(view, picture: np.ndarray, canvas: str, xs: np.ndarray, ys: np.ndarray) -> np.ndarray:
    """Colours (len(ys), len(xs), 4) of a picture at places in CSS pixels."""
    ratio = picture.shape[1] / view.evaluate(f"document.getElementById('{canvas}').clientWidth")
    return picture[np.rint(ys * ratio).astype(int)][:, np.rint(xs * ratio).astype(int)]


def test_bev_features_lie_at_their_cells_forward_up(opened, reader):
    view = opened(reader)
    set_score(view, 1)
    view.uncheck("#annotated")
    settled(view)
    centres = np.linspace(-38, 38, 20).tolist()  # of 20x20 cells over 80 m
    xs, ys = (np.array(view.evaluate(f"(v) => v.map(bevScale.{axis})", centres)) for axis in "XY")
    assert xs[0] < xs[-1] and ys[0] > ys[-1]
    stored = np.arange(400).reshape(20, 20) % STEP == 0
    stored[9:11, 9:11] = False
    seen = {}
    for name in ("energy", "components", "none"):
        view.check(f"[name=map][value={name}]")
        seen[name] = at_centres(view, pixels(view, "bev"), "bev", xs, ys)
        differs = (seen[name] != [226, 223, 222, 255]).any(-1)  # from the ground of what is not stored
        differs[9:11, 9:11] = False  # the ego vehicle
        np.testing.assert_array_equal(differs, stored & (name != "none"), name)
    assert (seen["energy"] != seen["components"]).any(-1)[stored].mean() > 0.9


def test_stored_cells_lie_over_the_images(opened, reader):
    view = opened(reader)
    set_score(view, 1)
    view.uncheck("#annotated")
    settled(view)
    width, height = view.evaluate("[figures[0].canvas.clientWidth, figures[0].canvas.clientHeight]")
    xs, ys = (np.arange(36) + 0.5) / 36 * width, (np.arange(20) + 0.5) / 20 * height
    for camera, name in enumerate(CAMERAS):
        with_cells = pixels(view, name)
        view.uncheck("#level-0")
        image = pixels(view, name)
        view.check("#level-0")
        stored = (camera * 720 + np.arange(720).reshape(20, 36)) % STEP == 0
        changed = (at_centres(view, with_cells, name, xs, ys) != at_centres(view, image, name, xs, ys)).any(-1)
        np.testing.assert_array_equal(changed, stored, name)
        assert len(np.unique(image.reshape(-1, 4), axis=0)) > 1000, name  # an image, not a plain ground


def test_boxes_are_projected_as_the_focal_areas_are(opened, reader, index):
    view = opened(reader)
    for number, token in enumerate(reader.tokens):
        frame = index[index.row(token)]
        matrices = torch.from_numpy(lidar2img(frame.intrinsics, frame.lidar2cam)).float()
        boxes = torch.from_numpy(np.nan_to_num(frame.boxes))
        rectangles, valid = project_boxes(boxes, matrices, (160, 288))
        for camera in range(6):
            script = "([n, c]) => frames[n].annotated.map((box) => outline(frames[n].projection[c], box)?.area ?? null)"
            areas = view.evaluate(script, [number, camera])
            assert [area is not None for area in areas] == valid[:, camera].tolist()
            for area, want in zip(areas, rectangles[:, camera], strict=True):
                if area is not None:
                    np.testing.assert_allclose(np.clip(area, 0, 1) * [288, 160, 288, 160], want, atol=1)


def test_keys_and_buttons_walk_through_the_frames(opened, reader):
    view = opened(reader)
    first = pixels(view, "CAM_FRONT")
    assert view.is_disabled("#previous") and view.text_content("#position") == "1 / 6"
    view.keyboard.press("ArrowRight")
    assert view.text_content("#position") == "2 / 6" and (pixels(view, "CAM_FRONT") != first).any()
    view.click("#next")
    assert view.text_content("#position") == "3 / 6"
    view.keyboard.press("ArrowLeft")
    view.click("#previous")
    assert (pixels(view, "CAM_FRONT") == first).all()
    view.select_option("#frame", "5")
    assert view.is_disabled("#next") and view.text_content("#position") == "6 / 6"
    assert view.locator("#frame optgroup").count() == 2


@pytest.mark.parametrize("reading", ["bev", "cameras"])
def test_a_chosen_query_shows_what_its_layers_read(opened, reader, index, tmp_path, reading):
    view = opened(reader if reading == "bev" else make_store(tmp_path / "s", index, **OTHERS["cameras"]))
    view.focus("#list")
    view.keyboard.press("ArrowDown")
    assert "car, 0.950" in view.text_content("#chosen")
    assert ("largest attention" if reading == "bev" else "CAM_FRONT ") in view.text_content("#chosen")
    last = pixels(view, "bev")
    view.select_option("#layer", "0")
    assert (pixels(view, "bev") != last).any()
    view.focus("#list")
    view.keyboard.press("Escape")
    assert "Choose a box" in view.text_content("#chosen")


def test_a_pointer_over_a_box_tells_its_class(opened, reader):
    view = opened(reader)
    settled(view)
    view.uncheck("#annotated")
    at = view.evaluate("(() => { const [x, y] = frames[0].boxes[0]; return [bevScale.X(x), bevScale.Y(y)]; })()")
    view.hover("#bev", position={"x": at[0], "y": at[1]})
    assert view.text_content("#tip").startswith("car 0.95\nquery #0")
    view.click("#bev", position={"x": at[0], "y": at[1]})
    assert view.get_attribute("#query-0", "aria-selected") == "true"


@pytest.mark.parametrize("name", ["dense", "none", "no pyramid"])
def test_other_stores_open_without_errors(opened, index, tmp_path, name):
    view = opened(make_store(tmp_path / "s", index, **OTHERS[name]))
    assert drawn(view)[-1] == 5  # of six scores from 0.95 to 0.2 those above 0.3
    assert view.is_visible("#map") == (name != "none") and view.is_visible("#levels") == (name == "none")
    assert view.is_visible("#reading") == (name != "none")


def test_a_narrow_dark_page_fits_its_window(opened, reader):
    view = opened(reader, width=400, scheme="dark")
    settled(view)
    assert view.evaluate("document.documentElement.scrollWidth") <= 400
    assert view.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 27)"


def run_inspect(*args: object):
    return CliRunner().invoke(app, ["inspect", *map(str, args)])


def test_a_picture_s_name_tells_its_kind(reader, world, world_index, tmp_path):
    done = run_inspect(reader.path, "--index", world_index, "--root", world, "--out", tmp_path / "picture")
    assert isinstance(done.exception, FD3DError) and "no suffix of an image file" in str(done.exception)


def test_inspect_prints_a_table_and_writes_a_page(reader, world, world_index, tmp_path):
    place = ["--index", world_index, "--root", world, "--html", tmp_path / "page.html"]
    lines = run_inspect(reader.path, *place, "--frames", 4, "--width", 64).stdout.splitlines()
    values = next(line.split() for line in lines if line.startswith("bev/values"))
    # six frames with 37 of 400 cells of eight float16
    assert values[1:8] == ["6", "x", "400", "x", "8", "float16", f"{6 * 37 * 8 * 2 / 1e6:.3f}"] and values[-2] == "9.2"
    assert float(values[9]) == pytest.approx(float(values[7]) / float(values[8]), abs=0.1)
    assert any(line.startswith("6 frames in 2 scenes") for line in lines)
    assert "4 frames" in lines[-2] and lines[-1].startswith("not on the page: 2 more frames; choose with --scene")
    assert (tmp_path / "page.html").read_text().count('"token":') == 4


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--html", "page.html", "--params", "none.yaml"], "drawing frames needs --index and --root, or a profile by"),
        (["--html", "page.html", "--index", "none.npz", "--root", "{root}"], "index none.npz does not exist"),
        (["--html", "page.html", "--index", "{index}", "--root", "none"], "none has no folder v1.0-world"),
        (["--html", "page.html", "--index", "{index}", "--root", "{root}", "--token", "zz"], "has no frame zz"),
        (["--html", "{index}/page.html", "--index", "{index}", "--root", "{root}"], "page.html cannot be written"),
    ],
)
def test_what_a_page_lacks_is_told_in_one_line(reader, world, world_index, args, message):
    done = run_inspect(reader.path, *(arg.format(root=world, index=world_index) for arg in args))
    assert isinstance(done.exception, FD3DError | StoreError)
    assert message in str(done.exception) and "\n" not in str(done.exception)


def test_a_page_is_of_the_profiles_data_and_nothing_is_printed_before_it_can_be_made(
    reader, world, world_index, project, tmp_path, monkeypatch
):
    for folder in ("configs", "checkpoints"):
        (tmp_path / folder).symlink_to(project / folder)
    monkeypatch.chdir(tmp_path)
    params = yaml.safe_load((project / "params.yaml").read_text())
    params["data"] |= {"root": str(world), "index": "index.npz", "generate": []}
    Path("params.yaml").write_text(yaml.safe_dump(params))
    done = run_inspect(reader.path, "--html", "page.html")
    assert "index index.npz does not exist" in str(done.exception) and not done.stdout
    shutil.copy(world_index, "index.npz")
    done = run_inspect(reader.path, "--html", "page.html", "--token", "zz")
    assert "has no frame zz" in str(done.exception) and not done.stdout
    done = run_inspect(reader.path, "--html", "page.html", "--width", 64)
    assert done.exit_code == 0 and "page.html: 6 frames" in done.stdout and Path("page.html").is_file()


def test_an_unfinished_store_is_not_inspected(reader, tmp_path):
    shutil.copytree(reader.path, tmp_path / "store")
    (tmp_path / "store" / "manifest.json").unlink()
    assert "its dump is not finished" in str(run_inspect(tmp_path / "store").exception)
