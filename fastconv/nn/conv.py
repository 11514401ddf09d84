"""Conv1d, Conv2d, Conv3d: subclasses of torch.nn's that compute with fastconv.functional.

Everything but the computation is inherited, so that initialisation, parameters, state_dict, printed
arguments, hooks and parametrizations are PyTorch's by construction. No layer holds anything
derived from its weight: an in-place update or load_state_dict cannot leave a stale copy behind.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.common_types import _size_1_t, _size_2_t, _size_3_t
from torch.nn.modules.conv import _ConvNd as _TorchConvNd

from fastconv import arguments, functional, select

PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]


def check_algo(algo: str) -> None:
    """Raises ValueError, listing the known names, unless `algo` is "auto" or a registered name."""
    if not isinstance(algo, str):
        raise ValueError(f"algo must be a string, got {algo!r}")
    select.check_name(algo)


class ConvNd(_TorchConvNd):
    """What the three ranks share: the choice of algorithm and the way to the kernels.

    `algo` and `precision` are defaults of the class and enter an instance only where they differ,
    so that a layer's `__dict__` is otherwise the one of torch.nn's layer.
    """

    algo: str = "auto"
    precision: str | None = None

    def _configure(self, algo: str, precision: str | None) -> None:
        check_algo(algo)
        if precision not in arguments.PRECISIONS:
            known = ", ".join(map(repr, arguments.PRECISIONS))
            raise ValueError(f"precision must be one of {known}, got {precision!r}")
        if algo != "auto":
            self.algo = algo
        if precision is not None:
            self.precision = precision

    def _convolve(self, input: Tensor, weight: Tensor, bias: Tensor | None, padding) -> Tensor:
        raise NotImplementedError

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.padding_mode == "zeros":
            return self._convolve(input, weight, bias, self.padding)
        padded = nn.functional.pad(
            input, self._reversed_padding_repeated_twice, mode=self.padding_mode
        )
        return self._convolve(padded, weight, bias, 0)

    def extra_repr(self) -> str:
        text = super().extra_repr()
        if self.algo != "auto":
            text += f", algo={self.algo}"
        if self.precision is not None:
            text += f", precision={self.precision}"
        return text

    def __prepare_scriptable__(self):
        # torch.jit.script calls this first; without it the failure is a compile error deep inside.
        raise RuntimeError(
            f"torch.jit.script: fastconv.nn.{type(self).__name__} cannot be scripted, because its"
            " algorithm is chosen in Python. Use torch.compile, torch.export or torch.jit.trace, or"
            " call fastconv.revert(model) before scripting."
        )


class Conv1d(ConvNd, nn.Conv1d):
    """torch.nn.Conv1d computed by fastconv.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias,
            padding_mode, device, dtype: as in torch.nn.Conv1d.
        algo: "auto", or the name of one algorithm (see fastconv.explain).
        precision: as in fastconv.conv1d.

    Shapes: input [N, C, W] or [C, W]; weight [K, C/groups, S]; bias [K];
    output [N, K, Q] or [K, Q].
    Dtypes, layouts and determinism: those of fastconv.conv1d.

    Raises:
        ValueError: for arguments torch.nn.Conv1d refuses, and for an unknown algo or precision.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: _size_1_t,
        stride: _size_1_t = 1,
        padding: str | _size_1_t = 0,
        dilation: _size_1_t = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: PaddingMode = "zeros",
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        algo: str = "auto",
        precision: str | None = None,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,
            device,
            dtype,
        )
        self._configure(algo, precision)

    def _convolve(self, input: Tensor, weight: Tensor, bias: Tensor | None, padding) -> Tensor:
        return functional.conv1d(
            input,
            weight,
            bias,
            self.stride,
            padding,
            self.dilation,
            self.groups,
            algo=self.algo,
            precision=self.precision,
        )


class Conv2d(ConvNd, nn.Conv2d):
    """torch.nn.Conv2d computed by fastconv.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias,
            padding_mode, device, dtype: as in torch.nn.Conv2d.
        algo: "auto", or the name of one algorithm (see fastconv.explain).
        precision: as in fastconv.conv2d.

    Shapes: input [N, C, H, W] or [C, H, W]; weight [K, C/groups, R, S]; bias [K];
    output [N, K, P, Q] or [K, P, Q].
    Dtypes, layouts and determinism: those of fastconv.conv2d.

    Raises:
        ValueError: for arguments torch.nn.Conv2d refuses, and for an unknown algo or precision.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: _size_2_t,
        stride: _size_2_t = 1,
        padding: str | _size_2_t = 0,
        dilation: _size_2_t = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: PaddingMode = "zeros",
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        algo: str = "auto",
        precision: str | None = None,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,
            device,
            dtype,
        )
        self._configure(algo, precision)

    def _convolve(self, input: Tensor, weight: Tensor, bias: Tensor | None, padding) -> Tensor:
        return functional.conv2d(
            input,
            weight,
            bias,
            self.stride,
            padding,
            self.dilation,
            self.groups,
            algo=self.algo,
            precision=self.precision,
        )


class Conv3d(ConvNd, nn.Conv3d):
    """torch.nn.Conv3d computed by fastconv.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias,
            padding_mode, device, dtype: as in torch.nn.Conv3d.
        algo: "auto", or the name of one algorithm (see fastconv.explain).
        precision: as in fastconv.conv3d.

    Shapes: input [N, C, D, H, W] or [C, D, H, W]; weight [K, C/groups, T, R, S]; bias [K];
    output [N, K, O, P, Q] or [K, O, P, Q].
    Dtypes, layouts and determinism: those of fastconv.conv3d.

    Raises:
        ValueError: for arguments torch.nn.Conv3d refuses, and for an unknown algo or precision.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: _size_3_t,
        stride: _size_3_t = 1,
        padding: str | _size_3_t = 0,
        dilation: _size_3_t = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: PaddingMode = "zeros",
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        algo: str = "auto",
        precision: str | None = None,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,
            device,
            dtype,
        )
        self._configure(algo, precision)

    def _convolve(self, input: Tensor, weight: Tensor, bias: Tensor | None, padding) -> Tensor:
        return functional.conv3d(
            input,
            weight,
            bias,
            self.stride,
            padding,
            self.dilation,
            self.groups,
            algo=self.algo,
            precision=self.precision,
        )
