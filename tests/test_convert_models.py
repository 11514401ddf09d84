"""Whole networks, converted: equal outputs, gradients and training, however they are run."""

from __future__ import annotations

import copy

import pytest
import torch
from layers_check import (
    assert_close,
    assert_same_function,
    convolutions,
    fastconv_operators,
    operators,
    poolings,
)
from models import ARCHITECTURES, CLASSES
from torch import Tensor, nn

import fastconv

ARCHITECTURE = pytest.mark.parametrize("name", ARCHITECTURES)


@pytest.fixture(autouse=True)
def _one_thread(set_threads) -> None:
    set_threads(1)  # these layers are too small to share; how many threads is tested elsewhere


ALL_OPERATORS = {"fastconv::conv_fprop", "fastconv::conv_dgrad", "fastconv::conv_wgrad"}


def _twins(name: str, dtype: torch.dtype, algo: str) -> tuple[nn.Module, nn.Module, Tensor]:
    """The network as torch computes it, a converted copy, and an input."""
    architecture = ARCHITECTURES[name]
    model = architecture.make().to(dtype)
    x = torch.randn(architecture.input_size, dtype=dtype)
    converted = copy.deepcopy(model)
    fastconv.convert(converted, algo=algo)
    return model, converted, x


@ARCHITECTURE
def test_every_convolution_and_pooling_is_converted(name):
    architecture = ARCHITECTURES[name]
    model = architecture.make()
    found = [*convolutions(model), *poolings(model)]
    order = [fqn for fqn, _ in model.named_modules()]
    names = sorted((fqn for fqn, _ in found), key=order.index)
    keys, text = list(model.state_dict()), repr(model)
    report = fastconv.convert(model)
    assert report.model is model
    assert [fqn for fqn, _ in report.converted] == names
    assert len(names) == architecture.layers
    assert len(report.skipped) == architecture.transposed
    assert all(isinstance(m, fastconv.nn.ConvNd) for _, m in convolutions(model))
    assert all(isinstance(m, fastconv.nn.PoolNd) for _, m in poolings(model))
    assert list(model.state_dict()) == keys
    assert repr(model) == text


@ARCHITECTURE
@pytest.mark.parametrize(
    ("algo", "dtype", "train"),
    [
        pytest.param("direct", torch.float64, True, id="direct-fp64-train"),
        pytest.param("im2col", torch.float64, False, id="im2col-fp64-eval"),
        pytest.param("im2col", torch.float32, True, id="im2col-fp32-train"),
        pytest.param("auto", torch.float32, True, id="auto-fp32-train"),
    ],
)
def test_same_outputs_and_gradients(name, algo, dtype, train):
    model, converted, x = _twins(name, dtype, algo)
    assert_same_function(converted.train(train), model.train(train), x)


@ARCHITECTURE
def test_ours_runs_and_pytorchs_does_not(name):
    _, converted, x = _twins(name, torch.float32, "im2col")
    x.requires_grad_()
    ran = operators(lambda: converted(x).sum().backward())
    assert ran >= ALL_OPERATORS
    if not ARCHITECTURES[name].transposed:
        assert not {op for op in ran if op.startswith("aten::") and "conv" in op}


@pytest.mark.parametrize("name", ["plain", "resnet_basic"])
@pytest.mark.parametrize("algo", [n for n in fastconv.select.names() if n.startswith("winograd")])
def test_winograd_where_it_applies(name, algo):
    model, converted, x = _twins(name, torch.float64, algo)
    ours = [m for _, m in convolutions(converted) if isinstance(m, fastconv.nn.ConvNd)]
    assert ours
    assert all(m.kernel_size == (3, 3) and m.stride == (1, 1) for m in ours)
    assert_same_function(converted, model, x)


def _losses(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, steps: int) -> Tensor:
    target = torch.arange(x.shape[0]) % CLASSES
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        y = model(x)
        loss = nn.functional.cross_entropy(y.flatten(2).mean(2) if y.dim() > 2 else y, target)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


@ARCHITECTURE
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])
def test_training_follows_pytorchs(name, dtype):
    """Conversion in the middle, under an optimizer with state that was made before it."""
    model = ARCHITECTURES[name].make().to(dtype)
    size = ARCHITECTURES[name].input_size
    x = torch.randn(8, *size[1:], dtype=dtype)
    converted = copy.deepcopy(model)
    losses = []
    for network, convert in ((model, False), (converted, True)):
        optimizer = torch.optim.SGD(network.parameters(), lr=0.02, momentum=0.9)
        first = _losses(network, optimizer, x, 2)
        if convert:
            fastconv.convert(network, algo="im2col")
        losses.append(torch.cat([first, _losses(network, optimizer, x, 5)]))
    assert losses[0][-1] < losses[0][0]
    assert_close(losses[1], losses[0], "losses")
    if dtype == torch.float64:
        for (key, value), (_, expected) in zip(
            converted.state_dict().items(), model.state_dict().items(), strict=True
        ):
            if value.is_floating_point():
                assert_close(value, expected, key)


@pytest.mark.parametrize("name", ["plain", "resnet_bottleneck", "mobilenet", "unet"])
def test_channels_last_models(name):
    model, converted, x = _twins(name, torch.float32, "im2col")
    for network in (model, converted):
        network.to(memory_format=torch.channels_last)
    x = x.to(memory_format=torch.channels_last)
    assert converted(x).stride() == model(x).stride()
    assert_same_function(converted, model, x)


@ARCHITECTURE
def test_autocast(name):
    model, converted, x = _twins(name, torch.float32, "direct")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, expected = converted(x), model(x)
    assert y.dtype == expected.dtype
    # Every layer rounds to 8 bits, in another place on either side; the loosest of all bounds here.
    assert (y - expected).abs().max() <= 0.1 * max(1.0, expected.abs().max().item())
    y.float().sum().backward()
    assert all(p.grad.dtype == p.dtype for p in converted.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", ["resnet_basic", "mobilenet", "speech"])
def test_compile(name):
    model, converted, x = _twins(name, torch.float64, "im2col")
    compiled = torch.compile(converted, fullgraph=True, backend="aot_eager")
    y, expected = compiled(x), model(x)
    assert_close(y, expected)
    y.sum().backward()
    expected.sum().backward()
    for (key, p), q in zip(converted.named_parameters(), model.parameters(), strict=True):
        assert_close(p.grad, q.grad, key)


def test_converting_a_compiled_model_takes_effect():
    model = ARCHITECTURES["plain"].make().double()
    x = torch.randn(ARCHITECTURES["plain"].input_size, dtype=torch.float64)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    expected = compiled(x)
    report = fastconv.convert(compiled, algo="direct")
    assert report.model is compiled
    assert report.converted[0][0] == "_orig_mod.features.0"
    assert "fastconv::conv_fprop" in fastconv_operators(lambda: compiled(x))
    assert_close(compiled(x), expected)
    fastconv.revert(compiled)
    assert not fastconv_operators(lambda: compiled(x))


@pytest.mark.parametrize("name", ["plain", "speech", "video"])
def test_export(name):
    model, converted, x = _twins(name, torch.float32, "auto")
    batch = torch.export.Dim("batch", min=2, max=64)
    exported = torch.export.export(converted.eval(), (x,), dynamic_shapes=({0: batch},))
    assert any(str(node.target).startswith("fastconv.") for node in exported.graph.nodes)
    more = torch.cat([x, x, x])
    assert_close(exported.module()(more), model.eval()(more))


@pytest.mark.parametrize("name", ["resnet_basic", "inception"])
def test_graph_modules(name):
    model = ARCHITECTURES[name].make().double()
    x = torch.randn(ARCHITECTURES[name].input_size, dtype=torch.float64)
    traced = torch.fx.symbolic_trace(copy.deepcopy(model))
    report = fastconv.convert(traced, algo="direct")
    assert len(report.converted) == ARCHITECTURES[name].layers
    assert_same_function(traced, model, x)
    copied = copy.deepcopy(traced)
    assert "fastconv::conv_fprop" in fastconv_operators(lambda: copied(x))
    # Traced after conversion the calls are in the graph itself.
    again = copy.deepcopy(model)
    fastconv.convert(again, algo="direct")
    graph = torch.fx.symbolic_trace(again)
    assert any(node.target is fastconv.conv2d for node in graph.graph.nodes)
    assert_same_function(graph, model, x)


@ARCHITECTURE
def test_checkpoints_go_both_ways(name):
    model, converted, x = _twins(name, torch.float64, "im2col")
    fresh = ARCHITECTURES[name].make().double()
    fresh.load_state_dict(converted.state_dict(), strict=True)
    other = ARCHITECTURES[name].make().double()
    before = converted(x)
    converted.load_state_dict(other.state_dict(), strict=True)
    assert not torch.equal(converted.eval()(x), before)
    assert_close(converted(x), other.eval()(x))
    assert_close(fresh.eval()(x), model.eval()(x), "fresh")


@ARCHITECTURE
def test_revert_gives_back_every_class(name):
    model = ARCHITECTURES[name].make()
    classes = [type(m) for m in model.modules()]
    attributes = [list(vars(m)) for m in model.modules()]
    fastconv.convert(model, algo="direct")
    assert [type(m) for m in model.modules()] != classes
    report = fastconv.revert(model)
    assert len(report.converted) == ARCHITECTURES[name].layers
    assert [type(m) for m in model.modules()] == classes
    assert [list(vars(m)) for m in model.modules()] == attributes
