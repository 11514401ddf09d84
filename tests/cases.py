"""The convolution problems that every sweep runs over, and the memory layouts they come in.

Kept small (most under a million multiply-adds), so that algorithms x directions x dtypes x layouts
stay within a couple of minutes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

Ints = tuple[int, ...]


@dataclass(frozen=True)
class ConvCase:
    """One problem: input_size (N, C, spatial), weight_size (K, C/groups, kernel); the parameters
    have one entry per spatial axis."""

    id: str
    input_size: Ints
    weight_size: Ints
    stride: Ints
    padding: Ints
    dilation: Ints
    groups: int
    tags: frozenset[str] = field(default=frozenset(), compare=False)

    @property
    def rank(self) -> int:
        return len(self.input_size) - 2

    @property
    def output_size(self) -> Ints:
        """PyTorch's rule, spelled out so that the list depends on none of the code it tests."""
        spatial = (
            (h + 2 * p - d * (r - 1) - 1) // s + 1
            for h, r, s, p, d in zip(
                self.input_size[2:],
                self.weight_size[2:],
                self.stride,
                self.padding,
                self.dilation,
                strict=True,
            )
        )
        return (self.input_size[0], self.weight_size[0], *spatial)

    @property
    def params(self) -> tuple[list[int], list[int], list[int], int]:
        """(stride, padding, dilation, groups), as the ops take them."""
        return list(self.stride), list(self.padding), list(self.dilation), self.groups

    def gemm_k(self, direction: str) -> int:
        """How many products one element of the result sums, padding counted."""
        taps = torch.Size(self.weight_size[2:]).numel()
        if direction == "fprop":
            return self.weight_size[1] * taps
        if direction == "dgrad":
            return self.weight_size[0] // self.groups * taps
        return self.input_size[0] * torch.Size(self.output_size[2:]).numel()


def conv_case(
    name: str,
    input_size: Ints,
    weight_size: Ints,
    stride: int | Ints = 1,
    padding: int | Ints = 0,
    dilation: int | Ints = 1,
    groups: int = 1,
    tags: str = "",
) -> ConvCase:
    rank = len(input_size) - 2

    def per_axis(value: int | Ints) -> Ints:
        return (value,) * rank if isinstance(value, int) else value

    return ConvCase(
        name,
        input_size,
        weight_size,
        per_axis(stride),
        per_axis(padding),
        per_axis(dilation),
        groups,
        frozenset(tags.split()),
    )


# Tag `empty`: nothing to compute. The op layer answers these itself, whatever the algorithm.
CONV_CASES: tuple[ConvCase, ...] = (
    # Nothing, and next to nothing.
    conv_case("empty_batch", (0, 4, 8, 8), (6, 4, 3, 3), padding=1, tags="empty"),
    conv_case("empty_batch_1d", (0, 3, 9), (4, 3, 3), tags="empty"),
    conv_case("empty_batch_groups", (0, 4, 5, 5), (8, 2, 3, 3), groups=2, tags="empty"),
    conv_case("scalar", (1, 1, 1, 1), (1, 1, 1, 1)),
    conv_case("image1_pad", (2, 3, 1, 1), (4, 3, 3, 3), padding=1),
    conv_case("image1_only_padding_taps", (1, 2, 1, 1), (3, 2, 5, 5), padding=2),
    conv_case("kernel_is_image", (2, 3, 5, 7), (4, 3, 5, 7)),
    conv_case("fully_connected", (5, 12, 1, 1), (10, 12, 1, 1)),
    # 1x1 kernels, where im2col is a plain matrix product.
    conv_case("pointwise", (2, 16, 7, 7), (24, 16, 1, 1)),
    conv_case("pointwise_stride2", (2, 8, 9, 8), (16, 8, 1, 1), stride=2),
    conv_case("pointwise_pad1", (1, 5, 4, 3), (7, 5, 1, 1), padding=1),
    # 3x3, on and off every tile size in use.
    conv_case("3x3", (2, 8, 12, 12), (16, 8, 3, 3), padding=1),
    conv_case("3x3_valid", (1, 4, 9, 10), (5, 4, 3, 3)),
    conv_case("3x3_wide_pad", (1, 3, 6, 7), (4, 3, 3, 3), padding=2),
    conv_case("3x3_large_pad", (1, 2, 3, 2), (3, 2, 3, 3), padding=5),
    conv_case("3x3_smallest", (1, 1, 3, 3), (1, 1, 3, 3)),
    conv_case("3x3_row", (1, 6, 1, 17), (6, 6, 3, 3), padding=1),
    conv_case("3x3_column", (1, 6, 17, 1), (6, 6, 3, 3), padding=1),
    conv_case("3x3_tile_multiple", (1, 16, 16, 16), (32, 16, 3, 3), padding=1),
    conv_case("1x5_eights", (2, 8, 5, 11), (16, 8, 1, 5), padding=(0, 2)),
    conv_case("3x3_tile_plus_one", (1, 17, 17, 17), (33, 17, 3, 3), padding=1),
    conv_case("3x3_tile_minus_one", (2, 15, 7, 15), (31, 15, 3, 3), padding=1),
    conv_case("3x3_batch", (7, 4, 6, 6), (8, 4, 3, 3), padding=1),
    conv_case("3x3_deep_channels", (1, 130, 5, 5), (67, 130, 3, 3), padding=1),
    conv_case("primes", (3, 7, 13, 11), (5, 7, 3, 5), stride=(2, 3), padding=(1, 2)),
    conv_case("channels_1_to_1", (2, 1, 11, 13), (1, 1, 3, 3), padding=1),
    conv_case("channels_1_to_many", (1, 1, 8, 8), (19, 1, 5, 5), padding=2),
    conv_case("channels_many_to_1", (1, 21, 6, 6), (1, 21, 3, 3), padding=1),
    # Strides and dilations.
    conv_case("stride2", (2, 6, 11, 10), (8, 6, 3, 3), stride=2, padding=1),
    conv_case("stride2_vectors", (2, 8, 11, 10), (16, 8, 3, 3), stride=2, padding=1),
    conv_case("stride3x2_vectors", (1, 16, 10, 9), (8, 16, 3, 2), (3, 2), (2, 1), (2, 1)),
    conv_case("stride_exceeds_kernel", (2, 3, 14, 13), (4, 3, 2, 2), stride=3),
    conv_case(
        "stride_exceeds_kernel_padded", (1, 3, 11, 9), (4, 3, 1, 2), stride=(4, 5), padding=1
    ),
    conv_case("stride_exceeds_image", (2, 2, 4, 4), (3, 2, 3, 3), stride=7, padding=1),
    conv_case("unread_border", (1, 3, 12, 12), (2, 3, 3, 3), stride=4),
    conv_case("dilation2", (1, 5, 13, 12), (6, 5, 3, 3), padding=2, dilation=2),
    conv_case("dilation_over_padding", (1, 3, 5, 5), (4, 3, 3, 3), padding=4, dilation=4),
    conv_case("stride2_dilation3", (2, 4, 17, 16), (4, 4, 3, 3), stride=2, padding=3, dilation=3),
    conv_case("stride3_dilation2", (1, 3, 16, 14), (5, 3, 3, 2), stride=3, padding=2, dilation=2),
    conv_case("even_kernel", (2, 4, 9, 8), (6, 4, 4, 2), padding=(2, 1)),
    conv_case("5x5", (1, 8, 10, 9), (12, 8, 5, 5), padding=2),
    conv_case("1x7", (1, 6, 5, 17), (8, 6, 1, 7), padding=(0, 3)),
    conv_case("7x1", (1, 6, 17, 5), (8, 6, 7, 1), padding=(3, 0)),
    conv_case("stem_7x7_stride2", (1, 3, 30, 32), (16, 3, 7, 7), stride=2, padding=3),
    conv_case("stem_11x11_stride4", (1, 3, 35, 31), (8, 3, 11, 11), stride=4, padding=2),
    conv_case("all_asymmetric", (2, 6, 19, 14), (4, 3, 2, 5), (3, 1), (1, 4), (4, 2), groups=2),
    # Groups and depthwise.
    conv_case("groups2", (2, 8, 8, 7), (12, 4, 3, 3), padding=1, groups=2),
    conv_case("groups3_stride2", (1, 9, 9, 9), (6, 3, 3, 3), stride=2, padding=1, groups=3),
    conv_case("groups_many_small", (1, 32, 6, 6), (32, 4, 3, 3), padding=1, groups=8),
    conv_case("groups_pointwise", (2, 12, 5, 5), (18, 4, 1, 1), groups=3),
    conv_case("depthwise", (2, 19, 9, 9), (19, 1, 3, 3), padding=1, groups=19),
    conv_case("depthwise_stride2", (1, 16, 11, 12), (16, 1, 3, 3), stride=2, padding=1, groups=16),
    conv_case("depthwise_5x5", (1, 10, 12, 11), (10, 1, 5, 5), padding=2, groups=10),
    conv_case("depthwise_dilated", (1, 8, 14, 13), (8, 1, 3, 3), padding=2, dilation=2, groups=8),
    conv_case("depthwise_multiplier3", (2, 5, 8, 9), (15, 1, 3, 3), padding=1, groups=5),
    # One spatial axis.
    conv_case("1d", (2, 6, 33), (8, 6, 3), padding=1),
    conv_case("1d_long_kernel", (1, 3, 64), (4, 3, 25), stride=4, padding=12),
    conv_case("1d_dilated_causal", (1, 4, 40), (4, 4, 2), padding=8, dilation=8),
    conv_case("1d_depthwise", (2, 13, 21), (13, 1, 5), padding=2, groups=13),
    conv_case("1d_stride_exceeds_kernel", (3, 2, 23), (5, 2, 2), stride=5, padding=1),
    # Three spatial axes.
    conv_case("3d", (1, 4, 5, 6, 7), (6, 4, 3, 3, 3), padding=1),
    conv_case("3d_flat", (2, 3, 1, 8, 8), (4, 3, 1, 3, 3), padding=(0, 1, 1)),
    conv_case("3d_temporal", (1, 4, 7, 4, 4), (6, 4, 3, 1, 1), padding=(1, 0, 0)),
    conv_case(
        "3d_asymmetric", (2, 4, 6, 9, 8), (6, 2, 2, 3, 4), (1, 2, 3), (1, 0, 2), (2, 1, 2), groups=2
    ),
    conv_case("3d_depthwise", (1, 6, 4, 5, 6), (6, 1, 3, 3, 3), padding=1, groups=6),
)

# For the CUDA depthwise kernels only: channels in 16-byte vectors, every compile-time filter and
# stride, padding beyond the filter, rows longer than a tile, more channels than a block has.
DEPTHWISE_CASES: tuple[ConvCase, ...] = tuple(
    conv_case(
        f"depthwise_{name}_{r}x{r}_stride{stride}",
        (n, c, h, w),
        (c, 1, r, r),
        stride,
        pad,
        groups=c,
    )
    for r in (3, 5, 7)
    for stride in (1, 2)
    for name, (n, c, h, w), pad in (
        ("same", (2, 16, 9, 11), r // 2),
        ("valid", (1, 24, 2 * r, 13), 0),
        ("wide_pad", (3, 8, 5, 6), r),
        ("long_row", (1, 8, r, 37), r // 2),
        ("many_channels", (1, 136, 4, r), r // 2),
    )
)

# For the CUDA kernels with a resident halo only: channels of one, two and three steps of 16, of two
# chunks of 64, a tail of 8; tiles across images, ragged at the right and at the bottom.
HALO_CASES: tuple[ConvCase, ...] = (
    conv_case("halo_step", (3, 16, 9, 7), (24, 16, 3, 3), padding=1),
    conv_case("halo_tail", (2, 24, 11, 18), (40, 24, 3, 2), padding=(0, 1)),
    conv_case("halo_chunk", (1, 64, 10, 17), (72, 64, 3, 3), padding=1),
    conv_case("halo_two_chunks", (1, 80, 6, 5), (8, 80, 3, 3), padding=(1, 2)),
    conv_case("halo_rows5", (2, 16, 9, 10), (16, 16, 5, 5), padding=2),
    conv_case("halo_rows5_valid", (1, 16, 12, 13), (24, 16, 5, 3)),
    conv_case("halo_rows5_odd", (1, 24, 6, 9), (8, 24, 5, 5), padding=2),
    conv_case("halo_rows5_steps", (1, 32, 7, 6), (8, 32, 5, 5), padding=(3, 1)),
)

# For the CUDA kernels over windows of staged rows only: rows of x at multiples of 16 bytes, of 4
# and at odd elements, windows that begin at odd elements, all of them or every second one; tiles
# ragged at the right and at the bottom; a tail of filters; planes; the first layers of networks.
ROWS_CASES: tuple[ConvCase, ...] = (
    conv_case("rows_stem", (2, 3, 23, 40), (64, 3, 7, 7), 2, 3),
    conv_case("rows_stem_odd", (1, 3, 21, 35), (40, 3, 7, 7), 2, 3),
    conv_case("rows_11x11", (1, 3, 31, 32), (20, 3, 11, 11), 4, 2),
    conv_case("rows_vgg", (1, 3, 9, 48), (70, 3, 3, 3), 1, 1),
    conv_case("rows_four_bytes", (2, 3, 7, 22), (8, 3, 3, 3), 1, 1),
    conv_case("rows_two_channels", (2, 2, 9, 19), (16, 2, 5, 3), (1, 2), (2, 0), (2, 1)),
    conv_case("rows_one_channel", (1, 1, 12, 64), (9, 1, 5, 5), (2, 1), (0, 1)),
    conv_case("rows_four_channels", (1, 4, 10, 18), (24, 4, 3, 6), (1, 3), (1, 3)),
    conv_case("rows_stride3", (1, 3, 11, 40), (33, 3, 2, 4), 3, (0, 1)),
    conv_case("rows_3d", (2, 3, 5, 9, 24), (8, 3, 3, 3, 5), (2, 1, 2), 1, (1, 2, 1)),
)

DIRECTIONS = ("fprop", "dgrad", "wgrad")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


# --- memory layouts: same values, other strides -------------------------------------------------


def contiguous(t: Tensor) -> Tensor:
    return t.contiguous()


def channels_last(t: Tensor) -> Tensor:
    """Dense in the order N, spatial, C, also for one spatial axis, where PyTorch has no name."""
    return t.movedim(1, -1).contiguous().movedim(-1, 1)


def transposed(t: Tensor) -> Tensor:
    """The last two axes swapped in memory."""
    return t.transpose(-1, -2).contiguous().transpose(-1, -2)


def reversed_axes(t: Tensor) -> Tensor:
    """All axes in reverse order in memory (N innermost)."""
    order = tuple(reversed(range(t.dim())))
    return t.permute(order).contiguous().permute(order)


def sliced(t: Tensor) -> Tensor:
    """A window of a larger tensor: storage offset, gaps on every axis, every second column. What
    lies outside the window is NaN, so that a read past the edge shows."""
    outer = [n + 2 for n in t.shape[:-1]] + [2 * t.shape[-1] + 3]
    store = torch.full(outer, torch.nan, dtype=t.dtype, device=t.device)
    window = store[tuple(slice(1, 1 + n) for n in t.shape[:-1])][..., 1 : 1 + 2 * t.shape[-1] : 2]
    return window.copy_(t)


def sliced_channels_last(t: Tensor) -> Tensor:
    """A channel and row range of a larger channels-last tensor, surrounded by NaN."""
    outer = [t.shape[0], t.shape[1] + 3, t.shape[2] + 2, *t.shape[3:]]
    store = channels_last(torch.full(outer, torch.nan, dtype=t.dtype, device=t.device))
    return store[:, 2 : 2 + t.shape[1], 1 : 1 + t.shape[2]].copy_(t)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": contiguous,
    "channels_last": channels_last,
    "transposed": transposed,
    "reversed_axes": reversed_axes,
    "sliced": sliced,
    "sliced_channels_last": sliced_channels_last,
}

# What the two operands of a direction are laid out as. Mixed pairs matter: kernels choose their
# path from both.
LAYOUT_PAIRS: tuple[tuple[str, str], ...] = (
    *((name, name) for name in LAYOUTS),
    ("contiguous", "channels_last"),
    ("channels_last", "contiguous"),
    ("sliced", "reversed_axes"),
)


# --- expanded tensors: values repeat along axes of stride 0 --------------------------------------


def expand_batch(t: Tensor) -> Tensor:
    return t[:1].expand(t.shape)


def expand_channels(t: Tensor) -> Tensor:
    return t[:, :1].expand(t.shape)


def expand_last(t: Tensor) -> Tensor:
    return t[..., :1].expand(t.shape)


def expand_all(t: Tensor) -> Tensor:
    """One number in every place: the gradient that ``y.sum().backward()`` sends."""
    return t[(slice(0, 1),) * t.dim()].expand(t.shape)


EXPANSIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "expand_batch": expand_batch,
    "expand_channels": expand_channels,
    "expand_last": expand_last,
    "expand_all": expand_all,
}
