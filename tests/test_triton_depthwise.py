"""Depthwise convolution in Triton, run by Triton's interpreter, against the float64 reference.

Integers throughout, so that a wrong or missing product cannot hide in a tolerance; the arithmetic
of real numbers has a test of its own. tests/test_triton_conv_compiled.py looks at what the compiler
makes of the same kernels.
"""

from __future__ import annotations

from itertools import cycle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import ConvCase, conv_case, sliced
from torch import Tensor

pytest.importorskip("triton")

import interpreted_triton

from fastconv import reference
from fastconv.problem import dense_strides
from fastconv.tolerances import accumulate_tolerance

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# More places than a tile, more channels than one, tails of both.
NHWC, NCHW = (16, 4, 1), (32, 1, 1)

CASES = [
    conv_case("3x3", (2, 3, 5, 4), (3, 1, 3, 3), padding=1, groups=3),
    conv_case("valid_even", (1, 5, 4, 7), (5, 1, 2, 4), groups=5),
    conv_case("stride2", (2, 3, 7, 6), (3, 1, 3, 3), 2, 1, groups=3),
    conv_case("stride_over_kernel", (1, 2, 7, 8), (2, 1, 2, 1), 3, 1, groups=2),
    conv_case("strided_dilated", (1, 3, 9, 8), (3, 1, 3, 2), (2, 3), (3, 2), (3, 2), groups=3),
    conv_case("multiplier", (1, 2, 5, 4), (6, 1, 3, 3), 1, 1, groups=2),
    conv_case("multiplier_stride2", (1, 2, 6, 5), (4, 1, 3, 2), 2, 1, groups=2),
    conv_case("1d_two_rows_of_taps", (2, 1, 15), (1, 1, 9), 1, 4, groups=1),
    conv_case("1d_looped_taps", (1, 1, 34), (1, 1, 33), 1, 2, groups=1),
    conv_case("3d", (1, 2, 3, 4, 3), (2, 1, 2, 3, 2), (1, 2, 1), 1, groups=2),
]
_dtypes = cycle(DTYPES)
GIVEN = [
    pytest.param(case, last, dtype, id=f"{case.id}-{'nhwc' if last else 'nchw'}-{dtype}"[:40])
    for case in CASES
    for last in ((False, True) if case.rank > 1 else (False,))
    for dtype in [next(_dtypes)]
]


@pytest.fixture(scope="module")
def launchers() -> Any:
    module = interpreted_triton.load("depthwise")
    names = ("conv_fprop", "conv_dgrad", "conv_wgrad")

    def quiet(name: str) -> Any:
        return lambda *args, **rest: interpreted_triton.quietly(
            lambda: getattr(module, name)(*args, **rest)
        )

    return type("Quiet", (), {"module": module, **{n: staticmethod(quiet(n)) for n in names}})


def config_of(launchers: Any, last: bool) -> Any:
    return launchers.module.Config(*(NHWC if last else NCHW))


def integers(size: Any, dtype: torch.dtype, last: bool, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(-2, 3, tuple(size), generator=generator).to(dtype)
    strides = dense_strides(size, last) if len(size) > 1 else [1]
    return torch.empty_strided(size, strides, dtype=dtype).copy_(values)


@pytest.mark.parametrize("case, last, dtype", GIVEN)
def test_three_directions(launchers, case: ConvCase, last: bool, dtype: torch.dtype) -> None:
    x, w, dy, bias = (
        integers(size, dtype, last, number)
        for number, size in enumerate(
            (case.input_size, case.weight_size, case.output_size, case.weight_size[:1])
        )
    )
    config = config_of(launchers, last)
    y = launchers.conv_fprop(x, w, bias, *case.params, config=config)
    known = {"config": config, "channels_last": last}
    dx = launchers.conv_dgrad(dy, w, case.input_size, *case.params, **known)
    dw = launchers.conv_wgrad(dy, x, case.weight_size, *case.params, **known)
    for found, expected in (
        (y, reference.conv_fprop(x, w, bias, *case.params)),
        (dx, reference.conv_dgrad(dy, w, case.input_size, *case.params)),
        (dw, reference.conv_wgrad(dy, x, case.weight_size, *case.params)),
    ):
        assert found.dtype == dtype and list(found.stride()) == dense_strides(found.shape, last)
        assert torch.equal(found.double(), expected.to(dtype).double())


def test_real_numbers(launchers) -> None:
    case = CASES[1]
    x, w, dy = (torch.randn(s) for s in (case.input_size, case.weight_size, case.output_size))
    config = config_of(launchers, False)
    y = launchers.conv_fprop(x, w, None, *case.params, config=config)
    dw = launchers.conv_wgrad(dy, x, case.weight_size, *case.params, config=config)
    for found, direction, compute, operands in (
        (y, "fprop", reference.conv_fprop, (x, w, None)),
        (dw, "wgrad", reference.conv_wgrad, (dy, x, case.weight_size)),
    ):
        expected, magnitude = (compute(*operands, *case.params, magnitude=m) for m in (False, True))
        bound = accumulate_tolerance(torch.float32, expected, magnitude, case.gemm_k(direction))
        assert ((found.double() - expected).abs() <= bound).all()


@pytest.mark.parametrize("code", range(5))
@pytest.mark.parametrize("last", (False, True), ids=("nchw", "nhwc"))
def test_epilogue(launchers, code: int, last: bool) -> None:
    """Into a channel slice, with all that an epilogue may have, the residual on either side."""
    case = conv_case("epilogue", (2, 3, 3, 2), (3, 1, 3, 3), padding=1, groups=3)
    x, w = (integers(s, torch.float32, last) for s in (case.input_size, case.weight_size))
    bias, scale, shift = (integers((3,), torch.float32, False, n) for n in (5, 6, 7))
    residual = integers(case.output_size, torch.float32, last, 8)
    after = bool(code % 2)
    whole = torch.full((2, 8, 3, 2), -77.0)
    if last:
        whole = whole.to(memory_format=torch.channels_last)
    epilogue = (code, 0.25, residual, after, scale, shift)
    launchers.conv_fprop(
        x, w, bias, *case.params, config=config_of(launchers, last), epilogue=epilogue,
        out=whole[:, 3:6],
    )  # fmt: skip
    act = (lambda v: v, F.relu, lambda v: F.leaky_relu(v, 0.25), F.relu6, F.silu)[code]
    pre = F.conv2d(x, w, bias, padding=1, groups=3) * scale.view(1, 3, 1, 1)
    pre = pre + shift.view(1, 3, 1, 1)
    expected = act(pre) + residual if after else act(pre + residual)
    assert torch.allclose(whole[:, 3:6], expected, rtol=1e-6, atol=1e-6)
    assert (whole[:, :3] == -77).all() and (whole[:, 6:] == -77).all()


@pytest.mark.parametrize("last", (False, True), ids=("nchw", "nhwc"))
def test_wide_offsets_and_odd_strides(launchers, monkeypatch, last: bool) -> None:
    """64-bit offsets give the same; operands in the midst of NaN are read where they are."""
    monkeypatch.setattr(launchers.module, "_INT32", 0)
    launchers.module.forget()
    case = CASES[2]
    x, w, dy = (
        sliced(integers(s, torch.float32, last))
        for s in (case.input_size, case.weight_size, case.output_size)
    )
    config = config_of(launchers, last)
    known = {"config": config, "channels_last": last}
    dx = launchers.conv_dgrad(dy, w, case.input_size, *case.params, **known)
    dw = launchers.conv_wgrad(dy, x, case.weight_size, *case.params, **known)
    if last:
        x = x.to(memory_format=torch.channels_last)
    y = launchers.conv_fprop(x, w, None, *case.params, config=config)
    assert torch.equal(y.double(), reference.conv_fprop(x, w, None, *case.params))
    assert torch.equal(dx.double(), reference.conv_dgrad(dy, w, x.shape, *case.params))
    assert torch.equal(dw.double(), reference.conv_wgrad(dy, x, w.shape, *case.params))
    launchers.module.forget()


def test_padding_adds_nothing(launchers) -> None:
    """An infinite weight that only ever meets padding leaves no NaN."""
    x, w = torch.ones(1, 1, 1, 4), torch.ones(1, 1, 3, 3)
    w[0, 0, 0] = w[0, 0, 2] = float("inf")
    lists = ([1, 1], [1, 1], [1, 1], 1)
    config = config_of(launchers, False)
    y = launchers.conv_fprop(x, w, None, *lists, config=config)
    assert y.tolist() == [[[[2, 3, 3, 2]]]]
    dx = launchers.conv_dgrad(torch.ones(1, 1, 1, 4), w, x.shape, *lists, config=config)
    assert dx.tolist() == [[[[2, 3, 3, 2]]]]


def test_many_slices_add_up(launchers, monkeypatch) -> None:
    monkeypatch.setattr(launchers.module, "_LEAST_STEPS", 1)
    monkeypatch.setattr(launchers.module, "_PROGRAMS", 40)
    case = conv_case("slices", (3, 2, 9, 8), (2, 1, 1, 3), padding=(0, 1), groups=2)
    x, dy = (integers(s, torch.float32, False) for s in (case.input_size, case.output_size))
    sizes = []
    launch = launchers.module.launch

    def seen(step: Any, tensors: Any) -> None:
        partial = step.kernel.endswith("wgrad_depthwise_kernel")
        sizes.append((step.kernel, tensors[2].shape if partial else None))
        launch(step, tensors)

    monkeypatch.setattr(launchers.module, "launch", seen)
    config = config_of(launchers, False)
    dw = launchers.conv_wgrad(dy, x, case.weight_size, *case.params, config=config)
    assert sizes[0][1] is not None and sizes[0][1][0] >= 10
    assert torch.equal(dw.double(), reference.conv_wgrad(dy, x, case.weight_size, *case.params))


def test_refusals() -> None:
    from fastconv._triton import depthwise

    nhwc, nchw = depthwise.Config(*NHWC), depthwise.Config(*NCHW)
    image, w = (1, 4, 5, 5), (8, 1, 3, 3)
    assert depthwise.refusal(image, w, 4, True, nhwc) is None
    assert depthwise.refusal(image, w, 4, False, nchw) is None
    assert depthwise.refusal((1, 4, 5), (8, 1, 3), 4, True, nchw) is None
    assert "channels_last" in str(depthwise.refusal(image, w, 4, True, nchw))
    assert "contiguous" in str(depthwise.refusal(image, w, 4, False, nhwc))
    assert "4 channels in 2 groups of 2" in str(
        depthwise.refusal(image, (8, 2, 3, 3), 2, False, nchw)
    )
