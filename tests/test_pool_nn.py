"""Pooling layers: torch.nn's classes, arguments, printed form and results."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import fastconv
import fastconv.nn as fnn

LAYERS = [
    ("MaxPool", (3, 2, 1), {"ceil_mode": True}),
    ("MaxPool", (2,), {"dilation": 2, "return_indices": True}),
    ("AvgPool", (3, 2, 1), {"ceil_mode": True, "count_include_pad": False}),
    ("AvgPool", (2,), {}),
    ("LPPool", (2, 3), {"stride": 2, "ceil_mode": True}),
    ("AdaptiveMaxPool", (3,), {"return_indices": True}),
    ("AdaptiveMaxPool", (1,), {}),
    ("AdaptiveAvgPool", (4,), {}),
]
FUNCTIONS = {
    "MaxPool": "max_pool",
    "AvgPool": "avg_pool",
    "LPPool": "lp_pool",
    "AdaptiveMaxPool": "adaptive_max_pool",
    "AdaptiveAvgPool": "adaptive_avg_pool",
}


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("name, args, options", LAYERS)
def test_layers_are_torchs(name: str, args: tuple, options: dict, rank: int, monkeypatch) -> None:
    if name == "AvgPool" and rank > 1:
        options = {**options, "divisor_override": 5}
    ours = getattr(fnn, f"{name}{rank}d")(*args, **options)
    torchs = getattr(nn, f"{name}{rank}d")(*args, **options)
    assert isinstance(ours, type(torchs))
    assert repr(ours) == repr(torchs) and ours.state_dict() == {}
    x = torch.randn(2, 3, *(9, 8, 7)[:rank], dtype=torch.float64)
    want = torchs(x)
    function = f"{FUNCTIONS[name]}{rank}d"
    home = fastconv.pooling_adaptive if "Adaptive" in name else fastconv.pooling
    called = []
    real = getattr(home, function)
    monkeypatch.setattr(home, function, lambda *a, **k: called.append(k["algo"]) or real(*a, **k))
    torch.testing.assert_close(ours(x), want)
    torch.testing.assert_close(pickle.loads(pickle.dumps(copy.deepcopy(ours)))(x), want)
    chosen = getattr(fnn, f"{name}{rank}d")(*args, **options, algo="aten")
    torch.testing.assert_close(copy.deepcopy(chosen)(x), want)
    assert repr(chosen) == repr(torchs)[:-1] + ", algo=aten)"
    assert called == ["auto", "auto", "aten"]
    assert "algo" not in vars(ours)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_unpooling_layers(rank: int) -> None:
    x = torch.randn(2, 3, *(9, 8, 7)[:rank])
    y, index = getattr(fnn, f"MaxPool{rank}d")(3, 2, return_indices=True)(x)
    ours, torchs = (getattr(m, f"MaxUnpool{rank}d")(3, 2) for m in (fnn, nn))
    assert isinstance(ours, type(torchs)) and repr(ours) == repr(torchs)
    for layer in (ours, pickle.loads(pickle.dumps(ours))):
        size = x.shape
        assert torch.equal(layer(y, index, output_size=size), torchs(y, index, output_size=size))


def test_layers_that_torch_has_not() -> None:
    x = torch.randn(2, 3, 9, 8)
    assert torch.equal(fnn.SumPool2d(3, 2, 1)(x), fastconv.sum_pool2d(x, 3, 2, 1))
    assert torch.equal(fnn.L2Pool2d(2)(x), fastconv.l2_pool2d(x, 2))
    assert repr(fnn.L2Pool2d(2)) == "L2Pool2d(kernel_size=2, stride=2, padding=0, ceil_mode=False)"
    assert torch.equal(fnn.Maxout(3)(x), fastconv.maxout(x, 3))
    assert torch.equal(fnn.L2PoolFeatures(2, 1)(x), fastconv.l2_pool_features(x, 2, 1))
    assert repr(fnn.Maxout(3, algo="aten")) == "Maxout(groups=3, algo=aten)"
    assert repr(fnn.L2PoolFeatures(3)) == "L2PoolFeatures(size=3, stride=3)"
    for layer in (fnn.Maxout(3), fnn.L2PoolFeatures(2, 1), fnn.SumPool2d(2, algo="direct")):
        other = pickle.loads(pickle.dumps(layer))
        assert repr(other) == repr(layer) and torch.equal(other(x), layer(x))


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_stochastic_layers_draw_while_training(rank: int) -> None:
    x = torch.rand(2, 3, *(9, 8, 7)[:rank])
    function = getattr(fastconv, f"stochastic_pool{rank}d")
    layer = getattr(fnn, f"StochasticPool{rank}d")(3, 2, 1, return_indices=True)
    results = []
    for call in (layer, pickle.loads(pickle.dumps(layer))):
        torch.manual_seed(2)
        results.append(call(x))
    torch.manual_seed(2)
    results.append(function(x, 3, 2, 1, return_indices=True))
    for y, index in results[1:]:
        assert torch.equal(y, results[0][0]) and torch.equal(index, results[0][1])
    layer.return_indices = False
    assert torch.equal(layer.eval()(x), function(x, 3, 2, 1, training=False))
    assert repr(layer) == (
        f"StochasticPool{rank}d(kernel_size=3, stride=2, padding=1, ceil_mode=False)"
    )


def test_algorithms_are_checked_when_a_layer_is_made() -> None:
    for bad in ("fastest", None, 3):
        with pytest.raises(ValueError, match="algo"):
            fnn.MaxPool2d(2, algo=bad)
    with pytest.raises(TypeError):
        fnn.MaxPool2d(2, kernel=3)
    with pytest.raises(TypeError, match="positional"):
        fnn.Maxout(2, "direct")
