"""convert(model, fuse=True): what is fused, what is left alone and why; models stay right."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from models import ARCHITECTURES, BasicBlock
from torch import Tensor, nn

import fastconv
from fastconv.fuse import is_fused

STEPS = 10
# How many chains each family has.
CHAINS = {"plain": 4, "resnet_basic": 6, "resnet_bottleneck": 9, "resnext": 9, "mobilenet": 7,
          "inception": 5, "speech": 1, "video": 2, "unet": 2}  # fmt: skip


class Block(nn.Module):
    """A residual block as torchvision writes it: a ReLU layer used twice, an addition in place."""

    def __init__(self, C: int = 4, down: bool = False) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(C, C, 3, padding=1, bias=False), nn.BatchNorm2d(C)
        self.relu = nn.ReLU(inplace=True)
        self.conv2, self.bn2 = nn.Conv2d(C, C, 3, padding=1, bias=False), nn.BatchNorm2d(C)
        self.downsample = nn.Sequential(nn.Conv2d(C, C, 1), nn.BatchNorm2d(C)) if down else None

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


def trained(model: nn.Module, inputs: list[Tensor]) -> list[float]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    losses = []
    for x in inputs:
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_models_train_and_evaluate_as_before(name):
    architecture = ARCHITECTURES[name]
    torch.manual_seed(1)
    plain = architecture.make().double()
    model = copy.deepcopy(plain)
    before = {k: v.data_ptr() for k, v in model.state_dict().items()}
    report = fastconv.convert(model, fuse=True)
    assert len(report.fused) == CHAINS[name], str(report)
    convolutions = architecture.convolutions
    assert len(report.fused) + len(report.unfused) == convolutions, str(report)
    assert {k: v.data_ptr() for k, v in model.state_dict().items()} == before
    inputs = [torch.randn(*architecture.input_size, dtype=torch.float64) for _ in range(STEPS)]
    ours, theirs = trained(model, inputs), trained(plain, inputs)
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-12)
    assert ours[0] != ours[-1]
    for (key, a), b in zip(model.state_dict().items(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-10, msg=key)
    model.eval(), plain.eval()
    with torch.no_grad():
        torch.testing.assert_close(model(inputs[0]), plain(inputs[0]), rtol=1e-9, atol=1e-10)
    model.train(), plain.train()
    torch.testing.assert_close(model(inputs[1]), plain(inputs[1]), rtol=1e-7, atol=1e-9)
    undone = fastconv.revert(model)
    assert len(undone.converted) == architecture.layers
    assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]
    assert not any(k.startswith("_fastconv") for m in model.modules() for k in vars(m))


@pytest.mark.parametrize("down", [False, True])
def test_residual_block_is_fused_with_its_addition(down):
    block = Block(down=down)
    plain = copy.deepcopy(block)
    report = fastconv.convert(block, fuse=True)
    expected = ["conv1 + bn1 + relu", "conv2 + bn2 + add + relu"]
    if down:
        expected.append("downsample.0 + downsample.1")
    assert sorted(chain for _, chain in report.fused) == sorted(expected)
    assert report.unfused == []
    assert "3 fused" in str(report) if down else "2 fused" in str(report)
    x = torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(block(x), plain(x), rtol=1e-4, atol=1e-5)
    block.eval(), plain.eval()
    with torch.no_grad():
        kept = x.clone()
        torch.testing.assert_close(block(x), plain(x), rtol=1e-4, atol=1e-5)
        assert torch.equal(x, kept), "the shortcut was written to"


def test_fused_layers_run_once_each(monkeypatch):
    """The chain is one call: neither normalisation nor activation runs by itself."""
    block = Block().eval()
    fastconv.convert(block, fuse=True)
    calls = []
    for name in ("bn1", "bn2", "relu"):
        layer = getattr(block, name)
        monkeypatch.setattr(layer, "forward", lambda x, name=name: calls.append(name) or x)
    with torch.no_grad():
        block(torch.randn(1, 4, 6, 6))
    assert calls == []


class Consumers(nn.Module):
    """Convolutions that must stay alone, each for a reason of its own."""

    def __init__(self) -> None:
        super().__init__()
        for i in range(5):
            setattr(self, f"conv{i}", nn.Conv2d(3, 3, 1))
            setattr(self, f"bn{i}", nn.BatchNorm2d(3))
        self.norm = nn.GroupNorm(1, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv0(x)
        a = self.bn0(y) + y.mean()  # a second consumer
        b = self.norm(self.conv1(x))  # another normalisation
        c = self.bn2(self.conv2(x)).relu()
        d = self.bn3(torch.tanh(self.conv3(x)))
        e = self.bn4(self.conv4(x))
        return a + b + c + d + e.sigmoid() * e  # e: the chain ends with its normalisation


def test_reasons():
    model = Consumers()
    model.bn2.register_forward_hook(lambda *_: None)
    plain = copy.deepcopy(model)
    report = fastconv.convert(model, fuse=True)
    assert report.fused == [("", "conv4 + bn4")]
    reasons = dict(report.unfused)
    assert "second consumer" in reasons["conv0"]
    assert "nothing normalises" in reasons["conv1"]
    assert "'bn2' has hooks" in reasons["conv2"]
    assert "nothing normalises" in reasons["conv3"]
    assert "not fused: 'bn2' has hooks" in str(report)
    x = torch.randn(2, 3, 5, 5)
    torch.testing.assert_close(model(x), plain(x), rtol=1e-4, atol=1e-5)


def test_hooks_added_later_run():
    block, seen = Block().eval(), []
    fastconv.convert(block, fuse=True)
    x = torch.randn(1, 4, 6, 6)
    with torch.no_grad():
        expected = block(x)
        handle = block.bn1.register_forward_hook(lambda m, args, out: seen.append(out.mean()))
        torch.testing.assert_close(block(x), expected, rtol=1e-4, atol=1e-5)
        assert len(seen) == 1
        handle.remove()
        block(x)
    assert len(seen) == 1


class ShortcutFirst(nn.Module):
    """Two convolutions that meet in one addition, the shortcut being worked out first."""

    def __init__(self) -> None:
        super().__init__()
        self.short = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.main = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4))

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.short(x) + self.main(x))


def test_two_convolutions_in_one_addition():
    model = ShortcutFirst()
    plain = copy.deepcopy(model)
    report = fastconv.convert(model, fuse=True)
    assert len(report.fused) == 2 and report.unfused == []
    assert sum("add + silu" in chain for _, chain in report.fused) == 1
    x = torch.randn(2, 3, 6, 6)
    for mode in (True, False):
        model.train(mode), plain.train(mode)
        torch.testing.assert_close(model(x), plain(x), rtol=1e-4, atol=1e-5)


class Undecided(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x)) if x.sum() > 0 else x


class Counting(Undecided):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.bn(self.conv(x))


def test_what_cannot_be_traced_is_left_alone():
    for model, text in ((Undecided(), "cannot be traced"), (Counting(), "sets the attribute")):
        report = fastconv.convert(model, fuse=True)
        assert report.fused == [] and not is_fused(model)
        ((name, reason),) = report.unfused
        assert name == "conv" and text in reason
    assert model.calls == 0
    instance = Block()
    instance.forward = lambda x: x
    report = fastconv.convert(instance, fuse=True)
    assert all("forward was replaced" in reason for _, reason in report.unfused)


class Moded(nn.Module):
    """Does another thing in training, and has a number of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.scale = 2.0

    def forward(self, x: Tensor, shift: float = 1.0) -> Tensor:
        y = F.relu(self.bn(self.conv(x))) * self.scale + shift
        return -y if self.training else y


def test_changes_after_conversion_count():
    model = Moded()
    plain = copy.deepcopy(model)
    fastconv.convert(model, fuse=True)
    x = torch.randn(4, 3, 5, 5)

    def same(**options):
        for mode in (False, True):
            model.train(mode), plain.train(mode)
            torch.testing.assert_close(
                model(x, **options), plain(x, **options), rtol=1e-4, atol=1e-5
            )

    same()
    same(shift=3.0)
    model.scale = plain.scale = 5.0
    same()
    layer = nn.Conv2d(3, 3, 3, padding=1)
    model.conv, plain.conv = layer, copy.deepcopy(layer)
    same()  # a plain layer now, so nothing is fused, and the forward is its own
    sequence = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    fastconv.convert(sequence, fuse=True)
    sequence.append(nn.Tanh())
    assert sequence(x).abs().max() <= 1
    sequence[1] = nn.Identity()
    torch.testing.assert_close(sequence(x), torch.tanh(sequence[0](x)))


def test_copies_and_pickles_stay_fused():
    model = nn.Sequential(BasicBlock(4, 4, 1), BasicBlock(4, 6, 2)).eval()
    fastconv.convert(model, fuse=True)
    x = torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        expected = model(x)
        for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert is_fused(again[0]) and again[0] is not model[0]
            assert torch.equal(again(x), expected)
            again[0].conv1[0].weight.zero_()
            assert not torch.equal(again(x), expected)
            assert torch.equal(model(x), expected)


def test_compiled():
    block = Block(down=True)
    plain = copy.deepcopy(block)
    fastconv.convert(block, fuse=True)
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(compiled(x), plain(x), rtol=1e-4, atol=1e-5)
    block.eval(), plain.eval()
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), plain(x), rtol=1e-4, atol=1e-5)


def test_fusing_brings_in_no_compiler():
    code = (
        "import sys, torch.nn as nn, fastconv;"
        "m = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU());"
        "fastconv.convert(m, fuse=True);"
        "print('torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
