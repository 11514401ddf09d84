"""Batching rules: a batch of convolutions as one convolution.

A batched x alone joins N; a batched w alone joins K inside each group; both batched become B times
as many groups. `run` is the function or op that the merged problem goes to. B is always moved to
the front first; results carry it in front again unless stated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from fastconv.problem import conv_output_size


def output_size(input_size: Any, weight_size: Any, geometry: Sequence[Any]) -> list[Any]:
    """(N, K, *out)."""
    return conv_output_size(input_size, weight_size, *geometry[:3])


def _front(t: Tensor, dim: int | None, batch: int) -> Tensor:
    """t with its batch axis in front, expanded where it has none."""
    return t.unsqueeze(0).expand(batch, *t.shape) if dim is None else t.movedim(dim, 0)


def _join_rows(t: Tensor, dim: int) -> Tensor:
    """(B, N, ...) -> (B N, ...)."""
    t = t.movedim(dim, 0)
    return t.reshape(t.shape[0] * t.shape[1], *t.shape[2:])


def _join_channels(t: Tensor) -> Tensor:
    """(B, N, C, ...) -> (N, B C, ...)."""
    t = t.movedim(0, 1)
    return t.reshape(t.shape[0], t.shape[1] * t.shape[2], *t.shape[3:])


def _join_in_groups(t: Tensor, axis: int, groups: int) -> Tensor:
    """B in front and channels at `axis` -> channels (g, B, K/g) at axis - 1."""
    t = t.unflatten(axis, (groups, t.shape[axis] // groups)).movedim(0, axis)
    return t.flatten(axis - 1, axis + 1)


def _split_from_groups(t: Tensor, axis: int, groups: int, batch: int) -> Tensor:
    """Inverse of `_join_in_groups`: channels (g, B, K/g) at `axis` -> B in front."""
    k = t.shape[axis] // (groups * batch)
    t = t.unflatten(axis, (groups, batch, k)).movedim(axis + 1, 0)
    return t.flatten(axis + 1, axis + 2)


def fprop(
    run: Callable[..., Tensor],
    batch: int,
    in_dims: Sequence[int | None],
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    geometry: Sequence[Any],
    algo: str,
) -> tuple[Tensor, int]:
    """Batched `conv_fprop`; returns the result and where its batch axis is."""
    *lists, groups = geometry
    x_dim, w_dim, bias_dim = in_dims
    if bias is not None and bias_dim is not None and w_dim is None:
        # Every sample has its own bias but shares the filter: add it afterwards.
        y, dim = (
            fprop(run, batch, (x_dim, None, None), x, w, None, geometry, algo)
            if (x_dim is not None)
            else (run(x, w, None, *lists, groups, algo).unsqueeze(0), 0)
        )
        rows = bias.movedim(bias_dim, 0)
        return y + rows.reshape(batch, 1, -1, *[1] * (x.dim() - 2 - (x_dim is not None))), dim
    if w_dim is None:
        y = run(_join_rows(x, x_dim), w, bias, *lists, groups, algo)
        return y.unflatten(0, (batch, y.shape[0] // batch)), 0
    w = w.movedim(w_dim, 0)
    k = w.shape[1]
    if x_dim is None:
        if bias is not None:
            bias = _join_in_groups(_front(bias, bias_dim, batch), 1, groups)
        y = run(x, _join_in_groups(w, 1, groups), bias, *lists, groups, algo)
        return _split_from_groups(y, 1, groups, batch), 0
    if bias is not None:
        bias = _front(bias, bias_dim, batch).reshape(batch * k)
    x = _join_channels(x.movedim(x_dim, 0))
    y = run(x, w.reshape(batch * k, *w.shape[2:]), bias, *lists, batch * groups, algo)
    return y.unflatten(1, (batch, k)), 1


def dgrad(
    run: Callable[..., Tensor],
    batch: int,
    in_dims: Sequence[int | None],
    dy: Tensor,
    w: Tensor,
    input_size: Sequence[Any],
    stride: Sequence[Any],
    padding: Sequence[Any],
    dilation: Sequence[Any],
    groups: int,
    channels_last: bool,
    algo: str,
) -> tuple[Tensor, int]:
    """Batched `conv_dgrad`."""
    lists = (stride, padding, dilation)
    n, c, *extents = input_size
    dy_dim, w_dim = in_dims
    if w_dim is None:
        dy = _join_rows(dy, dy_dim)
        dx = run(dy, w, [batch * n, c, *extents], *lists, groups, channels_last, algo)
        return dx.unflatten(0, (batch, n)), 0
    w = w.movedim(w_dim, 0)
    dy = _join_channels(_front(dy, dy_dim, batch))
    w = w.reshape(batch * w.shape[1], *w.shape[2:])
    dx = run(dy, w, [n, batch * c, *extents], *lists, batch * groups, channels_last, algo)
    return dx.unflatten(1, (batch, c)), 1


def wgrad(
    run: Callable[..., Tensor],
    batch: int,
    in_dims: Sequence[int | None],
    dy: Tensor,
    x: Tensor,
    weight_size: Sequence[Any],
    stride: Sequence[Any],
    padding: Sequence[Any],
    dilation: Sequence[Any],
    groups: int,
    channels_last: bool,
    algo: str,
) -> tuple[Tensor, int]:
    """Batched `conv_wgrad`."""
    lists = (stride, padding, dilation)
    k, *rest = weight_size
    dy_dim, x_dim = in_dims
    if x_dim is None:
        dy = _join_in_groups(dy.movedim(dy_dim, 0), 2, groups)
        dw = run(dy, x, [batch * k, *rest], *lists, groups, channels_last, algo)
        return _split_from_groups(dw, 0, groups, batch), 0
    dy = _join_channels(_front(dy, dy_dim, batch))
    x = _join_channels(x.movedim(x_dim, 0))
    dw = run(dy, x, [batch * k, *rest], *lists, batch * groups, channels_last, algo)
    return dw.unflatten(0, (batch, k)), 0
