"""The demo's first half: one small network trained on real handwritten digits, with PyTorch's
convolutions and with fastconv's, from the same seed over the same batches."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

import fastconv
from fastconv import select
from fastconv.ops.conv_call import inherited
from fastconv.problem import ConvSpec

SEED = 0
BATCH = 32
FIRST_STEPS = 10  # the steps whose losses have to agree
# Rounding errors differ between algorithms and training amplifies them step by step: this bounds
# the relative difference of the first losses (observed: 1e-7). A gradient that is 1 % off shows as
# 1e-4 and more.
LOSS_TOLERANCE = 1e-5
MIN_ACCURACY = 0.97
MAX_ACCURACY_GAP = 0.01

# So that every algorithm trains something, whatever `auto` prefers on layers this small.
FORCED = {
    "stem": "direct",
    "wide": "winograd_f4x4_3x3",
    "deep": "winograd_f2x2_3x3",
    "down": "im2col",
}


class DigitsNet(nn.Module):
    """Four convolutions and a linear layer: [N, 1, 16, 16] -> [N, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 32, 3, padding=1)
        self.wide = nn.Conv2d(32, 64, 3, padding=1)
        self.deep = nn.Conv2d(64, 64, 3, padding=1)
        self.down = nn.Conv2d(64, 128, 3, stride=2, padding=1)
        self.head = nn.Linear(128 * 2 * 2, 10)
        # Not max pooling: the digits' background is constant, so windows there are ties that the
        # last bit breaks, and two right algorithms would send gradients to different places.
        self.pool = nn.AvgPool2d(2)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # keeps the signal's variance through ReLUs
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))  # [N, 32, 16, 16]
        x = self.pool(torch.relu(self.wide(x)))  # [N, 64, 8, 8]
        x = self.pool(torch.relu(self.deep(x)))  # [N, 64, 4, 4]
        x = torch.relu(self.down(x))  # [N, 128, 2, 2]
        return self.head(x.flatten(1))


@dataclass(frozen=True)
class Digits:
    """x: [N, 1, 16, 16] in -1..1, y: [N] labels; 60 % to train on, 40 % to test."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor


@dataclass
class Run:
    """One training: the loss of every step, and what came of it."""

    name: str
    losses: list[float] = field(default_factory=list)
    accuracy: float = 0.0
    seconds: float = 0.0
    algorithms: dict[str, str] = field(default_factory=dict)  # layer -> fprop/dgrad/wgrad


def load_digits(device: str = "cpu") -> Digits:
    """scikit-learn's 1,797 scanned digits, 8x8, enlarged to 16x16."""
    from sklearn.datasets import load_digits as sklearn_digits

    bunch = sklearn_digits()
    x = torch.tensor(bunch.images, dtype=torch.float32)[:, None] / 8 - 1
    x = nn.functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    y = torch.tensor(bunch.target, dtype=torch.int64)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(SEED))
    x, y = x[order].to(device), y[order].to(device)
    split = len(y) * 6 // 10
    return Digits(x[:split], y[:split], x[split:], y[split:])


def make_model(algorithms: dict[str, str] | str | None, device: str = "cpu") -> nn.Module:
    """The network with the seed's weights: PyTorch's layers (None), converted with one algorithm
    ('auto'), or converted layer by layer ({layer: algorithm})."""
    torch.manual_seed(SEED)
    model = DigitsNet().to(device)
    if isinstance(algorithms, str):
        fastconv.convert(model, algo=algorithms)
    elif algorithms is not None:
        for layer, algo in algorithms.items():
            only = lambda _, name, layer=layer: name == layer  # noqa: E731
            fastconv.convert(model, filter_fn=only, algo=algo)
    if algorithms is not None:
        _check_converted(model)
    return model


def _check_converted(model: nn.Module) -> None:
    """A demo that silently trained PyTorch's layers twice would prove nothing."""
    left = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d) and not type(module).__module__.startswith("fastconv")
    ]
    if left:
        raise RuntimeError(f"layers were not converted: {left}")


def which_ran(model: nn.Module, x: Tensor) -> dict[str, str]:
    """Per convolution the algorithms of fprop, dgrad and wgrad on a batch like x, e.g.
    {'stem': 'direct / direct / im2col'}; one name where the three agree."""
    found: dict[str, str] = {}
    hooks = []

    def note(name: str) -> Callable:
        def hook(module: nn.Conv2d, inputs: tuple[Tensor, ...], _: Tensor) -> None:
            algo = getattr(module, "algo", None)
            if algo is None:
                found[name] = "pytorch"
                return
            # Gradients fall back to auto where a forced algorithm does not apply to them.
            asked = {"fprop": algo, "dgrad": inherited(algo), "wgrad": inherited(algo)}
            names = [
                select.resolve(_spec(module, inputs[0], direction), wanted)
                for direction, wanted in asked.items()
            ]
            found[name] = names[0] if len(set(names)) == 1 else " / ".join(names)

        return hook

    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            hooks.append(module.register_forward_hook(note(name)))
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return found


def _spec(module: nn.Conv2d, x: Tensor, direction: str) -> ConvSpec:
    return ConvSpec(
        direction=direction,
        device=x.device.type,
        dtype=x.dtype,
        input_size=tuple(x.shape),
        weight_size=tuple(module.weight.shape),
        stride=tuple(module.stride),
        padding=tuple(module.padding),
        dilation=tuple(module.dilation),
        groups=module.groups,
        channels_last=False,
    )


def train(
    name: str,
    model: nn.Module,
    digits: Digits,
    epochs: int,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> Run:
    """Stochastic gradient descent with momentum; the batch order depends on the seed alone."""
    run = Run(name, algorithms=which_ran(model, digits.train_x[:BATCH]))
    order = torch.Generator().manual_seed(SEED)
    batches_per_epoch = -(-len(digits.train_y) // BATCH)
    # Plain momentum rather than Adam: Adam divides by the gradient's size, so where a gradient is
    # nearly 0 the last bit decides the sign of a full step, and no two algorithms would agree.
    optimiser = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs * batches_per_epoch)
    start = time.perf_counter()
    model.train()
    for _ in range(epochs):
        for chosen in torch.randperm(len(digits.train_y), generator=order).split(BATCH):
            chosen = chosen.to(digits.train_y.device)
            optimiser.zero_grad()
            logits = model(digits.train_x[chosen])
            loss = nn.functional.cross_entropy(logits, digits.train_y[chosen])
            loss.backward()
            optimiser.step()
            schedule.step()
            run.losses.append(loss.item())
            on_step(len(run.losses), run.losses[-1])
    run.seconds = time.perf_counter() - start
    model.eval()
    with torch.no_grad():
        right = model(digits.test_x).argmax(1) == digits.test_y
    run.accuracy = right.double().mean().item()
    return run


def steps(digits: Digits, epochs: int) -> int:
    """Optimiser steps of a training."""
    return epochs * -(-len(digits.train_y) // BATCH)


def largest_loss_gap(run: Run, rival: Run) -> float:
    """Largest relative difference of the losses of the first steps; inf if one is not a number."""
    pairs = list(zip(run.losses, rival.losses, strict=True))[:FIRST_STEPS]
    gaps = [abs(a - b) / abs(a) if a == a and b == b else float("inf") for a, b in pairs]
    return max(gaps)


def verify(baseline: Run, runs: list[Run]) -> list[tuple[bool, str]]:
    """What the demo promises, each with whether it holds."""
    checks = []
    for run in (baseline, *runs):
        checks.append(
            (
                run.accuracy >= MIN_ACCURACY,
                f"{run.name}: test accuracy {run.accuracy:.2%} (at least {MIN_ACCURACY:.0%})",
            )
        )
    for run in runs:
        gap = largest_loss_gap(baseline, run)
        checks.append(
            (
                gap <= LOSS_TOLERANCE,
                f"{run.name}: losses of the first {FIRST_STEPS} steps differ from "
                f"{baseline.name}'s by {gap:.1e} at most (limit {LOSS_TOLERANCE:.0e})",
            )
        )
        gap = abs(run.accuracy - baseline.accuracy)
        checks.append(
            (
                gap <= MAX_ACCURACY_GAP,
                f"{run.name}: accuracy within {gap * 100:.2f} points of {baseline.name}'s "
                f"(limit {MAX_ACCURACY_GAP * 100:.0f})",
            )
        )
    return checks
