"""Every CUDA instance of fprop with what may follow its bias: activation, residual, y a slice."""

from __future__ import annotations

import pytest
import torch
from cases import ConvCase
from conv_runner import assert_close, hash_of, random_operands, random_reference
from emulated import ACTIVATIONS, Epilogue, Instance, instances, run_instance
from test_emulated_conv import SEEDS, applicable_cases
from torch import Tensor
from torch.nn import functional

INSTANCES = tuple(i for i in instances() if i.direction == "fprop")
RESIDUALS = ("", "before", "after")
# (channels before the slice, channels behind it), None: y is dense.
SLICES = (None, (8, 16), (3, 2))
LARGEST = 200_000  # multiply-adds
RUNS = 6


def macs(case: ConvCase) -> int:
    return torch.Size(case.output_size).numel() * torch.Size(case.weight_size[1:]).numel()


def chosen_cases(instance: Instance) -> list[ConvCase]:
    """Small ones of several images and channels, which differ from instance to instance."""
    cases = applicable_cases(instance)
    telling = [c for c in cases if c.input_size[0] > 1 and c.weight_size[0] > 2]
    small = [c for c in telling if macs(c) <= LARGEST] or sorted(telling or cases, key=macs)[:2]
    return sorted(small, key=lambda c: hash_of(c.id + instance.name))[:2]


def untouched(t: Tensor) -> bool:
    """Nothing but the emulation's poison: NaN, in fp64 next to the largest number."""
    return bool((t.isnan() | (t.double() < -1.6e308)).all())


def activated(v: Tensor, epilogue: Epilogue) -> Tensor:
    if epilogue.activation == "leaky_relu":
        return functional.leaky_relu(v, epilogue.slope)
    return {
        "none": lambda t: t,
        "relu": functional.relu,
        "relu6": functional.relu6,
        "silu": functional.silu,
    }[epilogue.activation](v)


def followed(v: Tensor, epilogue: Epilogue, residual: Tensor | None) -> Tensor:
    """The epilogue of fp64 values."""
    if epilogue.residual == "before":
        return activated(v + residual.double(), epilogue)
    v = activated(v, epilogue)
    return v + residual.double() if epilogue.residual == "after" else v


def epilogues(instance: Instance, case: ConvCase) -> list[tuple[Epilogue, int]]:
    """RUNS of them with their seeds: every activation, residual, kind of slice and seed."""
    turn = hash_of(instance.name)
    made = []
    for i in range(RUNS):
        around = SLICES[(i + turn // 3) % 3 if i % 2 else 0]
        before, behind = around or (0, 0)
        channels = case.weight_size[0] + before + behind if around else 0
        epilogue = Epilogue(
            ACTIVATIONS[(i + turn) % len(ACTIVATIONS)],
            residual=RESIDUALS[i % 3],
            y_channels=channels,
            first=before,
        )
        made.append((epilogue, SEEDS[i // 2]))
    return made


@pytest.mark.parametrize("instance", INSTANCES, ids=str)
def test_instance(instance: Instance) -> None:
    cases = chosen_cases(instance)
    for number, (epilogue, seed) in enumerate(epilogues(instance, cases[0])):
        case = cases[number % len(cases)]
        if epilogue.y_channels:
            around = epilogue.y_channels - cases[0].weight_size[0]
            epilogue = Epilogue(
                epilogue.activation, epilogue.slope, epilogue.residual,
                case.weight_size[0] + around, epilogue.first,
            )  # fmt: skip
        run_and_compare(instance, case, epilogue, seed)


def run_and_compare(instance: Instance, case: ConvCase, epilogue: Epilogue, seed: int) -> None:
    x, w, bias = random_operands(case, "fprop", instance.dtype)
    sums, magnitude = random_reference(case, "fprop", instance.dtype)
    residual = None
    if epilogue.residual:
        generator = torch.Generator().manual_seed(hash_of(case.id))
        residual = torch.randn(case.output_size, generator=generator, dtype=torch.float64)
        residual = residual.to(instance.dtype)
        magnitude = magnitude + residual.double().abs()
    y = run_instance(
        instance.algorithm, instance.name, case, "fprop", (x, w), bias, seed,
        epilogue=epilogue, residual=residual,
    )  # fmt: skip
    note = f"{instance} {epilogue} {seed=}"
    if epilogue.y_channels:
        first, last = epilogue.first, epilogue.first + case.weight_size[0]
        for rest in (y[:, :first], y[:, last:]):
            assert untouched(rest), f"{note}: wrote beside its slice"
        y = y[:, first:last]
    expected = followed(sums, epilogue, residual)
    # No activation is steeper than 1.1.
    assert_close(y, expected, 1.1 * magnitude, instance.arithmetic, case, "fprop", note)


def test_sweep_has_everything() -> None:
    """Every instance meets each activation, residual, kind of slice and seed; every algorithm all
    residuals in all kinds of slices."""
    met = {}
    for instance in INSTANCES:
        made = epilogues(instance, chosen_cases(instance)[0])
        assert {e.activation for e, _ in made} == set(ACTIVATIONS), str(instance)
        assert {e.residual for e, _ in made} == set(RESIDUALS), str(instance)
        assert {e.first for e, _ in made} == {0, 8, 3}, str(instance)
        assert {seed for _, seed in made} == set(SEEDS), str(instance)
        met.setdefault(instance.algorithm, set()).update((e.first, e.residual) for e, _ in made)
    for algorithm, pairs in met.items():
        assert pairs == {(f, r) for f in (0, 8, 3) for r in RESIDUALS}, algorithm


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_residual_and_slice_off_their_alignment(layout: str) -> None:
    """Kernels of vectors take their other way where y or the residual do not allow them."""
    for instance in INSTANCES:
        if instance.layout != layout or instance.dtype != torch.bfloat16:
            continue
        case = chosen_cases(instance)[0]
        channels = case.weight_size[0]
        x, w, bias = random_operands(case, "fprop", instance.dtype)
        residual = torch.ones(case.output_size, dtype=instance.dtype)
        args = (instance.algorithm, instance.name, case, "fprop", (x, w), bias)
        plain = run_instance(*args, seed=1)
        for epilogue, placement in (
            (Epilogue("relu", residual="after"), "offset"),
            (Epilogue("relu", residual="after", residual_off=True), "start"),
            (Epilogue("relu", residual="after", y_channels=channels + 1, first=1), "start"),
        ):
            y = run_instance(
                *args, seed=1, placement=placement, epilogue=epilogue, residual=residual
            )
            y = y[:, epilogue.first : epilogue.first + channels]
            # The sums are the same, wherever the operands lie, up to their order.
            expected = plain.double().relu() + 1
            assert (y.double() - expected).abs().max() <= 0.05 * expected.abs().max(), str(instance)


def test_nonfinite_values() -> None:
    """NaN stays NaN under every activation; infinities go where PyTorch sends them."""
    seen = set()
    for instance in INSTANCES:
        if instance.algorithm in seen or instance.dtype != torch.float32:
            continue
        seen.add(instance.algorithm)
        case = chosen_cases(instance)[0]
        x, w, _ = random_operands(case, "fprop", instance.dtype)
        k = case.weight_size[0]
        bias = torch.tensor([torch.nan, torch.inf, -torch.inf])[torch.arange(k) % 3]
        for name in ACTIVATIONS:
            y = run_instance(
                instance.algorithm, instance.name, case, "fprop", (x, w), bias, 1,
                epilogue=Epilogue(name),
            )  # fmt: skip
            expected = activated(bias, Epilogue(name))
            wanted = expected.view(1, -1, *[1] * case.rank).expand_as(y)
            assert torch.equal(y.isnan(), wanted.isnan()), f"{instance} {name}"
            finite = ~wanted.isnan()
            assert torch.equal(y[finite], wanted[finite]), f"{instance} {name}"
