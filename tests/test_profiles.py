"""Every profile that comes with the project fits the code."""

from pathlib import Path

import pytest
import yaml

from pipeline.distill.settings import DistillSettings
from pipeline.dumping.settings import DumpSettings
from pipeline.focal.rule import FocalRule
from pipeline.models.build import load_config
from pipeline.settings import from_mapping
from pipeline.training.settings import RunSettings
from stages.train import merged

ROOT = Path(__file__).parents[1]
PROFILES = [ROOT / "params.yaml", *sorted((ROOT / "configs/profiles").glob("*.yaml"))]


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_a_profile_names_configs_that_load_and_settings_that_are_known(path: Path):
    profile = yaml.safe_load(path.read_text())
    rule = from_mapping(FocalRule, profile["focal"], "focal")
    from_mapping(DumpSettings, profile["dump"] | {"rule": rule}, "dump")
    settings = profile["distill"]
    inherited = settings.pop("inherit")
    assert inherited[0] == "pts_bbox_head"
    for method, values in profile.get("methods", {}).items():
        assert values == {"inherit": inherited}, f"{method} starts otherwise than FD3D"
    rule.check_covers(DistillSettings.from_dict(settings).rule)
    for pair in profile["families"].values():
        assert "adapter" in load_config(ROOT / pair["expert"]["config"])
        load_config(ROOT / pair["apprentice"]["config"])
        DistillSettings.from_dict(merged(settings, pair.get("distill") or {}))
        for role in ("expert", "apprentice"):
            from_mapping(RunSettings, pair[role]["train"], "train")


def test_the_active_profile_is_the_embedded_one():
    active, embedded = (
        yaml.safe_load(path.read_text()) for path in (PROFILES[0], ROOT / "configs/profiles/world.yaml")
    )
    assert active == embedded
