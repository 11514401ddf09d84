"""Every CUDA pooling kernel instance, run on the CPU by emulation, over the shared problem list."""

from __future__ import annotations

import pytest
import torch
from conv_runner import hash_of
from emulated_pool import PoolInstance, pool_instances, run_pool
from emulator.build_ops import build_ops
from pool_cases import checks

from fastconv import _C
from fastconv.pool_checks import OPTIONS, Expected, PoolCheck, difference, expected, placed, run_op

SEEDS = (1, 2, 3)
INSTANCES = pool_instances()
GROUPS = tuple(dict.fromkeys(instance.group for instance in INSTANCES))
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def checks_of(instance: PoolInstance) -> list[PoolCheck]:
    """Every case that it takes, each in one of the ways to call it."""
    return checks(
        *instance.group[:3],
        hash_of(instance.name) % 60,
        lambda check: not instance.refusal(check.case, check.options),
    )


def assert_as_expected(
    result: torch.Tensor, index: torch.Tensor | None, wanted: Expected, note: str
) -> None:
    wrong, _ = difference(result, index, wanted)
    assert not wrong, f"{note}: {wrong}"


def run_and_compare(instance: PoolInstance, check: PoolCheck, seed: int, **how) -> None:
    wanted = expected(check)
    launches: list = []
    result, index = run_pool(
        instance, check.case, check.options, wanted.operands, seed, statistics=launches, **how
    )
    note = f"{instance} {check.case.id} {check.options} {seed=} {how or ''}"
    assert len(launches) == 1, f"{note}: {len(launches)} launches"
    assert_as_expected(result, index, wanted, note)


def test_there_are_instances() -> None:
    """Of every pass and kind, for each dtype and layout: an empty list would pass what follows."""
    assert set(GROUPS) == {
        (*what, dtype, layout) for what in OPTIONS for dtype in DTYPES for layout in LAYOUTS
    }
    assert len({instance.name for instance in INSTANCES}) == len(INSTANCES)


LAYOUTS = ("NCHW", "NHWC")


@pytest.mark.parametrize("instance", INSTANCES, ids=str)
def test_instance(instance: PoolInstance) -> None:
    """Within tolerance of float64, maxima and samples bit for bit; every case that it takes, in one
    of three orders of the threads, each of which runs; its operands off their alignment as well."""
    mine = checks_of(instance)
    assert len(mine) >= len(SEEDS), f"{instance} takes {[c.case.id for c in mine]} only"
    for number, check in enumerate(mine):
        run_and_compare(instance, check, SEEDS[(number + hash_of(instance.name)) % len(SEEDS)])
    element = instance.dtype.itemsize
    for check in mine[:: max(1, len(mine) // 2)]:
        if not instance.refusal(check.case, check.options, 256 + element):
            run_and_compare(instance, check, 1, placement="offset")


def first_that_takes(
    group: tuple[str, str, torch.dtype, str], check: PoolCheck, address: int
) -> PoolInstance | None:
    for instance in INSTANCES:
        if instance.group == group and not instance.refusal(check.case, check.options, address):
            return instance
    return None


@pytest.mark.parametrize("group", GROUPS, ids=str)
def test_first_that_applies_is_chosen_and_the_last_takes_everything(group) -> None:
    last = [instance for instance in INSTANCES if instance.group == group][-1]
    chosen = set()
    for turn in range(len(OPTIONS[group[:2]])):
        for check in checks(*group[:3], turn):
            for address in (256, 256 + group[2].itemsize):
                assert not last.refusal(check.case, check.options, address), str(check)
                first = first_that_takes(group, check, address)
                assert last.choice(check.case, check.options, address) == first.name
                chosen.add(first.name)
    # No instance is there for nothing.
    assert chosen == {instance.name for instance in INSTANCES if instance.group == group}


@pytest.mark.parametrize("kind", ["max", "sample"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_is_expected_is_what_the_cpu_computes(dtype: torch.dtype, kind: str) -> None:
    """To the bit: so the backends agree to the bit."""
    for turn in range(len(OPTIONS["forward", kind])):
        for check in checks("forward", kind, dtype, turn):
            wanted = expected(check)
            result, index = run_op(torch.ops.fastconv, check, wanted.operands, False)
            assert_as_expected(result, index, wanted, f"CPU {check}")


@pytest.mark.cuda_kernels
def test_instances_are_those_of_the_package() -> None:
    packaged = [name for name, *_ in _C.cuda_pool_instances()]
    assert [instance.name for instance in INSTANCES] == packaged


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("what", OPTIONS, ids="_".join)
def test_ops_run_the_instances(what: tuple[str, str], channels_last: bool) -> None:
    """From tensors of either format, aligned and not, through the package's own op layer."""
    torch.ops.load_library(str(build_ops()))
    for number, check in enumerate(checks(*what, torch.float32, int(channels_last))):
        if channels_last and check.case.rank == 1:
            continue
        wanted = expected(check)
        operands = {
            name: placed(t, channels_last, offset=number % 2) for name, t in wanted.operands.items()
        }
        result, index = run_op(torch.ops.fastconv_emulated, check, operands, channels_last)
        assert_as_expected(result, index, wanted, f"{check} {channels_last=}")
        first = next(iter(operands.values()))
        if channels_last and not first.is_contiguous():  # of one pixel it says nothing
            memory_format = torch.channels_last if result.dim() == 4 else torch.channels_last_3d
            assert result.is_contiguous(memory_format=memory_format), str(check)


def test_ops_name_what_no_kernel_takes() -> None:
    torch.ops.load_library(str(build_ops()))
    ops = torch.ops.fastconv_emulated
    x, index = torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1, dtype=torch.int64)
    with pytest.raises(
        RuntimeError, match=r"no CUDA kernel for N=1 C=1 input=\[1, 1\] .*2147483648"
    ):
        ops.max_pool_at(x, index, [1, 1], [2**31, 1], [0, 0], [1, 1])
