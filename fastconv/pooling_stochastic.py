"""Stochastic pooling: training draws one element of each window, evaluation takes the average.

Source: Zeiler and Fergus, "Stochastic Pooling for Regularization of Deep Convolutional Neural
Networks" (ICLR 2013), sections 3.1 (training) and 3.2 (evaluation).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from fastconv.ops import pool, pool_sampling
from fastconv.ops.pool import Windows
from fastconv.pooling_call import (
    IntOrInts,
    batched,
    kept,
    like,
    picked,
    windows_of,
    without_autocast,
)
from fastconv.problem import NATIVE_DTYPES, suggests_channels_last
from fastconv.select_pool import ATEN, KINDS, PoolCall, choose, insist

_TORCH_MAX = (F.max_pool1d, F.max_pool2d, F.max_pool3d)


def _checked_windows(
    call: PoolCall, kernel_size: Any, stride: Any, padding: Any, ceil_mode: bool
) -> Windows:
    """The windows; raises what PyTorch's max pooling raises on such arguments."""
    rank, input = call.rank, call.input
    args = (rank, kernel_size, stride, padding, 1, ceil_mode)
    windows = None
    if isinstance(input, Tensor) and input.dim() in (rank + 1, rank + 2):
        windows = windows_of(input, *args)
    if windows is None:
        _TORCH_MAX[rank - 1](input, kernel_size, stride, padding, 1, ceil_mode)
        raise RuntimeError(f"{call.function}: the arguments do not fit the input")
    if input.dtype not in NATIVE_DTYPES:  # the class and the words of PyTorch's kernels
        raise NotImplementedError(f'"{call.function}" not implemented for {input.dtype}')
    return windows


def _seed(input: Tensor, generator: torch.Generator | None) -> Tensor:
    """One int64 element in the memory of the input's device, so that a captured graph draws anew
    with each replay."""
    limit = 2**63 - 1
    if generator is None:
        return torch.randint(limit, (1,), device=input.device)
    elsewhere = isinstance(generator, torch.Generator) and generator.device.type == "cpu"
    if elsewhere and input.device.type != "cpu":
        return torch.randint(limit, (1,), generator=generator).to(input.device)
    return torch.randint(limit, (1,), device=input.device, generator=generator)


def _like_layout(y: Tensor, x: Tensor) -> Tensor:
    if pool.transforming() or not suggests_channels_last(x):
        return y
    last = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
    return y.contiguous(memory_format=last)


def _stochastic(
    rank: int,
    input: Tensor,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    ceil_mode: bool,
    training: bool,
    generator: torch.Generator | None,
    return_indices: bool,
    algo: str,
) -> Any:
    if has_torch_function_unary(input):
        args = (input, kernel_size, stride, padding, ceil_mode, training, generator)
        public = _PUBLIC[rank - 1]
        return handle_torch_function(public, (input,), *args, return_indices, algo=algo)
    function = f"stochastic_pool{rank}d"
    if return_indices and not training:
        raise ValueError(f"{function}: evaluation (training=False) picks no element to index")
    kind = KINDS["stochastic_pool" if training else "expectation_pool"]
    call = PoolCall(kind, function, rank, input)
    name = choose(call, algo)
    windows = _checked_windows(call, kernel_size, stride, padding, ceil_mode)
    if name == ATEN:
        insist(call, algo)
    x = batched(input, rank)
    if not training:
        if name == ATEN:
            with without_autocast(input):
                y = _like_layout(pool_sampling.expectation(x, windows), x)
        else:
            lists = (windows.kernel, windows.stride, windows.padding)
            y = pool.expectation_pool(x, *lists, ceil_mode, name)
        return like(y, input, rank)
    seed = _seed(input, generator)
    if name == ATEN:
        with without_autocast(input):
            y, index = (_like_layout(t, x) for t in pool_sampling.sample(x, seed, windows))
    else:
        index_kind = kept(input, windows, return_indices)
        y, index = pool.sample_pool(x, seed, windows, index_kind, name)
    return picked(y, index, input, rank, return_indices)


def stochastic_pool1d(
    input: Tensor,
    kernel_size: IntOrInts,
    stride: IntOrInts | None = None,
    padding: IntOrInts = 0,
    ceil_mode: bool = False,
    training: bool = True,
    generator: torch.Generator | None = None,
    return_indices: bool = False,
    *,
    algo: str = "auto",
) -> Any:
    rest = (ceil_mode, training, generator, return_indices, algo)
    return _stochastic(1, input, kernel_size, stride, padding, *rest)


def stochastic_pool2d(
    input: Tensor,
    kernel_size: IntOrInts,
    stride: IntOrInts | None = None,
    padding: IntOrInts = 0,
    ceil_mode: bool = False,
    training: bool = True,
    generator: torch.Generator | None = None,
    return_indices: bool = False,
    *,
    algo: str = "auto",
) -> Any:
    rest = (ceil_mode, training, generator, return_indices, algo)
    return _stochastic(2, input, kernel_size, stride, padding, *rest)


def stochastic_pool3d(
    input: Tensor,
    kernel_size: IntOrInts,
    stride: IntOrInts | None = None,
    padding: IntOrInts = 0,
    ceil_mode: bool = False,
    training: bool = True,
    generator: torch.Generator | None = None,
    return_indices: bool = False,
    *,
    algo: str = "auto",
) -> Any:
    rest = (ceil_mode, training, generator, return_indices, algo)
    return _stochastic(3, input, kernel_size, stride, padding, *rest)


_PUBLIC = (stochastic_pool1d, stochastic_pool2d, stochastic_pool3d)
_DOC = """{rank}-D stochastic pooling.

    Training draws one element of each window, with the probability that it has in the window's sum;
    the gradient goes to it alone. Evaluation is what training yields on average, the sum of squares
    over the sum, and 0 where the sum is 0; differentiable to any order.

    Negative elements count as 0, and padding is never drawn. Where no element of a window is
    positive, training takes its first one; a NaN wins (the last of several), then the first +inf.

    Args:
        input: (N, C, {axes}) or, unbatched, (C, {axes}); any strides; float32, float64, bfloat16 or
            float16 (16-bit is summed and squared in float32). The dtype stays, also under autocast.
        kernel_size, stride, padding, ceil_mode: as in `max_pool{rank}d`.
        training: whether to draw.
        generator: where the call's seed, one int64, is drawn; of the input's device or of the CPU
            (not while a CUDA graph is captured). Default: the device's own generator. Evaluation
            draws nothing.
        return_indices: also return the places of what was drawn, as `max_pool{rank}d` does.
        algo: as in `max_pool{rank}d`. All of them draw the same elements under the same seed.

    Returns:
        (N, C, {out}) or (C, {out}), channels_last if the input is; with return_indices also the
        int64 places. Training keeps one byte per output. The draw of an output depends on the seed
        and its index alone, not on layout, threads or device.

    Raises:
        RuntimeError, TypeError: as torch.nn.functional.max_pool{rank}d, in its words; or the named
            algorithm does not apply (with the reason).
        NotImplementedError: another dtype.
        ValueError: indices of an evaluation; unknown `algo`.

    Source: Zeiler and Fergus, "Stochastic Pooling for Regularization of Deep Convolutional Neural
    Networks" (ICLR 2013), section 3.
    """
for _rank, _function in enumerate(_PUBLIC, 1):
    _function.__doc__ = _DOC.format(
        rank=_rank, axes="D, H, W"[-3 * _rank + 2 :], out="O, P, Q"[-3 * _rank + 2 :]
    )
