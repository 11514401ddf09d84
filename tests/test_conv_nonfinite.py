"""Infinities and NaNs come out where, and only where, the definition puts them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from cases import CONV_CASES, DIRECTIONS, ConvCase
from conv_runner import (
    ALGORITHMS,
    integer_operands,
    reference_conv,
    refusal,
    run_conv,
)
from torch import Tensor

from fastconv import reference

TRANSFORMED = tuple(algo for algo in ALGORITHMS if algo.startswith("winograd"))
PLAIN = tuple(algo for algo in ALGORITHMS if algo not in TRANSFORMED)
CASES = tuple(c for c in CONV_CASES if "empty" not in c.tags)

# The operand that is read through the padding, and the one that padding would be multiplied with.
PADDED = {"fprop": 0, "dgrad": 0, "wgrad": 1}


def spoiled(t: Tensor, seed: int) -> Tensor:
    """One element each of inf, -inf and NaN (fewer in tiny tensors), the first and last element
    among them: those meet the padding."""
    t = t.clone()
    flat = t.view(-1)
    generator = torch.Generator().manual_seed(seed)
    middle = int(torch.randint(flat.numel(), (), generator=generator))
    for index, value in ((0, torch.inf), (middle, torch.nan), (flat.numel() - 1, -torch.inf)):
        flat[index] = value
    return t


def assert_same_nonfinite(y: Tensor, expected: Tensor, allowed: Tensor | None = None) -> None:
    """Equal everywhere, NaN to NaN; where `allowed` is NaN, a NaN is as good."""
    want = expected.to(y.dtype)
    same = (y == want) | (y.isnan() & want.isnan())
    if allowed is not None:
        same |= y.isnan() & allowed.isnan()
    wrong = (~same).nonzero()
    assert not len(wrong), (
        f"{len(wrong)} of {y.numel()} elements differ, first at {wrong[0].tolist()}: got"
        f" {y[tuple(wrong[0])].item()}, expected {want[tuple(wrong[0])].item()}"
    )


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
@pytest.mark.parametrize("algo", PLAIN)
def test_nonfinite_in_the_padded_operand(algo: str, case: ConvCase, direction: str) -> None:
    operands = [t.float() for t in integer_operands(case, direction)[:2]]
    operands[PADDED[direction]] = spoiled(operands[PADDED[direction]], 1)
    expected, _ = reference_conv(case, direction, tuple(operands))
    assert_same_nonfinite(run_conv(algo, case, direction, tuple(operands)), expected)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
@pytest.mark.parametrize("algo", PLAIN)
def test_nonfinite_in_the_other_operand(algo: str, case: ConvCase, direction: str) -> None:
    """A kernel may multiply the zeros of the padding, as PyTorch's own do, and 0 * inf makes a NaN
    there; away from the padding there is no such freedom."""
    other = 1 - PADDED[direction]
    operands = [t.float() for t in integer_operands(case, direction)[:2]]
    operands[other] = spoiled(operands[other], 2)
    expected, _ = reference_conv(case, direction, tuple(operands))
    allowed = padding_multiplied(case, direction, operands)
    assert_same_nonfinite(run_conv(algo, case, direction, tuple(operands)), expected, allowed)


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
@pytest.mark.parametrize("algo", TRANSFORMED)
def test_transforms_hide_nothing(algo: str, case: ConvCase, direction: str, which: int) -> None:
    """A tile that meets an infinity may turn it into NaN and spread it, never into a number; other
    images and groups stay as they are."""
    if refusal(algo, case, direction, torch.float32):
        return
    operands = [t.float() for t in integer_operands(case, direction)[:2]]
    operands[which].view(-1)[0] = torch.inf
    expected, _ = reference_conv(case, direction, tuple(operands))
    y = run_conv(algo, case, direction, tuple(operands))
    assert not (y.isfinite() & ~expected.isfinite()).any()
    if direction != "wgrad" and which == 0:
        assert y[1:].isfinite().all(), "an infinity in the first image reached another"
    if direction != "wgrad" and case.groups > 1:
        first_group = y.shape[1] // case.groups
        assert y[:, first_group:].isfinite().all(), "an infinity reached another group"


def padding_multiplied(case: ConvCase, direction: str, operands: list[Tensor]) -> Tensor:
    """NaN in every element that could sum a product of padding and a non-finite number: what the
    definition gives on an operand that is really padded, with zeros."""
    stride, padding, dilation, groups = case.params
    if direction == "dgrad":  # padded to every tap's reach, and with stride - 1 zeros between
        bad = ~operands[1].unflatten(0, (groups, -1)).isfinite()  # [G, K/G, C/G, kernel]
        bad = bad.transpose(1, 2).flatten(2).any(2).flatten()  # [C]
        spoiled_channels = torch.where(bad, torch.nan, 0.0).view(1, -1, *(1,) * case.rank)
        return spoiled_channels.expand(case.input_size)
    # (before, after) of the last axis first, as F.pad wants them
    around = [p for p in reversed(padding) for _ in range(2)]
    unpadded = stride, [0] * case.rank, dilation, groups
    if direction == "fprop":
        return reference.conv_fprop(F.pad(operands[0], around), operands[1], None, *unpadded)
    x = F.pad(operands[1], around)
    return reference.conv_wgrad(operands[0], x, case.weight_size, *unpadded)
