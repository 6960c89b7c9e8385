"""Memory that the history frames' features hold while the current frame is encoded, for this code and for another checkout's.

Counts the bytes of all tensors that are alive when the current frame's pass begins, without the model's and the batch's own, in
a training step of a queue with a shipped config at a part of nuScenes' image size; on a CPU, with random weights and images. The
bytes grow with the number of pixels: at the full size they are ``1 / scale ** 2`` times as many.

    python -m benchmarks.history_memory --code . --code ../another-checkout
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

_PROGRAM = """
import gc, sys, types
import torch
from pipeline.models.build import build_detector, load_config
torch.set_num_threads(1)
cfg, rows, columns = load_config(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
torch.manual_seed(0)
model = build_detector(cfg).train()
queue = cfg.queue_length
images = torch.randn(1, queue, 6, 3, rows, columns)
frame = dict(token="t", scene_token="s", has_history=True, pad_hw=(rows, columns), img_hw=(rows, columns),
             can_bus=torch.zeros(18), lidar2img=torch.eye(4).repeat(6, 1, 1))
samples = [types.SimpleNamespace(frames=[dict(frame) for _ in range(queue)])]
def alive():
    gc.collect()
    found = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in gc.get_objects() if isinstance(t, torch.Tensor)}
    return sum(found.values()) / 1e6
before, passes, extract = alive(), [], model.extract_feat
def measured(img):
    passes.append(alive() - before)
    return extract(img)
model.extract_feat = measured
with torch.no_grad():
    model.encode_queue(images, samples)
print(f"{passes[-1]:.1f}")
"""


def main(
    code: Annotated[list[Path], typer.Option(help="Checkout whose code is measured; may be given again.")],
    config: Annotated[Path, typer.Option(help="Config of a BEVFormer.")] = Path("configs/bevformer/tiny.py"),
    scale: Annotated[float, typer.Option(help="Part of the config's image size in each direction.")] = 0.5,
) -> None:
    """Measure the memory held by history features."""
    from pipeline.models.build import load_config

    rows, columns = (round(side * load_config(config).image.scale * scale / 32) * 32 for side in (900, 1600))
    print(f"{config} with images of {rows}x{columns}: code, MB held when the current frame's pass begins")
    for checkout in code:
        done = subprocess.run(
            [sys.executable, "-c", _PROGRAM, str(config.resolve()), str(rows), str(columns)],
            env=os.environ | {"PYTHONPATH": str(checkout.resolve())},
            check=True,
            stdout=subprocess.PIPE,
            text=True,
            cwd="/",
        )
        print(f"{checkout}, {done.stdout.strip()}", flush=True)


if __name__ == "__main__":
    typer.run(main)
