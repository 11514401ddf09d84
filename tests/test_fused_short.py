"""conv_bn_relu and inception in evaluation, called again: what is remembered, and when not."""

from __future__ import annotations

import importlib

import pytest
import torch

import fastconv
from fastconv import fused
from fastconv.nn import ConvBNReLU2d, Inception

# The package has a function of this name.
inception_module = importlib.import_module("fastconv.inception")


class TestShortWay:
    """Evaluation that has been seen before skips checks: only what is the same may take it."""

    @pytest.fixture
    def operands(self):
        x, w, residual = (torch.randn(s) for s in ((2, 4, 9, 9), (8, 4, 3, 3), (2, 8, 9, 9)))
        bias, gamma, beta, mean = torch.randn(4, 8)
        return x, w, bias, gamma, beta, mean, torch.rand(8) + 0.5, residual

    @staticmethod
    def run(operands, **options):
        x, w, b, gamma, beta, mean, var, _ = operands
        options = {"padding": 1, "algo": "direct", **options}
        return fastconv.conv_bn_relu(x, w, b, gamma, beta, mean, var, **options)

    def test_it_is_taken(self, operands, monkeypatch):
        with torch.no_grad():
            known = [operands[-1], None]
            first = [self.run(operands, residual=r) for r in known for _ in range(2)]

            def refuse(*_):
                raise AssertionError("the long way")

            monkeypatch.setattr(fused, "_planned", refuse)
            for r, y in zip(known, first[::2], strict=True):
                assert torch.equal(self.run(operands, residual=r), y)
            others = (
                {"activation": "silu"}, {"padding": 0}, {"stride": [2, 2]}, {"algo": "im2col"},
                {"residual": operands[-1], "residual_after": True}, {"padding": 1.0},
                {"residual": operands[-1][:1]}, {"dilation": (1, True)}, {"stride": True},
                {"precision": "ieee"}, {"eps": 1e-3}, {"training": True},
            )  # fmt: skip
            for options in others:
                with pytest.raises(AssertionError, match="the long way"):
                    self.run(operands, **options)
            x, *rest = operands
            for other in (x[:1], x.contiguous(memory_format=torch.channels_last), x.double()):
                with pytest.raises(AssertionError, match="the long way"):
                    self.run((other, *rest))
            with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(AssertionError):
                self.run(operands)
            with torch.enable_grad(), pytest.raises(AssertionError, match="the long way"):
                self.run((x.clone().requires_grad_(), *rest))
            operands[5].add_(1.0)
            with pytest.raises(AssertionError, match="the long way"):
                self.run(operands)

    def test_what_equals_the_numbers_is_refused_as_ever(self, operands):
        with torch.no_grad():
            for _ in range(3):
                self.run(operands, stride=(1, 1))
            for stride in ((1, True), (1.0, 1), [1, True], 1.0):
                with pytest.raises((TypeError, RuntimeError), match="int"):
                    self.run(operands, stride=stride)

    def test_a_dead_weight_is_forgotten(self, operands):
        x, w, *rest = operands
        w = w.clone()  # the fixture keeps the other
        with torch.no_grad():
            for _ in range(3):
                self.run((x, w, *rest))
            key = id(w)
            assert key in fused._folded._entries
            del w
            assert key not in fused._folded._entries


def test_hooks_and_replaced_parameters_of_a_layer_are_seen():
    layer, x = ConvBNReLU2d(4, 8, 3, algo="direct").eval(), torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        for _ in range(3):
            y = layer(x)
        layer[0].weight = torch.nn.Parameter(2 * layer[0].weight)
        torch.testing.assert_close(layer(x), layer[2](layer[1](layer[0](x))))
        assert not torch.equal(layer(x), y)
        torch.nn.utils.parametrizations.weight_norm(layer[0])
        torch.testing.assert_close(layer(x), layer[2](layer[1](layer[0](x))))
        seen = []
        layer[2].register_forward_hook(lambda *_: seen.append(1))
        layer(x)
        assert seen == [1]


def test_inception_skips_its_checks_for_the_same_parameters_alone(monkeypatch):
    layer, x = Inception(4, 3, 2, 3, 2, 3, 2, algo="direct").eval(), torch.randn(1, 4, 6, 6)
    with torch.no_grad():
        first, wide = layer(x), layer(x.double().float()[:, :, :5])
        assert wide.shape[2] == 5

        def refuse(*_):
            raise AssertionError("the long way")

        monkeypatch.setattr(inception_module, "_check", refuse)
        assert torch.equal(layer(x), first)
        for other in (x.double(), x[:, :, :4], x.contiguous(memory_format=torch.channels_last)):
            with pytest.raises(AssertionError, match="the long way"):
                layer(other)
        with torch.enable_grad(), pytest.raises(AssertionError, match="the long way"):
            layer(x)
        with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(AssertionError):
            layer(x)
        layer.branch1.conv.bias.add_(1.0)
        with pytest.raises(AssertionError, match="the long way"):
            layer(x)
        monkeypatch.undo()
        assert not torch.equal(layer(x), first)
        seen = []
        layer.branch4[0].register_forward_pre_hook(lambda *_: seen.append(1))
        layer(x)
        assert seen == [1]
