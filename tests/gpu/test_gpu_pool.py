"""Every CUDA pooling kernel instance over the shared problem list, on the device: against the
reference, with poisoned memory, and inside its own memory."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from conv_runner import assert_dense_as
from gpu_runner import DEVICE, Canaries, device_ops, embedded, marks
from pool_check import as_integers
from pool_gpu_runner import (
    few_checks,
    one_of_each_pool,
    operands_of,
    ordinary_check,
    pool_checks,
    pool_instances,
    run_pool_op,
)
from stream_checks import check_devices, check_graph, check_returns_at_once, check_side_stream
from torch import Tensor

from fastconv.pool_checks import OPTIONS, PoolCheck, difference, expected
from fastconv.selftest_pool import PoolInstance

pytestmark = marks()
INSTANCES = pool_instances()
SURROUNDED = one_of_each_pool()
by_name = {"ids": lambda instance: instance.kernel}
ODD_OFFSET = 3  # elements: no vector access of two or more elements is aligned there
EVEN_OFFSET = 512  # elements: as aligned as an allocation is


def judge(
    found: tuple[Tensor, Tensor | None], check: PoolCheck, instance: PoolInstance, how: str
) -> None:
    result, index = found
    index = None if index is None else index.cpu()
    wrong, _ = difference(result.cpu(), index, expected(check))
    assert not wrong, f"{instance.kernel} {check.case.id} {check.options} {how}: {wrong}"


def same_bits(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    if a.is_floating_point():
        a, b = as_integers(a), as_integers(b)
    return torch.equal(a, b)


def test_there_are_instances() -> None:
    """Of every pass and kind: an empty list would make every other test here pass."""
    assert {(i.pass_, i.kind) for i in INSTANCES} == set(OPTIONS)
    assert all(len(pool_checks(instance)) >= 2 for instance in INSTANCES)


@pytest.mark.parametrize("instance", INSTANCES, **by_name)
def test_against_the_reference(instance: PoolInstance) -> None:
    """Within tolerance of float64 (maxima, samples and what is moved to the bit), dense in the
    layout asked for, the same bits when run again."""
    for check in pool_checks(instance):
        operands = operands_of(instance, check)
        found = run_pool_op(instance, check, operands)
        judge(found, check, instance, "")
        note = f"{instance.kernel} {check.case.id}"
        for t in found:
            if t is not None:
                assert_dense_as(t, instance.channels_last, note)
        again = run_pool_op(instance, check, operands)
        assert all(map(same_bits, found, again)), f"{note}: other bits the second time"


@pytest.mark.parametrize("instance", INSTANCES, **by_name)
def test_reads_stay_inside(instance: PoolInstance) -> None:
    """Operands in the middle of NaN, as aligned as they come and at an address that no vector
    access likes, where another instance may have to step in."""
    for check in few_checks(instance, 6):
        for offset in (EVEN_OFFSET, ODD_OFFSET):
            operands = {
                name: embedded(t, offset) for name, t in operands_of(instance, check).items()
            }
            found = run_pool_op(instance, check, operands)
            judge(found, check, instance, f"in NaN, {offset} elements in")


@pytest.mark.parametrize("instance", INSTANCES, **by_name)
def test_writes_stay_inside(instance: PoolInstance) -> None:
    """The blocks around the result and around the index keep every byte."""
    for check in few_checks(instance, 6):
        operands = operands_of(instance, check)
        sizes = {t.nbytes for t in run_pool_op(instance, check, operands) if t is not None}
        canaries = [Canaries(size, DEVICE) for size in sorted(sizes)]
        found = run_pool_op(instance, check, operands)
        judge(found, check, instance, "among canaries")
        for each in canaries:
            each.check(f"{instance.kernel} {check.case.id}")


# --- graphs, streams, devices ---------------------------------------------------------------------


def call_of(instance: PoolInstance) -> tuple[Callable[..., object], list[Tensor], str]:
    """(the call, its operands on the device, a note)."""
    check = ordinary_check(instance)
    operands = operands_of(instance, check)

    def call(*values: Tensor) -> tuple[Tensor, Tensor | None]:
        return run_pool_op(instance, check, dict(zip(operands, values, strict=True)))

    return call, list(operands.values()), f"{instance.kernel} {check.case.id}"


def other_values(t: Tensor) -> Tensor:
    """Places stay what they are; a seed becomes another."""
    if t.is_floating_point():
        return t.flip(0) * 2
    return t + 1 if t.dim() == 0 else t.clone()


@pytest.mark.gpu
@pytest.mark.parametrize("instance", SURROUNDED, **by_name)
def test_graph(instance: PoolInstance) -> None:
    call, operands, note = call_of(instance)
    check_graph(call, operands, [other_values(t) for t in operands], note)


@pytest.mark.gpu
@pytest.mark.parametrize("instance", SURROUNDED, **by_name)
def test_side_stream(instance: PoolInstance) -> None:
    check_side_stream(*call_of(instance))


@pytest.mark.gpu
@pytest.mark.parametrize("instance", SURROUNDED, **by_name)
def test_does_not_wait(instance: PoolInstance) -> None:
    check_returns_at_once(*call_of(instance))


@pytest.mark.gpu
@pytest.mark.parametrize("instance", SURROUNDED, **by_name)
def test_runs_on_the_tensors_device(instance: PoolInstance) -> None:
    call, operands, _ = call_of(instance)
    check_devices(call, operands)


def test_a_byte_cannot_tell_more_taps_apart() -> None:
    """Refused before anything is launched."""
    x = torch.zeros(1, 1, 32, 32, device=DEVICE)
    with pytest.raises(RuntimeError, match="a byte cannot tell 289 taps apart"):
        device_ops().max_pool_fprop(x, [17, 17], [1, 1], [0, 0], [1, 1], False, 1)
