"""The benchmark's method: a wrong answer can never have a time, noise is measured again, and a
user's own provider takes part."""

from __future__ import annotations

import math
import time

import pytest
import torch
import torch.nn.functional as F

from bench import (
    ceilings,
    conv_problem,
    correctness,
    fused_problem,
    goals,
    inception_problem,
    lists,
    machine,
    measure,
    pool_problem,
    providers,
    report,
)
from bench.lists import Layer
from bench.pool_problems import KINDS, PoolLayer
from bench.problem import Problem
from bench.problems import ConvLayer
from bench.providers import COPY, PYTORCH, Call, Provider
from bench.timing import interleaved, quantile, rate_samples
from fastconv import reference

CONV = ConvLayer("tiny", 4, (6, 5), 8, (3, 3), (1, 1), (1, 1), (1, 1), groups=2, count=3)
LAYERS: dict[str, Layer] = {
    kind: PoolLayer("tiny", kind, 3, (9, 8), (3, 3), (2, 2), (0 if kind == "lp" else 1,) * 2)
    for kind in KINDS
}
LAYERS["adaptive_avg"] = PoolLayer("tiny", "adaptive_avg", 3, (9, 8), (2, 3))
LAYERS["conv"] = CONV
LAYERS["inception"] = inception_problem.InceptionLayer("tiny", 5, 6, (3, 2, 4, 2, 3, 2))
LAYERS["fused"] = fused_problem.fused(CONV)
DIRECTIONS = {
    **dict.fromkeys(LAYERS, pool_problem.DIRECTIONS),
    "conv": conv_problem.DIRECTIONS,
    "fused": fused_problem.DIRECTIONS,
    "inception": inception_problem.DIRECTIONS,
}
CASES = [(name, direction) for name in LAYERS for direction in DIRECTIONS[name]]


def problem_of(
    name: str = "conv", direction: str = "fprop", dtype: str = "float32", layout: str = "nchw"
) -> Problem:
    kind = getattr(torch, dtype)
    return next(lists.problems_of(LAYERS[name], 2, [direction], [layout], kind))


def named(*names: str) -> list[Provider]:
    return [providers.provider(name) for name in names]


class Broken(Provider):
    """PyTorch's right answer, damaged."""

    name = "broken"
    ours = True

    def __init__(self, damage) -> None:
        self.damage = damage

    def prepare(self, problem: Problem) -> Call:
        right = providers.PROVIDERS[PYTORCH].prepare(problem)

        def call():
            result = right()
            if isinstance(result, tuple):
                return (*result[:-1], self.damage(result[-1]))
            return self.damage(result)

        return call


def measured(problem: Problem, *contenders: Provider, **options) -> list[dict]:
    return measure.measure(problem, [*named(PYTORCH), *contenders], 0.001, **options)


def largest(value: float):
    """Overwrites the largest element."""

    def damage(y: torch.Tensor) -> torch.Tensor:
        y = y.clone(memory_format=torch.contiguous_format)
        y.view(-1)[y.abs().argmax()] = value
        return y

    return damage


DAMAGES = {
    "one element": largest(2.0),
    "NaN": largest(math.nan),
    "infinity": largest(math.inf),
    "too coarse": lambda y: y * (1 + 1e-4),
    "shape": lambda y: y[:, :-1],
}


def test_layer_geometry_is_pytorchs() -> None:
    layer = ConvLayer("t", 6, (11, 9), 4, (3, 2), (2, 1), (1, 0), (2, 3), groups=2)
    x, w, dy, _ = conv_problem.make_tensors(layer, 2, torch.float32)
    y = correctness.convolution(layer, "fprop", x, w, dy)
    assert tuple(y.shape) == layer.output_size(2) == tuple(dy.shape)
    assert layer.macs(2) == y.numel() * 3 * 6
    assert layer.label == "6x11x9>4 3x2 /2x1 d2x3 g2"


@pytest.mark.parametrize("direction", conv_problem.PARTS)
def test_reference_is_the_definition(direction: str) -> None:
    x, w, dy, bias = conv_problem.make_tensors(CONV, 2, torch.float32)
    ref = correctness.reference(CONV, direction, x, w, dy)
    geometry = (CONV.stride, CONV.padding, CONV.dilation, CONV.groups)
    x, w, dy = x.double(), w.double(), dy.double()
    defined = {
        "fprop": lambda: reference.conv_fprop(x, w, None, *geometry),
        "dgrad": lambda: reference.conv_dgrad(dy, w, tuple(x.shape), *geometry),
        "wgrad": lambda: reference.conv_wgrad(dy, x, tuple(w.shape), *geometry),
    }[direction]()
    torch.testing.assert_close(ref.value, defined, rtol=1e-12, atol=1e-12)
    assert (ref.scale >= ref.value.abs() * (1 - 1e-6)).all()
    if direction == "fprop":
        ref = correctness.reference(CONV, direction, x, w, dy, bias, relu=True)
        torch.testing.assert_close(ref.value, (defined + bias.double().view(-1, 1, 1)).relu())


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name, direction", CASES)
def test_wrong_answer_has_no_time(name: str, direction: str, damage: str) -> None:
    torch.manual_seed(0)
    problem = problem_of(name, direction)
    if name == "stochastic" and direction != "forward" and damage == "shape":
        return  # its gradient is judged by its sum
    yardstick, row = measured(problem, Broken(DAMAGES[damage]))
    assert yardstick["status"] == "ok" and yardstick["ms"]["median"] > 0
    assert row["status"] == "wrong", row
    assert not {"ms", "ratio"} & set(row)
    assert report.cell(row)["time"] == "WRONG" and report.cell(row)["ratio"] == "-"


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("name, direction", CASES)
def test_right_answers_pass(name: str, direction: str, layout: str) -> None:
    torch.manual_seed(0)
    ours = named("auto", "direct", "im2col") if name == "conv" else named("auto")
    plain = named("pytorch_channels_last", COPY)
    for row in measured(problem_of(name, direction, layout=layout), *ours, *plain):
        assert row["status"] == "ok", row
        assert row["contender"] == COPY or 0 <= row["error"] <= row["tolerance"]
        assert row["of_copy"] > 0


@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "float16"])
@pytest.mark.parametrize(
    "name, direction",
    [("conv", "fprop"), ("max", "forward"), ("avg", "forward+backward"), ("lp", "forward")],
)
def test_other_dtypes_pass_and_their_errors_show(name: str, direction: str, dtype: str) -> None:
    # 4 units in the last place: more than any rounding, and a tenth of what a lost term costs.
    damage = 1e-13 if dtype == "float64" else 16 * torch.finfo(getattr(torch, dtype)).eps
    rows = measured(
        problem_of(name, direction, dtype), *named("direct"), Broken(lambda y: y * (1 + damage))
    )
    # PyTorch's own 16-bit norms and averages round in between.
    assert [row["status"] for row in rows[1:]] == ["ok", "wrong"]


@pytest.mark.parametrize("epilogue", ["bias", "bias+relu"])
def test_epilogues(epilogue: str) -> None:
    (problem,) = lists.problems_of(CONV, 2, ["fprop"], ["nchw"], torch.float32, epilogue=epilogue)
    yardstick, row = measured(problem, *named("im2col"))
    assert yardstick["status"] == row["status"] == "ok" and row["epilogue"] == epilogue
    result = providers.PROVIDERS[PYTORCH].prepare(problem)()
    assert bool((result >= 0).all()) == (epilogue == "bias+relu")
    plain = correctness.convolution(CONV, "fprop", problem.x, problem.w, problem.dy)
    assert not problem.judge(plain, PYTORCH).ok


def test_onednn_layouts_and_compile() -> None:
    layer = ConvLayer("tiny", 16, (6, 6), 8, (3, 3), (1, 1), (1, 1), (1, 1))
    (problem,) = lists.problems_of(layer, 2, ["fprop"], ["nchw"], torch.float32)
    assert [row["status"] for row in measured(problem, *named("onednn"))] == ["ok", "ok"]
    (problem,) = lists.problems_of(layer, 2, ["dgrad"], ["nchw"], torch.float32)
    assert measured(problem, *named("onednn"))[1]["status"] == "not applicable"
    assert isinstance(providers.provider("compile"), providers.Compiled)


def test_a_biased_draw_is_seen() -> None:
    layer = PoolLayer("t", "stochastic", 8, (24, 24), (2, 2), (2, 2), (0, 0))
    (problem,) = lists.problems_of(layer, 2, ["forward"], ["nchw"], torch.float32)
    verdict = problem.judge(F.max_pool2d(problem.x, 2), "broken")
    assert not verdict.ok and not verdict.reason


def test_inapplicable_algorithm_is_reported_with_its_reason() -> None:
    layer = ConvLayer("tiny", 4, (8, 8), 4, (5, 5), (1, 1), (2, 2), (1, 1))
    (problem,) = lists.problems_of(layer, 1, ["fprop"], ["nchw"], torch.float32)
    row = measured(problem, *named("winograd"))[1]
    assert row["status"] == "not applicable" and "does not apply" in row["reason"]


def test_a_name_of_another_operation_is_not_applicable() -> None:
    row = measured(problem_of(), *named("triton"))[1]
    assert row["status"] == "not applicable"
    assert row["reason"] == "fastconv has no convolution called triton"
    row = measured(problem_of("max", "forward"), *named("im2col"))[1]
    assert row["status"] == "not applicable"
    assert row["reason"] == "fastconv has no pooling called im2col"
    # Triton needs a CUDA device: said by the registry.
    row = measured(problem_of("max", "forward"), *named("triton"))[1]
    assert row["status"] == "not applicable" and "does not apply" in row["reason"]


def test_crash_of_a_contender_is_a_row() -> None:
    def crash(y: torch.Tensor) -> torch.Tensor:
        raise MemoryError("no room")

    row = measured(problem_of(), Broken(crash))[1]
    assert row["status"] == "error" and row["reason"] == "MemoryError: no room"


def test_ratio_below_a_goal_is_measured_again() -> None:
    calls = []

    def slow_at_first(y: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        if len(calls) < 8:  # like a burst of somebody else's load
            time.sleep(0.02)
        return y

    goal = goals.Goal("broken >= 0.5", "broken", 0.5)
    row = measured(problem_of(), Broken(slow_at_first), goals=[goal])[1]
    assert row["first_ratio"] < 0.5 < row["ratio"]


def test_what_cannot_be_timed_is_a_row() -> None:
    """Right, but its timer found no room for it."""

    def timer(calls, seconds, least):
        return interleaved({n: c for n, c in calls.items() if n != "direct"}, seconds, 0)

    rates = {"triad_bytes_per_s": 1e9, "gemm_float32_flops": 1e9}
    contenders = named("direct", "im2col")
    rows = measured(problem_of(), *contenders, timer=timer, ceilings=rates)
    assert [row["status"] for row in rows] == ["ok", "error", "ok"]
    assert "ms" not in rows[1] and "no room" in rows[1]["reason"]
    assert rows[2]["of_limit"] > 0 and rows[2]["ratio"] > 0


class Mine(Provider):
    """As a user writes one."""

    name = "mine"

    def conv(self, problem):
        return providers.PROVIDERS[PYTORCH].conv(problem)


def test_a_users_provider_takes_part() -> None:
    mine = providers.provider(f"{__name__}:Mine")
    assert [row["status"] for row in measured(problem_of(), mine)] == ["ok", "ok"]
    row = measured(problem_of("max", "forward"), mine)[1]
    assert row["status"] == "not applicable" and row["reason"] == "mine runs no poolings"
    for name in (f"{__name__}:Yours", "no.such.module:X"):
        with pytest.raises(ValueError, match="cannot load the provider"):
            providers.provider(name)


def test_limits_are_the_definitions() -> None:
    problem = problem_of()
    x, w, y = 2 * 4 * 6 * 5, 8 * 2 * 9, 2 * 8 * 6 * 5
    assert problem.bytes() == 4 * (x + w + y)
    assert problem.flops() == 2 * y * 2 * 9
    both = problem_of(direction="forward+backward")
    assert (both.bytes(), both.flops()) == (3 * problem.bytes(), 3 * problem.flops())
    layer = LAYERS["max"]
    x, y = 2 * 3 * 9 * 8, 2 * 3 * 5 * 4
    assert layer.elements(2, "forward") == x + y
    assert layer.elements(2, "forward+backward") == 2 * (x + y)
    assert LAYERS["lp"].elements(2, "forward+backward") == 3 * (x + 2 * 3 * 4 * 3)
    module = problem_of("inception", "forward")
    assert module.flops() == 2 * 50 * (6 * 3 + 6 * 2 + 2 * 4 * 9 + 6 * 2 + 2 * 3 * 25 + 6 * 2)
    assert module.bytes() == 4 * (2 * 25 * (6 + 12) + sum(w.numel() for w in module.w))


def test_rows_carry_their_floor() -> None:
    rates = {"triad_bytes_per_s": 1e9, "gemm_float32_flops": 1e9}
    for row in measured(problem_of(), *named("direct"), ceilings=rates):
        assert row["floor_ms"] == max(row["flops"], row["bytes"]) / 1e6
        assert row["of_limit"] == pytest.approx(row["floor_ms"] / row["ms"]["median"])
    assert ceilings.floor_of(4e11, 4e9, "bfloat16", {"triad_bytes_per_s": 4e12}) == 1.0


def test_ceilings_are_rates() -> None:
    rates = ceilings.measured(rate_samples, "cpu", ("float32", "bfloat16"), small=True)
    assert set(rates) == {"triad_bytes_per_s", "gemm_float32_flops", "gemm_bfloat16_flops"}
    assert all(rate > 1e6 for rate in rates.values())


def test_quantiles() -> None:
    assert quantile([5.0, 1.0, 3.0], 0.5) == 3.0
    assert quantile([0.0, 10.0], 0.2) == pytest.approx(2.0)
    assert quantile([4.0], 0.8) == 4.0


def test_contenders_take_turns() -> None:
    trace: list[str] = []

    def contender(name: str):
        def call() -> None:
            trace.append(name)
            time.sleep(0.011)

        return call

    timings = interleaved({"a": contender("a"), "b": contender("b")}, 0.0, min_rounds=4)
    assert "".join(trace) == "aabb" + "ab" + "ba" + "ab" + "ba"  # warm-up, then four rounds
    assert all(t.samples == 4 and t.p20 >= 10 for t in timings.values())


def test_machine_slug_is_a_folder_name() -> None:
    facts = machine.describe(threads=2)
    assert machine.slug(facts).endswith("-2-threads")
    assert set(machine.slug(facts)) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
