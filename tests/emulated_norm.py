"""Runs the CUDA passes of batch normalisation with activation on the CPU, on torch tensors.

mean, m2 = run_norm("stats", problem, {"y": y})
z = run_norm("fprop", problem, {"y": y, "mean": mean, "rstd": rstd})["z"]
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from emulated import PLACEMENTS, Epilogue, emulation, source_lines
from torch import Tensor

# What a pass writes; dresidual where it is asked for.
RESULTS = {
    "stats": ("out_mean", "out_m2"),
    "fprop": ("z",),
    "sums": ("out_sum_g", "out_sum_gy"),
    "dgrad": ("dy", "dresidual"),
}
TENSORS = ("y", "dz", "residual", "z", "dy", "dresidual")


@dataclass(frozen=True)
class NormProblem:
    """y is [n, k, size]."""

    n: int
    k: int
    size: int
    channels_last: bool
    dtype: torch.dtype

    @property
    def statistics(self) -> torch.dtype:
        return torch.float64 if self.dtype == torch.float64 else torch.float32


def run_norm(
    pass_: str,
    problem: NormProblem,
    operands: dict[str, Tensor],
    epilogue: Epilogue | None = None,
    seed: int = 1,
    *,
    results: tuple[str, ...] | None = None,
    in_place: bool = False,
    count: float | None = None,
    placement: str | None = None,
    workers: int = 1,
    launches: list[Any] | None = None,
) -> dict[str, Tensor]:
    """One pass, as `emulated.run_instance` runs a convolution.

    Args:
        operands: by the names of NormCall's members; tensors [n, k, size], statistics [k].
        epilogue: activation and residual; with y_channels, z is a slice.
        in_place: z is y.
    """
    p, e = problem, epilogue or Epilogue()
    module = emulation()
    args, options = norm_call(pass_, p, operands, e, results or RESULTS[pass_], in_place, count)
    with source_lines(module):
        read, counted = module.run_norm(
            *args, **options, seed=seed, workers=workers,
            placement=getattr(module.Placement, placement or PLACEMENTS[seed % len(PLACEMENTS)]),
        )  # fmt: skip
    if launches is not None:
        launches += counted.records
    return {name: _tensor(name, data, p, e) for name, data in read.items()}


def norm_call(
    pass_: str,
    p: NormProblem,
    operands: dict[str, Tensor],
    e: Epilogue,
    wanted: tuple[str, ...],
    in_place: bool = False,
    count: float | None = None,
) -> tuple[list[Any], dict[str, Any]]:
    """The arguments and options of the emulation's run_norm."""
    item, statistic = p.dtype.itemsize, p.statistics.itemsize
    sizes = {name: p.n * p.k * p.size * item if name in TENSORS else p.k * statistic
             for name in wanted}  # fmt: skip
    if "z" in sizes and e.y_channels:
        sizes["z"] = p.n * e.y_channels * p.size * item
    activation, slope, after, z_channels, first, _ = e.arguments
    args = [pass_, p.n, p.k, p.size, p.channels_last, str(p.dtype).removeprefix("torch."),
            {name: _bytes(name, t, p) for name, t in operands.items()}, sizes]  # fmt: skip
    return args, {
        "activation": activation, "slope": slope, "residual_after": after,
        "z_channels": z_channels, "first": first, "in_place": in_place,
        "count": p.n * p.size if count is None else count,
    }  # fmt: skip


def norm_launches(pass_: str, problem: NormProblem, placement: str = "start") -> list[Any]:
    """What a pass launches, planned and not run: (kernel, blocks, threads per block,
    dynamic_bytes) each."""
    p = problem
    tensor = (p.n * p.k * p.size * p.dtype.itemsize, [])
    channel = (p.k * p.statistics.itemsize, [])
    names = {"stats": ("y",), "fprop": ("y", "mean", "rstd")}
    operands = {
        name: tensor if name in TENSORS else channel
        for name in names.get(pass_, ("y", "dz", "mean", "rstd"))
    }
    module = emulation()
    wanted = RESULTS[pass_]
    _, counted = module.run_norm(
        pass_, p.n, p.k, p.size, p.channels_last, str(p.dtype).removeprefix("torch."), operands,
        {name: tensor[0] if name in TENSORS else channel[0] for name in wanted},
        placement=getattr(module.Placement, placement), block_limit=0,
    )  # fmt: skip
    return counted.records


def _bytes(name: str, t: Tensor, p: NormProblem) -> Any:
    if name in TENSORS:
        assert t.dtype == p.dtype and tuple(t.shape) == (p.n, p.k, p.size), name
        t = t.transpose(1, 2) if p.channels_last else t
    else:
        assert t.dtype == p.statistics and tuple(t.shape) == (p.k,), name
    return t.contiguous().flatten().view(torch.uint8).numpy()


def _tensor(name: str, data: Any, p: NormProblem, e: Epilogue) -> Tensor:
    values = torch.from_numpy(data)
    if name not in TENSORS:
        return values.view(p.statistics)
    channels = e.y_channels if name == "z" and e.y_channels else p.k
    if p.channels_last:
        return values.view(p.dtype).view(p.n, p.size, channels).transpose(1, 2)
    return values.view(p.dtype).view(p.n, channels, p.size)
