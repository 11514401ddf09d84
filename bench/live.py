"""What a run shows as it goes on: a table and a bar, or lines where there is no terminal."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import TypeVar

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from bench import report

ROWS_IN_VIEW = 24  # every row is in the markdown

Work = TypeVar("Work")


def collect(
    work: list[Work],
    describe: Callable[[Work], str],
    measure: Callable[[Work], Iterable[list[dict]]],
) -> list[dict]:
    """The rows that `measure(item)` yields, list by list, over all items, shown as they come."""
    console = Console()
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
    )
    task = progress.add_task("layers", total=len(work))
    view: deque[dict] = deque(maxlen=ROWS_IN_VIEW)
    rows: list[dict] = []
    # Without a terminal a live table would be an unreadable log: there, a line per row instead.
    # No refresh thread: it would take a core away from what is being timed.
    live = console.is_terminal
    display = Live(console=console, auto_refresh=False, transient=True) if live else nullcontext()
    with display as screen:
        for item in work:
            progress.update(task, description=describe(item))
            for new in measure(item):
                rows += new
                view.extend(new)
                if live:
                    screen.update(Group(_table(view), progress), refresh=True)
                else:
                    print("\n".join(_plain(row) for row in new), flush=True)
            progress.advance(task)
    return rows


def _table(rows: Iterable[dict]) -> Table:
    table = Table(expand=False)
    for name in ("net", "layer", "N", "direction", "layout", "algorithm", "ran"):
        table.add_column(name, no_wrap=True)
    for name in ("error", "ms", "p20-p80", "ratio"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        text = report.cell(row)
        head = [row["net"], row["layer"], str(row["batch"]), row["direction"], row["layout"]]
        tail = [text[k] for k in ("ran", "error", "time", "spread", "ratio")]
        style = "red" if row["status"] in ("wrong", "error") else None
        table.add_row(*head, row["contender"], *tail, style=style)
    return table


def _plain(row: dict) -> str:
    text = report.cell(row)
    name = row["contender"] + (f" ({text['ran']})" if text["ran"] else "")
    where = f"{row['net']} {row['layer']} N={row['batch']} {row['direction']} {row['layout']}"
    return f"{where:58} {name:26} error {text['error']:>6}  {text['time']:>8} ms  x{text['ratio']}"


def conclude(doc: dict) -> None:
    """Prints the summaries and how the goals were met."""
    for s in doc["summaries"]:
        where = f"{s['net']} N={s['batch']} {s['direction']} {s['layout']} {s['contender']}"
        if "geomean_ratio" in s:
            print(
                f"{where:48} geometric mean {s['geomean_ratio']:.2f}, whole network "
                f"{s['total_ratio']:.2f}, worst {s['worst_ratio']:.2f} ({s['worst_layer']}), "
                f"{s['timed']} of {s['layers']} layers"
            )
        if s["wrong"]:
            print(f"{where:48} WRONG on {s['wrong']} layers")
    for goal in doc["goals"]:
        print(report.goal_line(goal))
        for text in goal["missed_rows"]:
            print(f"    {text}")
