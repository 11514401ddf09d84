"""The geometry of one convolution for Triton's launchers, and what a configuration may be.

No Triton here: what a launch looks like, and whether it is possible, can be asked without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd, prod
from typing import NamedTuple

Ints = Sequence[int]
Triple = tuple[int, int, int]
Five = tuple[int, int, int, int, int]
Moves = tuple[Ints, Ints, Ints, int]  # stride, padding, dilation, groups

INT32 = 2**31 - 2**20  # leaves room for places beyond the last tile's end
PRECISIONS = ("ieee", "tf32", "tf32x3")
_MAX_PER_AXIS = 2**15  # whose square is an int32
# A program that loops over fewer steps than this has no use for another program's share of them.
_SMALLEST_BLOCK = 16


class Config(NamedTuple):
    """One choice of a kernel's tiles.

    block_m x block_n results per program, block_k products each per step of its loop (fprop and
    dgrad: pixels x channels, over channels and taps; wgrad: output channels x input channels, over
    pixels). stages: tiles under way from memory. group_m: so many tiles of pixels follow each other
    before the next tile of channels. split: programs that share a wgrad's pixels. persistent: as
    many programs as the device holds, each with several tiles. descriptor: tiles by the tensor
    memory accelerator where the layout allows.
    """

    block_m: int
    block_n: int
    block_k: int
    warps: int
    stages: int
    group_m: int
    split: int = 1
    persistent: bool = False
    descriptor: bool = False


def triple(values: Ints, fill: int) -> Triple:
    return (fill,) * (3 - len(values)) + tuple(int(v) for v in values)  # type: ignore[return-value]


@dataclass(frozen=True)
class ConvGeometry:
    """One convolution, channels per group, unused leading axes filled with 1."""

    N: int
    C: int
    K: int
    groups: int
    ins: Triple  # D, H, W
    outs: Triple  # O, P, Q
    kernel: Triple  # T, R, S
    stride: Triple
    padding: Triple
    dilation: Triple
    rank: int

    @property
    def taps(self) -> int:
        return prod(self.kernel)

    @property
    def pixels(self) -> int:
        return self.N * prod(self.outs)

    @property
    def pointwise(self) -> bool:
        """Whether output (o, p, q) reads input (o, p, q) and nothing else: a matrix product."""
        return self.taps == 1 and self.stride == (1, 1, 1) and self.padding == (0, 0, 0)

    @property
    def classes(self) -> int:
        """How many kinds of input positions a dgrad tells apart: residues of the stride."""
        return prod(self.stride)

    @property
    def class_extents(self) -> Triple:
        """Inputs per axis of the largest class."""
        return tuple(-(-n // s) for n, s in zip(self.ins, self.stride, strict=True))  # type: ignore[return-value]

    @property
    def axis_classes(self) -> list[tuple[int, ...]]:
        """Per axis (stride, dilation, gcd, the inverse of dilation / gcd modulo stride / gcd, the
        distance of the taps that one class takes)."""
        classes = []
        for s, d in zip(self.stride, self.dilation, strict=True):
            common = gcd(s, d)
            hop = s // common
            classes.append((s, d, common, pow(d // common, -1, hop), hop))
        return classes

    @property
    def class_taps(self) -> int:
        """The most taps that a class takes."""
        hops = [c[4] for c in self.axis_classes]
        return prod(-(-r // hop) for r, hop in zip(self.kernel, hops, strict=True))

    def input_size(self) -> list[int]:
        return [self.N, self.C * self.groups, *self.ins[3 - self.rank :]]

    def output_size(self) -> list[int]:
        return [self.N, self.K * self.groups, *self.outs[3 - self.rank :]]

    def weight_size(self) -> list[int]:
        return [self.K * self.groups, self.C, *self.kernel[3 - self.rank :]]


def make_geometry(
    op: str,
    input_size: Ints,
    weight_size: Ints,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    groups: int,
) -> ConvGeometry:
    """From the sizes of the forward problem and the lists of an op.

    Raises ValueError, with the values, where they do not fit together.
    """
    rank = len(stride)
    lists = (padding, dilation, input_size[2:], weight_size[2:])
    if not 1 <= rank <= 3 or any(len(v) != rank for v in lists):
        raise ValueError(
            f"{op}: expected N, C and one entry per spatial axis (1 to 3) in every list, got"
            f" {list(input_size)} and {list(weight_size)}"
        )
    k, c = weight_size[:2]
    if groups < 1 or input_size[1] != c * groups or k % groups:
        raise ValueError(
            f"{op}: input {list(input_size)} and weight {list(weight_size)} do not fit"
            f" groups={groups}"
        )
    ins, kernels = triple(input_size[2:], 1), triple(weight_size[2:], 1)
    strides, dilations = triple(stride, 1), triple(dilation, 1)
    paddings = triple(padding, 0)
    if min(*strides, *dilations, *kernels) < 1 or min(paddings) < 0:
        raise ValueError(
            f"{op}: stride {list(stride)}, dilation {list(dilation)} and kernel"
            f" {list(weight_size[2:])} must be positive, padding {list(padding)} not negative"
        )
    outs = [
        (n + 2 * p - d * (r - 1) - 1) // s + 1
        for n, r, s, p, d in zip(ins, kernels, strides, paddings, dilations, strict=True)
    ]
    if min(outs) < 1:
        raise ValueError(f"{op}: an output of {outs} has no elements to compute")
    return ConvGeometry(
        int(input_size[0]), int(c), int(k) // groups, int(groups), ins, (outs[0], outs[1], outs[2]),
        kernels, strides, paddings, dilations, rank,
    )  # fmt: skip


def five(strides: Ints, sizes: Ints) -> Five:
    """Element strides (n, c, d, h, w) of a tensor; those of axes with one element are 0."""
    used = [0 if n == 1 else int(s) for s, n in zip(strides, sizes, strict=True)]
    return (used[0], used[1], *triple(used[2:], 0))


def span(strides: Ints, sizes: Ints) -> int:
    """The largest element offset in a tensor."""
    return sum((n - 1) * s for n, s in zip(sizes, strides, strict=True))


def vector(*values: int) -> int:
    """The largest of 16, 8, 4, 2, 1 that divides all."""
    return next(v for v in (16, 8, 4, 2, 1) if all(n % v == 0 for n in values))


def magic(divisor: int) -> tuple[int, int, int]:
    """(divisor, multiplier as an int32, shift) with m // divisor = umulhi(m, multiplier) >> shift
    for 0 <= m < 2^31; for a divisor of 1 the shift is -1.

    Source: Granlund and Montgomery, "Division by Invariant Integers using Multiplication" (1994),
    section 4, for numerators of 31 bits.
    """
    bits = (divisor - 1).bit_length()
    multiplier = 2 ** (31 + bits) // divisor + 1
    return divisor, multiplier - 2**32, bits - 1


def _power_of_two(n: int) -> bool:
    return n > 0 and n & (n - 1) == 0


def config_refusal(config: Config) -> str | None:
    """None if a kernel can have these tiles at all, else why not."""
    for name in ("block_m", "block_n", "block_k"):
        size = getattr(config, name)
        if not _power_of_two(size) or size < _SMALLEST_BLOCK:
            return f"{name}={size} is not a power of two from {_SMALLEST_BLOCK}"
    if not _power_of_two(config.warps) or config.warps > 32:
        return f"warps={config.warps} is not a power of two up to 32"
    for name in ("stages", "group_m", "split"):
        if getattr(config, name) < 1:
            return f"{name}={getattr(config, name)} is not positive"
    return None


def shares_taps(depth: int, taps: int, block_k: int) -> bool:
    """Whether several taps share a block: where blocks of one tap's channels would be part empty,
    a quarter of the steps at least is worth the arithmetic that finds each product's tap."""
    apart = taps * -(-depth // block_k)
    return taps > 1 and 4 * -(-depth * taps // block_k) <= 3 * apart


def _descriptor_refusal(
    direction: str, g: ConvGeometry, config: Config, itemsize: int
) -> str | None:
    """Why boxes cannot be loaded by descriptor, as far as sizes tell: strides of 16 bytes, and
    nothing of another tap or group in a box that counts."""
    depth, taps = (g.K, g.class_taps) if direction == "dgrad" else (g.C, g.taps)
    row = g.K * g.groups if direction == "wgrad" else g.C
    if row * itemsize % 16 != 0:
        return f"descriptor: rows of {row} elements of {itemsize} bytes are not whole 16 bytes"
    if direction != "wgrad" and shares_taps(depth, taps, config.block_k):
        return f"descriptor: blocks of {config.block_k} hold several taps of {depth} channels"
    if direction == "dgrad" and g.groups > 1 and depth % config.block_k != 0:
        return f"descriptor: blocks of {config.block_k} do not divide a group's {depth} channels"
    return None


def geometry_refusal(direction: str, g: ConvGeometry, config: Config, itemsize: int) -> str | None:
    """None if the kernels take this problem with this configuration, else why not."""
    reason = config_refusal(config)
    if reason is not None:
        return reason
    if config.split > 1 and direction != "wgrad":
        return f"split={config.split} is for wgrad, not for {direction}"
    if config.persistent and direction == "wgrad":
        return "wgrad has no persistent variant: its split makes as many programs as wanted"
    pixels = g.pixels
    if direction == "dgrad":
        pixels = g.N * prod(g.class_extents)
    if pixels > INT32:
        return f"{pixels} pixels are over {INT32}"
    for name, values in (("kernel", g.kernel), ("stride", g.stride), ("dilation", g.dilation)):
        if max(values) > _MAX_PER_AXIS:
            return f"a {name} of {max(values)} is over {_MAX_PER_AXIS}"
    steps = g.taps * max(g.C, g.K)
    if steps > INT32:
        return f"{steps} products per result are over {INT32}"
    return _descriptor_refusal(direction, g, config, itemsize) if config.descriptor else None
