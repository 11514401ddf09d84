"""The CUDA passes of batch normalisation with activation, run on the CPU by emulation, against
fp64: forward and backward by autograd of the composed operations."""

from __future__ import annotations

import itertools

import pytest
import torch
from emulated import ACTIVATIONS, Epilogue
from emulated_norm import NormProblem, run_norm
from test_emulated_epilogue import RESIDUALS, activated, untouched
from torch import Tensor

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
EPS = {torch.float32: 2e-6, torch.float64: 1e-13, torch.bfloat16: 1e-2, torch.float16: 2e-3}
# (n, k, size): below, at and around a vector; a plane that begins off alignment; one channel; one
# value per channel and image; more channels than a block has; planes of more than one chunk.
SHAPES = (
    (2, 3, 1), (3, 8, 2), (2, 16, 7), (5, 5, 8), (2, 24, 9), (3, 7, 49), (1, 1, 40), (2, 1, 5),
    (4, 64, 1), (1, 300, 3), (2, 2, 1030),
)  # fmt: skip
LARGE = ((1, 2, 8200), (3, 40, 200))
MANY_PARTS = (40, 1, 1030)  # a block to an image: more than the warp that merges them has lanes


def values(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def operands_of(p: NormProblem, residual: bool, affine: bool = True) -> dict[str, Tensor]:
    shape = (p.n, p.k, p.size)
    made = {
        "y": (2 * values(shape, torch.float64, 1) + 0.5).to(p.dtype),
        "dz": values(shape, p.dtype, 2),
        "mean": 0.5 + 0.2 * values((p.k,), p.statistics, 4),
        "rstd": 0.5 + 0.1 * values((p.k,), p.statistics, 5).abs(),
    }
    if residual:
        made["residual"] = values(shape, p.dtype, 3)
    if affine:
        made["weight"] = 1 + 0.5 * values((p.k,), p.statistics, 6)
        made["bias"] = values((p.k,), p.statistics, 7)
    return made


def composed(o: dict[str, Tensor], e: Epilogue) -> tuple[Tensor, Tensor]:
    """(argument of the activation, z), of fp64 operands."""
    column = {name: o[name].view(1, -1, 1) for name in ("mean", "rstd", "weight", "bias")
              if name in o}  # fmt: skip
    pre = (o["y"] - column["mean"]) * column["rstd"] if "mean" in column else o["y"]
    if "weight" in column:
        pre = pre * column["weight"] + column["bias"]
    if e.residual == "before":
        pre = pre + o["residual"]
    z = activated(pre, e)
    return pre, z + o["residual"] if e.residual == "after" else z


def assert_near(result: Tensor, expected: Tensor, eps: float, note: str, scale: float = 1) -> None:
    bound = eps * (scale + expected.abs())
    error = (result.double() - expected).abs()
    assert (error <= bound).all(), f"{note}: off by {error.max():.3g} of {bound.max():.3g}"


def problems(dtype: torch.dtype) -> list[NormProblem]:
    return [NormProblem(*shape, last, dtype) for shape in SHAPES for last in (False, True)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_fprop(dtype: torch.dtype) -> None:
    """Every shape in both layouts, each with another activation, residual, destination and order
    of the threads."""
    ways = itertools.cycle(
        itertools.product(("dense", "slice", "odd_slice", "in_place"), RESIDUALS)
    )
    for number, p in enumerate(problems(dtype)):
        where, residual = next(ways)
        around = {"slice": (8, 8), "odd_slice": (1, 2)}.get(where, (0, 0))
        channels = p.k + sum(around) if where.endswith("slice") else 0
        e = Epilogue(ACTIVATIONS[number % 5], 0.25, residual, channels, around[0])
        o = operands_of(p, bool(residual), affine=number % 3 > 0)
        o.pop("dz")
        if number % 4 == 3:  # the epilogue alone
            o = {name: t for name, t in o.items() if name in ("y", "residual")}
        seed = 1 + number % 3
        placement = "offset" if number % 5 == 4 else None
        z = run_norm("fprop", p, o, e, seed, in_place=where == "in_place", placement=placement)["z"]
        note = f"{p} {e} {where} {seed=}"
        if channels:
            for rest in (z[:, : e.first], z[:, e.first + p.k :]):
                assert untouched(rest), f"{note}: wrote beside its slice"
            z = z[:, e.first : e.first + p.k]
        expected = composed({name: t.double() for name, t in o.items()}, e)[1]
        assert_near(z, expected, EPS[dtype], note, scale=4)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_statistics(dtype: torch.dtype) -> None:
    shapes = [*problems(dtype)]
    shapes += [NormProblem(*shape, last, dtype) for shape in LARGE for last in (False, True)]
    shapes.append(NormProblem(*MANY_PARTS, False, dtype))
    for number, p in enumerate(shapes):
        y = operands_of(p, False)["y"]
        launches: list = []
        placement = "offset" if number % 4 == 3 else None
        found = run_norm("stats", p, {"y": y}, None, 1 + number % 3, placement=placement,
                         launches=launches)  # fmt: skip
        assert len(launches) == 2
        exact = y.double().transpose(0, 1).flatten(1)
        mean = exact.mean(1)
        eps = EPS[p.statistics]
        assert_near(found["out_mean"], mean, eps, f"mean {p}")
        m2 = (exact - mean[:, None]).square().sum(1)
        assert_near(found["out_m2"], m2, 10 * eps, f"m2 {p}", scale=4 * exact.shape[1])


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shape", [(4, 3, 700), (64, 8, 9)])
def test_statistics_far_from_zero(shape: tuple[int, int, int], channels_last: bool) -> None:
    """Mean 1e4 and deviation 1, and one value far off: a sum of squares less the square of a sum
    would have no digit left in fp32."""
    p = NormProblem(*shape, channels_last, torch.float32)
    for first in (None, 0.0):
        y = (values(shape, torch.float64, 1) + 1e4).float()
        if first is not None:
            y[0, :, 0] = first
        found = run_norm("stats", p, {"y": y})
        exact = y.double().transpose(0, 1).flatten(1)
        mean = exact.mean(1)
        m2 = (exact - mean[:, None]).square().sum(1)
        assert ((found["out_mean"].double() - mean).abs() < 2e-3).all()
        assert ((found["out_m2"].double() / m2 - 1).abs() < 1e-3).all(), (
            found["out_m2"].double() / m2
        )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_backward(dtype: torch.dtype) -> None:
    """Sums and dy as autograd's through the statistics, where they are y's own; and without sums as
    through constants."""
    for number, p in enumerate([*problems(dtype), NormProblem(*MANY_PARTS, False, dtype)]):
        training = number % 3 > 0 and p.n * p.size > 1
        e = Epilogue(ACTIVATIONS[number % 5], 0.25, RESIDUALS[(number // 2) % 3])
        o = operands_of(p, bool(e.residual), affine=number % 4 > 0)
        exact = {name: t.double() for name, t in o.items()}
        count = p.n * p.size
        if training:
            flat = exact["y"].transpose(0, 1).flatten(1)
            o["mean"] = flat.mean(1).to(p.statistics)
            o["rstd"] = (flat.var(1, correction=0) + 0.1).rsqrt().to(p.statistics)
            exact["mean"], exact["rstd"] = o["mean"].double(), o["rstd"].double()
        pre, _ = composed(exact, e)
        at = pre.clone().requires_grad_()
        (g,) = torch.autograd.grad(activated(at, e).sum(), at)
        g = g * exact["dz"]
        centred = exact["y"] - exact["mean"].view(1, -1, 1)
        sum_g, sum_gy = g.sum((0, 2)), (g * centred).sum((0, 2))
        note, seed = f"{p} {e} {training=}", 1 + number % 3
        placement = "offset" if number % 5 == 4 else None

        found = run_norm("sums", p, o, e, seed, placement=placement)
        eps = EPS[p.statistics] * 20
        assert_near(found["out_sum_g"], sum_g, eps, f"sum_g {note}", scale=count)
        assert_near(found["out_sum_gy"], sum_gy, eps, f"sum_gy {note}", scale=4 * count)

        dy = g
        if training:
            o["sum_g"], o["sum_gy"] = sum_g.to(p.statistics), sum_gy.to(p.statistics)
            column = (1, -1, 1)
            dy = (
                g
                - (sum_g / count).view(column)
                - centred * (exact["rstd"].square() * sum_gy / count).view(column)
            )
        scale = exact["rstd"] * exact.get("weight", torch.ones(p.k, dtype=torch.float64))
        dy = dy * scale.view(1, -1, 1)
        results = ("dy", "dresidual") if e.residual else ("dy",)
        found = run_norm("dgrad", p, o, e, seed, results=results, placement=placement)
        assert_near(found["dy"], dy, EPS[dtype], f"dy {note}", scale=4)
        if e.residual:
            expected = exact["dz"] if e.residual == "after" else g
            assert_near(found["dresidual"], expected, EPS[dtype], f"dresidual {note}", scale=4)


@pytest.mark.parametrize("channels_last", [False, True])
def test_gradients_are_those_of_batch_norm(channels_last: bool) -> None:
    """The formulas, against autograd through torch's own batch_norm in float64."""
    p = NormProblem(4, 6, 10, channels_last, torch.float64)
    o = operands_of(p, False)
    y, weight, bias = (o[name].clone().requires_grad_() for name in ("y", "weight", "bias"))
    z = torch.relu(torch.nn.functional.batch_norm(y, None, None, weight, bias, True, eps=1e-5))
    dy, dweight, dbias = torch.autograd.grad(z, (y, weight, bias), o["dz"])
    stats = run_norm("stats", p, {"y": o["y"]})
    o["mean"] = stats["out_mean"]
    o["rstd"] = (stats["out_m2"] / 40 + 1e-5).rsqrt()
    e = Epilogue("relu")
    assert_near(
        run_norm("fprop", p, {k: v for k, v in o.items() if k != "dz"}, e)["z"], z, 1e-12, "z"
    )
    sums = run_norm("sums", p, o, e)
    o["sum_g"], o["sum_gy"] = sums["out_sum_g"], sums["out_sum_gy"]
    assert_near(run_norm("dgrad", p, o, e, results=("dy",))["dy"], dy, 1e-12, "dy")
    assert_near(o["sum_g"], dbias, 1e-12, "dbias", scale=40)
    assert_near(o["sum_gy"] * o["rstd"], dweight, 1e-12, "dweight", scale=40)


def test_same_bits_in_any_order() -> None:
    """Whatever order blocks and threads run in."""
    for last in (False, True):
        p = NormProblem(3, 10, 130, last, torch.float32)
        o = operands_of(p, False)
        for pass_, names in (("stats", ("y",)), ("sums", ("y", "dz", "mean", "rstd"))):
            given = {name: o[name] for name in names}
            runs = [run_norm(pass_, p, given, None, seed, placement="start") for seed in (1, 2, 3)]
            for other in runs[1:]:
                assert all(torch.equal(runs[0][name], other[name]) for name in runs[0])
