"""Several processes that train one model."""

import os
from typing import Any

import torch
import torch.distributed
from mmengine.dist import all_reduce_params, get_world_size, init_dist, is_distributed, is_main_process
from torch import nn

_PATIENCE = 3600
"""Seconds that processes with GPUs wait for another: one of them runs the devkit in a validation, six minutes for nuScenes' val."""


def launched() -> bool:
    """Whether a launcher such as torchrun started this process."""
    return "LOCAL_RANK" in os.environ


def join_processes() -> int:
    """Meet the other processes of the launcher, over NCCL with GPUs and over gloo without, and return their number."""
    if launched() and not is_distributed():
        if torch.cuda.is_available():
            init_dist("pytorch", backend="nccl", timeout=_PATIENCE)
        else:  # mmengine would choose a GPU for the process
            torch.distributed.init_process_group("gloo")
    world: int = get_world_size()
    return world


def model_wrapper() -> dict[str, Any]:
    """Config of the model's wrapper, for mmengine's Runner."""
    wrapper: dict[str, Any] = dict(
        type="MMDistributedDataParallel",
        broadcast_buffers=False,
        # a frame without boxes, or a layer that no loss reads, leaves parameters without a gradient
        find_unused_parameters=True,
    )
    return wrapper if torch.cuda.is_available() else wrapper | {"device_ids": None}


def average_buffers(model: nn.Module) -> None:
    """Give all processes the mean of their batch normalisations' running statistics.

    While they train, every process normalises by its own frames and keeps its own statistics, as in the published trainings
    (no SyncBN; torch's has no CPU kernel).
    """
    if get_world_size() > 1:
        all_reduce_params([buffer for buffer in model.buffers() if buffer.is_floating_point()], op="mean")


def tell(text: str) -> None:
    """Print from the main process alone."""
    if is_main_process():
        print(text, flush=True)
