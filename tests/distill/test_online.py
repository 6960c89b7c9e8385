"""An expert inside the training step: its arrays are the store's, and nothing else of a training changes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet3d.registry import DATASETS, MODELS

from pipeline.data.frames import collate, frame_dataset
from pipeline.distill.build import distiller_config
from pipeline.distill.loading import cached_targets, online_targets
from pipeline.distill.online import OnlineExpert, expert_frames
from pipeline.distill.settings import DistillSettings
from pipeline.dumping.dump import dump
from pipeline.dumping.settings import DumpSettings
from pipeline.errors import FD3DError
from pipeline.focal.rule import FocalRule
from pipeline.models.build import load_config
from store_schema import StoreReader

FAMILIES = {"bevformer": ("expert", "apprentice"), "detr3d": ("detr3d_expert", "detr3d_apprentice")}


@pytest.fixture(scope="module")
def pairs(project: Path, source, store, tmp_path_factory):
    """Per family: expert config and checkpoint, apprentice config, focal store."""
    out = {}
    for family, (expert, apprentice) in FAMILIES.items():
        config, checkpoint = project / f"configs/world/{expert}.py", project / f"checkpoints/world_{expert}.pth"
        path = store
        if family == "detr3d":
            path = tmp_path_factory.mktemp("online") / family
            settings = DumpSettings(FocalRule(), values="uint8", frames_per_shard=3)
            dump(config, checkpoint, source, path, settings, workers=0)
        out[family] = (config, checkpoint), load_config(project / f"configs/world/{apprentice}.py"), path
    return out


def online_data(pair, source, history):
    (config, _), cfg, _ = pair
    frames = expert_frames(load_config(config), cfg, source, history)
    return DATASETS.build(frame_dataset(cfg, source, train=True, targets=online_targets(frames)))


def expert_of(pair) -> OnlineExpert:
    reader = StoreReader(pair[2])
    config, checkpoint = pair[0]
    return OnlineExpert(config, checkpoint, reader.manifest, reader.schema, reader.codes, pair[2])


def test_streamed_from_the_scenes_start_every_array_is_the_stores(pairs, source):
    for family, passes in (("bevformer", 2 * (1 + 2 + 3)), ("detr3d", 6)):
        pair = pairs[family]
        data, expert, reader = online_data(pair, source, "scene"), expert_of(pair), StoreReader(pair[2])
        for i in (2, 4, 0, 5, 1, 3):  # in no order: every sample begins its stream anew
            sample = data[i]["data_samples"]
            (row,) = expert.rows([sample.expert])
            stored = reader.read(sample.token, decode=False)
            assert row.keys() == stored.keys()
            for name, array in stored.items():
                assert row[name].dtype == array.dtype, name
                np.testing.assert_array_equal(row[name], array, err_msg=f"{family} {name}")
        assert expert.passes == passes


def test_a_queue_is_the_history_of_the_apprentice(pairs, source):
    pair = pairs["bevformer"]
    data, expert, reader = online_data(pair, source, "queue"), expert_of(pair), StoreReader(pair[2])
    tokens = reader.tokens[:3]
    for place, token in enumerate(tokens):
        queue = data[data.position(token)]["data_samples"].expert
        assert [meta["token"] for meta in queue["frames"]] == tokens[max(place - 1, 0) : place + 1]
        assert [bool(meta["has_history"]) for meta in queue["frames"]] == [False, True][: min(place, 1) + 1]
        (row,) = expert.rows([queue])
        same = np.array_equal(row["query/score"], reader.read(token)["query/score"])
        assert same == (place < 2)  # of the third frame the scene's first is missing


def test_the_expert_sees_undistorted_images_of_full_size(pairs, source):
    pair = pairs["bevformer"]
    np.random.seed(0)
    item = online_data(pair, source, "queue")[1]
    expert, apprentice = item["data_samples"].expert["img"], item["inputs"]["img"]
    assert expert.dtype == torch.uint8 and expert.shape == (2, 6, 3, 160, 288) and apprentice.shape[-2:] == (80, 144)
    plain = DATASETS.build(frame_dataset(load_config(pair[0][0]), source, train=False))
    torch.testing.assert_close(expert[1], plain[1]["inputs"]["img"][0])
    assert any(step["type"] == "PhotometricDistortion" for step in frame_dataset(pair[1], source, True)["pipeline"])


def test_loading_the_experts_images_draws_no_random_numbers(pairs, source):
    pair = pairs["bevformer"]
    items = []
    for data in (
        online_data(pair, source, "scene"),
        DATASETS.build(frame_dataset(pair[1], source, True, targets=cached_targets(pair[2]))),
    ):
        np.random.seed(5)
        items.append(torch.stack([data[i]["inputs"]["img"] for i in (0, 3)]))
    torch.testing.assert_close(*items)


def distiller(pair, **settings):
    online = settings.get("expert") == "online"
    config = distiller_config(
        pair[1], pair[2], "fd3d", DistillSettings.from_dict(settings), pair[0] if online else None
    )
    torch.manual_seed(0)
    model = MODELS.build(config)
    model.init_weights()
    return model.train()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_has_the_losses_and_gradients_of_a_cached_step(pairs, source, family):
    pair, losses, gradients = pairs[family], [], []
    cached = DATASETS.build(frame_dataset(pair[1], source, True, targets=cached_targets(pair[2])))
    for settings, data in (
        (dict(), cached),
        (dict(expert="online", history="scene"), online_data(pair, source, "scene")),
    ):
        model = distiller(pair, **settings)
        np.random.seed(1)
        torch.manual_seed(1)
        batch = model.data_preprocessor(collate([data[2], data[5]]), True)
        found = model(**batch, mode="loss")
        sum(found.values()).backward()
        losses.append({name: value.item() for name, value in found.items()})
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert losses[0] == losses[1] and "loss_fine" in losses[0]
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=0, atol=0, msg=name)


def test_the_expert_is_no_part_of_the_trained_model(pairs):
    pair = pairs["bevformer"]
    cached, online = distiller(pair), distiller(pair, expert="online", history="queue")
    assert cached.state_dict().keys() == online.state_dict().keys()
    for name, tensor in cached.state_dict().items():  # the same random numbers too
        torch.testing.assert_close(tensor, online.state_dict()[name], rtol=0, atol=0)
    assert not online.online.expert.model.training


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(expert="live"), "distill.expert is 'live'; use cached or online"),
        (dict(history="scene"), "distill.history is 'scene' but distill.expert is cached"),
        (dict(expert="online"), "distill.expert is online but distill.history is None; use scene or queue"),
        (dict(expert="online", history="all"), "distill.history is 'all'; use scene or queue"),
    ],
)
def test_contradictory_settings_are_refused(settings, message):
    with pytest.raises(FD3DError, match=message):
        DistillSettings(**settings)


def test_an_expert_that_did_not_make_the_store_is_refused(pairs, project):
    (config, checkpoint), cfg, store = pairs["bevformer"]
    reader = StoreReader(store)
    with pytest.raises(FD3DError, match=rf"store {store} was not made by checkpoint .*: the SHA-256 here is"):
        OnlineExpert(config, pairs["detr3d"][0][1], reader.manifest, reader.schema, reader.codes, store)
    with pytest.raises(FD3DError, match=r"was not made by config .*apprentice.py"):
        OnlineExpert(
            project / "configs/world/apprentice.py", checkpoint, reader.manifest, reader.schema, reader.codes, store
        )
    with pytest.raises(FD3DError, match="none.pth does not exist; give the one that made store"):
        OnlineExpert(config, Path("none.pth"), reader.manifest, reader.schema, reader.codes, store)
    with pytest.raises(FD3DError, match="but no expert is given"):
        MODELS.build(distiller_config(cfg, store, "fd3d", DistillSettings(expert="online", history="queue")))
