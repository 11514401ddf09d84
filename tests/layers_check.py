"""What the tests of layers and of conversion share: how to compare, and what ran."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.profiler import profile

from fastconv._layer_classes import POOLING_OF

# Relative to the largest element of the expected tensor. A network multiplies a layer's roundoff
# (batch normalisation divides by small deviations), so this is wider than a kernel's own bound.
TOLERANCE = {torch.float64: 1e-11, torch.float32: 2e-4}


def assert_close(actual: Tensor, expected: Tensor, what: str = "") -> None:
    assert actual.shape == expected.shape, what
    assert actual.dtype == expected.dtype, what
    bound = TOLERANCE[expected.dtype] * max(1e-3, expected.abs().max().item())
    error = (actual - expected).abs().max().item()
    assert error <= bound, f"{what}: off by {error:.3g}, allowed {bound:.3g}"


def gradients(model: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Output, and the gradients of a fixed random projection of it, by name; "" is the input's."""
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    model.zero_grad()
    y = model(x)
    projection = torch.randn(y.shape, generator=torch.Generator().manual_seed(7), dtype=y.dtype)
    (y * projection).sum().backward()
    grads = {
        name.removeprefix("_orig_mod."): p.grad.clone()  # the prefix is torch.compile's
        for name, p in model.named_parameters()
        if p.grad is not None
    }
    return y.detach(), {"": x.grad, **grads}


def assert_same_function(model: nn.Module, expected: nn.Module, x: Tensor) -> None:
    """Equal outputs, equal gradients in the input and in each parameter, equal buffers after."""
    y, grads = gradients(model, x)
    wanted_y, wanted = gradients(expected, x)
    assert_close(y, wanted_y, "output")
    assert grads.keys() == wanted.keys()
    for name, grad in wanted.items():
        assert_close(grads[name], grad, f"gradient of {name or 'the input'}")
    for (name, buffer), (_, other) in zip(
        model.named_buffers(), expected.named_buffers(), strict=True
    ):
        if buffer.is_floating_point():
            assert_close(buffer, other, name)
        else:
            assert torch.equal(buffer, other), name


def operators(call: Callable[[], Any]) -> set[str]:
    """Names of the operators that run during the call."""
    with profile() as record:
        call()
    return {event.name for event in record.function_events}


def fastconv_operators(call: Callable[[], Any]) -> set[str]:
    return {name for name in operators(call) if name.startswith("fastconv::")}


def convolutions(model: nn.Module) -> Iterable[tuple[str, nn.Module]]:
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return ((name, m) for name, m in model.named_modules() if isinstance(m, kinds))


def poolings(model: nn.Module) -> Iterable[tuple[str, nn.Module]]:
    kinds = tuple(POOLING_OF)
    return ((name, m) for name, m in model.named_modules() if isinstance(m, kinds))
