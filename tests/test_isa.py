"""Instruction sets: every set that runs here computes the same convolutions, converts 16-bit floats
exactly, and keeps its code to itself."""

from __future__ import annotations

import itertools
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

import fastconv
from fastconv import _C

ROOT = Path(fastconv.__file__).resolve().parent.parent
OBJECTS = sorted(ROOT.glob("build/temp*/*_isa.cpp.*.o"))
# name: (input_size, weight_size, stride, padding, dilation, groups)
PROBLEMS = {
    "dense": ((2, 19, 13, 21), (37, 19, 3, 3), (1, 1), (1, 1), (1, 1), 1),
    "strided": ((2, 7, 17, 23), (9, 7, 5, 3), (2, 3), (2, 1), (1, 2), 1),
    "depthwise": ((2, 40, 15, 18), (40, 1, 3, 3), (1, 1), (1, 1), (1, 1), 40),
    "grouped": ((2, 12, 11, 19), (24, 4, 3, 3), (2, 2), (1, 1), (1, 1), 3),
    "row": ((3, 6, 211), (10, 6, 9), (2,), (4,), (1,), 1),
    "volume": ((1, 5, 6, 9, 17), (18, 5, 3, 2, 3), (1, 2, 1), (1, 0, 1), (1, 1, 1), 1),
}
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# Unit roundoff, 2^-p for p significant bits: results that round to neighbours differ by two of it.
ROUNDOFF = {
    torch.float32: 2**-24,
    torch.float64: 2**-53,
    torch.bfloat16: 2**-8,
    torch.float16: 2**-11,
}


def conv_all(name: str, dtype: torch.dtype, channels_last: bool) -> tuple[Tensor, Tensor, Tensor]:
    """y, dx and dw of one problem by `direct`, on inputs in [1, 2): no cancellation."""
    x_size, w_size, stride, padding, dilation, groups = PROBLEMS[name]
    rank = len(stride)
    generator = torch.Generator().manual_seed(7)
    x, w = (
        (torch.rand(size, generator=generator, dtype=torch.float64) + 1).to(dtype)
        for size in (x_size, w_size)
    )
    if channels_last and rank > 1:
        memory = torch.channels_last if rank == 2 else torch.channels_last_3d
        x = x.contiguous(memory_format=memory)
    params = list(stride), list(padding), list(dilation), groups
    ops = torch.ops.fastconv
    y = ops.conv_fprop(x, w, None, *params, "direct")
    dy = (torch.rand(y.shape, generator=generator, dtype=torch.float64) + 1).to(dtype)
    if channels_last and rank > 1:
        dy = dy.contiguous(memory_format=memory)
    dx = ops.conv_dgrad(dy, w, list(x_size), *params, channels_last, "direct")
    dw = ops.conv_wgrad(dy, x, list(w_size), *params, channels_last, "direct")
    return y, dx, dw


@pytest.fixture
def restore_isa() -> Iterator[None]:
    before = _C.cpu_isa()
    yield
    _C.set_cpu_isa(before)


@pytest.fixture(params=_C.cpu_isas())
def isa(request: pytest.FixtureRequest, restore_isa: None) -> str:
    """Each instruction set that this build has and this processor runs."""
    _C.set_cpu_isa(request.param)
    return request.param


def test_the_set_in_use_is_one_that_runs_here(restore_isa: None) -> None:
    assert _C.cpu_isa() in _C.cpu_isas()
    assert "baseline" in _C.cpu_isas()
    with pytest.raises(ValueError, match="'sse9' is not available"):
        _C.set_cpu_isa("sse9")


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
def test_sets_agree_and_repeat_bitwise(
    name: str, dtype: torch.dtype, channels_last: bool, isa: str
) -> None:
    first, second = conv_all(name, dtype, channels_last), conv_all(name, dtype, channels_last)
    _C.set_cpu_isa("baseline")
    base = conv_all(name, dtype, channels_last)
    for a, again, b in zip(first, second, base, strict=True):
        assert torch.equal(a, again)
        # All terms are positive, so sum|x||w| is the result: 8 units for its sum in the
        # accumulator's precision, one for each rounding to storage.
        unit = min(ROUNDOFF[dtype], ROUNDOFF[torch.float32])
        bound = (16 * unit + 2 * ROUNDOFF[dtype]) * b.double().abs()
        assert ((a.double() - b.double()).abs() <= bound).all()


def every_16bit_pattern(dtype: torch.dtype) -> Tensor:
    return torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)


def through_convolution(values: Tensor) -> Tensor:
    """values [n] through a 1x1 convolution with weight 1: storage to accumulator and back."""
    x = values.reshape(1, 1, -1)
    weight = torch.ones(1, 1, 1, dtype=values.dtype)
    return torch.ops.fastconv.conv_fprop(x, weight, None, [1], [0], [1], 1, "direct").flatten()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("length", [2**16, 13], ids=["vectors", "tail"])
def test_every_16bit_value_survives(dtype: torch.dtype, length: int, isa: str) -> None:
    values = every_16bit_pattern(dtype)
    # Lengths below a vector take the scalar conversions.
    pieces = [through_convolution(piece) for piece in values.split(length)]
    got = torch.cat(pieces)
    nan = values.isnan()
    assert torch.equal(got.isnan(), nan)
    # 0 + v * 1: everything else keeps its bits, but -0 becomes 0 (0 + -0 = 0).
    want = torch.where(values == 0, torch.zeros_like(values), values)
    assert torch.equal(got[~nan].view(torch.int16), want[~nan].view(torch.int16))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("length", [2**16, 13], ids=["vectors", "tail"])
def test_rounding_is_to_nearest_even(dtype: torch.dtype, length: int, isa: str) -> None:
    # A convolution of two taps, weights 1 and 1, adds pairs in float32: neighbours and halves of
    # one unit in the last place put the sum on, above and below each rounding boundary.
    low = every_16bit_pattern(dtype)
    low = low[low.isfinite()]
    unit = torch.ldexp(torch.ones(low.shape), torch.frexp(low.float()).exponent - 9)
    for scale in (0.5, 0.25, 0.75, 1.0, 1.5):
        high = (unit * scale * (1 if dtype == torch.bfloat16 else 0.125)).to(dtype)
        got = torch.cat(
            [
                torch.ops.fastconv.conv_fprop(
                    torch.stack((a, b)).unsqueeze(0),
                    torch.ones(1, 2, 1, dtype=dtype),
                    None, [1], [0], [1], 1, "direct",
                ).flatten()
                for a, b in zip(low.split(length), high.split(length), strict=True)
            ]
        )  # fmt: skip
        want = (low.float() + high.float()).to(dtype)
        assert torch.equal(got, want)
        if dtype == torch.float16 and scale == 1.5:
            assert want.isinf().any(), "the sums must also overflow"


@pytest.fixture(scope="module")
def isa_symbols() -> dict[str, list[str]]:
    """Weak symbols of each object that is compiled once per instruction set."""
    symbols = {}
    for path in OBJECTS:
        text = subprocess.run(
            ["nm", "-C", str(path)], capture_output=True, text=True, check=True
        ).stdout
        symbols[path.name] = [
            line for line in text.splitlines() if line[17:18] in "WVu" and line[17:18]
        ]
    return symbols


# Installed packages have no object files, and then there is nothing to look at: the test is made
# only where the package was built in its own tree.
if OBJECTS and shutil.which("nm"):

    def test_no_weak_symbols_per_instruction_set(isa_symbols: dict[str, list[str]]) -> None:
        """A weak symbol could be kept by the linker in its widest form and run on a processor
        that lacks it."""
        found = {name: lines for name, lines in isa_symbols.items() if lines}
        assert not found, found

    def test_each_set_is_compiled(isa_symbols: dict[str, list[str]]) -> None:
        stems = {name.split(".")[0] for name in isa_symbols}
        for stem, name in itertools.product(stems, _C.cpu_isas()):
            assert f"{stem}.cpp.{name}.o" in isa_symbols
