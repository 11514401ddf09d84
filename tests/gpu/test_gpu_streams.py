"""What surrounds a kernel on a device: graphs, streams, no waiting, the current device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from conv_runner import random_operands
from gpu_runner import Instance, first_cases, on_device, one_of_each, run
from torch import Tensor

pytestmark = pytest.mark.gpu
INSTANCES = one_of_each()
SLEEP_CYCLES = 80_000_000  # about 40 ms: far longer than the host needs for a call


def problem(instance: Instance):
    """(case, operands, bias) on the device: the largest of a few problems that apply."""
    case = max(first_cases(instance, 5), key=lambda c: c.gemm_k(instance.direction))
    a, b, bias = random_operands(case, instance.direction, instance.dtype)
    moved = on_device(a, instance), on_device(b, instance)
    return case, moved, None if bias is None else on_device(bias, instance)


def other_values(t: Tensor) -> Tensor:
    return t.flip(0) * 2


@contextmanager
def no_synchronisation() -> Iterator[None]:
    """PyTorch raises on any call of its own that waits for the device."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("instance", INSTANCES, ids=str)
def test_graph(instance: Instance) -> None:
    """Captured once, replayed on other values in the same buffers."""
    case, (a, b), bias = problem(instance)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run(instance, case, (a, b), bias)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = run(instance, case, (a, b), bias)
    for values in ((a.clone(), b.clone()), (other_values(a), other_values(b))):
        a.copy_(values[0])
        b.copy_(values[1])
        result.fill_(torch.nan)
        graph.replay()
        expected = run(instance, case, (a, b), bias)
        assert torch.equal(result, expected), f"{instance} {case.id}: the replay differs"


@pytest.mark.parametrize("instance", INSTANCES, ids=str)
def test_side_stream(instance: Instance) -> None:
    """Runs behind the work of the current stream: its operands arrive there late."""
    case, (a, b), bias = problem(instance)
    expected = run(instance, case, (a, b), bias)
    late = torch.full_like(a, torch.nan)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(SLEEP_CYCLES)
        late.copy_(a)
        result = run(instance, case, (late, b), bias)
    side.synchronize()
    assert torch.equal(result, expected), f"{instance} {case.id}: did not wait for its stream"


@pytest.mark.parametrize("instance", INSTANCES, ids=str)
def test_does_not_wait(instance: Instance) -> None:
    """Returns while the stream is still busy with something else."""
    case, operands, bias = problem(instance)
    run(instance, case, operands, bias)  # modules load at the first launch, which may wait
    torch.cuda.synchronize()
    busy = torch.cuda.Event()
    with no_synchronisation():
        torch.cuda._sleep(SLEEP_CYCLES)
        busy.record()
        run(instance, case, operands, bias)
        returned_first = not busy.query()
    torch.cuda.synchronize()
    assert returned_first, f"{instance} {case.id}: the call waited for the device"


@pytest.mark.parametrize("instance", INSTANCES, ids=str)
def test_runs_on_the_tensors_device(instance: Instance) -> None:
    """Whatever device is current, and leaves that as it was."""
    case, (a, b), bias = problem(instance)
    expected = run(instance, case, (a, b), bias).cpu()
    for index in range(torch.cuda.device_count()):
        there = torch.device("cuda", index)
        operands = a.to(there), b.to(there)
        result = run(instance, case, operands, None if bias is None else bias.to(there))
        assert result.device == there
        assert torch.cuda.current_device() == 0
        same_chip = torch.cuda.get_device_capability(index) == torch.cuda.get_device_capability(0)
        assert torch.equal(result.cpu(), expected) or not same_chip
