"""Pooling layers that torch.nn has no class for, in its manner: no parameters, arguments as
attributes, a printed form that shows them.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastconv import pooling, pooling_features, pooling_stochastic
from fastconv.nn.pool import PoolNd


class _WindowPool(PoolNd):
    """Arguments of a window, as torch.nn's layers hold them."""

    def __init__(
        self,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        ceil_mode: bool = False,
        *,
        algo: str = "auto",
    ) -> None:
        super().__init__(algo=algo)
        self.kernel_size = kernel_size
        self.stride = stride if stride is not None else kernel_size
        self.padding = padding
        self.ceil_mode = ceil_mode

    def extra_repr(self) -> str:
        text = (
            f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding},"
            f" ceil_mode={self.ceil_mode}"
        )
        return text if self.algo == "auto" else f"{text}, algo={self.algo}"

    def _windows(self) -> tuple[Any, ...]:
        return self.kernel_size, self.stride, self.padding, self.ceil_mode


class SumPool2d(_WindowPool):
    """The sum of each window (fastconv.sum_pool2d)."""

    def forward(self, input: Tensor) -> Tensor:
        return pooling.sum_pool2d(input, *self._windows(), algo=self.algo)


class L2Pool2d(_WindowPool):
    """The square root of each window's sum of squares (fastconv.l2_pool2d)."""

    def forward(self, input: Tensor) -> Tensor:
        return pooling.l2_pool2d(input, *self._windows(), algo=self.algo)


class _StochasticPool(_WindowPool):
    def __init__(
        self,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        ceil_mode: bool = False,
        return_indices: bool = False,
        *,
        algo: str = "auto",
    ) -> None:
        super().__init__(kernel_size, stride, padding, ceil_mode, algo=algo)
        self.return_indices = return_indices

    def _arguments(self) -> dict[str, Any]:
        indices = self.return_indices
        return {"training": self.training, "return_indices": indices, "algo": self.algo}


class StochasticPool1d(_StochasticPool):
    """fastconv.stochastic_pool1d: draws while the layer is training, else takes the average.

    return_indices holds for training alone; in evaluation such a layer raises ValueError.
    """

    def forward(self, input: Tensor) -> Any:
        arguments = self._arguments()
        return pooling_stochastic.stochastic_pool1d(input, *self._windows(), **arguments)


class StochasticPool2d(_StochasticPool):
    """fastconv.stochastic_pool2d: draws while the layer is training, else takes the average.

    return_indices holds for training alone; in evaluation such a layer raises ValueError.
    """

    def forward(self, input: Tensor) -> Any:
        arguments = self._arguments()
        return pooling_stochastic.stochastic_pool2d(input, *self._windows(), **arguments)


class StochasticPool3d(_StochasticPool):
    """fastconv.stochastic_pool3d: draws while the layer is training, else takes the average.

    return_indices holds for training alone; in evaluation such a layer raises ValueError.
    """

    def forward(self, input: Tensor) -> Any:
        arguments = self._arguments()
        return pooling_stochastic.stochastic_pool3d(input, *self._windows(), **arguments)


class Maxout(PoolNd):
    """The largest of every `groups` neighbouring channels (fastconv.maxout)."""

    def __init__(self, groups: int, *, algo: str = "auto") -> None:
        super().__init__(algo=algo)
        self.groups = groups

    def forward(self, input: Tensor) -> Tensor:
        return pooling_features.maxout(input, self.groups, algo=self.algo)

    def extra_repr(self) -> str:
        text = f"groups={self.groups}"
        return text if self.algo == "auto" else f"{text}, algo={self.algo}"


class L2PoolFeatures(PoolNd):
    """The square root of the sum of squares over `size` neighbouring channels
    (fastconv.l2_pool_features)."""

    def __init__(self, size: int, stride: int | None = None, *, algo: str = "auto") -> None:
        super().__init__(algo=algo)
        self.size = size
        self.stride = size if stride is None else stride

    def forward(self, input: Tensor) -> Tensor:
        return pooling_features.l2_pool_features(input, self.size, self.stride, algo=self.algo)

    def extra_repr(self) -> str:
        text = f"size={self.size}, stride={self.stride}"
        return text if self.algo == "auto" else f"{text}, algo={self.algo}"
