"""convert() and revert() on poolings."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from layers_check import assert_same_function, fastconv_operators
from torch import Tensor, nn

import fastconv
from fastconv._layer_classes import POOLING_OF

ARGUMENTS = {
    "MaxPool": ((3, 2, 1), {"ceil_mode": True}),
    "AvgPool": ((2,), {"count_include_pad": False}),
    "LPPool": ((2, 2), {}),
    "AdaptiveMaxPool": ((3,), {}),
    "AdaptiveAvgPool": ((1,), {}),
    "MaxUnpool": ((2,), {}),
}


def layer(cls: type) -> nn.Module:
    args, options = ARGUMENTS[cls.__name__[:-2]]
    return cls(*args, **options)


class Autoencoder(nn.Module):
    """Unpools at the places of its own maxima; [N, 2, H, W]."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(2, return_indices=True)
        self.inner = nn.Conv2d(2, 2, 1)
        self.unpool = nn.MaxUnpool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        y, index = self.pool(x)
        return self.unpool(self.inner(y), index, output_size=x.shape)


class Labelled(nn.AvgPool2d):
    """A subclass without a forward of its own."""

    label = "mean"

    def described(self) -> str:
        return f"{self.label} of {self.kernel_size}"


class Doubled(nn.MaxPool2d):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


@pytest.mark.parametrize("cls", POOLING_OF, ids=lambda c: c.__name__)
def test_every_kind_is_swapped_in_place_and_given_back(cls: type) -> None:
    module = layer(cls)
    text, attributes = repr(module), dict(vars(module))
    report = fastconv.convert(module)
    assert report.converted == [("", cls.__name__)] and not report.skipped
    assert type(module) is getattr(fastconv.nn, cls.__name__) and isinstance(module, cls)
    assert repr(module) == text
    assert type(pickle.loads(pickle.dumps(copy.deepcopy(module)))) is type(module)
    again = fastconv.convert(module)
    assert not again.converted and again.skipped == [("", "already converted")]
    assert len(fastconv.revert(module).converted) == 1
    assert type(module) is cls and vars(module) == attributes


def test_indices_go_from_a_converted_pool_to_a_converted_unpool() -> None:
    model = Autoencoder().double()
    converted = copy.deepcopy(model)
    report = fastconv.convert(converted)
    assert [name for name, _ in report.converted] == ["pool", "inner", "unpool"]
    x = torch.randn(2, 2, 7, 9, dtype=torch.float64)
    assert_same_function(converted, model, x)
    ran = fastconv_operators(lambda: converted(x))
    assert ran >= {"fastconv::max_pool_fprop", "fastconv::max_unpool_fprop"}
    fastconv.revert(converted)
    assert not fastconv_operators(lambda: converted(x))


def test_filter_function_and_subclasses() -> None:
    model = nn.Sequential(nn.MaxPool2d(2), Labelled(2), Doubled(2), nn.FractionalMaxPool2d(2, 1))
    report = fastconv.convert(model, filter_fn=lambda m, fqn: fqn != "0")
    assert report.converted == [("1", "Labelled")]
    assert report.skipped[0] == ("0", "filter_fn returned false")
    assert len(report.skipped) == 2
    assert "Doubled has its own forward" in report.skipped[1][1]
    assert model[1].described() == "mean of 2"
    x = torch.randn(1, 2, 6, 6)
    assert "fastconv::sum_pool_fprop" in fastconv_operators(lambda: model[1](x))
    other = pickle.loads(pickle.dumps(model[1]))
    assert isinstance(other, Labelled) and isinstance(other, fastconv.nn.AvgPool2d)
    assert torch.equal(other(x), model[1](x))
    fastconv.revert(model)
    assert type(model[1]) is Labelled


def test_algorithms_of_either_kind() -> None:
    model = nn.Sequential(nn.Conv2d(2, 2, 3), nn.MaxPool2d(2), nn.MaxUnpool2d(2))
    reasons = dict(fastconv.convert(model, algo="im2col").skipped)
    assert list(reasons) == ["1", "2"]
    assert reasons["1"] == "algorithm 'im2col' does not apply: it is not for poolings"
    fastconv.revert(model)
    reasons = dict(fastconv.convert(model, algo="triton").skipped)
    assert list(reasons) == ["0", "2"]
    assert reasons["0"] == "algorithm 'triton' does not apply: it is not for convolutions"
    assert reasons["2"] == "algorithm 'triton' does not apply: there is no Triton kernel for it"
    assert model[1].algo == "triton" and "algo=triton" in repr(model[1])
    fastconv.revert(model)
    assert not hasattr(model[1], "algo")
    assert len(fastconv.convert(model, algo="direct").converted) == 3
    with pytest.raises(ValueError, match="unknown algorithm"):
        fastconv.convert(model, algo="fastest")


def test_what_stays_as_it_is() -> None:
    with pytest.warns(DeprecationWarning):
        scripted = torch.jit.script(nn.MaxPool2d(2))
    replaced = nn.MaxPool2d(2)
    replaced.forward = torch.relu
    named = nn.AvgPool2d(2)
    named.algo = "mine"
    model = nn.ModuleList([scripted, replaced, named, fastconv.nn.MaxPool2d(2)])
    report = fastconv.convert(model)
    assert not report.converted
    reasons = [reason for _, reason in report.skipped]
    for reason, told in zip(
        reasons,
        ("scripted", "forward was replaced", "attribute 'algo'", "already a fastconv.nn.MaxPool2d"),
        strict=True,
    ):
        assert told in reason
    assert "built as fastconv.nn.MaxPool2d" in fastconv.revert(model).skipped[0][1]


def test_scripting_a_converted_pool_is_refused_in_plain_words() -> None:
    model = nn.Sequential(nn.MaxPool2d(2))
    fastconv.convert(model)
    with (
        pytest.warns(DeprecationWarning),
        pytest.raises(RuntimeError, match=r"fastconv\.nn\.MaxPool2d cannot be scripted.*revert"),
    ):
        torch.jit.script(model)


def test_traced_symbolically_the_calls_are_ours() -> None:
    model = nn.Sequential(nn.MaxPool2d(2), nn.AdaptiveAvgPool2d((None, 1)))
    fastconv.convert(model)
    graph = torch.fx.symbolic_trace(model)
    targets = [node.target for node in graph.graph.nodes if node.op == "call_function"]
    assert targets == [fastconv.max_pool2d, fastconv.adaptive_avg_pool2d]
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(graph(x), model(x))
