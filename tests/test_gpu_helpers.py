"""What the device tests are made of, where it needs no device."""

from __future__ import annotations

import sys
from math import prod
from pathlib import Path

import pytest
import torch

from fastconv import _C, selftest

sys.path.append(str(Path(__file__).resolve().parent / "gpu"))

import gpu_runner
import pool_gpu_runner


def test_every_instance_meets_problems_through_the_ops() -> None:
    """As the ops will be asked on a device: some problems reach each instance's layout."""
    few = {
        str(i): [c.id for c in gpu_runner.applicable_cases(i)]
        for i in gpu_runner.instances()
        if len(gpu_runner.applicable_cases(i)) < 3
    }
    assert not few
    assert len(gpu_runner.instances()) == len(_C.cuda_instances())
    assert {i.algo: i.tolerance for i in gpu_runner.instances()} == {
        i.name: i.tolerance for i in selftest.instances()
    }


def test_every_pooling_instance_is_what_an_op_chooses_for_some_problems() -> None:
    checks = {i.kernel: pool_gpu_runner.pool_checks(i) for i in pool_gpu_runner.pool_instances()}
    assert len(checks) == len(_C.cuda_pool_instances())
    assert not [name for name, found in checks.items() if len(found) < 2]
    named = {i.kernel: i for i in pool_gpu_runner.pool_instances()}
    vectors = [name for name in checks if "_vec" in name]
    assert not checks or vectors
    for name in vectors:  # by vectors of channels: rows of one extent and 1-D tensors have none
        assert named[name].channels_last and all(c.case.rank > 1 for c in checks[name])


def test_what_lies_around_an_embedded_operand_is_nan() -> None:
    t = torch.arange(24.0).view(1, 4, 2, 3).contiguous(memory_format=torch.channels_last)
    inside = gpu_runner.embedded(t, 3)
    assert torch.equal(inside, t) and inside.stride() == t.stride()
    assert inside.storage_offset() == 3
    store = inside.as_strided((30,), (1,), 0)
    assert store[:3].isnan().all() and store[-3:].isnan().all() and not store[3:-3].isnan().any()
    # A place outside of every plane, and a tap outside of every window.
    for dtype, beyond in ((torch.int64, -1), (torch.uint8, 255)):
        inside = gpu_runner.embedded(torch.arange(4).to(dtype), 2)
        around = [beyond] * 2
        assert inside.as_strided((8,), (1,), 0).tolist() == [*around, 0, 1, 2, 3, *around]


def test_canaries_sing() -> None:
    canaries = gpu_runner.Canaries(512, torch.device("cpu"))
    canaries.check("nothing happened")
    canaries.kept[2][511] = 0
    with pytest.raises(AssertionError, match="wrote 1 bytes into neighbour 2, first at byte 511"):
        canaries.check("note")


def test_poison_comes_and_goes() -> None:
    with gpu_runner.poisoned():
        assert torch.empty(9).isnan().all()
        assert (torch.empty(9, dtype=torch.uint8) == 255).all()
    assert not torch.are_deterministic_algorithms_enabled()


def test_large_tensors_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than 2^31 elements, and the ends are all that is not zero."""
    import test_gpu_large as large
    import test_gpu_pool_large as pool_large

    monkeypatch.setattr(large, "DEVICE", torch.device("cpu"))
    assert all(prod(case.input_size) > 2**31 for case in large.LARGE)
    assert prod(pool_large.SIZE) > 2**31
    t = large.spread((2, 3, 30, 5), torch.float32, "NHWC")
    assert t.is_contiguous(memory_format=torch.channels_last)
    assert t[0, :, :12].all() and t[1, :, -12:].all()
    assert not t[0, :, 12:].any() and not t[1, :, :-12].any()
