"""What surrounds a convolution kernel on a device: graphs, streams, no waiting, the current
device."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from conv_runner import random_operands
from gpu_runner import Instance, first_cases, on_device, one_of_each, run
from stream_checks import check_devices, check_graph, check_returns_at_once, check_side_stream
from torch import Tensor

pytestmark = pytest.mark.gpu
INSTANCES = one_of_each()


def problem(instance: Instance) -> tuple[Callable[..., Tensor], list[Tensor | None], str]:
    """(the call, operands and bias on the device, a note) of the largest of a few problems that
    apply."""
    case = max(first_cases(instance, 5), key=lambda c: c.gemm_k(instance.direction))
    operands = random_operands(case, instance.direction, instance.dtype)

    def call(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
        return run(instance, case, (a, b), bias)

    moved = [None if t is None else on_device(t, instance) for t in operands]
    return call, moved, f"{instance} {case.id}"


@pytest.mark.parametrize("instance", INSTANCES, ids=str)
def test_graph(instance: Instance) -> None:
    call, (a, b, bias), note = problem(instance)
    check_graph(call, (a, b, bias), (a.flip(0) * 2, b.flip(0) * 2, bias), note)


@pytest.mark.parametrize("instance", INSTANCES, ids=str)
def test_side_stream(instance: Instance) -> None:
    check_side_stream(*problem(instance))


@pytest.mark.parametrize("instance", INSTANCES, ids=str)
def test_does_not_wait(instance: Instance) -> None:
    check_returns_at_once(*problem(instance))


@pytest.mark.parametrize("instance", INSTANCES, ids=str)
def test_runs_on_the_tensors_device(instance: Instance) -> None:
    call, operands, _ = problem(instance)
    check_devices(call, operands)
