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
]


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
    function = {"MaxPool": "max_pool", "AvgPool": "avg_pool", "LPPool": "lp_pool"}[name]
    called = []
    real = getattr(fastconv.pooling, f"{function}{rank}d")
    monkeypatch.setattr(
        fastconv.pooling, f"{function}{rank}d", lambda *a, **k: called.append(1) or real(*a, **k)
    )
    torch.testing.assert_close(ours(x), want)
    torch.testing.assert_close(pickle.loads(pickle.dumps(copy.deepcopy(ours)))(x), want)
    assert len(called) == 2


def test_layers_that_torch_has_not() -> None:
    x = torch.randn(2, 3, 9, 8)
    assert torch.equal(fnn.SumPool2d(3, 2, 1)(x), fastconv.sum_pool2d(x, 3, 2, 1))
    assert torch.equal(fnn.L2Pool2d(2)(x), fastconv.l2_pool2d(x, 2))
    assert repr(fnn.L2Pool2d(2)) == "L2Pool2d(kernel_size=2, stride=2, padding=0, ceil_mode=False)"
