"""The demo: it passes on right kernels, and fails on wrong ones."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn

from bench import demo, demo_layers, demo_plot, demo_training, providers
from bench.conv_problem import PARTS
from bench.demo_training import Run
from bench.problems import ConvLayer
from fastconv import select

TINY = (
    ConvLayer("tiny", 4, (6, 5), 8, (3, 3), (1, 1), (1, 1), (1, 1)),
    ConvLayer("tiny", 4, (9,), 6, (3,), (2,), (1,), (1,), groups=2),
)


@pytest.fixture(scope="module")
def few_digits() -> demo_training.Digits:
    """Enough for some steps of training."""
    digits = demo_training.load_digits()
    batches = 3 * demo_training.BATCH
    return dataclasses.replace(
        digits, train_x=digits.train_x[:batches], train_y=digits.train_y[:batches]
    )


def _train(name: str, algorithms, digits: demo_training.Digits, epochs: int = 4) -> Run:
    return demo_training.train(name, demo_training.make_model(algorithms), digits, epochs)


def test_digits_are_what_they_say() -> None:
    digits = demo_training.load_digits()
    assert digits.train_x.shape == (1078, 1, 16, 16) and digits.test_x.shape == (719, 1, 16, 16)
    assert set(digits.train_y.tolist()) == set(digits.test_y.tolist()) == set(range(10))


@pytest.mark.parametrize("algorithms", ["auto", demo_training.FORCED], ids=["auto", "forced"])
def test_trainings_agree(algorithms, few_digits: demo_training.Digits) -> None:
    baseline = _train("PyTorch", None, few_digits)
    run = _train("ours", algorithms, few_digits)
    assert len(run.losses) == 12 and run.losses[-1] < 0.9 * run.losses[0]
    assert demo_training.largest_loss_gap(baseline, run) < demo_training.LOSS_TOLERANCE
    assert set(run.algorithms) == set(demo_training.FORCED)
    if algorithms != "auto":
        for layer, algo in demo_training.FORCED.items():
            assert run.algorithms[layer].split(" / ")[0] == algo
    again = _train("ours again", algorithms, few_digits)
    assert again.losses == run.losses


def test_forced_algorithms_cover_the_registry() -> None:
    assert set(demo_training.FORCED.values()) == set(select.names()) - {"aten", "winograd"}


def test_every_layer_is_ours_after_conversion() -> None:
    model = demo_training.make_model("auto")
    kinds = {type(m).__module__ for m in model.modules() if isinstance(m, nn.Conv2d)}
    assert all(kind.startswith("fastconv") for kind in kinds)
    with pytest.raises(RuntimeError, match=r"not converted: .*'wide'"):
        demo_training._check_converted(demo_training.make_model(None))


def test_wrong_gradient_fails_the_demo(few_digits: demo_training.Digits) -> None:
    baseline = _train("PyTorch", None, few_digits)
    model = demo_training.make_model("auto")
    model.deep.weight.register_hook(lambda dw: dw * 1.01)
    run = demo_training.train("ours", model, few_digits, 4)
    failed = [text for holds, text in demo_training.verify(baseline, [run]) if not holds]
    assert any("losses of the first 10 steps differ" in text for text in failed)


def test_verify_checks_accuracies_and_nan() -> None:
    baseline = Run("a", losses=[1.0] * 12, accuracy=0.99)
    assert all(holds for holds, _ in demo_training.verify(baseline, [baseline]))
    for rival in (
        Run("b", losses=[1.0] * 12, accuracy=0.975),
        Run("b", losses=[1.0] * 12, accuracy=0.5),
        Run("b", losses=[1.0, float("nan")] + [1.0] * 10, accuracy=0.99),
        Run("b", losses=[1.001] * 12, accuracy=0.99),
    ):
        assert not all(holds for holds, _ in demo_training.verify(baseline, [rival]))


def test_comparison_names_wrong_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    right = providers.Fastconv("direct")
    broken = providers.Fastconv("direct")
    broken.conv = lambda problem: lambda: right.conv(problem)() + 1
    monkeypatch.setitem(providers.PROVIDERS, "direct", broken)
    (first, _) = demo_layers.compare(TINY, ("fprop", "dgrad"), seconds=0.001)
    assert len(first.wrong) == 2 and all("direct" in text for text in first.wrong)


def test_picture_and_tables(tmp_path: Path) -> None:
    comparisons = list(demo_layers.compare(TINY, PARTS, seconds=0.001))
    assert not [text for c in comparisons for text in c.wrong]
    assert all(c.error("direct") < 1e-6 for c in comparisons)
    console = demo.make_console()
    with console.capture() as captured:
        console.print(demo_layers.table(comparisons, PARTS))
    printed = captured.get()
    for name in (*demo_layers.contenders()[1:3], "auto: ", TINY[0].label):
        assert name in printed
    runs = [Run("a", [1.0, 0.5], 0.98, 1.0), Run("b", [1.0, 0.6], 0.98, 1.0)]
    picture = tmp_path / "new" / "demo.png"
    demo_plot.draw(runs, comparisons, picture)
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 10_000


@pytest.mark.parametrize("wrong", [False, True])
def test_exit_code(wrong: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run = Run("a", [1.0] * 12, 0.99, 1.0, {"stem": "direct"})
    rival = dataclasses.replace(run, name="b", losses=[1.1 if wrong else 1.0] * 12)
    monkeypatch.setattr(demo, "run_trainings", lambda console, device, epochs: [run, rival])
    monkeypatch.setattr(demo_layers, "QUICK_LAYERS", TINY)
    threads = torch.get_num_threads()
    try:
        assert demo.main(["--quick", "--out", str(tmp_path)]) == int(wrong)
    finally:
        torch.set_num_threads(threads)
    assert (tmp_path / "demo.png").exists()
