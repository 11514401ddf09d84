"""What has become of each test, in a file: whoever ends this process (a kernel that hangs, a device
that is lost, a signal) takes one test's answer along and no other's, and a process that is given
the same file goes on behind it.

A plugin of pytest, used where FASTCONV_GPU_JOURNAL names the file; `bench/gpu_tests.py` reads it.
"""

from __future__ import annotations

import faulthandler
import json
import os
from pathlib import Path
from typing import Any

SECONDS = 45.0  # of one test, unless FASTCONV_GPU_TEST_SECONDS says otherwise


def read(path: Path) -> list[dict[str, Any]]:
    """Its lines; one that a dying process has not finished does not count."""
    found = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


class Journal:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.begun = {line["begins"] for line in read(path) if "begins" in line}
        self.seconds = float(os.environ.get("FASTCONV_GPU_TEST_SECONDS") or SECONDS)
        self.outcome = ""
        # Where each thread was when a test took too long: pytest has standard error captured.
        self.trace = path.with_suffix(".trace").open("w")

    def write(self, **line: Any) -> None:
        with self.path.open("a") as out:
            out.write(json.dumps(line) + "\n")

    def pytest_collection_modifyitems(self, config: Any, items: list[Any]) -> None:
        gone = [item for item in items if item.nodeid in self.begun]
        if gone:
            config.hook.pytest_deselected(items=gone)
            items[:] = [item for item in items if item.nodeid not in self.begun]

    def pytest_collection_finish(self, session: Any) -> None:
        self.write(left=len(session.items))

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.write(begins=nodeid)
        self.outcome = "passed"
        # By a thread that needs no Python: whatever hangs may hold the interpreter.
        faulthandler.dump_traceback_later(self.seconds, exit=True, file=self.trace)

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.outcome != "passed" and self.outcome != "failed":
            self.outcome = report.outcome

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        faulthandler.cancel_dump_traceback_later()
        self.write(ends=nodeid, outcome=self.outcome)
