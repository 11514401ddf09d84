"""The occupancy calculator against values of NVIDIA's own documents and tables."""

from __future__ import annotations

import pytest

from .occupancy import blocks_per_sm, capability_of, occupancy

# (threads, registers, shared) -> resident part, the same for 8.0 and 9.0
KNOWN = [
    # CUDA C++ Best Practices Guide, "Calculating Occupancy": 65,536 registers, 64 warps.
    ((128, 37, 0), 0.75),  # 12 blocks
    ((320, 37, 0), 0.625),  # 4 blocks of 320 threads
    # The calculator's curve of registers at 256 threads.
    ((256, 32, 0), 1.0),
    ((256, 33, 0), 0.75),
    ((256, 40, 0), 0.75),
    ((256, 41, 0), 0.625),
    ((256, 48, 0), 0.625),
    ((256, 64, 0), 0.5),
    ((256, 65, 0), 0.375),
    ((256, 80, 0), 0.375),
    ((256, 128, 0), 0.25),
    ((256, 255, 0), 0.125),
    # Its curve of block sizes at 32 registers: at most 32 blocks.
    ((32, 32, 0), 0.5),
    ((64, 32, 0), 1.0),
    ((96, 32, 0), 0.984375),  # 21 blocks of 3 warps
    ((1024, 32, 0), 1.0),
    ((1024, 64, 0), 0.5),
    ((768, 32, 0), 0.75),
    # Four schedulers: 16 warps' registers hold three blocks of five warps, not 17 / 5.
    ((160, 120, 0), 0.234375),
]


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(("kernel", "part"), KNOWN, ids=str)
def test_known_values(capability, kernel, part):
    assert occupancy(capability, *kernel) == part


@pytest.mark.parametrize(
    ("capability", "shared", "blocks"),
    [
        (80, 163 * 1024, 1),  # all that a block may have
        (80, 163 * 1024 + 1, 0),
        (80, 81 * 1024, 2),  # 1 KiB of each block is the runtime's
        (80, 82 * 1024, 1),
        (80, 48 * 1024, 3),
        (90, 227 * 1024, 1),
        (90, 227 * 1024 + 1, 0),
        (90, 113 * 1024, 2),
        (90, 114 * 1024, 1),
        (90, 48 * 1024, 4),
    ],
)
def test_shared_memory_limits(capability, shared, blocks):
    assert blocks_per_sm(capability, 256, 32, shared) == blocks


def test_what_cannot_be_launched():
    assert blocks_per_sm(90, 1025, 32, 0) == 0
    assert blocks_per_sm(90, 1024, 65, 0) == 0  # 72 x 1024 registers
    assert blocks_per_sm(90, 1024, 64, 0) == 1
    assert blocks_per_sm(90, 32, 256, 0) == 0


def test_architecture_names():
    assert capability_of("sm_80") == 80
    assert capability_of("sm_90a") == 90
