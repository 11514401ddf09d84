"""What chains of training layers keep: the recipe of an input that another such layer made."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint

import fastconv
from fastconv.nn import ConvBNReLU2d
from fastconv.ops import fused_autograd
from fastconv.ops.fused_recipe import Recipe

LAYERS = 4


def layers(**options) -> list[nn.Module]:
    return [ConvBNReLU2d(8, 8, 3, padding=1, **options) for _ in range(LAYERS)]


def chain(**options) -> nn.Sequential:
    torch.manual_seed(3)
    made = nn.Sequential(*layers(**options))
    for layer in made:
        nn.init.normal_(layer[1].weight, 1, 0.3)
        nn.init.normal_(layer[1].bias)
    return made


def batch(dtype=torch.float32, last=False, size=12) -> torch.Tensor:
    gen = torch.Generator().manual_seed(4)
    x = torch.randn(3, 8, size, size, generator=gen).to(dtype)
    form = torch.channels_last if last else torch.contiguous_format
    return x.contiguous(memory_format=form).requires_grad_()


def nodes(z) -> list:
    """The nodes of the fused layers, from the last to the first."""
    found, node = [], z.grad_fn
    while node is not None:
        if isinstance(node, fused_autograd.ConvNormAct._backward_cls):
            found.append(node)
        node = node.next_functions[0][0] if node.next_functions else None
    return found


def kept(node) -> list:
    """What a node keeps as they lie: tensors, and recipes."""
    return [s.data for s in node._raw_saved_tensors]


def recipes(z) -> list[bool]:
    return [isinstance(kept(node)[0], Recipe) for node in nodes(z)]


def gradients(model, x, g) -> tuple[torch.Tensor, list[torch.Tensor]]:
    model.zero_grad()
    x.grad = None
    z = model(x)
    z.backward(g)
    return z.detach(), [x.grad, *(p.grad for p in model.parameters())]


@pytest.mark.parametrize("name", ["relu", "silu", "none"])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64],
                         ids=str)  # fmt: skip
def test_same_bits_as_with_the_input_kept(dtype, last, name, monkeypatch):
    model, x = chain(activation=name).to(dtype), batch(dtype, last)
    with torch.no_grad():
        g = torch.randn_like(model(x))
    assert recipes(model(x)) == [True] * (LAYERS - 1) + [False]
    z, ours = gradients(model, x, g)
    monkeypatch.setattr(fused_autograd, "keep_recipe", lambda *_, **__: None)
    assert recipes(model(x)) == [False] * LAYERS
    again, expected = gradients(model, x, g)
    for a, b in zip([z, *ours], [again, *expected], strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("threads", [1, 2])
def test_the_input_comes_back_to_the_bit(threads):
    before = torch.get_num_threads()
    model, x = chain(activation="silu"), batch(size=37)
    try:
        first = model[0](x)
        value = first.detach().clone()
        z = model[1](first)
        torch.set_num_threads(threads)
        made = z.grad_fn.saved_tensors[0]
    finally:
        torch.set_num_threads(before)
    assert made is not first and torch.equal(made, value)
    assert made.grad_fn is first.grad_fn


def separate(model) -> nn.Sequential:
    return nn.Sequential(*[nn.Sequential(*copy.deepcopy(list(layer))) for layer in model])


def test_bytes_that_operations_save():
    """Summed over operations: separate ones save x, y and z each."""
    model, x = chain(), batch()
    floor = 1024  # vectors and weights
    sizes: list[int] = []

    def pack(t):
        sizes.append(t.nbytes)
        return t

    plain = separate(model)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        plain(x)
    weights = {p.nbytes for p in model.parameters()}
    eager = sum(n for n in sizes if n > floor and n not in weights)
    assert eager == 3 * LAYERS * x.nbytes
    ours = 0
    for node in nodes(model(x)):
        for t in kept(node):
            if isinstance(t, torch.Tensor) and t.nbytes > floor and t.nbytes not in weights:
                ours += t.nbytes
    assert ours / eager <= 0.45, ours / eager


def live_bytes(model, x) -> int:
    """Bytes that a forward pass leaves allocated, less its result."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        z = model(x)
    total = sum(event.self_cpu_memory_usage for event in trace.events())
    return total - z.nbytes


@pytest.mark.parametrize("last", [False, True])
def test_bytes_that_stay_allocated(last):
    model, x = chain(), batch(last=last, size=40)
    plain = separate(model)
    for m in (model, plain):  # what is kept from the first call on is no part of a step
        m(x).sum().backward()
    # z of the last layer stays in any case; x was there before.
    ours, eager = live_bytes(model, x), live_bytes(plain, x)
    assert 1.9 * LAYERS - 1.1 <= eager / x.nbytes <= 2.1 * LAYERS
    assert (ours + x.nbytes) / (eager + 2 * x.nbytes) <= 0.6, (ours, eager, x.nbytes)


def test_a_kept_result_does_not_keep_what_it_comes_from():
    model, x = chain(), batch()
    first = model[0](x)
    y = weakref.ref(kept(first.grad_fn)[6])
    assert y().shape == first.shape
    z = model[1](first)
    assert isinstance(kept(z.grad_fn)[0], Recipe) and kept(z.grad_fn)[0].y is y()
    z.sum().backward()
    gc.collect()
    assert y() is None and first.grad_fn is not None
    # Later layers keep such an input.
    again = model[1](first.detach_().requires_grad_())
    assert recipes(again) == [False]


def test_freed_graph_behind_the_input():
    model, x = chain(), batch()
    first = model[0](x)
    first.sum().backward()
    z = model[1](first)
    assert isinstance(kept(z.grad_fn)[0], torch.Tensor)
    (dw,) = torch.autograd.grad(z.sum(), [model[1][0].weight])
    assert torch.isfinite(dw).all()


def multiplied(t):
    with torch.no_grad():
        t.mul_(2)
    return t


def exchanged(t):
    t.data = 2 * t.data
    return t


@pytest.mark.parametrize(
    "change",
    [
        multiplied,
        exchanged,
        lambda t: t.mul_(2),
        lambda t: t.view_as(t),
        lambda t: t.detach().requires_grad_(),
        lambda t: t[:2],
        lambda t: t.to(torch.float64).float(),
    ],
)
def test_another_tensor_is_kept_itself(change):
    model, x = chain(activation="none"), batch()
    changed = change(model[0](x))
    value = changed.detach().clone()
    z = model[1](changed)
    assert isinstance(kept(z.grad_fn)[0], torch.Tensor)
    assert torch.equal(z.grad_fn.saved_tensors[0], value)


def test_written_to_after_use():
    """Separate layers refuse the backward pass; here the value that was used is at hand."""
    model, x = chain(), batch()
    first = model[0](x)
    value = first.detach().clone()
    z = model[1](first)
    with torch.no_grad():
        first.mul_(2)
    assert torch.equal(z.grad_fn.saved_tensors[0], value)
    assert recipes(model[1](first)) == [False, False]


@pytest.mark.parametrize("which", ["weight", "bias"])
def test_parameters_changed_before_backward(which):
    model, x = chain(), batch()
    z = model(x)
    with torch.no_grad():
        getattr(model[1][1], which).add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(z.sum(), [model[2][0].weight])
    first = model[0](x)
    with torch.no_grad():
        getattr(model[0][1], which).add_(1)
    assert recipes(model[1](first)) == [False, False]


def test_residuals_and_other_consumers():
    model, x = chain(), batch()
    first = model[0](x)
    second = model[1](first, first)  # kept as the residual
    assert recipes(second) == [False, False]
    third = model[2](second)  # whose input has a residual in it
    assert recipes(third)[0] is False
    plain = fastconv.nn.Conv2d(8, 8, 3)(first)
    (third.sum() + plain.sum()).backward()
    two = model[0](x)
    one, other = model[1](two), model[2](two)  # each makes it for itself
    assert kept(one.grad_fn)[0].y is kept(other.grad_fn)[0].y
    (one * other).sum().backward()


def test_second_order_reaches_through_the_chain():
    model = chain(activation="silu").double()
    x = batch(torch.float64, size=5)
    plain = separate(model)

    def second(m):
        z = m(x).square().sum()
        (dx,) = torch.autograd.grad(z, [x], create_graph=True)
        return torch.autograd.grad(dx.square().sum(), [x, *m.parameters()])

    for a, b in zip(second(model), second(plain), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-7 * float(b.abs().max() + 1))


def test_hooks_of_the_user_win():
    model, x = chain(), batch()
    g = torch.randn_like(model(x))
    _, expected = gradients(model, x, g)
    seen = []

    def pack(t):
        seen.append(t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        inner = model[0](x)
        z = model[1](inner)
    assert any(t is inner for t in seen)
    assert recipes(z) == [False, False]
    with torch.autograd.graph.save_on_cpu():
        _, offloaded = gradients(model, x, g)

    class Checkpointed(nn.Module):
        def forward(self, t):
            for first in (0, 2):
                pair = model[first : first + 2]
                t = checkpoint(pair, t, use_reentrant=False)
            return t

    whole = Checkpointed()
    whole.zero_grad = model.zero_grad
    whole.parameters = model.parameters
    statistics = copy.deepcopy(model.state_dict())
    _, checkpointed = gradients(whole, x, g)
    model.load_state_dict(statistics)
    for ours in (offloaded, checkpointed):
        for a, b in zip(ours, expected, strict=True):
            assert torch.equal(a, b)


def test_recompute_and_frozen_layers():
    for options in ({"recompute": True}, {}):
        model, x = chain(**options), batch()
        g = torch.randn_like(model(x))
        plain = separate(model)
        for part in (model, plain):
            for p in part[1].parameters():
                p.requires_grad_(False)
        _, ours = gradients(model, x, g)
        _, expected = gradients(plain, x, g)
        for a, b in zip(ours, expected, strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * float(b.abs().max() + 1))
        if options:
            assert recipes(model(x)) == [False] * LAYERS  # x alone, without y


def test_converted_model_and_autocast():
    plain = nn.Sequential(
        *[m for _ in range(LAYERS)
          for m in (nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))]
    )  # fmt: skip
    x = batch()
    fastconv.convert(plain, fuse=True)
    assert recipes(plain(x)) == [True] * (LAYERS - 1) + [False]
    with torch.autocast("cpu", torch.bfloat16):
        z = chain()(x)
    assert recipes(z) == [True] * (LAYERS - 1) + [False]
    z.float().sum().backward()
    with torch.no_grad():
        assert chain()(x).grad_fn is None
    with torch.inference_mode():
        assert chain()(x).grad_fn is None
