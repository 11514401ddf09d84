"""Every CUDA kernel instance over the shared problem list, on the device."""

from __future__ import annotations

import pytest
import torch
from conv_runner import (
    assert_close,
    assert_dense_as,
    integer_operands,
    integer_reference,
    random_operands,
    random_reference,
)
from gpu_runner import (
    DEVICE,
    Canaries,
    Instance,
    applicable_cases,
    embedded,
    first_cases,
    instances,
    marks,
    on_device,
    run,
)
from torch import Tensor

pytestmark = marks()
INSTANCES = instances()
ODD_OFFSET = 3  # elements: no vector access of two or more elements is aligned there


def operands_of(case, instance: Instance, integers: bool = False):
    make = integer_operands(case, instance.direction) if integers else None
    a, b, bias = make or random_operands(case, instance.direction, instance.dtype)
    moved = on_device(a, instance), on_device(b, instance)
    return moved, None if bias is None else on_device(bias, instance)


def judge(result: Tensor, case, instance: Instance, note: str) -> None:
    expected, magnitude = random_reference(case, instance.direction, instance.dtype)
    assert_close(
        result.cpu(),
        expected,
        magnitude,
        instance.tolerance,
        case,
        instance.direction,
        f"{instance} {note}",
    )


def test_there_are_instances() -> None:
    """An empty list would make every other test here pass."""
    assert INSTANCES


def test_fresh_memory_is_poisoned() -> None:
    assert torch.empty_strided((7,), (1,), device=DEVICE).isnan().all()
    assert (torch.empty(7, dtype=torch.uint8, device=DEVICE) == 255).all()


@pytest.mark.parametrize("instance", INSTANCES, ids=str)
def test_random_values(instance: Instance) -> None:
    """Within tolerance of float64, dense in the layout asked for, the same bits when run again."""
    cases = applicable_cases(instance)
    assert len(cases) >= 3, f"{instance} applies to {[c.id for c in cases]} only"
    for case in cases:
        operands, bias = operands_of(case, instance)
        result = run(instance, case, operands, bias)
        assert_dense_as(result, instance.channels_last, f"{instance} {case.id}")
        judge(result, case, instance, "")
        again = run(instance, case, operands, bias)
        assert torch.equal(result, again), f"{instance} {case.id}: other bits the second time"


@pytest.mark.parametrize(
    "instance", [i for i in INSTANCES if not i.algorithm.startswith("winograd")], ids=str
)
def test_integers_are_exact(instance: Instance) -> None:
    """A wrong index cannot hide in a tolerance."""
    for case in applicable_cases(instance):
        operands, bias = operands_of(case, instance, integers=True)
        result = run(instance, case, operands, bias).cpu()
        exact = integer_reference(case, instance.direction).to(instance.dtype)
        assert torch.equal(result, exact), f"{instance} {case.id}: integers are not exact"


@pytest.mark.parametrize("instance", INSTANCES, ids=str)
def test_reads_stay_inside(instance: Instance) -> None:
    """Operands in the middle of NaN, at an address that no vector access likes."""
    for case in first_cases(instance, 6):
        (a, b), bias = operands_of(case, instance)
        a, b = embedded(a, ODD_OFFSET), embedded(b, ODD_OFFSET)
        bias = None if bias is None else embedded(bias, ODD_OFFSET)
        judge(run(instance, case, (a, b), bias), case, instance, "in NaN, unaligned")


@pytest.mark.parametrize("instance", INSTANCES, ids=str)
def test_writes_stay_inside(instance: Instance) -> None:
    """The blocks around the result keep every byte."""
    for case in first_cases(instance, 6):
        operands, bias = operands_of(case, instance)
        size = run(instance, case, operands, bias).nbytes
        canaries = Canaries(size, DEVICE)
        result = run(instance, case, operands, bias)
        judge(result, case, instance, "among canaries")
        canaries.check(f"{instance} {case.id}")
