"""Statistics over the processes of a torch.distributed group, as torch.nn.SyncBatchNorm has them.

Each process contributes (mean, m2, count) of its part of the batch; all of them merge these in the
order of ranks, so that they agree to the bit. Nothing waits for the device.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

WORLD = "world"


def resolved(group: Any) -> Any | None:
    """The group to synchronise over; None where there is nothing to do.

    group: a ProcessGroup, "world" for the default one, or None.

    Raises what torch.distributed raises for a group that is not initialised.
    """
    if group is None:
        return None
    if not dist.is_available():
        raise RuntimeError("conv_bn_relu: this PyTorch was built without torch.distributed")
    if isinstance(group, str):
        if group != WORLD:
            raise ValueError(
                f"process_group must be a ProcessGroup, 'world' or None, got {group!r}"
            )
        group = dist.distributed_c10d._get_default_group()
    return None if dist.get_world_size(group) == 1 else group


def merged(mean: Tensor, m2: Tensor, count: int, group: Any) -> tuple[Tensor, Tensor, Tensor]:
    """(mean, m2, count) of the joint batch; count is a tensor of one element.

    A process whose part is empty contributes nothing. Source: Chan, Golub and LeVeque, "Updating
    Formulae and a Pairwise Algorithm for Computing Sample Variances", 1979.
    """
    K, ranks = mean.numel(), dist.get_world_size(group)
    # float64 holds any count exactly.
    mine = torch.cat([mean.double(), m2.double(), m2.new_full((1,), count, dtype=torch.float64)])
    parts = mine.new_empty((ranks, 2 * K + 1))
    dist.all_gather_into_tensor(parts.view(-1), mine, group)
    means, m2s, counts = parts[:, :K], parts[:, K : 2 * K], parts[:, 2 * K :]
    total = counts.sum()
    joint = (means * counts).sum(0) / total
    spread = (counts * (means - joint).square()).sum(0)
    return joint.to(mean.dtype), (m2s.sum(0) + spread).to(m2.dtype), total.to(mean.dtype)


def averaged(sum_g: Tensor, sum_gy: Tensor, count: Tensor, group: Any) -> tuple[Tensor, Tensor]:
    """Both sums over all processes, over the number of values per channel."""
    sums = torch.cat([sum_g, sum_gy])  # [2K]
    dist.all_reduce(sums, group=group)
    sums /= count
    K = sum_g.numel()
    return sums[:K], sums[K:]
