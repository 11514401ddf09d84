"""A few small problems through each kernel, for compute-sanitizer to watch:

    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck \\
        python tests/gpu/sanitized.py --seconds 40

Next to no kernels of PyTorch's own run, nothing is poisoned (that would hide what initcheck looks
for), and what is computed is only checked for NaN. Stops by itself when the time is up, after as
many instances as it managed, spread over the algorithms.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[levels]) for levels in (1, 2)]

import torch  # noqa: E402
from conv_runner import hash_of, random_operands  # noqa: E402
from gpu_runner import DEVICE, Instance, first_cases, on_device, one_of_each, run  # noqa: E402
from pool_gpu_runner import few_checks, operands_of, pool_instances, run_pool_op  # noqa: E402

from fastconv.selftest_pool import PoolInstance  # noqa: E402

CASES_EACH = 2


def watched(instance: Instance | PoolInstance) -> int:
    """How many cases ran. Raises AssertionError on a NaN that does not belong there."""
    if isinstance(instance, PoolInstance):
        return watched_pool(instance)
    cases = sorted(first_cases(instance, 4), key=lambda case: case.gemm_k("wgrad"))[:CASES_EACH]
    for case in cases:
        a, b, bias = random_operands(case, instance.direction, instance.dtype)
        operands = on_device(a, instance), on_device(b, instance)
        result = run(instance, case, operands, None if bias is None else on_device(bias, instance))
        assert torch.isfinite(result.cpu()).all(), f"{instance} {case.id}: not finite"
    return len(cases)


def watched_pool(instance: PoolInstance) -> int:
    checks = [c for c in few_checks(instance, 8) if c.case.values != "special"][:CASES_EACH]
    for check in checks:
        result, _ = run_pool_op(instance, check, operands_of(instance, check))
        assert torch.isfinite(result.cpu()).all(), f"{instance.name} {check.case.id}: not finite"
    return len(checks)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=40.0)
    arguments = parser.parse_args()
    until = time.monotonic() + arguments.seconds
    todo = sorted((*one_of_each(), *pool_instances()), key=lambda each: hash_of(str(each)))
    ran = cases = 0
    for instance in todo:
        if time.monotonic() > until:
            break
        print(instance, flush=True)  # should it hang, the log ends with its name
        cases += watched(instance)
        ran += 1
    print(f"sanitized: {ran} of {len(todo)} instances, {cases} problems on {DEVICE}", flush=True)
    return 0 if ran else 1


if __name__ == "__main__":
    sys.exit(main())
