"""Convolution in Triton, interpreted: precisions, endings, statistics, variants of a launch, odd
memory and what is refused; tests/test_triton_conv.py has the problems."""

from __future__ import annotations

import itertools
import sys
from math import gcd
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

import interpreted_triton
from cases import CONV_CASES, EXPANSIONS, LAYOUTS, ConvCase, channels_last, conv_case
from fused_reference import ACTIVATIONS, NUMBER, SLOPE, STEEPEST, check_statistics, epilogue
from integer_conv import aten_backward, integers
from test_triton_conv import config
from tolerances import PER_PRODUCT, UNIT_ROUNDOFF

from fastconv import reference
from fastconv._triton import conv_geometry, conv_layout, conv_reads, launching
from fastconv.testing import assert_conv_close

CASES = {case.id: case for case in CONV_CASES}
UNIT = UNIT_ROUNDOFF[torch.float32]
NARROW = conv_case("narrow", (1, 4, 3, 2, 4), (6, 2, 2, 1, 3), 2, (1, 0, 1), (1, 1, 2), 2)
PLAIN = ([1, 1], [1, 1], [1, 1], 1)


@pytest.fixture(scope="module")
def conv() -> Any:
    return interpreted_triton.load("conv")


def part(name: str) -> Any:
    """A module of the interpreted copy."""
    return sys.modules[f"{interpreted_triton.NAME}.{name}"]


def run(function: Any, *args: Any, **named: Any) -> Any:
    return interpreted_triton.quietly(lambda: function(*args, **named))


def random(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def directions(conv: Any, x: Tensor, w: Tensor, dy: Tensor, params: Any, **named: Any) -> Any:
    """The three directions' results, with a split of 2 in wgrad."""
    c = named.pop("config")
    last = x.stride(1) == 1
    dw_config = c._replace(split=2, persistent=False)
    yield run(conv.conv_fprop, x, w, None, *params, config=c, **named)
    named["channels_last"] = last
    yield run(conv.conv_dgrad, dy, w, x.shape, *params, config=c, **named)
    yield run(conv.conv_wgrad, dy, x, w.shape, *params, config=dw_config, **named)


def references(x: Tensor, w: Tensor, dy: Tensor, params: Any, **named: bool) -> Any:
    yield reference.conv_fprop(x, w, None, *params, **named)
    yield reference.conv_dgrad(dy, w, x.shape, *params, **named)
    yield reference.conv_wgrad(dy, x, w.shape, *params, **named)


# Precisions.


def test_tf32_rounds_to_nearest_and_three_of_them_make_up_for_it(conv: Any) -> None:
    x, w, dy = random(2, 12, 6, 5), random(9, 12, 3, 3, seed=1), random(2, 9, 6, 5, seed=2)
    given = (conv, x, w, dy, PLAIN)
    results = zip(
        references(x, w, dy, PLAIN),
        references(x, w, dy, PLAIN, magnitude=True),
        *(directions(*given, config=config(conv), precision=p) for p in ("ieee", "tf32", "tf32x3")),
        strict=True,
    )
    for expected, magnitude, ieee, tf32, three in results:
        off = [(y - expected).abs() for y in (ieee, tf32, three)]
        assert (off[1] <= PER_PRODUCT["tf32"] * magnitude + 8 * UNIT * magnitude).all()
        # Cut off, operands would be smaller than they are: sums of products of one sign show it.
        assert off[1].max() > 50 * off[0].max()
        assert off[2].max() <= 2 * off[0].max() and off[2].sum() <= 2 * off[0].sum()


def test_tf32_of_operands_of_one_sign_is_not_biased(conv: Any) -> None:
    x, w = 1 + random(1, 64, 4, 4).abs(), 1 + random(16, 64, 1, 1).abs()
    params = ([1, 1], [0, 0], [1, 1], 1)
    y = run(conv.conv_fprop, x, w, None, *params, config=config(conv), precision="tf32")
    relative = (y - reference.conv_fprop(x, w, None, *params)) / y
    assert abs(relative.mean()) < 2.0**-15  # cut off: -2^-11


@pytest.mark.parametrize("precision", ["tf32", "tf32x3"])
def test_infinities_and_nans_pass_through_tf32(conv: Any, precision: str) -> None:
    x, w = 1.3 + random(1, 4, 2, 7).abs(), 1.3 + random(3, 4, 1, 1).abs()
    x[0, 0, 0, 0], x[0, 1, 0, 1], x[0, 2, 0, 2] = torch.inf, -torch.inf, torch.nan
    x[0, 0, 0, 3] = torch.tensor(0x7FFFFFFF, dtype=torch.int32).view(torch.float32)
    x[0, 0, 0, 4], x[0, 1, 0, 4] = torch.inf, -torch.inf
    x[0, 0, 0, 5] = 0
    params = ([1, 1], [0, 0], [1, 1], 1)
    y = run(conv.conv_fprop, x, w, None, *params, config=config(conv), precision=precision)
    for column, value in enumerate((torch.inf, -torch.inf, torch.nan, torch.nan, torch.nan)):
        wanted = torch.full((3,), value)
        assert torch.equal(y[0, :, 0, column].nan_to_num(7), wanted.nan_to_num(7))
    assert y[0, :, :, 5:].isfinite().all() and y[0, :, 1].isfinite().all()


# Endings.


@pytest.mark.parametrize(
    ("activation", "where", "number"),
    [
        (a, w, i)
        for i, (a, w) in enumerate(itertools.product(ACTIVATIONS, ("none", "before", "after")))
    ],
)
def test_epilogue(conv: Any, activation: str, where: str, number: int) -> None:
    """Bias, scale and shift in turn; into every third channel slice of a larger tensor."""
    last = number % 2 == 0
    x, w = 2 * random(1, 3, 4, 5), random(6, 3, 2, 2, seed=1)
    x = channels_last(x) if last else x
    params = ([1, 1], [0, 0], [1, 1], 1)
    bias = random(6, seed=2) if number % 4 != 3 else None
    scale, shift = (random(6, seed=3), random(6, seed=4)) if number % 3 != 1 else (None, None)
    residual = None if where == "none" else random(1, 6, 3, 4, seed=5)
    if residual is not None and number % 4 > 1:
        residual = channels_last(residual)
    whole = torch.full((1, 11, 3, 4), torch.nan)
    whole = channels_last(whole) if last else whole
    out = whole[:, 2:8] if number % 3 == 0 else None
    end = (NUMBER[activation], SLOPE, residual, where == "after", scale, shift)
    y = run(conv.conv_fprop, x, w, bias, *params, config=config(conv), epilogue=end, out=out)

    def ended(magnitude: bool) -> Tensor:
        pre = reference.conv_fprop(x, w, bias, *params, magnitude=magnitude)
        if scale is not None and shift is not None:
            by, to = ((v.abs() if magnitude else v).double() for v in (scale, shift))
            pre = pre * by[:, None, None] + to[:, None, None]
        if magnitude:
            return pre + (0 if residual is None else residual.double().abs())
        return epilogue(pre, None if residual is None else residual.double(), activation, where)

    assert_conv_close(y, ended(False), 16 * STEEPEST * UNIT * ended(True))
    if out is not None:
        assert y is out and whole[:, :2].isnan().all() and whole[:, 8:].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_statistics(conv: Any, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    """Of what is stored, far from zero, merged over three levels."""
    monkeypatch.setattr(conv, "_MERGED_PARTS", 4)
    x = channels_last(random(2, 3, 7, 11)).to(dtype)
    w, bias = random(9, 3, 1, 1).to(dtype), 300 + random(9, seed=1)
    params = ([1, 1], [0, 0], [1, 1], 1)
    for layout in (channels_last, torch.Tensor.contiguous):
        given = (layout(x), w, bias.to(dtype), *params)
        y, mean, m2 = run(conv.conv_stats, *given, config=config(conv))
        assert torch.equal(y, run(conv.conv_fprop, *given, config=config(conv)))
        check_statistics(y, (mean, m2), str(dtype))


def test_statistics_of_groups_and_of_one_tile(conv: Any) -> None:
    x, w = random(1, 4, 3, 4), random(6, 2, 3, 3)
    given = (x, w, None, [1, 1], [1, 1], [1, 1], 2)
    y, mean, m2 = run(conv.conv_stats, *given, config=config(conv))
    check_statistics(y, (mean, m2), "groups")
    assert mean.shape == (6,)


# Variants.


def launches(conv: Any, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, dict[str, Any]]]:
    """(grid, constants) of every launch from here on."""
    seen: list[tuple[int, dict[str, Any]]] = []
    launch = conv.launch

    def spied(step: Any, tensors: Any) -> None:
        seen.append((step.grid, step.constants))
        launch(step, tensors)

    monkeypatch.setattr(conv, "launch", spied)
    return seen


def same(first: Any, second: Any) -> bool:
    """Bit for bit: neither memory nor the order of tiles changes the order of a sum."""
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


VARIANTS = [
    ("3x3", (1, 16, 6, 5), (32, 16, 3, 2), ([2, 1], [1, 1], [1, 1], 1)),
    ("matrix", (2, 40, 3, 4), (24, 40, 1, 1), ([1, 1], [0, 0], [1, 1], 1)),
    ("groups", (1, 32, 3, 6), (32, 16, 1, 1), ([1, 1], [0, 0], [1, 1], 2)),
]


@pytest.mark.parametrize(("name", "size", "weight", "params"), VARIANTS, ids=lambda v: str(v)[:6])
def test_variants_give_the_same_bits(
    conv: Any, monkeypatch: pytest.MonkeyPatch, name: str, size: Any, weight: Any, params: Any
) -> None:
    x, w = channels_last(random(*size)), channels_last(random(*weight, seed=1))
    dy = channels_last(random(*reference.conv_fprop(x, w, None, *params).shape, seed=2))
    given = (conv, x, w, dy, params)
    plain = list(directions(*given, config=config(conv)))
    for got, expected in zip(plain, references(x, w, dy, params), strict=True):
        assert_conv_close(got, expected, 1e-5 * expected.abs().max().item())
    seen = launches(conv, monkeypatch)
    by_group = config(conv, group_m=1 if name == "3x3" else 8)
    assert same(plain, directions(*given, config=by_group))
    seen.clear()
    box = config(conv, descriptor=True, persistent=True)
    assert same(plain, directions(*given, config=box))
    level = 1 if name == "3x3" else 2
    assert [c["DESCRIPTORS"] for _, c in seen if "DESCRIPTORS" in c] == [level] * 3
    grids = [grid for grid, c in seen if c.get("PERSISTENT")]
    assert len(grids) == 2 and max(grids) == 3  # more tiles than programs
    # Memory that no descriptor takes: pointers again.
    seen.clear()
    store = torch.zeros(x.numel() + 1)
    crooked = store[1:].as_strided(x.shape, x.stride()).copy_(x)
    assert same(plain, directions(conv, crooked, w, dy, params, config=box))
    assert [c["DESCRIPTORS"] for _, c in seen if "DESCRIPTORS" in c] == [1, level, 1]


def test_offsets_of_64_bits_give_the_same_bits(conv: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for case in (CASES["1d_stride_exceeds_kernel"], CASES["groups_pointwise"], NARROW):
        x, w, dy = random(*case.input_size), random(*case.weight_size), random(*case.output_size)
        given = (conv, x[:1], w, dy[:1], case.params)
        with monkeypatch.context() as patch:
            narrow = list(directions(*given, config=config(conv)))
            plans = part("conv_plan")
            patch.setattr(plans, "far", lambda *tensors: True)
            plans.forget()
            seen = launches(conv, patch)
            assert same(narrow, directions(*given, config=config(conv)))
            assert all(c["WIDE"] for _, c in seen if "WIDE" in c) and len(seen) >= 3
            plans.forget()


def test_which_offsets_need_64_bits(conv: Any) -> None:
    far, facts = part("conv_layout").far, part("launching").facts
    small, base = torch.zeros(3, 4), torch.zeros(1)
    assert not far(facts(small), facts(base.expand(2**20, 2**20)))
    assert far(facts(small), facts(torch.empty(2**16, 2**15, device="meta")))


# Memory.


@pytest.mark.parametrize("name", [n for n in LAYOUTS if n != "contiguous"] + list(EXPANSIONS))
def test_any_strides(conv: Any, name: str) -> None:
    """Around a slice lie NaNs: nothing else is read. A matrix product and a gathered one."""
    change = LAYOUTS.get(name) or EXPANSIONS[name]
    for params, taps in ((PLAIN, 3), (([1, 1], [0, 0], [1, 1], 1), 1)):
        x, w = change(random(2, 5, 2, 3)), change(random(6, 5, taps, taps, seed=1))
        dy = change(random(2, 6, 2, 3, seed=2))
        got = directions(conv, x, w, dy, params, config=config(conv))
        dense = (conv, x.contiguous(), w.contiguous(), dy.contiguous(), params)
        assert same(got, directions(*dense, config=config(conv)))


def integer_cases() -> list[ConvCase]:
    return [CASES[n] for n in ("groups3_stride2", "stride3_dilation2", "1d", "3d_flat")]


@pytest.mark.parametrize("case", integer_cases(), ids=lambda c: c.id)
def test_whole_numbers_are_exact(conv: Any, case: ConvCase) -> None:
    """With tiles of three different sizes, and no tolerance."""
    x, w = integers(*case.input_size), integers(*case.weight_size, seed=1)
    dy = integers(*case.output_size, seed=2)
    tiles = config(conv, block_m=64, block_n=16, block_k=32)
    y, dx, dw = directions(conv, x, w, dy, case.params, config=tiles, precision="tf32")
    stride, padding, dilation, groups = case.params
    assert torch.equal(y.double(), reference.conv_fprop(x, w, None, *case.params))
    expected_dx, expected_dw = aten_backward(dy, x, w, stride, padding, dilation, groups)
    assert torch.equal(dx.double(), expected_dx) and torch.equal(dw.double(), expected_dw)


COPIED = [
    # name, x, w, parameters, whether in NHWC, copies of each direction
    ("3x3", (2, 8, 5, 4), (6, 8, 3, 3), PLAIN, False, (1, 0, 1)),
    ("first_layer", (2, 3, 9, 8), (8, 3, 5, 5), ([2, 2], [2, 2], [1, 1], 1), False, (1, 1, 0)),
    ("first_layer", (2, 3, 9, 8), (8, 3, 5, 5), ([2, 2], [2, 2], [1, 1], 1), True, (1, 0, 0)),
    ("groups", (1, 16, 6, 4), (8, 8, 3, 3), ([1, 1], [1, 1], [1, 1], 2), False, (1, 1, 1)),
    ("1d_filled_up", (2, 7, 19), (5, 7, 5), ([1], [2], [1], 1), False, (1, 0, 0)),
    ("pointwise", (2, 8, 4, 4), (16, 8, 1, 1), ([1, 1], [0, 0], [1, 1], 1), False, (0, 0, 0)),
]


@pytest.mark.parametrize("given", COPIED, ids=lambda g: f"{g[0]}-{'nhwc' if g[4] else 'nchw'}")
def test_operands_without_vectors_are_copied_first(
    conv: Any, monkeypatch: pytest.MonkeyPatch, given: Any
) -> None:
    """Whole numbers, no tolerance: neither a copy nor channels of zeros behind it change a sum. In
    tiles of the copy's own that end within the tensor. Behind x's channels lie NaNs."""
    _, size, weight, params, last, copies = given
    reads = part("conv_reads")
    monkeypatch.setattr(reads, "_BLOCK", 256)
    part("conv_plan").forget()
    x, w = (integers(*s, seed=i).half() for i, s in enumerate((size, weight)))
    y = reference.conv_fprop(x, w, None, *params)
    dy = integers(*y.shape, seed=2).half()
    whole = torch.full((size[0], size[1] + 1, *size[2:]), torch.nan, dtype=x.dtype)
    if last:
        whole, dy = channels_last(whole), channels_last(dy)
    whole[:, :-1] = x
    x = whole[:, :-1]
    seen: list[str] = []
    launch = conv.launch
    monkeypatch.setattr(conv, "launch", lambda s, t: (seen.append(s.kernel), launch(s, t)))
    counts = []
    for found, expected in zip(
        directions(conv, x, w, dy, params, config=config(conv)),
        references(x, w, dy, params),
        strict=True,
    ):
        assert torch.equal(found.double(), expected)
        counts.append(seen.count("conv_repack_kernel"))
        seen.clear()
    assert tuple(counts) == copies
    part("conv_plan").forget()


def test_what_is_read_in_which_vectors() -> None:
    """And what is not copied: what is gathered too seldom, has no vectors, or would triple."""
    tiles = conv_geometry.Config(128, 128, 64, 4, 3, 8)

    def read(size: Any, weight: Any, moves: Any = PLAIN, dtype: Any = torch.bfloat16, last=False):
        g = conv_geometry.make_geometry("test", size, weight, *moves)
        t = torch.empty(size, dtype=dtype, device="meta")
        t = channels_last(t) if last else t
        found = conv_reads.fprop_read(g, launching.facts(t), tiles)
        return None if found.copy is None else found.copy.shape[1], found.vector

    pointwise, half = ([1, 1], [0, 0], [1, 1], 1), ([2, 2], [0, 0], [1, 1], 1)
    assert read((2, 64, 8, 8), (64, 64, 3, 3)) == (64, 8)
    assert read((2, 64, 8, 8), (64, 64, 3, 3), last=True) == (None, 8)
    assert read((2, 70, 8, 8), (64, 70, 3, 3), last=True) == (72, 8)
    assert read((2, 3, 8, 8), (64, 3, 7, 7), ([2, 2], [3, 3], [1, 1], 1)) == (4, 4)
    assert read((2, 3, 8, 8), (64, 3, 7, 7), dtype=torch.float32, last=True) == (4, 4)
    assert read((2, 1, 8, 8), (64, 1, 7, 7)) == (None, 1)
    assert read((2, 5, 8, 8), (64, 5, 3, 3)) == (None, 1)
    assert read((2, 64, 8, 8), (64, 64, 1, 1), pointwise) == (None, 8)
    assert read((2, 64, 7, 7), (64, 64, 1, 1), pointwise) == (None, 1)
    assert read((2, 64, 7, 7), (512, 64, 1, 1), pointwise) == (64, 8)
    assert read((2, 64, 8, 8), (256, 64, 1, 1), half) == (None, 1)
    assert [conv_reads.filled_up(n, 2) for n in (1, 3, 5, 6, 9, 12, 23, 24)] == [
        1, 4, 5, 8, 9, 16, 24, 24,
    ]  # fmt: skip


# Geometry.


def test_magic_divides() -> None:
    numbers = [0, 1, 2, 3, 6, 7, 255, 256, 2**20 - 1, 2**31 - 2**20, 2**31 - 2, 2**31 - 1]
    for divisor in (*range(1, 70), 127, 128, 129, 224, 12544, 65535, 2**30, 2**31 - 1):
        _, multiplier, shift = conv_geometry.magic(divisor)
        assert -(2**31) <= multiplier < 2**31
        for m in (*numbers, *(q * divisor + d for q in (1, 5, 99) for d in (-1, 0))):
            if 0 <= m < 2**31:
                high = m * (multiplier % 2**32) >> 32
                assert (m if shift < 0 else high >> shift) == m // divisor, (m, divisor)


@pytest.mark.parametrize(
    ("stride", "dilation"), [(s, d) for s in (1, 2, 3, 4, 6) for d in (1, 2, 3, 4)]
)
def test_classes_hold_every_tap_once(stride: int, dilation: int) -> None:
    g = conv_geometry.make_geometry("test", (1, 1, 40), (1, 1, 5), (stride,), (2,), (dilation,), 1)
    _, _, common, inverse, hop = g.axis_classes[2]
    assert common == gcd(stride, dilation) and hop * common == stride
    found = []
    for residue in range(stride):
        expected = [r for r in range(5) if r * dilation % stride == residue]
        first = residue // common * inverse % hop
        taps = list(range(first, 5, hop)) if residue % common == 0 else []
        assert taps == expected and len(taps) <= g.class_taps
        found += taps
    assert sorted(found) == list(range(5))


def test_runs_of_pixels_are_runs() -> None:
    """What the compiler is told and cannot check, counted out on every pixel of many layouts."""
    found = set()
    for dtype, size in itertools.product(
        (torch.float32, torch.float16), ((1, 3, 4, 4), (2, 16, 8, 2), (3, 8, 5, 4), (2, 8, 3, 3))
    ):
        base = torch.zeros(size, dtype=dtype)
        wide = torch.zeros(size[0], size[1] + 3, size[2], 2 * size[3], dtype=dtype)
        for t in (
            base, channels_last(base), base.transpose(2, 3), wide[:, :, :, : size[3]],
            wide[:, :, :, ::2], wide[:, 1:-2, :, : size[3]], base[:1], base[:, :1], base[:, :, :1],
            base.expand(*size).transpose(0, 1), base[:1].expand(*size), base[:, ::2],
            base.new_zeros(base.numel() + 3).as_strided(
                size, (base[0].numel() + 1, *base.stride()[1:])
            ),
        ):  # fmt: skip
            known = launching.facts(t)
            run = conv_layout.run_of(known, t.shape[0], (1, *t.shape[2:]))
            found.add(run)
            assert run * t.element_size() <= 16
            places = torch.zeros(t.shape, dtype=torch.int64)
            for axis, (n, s) in enumerate(zip(t.shape, t.stride(), strict=True)):
                places += (torch.arange(n) * s).view([-1 if a == axis else 1 for a in range(4)])
            # [channels, pixels of all images]
            places = places.transpose(0, 1).flatten(1)
            assert run == 1 or places.shape[1] % run == 0
            runs = places[:, : places.shape[1] // run * run].unflatten(1, (-1, run))
            assert run == 1 or (runs[..., 0] % run == 0).all()
            assert (runs - runs[..., :1] == torch.arange(run)).all()
    assert found == {1, 2, 4, 8}


def test_ranges_of_pixels_cover_all(conv: Any) -> None:
    for pixels, split, block in itertools.product((1, 15, 16, 17, 1000), (1, 2, 7, 64), (16, 64)):
        count, chunk = conv.pixel_ranges(pixels, config(conv, split=split, block_k=block))
        assert count <= split and chunk % block == 0
        assert (count - 1) * chunk < pixels <= count * chunk


# What is refused.


@pytest.mark.parametrize(
    ("direction", "changes", "different", "text"),
    [
        ("fprop", {"block_m": 48}, {}, "block_m=48 is not a power of two"),
        ("fprop", {"block_k": 8}, {}, "block_k=8"),
        ("dgrad", {"warps": 3}, {}, "warps=3"),
        ("dgrad", {"stages": 0}, {}, "stages=0"),
        ("fprop", {"split": 2}, {}, "split=2 is for wgrad, not for fprop"),
        ("wgrad", {"persistent": True}, {}, "no persistent variant"),
        ("fprop", {}, {"dtype": torch.float64}, "no float64"),
        ("fprop", {}, {"input_size": (2**27, 3, 9, 9)}, "pixels are over"),
        ("dgrad", {}, {"input_size": (2**26, 3, 9, 9)}, "pixels are over"),
        ("fprop", {}, {"stride": (70000, 1)}, "a stride of 70000"),
        ("fprop", {"descriptor": True}, {}, "rows of 3 elements of 4 bytes"),
        ("dgrad", {"descriptor": True}, {"channels": 4}, "hold several taps of 5 channels"),
    ],
    ids=str,
)
def test_refusals(conv: Any, direction: str, changes: Any, different: Any, text: str) -> None:
    c = different.pop("channels", 3)
    size = different.pop("input_size", (1, c, 9, 9))
    arguments = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 1}
    arguments |= {"dtype": torch.float32, **different}
    reason = conv.refusal(
        direction, size, (5, c, 3, 3), **arguments, config=config(conv, **changes)
    )
    assert reason is not None and text in reason
    arguments["dtype"] = torch.float32
    arguments["stride"] = (1, 1)
    assert (
        conv.refusal(direction, (1, c, 9, 9), (5, c, 3, 3), **arguments, config=config(conv))
        is None
    )


def test_launchers_refuse_what_does_not_fit(conv: Any) -> None:
    x, w = torch.zeros(1, 4, 5, 5), torch.zeros(6, 4, 3, 3)
    c = config(conv)
    calls = [
        ("float64", "conv_fprop", (x.double(), w.double(), None, *PLAIN), {}),
        ("w is torch.float16", "conv_fprop", (x, w.half(), None, *PLAIN), {}),
        ("precision 'bf16'", "conv_fprop", (x, w, None, *PLAIN), {"precision": "bf16"}),
        ("groups=3", "conv_fprop", (x, w, None, *PLAIN[:3], 3), {}),
        ("bias is", "conv_fprop", (x, w, torch.zeros(5), *PLAIN), {}),
        ("out is", "conv_fprop", (x, w, None, *PLAIN), {"out": torch.zeros(1, 5, 5, 5)}),
        ("residual is", "conv_fprop", (x, w, None, *PLAIN), {"epilogue": (0, 0.0, x)}),
        ("no elements", "conv_fprop", (x[:, :, :1, :1], w, None, [1, 1], [0, 0], [1, 1], 1), {}),
        ("one entry per", "conv_fprop", (x, w, None, [1], [1], [1], 1), {}),
        ("dy is", "conv_dgrad", (x, w, x.shape, *PLAIN), {}),
        ("dy is", "conv_wgrad", (x, x, w.shape, *PLAIN), {}),
    ]
    for text, name, args, named in calls:
        with pytest.raises(ValueError, match=text):
            getattr(conv, name)(*args, config=c, **named)


def test_empty_batches(conv: Any) -> None:
    x, w, dy = torch.zeros(0, 4, 5, 5), torch.ones(6, 4, 3, 3), torch.zeros(0, 6, 5, 5)
    y, dx, dw = directions(conv, x, w, dy, PLAIN, config=config(conv))
    assert y.shape == dy.shape and dx.shape == x.shape and not dw.any()
