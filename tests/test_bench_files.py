"""The benchmark's files and commands: goals, summaries, tables, comparison, pictures."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import pytest
import torch

from bench import compare, goals, lists, measure, plot, providers, report
from bench.__main__ import main
from bench.pool_problems import PoolLayer
from bench.problem import Problem
from bench.problems import ConvLayer
from bench.providers import COPY, PYTORCH, Call, Provider

CONV = ConvLayer("tiny", 4, (6, 5), 8, (3, 3), (1, 1), (1, 1), (1, 1), groups=2, count=3)
POOL = PoolLayer("tiny", "max", 3, (9, 8), (3, 3), (2, 2), (1, 1))


@pytest.fixture
def tiny_list(monkeypatch: pytest.MonkeyPatch) -> None:
    """A list of layers named 'tiny', so that a run takes no time."""
    monkeypatch.setattr(lists, "layers", lambda name, families: [CONV, POOL])
    monkeypatch.setattr(lists, "source", lambda name: "made up")


def _row(contender: str, ratio: float, **other: object) -> dict:
    row = {"op": "conv2d", "net": "n", "layer": "l", "count": 1, "C": 128, "K": 128, "batch": 1}
    row |= {"direction": "fprop", "layout": "nchw", "dtype": "float32", "status": "ok"}
    row |= {"dense_3x3_stride_1": True, "contender": contender, "ran": contender, "device": "cpu"}
    row |= {"ours": contender not in (PYTORCH, COPY), "bytes": 100, "flops": 1000.0, "error": 1.0}
    spread = {"p20": 0.99, "p80": 1.01, "samples": 9}
    times = {"ms": {"median": 1.0, **spread}, "pytorch_ms": {"median": ratio, **spread}}
    times["pytorch_ms"] |= {"p20": ratio * 0.99, "p80": ratio * 1.01}
    return row | {"ratio": ratio} | times | other


def _pytorch(ms: float, **other: object) -> dict:
    times = {"median": ms, "p20": ms * 0.99, "p80": ms * 1.01}
    return _row(PYTORCH, 1.0, ms=times, pytorch_ms=times, **other)


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


def test_pool_goals_cover_what_they_name() -> None:
    rows = []
    for layer in lists.layers("family"):
        for problem in lists.problems_of(layer, 8, None, ["nchw", "channels_last"], torch.float32):
            times = {"status": "ok", "ratio": 2.0, "of_copy": 0.4}
            rows.append(problem.facts() | {"contender": "auto", "ran": "auto"} | times)
    found = {goal["goal"]: goal for goal in goals.assess(rows)}
    assert sum("pool" in name or "3x3/2" in name for name in found) == len(found) == 11
    assert found["auto >= 10 on max 3x3/2, nchw, forward"]["missed"] == 1
    assert found["auto >= 1.3 on max 3x3/2, channels_last, forward"]["passed"]
    assert found["auto >= 0.5 of a copy's speed on 3x3/2, forward"]["missed"] == 6
    assert found["auto >= 0.95 on every pooling"]["rows"] == len(rows)


def test_summary_weighs_layers_and_names_its_rivals() -> None:
    rows = []
    for layer, count, ratio in (("seldom", 1, 4.0), ("often", 3, 1.0)):
        where = {"layer": layer, "count": count}
        rows += [_pytorch(ratio, **where), _row("auto", ratio, **where)]
        rows.append(_row("compile", 1.0, ours=False, **where) | {"ms": {"median": 0.5}})
    found = {(s["contender"], s["against"]): s for s in report.summarise(rows)}
    assert set(found) == {("auto", PYTORCH), ("auto", "compile"), ("compile", PYTORCH)}
    summary = found["auto", PYTORCH]
    assert summary["geomean_ratio"] == pytest.approx(2.0)
    assert summary["total_ratio"] == pytest.approx((4 + 3) / 4)
    assert (summary["worst_ratio"], summary["worst_layer"]) == (1.0, "often")
    assert found["auto", "compile"]["total_ratio"] == pytest.approx(0.5)


def test_summary_keeps_arithmetics_apart() -> None:
    rows = []
    for ratio, other in ((4.0, {"dtype": "bfloat16"}), (1.0, {"precision": "tf32"}), (2.0, {})):
        rows += [_pytorch(ratio, **other), _row("auto", ratio, **other)]
    found = {s["direction"]: s["geomean_ratio"] for s in report.summarise(rows)}
    assert found == {"fprop bfloat16": 4.0, "fprop tf32": 1.0, "fprop float32": 2.0}


def _run(tmp_path: Path, *more: str, name: str = "out") -> tuple[int, dict]:
    out = tmp_path / "a" / f"{name}.json"
    command = f"run --lists tiny --threads {torch.get_num_threads()} --seconds 0.001 --json {out}"
    code = main([*command.split(), *more])
    return code, json.loads(out.read_text())


def test_command_line(tiny_list: None, tmp_path: Path) -> None:
    code, doc = _run(
        tmp_path, "--batch=1,2", "--providers=auto,direct", "--directions=fprop,forward"
    )
    assert code == 0 and doc["schema"] == report.SCHEMA
    assert {"cpu", "threads", "torch", "revision", "fastconv_isa"} <= set(doc["machine"])
    assert {"triad_bytes_per_s", "gemm_float32_flops"} == set(doc["settings"]["ceilings"])
    assert doc["settings"]["precision"] == "ieee"
    # layers x batches x layouts x (PyTorch, two of ours, a copy)
    assert len(doc["rows"]) == 2 * 2 * 2 * 4
    for row in doc["rows"]:
        assert row["status"] == "ok" and row["of_limit"] > 0
        assert 0 < row["ms"]["p20"] <= row["ms"]["median"] <= row["ms"]["p80"]
        assert row["ratio"] == pytest.approx(row["pytorch_ms"]["median"] / row["ms"]["median"])
    text = (tmp_path / "a" / "out.md").read_text()
    assert CONV.label in text and POOL.label in text and doc["machine"]["cpu"] in text
    with (tmp_path / "a" / "out.csv").open() as file:
        table = list(csv.DictReader(file))
    assert len(table) == len(doc["rows"])
    assert float(table[0]["ms_median"]) == doc["rows"][0]["ms"]["median"]


class Infinite(Provider):
    name = "infinite"
    ours = True

    def conv(self, problem: Problem) -> Call:
        right = providers.PROVIDERS[PYTORCH].prepare(problem)
        return lambda: right() / 0


def test_command_line_fails_on_a_wrong_answer(
    tiny_list: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, doc = _run(tmp_path, f"--providers={__name__}:Infinite", "--layout=nchw", "--ops=conv")
    assert code == 1
    printed = capsys.readouterr().out
    assert "WRONG" in printed and "WRONG on 1 layers" in printed
    assert doc["rows"][1]["error"] is None
    assert "WRONG" in (tmp_path / "a" / "out.md").read_text()


def test_interruption_loses_no_rows(
    tiny_list: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = measure.measure

    def interrupted(problem: Problem, *args, **options) -> list[dict]:
        if problem.family == "pool":
            raise KeyboardInterrupt
        return whole(problem, *args, **options)

    monkeypatch.setattr("bench.run.measure", interrupted)
    code, doc = _run(tmp_path, "--layout=nchw")
    assert code == 130
    assert {row["op"] for row in doc["rows"]} == {"conv2d"} and len(doc["rows"]) == 3
    assert doc["settings"]["left_out"] == "1 of 2 layers"


def test_run_stops_in_time(tiny_list: None, tmp_path: Path) -> None:
    code, doc = _run(tmp_path, "--until=0")
    assert code == 0 and not doc["rows"]
    assert doc["settings"]["left_out"] == "2 of 2 layers"


@pytest.mark.parametrize(
    "arguments, text",
    [
        (["--providers", "fft"], "unknown provider 'fft'; known: pytorch"),
        (["--lists", "lenet"], "unknown list of layers 'lenet'"),
        (["--directions", "up"], "unknown ['up']"),
        (["--batch", "0"], "expected whole numbers above 0"),
        (["--model", "no.module:x", "--input", "1,3,8,8"], "cannot load 'no.module:x'"),
        (["--model", "torch.nn:ReLU"], "--model needs --input"),
        (["--device", "cuda"], "PyTorch sees no CUDA device"),
    ],
)
def test_bad_arguments(arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = main(["run", *arguments])
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    assert text in capsys.readouterr().err


def test_a_planted_slowdown_is_reported(
    tiny_list: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, old = _run(tmp_path, name="old")
    folder = tmp_path / "a"
    slow = json.loads(json.dumps(old))
    victims = [row for row in slow["rows"] if row["contender"] == "auto" and row["op"] == "conv2d"]
    for row in victims:
        # Twice the time beyond what the tiny problem's own noise would explain.
        spread = max(compare._spread(row["ms"]), compare._spread(row["pytorch_ms"]))
        for name in ("median", "p20", "p80"):
            row["ms"][name] *= 2 + 4 * spread
    (folder / "new.json").write_text(json.dumps(slow))
    assert main(["compare", str(folder / "old.json"), str(folder / "new.json")]) == 1
    printed = capsys.readouterr().out
    assert printed.count("SLOWER") == len(victims) == 2 and CONV.label in printed
    assert main(["compare", str(folder / "old.json"), str(folder / "old.json")]) == 0


def test_comparison_takes_out_the_machine() -> None:
    old = [_pytorch(2.0), _row("auto", 2.0)]
    new = [_pytorch(4.0), _row("auto", 2.0)]
    for row in new:
        row["ms"] = {k: v * (2 if row["contender"] == "auto" else 1) for k, v in row["ms"].items()}
        row["pytorch_ms"] = new[0]["ms"]
    changes, broken = compare.compare(old, new)
    assert [round(c.slowdown, 6) for c in changes] == [1.0] and not broken
    changes, _ = compare.compare(old, new, absolute=True)
    assert [round(c.slowdown, 6) for c in changes] == [2.0, 2.0]
    assert all(c.regression for c in changes)


def test_comparison_reports_what_broke_and_refuses_other_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = [_row("auto", 2.0) | {"status": "wrong", "reason": "NaN in the result"}]
    _, broken = compare.compare([_row("auto", 2.0)], new)
    assert len(broken) == 1 and "NaN in the result" in broken[0]
    other = tmp_path / "x.json"
    other.write_text("[]")
    assert main(["compare", str(other), str(other)]) == 2
    assert "is no result of" in capsys.readouterr().err


def test_pictures(tmp_path: Path) -> None:
    rows = []
    for i in range(6):
        where = {"layer": f"l{i}", "flops": 10.0**i, "bytes": 1000}
        rows += [_pytorch(2.0, **where), _row("auto", 1.0 + i, **where)]
    settings = {
        "dtype": "float32",
        "ceilings": {"triad_bytes_per_s": 1e9, "gemm_float32_flops": 1e9},
    }
    facts = {"cpu": "a processor", "threads": 2, "revision": "0123456789ab"}
    path = tmp_path / "r.json"
    report.write_json(report.document(facts, settings, rows), path)
    assert main(["plot", str(path)]) == 0
    pictures = sorted(p.name for p in tmp_path.glob("*.png"))
    assert pictures == ["r_error.png", "r_roofline.png", "r_speedup.png"]
    assert main(["plot", str(tmp_path / "none.json")]) == 2


def test_more_networks_than_a_picture_holds() -> None:
    """Every group is drawn, each once, and a picture says that it is not the only one."""
    pytest.importorskip("matplotlib")
    rows = [
        row
        for n in range(plot.MOST_GROUPS + 1)
        for row in (_pytorch(2.0, net=f"net{n}"), _row("auto", 2.0, net=f"net{n}"))
    ]
    facts = {"cpu": "a processor", "threads": 2, "revision": "0123456789ab"}
    settings = {"dtype": "float32", "precision": "tf32"}
    figures = plot.speedup(report.document(facts, settings, rows), rows)
    assert [f.get_suptitle().rpartition(" (")[2] for f in figures] == ["1 of 2)", "2 of 2)"]
    drawn = [label.get_text() for f in figures for label in f.axes[0].get_yticklabels()]
    assert len(drawn) == len(set(drawn)) == plot.MOST_GROUPS + 1
    assert all(", tf32, " in f.axes[0].get_title() for f in figures)
    assert len({f.axes[0].get_xlim() for f in figures}) == 1


def test_without_matplotlib_or_rich(
    tiny_list: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("bench.live.Console", None)
    assert _run(tmp_path)[0] == 0
    assert "install rich" in capsys.readouterr().out
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["plot", str(tmp_path / "a" / "out.json")]) == 2
    assert plot.HINT in capsys.readouterr().err
