"""The self-test of pooling kernels: that it reaches each of them, and what `auto` makes of it."""

from __future__ import annotations

import dataclasses
import warnings

import pytest
import torch
from emulated_pool import PoolInstance, pool_instances
from pretend_gpu import pretend_gpu, take_down

import fastconv
from fastconv import pool_checks, select, selftest, selftest_pool, trust
from fastconv.ops import pool_kernels
from fastconv.pool_checks import OPTIONS, ways_of

CPU = torch.device("cpu")  # where the pretended device computes


def problems_of(instance: PoolInstance) -> int:
    """On how many of the self-test's problems the ops would run it."""
    found = 0
    for case in selftest_pool.PROBLEMS:
        if instance.layout == "NHWC" and case.rank == 1:
            continue
        ways = ways_of(instance.pass_, instance.kind, case)
        found += any(instance.choice(case, options) == instance.name for options in ways)
    return found


def test_every_instance_has_its_problems() -> None:
    """One without would never be trusted, nor its family."""
    counts = {instance.name: problems_of(instance) for instance in pool_instances()}
    assert min(counts.values()) >= 2, {name: n for name, n in counts.items() if n < 2}


def test_problems_leave_tails_and_hold_odd_values() -> None:
    assert {case.rank for case in selftest_pool.PROBLEMS} == {1, 2, 3}
    values = {case.values for case in selftest_pool.PROBLEMS}
    assert values == set(pool_checks.VALUES)
    outputs = [torch.Size(case.output_size).numel() for case in selftest_pool.PROBLEMS]
    assert max(outputs) > 4096 and all(n % 256 for n in outputs[1::2] if n > 256)


# --- on a pretended GPU -------------------------------------------------------------------------


@pytest.fixture
def pretended(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pretend_gpu(monkeypatch):
        small = tuple(
            dataclasses.replace(case, input_size=(1, *case.input_size[1:]))
            for case in selftest_pool.PROBLEMS
        )
        monkeypatch.setattr(selftest_pool, "PROBLEMS", small)
        yield
    monkeypatch.undo()
    select.forget()
    trust.reload()


def wanted() -> list[str]:
    """The instances that a float32 average and its gradient need."""
    return [
        i.name for i in selftest_pool.instances() if i.dtype == torch.float32 and i.kind == "sum"
    ]


@pytest.mark.cuda_kernels
def test_instances_pass_on_a_sound_device(pretended) -> None:
    outcomes = list(selftest.run(CPU, "pool/fprop_sum_f32", limit=1))
    assert len(outcomes) >= 2 and all(o.passed for o in outcomes), outcomes


@pytest.mark.cuda_kernels
@pytest.mark.parametrize("fault", ["value", "index", "unstable"])
def test_a_wrong_result_is_seen(pretended, monkeypatch, fault) -> None:
    launch, calls = selftest_pool.launch, []

    def wrong(*args):
        result, index = launch(*args)
        calls.append(1)
        if fault == "value":
            result.flatten()[-1] = 7
        elif fault == "index" and index is not None:
            index.flatten()[-1] += 1
        elif fault == "unstable" and len(calls) % 2 == 0:
            result.flatten()[-1] = 7
        return result, index

    monkeypatch.setattr(selftest_pool, "launch", wrong)
    name = "pool/" + last_of("forward", "max").kernel
    (outcome,) = selftest.run(CPU, name)
    says = {"value": "1 of", "index": "1 of", "unstable": "two runs differ"}[fault]
    assert says in outcome.error and trust.error_of("cuda:0", name) == outcome.error


def last_of(pass_: str, kind: str) -> selftest_pool.PoolInstance:
    """The instance that takes everything."""
    return [
        i
        for i in selftest_pool.instances()
        if (i.pass_, i.kind, i.dtype, i.channels_last) == (pass_, kind, torch.float32, False)
    ][-1]


@pytest.mark.cuda_kernels
def test_auto_checks_what_it_takes_and_remembers(pretended, monkeypatch) -> None:
    x = torch.randn(1, 3, 9, 9)
    assert trust.error_of("cuda:0", wanted()[0]) is None
    ran = []
    run = pool_kernels.DIRECT["sum_pool_fprop"]
    monkeypatch.setitem(pool_kernels.DIRECT, "sum_pool_fprop", lambda *a: ran.append(1) or run(*a))
    y = fastconv.avg_pool2d(x, 3, 2, 1)
    torch.testing.assert_close(y, torch.nn.functional.avg_pool2d(x, 3, 2, 1))
    assert ran
    trust.reload()  # as another process finds it
    assert {trust.error_of("cuda:0", name) for name in wanted()} == {""}


@pytest.mark.cuda_kernels
def test_auto_leaves_a_failed_kernel_to_pytorch(pretended, monkeypatch) -> None:
    bad = wanted()[1]
    with monkeypatch.context() as patch:
        take_down(patch, [bad])
        x = torch.randn(1, 3, 9, 9)
        with pytest.warns(RuntimeWarning, match=f"CUDA kernel {bad} failed its check"):
            y = fastconv.avg_pool2d(x, 3, 2, 1)
    assert torch.equal(y, torch.nn.functional.avg_pool2d(x, 3, 2, 1))
    with warnings.catch_warnings():  # said once
        warnings.simplefilter("error")
        fastconv.avg_pool2d(x, 3, 2, 1)
    with pytest.raises(RuntimeError, match=f"{bad} failed its check on this device"):
        fastconv.avg_pool2d(x, 3, 2, 1, algo="direct")


def test_options_of_every_pass_and_kind() -> None:
    assert set(OPTIONS) == {(i.pass_, i.kind) for i in pool_instances()}
