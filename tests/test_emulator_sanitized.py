"""The kernels under the address and undefined-behaviour sanitizers, in processes of their own:
every registered instance on a few small problems, and planted bugs that only they see."""

from __future__ import annotations

import re
import subprocess
from typing import Any

import numpy as np
import pytest
import torch
from cases import ConvCase
from conv_runner import hash_of, random_operands
from emulated import (
    CAPABILITY,
    SM_COUNT,
    Epilogue,
    Instance,
    emulation,
    instances,
    operand_bytes,
)
from emulated_inception import inception_args, inception_instances
from emulated_norm import RESULTS, NormProblem, norm_call
from emulated_pool import PoolInstance, pool_instances, problem_arguments
from emulated_pool import operand_bytes as pool_bytes
from emulator import build
from emulator.sanitized_run import run_jobs
from test_emulated_conv import applicable_cases
from test_emulated_epilogue import chosen_cases as epilogue_cases
from test_emulated_inception import SIZES, of_size
from test_emulated_inception import operands_of as inception_operands
from test_emulated_norm import operands_of
from test_emulated_pool import checks_of
from test_emulator import PLANTED, planted_input

from fastconv.pool_checks import expected

# scenario of tests/emulator/planted/undefined.cu: the report
UNDEFINED = {
    "local_array_out_of_bounds": r"index 4 out of bounds for type 'float \[4\]'",
    "row_overrun": r"index \d+ out of bounds for type 'float \[33\]'",
    "signed_overflow": "signed integer overflow: 65536 \\* 65536 cannot be represented",
    "shift_too_far": "shift exponent 32 is too large",
    "shared_overrun": "AddressSanitizer: use-after-poison",
}
# Of the others, some that the sanitizers see as well.
ALSO_SEEN = {
    "global_read_behind": "AddressSanitizer: SEGV",
    "global_write_behind": "AddressSanitizer: SEGV",
    "deadlock": "deadlock: 16 threads wait",
}


def planted_job(name: str, bug: bool, seed: int = 1) -> dict[str, Any]:
    planted = PLANTED.get(name)
    x = np.arange(1, 129, dtype=np.float32) if planted is None else planted_input(planted)
    return {
        "name": f"{name} {bug}",
        "call": "run",
        "args": [name, bug, x, x.size],
        "options": {"seed": seed},
    }


def test_every_sanitized_scenario_has_its_test() -> None:
    assert set(emulation("planted").sanitized_scenarios()) == set(UNDEFINED)


def test_correct_twins_are_clean() -> None:
    module = build.build("planted", "sanitized")
    slow = {"dynamic_shared_too_large", "too_many_threads", "grid_y_too_large"}
    names = [*UNDEFINED, *(name for name in PLANTED if name not in slow)]
    outcome = run_jobs(module, [planted_job(name, False) for name in names])
    assert outcome.stdout.endswith("all done\n"), outcome.stdout[-200:] + outcome.stderr[:4000]


@pytest.mark.parametrize("name", [*UNDEFINED, *ALSO_SEEN])
def test_planted_bug_is_reported(name: str) -> None:
    module = build.build("planted", "sanitized")
    outcome = run_jobs(module, [planted_job(name, True)])
    assert outcome.returncode != 0
    expected = {**UNDEFINED, **ALSO_SEEN}[name]
    assert re.search(expected, outcome.stderr), outcome.stderr[:4000]


CASES_PER_INSTANCE = 1
LARGEST = 60_000  # multiply-adds: a second of the sanitized build for a dozen instances


def macs(case: ConvCase) -> int:
    return int(np.prod(case.output_size) * np.prod(case.weight_size[1:]))


def chosen_cases(instance: Instance) -> list[ConvCase]:
    """Small ones that differ from instance to instance."""
    cases = applicable_cases(instance)
    small = [c for c in cases if macs(c) <= LARGEST] or sorted(cases, key=macs)[:1]
    return sorted(small, key=lambda c: hash_of(c.id + instance.name))[:CASES_PER_INSTANCE]


def conv_job(
    instance: Instance, case: ConvCase, seed: int, epilogue: Epilogue | None = None
) -> dict[str, Any]:
    """With an epilogue, of a residual of ones."""
    a, b, bias = random_operands(case, instance.direction, instance.dtype)
    options: dict[str, Any] = {"seed": seed}
    if epilogue is not None:
        residual = torch.ones(case.output_size, dtype=instance.dtype)
        options["epilogue"] = epilogue.arguments
        options["residual"] = operand_bytes(residual, instance)
    args = [
        instance.algorithm,
        instance.name,
        [case.input_size, case.weight_size, *case.params],
        operand_bytes(a, instance),
        operand_bytes(b, instance),
        None if bias is None else operand_bytes(bias, instance),
        [CAPABILITY, SM_COUNT],
    ]
    return {
        "name": f"{instance} {case.id} {epilogue}",
        "call": "run_conv",
        "args": args,
        "options": options,
    }


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", sorted({i.algorithm for i in instances()}))
def test_instances_are_clean(algorithm: str) -> None:
    module = build.build("kernels", "sanitized")
    mine = [instance for instance in instances() if instance.algorithm == algorithm]
    jobs = [
        conv_job(instance, case, seed)
        for instance in mine
        for seed, case in enumerate(chosen_cases(instance), start=1)
    ]
    assert {job["args"][1] for job in jobs} == {instance.name for instance in mine}
    outcome = run_jobs(module, jobs)
    last = outcome.stdout.splitlines()[-1] if outcome.stdout else "nothing ran"
    assert last == "all done", f"{last}\n{outcome.stderr[:6000]}"


@pytest.mark.slow
def test_statistics_are_clean() -> None:
    """Of every instance that takes them along."""
    module = build.build("kernels", "sanitized")
    taking = [i for i in instances() if i.takes_stats]
    jobs = [
        conv_job(instance, min(epilogue_cases(instance), key=macs), seed)
        for seed, instance in enumerate(taking, start=1)
    ]
    for job in jobs:
        job["options"]["stats"] = True
    outcome = run_jobs(module, jobs)
    last = outcome.stdout.splitlines()[-1] if outcome.stdout else "nothing ran"
    assert last == "all done", f"{last}\n{outcome.stderr[:6000]}"


@pytest.mark.slow
def test_epilogues_are_clean() -> None:
    """Of every instance of fprop: a residual, into a slice."""
    module = build.build("kernels", "sanitized")
    jobs = []
    for i, instance in enumerate(i for i in instances() if i.direction == "fprop"):
        case = min(epilogue_cases(instance), key=macs)
        way = ("before", "after")[i % 2]
        epilogue = Epilogue("silu", 0.0, way, case.weight_size[0] + 3 + 5 * (i % 2), 3)
        jobs.append(conv_job(instance, case, 1 + i % 3, epilogue))
    assert_clean(run_jobs(module, jobs))


@pytest.mark.slow
def test_normalisation_passes_are_clean() -> None:
    module = build.build("kernels", "sanitized")
    jobs = []
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        for shape in ((2, 16, 9), (2, 3, 41)):
            for i, pass_ in enumerate((*RESULTS, *RESULTS)):
                p = NormProblem(*shape, i >= len(RESULTS), dtype)
                operands = operands_of(p, pass_ in ("fprop", "dgrad"))
                names = {"stats": ("y",), "fprop": ("y", "residual", "mean", "rstd")}
                operands = {n: operands[n] for n in names.get(pass_, operands)}
                args, options = norm_call(
                    pass_, p, operands, Epilogue("relu", residual="after"), RESULTS[pass_]
                )
                jobs.append(
                    {
                        "name": f"{pass_} {p}",
                        "call": "run_norm",
                        "args": args,
                        "options": {**options, "seed": 1 + i % 3},
                    }
                )
    assert_clean(run_jobs(module, jobs))


@pytest.mark.slow
def test_inception_instances_are_clean() -> None:
    module = build.build("kernels", "sanitized")
    jobs = []
    for i, instance in enumerate(inception_instances()):
        size = next(SIZES[name] for name in ("images", "odd") if name in of_size(instance))
        args = inception_args(instance, size, inception_operands(size, instance.dtype))
        options = {"activation": 1 + i % 4, "slope": 0.25, "seed": 1 + i % 3}
        job = {"name": str(instance), "call": "run_inception", "args": args, "options": options}
        jobs.append(job)
    assert_clean(run_jobs(module, jobs))


def assert_clean(outcome: subprocess.CompletedProcess[str]) -> None:
    last = outcome.stdout.splitlines()[-1] if outcome.stdout else "nothing ran"
    assert last == "all done", f"{last}\n{outcome.stderr[:6000]}"


def pool_job(instance: PoolInstance, seed: int) -> dict[str, Any]:
    """On one of the smallest cases that it takes, which differs from instance to instance."""
    checks = sorted(checks_of(instance), key=lambda c: np.prod(c.case.input_size) * c.case.taps)
    check = checks[hash_of(instance.name) % max(1, len(checks) // 2)]
    options = check.options
    args = [
        instance.name,
        problem_arguments(check.case),
        [options.index, options.include_pad, options.divisor, options.power, options.rescale],
        {n: pool_bytes(t, instance.layout) for n, t in expected(check).operands.items()},
        [CAPABILITY, SM_COUNT],
    ]
    return {
        "name": f"{instance} {check.case.id}",
        "call": "run_pool",
        "args": args,
        "options": {"seed": seed},
    }


@pytest.mark.slow
def test_pooling_instances_are_clean() -> None:
    module = build.build("kernels", "sanitized")
    jobs = [pool_job(instance, 1 + i % 3) for i, instance in enumerate(pool_instances())]
    assert {job["args"][0] for job in jobs} == {instance.name for instance in pool_instances()}
    outcome = run_jobs(module, jobs)
    last = outcome.stdout.splitlines()[-1] if outcome.stdout else "nothing ran"
    assert last == "all done", f"{last}\n{outcome.stderr[:6000]}"
