"""conv_act, and chains that nothing normalises, against PyTorch's separate operations."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from test_fused import CASES, CONVS, TOLERANCE, close, profiled, tensors
from torch import nn

import fastconv
from fastconv import activations


def separate(x, w, b, residual, after, act, moves):
    y = CONVS[w.dim() - 2](x, w, b, **moves)
    if residual is None:
        return act(y)
    return act(y) + residual if after else act(y + residual)


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize(
    "case, last",
    [(case, last) for case in CASES for last in (False, True) if case[0] > 1 or not last],
    ids=lambda c: f"{c[0]}d_{c[3]}_{c[5]}" if isinstance(c, tuple) else str(c),
)
def test_forward(case, dtype, last):
    for i, name in enumerate(activations.NAMES):
        x, w, b, *_, residual = tensors(*case, dtype, last, bias=i % 2 == 0)
        act = activations.named(name, 0.2)
        for added, after in ((None, False), (residual, False), (residual, True)):
            y = fastconv.conv_act(
                x, w, b, **case[6], activation=name, negative_slope=0.2, residual=added,
                residual_after=after,
            )  # fmt: skip
            wide = [None if t is None else t.double() for t in (x, w, b, added)]
            close(y, separate(*wide, after, act, case[6]), dtype)
            assert y.dtype == dtype
            form = torch.channels_last if case[0] == 2 else torch.channels_last_3d
            assert not last or y.is_contiguous(memory_format=form)


def test_without_gradients_it_is_one_operator():
    x, w, b = torch.randn(2, 8, 12, 12), torch.randn(16, 8, 3, 3), torch.randn(16)
    residual = torch.randn(2, 16, 12, 12)

    def run(**rest):
        return profiled(lambda: fastconv.conv_act(x, w, b, padding=1, algo="direct", **rest))

    assert run() == ["fastconv::conv_epilogue_fprop"]
    assert run(residual=residual, activation="silu") == ["fastconv::conv_epilogue_fprop"]
    w.requires_grad_()
    assert "aten::relu" in run(), "with a gradient it is composed"
    with torch.no_grad():
        assert run() == ["fastconv::conv_epilogue_fprop"]


def test_gradients_and_transforms():
    x, w, b, *_, residual = tensors(*CASES[1])
    moves = CASES[1][6]

    def run(x, w, b, residual):
        return fastconv.conv_act(x, w, b, **moves, activation="silu", residual=residual)

    def reference(x, w, b, residual):
        return separate(x, w, b, residual, False, F.silu, moves)

    operands = [t.requires_grad_() for t in (x, w, b, residual)]
    assert torch.autograd.gradcheck(run, operands)
    assert torch.autograd.gradgradcheck(run, operands)
    plain = [t.detach() for t in operands]
    tangents = [torch.randn_like(t) for t in plain]
    for mine, theirs in zip(
        torch.func.jvp(run, tuple(plain), tuple(tangents)),
        torch.func.jvp(reference, tuple(plain), tuple(tangents)),
        strict=True,
    ):
        close(mine, theirs, torch.float64)
    stacked = torch.stack([plain[0], -plain[0]])
    over = torch.vmap(run, in_dims=(0, None, None, None))(stacked, *plain[1:])
    close(over[1], reference(-plain[0], *plain[1:]), torch.float64)


def test_compiled_fullgraph():
    x, w, b = torch.randn(2, 3, 8, 8), torch.randn(4, 3, 3, 3), torch.randn(4)
    found = []

    def backend(graph, inputs):
        found.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    run = torch.compile(lambda x: fastconv.conv_act(x, w, b), fullgraph=True, backend=backend)
    close(run(x), F.relu(F.conv2d(x, w, b)), torch.float32)
    assert any("conv_act" in target for target in found), found
    w.requires_grad_()
    run = torch.compile(lambda x: fastconv.conv_act(x, w, b), fullgraph=True, backend="aot_eager")
    run(x).sum().backward()
    expected = w.detach().clone().requires_grad_()
    F.relu(F.conv2d(x, expected, b)).sum().backward()
    close(w.grad, expected.grad, torch.float32, 10.0)


def test_autocast_and_empty():
    x, w, b = torch.randn(2, 3, 8, 8), torch.randn(4, 3, 3, 3), torch.randn(4)
    with torch.autocast("cpu", torch.bfloat16):
        y = fastconv.conv_act(x, w, b)
    assert y.dtype == torch.bfloat16
    close(y, F.relu(F.conv2d(x, w, b)), torch.bfloat16)
    assert fastconv.conv_act(x[:0], w, b).shape == (0, 4, 6, 6)
    one = torch.randn(4, 1, 1)  # a residual that broadcasts
    close(fastconv.conv_act(x, w, residual=one), F.relu(F.conv2d(x, w) + one), torch.float32)


def test_errors():
    x, w = torch.randn(2, 3, 8, 8), torch.randn(4, 3, 3, 3)
    with pytest.raises(ValueError, match="unknown activation 'tanh'"):
        fastconv.conv_act(x, w, activation="tanh")
    with pytest.raises(ValueError, match="expected 4D input"):
        fastconv.conv_act(x[0], w)
    for bad in (torch.randn(4, 2, 3, 3), w.double()):
        with pytest.raises(RuntimeError) as mine:
            fastconv.conv_act(x, bad)
        with pytest.raises(RuntimeError) as theirs:
            F.conv2d(x, bad)
        assert str(mine.value) == str(theirs.value)
    with pytest.raises(RuntimeError, match="must match the size"):
        fastconv.conv_act(x, w, residual=torch.randn(5, 5))


class Wide(nn.Module):
    """As networks without normalisation write it, circular borders and an addition among it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1, padding_mode="circular")
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.conv3 = nn.Conv2d(6, 6, 1)
        self.conv4 = nn.Conv2d(6, 6, 1)
        self.conv5 = nn.Conv2d(6, 6, 1)
        self.act = nn.LeakyReLU(0.3, inplace=True)

    def forward(self, x):
        x = self.act(self.conv1(x))
        y = F.relu(self.conv2(x) + x)
        z = self.conv3(y) + self.conv4(y)
        return z.tanh() + self.conv5(x)


def test_chains_that_nothing_normalises_are_fused():
    torch.manual_seed(0)
    model, x = Wide(), torch.randn(2, 3, 9, 9)
    plain = copy.deepcopy(model)
    report = fastconv.convert(model, fuse=True)
    chains = [chain for _, chain in report.fused]
    # One addition of two convolutions' results: the later one has it.
    assert chains == ["conv1 + act", "conv2 + add + relu", "conv4 + add", "conv5 + add"]
    assert report.unfused == [("conv3", "its input is read between it and the addition")]
    for mode in (False, True):
        model.train(mode), plain.train(mode)
        close(model(x), plain(x), torch.float32)
    model(x).sum().backward(), plain(x).sum().backward()
    for mine, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        close(mine.grad, theirs.grad, torch.float32, 10.0)
    with torch.no_grad():
        names = profiled(lambda: model(x))
    assert not any(n.startswith(("aten::leaky_relu", "aten::relu", "aten::add")) for n in names)
    seen = []
    model.act.register_forward_hook(lambda *_: seen.append(1))
    model(x)
    assert seen, "a hook that came later runs"


class TwoSources(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)

    def forward(self, x, y):
        return F.relu(self.one(x) + self.two(y))


def test_an_addition_belongs_to_one_convolution():
    model = TwoSources()
    plain = copy.deepcopy(model)
    report = fastconv.convert(model, fuse=True)
    assert [chain for _, chain in report.fused] == ["one + add + relu"]
    assert report.unfused == [("two", "what adds to it is fused with another one")]
    x, y = torch.randn(2, 3, 5, 5), torch.randn(2, 3, 5, 5)
    with torch.no_grad():
        close(model(x, y), plain(x, y), torch.float32)
