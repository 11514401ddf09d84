"""What the launchers ask for on problems of usual size, planned by the emulation, not run: threads
per block and dynamic shared memory, which no object file has."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from cases import ConvCase, conv_case
from emulated import instances, planned_launches
from emulated_inception import InceptionSize, inception_instances, inception_launches
from emulated_norm import RESULTS, NormProblem, norm_launches
from emulated_pool import PlannedPool, planned_pool_launches, pool_instances

from fastconv import _C

from . import occupancy
from .toolchain import readable


@dataclass(frozen=True)
class Launch:
    """One way that a kernel is launched."""

    threads: int
    dynamic_shared: int


def _square(name: str, n: int, c: int, k: int, h: int, r: int, stride: int = 1, groups: int = 1):
    size = (n, c, h, h), (k, c // groups, r, r)
    return conv_case(name, *size, stride, r // 2, groups=groups)


# Layers of usual networks, and what reaches the fallbacks: odd channel counts, a multiplier.
TYPICAL: tuple[ConvCase, ...] = (
    *(
        _square(f"{r}x{r}_s{stride}_c{c}", 32, c, c, h, r, stride)
        for c, h in ((64, 56), (256, 14), (512, 7))
        for r in (1, 3, 5)
        for stride in (1, 2)
    ),
    _square("5x5_narrow", 32, 32, 32, 28, 5),
    _square("stem", 32, 3, 64, 224, 7, 2),
    _square("odd_channels", 32, 37, 61, 28, 3),
    _square("odd_channels_s2", 32, 37, 61, 28, 3, 2),
    _square("groups32", 32, 128, 128, 56, 3, groups=32),
    _square("groups2", 32, 96, 256, 27, 5, groups=2),
    *(
        _square(f"depthwise{r}_s{stride}_c{c}", 32, c, c, h, r, stride, c)
        for c, h in ((96, 112), (144, 56), (960, 7), (147, 28))
        for r in (3, 4, 5, 7)
        for stride in (1, 2)
    ),
    _square("multiplier2", 32, 64, 128, 28, 3, groups=64),
    conv_case("dilated", (8, 256, 64, 64), (256, 256, 3, 3), 1, 2, 2),
    conv_case("1d", (16, 256, 1000), (256, 256, 9), padding=4),
    conv_case("1d_depthwise", (16, 256, 1000), (256, 1, 31), padding=15, groups=256),
    conv_case("3d", (4, 64, 16, 28, 28), (64, 64, 3, 3, 3), padding=1),
    conv_case("3d_depthwise", (4, 64, 16, 28, 28), (64, 1, 3, 3, 3), padding=1, groups=64),
)


# The windows of usual networks, and what reaches the fallbacks.
TYPICAL_POOLS = (
    PlannedPool(32, 64, 112, 3, 2, 1),
    PlannedPool(32, 64, 112, 2, 2),
    PlannedPool(32, 192, 28, 3, 1, 1),
    PlannedPool(32, 768, 17, 7, 1, 3),
    PlannedPool(32, 2048, 7, 7, 7),
    PlannedPool(32, 960, 28, 28, 28),
    PlannedPool(32, 37, 29, 3, 2, 1),
    PlannedPool(32, 37, 29, 5, 3, 2),
)

# Blocks of the normalisation passes are all alike: a few sizes around a vector reach every kernel.
TYPICAL_NORMS = tuple(
    NormProblem(4, k, 49, channels_last, dtype)
    for k in (32, 37)
    for channels_last in (False, True)
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16)
)

# Vectors everywhere, and nowhere.
TYPICAL_INCEPTIONS = (
    InceptionSize(1, 480, 14, 14, 192, 96, 208, 16, 48, 64),
    InceptionSize(1, 37, 14, 14, 19, 13, 41, 7, 21, 5),
)

# Where the operands lie (aligned to 16 bytes, to one element), and the device. Alignment picks a
# kernel or its template arguments, the device how much shared memory.
WAYS = (("start", 80), ("start", 90), ("offset", 90))


def typical_launches() -> dict[str, set[Launch]]:
    """Kernel -> how the typical problems launch it."""
    assert {capability for _, capability in WAYS} == occupancy.SHARED.keys()
    found: dict[str, set[Launch]] = {}
    for instance in instances():
        for case in TYPICAL:
            if instance.refusal(case):
                continue
            only = _C.cuda_capability(instance.algorithm, instance.name)
            for placement, capability in WAYS:
                if only not in (0, capability):
                    continue
                way = (placement, capability, instance.takes_stats)
                for record in planned_launches(instance, case, *way):
                    launch = Launch(record.threads, record.dynamic_bytes)
                    found.setdefault(readable(record.kernel), set()).add(launch)
    for instance in pool_instances():
        for pool in TYPICAL_POOLS:
            for placement, capability in WAYS:
                for record in planned_pool_launches(instance, pool, placement, capability):
                    launch = Launch(record.threads, record.dynamic_bytes)
                    found.setdefault(readable(record.kernel), set()).add(launch)
    for norm in TYPICAL_NORMS:
        for pass_ in RESULTS:
            for placement in ("start", "offset"):
                for record in norm_launches(pass_, norm, placement):
                    launch = Launch(record.threads, record.dynamic_bytes)
                    found.setdefault(readable(record.kernel), set()).add(launch)
    for inception in inception_instances():
        for size in TYPICAL_INCEPTIONS:
            for record in inception_launches(inception, size):
                launch = Launch(record.threads, record.dynamic_bytes)
                found.setdefault(readable(record.kernel), set()).add(launch)
    return found
