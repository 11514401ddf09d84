"""gradcheck must pass right gradients, catch wrong ones and name the element, and leave no
trace."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fastconv.testing import assert_conv_close, gradcheck


@pytest.fixture(autouse=True)
def _one_thread(set_threads: Callable[[int], None]) -> None:
    """Thousands of tiny evaluations, which threads would only slow down."""
    set_threads(1)


class CubeWithWrongElement(torch.autograd.Function):
    """y = x**3, whose backward is off by `error` at x[1, 2]."""

    error = 0.5

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, dy: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        slope = 3 * x**2
        slope[1, 2] += CubeWithWrongElement.error
        return dy * slope


def test_the_wrong_element_is_named() -> None:
    x = torch.randn(3, 4)
    report = gradcheck(CubeWithWrongElement.apply, x, raise_on_failure=False)
    assert not report and not report.passed
    (entry,) = report.tensors
    assert (entry.failed, entry.checked, entry.worst_index) == (1, 12, (1, 2))
    torch.manual_seed(0)
    v = torch.randn(3, 4, dtype=torch.float64)[1, 2].item()
    true = 3 * x[1, 2].double().item() ** 2 * v
    assert entry.worst_numeric == pytest.approx(true, abs=1e-6)
    assert entry.worst_analytic == pytest.approx(true + 0.5 * v, abs=1e-9)
    assert entry.max_abs_error == pytest.approx(abs(0.5 * v), abs=1e-6)
    with pytest.raises(AssertionError, match=r"input 0 \[3, 4\]: FAILED \(1 of 12\).*\[1, 2\]"):
        gradcheck(CubeWithWrongElement.apply, x)


def test_right_function_passes() -> None:
    report = gradcheck(lambda a, b, n: (a @ b.T * n, {"c": a.exp()}), (*torch.randn(2, 3, 4), 3))
    assert report and [t.name for t in report.tensors] == ["0", "1"]
    assert report.worst.max_abs_error < 1e-7
    assert all(t.checked == 12 for t in report.tensors)


class Net(nn.Module):
    """Convolution, batch norm, dropout, a buffer of its own, tied and frozen weights."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4, momentum=None)
        self.drop = nn.Dropout(0.5)
        self.tail = nn.Linear(4, 4)
        self.tied = nn.Linear(4, 4)
        self.tied.weight = self.tail.weight
        self.frozen = nn.Parameter(torch.randn(4), requires_grad=False)
        self.register_buffer("shift", torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.drop(torch.tanh(self.bn(self.conv(x)))).mean((2, 3))
        return self.tied(torch.tanh(self.tail(y)) + self.shift) * self.frozen + torch.zeros(4)


@pytest.mark.parametrize("training", [True, False])
def test_module_is_checked_and_left_alone(training: bool) -> None:
    net = Net().train(training)
    net(torch.randn(2, 2, 5, 5)).sum().backward()
    before = copy.deepcopy(net.state_dict())
    grads = {n: None if p.grad is None else p.grad.clone() for n, p in net.named_parameters()}
    identity = {n: (id(p), p._version) for n, p in net.named_parameters()}
    x = torch.randn(3, 2, 5, 5)
    x_before, rng_before = x.clone(), torch.get_rng_state()
    report = gradcheck(net, x)
    assert {t.name for t in report.tensors} == {
        "0",
        *("conv.weight", "conv.bias", "bn.weight", "bn.bias"),
        *("tail.weight", "tail.bias", "tied.bias"),
    }
    assert report["conv.weight"].checked == 72
    assert net.training is training and net.bn.training is training
    assert torch.get_default_dtype() == torch.float32
    assert torch.equal(torch.get_rng_state(), rng_before)
    assert torch.equal(x, x_before) and x.grad is None and not x.requires_grad
    assert identity == {n: (id(p), p._version) for n, p in net.named_parameters()}
    for name, value in net.state_dict().items():
        assert value.dtype == before[name].dtype and torch.equal(value, before[name]), name
    for name, p in net.named_parameters():
        assert (p.grad is None) == (grads[name] is None), name
        assert p.grad is None or torch.equal(p.grad, grads[name]), name


def test_module_with_wrong_parameter_gradient() -> None:
    class Wrong(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.scale + self.scale.detach()  # the second use sends nothing back

    report = gradcheck(Wrong(), torch.randn(2, 3), raise_on_failure=False)
    assert report["0"].passed and not report["scale"].passed
    assert report.worst.name == "scale"


def test_exceptions_put_everything_back() -> None:
    state = torch.get_rng_state()

    def fails(x: Tensor) -> Tensor:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        gradcheck(fails, torch.randn(2))
    assert torch.get_default_dtype() == torch.float32
    assert not torch.equal(state, torch.zeros_like(state))


def test_detached_and_unused_and_empty() -> None:
    x = torch.randn(3)
    assert not gradcheck(lambda a: a.detach() * 2, x, raise_on_failure=False)
    assert gradcheck(lambda a, b: a * 2, (x, torch.randn(2)))
    assert gradcheck(lambda a: a.sum(), torch.zeros(0, 3))
    assert gradcheck(torch.sin, torch.tensor(0.3))


def test_nan_fails() -> None:
    report = gradcheck(lambda a: (a - a) / (a - a), torch.randn(2), raise_on_failure=False)
    assert report.tensors[0].failed == 2


def test_sampled_elements() -> None:
    report = gradcheck(torch.sin, torch.randn(100), max_elements=7)
    assert report.tensors[0].checked == 7


def test_second_order_through_a_function() -> None:
    def slope(x: Tensor) -> Tensor:
        return torch.autograd.grad((x**4).sum(), x, create_graph=True)[0]

    assert gradcheck(slope, torch.randn(5))


def test_channels_last_copies_keep_their_strides() -> None:
    seen = []
    x = torch.randn(1, 2, 3, 3).to(memory_format=torch.channels_last)
    gradcheck(lambda a: seen.append(a.stride()) or a * 2, x, max_elements=1)
    assert set(seen) == {x.stride()}


@pytest.mark.parametrize("inputs", [(), (torch.arange(3),), (3,)])
def test_nothing_to_check(inputs: tuple) -> None:
    with pytest.raises(ValueError, match="no floating-point input"):
        gradcheck(lambda *a: torch.zeros(3), inputs)


def test_no_floating_output() -> None:
    with pytest.raises(ValueError, match="output has no floating-point tensor"):
        gradcheck(lambda a: a > 0, torch.randn(3))


def test_assert_conv_close() -> None:
    expected = torch.tensor([[1.0, torch.nan], [torch.inf, -2.0]], dtype=torch.float64)
    assert_conv_close(expected.float() + 1e-6, expected, 1e-5)
    assert_conv_close(torch.zeros(0, 3), torch.zeros(0, 3).double(), 0.0)
    for index, value in (((0, 0), 1.1), ((0, 1), 0.0), ((1, 0), -torch.inf), ((1, 1), torch.nan)):
        wrong = expected.float()
        wrong[index] = value
        with pytest.raises(AssertionError, match=rf"here: 1 of 4 .* worst at \[{index[0]}, "):
            assert_conv_close(wrong, expected, 1e-5, "here")
    with pytest.raises(AssertionError, match=r"shape \[3\], expected \[2, 2\]"):
        assert_conv_close(torch.zeros(3), expected, 1.0)
