"""The small convolutions that the self-test runs kernel instances on: at least one that every
instance applies to, and what their special paths need."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fastconv import _C
from fastconv.problem import ConvSpec


@dataclass(frozen=True)
class Problem:
    """A small convolution; one entry per spatial axis in the last tuples."""

    name: str
    input_size: tuple[int, ...]
    weight_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def spec(
        self, direction: str, device: str, dtype: torch.dtype, channels_last: bool
    ) -> ConvSpec:
        return ConvSpec(
            direction, device, dtype, self.input_size, self.weight_size, self.stride, self.padding,
            self.dilation, self.groups, channels_last,
        )  # fmt: skip

    @property
    def native(self) -> _C.ConvProblem:
        return self.spec("fprop", "cpu", torch.float32, False).native


def _problem(name, x, w, stride=1, padding=0, dilation=1, groups=1) -> Problem:
    rank = len(x) - 2

    def per_axis(value):
        return (value,) * rank if isinstance(value, int) else value

    return Problem(name, x, w, *map(per_axis, (stride, padding, dilation)), groups)


# Several tiles of every kernel, tails on each axis, and each way of moving the filter. The first
# that an instance takes are its quick check, so the telling ones come first.
PROBLEMS = (
    _problem("3x3", (2, 37, 19, 23), (41, 37, 3, 3), padding=1),
    _problem("3x3_aligned", (3, 64, 17, 15), (136, 64, 3, 3), padding=1),
    _problem("depthwise_3x3", (2, 40, 21, 19), (40, 1, 3, 3), padding=1, groups=40),
    _problem("depthwise_3x3_s2", (2, 40, 20, 23), (40, 1, 3, 3), 2, 1, groups=40),
    _problem("depthwise_odd", (2, 33, 20, 23), (33, 1, 3, 3), 2, 1, groups=33),
    _problem("depthwise_5x5", (1, 24, 18, 17), (24, 1, 5, 5), padding=2, groups=24),
    _problem("depthwise_5x5_s2", (1, 24, 19, 22), (24, 1, 5, 5), 2, 2, groups=24),
    _problem("depthwise_7x7", (1, 16, 20, 21), (16, 1, 7, 7), padding=3, groups=16),
    _problem("depthwise_7x7_s2", (1, 16, 23, 20), (16, 1, 7, 7), 2, 3, groups=16),
    _problem("depthwise_x2", (2, 12, 9, 10), (24, 1, 3, 3), padding=1, groups=12),
    _problem("3x3_s2", (2, 24, 21, 18), (40, 24, 3, 3), 2, 1),
    _problem("1x1", (2, 72, 14, 13), (96, 72, 1, 1)),
    _problem("1x1_s2", (2, 64, 15, 16), (48, 64, 1, 1), 2),
    _problem("7x7_s2", (1, 3, 45, 41), (64, 3, 7, 7), 2, 3),
    _problem("5x5", (1, 16, 13, 12), (32, 16, 5, 5), padding=2),
    _problem("dilated", (1, 20, 22, 19), (24, 20, 3, 3), padding=3, dilation=(3, 2)),
    _problem("groups", (2, 48, 11, 12), (64, 12, 3, 3), padding=1, groups=4),
    _problem("asymmetric", (2, 6, 19, 14), (4, 3, 2, 5), (3, 1), (1, 4), (4, 2), 2),
    _problem("3x3_wide_padding", (1, 9, 7, 6), (10, 9, 3, 3), padding=5),
    _problem("fully_connected", (9, 130, 1, 1), (70, 130, 1, 1)),
    _problem("3x3_many_images", (33, 8, 7, 7), (16, 8, 3, 3), padding=1),
    _problem("1d", (2, 20, 131), (24, 20, 5), 2, 2),
    _problem("3d", (1, 10, 6, 9, 8), (12, 10, 3, 3, 3), (1, 2, 1), 1),
)
