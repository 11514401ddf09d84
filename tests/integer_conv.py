"""Small-integer operands, whose sums of products are exact, and PyTorch's gradients of them."""

from __future__ import annotations

import torch
from torch import Tensor


def integers(*size: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-3, 4, size, generator=generator).to(dtype)


def aten_backward(
    dy: Tensor, x: Tensor, w: Tensor, stride, padding, dilation, groups: int = 1
) -> tuple[Tensor, Tensor]:
    """PyTorch's (dx, dw), float64."""
    rank = x.dim() - 2
    dx, dw, _ = torch.ops.aten.convolution_backward(
        dy.double(), x.double(), w.double(), None, stride, padding, dilation, False, [0] * rank,
        groups, [True, True, False],
    )  # fmt: skip
    return dx, dw
