"""Estimated GPU memory of trainings beside the published figures: ``python -m benchmarks.training_memory``.

Published are BEVFormer's figures at a batch of 1, read from a GPU, so that they include the CUDA context and what the allocator and the
convolutions reserve. Its public small keeps no activations inside the backbone's blocks (``with_cp``), which our config does not do.
"""

import typer

from pipeline.cost.cameras import rig_cameras
from pipeline.cost.memory import training_memory
from pipeline.models.build import load_config

PUBLISHED = {"base": 28.5, "public_small": 10.5, "public_tiny": 6.5}
"""GB by config, batch 1, float32 (BEVFormer's README)."""


def main() -> None:
    """Print a row per config."""
    print(f"{'config':24} {'published, GB':>14} {'estimate, GB':>13} {'difference, GB':>15}")
    for name, published in PUBLISHED.items():
        cfg = load_config(f"configs/bevformer/{name}.py")
        for checkpointed in (False, True) if name == "public_small" else (False,):
            cfg.model.img_backbone.with_cp = checkpointed
            estimate = training_memory(cfg, rig_cameras(), 1).total / 1e9
            title = name + (" with_cp" if checkpointed else "")
            print(f"{title:24} {published:14.1f} {estimate:13.1f} {published - estimate:15.1f}", flush=True)


if __name__ == "__main__":
    typer.run(main)
