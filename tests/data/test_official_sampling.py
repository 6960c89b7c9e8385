"""Which frames a training item has and how its colours are distorted, against draws of the official data set."""

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from pipeline.data.augment import Augment, class_balanced
from pipeline.data.dataset import FrameDataset
from pipeline.data.frames import frame_dataset
from pipeline.data.index import FrameIndex
from pipeline.data.transforms import LoadBoxes, LoadMultiViewImages, PackFrames, PhotometricDistortionPerImage
from pipeline.errors import FD3DError
from pipeline.models.build import load_config

SCENE, FRAMES, LENGTH = 12, 24, 4
PLACES = {"mid_scene": 20, "third_of_second_scene": 14, "start_of_second_scene": 12, "second_of_data_set": 1}
RANGE = [-51.2, -51.2, -5.0, 51.2, 51.2, 3.0]


@pytest.fixture(scope="module")
def official(parity_root: Path) -> np.lib.npyio.NpzFile:
    return np.load(parity_root / "data_bf.npz")


class Scenes:
    """Index of two scenes of twelve frames; frame n stands n metres ahead and has one box, frames of ``empty`` have none."""

    def __init__(self, empty: tuple[int, ...] = (), labels: tuple[tuple[int, ...], ...] = ()) -> None:
        self.empty, self.labels = empty, labels

    def select(self, split: str) -> list[int]:
        return list(range(FRAMES))

    def __getitem__(self, row: int) -> SimpleNamespace:
        labels = np.array(self.labels[row] if self.labels else () if row in self.empty else (0,), dtype=int)
        return SimpleNamespace(
            token=str(row),
            scene_token=str(row // SCENE),
            can_bus=np.array([float(row)] + [0.0] * 17),
            boxes=np.zeros((len(labels), 9)),
            labels=labels,
            num_lidar_pts=np.ones(len(labels), int),
            num_radar_pts=np.zeros(len(labels), int),
        )


def scenes(monkeypatch: pytest.MonkeyPatch, index: Scenes | None = None, **settings: Any) -> FrameDataset:
    monkeypatch.setattr(FrameIndex, "load", lambda *_: index or Scenes())
    return FrameDataset("none", "none", "all", [], queue_length=LENGTH, thin_queue=True, **settings)


def told(item: dict) -> tuple[tuple[int, bool, float], ...]:
    """Frame number, has_history and metres since the frame before, of every frame of a queue."""
    return tuple((int(f["frame"].token), f["has_history"], float(f["can_bus"][0])) for f in item["frames"])


def same_shares(ours: Counter, theirs: Counter) -> None:
    """Pearson's statistic of few draws against many is one that chance gives (below 5 deviations above its mean)."""
    assert ours.keys() >= theirs.keys()
    draws, many = sum(theirs.values()), sum(ours.values())
    expected = {key: draws * count / many for key, count in ours.items()}
    statistic, freedom = sum((theirs[key] - e) ** 2 / e for key, e in expected.items()), len(ours) - 1
    assert statistic <= freedom + 5 * np.sqrt(2 * freedom)


@pytest.mark.parametrize("where", PLACES)
def test_queues_are_thinned_as_officially(official, monkeypatch, where):
    data = scenes(monkeypatch)
    theirs: Counter = Counter()
    for seed in (0, 1):
        arrays = (official[f"queue_{where}_seed{seed}_{name}"] for name in ("indices", "has_history", "motion"))
        for queue in zip(*arrays, strict=True):
            theirs[tuple((int(i), bool(h), float(m)) for i, h, m in zip(*queue, strict=True))] += 1
    np.random.seed(0)
    ours = Counter(told(data[PLACES[where]]) for _ in range(2000))
    assert ours.keys() == theirs.keys()
    same_shares(ours, theirs)
    assert min(ours.values()) > 0.8 * 2000 / len(ours)  # each as probable


def test_samples_with_a_frame_without_boxes_are_replaced_as_officially(official, monkeypatch):
    data = scenes(monkeypatch, Scenes((17,)), boxes_within=RANGE)
    theirs: Counter = Counter()
    tried: Counter = Counter()
    for seed in (0, 1, 2):
        for queue in official[f"empty17_item20_seed{seed}_indices"]:
            theirs[int(queue[-1])] += 1
            assert 17 not in queue
        tried.update(official[f"empty17_item20_seed{seed}_attempts"].tolist())
    drawn: Counter = Counter()
    attempts: Counter = Counter()
    raw_item = Mock(wraps=data.raw_item)
    monkeypatch.setattr(data, "raw_item", raw_item)
    np.random.seed(0)
    for _ in range(6000):
        raw_item.reset_mock()
        queue = [n for n, _, _ in told(data[20])]
        assert 17 not in queue
        drawn[queue[-1]] += 1
        attempts[min(raw_item.call_count, 4)] += 1
    same_shares(drawn, theirs)
    same_shares(attempts, Counter({n: sum(c for k, c in tried.items() if min(k, 4) == n) for n in range(1, 5)}))
    assert drawn.keys() == set(range(24)) - {17}  # whatever has a queue without frame 17
    assert attempts[1] / 6000 == pytest.approx(1 / 4, abs=0.03)


def test_a_data_set_without_boxes_is_refused(monkeypatch):
    data = scenes(monkeypatch, Scenes(tuple(range(FRAMES))), boxes_within=RANGE)
    with pytest.raises(FD3DError, match="samples drawn from split 'all' all have a frame without boxes inside"):
        data[3]


def test_draws_follow_the_seed(monkeypatch):
    data = scenes(monkeypatch, Scenes((17,)), boxes_within=RANGE)

    def drawn(seed: int) -> list[tuple]:
        np.random.seed(seed)
        return [told(data[n]) for n in range(FRAMES)]

    assert drawn(3) == drawn(3) != drawn(4)


def test_an_epoch_of_balanced_classes_has_each_class_equally_often(monkeypatch):
    # class 0 in every frame, class 1 in every sixth, class 2 in frame 5 only
    labels = tuple((0,) + (1,) * (n % 6 == 0) + (2,) * (n == 5) for n in range(FRAMES))
    frames = class_balanced(labels)
    assert len(frames) == 29 // 3 * 3  # 24 + 4 + 1 pairs of a frame and a class
    from_class = np.split(frames, 3)
    assert (from_class[1] % 6 == 0).all() and (from_class[2] == 5).all() and len(set(from_class[0].tolist())) > 4
    data = scenes(monkeypatch, Scenes(labels=labels), class_balanced=True)
    assert len(data) == 27 and data.rows == list(range(FRAMES))
    assert [int(data[n]["token"]) for n in range(27)] == frames.tolist()
    with pytest.raises(FD3DError, match="no frame of the split has a box"):
        class_balanced([(), ()])


def test_each_image_is_distorted_as_officially(official):
    rng = np.random.RandomState(1)
    low, high = rng.randint(0, 192, (6, 3, 16, 26)), rng.randint(0, 64, (6, 3, 256, 416))
    images = (low.repeat(16, 2).repeat(16, 3) + high).astype(np.uint8).transpose(0, 2, 3, 1)
    for seed in range(10):
        np.random.seed(seed)
        got = PhotometricDistortionPerImage().transform({"frames": [{"img": images.copy()}]})["frames"][0]["img"]
        assert got.dtype == np.float32
        pixels = got.reshape(6, -1, 3).astype(np.float64)
        np.testing.assert_allclose(pixels.mean(1), official["photo_mean"][seed], rtol=1e-5)
        np.testing.assert_allclose(pixels.std(1), official["photo_std"][seed], rtol=1e-5)
        np.testing.assert_allclose(got[:, ::64, ::104], official["photo_sample"][seed], rtol=0, atol=0.01)
        limits = np.stack([pixels.min((1, 2)), pixels.max((1, 2))], 1)
        np.testing.assert_allclose(limits, official["photo_min_max"][seed], rtol=0, atol=0.01)


def test_distortion_is_drawn_for_each_image_and_leaves_pixels_in_place(source):
    steps: list[Any] = [LoadMultiViewImages(0.5), LoadBoxes(RANGE), PackFrames()]
    plain = FrameDataset(source.index, source.root, source.split, steps)[0]["inputs"]["img"][0]
    np.random.seed(1)
    steps.insert(1, PhotometricDistortionPerImage())
    distorted = FrameDataset(source.index, source.root, source.split, steps)[0]["inputs"]["img"][0]
    assert distorted.dtype == torch.float32 and distorted.shape == plain.shape
    shifts = (distorted - plain).mean((1, 2, 3))
    assert len(set(shifts.round().tolist())) > 2
    for before, after in zip(plain.mean(1), distorted.mean(1), strict=True):  # the order of channels does not matter
        assert np.corrcoef(before.flatten(), after.flatten())[0, 1] > 0.9


@pytest.mark.parametrize(
    ("configs", "want"),
    [
        ("bevformer", Augment(photometric_per_image=True, thin_queue=True, replace_empty=True)),
        ("detr3d", Augment(photometric_per_image=True, replace_empty=True)),
        ("world", Augment(photometric=True)),
        ("benchmark", Augment(photometric=True)),
    ],
)
def test_paper_size_configs_train_as_published_and_the_embedded_ones_as_ever(project, source, configs, want):
    for path in (project / "configs" / configs).glob("*.py"):
        cfg = load_config(path)
        data = frame_dataset(cfg, source, train=True)
        assert Augment(**cfg.augment) == want, path
        assert (data["thin_queue"], data["boxes_within"] is not None) == (want.thin_queue, want.replace_empty)
        distortions = [step["type"] for step in data["pipeline"] if "Photometric" in step["type"]]
        assert distortions == ["PhotometricDistortion" + "PerImage" * want.photometric_per_image]
        streamed = frame_dataset(cfg, source, train=False)
        assert not (streamed["thin_queue"] or streamed["boxes_within"] or streamed["class_balanced"])
        assert not any("Photometric" in step["type"] for step in streamed["pipeline"])
