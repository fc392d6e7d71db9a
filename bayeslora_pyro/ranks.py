"""The processes of a fit that runs on several devices: which one this is, and sums over all of them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as distributed
from torch import Tensor

__all__ = ["joined", "rank", "share_start", "sum_over_ranks", "wait_for_ranks", "world_size"]


def _together() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def rank() -> int:
    """Which of the processes this is, from 0."""
    return distributed.get_rank() if _together() else 0


def world_size() -> int:
    """The number of processes."""
    return distributed.get_world_size() if _together() else 1


def sum_over_ranks(tensors: Iterable[Tensor]) -> None:
    """Replaces each tensor by its sum over the processes, all of them in one message per dtype and device."""
    if world_size() == 1:
        return
    for group in _groups(tensors):
        flat = torch.cat([tensor.reshape(-1) for tensor in group])
        distributed.all_reduce(flat)
        _spread(flat, group)


def share_start(tensors: Iterable[Tensor]) -> None:
    """Replaces each tensor by that of the first process, so that all start from the same."""
    if world_size() == 1:
        return
    for group in _groups(tensors):
        flat = torch.cat([tensor.reshape(-1) for tensor in group])
        distributed.broadcast(flat, src=0)
        _spread(flat, group)


def wait_for_ranks() -> None:
    """Waits until all processes are here."""
    if world_size() > 1:
        distributed.barrier()


def _groups(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    groups: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    return list(groups.values())


def _spread(flat: Tensor, group: list[Tensor]) -> None:
    with torch.no_grad():
        for tensor, part in zip(group, flat.split([tensor.numel() for tensor in group]), strict=True):
            tensor.copy_(part.reshape(tensor.shape))


@contextmanager
def joined() -> Iterator[None]:
    """Joins the processes that a launcher such as `accelerate launch` or `torchrun` has started, if there are several.

    The processes talk by NCCL where each has a GPU of its own, and by gloo otherwise.
    """
    wanted = int(os.environ.get("WORLD_SIZE", "1"))
    if wanted == 1 or _together():
        yield
        return
    local = int(os.environ.get("LOCAL_RANK", "0"))
    own_gpu = torch.cuda.is_available() and local < torch.cuda.device_count()
    if own_gpu:
        torch.cuda.set_device(local)
    distributed.init_process_group("nccl" if own_gpu else "gloo")
    try:
        yield
    finally:
        distributed.destroy_process_group()
