"""fastconv.inception and nn.Inception against their branches run one by one."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastconv
import fastconv.fuse_inception
import fastconv.fuse_joint
from fastconv.nn import Inception

SIZES = (6, 4, 3, 5, 2, 3, 2)  # C, then the six numbers of filters
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}


def parameters(dtype=torch.float64, kernel5=5, sizes=SIZES):
    C, one, red3, three, red5, five, proj = sizes
    shapes = ((one, C, 1), (red3, C, 1), (three, red3, 3), (red5, C, 1), (five, red5, kernel5),
              (proj, C, 1))  # fmt: skip
    gen = torch.Generator().manual_seed(5)
    weights = [
        (torch.randn(k, c, r, r, generator=gen, dtype=torch.float64) * 0.4).to(dtype)
        for k, c, r in shapes
    ]
    biases = [torch.randn(k, generator=gen, dtype=torch.float64).to(dtype) for k, *_ in shapes]
    return weights, biases


def separate(x: Tensor, weights, biases, act=F.relu) -> Tensor:
    def run(i, source):
        return act(F.conv2d(source, weights[i], biases[i], padding=weights[i].shape[2] // 2))

    pooled = F.max_pool2d(x, 3, 1, 1)
    branches = [run(0, x), run(2, run(1, x)), run(4, run(3, x)), run(5, pooled)]
    return torch.cat(branches, 1)


def close(a: Tensor, b: Tensor, dtype: torch.dtype) -> None:
    scale = max(1.0, b.double().abs().max().item())
    torch.testing.assert_close(a.double(), b.double(), rtol=0, atol=TOLERANCE[dtype] * scale)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("extents", [(9, 7), (1, 1), (14, 14), (2, 1)], ids=str)
def test_forward(extents, dtype, last):
    weights, biases = parameters(dtype)
    for batch in (1, 3):
        x = torch.randn(batch, SIZES[0], *extents).to(dtype)
        if last:
            x = x.contiguous(memory_format=torch.channels_last)
        wide = [[t.double() for t in ts] for ts in (weights, biases)]
        expected = separate(x.double(), *wide)
        got = fastconv.inception(x, weights, biases)
        close(got, expected, dtype)
        assert got.is_contiguous(memory_format=torch.channels_last if last else
                                 torch.contiguous_format)  # fmt: skip
        assert torch.equal(got, fastconv.inception(x, weights, biases))


@pytest.mark.parametrize("name", ["relu", "leaky_relu", "relu6", "silu", "none"])
@pytest.mark.parametrize("last", [False, True])
def test_gradients(name, last):
    from fastconv.activations import named

    weights, biases = parameters()
    x = torch.randn(2, SIZES[0], 6, 5, dtype=torch.float64)
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    everything = [x, *weights, *biases]
    for chosen in (range(13), (0,), (3,), (1, 9), (6, 12), (5,)):
        ours, theirs = (
            [t.clone().requires_grad_(i in chosen) for i, t in enumerate(everything)]
            for _ in range(2)
        )
        y = fastconv.inception(ours[0], ours[1:7], ours[7:], activation=name)
        expected = separate(theirs[0], theirs[1:7], theirs[7:], named(name))
        g = torch.randn_like(y)
        y.backward(g)
        expected.backward(g)
        for a, b in zip(ours, theirs, strict=True):
            assert (a.grad is None) == (b.grad is None)
            if a.grad is not None:
                close(a.grad, b.grad, torch.float64)


def test_gradcheck_and_second_order():
    weights, biases = parameters(sizes=(2, 1, 1, 2, 1, 1, 1), kernel5=3)
    x = torch.randn(1, 2, 3, 3, dtype=torch.float64)
    inputs = [t.clone().requires_grad_() for t in (x, *weights, *biases)]

    def function(x, *p):
        return fastconv.inception(x, p[:6], p[6:], activation="leaky_relu")

    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


def test_transforms_and_graphs_are_composed():
    weights, biases = parameters()
    x = torch.randn(2, SIZES[0], 6, 6, dtype=torch.float64)

    def ours(x):
        return fastconv.inception(x, weights, biases)

    def theirs(x):
        return separate(x, weights, biases)

    t = torch.randn_like(x)
    for a, b in zip(
        torch.func.jvp(ours, (x,), (t,)), torch.func.jvp(theirs, (x,), (t,)), strict=True
    ):
        close(a, b, torch.float64)
    stacked = torch.stack([x, -x])
    close(torch.vmap(ours)(stacked), torch.vmap(theirs)(stacked), torch.float64)
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    close(compiled(x), theirs(x), torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        y = fastconv.inception(x.float(), *([t.float() for t in ts] for ts in (weights, biases)))
    assert y.dtype == torch.bfloat16


def test_joined_weights_follow_their_sources():
    weights, biases = parameters()
    x = torch.randn(1, SIZES[0], 5, 5, dtype=torch.float64)
    for change in (weights[1], weights[3], biases[1], biases[3]):
        before = fastconv.inception(x, weights, biases)
        change.mul_(2.0)
        after = fastconv.inception(x, weights, biases)
        assert not torch.equal(before, after)
        close(after, separate(x, weights, biases), torch.float64)


class TorchvisionUnit(nn.Module):
    def __init__(self, C: int, K: int, **options) -> None:
        super().__init__()
        self.conv = nn.Conv2d(C, K, bias=False, **options)
        self.bn = nn.BatchNorm2d(K, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


class TorchvisionInception(nn.Module):
    """The names and shapes of torchvision's GoogLeNet module, whose third branch has 3x3."""

    def __init__(self, C, one, red3, three, red5, five, proj) -> None:
        super().__init__()
        unit = TorchvisionUnit
        self.branch1 = unit(C, one, kernel_size=1)
        self.branch2 = nn.Sequential(
            unit(C, red3, kernel_size=1), unit(red3, three, kernel_size=3, padding=1)
        )
        self.branch3 = nn.Sequential(
            unit(C, red5, kernel_size=1), unit(red5, five, kernel_size=3, padding=1)
        )
        self.branch4 = nn.Sequential(
            nn.MaxPool2d(kernel_size=3, stride=1, padding=1, ceil_mode=True),
            unit(C, proj, kernel_size=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        branches = (self.branch1, self.branch2, self.branch3, self.branch4)
        return torch.cat([branch(x) for branch in branches], 1)


def test_layer_takes_torchvisions_weights_and_trains_like_it():
    torch.manual_seed(2)
    theirs = TorchvisionInception(*SIZES).double()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.weight)
    ours = Inception.from_torchvision(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert ours.training
    x = torch.randn(2, SIZES[0], 8, 8, dtype=torch.float64)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.05) for m in (ours, theirs)]
    for step in range(10):
        for model, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            model(x + step).square().mean().backward()
            optimizer.step()
    for (name, a), b in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10, msg=name)
    ours.eval(), theirs.eval()
    with torch.no_grad():
        close(ours(x), theirs(x), torch.float64)
        ours.branch2[0].bn.weight.mul_(2)
        assert not torch.allclose(ours(x), theirs(x)), "stale folded weights"
    ours.load_state_dict(theirs.state_dict())
    x.requires_grad_()
    (ours(x).sum() - theirs(x).sum()).backward()
    assert x.grad.abs().max() < 1e-9


class Functional(nn.Module):
    """The same without normalisation, as one writes it by hand."""

    def __init__(self, C, one, red3, three, red5, five, proj) -> None:
        super().__init__()
        self.a = nn.Conv2d(C, one, 1)
        self.b1, self.b2 = nn.Conv2d(C, red3, 1), nn.Conv2d(red3, three, 3, padding=1)
        self.c1, self.c2 = nn.Conv2d(C, red5, 1), nn.Conv2d(red5, five, 5, padding="same")
        self.d = nn.Conv2d(C, proj, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        b = F.relu(self.b2(F.relu(self.b1(x))))
        c = self.c2(self.c1(x).relu()).relu()
        d = torch.relu(self.d(F.max_pool2d(x, kernel_size=3, stride=1, padding=1)))
        return torch.cat((F.relu(self.a(x)), b, c, d), dim=1)


@pytest.mark.parametrize("kind", [TorchvisionInception, Functional])
def test_convert_recognises_modules(kind, monkeypatch):
    torch.manual_seed(3)
    model = nn.Sequential(kind(*SIZES), kind(14, *SIZES[1:])).double()
    plain = copy.deepcopy(model)
    report = fastconv.convert(model, fuse=True)
    assert sum(chain.startswith("inception: ") for _, chain in report.fused) == 2, str(report)
    assert report.unfused == [], str(report)
    calls = []
    real = fastconv.fuse_inception.inception
    monkeypatch.setattr(
        fastconv.fuse_inception, "inception", lambda *a, **k: calls.append(1) or real(*a, **k)
    )
    x = torch.randn(2, SIZES[0], 7, 7, dtype=torch.float64)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.01) for m in (model, plain)]
    for step in range(10):
        for net, optimizer in zip((model, plain), optimizers, strict=True):
            optimizer.zero_grad()
            net(x + step).square().mean().backward()
            optimizer.step()
    for (name, a), b in zip(model.state_dict().items(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9, msg=name)
    calls.clear()
    model.eval(), plain.eval()
    with torch.no_grad():
        close(model(x), plain(x), torch.float64)
        assert len(calls) == 2
        again = copy.deepcopy(model)
        assert torch.equal(again(x), model(x))
        handle = next(m for m in model.modules() if isinstance(m, nn.Conv2d)).register_forward_hook(
            lambda *args: None
        )
        calls.clear()
        close(model(x), plain(x), torch.float64)
        assert len(calls) == 1, "a hook on a layer must run"
        handle.remove()
    fastconv.revert(model)
    assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]


class LaterInception(nn.Module):
    """torchvision's InceptionA of inception_v3: average pooling, and three 1x1 on one input."""

    def __init__(self, C: int) -> None:
        super().__init__()
        unit = TorchvisionUnit
        self.branch1x1 = unit(C, 4, kernel_size=1)
        self.branch5x5_1 = unit(C, 3, kernel_size=1)
        self.branch5x5_2 = unit(3, 4, kernel_size=5, padding=2)
        self.branch3x3dbl_1 = unit(C, 4, kernel_size=1)
        self.branch3x3dbl_2 = unit(4, 6, kernel_size=3, padding=1)
        self.branch3x3dbl_3 = unit(6, 6, kernel_size=3, padding=1)
        self.branch_pool = unit(C, 2, kernel_size=1)

    def _forward(self, x: Tensor) -> list[Tensor]:
        one = self.branch1x1(x)
        five = self.branch5x5_2(self.branch5x5_1(x))
        three = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        pool = self.branch_pool(F.avg_pool2d(x, kernel_size=3, stride=1, padding=1))
        return [one, five, three, pool]

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat(self._forward(x), 1)


def test_convert_joins_pointwise_convolutions_on_one_input(monkeypatch):
    torch.manual_seed(4)
    model = LaterInception(6).double()
    plain = copy.deepcopy(model)
    report = fastconv.convert(model, fuse=True)
    chains = [chain for fqn, chain in report.fused if fqn == ""]
    assert "joined: branch1x1.conv, branch5x5_1.conv, branch3x3dbl_1.conv" in chains, str(report)
    assert report.unfused == [], str(report)
    x = torch.randn(2, 6, 7, 7, dtype=torch.float64)
    for step in range(3):
        for net in (model, plain):
            net.zero_grad()
            net(x + step).square().mean().backward()
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        close(a.grad, b.grad, torch.float64)
    model.eval(), plain.eval()
    calls = []
    real = fastconv.fuse_joint.conv_epilogue_auto
    monkeypatch.setattr(
        fastconv.fuse_joint, "conv_epilogue_auto", lambda *a: calls.append(1) or real(*a)
    )
    with torch.no_grad():
        for shape in (torch.contiguous_format, torch.channels_last):
            image = x.contiguous(memory_format=shape)
            close(model(image), plain(image), torch.float64)
        assert len(calls) == 2
        for net in (model, plain):
            net.branch5x5_1.train()  # modes are mixed: its normalisation takes the batch
        close(model(x), plain(x), torch.float64)
        assert len(calls) == 2
    fastconv.revert(model)
    assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]


def test_near_misses_are_not_inception():
    """Each has the same shape but computes something else."""

    def changed(change) -> nn.Module:
        model = Functional(*SIZES)
        change(model)
        return model

    class Twice(Functional):
        def forward(self, x):
            return super().forward(x) + 0 * self.a(x).mean()

    class Other(Functional):
        def forward(self, x):
            b = F.relu(self.b2(F.relu(self.b1(x))))
            c = self.c2(self.c1(x).tanh()).relu()
            d = torch.relu(self.d(F.max_pool2d(x, 3, 1, 1)))
            return torch.cat((F.relu(self.a(x)), b, c, d), 1)

    class Average(Functional):
        def forward(self, x):
            b = F.relu(self.b2(F.relu(self.b1(x))))
            c = self.c2(self.c1(x).relu()).relu()
            d = torch.relu(self.d(F.avg_pool2d(x, 3, 1, 1)))
            return torch.cat((F.relu(self.a(x)), b, c, d), 1)

    def dilate(m):
        m.b2 = nn.Conv2d(3, 5, 3, padding=2, dilation=2)

    def circular(m):
        m.b2 = nn.Conv2d(3, 5, 3, padding=1, padding_mode="circular")

    models = [Twice(*SIZES), Other(*SIZES), Average(*SIZES), changed(dilate), changed(circular)]
    x = torch.randn(2, SIZES[0], 7, 7)
    for model in models:
        expected = model(x)
        report = fastconv.convert(model, fuse=True)
        # Convolutions with their activations, and no module as a whole.
        assert len(report.fused) in (5, 6), str(report)
        assert all(chain.endswith(" + relu") for _, chain in report.fused), str(report)
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)


def test_layer_without_normalisation():
    layer = Inception(*SIZES)
    branches = [layer.branch1, layer.branch2, layer.branch3, layer.branch4]
    x = torch.randn(2, SIZES[0], 7, 7)
    expected = torch.cat([b(x) for b in branches], 1)
    close(layer(x), expected, torch.float32)
    layer(x).square().sum().backward()
    assert all(p.grad is not None for p in layer.parameters())
    seen = []
    layer.branch3[1].conv.register_forward_hook(lambda *a: seen.append(1))
    close(layer(x), expected, torch.float32)
    assert seen == [1]


def test_errors():
    weights, biases = parameters()
    x = torch.randn(1, SIZES[0], 5, 5, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"expected 6 weights .* got 5"):
        fastconv.inception(x, weights[:5], biases)
    even = copy.copy(weights)
    even[2] = torch.zeros(5, 3, 2, 2, dtype=torch.float64)
    with pytest.raises(ValueError, match="must be odd and square, got 2x2"):
        fastconv.inception(x, even, biases)
    with pytest.raises(ValueError, match="unknown activation"):
        fastconv.inception(x, weights, biases, activation="gelu")
    with pytest.raises(ValueError, match="kernel5 must be odd"):
        Inception(*SIZES, kernel5=4)
    with pytest.raises(RuntimeError) as theirs:
        F.conv2d(x[:, :4], weights[0], biases[0])
    with pytest.raises(RuntimeError) as ours:
        fastconv.inception(x[:, :4], weights, biases)
    assert str(ours.value) == str(theirs.value)


def test_evaluation_has_no_concatenation():
    layer = Inception(*SIZES, batch_norm=True, algo="direct").eval()
    x = torch.randn(2, SIZES[0], 8, 8)
    with torch.no_grad():
        layer(x)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            layer(x)
        names = [event.name for event in profile.events()]
    ours = [name for name in names if name.startswith("fastconv::")]
    # Both reductions in one; three branches into their slices; the pool and its projection.
    assert sorted(ours) == [
        "fastconv::conv_epilogue_fprop",
        *["fastconv::conv_epilogue_into"] * 4,
        "fastconv::max_pool_fprop",
    ]
    assert not any("cat" in n or "batch_norm" in n or "relu" in n or "copy" in n for n in names)
