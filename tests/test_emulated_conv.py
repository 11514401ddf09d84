"""Every CUDA kernel instance, run on the CPU by emulation, over the shared problem list."""

from __future__ import annotations

import pytest
import torch
from cases import CONV_CASES, DEPTHWISE_CASES, HALO_CASES, ROWS_CASES, ConvCase
from conv_runner import (
    assert_close,
    hash_of,
    integer_operands,
    integer_reference,
    random_operands,
    random_reference,
)
from emulated import Instance, instances, run_instance

from fastconv import _C

SEEDS = (1, 2, 3)
CASES = tuple(case for case in CONV_CASES if "empty" not in case.tags)
INSTANCES = instances()


def applicable_cases(instance: Instance) -> list[ConvCase]:
    own = {"depthwise": DEPTHWISE_CASES, "halo": HALO_CASES, "rows": ROWS_CASES}
    cases = CASES + own.get(instance.algorithm, ())
    return [case for case in cases if not instance.refusal(case)]


@pytest.mark.cuda_kernels
def test_instances_are_those_of_the_package() -> None:
    """The number that the README gives is of the package's."""
    packaged = [f"{algorithm}/{name}" for algorithm, name, *_ in _C.cuda_instances()]
    assert [str(instance) for instance in INSTANCES] == packaged


@pytest.mark.parametrize("instance", INSTANCES, ids=str)
def test_instance(instance: Instance) -> None:
    """Random values within tolerance on one half of the cases, small integers exactly on the other,
    in three orders of the threads."""
    cases = applicable_cases(instance)
    assert len(cases) >= 3, f"{instance} applies to {[c.id for c in cases]} only"
    args = (instance.algorithm, instance.name)
    direction, turn = instance.direction, hash_of(instance.name)
    inexact = instance.algorithm.startswith("winograd")
    for number, case in enumerate(cases, start=turn):
        # Six cases in a row: each seed with either kind of values.
        seed = SEEDS[number % len(SEEDS)]
        if inexact or number % 2 == 0:
            a, b, bias = random_operands(case, direction, instance.dtype)
            expected, magnitude = random_reference(case, direction, instance.dtype)
            result = run_instance(*args, case, direction, (a, b), bias, seed)
            algo = instance.arithmetic
            assert_close(result, expected, magnitude, algo, case, direction, f"{instance} {seed=}")
        else:
            a, b, bias = integer_operands(case, direction)
            a, b = a.to(instance.dtype), b.to(instance.dtype)
            bias = None if bias is None else bias.to(instance.dtype)
            result = run_instance(*args, case, direction, (a, b), bias, seed)
            exact = integer_reference(case, direction).to(instance.dtype)
            assert torch.equal(result, exact), f"{instance} {case.id}: integers are not exact"
