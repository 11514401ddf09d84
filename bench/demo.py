"""`python -m bench.demo`: trains on real digits with PyTorch's convolutions and with fastconv's,
compares every algorithm with PyTorch on layers of real networks, and draws both.

Exit code 0 only if the trainings agree and every answer is right.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from bench import demo_layers, demo_training, machine
from bench.conv_problem import PARTS as DIRECTIONS
from bench.demo_layers import Comparison
from bench.demo_training import Run
from fastconv import select

ROOT = Path(__file__).resolve().parent.parent
LOG_WIDTH = 122  # of the tables where there is no terminal to ask


def pick_device() -> str:
    """The GPU where there is one and at least one of our own algorithms runs on it."""
    if not torch.cuda.is_available():
        return "cpu"
    try:
        names = select.names("cuda")
    except (ValueError, RuntimeError):
        return "cpu"
    return "cuda" if any(name not in ("aten", "winograd") for name in names) else "cpu"


def make_console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=LOG_WIDTH)


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description:44}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        refresh_per_second=4,  # the display shares the cores with what it displays
    )


def run_trainings(console: Console, device: str, epochs: int) -> list[Run]:
    """PyTorch's layers, `auto`, and one algorithm forced per layer."""
    digits = demo_training.load_digits(device)
    forced = demo_training.FORCED if device == "cpu" else None
    plans: list[tuple[str, dict[str, str] | str | None]] = [
        ("PyTorch", None),
        ("fastconv auto", "auto"),
    ]
    if forced:
        plans.append(("fastconv forced", forced))
    runs = []
    with _progress(console) as progress:
        for name, algorithms in plans:
            model = demo_training.make_model(algorithms, device)
            task = progress.add_task(
                f"training, {name}", total=demo_training.steps(digits, epochs), note=""
            )

            def on_step(step: int, loss: float, task: int = task) -> None:
                progress.update(task, completed=step, note=f"loss {loss:.4f}")

            runs.append(demo_training.train(name, model, digits, epochs, on_step))
    return runs


def training_table(runs: list[Run]) -> Table:
    table = Table(title="The same network, seed and batches; one thread")
    table.add_column("convolutions", no_wrap=True)
    for name in ("first loss", "loss 10", "last loss", "test accuracy", "seconds"):
        table.add_column(name, justify="right")
    for run in runs:
        tenth = run.losses[min(9, len(run.losses) - 1)]
        losses = (f"{value:.6f}" for value in (run.losses[0], tenth, run.losses[-1]))
        table.add_row(run.name, *losses, f"{run.accuracy:.2%}", f"{run.seconds:.1f}")
    return table


def algorithm_table(runs: list[Run]) -> Table:
    table = Table(title="What ran in the trainings (fprop / dgrad / wgrad)")
    table.add_column("layer")
    for run in runs[1:]:
        table.add_column(run.name)
    for layer in runs[0].algorithms:
        table.add_row(layer, *(run.algorithms[layer] for run in runs[1:]))
    return table


def run_layers(console: Console, device: str, quick: bool) -> tuple[list[Comparison], list[str]]:
    """Every algorithm on every layer of the demo's list; quick: fewer layers, fprop only."""
    layers = demo_layers.QUICK_LAYERS if quick else demo_layers.LAYERS
    directions = DIRECTIONS[:1] if quick else DIRECTIONS
    comparisons: list[Comparison] = []
    with _progress(console) as progress, torch.inference_mode():
        task = progress.add_task("layers", total=len(layers), note="")
        for comparison in demo_layers.compare(
            layers,
            directions,
            device,
            batch=1 if device == "cpu" else 32,
            on_problem=lambda title: progress.update(task, note=title),
        ):
            comparisons.append(comparison)
            progress.advance(task)
        progress.update(task, note="")
    return comparisons, list(directions)


def main(argv: list[str] | None = None) -> int:
    """Runs the demo. Returns 1 if anything that it promises does not hold."""
    parser = argparse.ArgumentParser(prog="python -m bench.demo", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="about half a minute, for CI")
    parser.add_argument("--out", type=Path, default=ROOT / "demo_out", help="where the PNG goes")
    args = parser.parse_args(argv)

    from bench import demo_plot  # matplotlib, only needed here, takes seconds to load

    start = time.perf_counter()
    console = make_console()
    torch.backends.cudnn.allow_tf32 = False  # fp32 is compared with fp32
    device = pick_device()
    facts = machine.describe(machine.usable_cores())
    console.print(
        f"fastconv {facts['fastconv']} ({facts['fastconv_isa']}), torch {facts['torch']}, "
        f"{facts['cpu']}, {facts['threads']} threads, device {device}"
    )

    # One thread: layers this small gain nothing from a second one, and waiting for each other
    # hundreds of times a second would make the run take minutes on a busy machine.
    torch.set_num_threads(1)
    runs = run_trainings(console, device, epochs=7 if args.quick else 10)
    torch.set_num_threads(facts["threads"])
    console.print(training_table(runs), algorithm_table(runs))
    checks = demo_training.verify(runs[0], runs[1:])

    comparisons, directions = run_layers(console, device, args.quick)
    console.print(demo_layers.table(comparisons, directions))
    wrong = [text for comparison in comparisons for text in comparison.wrong]
    checks.append((not wrong, "\n  ".join(["every algorithm's answers are right", *wrong])))

    picture = args.out / "demo.png"
    demo_plot.draw(runs, comparisons, picture)
    for holds, text in checks:
        console.print(f"[green]ok[/green]     {text}" if holds else f"[red]FAILED[/red] {text}")
    console.print(f"picture: {picture}")
    console.print(f"{time.perf_counter() - start:.0f} s")
    return 0 if all(holds for holds, _ in checks) else 1


if __name__ == "__main__":
    sys.exit(main())
