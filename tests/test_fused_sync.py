"""Synchronised statistics: two processes on halves of a batch against one on the whole."""

from __future__ import annotations

import copy
import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

import fastconv
from fastconv.nn import ConvBNReLU2d

# PyTorch can be built without it; then there is no group to synchronise over.
pytestmark = pytest.mark.skipif(not dist.is_available(), reason="PyTorch without distributed")

SPLITS = ((3, 3), (5, 1))
STEPS = 3


def model(group) -> nn.Module:
    torch.manual_seed(7)
    return nn.Sequential(
        ConvBNReLU2d(3, 8, 3, padding=1, process_group=group),
        ConvBNReLU2d(8, 5, 3, stride=2, activation="silu", process_group=group),
    ).double()


def batches(split: tuple[int, int]) -> list[torch.Tensor]:
    gen = torch.Generator().manual_seed(3)
    return [
        torch.randn(sum(split), 3, 9, 9, generator=gen, dtype=torch.float64) + step
        for step in range(STEPS)
    ]


def loss_of(y: torch.Tensor, count: int) -> torch.Tensor:
    return y.square().sum() / count


def train(net: nn.Module, parts: list[torch.Tensor], scale: float, total: int) -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    for x in parts:
        optimizer.zero_grad()
        (loss_of(net(x), total) * scale).backward()
        optimizer.step()


def worker(rank: int, port: int, split: tuple[int, int], results) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    try:
        net = model("world" if rank == 0 else dist.group.WORLD)
        net = nn.parallel.DistributedDataParallel(net)
        begin = sum(split[:rank])
        parts = [x[begin : begin + split[rank]] for x in batches(split)]
        # DDP averages gradients over the two processes.
        train(net, parts, 2.0, sum(split))
        results[rank] = {k: v.clone() for k, v in net.module.state_dict().items()}
        half = ConvBNReLU2d(3, 4, 1, process_group="world").double()
        with pytest.raises(RuntimeError, match="no second derivative"):
            x = parts[0].clone().requires_grad_()
            torch.autograd.grad(half(x).sum(), x, create_graph=True)
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("split", SPLITS, ids=str)
def test_two_processes_are_one(split):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    with mp.get_context("spawn").Manager() as manager:
        results = manager.dict()
        mp.spawn(worker, (port, split, results), nprocs=2)
        states = [results[0], results[1]]
    alone = model(None)
    initial = copy.deepcopy(alone.state_dict())
    train(alone, batches(split), 1.0, sum(split))
    for name, expected in alone.state_dict().items():
        assert torch.equal(states[0][name], states[1][name]), name
        torch.testing.assert_close(states[0][name], expected, rtol=1e-9, atol=1e-9)
        if name.endswith("weight"):
            assert not torch.equal(expected, initial[name]), "nothing was learned"


def test_group_that_is_not_initialised():
    x, w = torch.randn(2, 3, 6, 6), torch.randn(4, 3, 3, 3)
    with pytest.raises(ValueError, match="Default process group has not been initialized"):
        fastconv.conv_bn_relu(
            x, w, None, None, None, None, None, training=True, process_group="world"
        )
    with pytest.raises(ValueError, match="process_group must be"):
        fastconv.conv_bn_relu(
            x, w, None, None, None, None, None, training=True, process_group="everyone"
        )
    stats = (torch.zeros(4), torch.ones(4))
    y = fastconv.conv_bn_relu(x, w, None, None, None, *stats, process_group="world")
    assert y.shape == (2, 4, 4, 4), "evaluation synchronises nothing"
