"""convert and revert, layer by layer: what the report says and what survives."""

from __future__ import annotations

import copy
import io
import pickle
import warnings

import pytest
import torch
from layers_check import assert_close, assert_same_function, fastconv_operators
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import fastconv
from fastconv.nn import ConvNd


class Named(nn.Conv2d):
    """A subclass with an attribute and a method, and no forward of its own."""

    def __init__(self, channels: int, label: str = "") -> None:
        super().__init__(channels, channels, 3, padding=1, bias=False)
        self.label = label

    def describe(self) -> str:
        return f"{self.label}:{self.out_channels}"


def _model() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, bias=False)
    ).double()


def _x(n: int = 2, c: int = 3, size: int = 8) -> torch.Tensor:
    return torch.randn(n, c, size, size, dtype=torch.float64)


def _ones(c: int = 3) -> torch.Tensor:
    return torch.ones(1, c, 8, 8, dtype=torch.float64)


def _saved(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, _saved, lambda m: pickle.loads(pickle.dumps(m, protocol=2))],
    ids=["deepcopy", "torch.save", "pickle2"],
)


# What the report says


def test_report():
    model = _model()
    report = fastconv.convert(model, filter_fn=lambda module, fqn: fqn != "2")
    assert report.model is model
    assert report.converted == [("0", "Conv2d")]
    assert report.skipped == [("2", "filter_fn returned false")]
    lines = str(report).splitlines()
    assert lines[0] == "fastconv.convert: 1 converted, 1 skipped"
    assert lines[1].split() == ["0", "converted:", "Conv2d"]
    assert lines[2].split() == ["2", "skipped:", "filter_fn", "returned", "false"]
    assert repr(report) == str(report)
    assert str(fastconv.convert(nn.Linear(2, 2))) == "fastconv.convert: 0 converted, 0 skipped"


def test_filter_sees_convertible_layers_under_their_names():
    model = nn.ModuleDict({"a": _model(), "up": nn.ConvTranspose2d(2, 2, 2)})
    seen = []
    fastconv.convert(model, filter_fn=lambda module, fqn: seen.append((module, fqn)))
    assert seen == [(model["a"][0], "a.0"), (model["a"][2], "a.2")]
    assert not any(isinstance(m, ConvNd) for m in model.modules())


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_the_model_may_itself_be_the_layer(rank):
    layer = getattr(nn, f"Conv{rank}d")(2, 3, 3).double()
    expected = copy.deepcopy(layer)
    report = fastconv.convert(layer, algo="direct")
    assert report.model is layer
    assert report.converted == [("", f"Conv{rank}d")]
    assert "(root)" in str(report)
    assert type(layer) is getattr(fastconv.nn, f"Conv{rank}d")
    assert_same_function(layer, expected, torch.randn(2, 2, *(6,) * rank, dtype=torch.float64))
    fastconv.revert(layer)
    assert type(layer) is type(expected)


def test_twice_is_a_reported_no_op():
    model = _model()
    fastconv.convert(model)
    state = [dict(vars(m)) for m in model.modules()]
    again = fastconv.convert(model)
    assert again.converted == []
    assert again.skipped == [("0", "already converted"), ("2", "already converted")]
    other = fastconv.convert(model, algo="direct")
    assert all("already converted, with algo='auto'" in reason for _, reason in other.skipped)
    assert [dict(vars(m)) for m in model.modules()] == state


def test_layers_built_as_ours_are_left_by_both():
    model = nn.Sequential(fastconv.nn.Conv2d(3, 4, 3, algo="direct"), nn.Conv2d(4, 4, 3))
    assert fastconv.convert(model).skipped == [("0", "already a fastconv.nn.Conv2d")]
    report = fastconv.revert(model)
    assert report.converted == [("1", "Conv2d")]
    assert report.skipped == [("0", "built as fastconv.nn.Conv2d, not converted")]
    assert model[0].algo == "direct"


def test_shared_layer_is_converted_once_and_reported_under_both_names():
    shared = nn.Conv2d(4, 4, 3, padding=1)
    model = nn.ModuleDict({"first": shared, "block": nn.Sequential(nn.ReLU(), shared)})
    report = fastconv.convert(model)
    assert report.converted == [("first", "Conv2d")]
    assert report.skipped == [("block.1", "the same layer as 'first'")]
    assert model["block"][1] is model["first"]


def test_tied_weights_stay_tied():
    model = _model()
    model.append(nn.Conv2d(4, 4, 3, bias=False).double())
    model[3].weight = model[2].weight
    expected = copy.deepcopy(model)
    assert len(fastconv.convert(model, algo="direct").converted) == 3
    assert model[3].weight is model[2].weight
    assert len(list(model.parameters())) == 3
    assert_same_function(model, expected, _x())


def test_a_cycle_of_modules_ends():
    model = _model()
    model[0].parent = model
    assert len(fastconv.convert(model).converted) == 2
    assert len(fastconv.revert(model).converted) == 2


# What survives


def test_parameters_flags_and_attributes_are_the_same_objects():
    model = _model().eval()
    model[0].weight.requires_grad_(False)
    model[0].note = note = ["user"]
    model[0].register_buffer("extra", torch.ones(2))
    optimizer = torch.optim.Adam(model.parameters())
    before = [(name, id(p), p.requires_grad) for name, p in model.named_parameters()]
    modules, keys = list(model.modules()), list(model.state_dict())
    fastconv.convert(model, algo="direct")
    assert [(name, id(p), p.requires_grad) for name, p in model.named_parameters()] == before
    assert list(model.modules()) == modules
    assert list(model.state_dict()) == keys
    assert model[0].note is note
    assert not any(m.training for m in model.modules())
    weight = model[2].weight.detach().clone()
    y = model(_x())
    y.sum().backward()
    optimizer.step()
    assert not torch.equal(model[2].weight, weight)
    assert not torch.equal(model(_x()), y)  # nothing computed from the old weight is left


def test_hooks():
    model = _model()
    calls = []
    layer = model[0]
    layer.register_forward_pre_hook(lambda m, args: calls.append("pre"))
    layer.register_forward_hook(lambda m, args, y: calls.append("forward") or y * 2)
    layer.register_full_backward_pre_hook(lambda m, grads: calls.append("backward_pre"))
    layer.register_full_backward_hook(lambda m, dx, dy: calls.append("backward"))
    layer.register_state_dict_post_hook(lambda m, state, prefix, meta: calls.append("state"))
    layer.register_load_state_dict_post_hook(lambda m, keys: calls.append("load"))
    layer.weight.register_hook(lambda grad: calls.append("grad"))
    expected = model(_ones())
    calls.clear()
    fastconv.convert(model, algo="direct")
    y = model(_ones().requires_grad_())
    assert_close(y.detach(), expected.detach())
    y.sum().backward()
    model.load_state_dict(model.state_dict())
    assert sorted(calls) == sorted(
        ["pre", "forward", "backward_pre", "backward", "grad", "state", "load"]
    )


def _old_weight_norm(layer: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.utils.weight_norm(layer)


REPARAMETRIZED = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "old_weight_norm": _old_weight_norm,
    "old_spectral_norm": nn.utils.spectral_norm,
    "pruned": lambda layer: prune.random_unstructured(layer, "weight", 0.5),
    "pruned_twice": lambda layer: prune.l1_unstructured(
        prune.ln_structured(layer, "weight", 0.25, n=2, dim=0), "weight", 0.5
    ),
}


@pytest.mark.parametrize("name", REPARAMETRIZED)
@pytest.mark.parametrize("order", ["before", "after"])
def test_reparametrized_layers(name, order):
    """The reparametrisation made before the conversion, or after it; then reverted."""
    models = []
    for convert in (False, True):
        torch.manual_seed(5)
        model = _model()
        if order == "before":
            REPARAMETRIZED[name](model[0])
        cls, keys = type(model[0]), list(model.state_dict())
        if convert:
            converted = fastconv.convert(model, algo="im2col").converted
            assert [fqn for fqn, _ in converted] == ["0", "2"]
            assert converted[0][1] == cls.__name__
        if order == "after":
            torch.manual_seed(6)
            REPARAMETRIZED[name](model[0])
        else:
            assert list(model.state_dict()) == keys
        models.append(model)
    torchs, ours = models
    assert list(ours.state_dict()) == list(torchs.state_dict())
    assert repr(ours[0]) == repr(torchs[0]).replace("padding=(1, 1)", "padding=(1, 1), algo=im2col")
    assert "fastconv::conv_fprop" in fastconv_operators(lambda: ours(_x()))
    torchs.load_state_dict(ours.state_dict())
    assert_same_function(ours, torchs, _x())
    with torch.no_grad():
        for model in models:
            next(iter(model[0].parameters())).mul_(1.5)
    assert_same_function(ours, torchs, _x())
    assert len(fastconv.revert(ours).converted) == 2
    if order == "before":
        assert type(ours[0]) is cls
    assert not isinstance(ours[0], ConvNd)
    assert not fastconv_operators(lambda: ours(_x()))
    torchs.load_state_dict(ours.state_dict())  # spectral_norm's vectors move with each call
    assert_same_function(ours, torchs, _x())


def test_parametrization_removed_after_conversion_and_then_reverted():
    model = _model()
    parametrizations.weight_norm(model[0])
    parametrizations.spectral_norm(model[2])
    fastconv.convert(model, algo="direct")
    expected = model.eval()(_ones())
    parametrize.remove_parametrizations(model[0], "weight")
    assert type(model[0]) is fastconv.nn.Conv2d
    assert_close(model(_ones()), expected)
    fastconv.revert(model)
    assert type(model[0]) is nn.Conv2d
    parametrize.remove_parametrizations(model[2], "weight")
    assert type(model[2]) is nn.Conv2d
    assert_close(model(_ones()), expected)


def test_parametrization_added_between_conversion_and_revert_stays():
    layer = parametrizations.weight_norm(nn.Conv2d(3, 4, 3).double())
    fastconv.convert(layer)
    parametrize.register_parametrization(layer, "bias", nn.Softplus())
    y = layer(_ones())
    fastconv.revert(layer)
    assert not isinstance(layer, ConvNd)
    assert parametrize.is_parametrized(layer, "bias")
    assert_close(layer(_ones()), y)


def test_a_deep_copy_with_parametrizations_converts_apart():
    model = parametrizations.weight_norm(nn.Conv2d(3, 4, 3).double())
    other = copy.deepcopy(model)  # shares the class that parametrize made
    fastconv.convert(model, algo="direct")
    assert not isinstance(other, ConvNd)
    assert_close(other(_ones()), model(_ones()))
    third = copy.deepcopy(model)
    fastconv.revert(model)
    assert isinstance(third, ConvNd)
    assert_close(third(_ones()), model(_ones()))


@COPIES
def test_copies_of_converted_models(copied):
    model = nn.Sequential(*_model(), Named(4, "user").double())
    expected = copy.deepcopy(model)
    fastconv.convert(model, algo="direct")
    other = copied(model)
    assert [type(m) for m in other.modules()] == [type(m) for m in model.modules()]
    assert other[3].describe() == "user:4"
    assert other[0].weight is not model[0].weight
    assert_same_function(other, expected, _x())
    assert fastconv.convert(other, algo="direct").converted == []
    fastconv.revert(other)
    assert [type(m) for m in other.modules()] == [type(m) for m in expected.modules()]
    assert isinstance(model[0], ConvNd)


def test_subclass_without_a_forward_keeps_its_methods():
    layer = Named(4, "user").double()
    expected = copy.deepcopy(layer)
    report = fastconv.convert(layer, algo="direct")
    assert report.converted == [("", "Named")]
    assert isinstance(layer, Named)
    assert isinstance(layer, fastconv.nn.Conv2d)
    assert layer.describe() == "user:4"
    assert_same_function(layer, expected, _x(c=4))
    assert fastconv_operators(lambda: layer(_x(c=4))) == {"fastconv::conv_fprop"}
    assert type(layer)(2, "made from the converted class").describe().endswith(":2")
    parametrizations.weight_norm(layer)
    fastconv.revert(layer)
    parametrize.remove_parametrizations(layer, "weight")
    assert type(layer) is Named
    assert_close(layer(_ones(c=4)), expected(_ones(c=4)))


def test_classes_are_reused():
    first, second = Named(2), Named(2)
    fastconv.convert(nn.ModuleList([first, second]))
    assert type(first) is type(second)


def test_lazy_layers_convert_once_initialised():
    model = nn.Sequential(nn.LazyConv2d(4, 3), nn.ReLU(), nn.LazyConv2d(4, 3))
    report = fastconv.convert(model)
    assert report.converted == []
    assert all("lazy" in reason for _, reason in report.skipped)
    assert type(model[0]) is nn.LazyConv2d
    x = torch.randn(1, 3, 8, 8)
    expected = model(x)
    assert len(fastconv.convert(model, algo="direct").converted) == 2
    assert_close(model(x), expected)
