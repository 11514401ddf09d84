"""Philox 4x32-10 in Triton, to the bit that of csrc/common/philox.h.

Source: Salmon, Moraes, Dror and Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3" (SC 2011),
section 3.3.
"""

import triton
import triton.language as tl


@triton.jit
def philox(key, counter):
    """The first two words (uint32) of draw `counter` under the 64-bit `key`."""
    counter = counter.to(tl.uint64)
    c0 = counter.to(tl.uint32)
    c1 = (counter >> 32).to(tl.uint32)
    c2 = tl.full(c0.shape, 0, tl.uint32)
    c3 = tl.full(c0.shape, 0, tl.uint32)
    key = tl.full(c0.shape, 0, tl.uint64) + key.to(tl.uint64)
    k0 = key.to(tl.uint32)
    k1 = (key >> 32).to(tl.uint32)
    factor0 = tl.full(c0.shape, 0xD2511F53, tl.uint32)
    factor1 = tl.full(c0.shape, 0xCD9E8D57, tl.uint32)
    weyl0 = tl.full(c0.shape, 0x9E3779B9, tl.uint32)
    weyl1 = tl.full(c0.shape, 0xBB67AE85, tl.uint32)
    for _ in tl.static_range(10):
        n0 = tl.umulhi(factor1, c2) ^ c1 ^ k0
        n2 = tl.umulhi(factor0, c0) ^ c3 ^ k1
        c1 = factor1 * c2
        c3 = factor0 * c0
        c0 = n0
        c2 = n2
        k0 += weyl0
        k1 += weyl1
    return c0, c1


@triton.jit
def uniform(key, counter, ACC: tl.constexpr):
    """A number in [0, 1) of 24 random bits, or of 53 in float64; `pool_uniform`."""
    low, high = philox(key, counter)
    if ACC == tl.float64:
        bits = ((high.to(tl.uint64) << 32) | low.to(tl.uint64)) >> 11
        return bits.to(tl.int64).to(tl.float64) * (1.0 / 9007199254740992)
    else:
        return (low >> 8).to(tl.int32).to(tl.float32) * (1.0 / 16777216)
