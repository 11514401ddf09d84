"""Which algorithm a call would run, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastconv import _C, arguments, autotune_cache, gpu, select
from fastconv.ops.conv_call import inherited
from fastconv.problem import DIRECTIONS, ConvSpec, is_channels_last


@dataclass(frozen=True)
class Row:
    """One algorithm against one direction. Times in seconds, workspace in bytes.

    reason: None if it applies, else why not. measured: median recorded by autotuning, or None.
    """

    name: str
    backend: str
    reason: str | None
    cost: float | None
    workspace: int | None
    measured: float | None


@dataclass(frozen=True)
class Choice:
    """One direction: the algorithm that would run, why, and everything that was considered."""

    direction: str
    chosen: str
    why: str
    rows: tuple[Row, ...]

    def __str__(self) -> str:
        lines = [f"{self.direction}: {self.chosen}  ({self.why})"]
        width = max(len(row.name) for row in self.rows)
        for row in self.rows:
            mark = ">" if row.name == self.chosen else " "
            if row.reason is not None:
                lines.append(f"  {mark} {row.name:<{width}}  no: {row.reason}")
                continue
            parts = []
            if row.measured is not None:
                parts.append(f"measured {_time(row.measured)}")
            if row.cost is not None:
                parts.append(f"estimated {_time(row.cost)}")
            if row.workspace is not None:
                parts.append(f"workspace {row.workspace / 1024:.1f} KiB")
            lines.append(f"  {mark} {row.name:<{width}}  {', '.join(parts) or 'applies'}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Explanation:
    """What `fastconv.explain` returns; print it, or read `choices`."""

    problem: str
    settings: str
    choices: tuple[Choice, ...]

    def __getitem__(self, direction: str) -> Choice:
        return next(c for c in self.choices if c.direction == direction)

    def __str__(self) -> str:
        return "\n".join([self.problem, self.settings, *map(str, self.choices)])


def _time(seconds: float) -> str:
    if seconds < 1e-3:
        return f"{seconds * 1e6:.1f} µs"
    return f"{seconds * 1e3:.3f} ms"


def _direction(spec: ConvSpec, algo: str, statistics: bool = False) -> Choice:
    entry = autotune_cache.lookup(spec, torch.get_num_threads(), _C.cpu_isa())
    measured = entry["seconds"] if entry else {}
    entries = select.candidates(spec, statistics)
    rows = tuple(
        Row(
            c.name,
            c.backend,
            c.reason,
            c.cost if c.reason is None else None,
            c.workspace if c.reason is None else None,
            measured.get(c.name),
        )
        for c in entries
    )
    if spec.direction == "fprop":
        choose = select.choose_with_statistics if statistics else select.resolve
        chosen = choose(spec, algo, None)
    else:
        chosen = select.resolve(spec, inherited(algo))
    ours = [c for c in entries if c.reason is None and c.name != select.ATEN]
    name = select.split_precision(algo)[0]
    # What the name covers: itself, the tiles of an alias, the instances of a CUDA algorithm.
    forced = {name, *(c.name for c in entries if c.name.startswith(name))}
    ran = select.split_precision(chosen)[0]
    if name != select.AUTO and ran in forced:
        why = f"asked for by algo={name!r}"
    elif entry and entry["winner"] == chosen:
        why = "fastest when measured by autotuning"
    elif not ours:
        why = "none of ours applies"
    elif spec.empty:
        why = "nothing to compute"
    elif ran == select.ATEN:
        why = "none of ours is estimated to be clearly faster"
        if gpu.is_cuda(spec.device):
            why = "none of ours that is trusted on this device is estimated to be clearly faster"
    else:
        why = "lowest estimated cost"
    if name != select.AUTO and ran not in forced:
        why = f"algo={name!r} does not apply here; {why}"
    return Choice(spec.direction, ran, why, rows)


def explain(input: Tensor | str, *args: Any, **options: Any) -> Explanation:
    """What a convolution or a pooling would run in each direction, and why.

    `explain(input, weight, bias, stride, padding, dilation, groups, algo=, precision=)` takes the
    arguments of `fastconv.conv1d/2d/3d` (the rank is the weight's), with statistics=True as it runs
    where `fastconv.conv_bn_relu` trains, and `explain("max_pool2d", input, 3, 2, 1)` the name of a
    pooling and that function's arguments. Nothing is computed. The result prints as a table: every
    algorithm with the reason why it does not apply, or, for convolutions, its estimated time,
    workspace and, where autotuning has recorded it, measured time.

    Raises:
        RuntimeError, TypeError: as the function would, in PyTorch's words; also where a named
            algorithm does not apply.
        ValueError: unknown `algo`, `precision` or pooling.
    """
    if isinstance(input, str):
        from fastconv import explain_pool

        return explain_pool.explain(input, *args, **options)
    return _convolution(input, *args, **options)


def _convolution(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    algo: str = "auto",
    precision: str | None = None,
    statistics: bool = False,
) -> Explanation:
    arguments.check_options(algo, precision)
    rank = weight.dim() - 2
    if rank not in (1, 2, 3):
        raise RuntimeError(f"expected a weight of 3 to 5 dimensions, got size {list(weight.shape)}")
    args = (input, weight, bias, stride, padding, dilation, groups)
    arguments.check_with_torch(rank, args)
    numbers = arguments.geometry_of(rank, weight, stride, padding, dilation, groups)
    if numbers is None:
        raise TypeError("stride, padding, dilation and groups must be integers")
    geometry, pad = numbers
    size = tuple(input.shape) if input.dim() == rank + 2 else (1, *input.shape)
    if pad is not None:
        extra = [pad[2 * (rank - 1 - axis) + 1] for axis in range(rank)]
        size = (*size[:2], *(s + e for s, e in zip(size[2:], extra, strict=True)))
    refusal = arguments.refusal(input, weight, bias)
    x = input if input.dim() == rank + 2 else input.unsqueeze(0)
    plain = input.layout == torch.strided and weight.layout == torch.strided
    algo = select.with_precision(algo, precision)
    device = gpu.device_key(input.device)
    spec = ConvSpec(
        "fprop",
        device,
        input.dtype,
        size,
        tuple(weight.shape),
        *geometry,
        plain and is_channels_last(x, weight),
        select.products_for(device, input.dtype, algo),
    )
    if refusal is None:
        choices = tuple(
            _direction(spec.toward(d), algo, statistics and d == "fprop") for d in DIRECTIONS
        )
    else:
        if select.split_precision(algo)[0] not in (select.AUTO, select.ATEN):
            raise RuntimeError(f"conv{rank}d: algorithm {algo!r} does not apply: {refusal}")
        rows = tuple(
            Row(name, "cpu", refusal, None, None, None)
            for name in select.names(device)
            if name not in (select.WINOGRAD, select.ATEN)
        )
        rows = (*rows, Row(select.ATEN, select.ATEN, None, None, None, None))
        choices = tuple(Choice(d, select.ATEN, "none of ours applies", rows) for d in DIRECTIONS)
    settings = f"instruction set {_C.cpu_isa()}, {torch.get_num_threads()} threads"
    if refusal is None and gpu.is_cuda(device):
        settings = gpu.describe(device).identity
    return Explanation(str(spec).replace(" fprop", "", 1), settings, choices)
