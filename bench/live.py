"""What a run shows as it goes on: a table and a bar, or lines where there is no terminal."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any, TypeVar

from bench import report

try:
    from rich.console import Console, Group
    from rich.live import Live
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.table import Table
except ImportError:  # lines of text do
    Console = None  # type: ignore[assignment, misc]

ROWS_IN_VIEW = 24  # every row is in the files
HINT = "(install rich for a live table)"

Work = TypeVar("Work")


def collect(
    work: list[Work],
    rows: list[dict],
    describe: Callable[[Work], str],
    measure: Callable[[Work], Iterable[list[dict]]],
    each: Callable[[], Any],
    stop: Callable[[], bool],
) -> int:
    """Adds the rows that `measure(item)` yields, list by list, and shows them as they come; `each`
    is called after every item. Returns how many items were left out: Ctrl-C or `stop` ends it."""
    screen = _Screen(len(work)) if Console is not None and Console().is_terminal else None
    if Console is None:
        print(HINT)
    view: deque[dict] = deque(maxlen=ROWS_IN_VIEW)
    done = 0
    try:
        with screen.display if screen else nullcontext():
            for item in work:
                if stop():
                    break
                for new in measure(item):
                    rows += new
                    view.extend(new)
                    if screen:
                        screen.show(describe(item), view)
                    else:
                        print("\n".join(_plain(row) for row in new), flush=True)
                done += 1
                if screen:
                    screen.progress.advance(screen.task)
                each()
    except KeyboardInterrupt:
        print("interrupted: what was measured is kept")
    return len(work) - done


class _Screen:
    def __init__(self, total: int) -> None:
        console = Console()
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
        )
        self.task = self.progress.add_task("layers", total=total)
        # No refresh thread: it would take a core away from what is being timed.
        self.display = Live(console=console, auto_refresh=False, transient=True)

    def show(self, what: str, rows: Iterable[dict]) -> None:
        self.progress.update(self.task, description=what)
        self.display.update(Group(_table(rows), self.progress), refresh=True)


def _table(rows: Iterable[dict]) -> Table:
    table = Table(expand=False)
    for name in ("net", "layer", "N", "direction", "layout", "provider", "ran"):
        table.add_column(name, no_wrap=True)
    for name in ("error", "ms", "p20-p80", "ratio", "of limit"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        text = report.cell(row)
        head = [row["net"], row["layer"], str(row["batch"]), row["direction"], row["layout"]]
        tail = [text[k] for k in ("ran", "error", "time", "spread", "ratio", "of_limit")]
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
                f"{where:48} against {s['against']}: geometric mean {s['geomean_ratio']:.2f}, whole"
                f" network {s['total_ratio']:.2f}, worst {s['worst_ratio']:.2f}"
                f" ({s['worst_layer']}), {s['timed']} of {s['layers']} layers"
            )
        if s["wrong"]:
            print(f"{where:48} WRONG on {s['wrong']} layers")
    timed = sum("ms" in row for row in doc["rows"])
    wrong = sum(row["status"] in ("wrong", "error") and row["ours"] for row in doc["rows"])
    print(f"summary: {timed} times, {wrong} wrong or failed")
    for goal in doc["goals"]:
        print(report.goal_line(goal))
        for text in goal["missed_rows"]:
            print(f"    {text}")
