"""The way of an inception module on CUDA: choice, trust, forward and backward, on the emulated
kernels."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from pretend_gpu import H200, pretend_gpu
from test_inception import SIZES, parameters, separate
from torch import Tensor

import fastconv
from fastconv import _C, select, select_inception, selftest_inception, trust
from fastconv.derived import Derived
from fastconv.ops import fused_run
from fastconv.select_inception import InceptionFamily

pytestmark = pytest.mark.slow
FAMILY = InceptionFamily(torch.float32, False, "ieee")


@pytest.fixture(autouse=True)
def _gpu(monkeypatch: pytest.MonkeyPatch, tmp_path) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    # Enough for the way; the kernels themselves have tests of their own.
    monkeypatch.setattr(selftest_inception, "SIZES", ((1, 8, 5, 6, 3, 8, 4, 8, 4, 4, 3, 5),))
    with pretend_gpu(monkeypatch):
        yield


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The instances that modules ran by."""
    names: list[str] = []
    real = fused_run._inception

    def recorded(*args):
        names.append(args[-1])
        return real(*args)

    monkeypatch.setattr(fused_run, "_inception", recorded)
    return names


def operands(dtype=torch.float32, channels_last=False) -> tuple[Tensor, list, list]:
    weights, biases = parameters(dtype)
    x = torch.randn(2, SIZES[0], 5, 6, generator=torch.Generator().manual_seed(3)).to(dtype)
    return (
        (x.contiguous(memory_format=torch.channels_last) if channels_last else x),
        weights,
        biases,
    )


@pytest.mark.parametrize("channels_last", [False, True])
def test_auto_takes_the_two_grids(channels_last: bool, calls: list[str]) -> None:
    """In the input's format; the same as the branches one by one."""
    x, weights, biases = operands(channels_last=channels_last)
    y = fastconv.inception(x, weights, biases)
    assert calls == ["f32_nhwc_ffma_64x64x16" if channels_last else "f32_nchw_ffma_64x64x16"]
    expected = separate(x, weights, biases)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    assert y.stride() == expected.stride()


@pytest.mark.parametrize("channels_last", [False, True])
def test_precision_chooses_the_products(channels_last: bool) -> None:
    """GoogLeNet's first module: three where they are asked for, one where TF32 is, else FMA."""
    one, red3, three, red5, five, projection = 64, 96, 128, 16, 32, 32
    sizes = ((one, 192, 1), (red3, 192, 1), (three, red3, 3), (red5, 192, 1), (five, red5, 5),
             (projection, 192, 1))  # fmt: skip
    weights = [torch.empty(k, c, extent, extent) for k, c, extent in sizes]
    x = torch.empty(1, 192, 28, 28)
    names = {}
    for precision in ("tf32x3", "tf32", "ieee"):
        found = select_inception.choose(x, weights, channels_last, f"im2col+{precision}")
        names[precision] = (found.name or found.reason).split("_")[0]
    assert names == {"tf32x3": "tf32x3", "tf32": "tf32", "ieee": "f32"}


def test_gradients_form_the_pooled_tensor_anew(calls: list[str]) -> None:
    x, weights, biases = operands()
    everything = [x, *weights, *biases]
    for chosen in (range(13), (0,), (6,), (12,), (2, 9)):
        ours, theirs = (
            [t.clone().requires_grad_(i in chosen) for i, t in enumerate(everything)]
            for _ in range(2)
        )
        g = torch.randn(2, 4 + 5 + 3 + 2, 5, 6)
        fastconv.inception(ours[0], ours[1:7], ours[7:], algo="im2col").backward(g)
        separate(theirs[0], theirs[1:7], theirs[7:]).backward(g)
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            assert (a.grad is None) == (i not in chosen)
            if a.grad is not None:
                torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-4)
    assert len(calls) == 5


def test_who_names_another_algorithm_gets_it(calls: list[str]) -> None:
    x, weights, biases = operands()
    fastconv.inception(x, weights, biases, algo="direct")
    assert calls == []
    assert "'direct' was named" in choice(algo="direct").reason
    fastconv.inception(x, weights, biases, algo="im2col")
    assert len(calls) == 1
    wide = [[t.double() for t in ts] for ts in (weights, biases)]
    fastconv.inception(x.double(), *wide, algo="direct")
    assert choice(dtype=torch.float64).reason == "no kernel for float64"
    assert len(calls) == 1


def choice(dtype=torch.float32, algo="auto", like: Tensor | None = None) -> select_inception.Choice:
    x, weights, _ = operands(dtype)
    return select_inception.choose(x if like is None else like, weights, False, algo)


def test_a_family_that_fails_its_check_is_not_used(
    monkeypatch: pytest.MonkeyPatch, calls: list[str]
) -> None:
    real = selftest_inception.OPS

    class Damaged:
        def inception_fprop(self, *args):
            y, reductions = real.inception_fprop(*args)
            y[0, 0, 0, 0] += 1
            return y, reductions

    monkeypatch.setattr(selftest_inception, "OPS", Damaged())
    x, weights, biases = operands()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert "has not passed" in choice().reason
    assert any(FAMILY.name in str(w.message) for w in caught)
    assert "failed its check" in choice(algo="im2col").reason
    y = fastconv.inception(x, weights, biases, algo="im2col")  # one by one
    assert calls == []
    torch.testing.assert_close(y, separate(x, weights, biases), rtol=1e-5, atol=1e-5)


def test_an_unknown_family_is_not_used_while_a_graph_is_captured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trust, "capturing", lambda: True)
    assert choice().name is None
    monkeypatch.setattr(trust, "capturing", lambda: False)
    select.forget()
    assert choice().name is not None


def test_an_instance_that_is_off_alignment_makes_way() -> None:
    """For one that takes any: what was chosen by the sizes alone."""
    sizes = (1, 16, 5, 6, 8, 8, 8, 8, 8, 8, 3, 5)
    x, *rest = selftest_inception._operands(sizes, torch.float32)
    off = torch.empty(x.numel() + 1)[1:].view_as(x).copy_(x)
    name = "f32_nchw_ffma_32x32x16_slices4_vec4"
    ops = selftest_inception.OPS
    expected, _ = ops.inception_fprop(x, *rest, 1, 0.0, name)
    weights_off = [torch.empty(t.numel() + 1)[1:].view_as(t).copy_(t) for t in rest]
    y, _ = ops.inception_fprop(off, *weights_off, 1, 0.0, name)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(RuntimeError, match="C=6 is not a multiple of 4"):
        odd = selftest_inception._operands((1, 6, 5, 6, 8, 8, 8, 8, 8, 8, 3, 5), torch.float32)
        ops.inception_fprop(*odd, 1, 0.0, name)
    with pytest.raises(RuntimeError, match="no kernel of that name"):
        ops.inception_fprop(x, *rest, 1, 0.0, "nothing")


@pytest.mark.parametrize("family", select_inception.families(), ids=lambda f: f.name)
def test_every_family_has_its_check(family: InceptionFamily, monkeypatch) -> None:
    """Whose sizes reach each instance, with and without vectors."""
    monkeypatch.undo()
    names = family.instances()
    assert names
    for name in names:
        taken = [
            s for s in selftest_inception.SIZES if not selftest_inception._refused(family, name, s)
        ]
        assert len(taken) >= 2, name


def test_one_image_is_predicted_faster_in_two_grids() -> None:
    """For each of GoogLeNet's modules: in bf16 than by PyTorch's convolutions, with the margin that
    estimates ask for, and in either dtype than by ours one by one."""
    from bench.inception_problem import modules

    for layer in modules():
        for dtype, last in ((torch.bfloat16, True), (torch.float32, False)):
            sizes = (1, layer.C, layer.extent, layer.extent, *layer.K, 3, 5)
            rows = _C.cuda_inception_candidates(
                sizes, select_inception.NATIVE_DTYPES[dtype], select_inception.layout_of(last),
                _C.Products.ieee, H200.capability, H200.sm_count,
            )  # fmt: skip
            cost = min(cost for *_, reason, cost in rows if not reason)
            ours, aten = select_inception._apart(sizes, dtype, "cuda:0", last, "ieee")
            assert cost < 0.8 * ours, (layer.name, cost, ours)
            if dtype == torch.bfloat16:
                assert cost < select_inception.MARGIN * aten, (layer.name, cost, aten)


def test_joined_weights_are_kept_between_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """And made anew when one of them changes."""
    x, weights, biases = operands()
    made = []
    module = sys.modules["fastconv.inception"]  # the package's attribute is the function
    join = module._join_pointwise
    monkeypatch.setattr(module, "_joined_pointwise", Derived(lambda *t: made.append(0) or join(*t)))
    for _ in range(3):
        y = fastconv.inception(x, weights, biases)
    assert len(made) == 1
    weights[3].mul_(2)
    assert not torch.equal(fastconv.inception(x, weights, biases), y)
    assert len(made) == 2


def test_pool_alone_is_still_pytorchs(calls: list[str]) -> None:
    """NaN and -inf on the way through the projection's loads."""
    x, weights, biases = operands()
    x[0, 0, 0, 0], x[1, :, 2] = float("nan"), float("-inf")
    weights = [w.abs() for w in weights]
    y = fastconv.inception(x, weights, biases, activation="none")[:, -2:]
    expected = F.conv2d(F.max_pool2d(x, 3, 1, 1), weights[5], biases[5])
    assert len(calls) == 1
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5, equal_nan=True)
