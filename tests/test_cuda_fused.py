"""The way of a fused call on CUDA: choice, trust, gradients, on the emulated kernels."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from pretend_gpu import pretend_gpu
from torch import nn

import fastconv
from fastconv import fused, select, select_cuda, selftest_fused, trust
from fastconv.nn import ConvBNReLU2d, Inception
from fastconv.ops import fused_autograd
from fastconv.ops.conv_call import Call
from fastconv.ops.fused_recipe import Recipe

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _gpu(monkeypatch: pytest.MonkeyPatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    with pretend_gpu(monkeypatch):
        yield


def layers(**options) -> tuple[ConvBNReLU2d, nn.Sequential]:
    layer = ConvBNReLU2d(5, 8, 3, padding=1, **options)
    return layer, nn.Sequential(*copy.deepcopy(list(layer)))


def reference(plain: nn.Sequential, x: torch.Tensor, residual: torch.Tensor | None = None):
    conv, norm = plain[0], plain[1]
    y = F.conv2d(x, conv.weight, conv.bias, padding=conv.padding)
    z = norm(y)
    return F.relu(z if residual is None else z + residual)


@pytest.mark.parametrize("algo", ["direct", "im2col", "winograd_f2x2_3x3", "aten"])
@pytest.mark.parametrize("last", [False, True])
def test_training_and_evaluation(algo, last):
    layer, plain = layers(algo=algo)
    x, residual = torch.randn(2, 5, 7, 6), torch.randn(2, 8, 7, 6)
    if last:
        x, residual = (t.contiguous(memory_format=torch.channels_last) for t in (x, residual))
    for net, run in ((layer, layer), (plain, lambda *a: reference(plain, *a))):
        net.train()
        leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
        run(leaf, residual).square().sum().backward()
        net.seen = leaf.grad
    torch.testing.assert_close(layer.seen, plain.seen, rtol=1e-3, atol=1e-4)
    for a, b in zip(layer.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(layer[1].running_var, plain[1].running_var)
    layer.eval(), plain.eval()
    with torch.no_grad():
        torch.testing.assert_close(
            layer(x, residual), reference(plain, x, residual), rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("algo, passes", [("im2col", 0), ("direct", 0), ("direct_plain", 1)])
def test_launches(algo, passes):
    """Training: the convolution, which takes the statistics of its tiles along where it can (else a
    pass over y does), their merging, one pass over y. Evaluation: one in all."""
    layer, _ = layers(algo=algo)
    x = torch.randn(2, 5, 7, 6)

    def launches() -> int:
        before = torch.ops.fastconv_emulated.launches()
        layer(x)
        return torch.ops.fastconv_emulated.launches() - before

    assert launches() == 3 + passes
    layer.eval()
    with torch.no_grad():
        layer(x)
        assert launches() == 1


def test_training_takes_what_is_cheapest_with_its_statistics(monkeypatch):
    """A kernel ahead by less than the pass over y that it needs runs in evaluation alone."""
    order = ("direct_plain/fprop_f32_nchw_analytic", "direct/fprop_f32_nchw_smem_k32_q256")
    cost = {order[0]: 1e-6, order[1]: 2e-6}

    def candidates(spec, statistics):
        entries = real(spec, statistics)
        if spec.direction != "fprop":
            return entries
        return [
            replace(c, cost=cost.get(c.name, 1.0 if c.name == select.ATEN else 0.9))
            for c in entries
        ]

    real = select_cuda._candidates
    monkeypatch.setattr(select_cuda, "_candidates", candidates)
    monkeypatch.setattr(select_cuda, "admitted", lambda spec, name: True)
    ran = []
    for name in ("conv_stats", "conv_epilogue"):
        for module in (fused, fused_autograd):
            if not hasattr(module, name):
                continue
            run = getattr(module, name)
            monkeypatch.setattr(
                module,
                name,
                lambda *a, run=run: (
                    ran.append(next(c.name for c in a if isinstance(c, Call))) or run(*a)
                ),
            )
    layer, plain = layers()
    x = torch.randn(2, 5, 7, 6)
    torch.testing.assert_close(layer(x), reference(plain, x), rtol=1e-4, atol=1e-4)
    chosen = fastconv.explain(x, layer[0].weight, padding=1, statistics=True)["fprop"].chosen
    layer.eval()
    with torch.no_grad():
        layer(x)
    assert ran == [order[1], order[0]] and chosen == order[1]
    assert fastconv.explain(x, layer[0].weight, padding=1)["fprop"].chosen == order[0]
    # Further ahead than that.
    cost[order[1]] = 1e-6 + 1e-5
    select.forget()
    layer.train()
    layer(x)
    assert ran[2:] == [order[0]]


def test_chain_makes_its_inputs_anew():
    chain = nn.Sequential(*[ConvBNReLU2d(5, 5, 3, padding=1, algo="im2col") for _ in range(3)])
    plain = nn.Sequential(*[nn.Sequential(*copy.deepcopy(list(layer))) for layer in chain])
    x = torch.randn(2, 5, 7, 6)
    z = chain(x)
    kept = [z.grad_fn._raw_saved_tensors[0].data, z.grad_fn._raw_saved_tensors[6].data]
    assert isinstance(kept[0], Recipe) and kept[1].shape == z.shape
    z.square().sum().backward()
    plain(x).square().sum().backward()
    for a, b in zip(chain.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=2e-3, atol=1e-3)


def test_passes_are_checked_before_auto_uses_them(monkeypatch):
    layer, plain = layers()
    layer.eval(), plain.eval()
    x = torch.randn(1, 5, 6, 6)
    name = selftest_fused.NormInstance(torch.float32, False).name
    assert trust.error_of("cuda:0", name) is None
    with torch.no_grad():
        torch.testing.assert_close(layer(x), reference(plain, x), rtol=1e-4, atol=1e-5)
    assert trust.error_of("cuda:0", name) == ""

    def wrong(*args):
        return torch.full_like(args[0], 7.0)

    trust.clear()
    select.forget()
    real = selftest_fused.OPS

    class Damaged:
        def __getattr__(self, op):
            return wrong if op == "norm_act_fprop" else getattr(real, op)

    monkeypatch.setattr(selftest_fused, "OPS", Damaged())
    calls = []
    monkeypatch.setattr(fused, "conv_epilogue", lambda *a: calls.append(a))
    with warnings.catch_warnings(record=True) as caught, torch.no_grad():
        warnings.simplefilter("always")
        torch.testing.assert_close(layer(x), reference(plain, x), rtol=1e-4, atol=1e-5)
    assert calls == [], "a pass that failed its check must not run"
    assert any(name in str(w.message) for w in caught)


def test_inception():
    layer = Inception(6, 4, 3, 5, 2, 3, 2)
    x = torch.randn(1, 6, 5, 5)
    branches = [layer.branch1, layer.branch2, layer.branch3, layer.branch4]
    expected = torch.cat([b(x) for b in branches], 1)
    for algo in ("im2col", "direct"):
        layer.algo = algo
        leaf = x.clone().requires_grad_()
        y = layer(leaf)
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
        y.sum().backward()
        assert leaf.grad is not None


def test_functional_refuses_nothing_it_took_on_the_cpu():
    x, w = torch.randn(1, 3, 5, 5, dtype=torch.float64), torch.randn(4, 3, 3, 3).double()
    stats = (torch.zeros(4).double(), torch.ones(4).double())
    y = fastconv.conv_bn_relu(x, w, None, None, None, *stats, algo="direct")
    torch.testing.assert_close(y, F.relu(F.conv2d(x, w) / (1 + 1e-5) ** 0.5))
