"""convert and revert: which layers are skipped and why, which calls are refused."""

from __future__ import annotations

import re
import warnings

import pytest
import torch
from layers_check import assert_close
from torch import nn

import fastconv


class OwnForward(nn.Conv2d):
    def forward(self, input):
        return super().forward(input) * 2


class OwnConvForward(nn.Conv1d):
    def _conv_forward(self, input, weight, bias):
        return super()._conv_forward(input, weight - weight.mean(), bias)


class Slotted(nn.Conv2d):
    """Cannot take part in a class with another base of a different layout."""

    def __init_subclass__(cls) -> None:
        raise TypeError("Slotted is final")


class OwnAttribute(nn.Conv2d):
    algo = "mine"


def _model() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, bias=False)
    ).double()


def _x(n: int = 2, c: int = 3, size: int = 8) -> torch.Tensor:
    return torch.randn(n, c, size, size, dtype=torch.float64)


def _ones(c: int = 3) -> torch.Tensor:
    return torch.ones(1, c, 8, 8, dtype=torch.float64)


# What is skipped


def _monkey_patched() -> nn.Module:
    layer = nn.Conv2d(3, 4, 3)
    layer.forward = lambda x: x
    return layer


def _quantised() -> nn.Module:
    from torch.ao.nn.quantized.reference import Conv2d

    return Conv2d(3, 4, 3)


def _scripted() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(nn.Conv2d(3, 4, 3))


class Subclassed(torch.Tensor):
    pass


def _tensor_subclass() -> nn.Module:
    layer = nn.Conv2d(3, 4, 3)
    layer.weight = nn.Parameter(layer.weight.detach().as_subclass(Subclassed))
    return layer


SKIPPED = {
    "transposed": (lambda: nn.ConvTranspose2d(3, 4, 3), "transposed"),
    "lazy": (lambda: nn.LazyConv1d(4, 3), "lazy and not initialised"),
    "own forward": (lambda: OwnForward(3, 4, 3), r"OwnForward has its own forward"),
    "own _conv_forward": (lambda: OwnConvForward(3, 4, 3), r"OwnConvForward has its own _conv_f"),
    "monkey-patched": (_monkey_patched, "forward was replaced on this layer"),
    "quantised": (_quantised, "quantised"),
    "scripted": (_scripted, "scripted"),
    "final": (lambda: Slotted(3, 4, 3), "no class can be made.*Slotted is final"),
    "attribute": (lambda: OwnAttribute(3, 4, 3), "attribute 'algo' of its own"),
    "complex": (lambda: nn.Conv2d(3, 4, 3, dtype=torch.complex64), "weight is complex64"),
    "tensor subclass": (_tensor_subclass, "weight is a .*Subclassed"),
}


@pytest.mark.parametrize("name", SKIPPED)
def test_skipped_with_the_reason(name):
    make, reason = SKIPPED[name]
    layer = make()
    cls, attributes = type(layer), list(vars(layer))
    report = fastconv.convert(nn.ModuleDict({"plain": nn.Conv2d(3, 4, 3), "odd": layer}))
    assert report.converted == [("plain", "Conv2d")]
    assert [fqn for fqn, _ in report.skipped] == ["odd"]

    assert re.search(reason, report.skipped[0][1]), report.skipped
    assert type(layer) is cls
    assert list(vars(layer)) == attributes


@pytest.mark.parametrize("algo", [n for n in fastconv.select.names() if n.startswith("winograd")])
def test_a_forced_algorithm_skips_what_it_can_never_compute(algo):
    layers = {
        "fits": nn.Conv2d(4, 4, 3, padding="same"),
        "reflect": nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        "strided": nn.Conv2d(4, 4, 3, stride=2),
        "pointwise": nn.Conv2d(4, 4, 1),
        "line": nn.Conv1d(4, 4, 3),
    }
    report = fastconv.convert(nn.ModuleDict(layers), algo=algo)
    assert [fqn for fqn, _ in report.converted] == ["fits", "reflect"]
    assert all(f"algorithm {algo!r} does not apply" in reason for _, reason in report.skipped)


def test_our_class_under_another_is_not_reverted_blindly():
    layer = nn.Conv2d(3, 4, 3)
    fastconv.convert(layer)
    layer.__class__ = type("Wrapped", (fastconv.nn.Conv2d,), {})
    report = fastconv.revert(layer)
    assert report.converted == []
    assert "Wrapped" in report.skipped[0][1]


# What is refused


@pytest.mark.parametrize("function", [fastconv.convert, fastconv.revert])
@pytest.mark.parametrize("bad", [None, 3, "model", nn.Conv2d, [nn.Conv2d(1, 1, 1)]])
def test_not_a_module(function, bad):
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got"):
        function(bad)


@pytest.mark.parametrize("function", [fastconv.convert, fastconv.revert])
def test_scripted_model(function):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        models = [
            torch.jit.script(_model()),
            torch.jit.trace(_model(), _x()),
        ]
    for model in models:
        with pytest.raises(TypeError, match="scripted or traced"):
            function(model)
        assert model(_x()).shape == (2, 4, 6, 6)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"filter_fn": "0"}, TypeError, "filter_fn must be callable"),
        ({"filter_fn": ["0"]}, TypeError, "filter_fn must be callable"),
        ({"algo": "fastest"}, ValueError, r"unknown algorithm 'fastest'.*im2col"),
        ({"algo": None}, ValueError, "algo must be a string"),
        ({"filter_fn": lambda module, fqn: 1 // (fqn == "0")}, ZeroDivisionError, "division"),
        ({"filter_fn": lambda module: True}, TypeError, "positional"),
        ({"algorithm": "direct"}, TypeError, "algorithm"),
    ],
)
def test_bad_arguments_change_nothing(arguments, error, text):
    model = _model()
    state = [(type(m), list(vars(m))) for m in model.modules()]
    with pytest.raises(error, match=text):
        fastconv.convert(model, **arguments)
    assert [(type(m), list(vars(m))) for m in model.modules()] == state


def test_options_are_keywords():
    with pytest.raises(TypeError, match="positional"):
        fastconv.convert(_model(), lambda module, fqn: True)


def test_scripting_a_converted_model_is_refused_and_works_after_revert():
    model = _model()
    fastconv.convert(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(RuntimeError, match=r"fastconv\.revert\(model\) before scripting"):
            torch.jit.script(model)
        fastconv.revert(model)
        assert_close(torch.jit.script(model)(_ones()), model(_ones()))
