"""The geometry of one pooling for Triton's launchers; mirrors csrc/common/pool_problem.h.

No Triton here: what a launch looks like can be asked without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

Ints = Sequence[int]
Triple = tuple[int, int, int]

_INT32 = 2**31 - 2**20  # leaves room for places beyond the last tile's end
THREADS_PER_WARP = 32
# Two programs for each multiprocessor of a large GPU; smaller problems get smaller tiles.
_PROGRAMS = 264


def _triple(values: Ints, fill: int) -> Triple:
    return (fill,) * (3 - len(values)) + tuple(int(v) for v in values)  # type: ignore[return-value]


def out_extent(
    extent: int, kernel: int, padding: int, stride: int, dilation: int, ceil_mode: bool
) -> int:
    """PyTorch's rule; `pool_out_extent`."""
    room = extent + 2 * padding - dilation * (kernel - 1) - 1 + (stride - 1 if ceil_mode else 0)
    if room < 0:
        return 0
    out = room // stride + 1
    if ceil_mode and (out - 1) * stride >= extent + padding:
        out -= 1
    return out


def _longest(extent: int, parts: int) -> int:
    """The longest part of an axis cut into `parts` adaptive ones; `pool_adaptive_kernel`."""
    if extent % parts == 0:
        return extent // parts
    return min(extent, -(-extent // parts) + 1)


@dataclass(frozen=True)
class PoolGeometry:
    """Extents and windows of one pooling, unused leading axes filled with 1.

    Adaptive axes of the op lists (stride 0, kernel = number of outputs) have stride 0 and the
    longest window as their kernel; those that divide evenly are plain windows.
    """

    N: int
    C: int
    ins: Triple  # D, H, W
    outs: Triple  # O, P, Q
    kernel: Triple
    stride: Triple
    padding: Triple
    dilation: Triple
    rank: int
    channels_last: bool

    @property
    def planes(self) -> int:
        return self.N if self.channels_last else self.N * self.C

    @property
    def inner(self) -> int:
        return self.C if self.channels_last else 1

    @property
    def border(self) -> bool:
        """Whether a window may reach beyond the input."""
        return any(
            s == 0 or p > 0 or (o - 1) * s + d * (k - 1) >= n
            for n, o, k, s, p, d in zip(
                self.ins,
                self.outs,
                self.kernel,
                self.stride,
                self.padding,
                self.dilation,
                strict=True,
            )
        )

    @property
    def reach(self) -> Triple:
        """The most outputs per axis whose windows hold one input."""
        most = [
            _longest(o, n) if s == 0 else min(d * (k - 1) // s + 1, o)
            for n, o, k, s, d in zip(
                self.ins, self.outs, self.kernel, self.stride, self.dilation, strict=True
            )
        ]
        return most[0], most[1], most[2]

    @property
    def wide(self) -> bool:
        """Whether an offset, or an adaptive window's start, needs 64 bits."""
        largest = self.planes * self.inner * max(prod(self.ins), prod(self.outs))
        starts = [
            (n + 1) * (o + 1)
            for n, o, s in zip(self.ins, self.outs, self.stride, strict=True)
            if s == 0
        ]
        return max(largest, *starts, 0) > _INT32

    def size(self, extents: Triple) -> list[int]:
        """(N, C, *extents), the used axes only."""
        return [self.N, self.C, *extents[3 - self.rank :]]


def make_geometry(
    op: str,
    input_size: Ints,
    kernel: Ints,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    channels_last: bool,
    *,
    ceil_mode: bool = False,
    output_size: Ints | None = None,
) -> PoolGeometry:
    """From the lists of an op; `output_size`, where it is known, decides about ceil_mode."""
    rank = len(kernel)
    lists = (kernel, stride, padding, dilation)
    if not 1 <= rank <= 3 or len(input_size) != rank + 2 or any(len(v) != rank for v in lists):
        raise ValueError(
            f"{op}: expected N, C and one entry per spatial axis (1 to 3) in every list"
        )
    ins = _triple(input_size[2:], 1)
    kernels, strides = list(_triple(kernel, 1)), list(_triple(stride, 1))
    paddings, dilations = _triple(padding, 0), _triple(dilation, 1)
    outs = [1, 1, 1]
    for axis in range(3):
        n, k, s = ins[axis], kernels[axis], strides[axis]
        p, d = paddings[axis], dilations[axis]
        fits = p == 0 and d == 1 and n > 0 if s == 0 else s > 0 and 0 <= 2 * p <= d * (k - 1) + 1
        if k < 1 or d < 1 or not fits:
            raise ValueError(
                f"{op}: input={n} kernel={k} stride={s} padding={p} dilation={d} do not fit"
                " together"
            )
        if s == 0:
            outs[axis] = k
            kernels[axis] = _longest(n, k)
            strides[axis] = n // k if n % k == 0 else 0
            continue
        wanted = (
            [out_extent(n, k, p, s, d, ceil_mode)]
            if output_size is None
            else [out_extent(n, k, p, s, d, mode) for mode in (False, True)]
        )
        given = None if output_size is None else _triple(output_size[2:], 1)[axis]
        outs[axis] = wanted[0] if given is None else given
        if outs[axis] < 1 or outs[axis] not in wanted:
            raise ValueError(f"{op}: input extent {n} gives {wanted}, not {given}")
    expected = [*input_size[:2], *outs[3 - rank :]]
    if output_size is not None and list(output_size) != expected:
        raise ValueError(f"{op}: the output is {list(output_size)}, not {expected}")
    return PoolGeometry(
        int(input_size[0]),
        int(input_size[1]),
        ins,
        (outs[0], outs[1], outs[2]),
        (kernels[0], kernels[1], kernels[2]),
        (strides[0], strides[1], strides[2]),
        paddings,
        dilations,
        rank,
        channels_last,
    )


def _power_of_two(n: int) -> int:
    """The smallest one that is not below n."""
    return 1 << (n - 1).bit_length()


def tile(rows: int, inner: int, itemsize: int) -> tuple[int, int, int]:
    """(BLOCK_M, BLOCK_C, warps): one 16-byte vector per thread, or two elements where none can be
    loaded; fewer warps for small problems, so that more multiprocessors have a program."""
    vector = 16 // itemsize if inner > 1 else 2
    for warps in (4, 2, 1):
        elements = THREADS_PER_WARP * warps * vector
        block_c = min(_power_of_two(inner), elements)
        block_m = elements // block_c
        if -(-rows // block_m) * -(-inner // block_c) >= _PROGRAMS:
            break
    return block_m, block_c, warps
