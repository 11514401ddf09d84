"""The benchmark: its problem lists, its method, and that a wrong answer can never have a time."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import pytest
import torch

from bench import conv_cpu, correctness, goals, machine, measure, problems, providers, report
from bench.__main__ import main
from bench.problems import ConvLayer, conv_layers, net_names
from bench.timing import interleaved, quantile
from fastconv import reference

TINY = ConvLayer("tiny", 4, (6, 5), 8, (3, 3), (1, 1), (1, 1), (1, 1), groups=2, count=3)

# Multiply-adds of one image through the convolutions, in 1e9, as published with the networks.
PUBLISHED_GMACS = {
    "resnet18": 1.81,
    "resnet50": 4.09,
    "resnet152": 11.51,
    "vgg16": 15.35,
    "googlenet": 1.50,
    "inception_v3": 5.71,
    "densenet121": 2.83,
    "mobilenet_v2": 0.30,
    "squeezenet1_1": 0.349,
    "resnext50_32x4d": 4.23,
}


@pytest.fixture
def tiny_list(monkeypatch: pytest.MonkeyPatch) -> None:
    """A list of layers named 'tiny', so that a run takes no time."""
    monkeypatch.setattr(conv_cpu, "conv_layers", lambda net: [TINY])
    monkeypatch.setattr(conv_cpu, "source", lambda net: "made up")


def _problem(direction: str = "fprop", dtype: torch.dtype = torch.float32):
    return next(measure.problems_of(TINY, 2, [direction], ["nchw"], dtype))


def _wrong(damage):
    """A provider that computes the right answer and then damages it."""

    def provider(problem: providers.Problem):
        right = providers.pytorch(problem)
        return lambda: damage(right())

    return provider


@pytest.mark.parametrize("net", net_names())
def test_every_list_loads(net: str) -> None:
    layers = conv_layers(net)
    assert layers and problems.source(net)
    for layer in layers:
        assert min(layer.output_size(1)) > 0, layer
        assert layer.C % layer.groups == 0 and layer.K % layer.groups == 0


@pytest.mark.parametrize("net", PUBLISHED_GMACS)
def test_lists_have_the_published_work(net: str) -> None:
    gmacs = sum(layer.count * layer.macs(1) for layer in conv_layers(net)) / 1e9
    assert gmacs == pytest.approx(PUBLISHED_GMACS[net], rel=0.01)


def test_unknown_list_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown list of layers 'lenet'.*resnet50"):
        conv_layers("lenet")


def test_layer_geometry_is_pytorchs() -> None:
    layer = ConvLayer("t", 6, (11, 9), 4, (3, 2), (2, 1), (1, 0), (2, 3), groups=2)
    x, w, dy = providers.make_tensors(layer, 2, torch.float32)
    y = correctness.convolution(layer, "fprop", x, w, dy)
    assert tuple(y.shape) == layer.output_size(2) == tuple(dy.shape)
    assert layer.macs(2) == y.numel() * 3 * 6
    assert layer.label == "6x11x9>4 3x2 /2x1 d2x3 g2"


@pytest.mark.parametrize("direction", providers.DIRECTIONS)
def test_reference_is_the_definition(direction: str) -> None:
    x, w, dy = providers.make_tensors(TINY, 2, torch.float32)
    ref = correctness.reference(TINY, direction, x, w, dy)
    geometry = (TINY.stride, TINY.padding, TINY.dilation, TINY.groups)
    x, w, dy = x.double(), w.double(), dy.double()
    defined = {
        "fprop": lambda: reference.conv_fprop(x, w, None, *geometry),
        "dgrad": lambda: reference.conv_dgrad(dy, w, tuple(x.shape), *geometry),
        "wgrad": lambda: reference.conv_wgrad(dy, x, tuple(w.shape), *geometry),
    }[direction]()
    torch.testing.assert_close(ref.value, defined, rtol=1e-12, atol=1e-12)
    assert (ref.scale >= ref.value.abs() * (1 - 1e-6)).all()


def _first(value: float):
    """Overwrites one element."""

    def damage(y: torch.Tensor) -> torch.Tensor:
        y = y.clone()
        y.view(-1)[7] = value
        return y

    return damage


DAMAGES = {
    "one element": _first(0.0),
    "NaN": _first(math.nan),
    "infinity": _first(math.inf),
    "too coarse": lambda y: y * (1 + 1e-5),
    "shape": lambda y: y[:, :-1],
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("direction", providers.DIRECTIONS)
def test_wrong_answer_has_no_time(
    damage: str, direction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(providers.PROVIDERS, "broken", _wrong(DAMAGES[damage]))
    problem, ref = _problem(direction)
    yardstick, row = measure.measure(problem, ["broken"], ref, seconds=0.001)
    assert yardstick["status"] == "ok" and yardstick["ms"]["median"] > 0
    assert row["status"] == "wrong"
    assert not {"ms", "ratio"} & set(row)
    assert report.cell(row)["time"] == "WRONG" and report.cell(row)["ratio"] == "-"


def test_right_answer_of_every_algorithm_passes() -> None:
    for direction in providers.DIRECTIONS:
        problem, ref = _problem(direction)
        for row in measure.measure(problem, ["auto", "direct", "im2col"], ref, seconds=0.001):
            assert row["status"] == "ok", row
            assert 0 <= row["error"] <= row["tolerance"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes_pass_and_their_errors_show(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 4 units in the last place: more than any rounding, and a tenth of what a lost term costs.
    damage = 8 * torch.finfo(dtype).eps
    if dtype == torch.float64:
        damage = 1e-13
    monkeypatch.setitem(providers.PROVIDERS, "broken", _wrong(lambda y: y * (1 + damage)))
    problem, ref = _problem("fprop", dtype)
    rows = measure.measure(problem, ["direct", "broken"], ref, seconds=0.001)
    assert [row["status"] for row in rows] == ["ok", "ok", "wrong"]


def test_inapplicable_algorithm_is_reported_with_its_reason() -> None:
    layer = ConvLayer("tiny", 4, (8, 8), 4, (5, 5), (1, 1), (2, 2), (1, 1))
    problem, ref = next(measure.problems_of(layer, 1, ["fprop"], ["nchw"], torch.float32))
    row = measure.measure(problem, ["winograd"], ref, seconds=0.001)[1]
    assert row["status"] == "not applicable" and "does not apply" in row["reason"]


def test_crash_of_a_contender_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(problem: providers.Problem):
        def call():
            raise MemoryError("no room")

        return call

    monkeypatch.setitem(providers.PROVIDERS, "broken", crash)
    problem, ref = _problem()
    row = measure.measure(problem, ["broken"], ref, seconds=0.001)[1]
    assert row["status"] == "error" and row["reason"] == "MemoryError: no room"


def test_ratio_below_a_goal_is_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def slow(problem: providers.Problem):
        right = providers.pytorch(problem)

        def call() -> torch.Tensor:
            calls.append(1)
            if len(calls) < 8:  # slow at first only, like a burst of somebody else's load
                time.sleep(0.02)
            return right()

        return call

    monkeypatch.setitem(providers.PROVIDERS, "hindered", slow)
    goal = goals.Goal("hindered >= 0.5", "hindered", 0.5)
    monkeypatch.setattr(measure, "GOALS", (goal,))
    problem, ref = _problem()
    row = measure.measure(problem, ["hindered"], ref, seconds=0.001)[1]
    assert row["first_ratio"] < 0.5 < row["ratio"]


def _row(contender: str, ratio: float, **other: object) -> dict:
    row = {"net": "n", "layer": "l", "count": 1, "C": 128, "K": 128, "batch": 1}
    row |= {"direction": "fprop", "layout": "nchw", "dtype": "float32", "status": "ok"}
    row |= {"dense_3x3_stride_1": True, "contender": contender, "ran": contender}
    row |= {"ratio": ratio, "ms": {"median": 1.0}, "pytorch_ms": {"median": ratio}}
    return row | other


def test_goals_fail_on_one_bad_row() -> None:
    rows = [_row("auto", 1.2), _row("auto", 0.94), _row("winograd", 1.0), _row("direct", 0.3)]
    rows += [_row("im2col", 0.4, C=64), _row("im2col", 0.6)]  # too few channels: not covered
    found = {g["goal"].split()[0]: g for g in goals.assess(rows)}
    assert not found["auto"]["passed"] and found["auto"]["missed"] == 1
    assert found["auto"]["worst_ratio"] == 0.94 and "0.94" in found["auto"]["missed_rows"][0]
    assert found["winograd"]["passed"] and found["direct"]["passed"]
    assert found["im2col"]["passed"] and found["im2col"]["rows"] == 1


def test_wrong_row_misses_its_goal() -> None:
    (goal,) = goals.assess([_row("auto", 2.0), {**_row("auto", 2.0), "status": "wrong"}])
    assert not goal["passed"] and goal["missed"] == 1


def test_summary_weighs_layers() -> None:
    rows = [_row("auto", 4.0), _row("auto", 1.0, layer="often", count=3)]
    (summary,) = report.summarise(rows)
    assert summary["geomean_ratio"] == pytest.approx(2.0)
    assert summary["total_ratio"] == pytest.approx((4 + 3) / 4)
    assert (summary["worst_ratio"], summary["worst_layer"]) == (1.0, "often")


def test_command_line(tiny_list: None, tmp_path: Path) -> None:
    out, page = tmp_path / "a" / "out.json", tmp_path / "b" / "out.md"
    command = "run --nets tiny --batch 1,2 --algos auto,direct --directions fprop,wgrad"
    command += f" --threads {torch.get_num_threads()} --seconds 0.001 --json {out}"
    assert main([*command.split(), "--markdown", str(page)]) == 0
    doc = json.loads(out.read_text())
    assert doc["schema"] == report.SCHEMA
    assert {"cpu", "threads", "torch", "revision", "fastconv_isa"} <= set(doc["machine"])
    # batches x directions x layouts x (PyTorch and two algorithms)
    assert len(doc["rows"]) == 2 * 2 * 2 * 3
    assert len(doc["summaries"]) == 2 * 2 * 2 * 2
    for row in doc["rows"]:
        assert row["status"] == "ok"
        assert 0 < row["ms"]["p20"] <= row["ms"]["median"] <= row["ms"]["p80"]
        assert row["ratio"] == pytest.approx(row["pytorch_ms"]["median"] / row["ms"]["median"])
    assert {goal["goal"].split()[0] for goal in doc["goals"]} == {"auto", "direct"}
    text = page.read_text()
    assert TINY.label in text and doc["machine"]["cpu"] in text


def test_command_line_fails_on_a_wrong_answer(
    tiny_list: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(providers.PROVIDERS, "broken", _wrong(DAMAGES["infinity"]))
    command = "run --nets tiny --batch 1 --algos broken --layout nchw --seconds 0.001"
    command += f" --threads {torch.get_num_threads()} --json {tmp_path / 'o.json'}"
    assert main([*command.split(), "--markdown", str(tmp_path / "o.md")]) == 1
    printed = capsys.readouterr().out
    assert "WRONG" in printed and "WRONG on 1 layers" in printed
    assert json.loads((tmp_path / "o.json").read_text())["rows"][1]["error"] is None
    assert "WRONG" in (tmp_path / "o.md").read_text()


@pytest.mark.parametrize(
    "arguments, text",
    [
        (["--algos", "fft"], "unknown algorithms ['fft']"),
        (["--nets", "lenet", "--algos", "auto"], "unknown list of layers 'lenet'"),
        (["--directions", "up"], "unknown ['up']"),
        (["--batch", "0"], "expected whole numbers above 0"),
    ],
)
def test_bad_arguments(arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = main(["run", *arguments])
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    assert text in capsys.readouterr().err


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
