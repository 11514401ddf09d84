"""Bad input: the exception type and text of torch.nn.functional, and nothing broken afterwards."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import fastconv

OURS = {1: fastconv.conv1d, 2: fastconv.conv2d, 3: fastconv.conv3d}
TORCH = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def tensors():
    torch.manual_seed(0)
    return torch.randn(2, 4, 8, 8), torch.randn(6, 4, 3, 3)


X, W = tensors()
BAD = {
    "channels": (torch.randn(2, 3, 8, 8), W),
    "2-D input": (torch.randn(8, 8), W),
    "5-D input": (torch.randn(1, 2, 4, 8, 8), W),
    "weight of another rank": (X, torch.randn(6, 4, 3)),
    "scalar weight": (X, torch.randn(())),
    "stride 0": (X, W, None, 0),
    "stride -1": (X, W, None, (1, -1)),
    "negative padding": (X, W, None, 1, -1),
    "dilation 0": (X, W, None, 1, 0, 0),
    "groups 0": (X, W, None, 1, 0, 1, 0),
    "groups -1": (X, W, None, 1, 0, 1, -1),
    "groups do not divide K": (X, torch.randn(5, 2, 3, 3), None, 1, 0, 1, 2),
    "more groups than K": (torch.randn(1, 4, 8, 8), torch.randn(2, 1, 3, 3), None, 1, 0, 1, 4),
    "groups and channels": (X, torch.randn(6, 4, 3, 3), None, 1, 0, 1, 2),
    "kernel larger than input": (torch.randn(2, 4, 2, 2), W),
    "dilated kernel larger than input": (X, W, None, 1, 0, 9),
    "bias size": (X, W, torch.randn(5)),
    "bias rank": (X, W, torch.randn(6, 1)),
    "dtypes": (X, W.double()),
    "dtypes, 16-bit": (X.bfloat16(), W.half()),
    "bias dtype": (X, W, torch.randn(6).double()),
    "bool": (X.bool(), W.bool()),
    "no output channels": (X, torch.randn(0, 4, 3, 3)),
    "no rows": (torch.randn(2, 4, 0, 8), W, None, 1, 1),
    "empty kernel": (X, torch.randn(6, 4, 0, 3)),
    "same with stride": (X, W, None, 2, "same"),
    "same with stride on one axis": (X, W, None, (2, 1), "same"),
    "padding string": (X, W, None, 1, "foo"),
    "padding string case": (X, W, None, 1, "SAME"),
    "three strides": (X, W, None, [1, 1, 1]),
    "no strides": (X, W, None, []),
    "three paddings": (X, W, None, 1, (1, 1, 1)),
    "three dilations": (X, W, None, 1, 0, (1, 1, 1)),
    "float stride": (X, W, None, 1.0),
    "bool stride": (X, W, None, True),
    "float strides": (X, W, None, (1.0, 1)),
    "string stride": (X, W, None, "1"),
    "padding None": (X, W, None, 1, None),
    "float groups": (X, W, None, 1, 0, 1, 1.0),
    "bool groups": (X, W, None, 1, 0, 1, True),
    "not a tensor": (X.numpy(), W),
    "None": (None, W),
    "weight None": (X, None),
    "bias not a tensor": (X, W, 1.0),
}


NAMES = ("bias", "stride", "padding", "dilation", "groups")
DEFAULTS = (None, 1, 0, 1, 1)


def outcome(f, args):
    """The result, or the error's type and text; optional arguments are passed by name."""
    given = zip(NAMES, DEFAULTS, args[2:], strict=False)
    options = {name: value for name, default, value in given if value is not default}
    try:
        return f(*args[:2], **options)
    except Exception as error:
        return type(error), str(error)


@pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])
@pytest.mark.parametrize("algo", ["auto", "direct", "im2col"])
@pytest.mark.parametrize("name", BAD)
def test_error_is_pytorchs(name, algo, grad):
    args = BAD[name]
    if grad:
        args = tuple(
            a.detach().requires_grad_() if isinstance(a, torch.Tensor) and a.is_floating_point()
            else a
            for a in args
        )  # fmt: skip
    expected = outcome(F.conv2d, args)
    assert isinstance(expected, tuple), f"PyTorch accepts this: {name}"
    for _ in range(2):
        assert outcome(partial(fastconv.conv2d, algo=algo), args) == expected
    # A good call right after.
    y = fastconv.conv2d(X, W, padding=1, algo=algo)
    torch.testing.assert_close(y, F.conv2d(X, W, padding=1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rank", [1, 3])
def test_error_of_other_ranks(rank):
    x, w = torch.randn(2, 4, *[5] * rank), torch.randn(6, 4, *[3] * rank)
    for args in (
        (torch.randn(2, 3, *[5] * rank), w),
        (torch.randn(5, 5), w.unsqueeze(-1)),
        (x, w, None, [1] * (rank + 1)),
        (x[0, 0], w),
        (x, w, None, 1, 0, 4),
    ):
        expected = outcome(TORCH[rank], args)
        assert isinstance(expected, tuple)
        assert outcome(OURS[rank], args) == expected
        assert outcome(partial(OURS[rank], algo="direct"), args) == expected


small = st.integers(-1, 3)


@given(
    x=st.lists(st.integers(0, 6), min_size=2, max_size=5),
    w=st.lists(st.integers(0, 4), min_size=3, max_size=5),
    bias=st.one_of(st.none(), st.integers(0, 4)),
    stride=st.one_of(small, st.lists(small, min_size=1, max_size=3)),
    padding=st.one_of(
        small, st.lists(small, min_size=1, max_size=3), st.sampled_from(["same", "valid"])
    ),
    dilation=st.one_of(small, st.lists(small, min_size=1, max_size=3)),
    groups=st.integers(-1, 4),
    algo=st.sampled_from(["auto", "direct"]),
    rank=st.integers(1, 3),
)
def test_random_arguments_agree_with_pytorch(
    x, w, bias, stride, padding, dilation, groups, algo, rank
):
    x, w = torch.ones(x), torch.ones(w)
    bias = None if bias is None else torch.ones(bias)
    args = (x, w, bias, stride, padding, dilation, groups)
    expected = outcome(TORCH[rank], args)
    result = outcome(partial(OURS[rank], algo=algo), args)
    if isinstance(expected, tuple):
        assert result == expected
    else:
        torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)


def test_mixed_devices():
    for args in ((X, W.to("meta")), (X.to("meta"), W)):
        expected, result = outcome(F.conv2d, args), outcome(fastconv.conv2d, args)
        if isinstance(expected, tuple):
            assert result == expected
        else:
            assert result.shape == expected.shape and result.device == expected.device


def test_unknown_algorithm_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown algorithm 'fft'; expected one of: auto, direct"):
        fastconv.conv2d(X, W, algo="fft")
    for algo in (None, 3):
        with pytest.raises(ValueError, match="algo must be a string"):
            fastconv.conv2d(X, W, algo=algo)
    with pytest.raises(ValueError, match="unknown algorithm"):
        fastconv.conv2d(X, W, algo="direct|auto")


def test_unknown_precision():
    with pytest.raises(ValueError, match=r"precision must be one of None, 'ieee'.*got 'fp8'"):
        fastconv.conv2d(X, W, precision="fp8")


def test_named_algorithm_that_does_not_apply_says_why():
    names = [n for n in fastconv.select.names() if n.startswith("winograd")]
    assert names, "this test needs an algorithm with limits"
    for algo in names:
        with pytest.raises(RuntimeError, match=f"'{algo}' does not apply to conv2d .*5x5"):
            fastconv.conv2d(X, torch.randn(6, 4, 5, 5), algo=algo)
    with pytest.raises(RuntimeError, match=r"'direct' does not apply: .* meta"):
        fastconv.conv2d(X.to("meta"), W.to("meta"), algo="direct")
