"""Theoretical occupancy: how many of the threads that an SM can hold a kernel's resources allow.

After NVIDIA's CUDA Occupancy Calculator, for compute capabilities 8.0 and 9.0, which differ in
shared memory only.
"""

from __future__ import annotations

from dataclasses import dataclass

WARP = 32
MAX_WARPS = 64
MAX_BLOCKS = 32
REGISTERS = 65536
REGISTER_UNIT = 256  # of a warp
WARP_UNIT = 4  # one scheduler's share: warps that fit are a multiple of it
SHARED_UNIT = 128
SHARED_RESERVED = 1024  # of a block, by the runtime


@dataclass(frozen=True)
class SharedMemory:
    per_sm: int
    per_block: int


SHARED = {
    80: SharedMemory(164 * 1024, 163 * 1024),
    90: SharedMemory(228 * 1024, 227 * 1024),
}


def round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


def capability_of(arch: str) -> int:
    """sm_90a -> 90."""
    return int(arch.removeprefix("sm_").rstrip("af"))


def blocks_per_sm(capability: int, threads: int, registers: int, shared: int) -> int:
    """Blocks that an SM holds at once; 0 when not even one fits.

    Args:
        threads: of a block.
        registers: of a thread, as ptxas reports them.
        shared: bytes of a block, static and dynamic.
    """
    if not 1 <= threads <= 1024 or shared > SHARED[capability].per_block or registers > 255:
        return 0
    warps = round_up(threads, WARP) // WARP
    limits = [MAX_BLOCKS, MAX_WARPS // warps]
    if registers:
        warp_registers = round_up(registers * WARP, REGISTER_UNIT)
        fitting = REGISTERS // warp_registers // WARP_UNIT * WARP_UNIT
        limits.append(fitting // warps)
    limits.append(SHARED[capability].per_sm // round_up(shared + SHARED_RESERVED, SHARED_UNIT))
    return min(limits)


def occupancy(capability: int, threads: int, registers: int, shared: int) -> float:
    """The part of an SM's 64 warps that can be resident, 0 to 1."""
    warps = round_up(threads, WARP) // WARP
    return blocks_per_sm(capability, threads, registers, shared) * warps / MAX_WARPS
