"""The checks of what a GPU is taken to do, against the emulation: each passes, each can fail, and
what hangs or dies costs its own answer alone."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from bench import gpu_assumptions, gpu_report

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def program() -> Path:
    return gpu_assumptions.build_emulated()


def test_every_assumption_holds_in_the_emulation(program: Path) -> None:
    found = gpu_assumptions.answers(program)
    assert len(found) > 50
    assert [a for a in found if a["outcome"] != "held"] == []
    names = [a["name"] for a in found]
    assert len(set(names)) == len(names)
    assert all(a["claim"] and a["rests"] and a["measured"] for a in found)
    assert re.fullmatch(r"\d+ of \d+ hold", gpu_assumptions.summary(found))


def test_every_check_fails_where_the_other_reading_is_taken_for_ours(program: Path) -> None:
    """And says which reading is true, where it knows several."""
    held = {a["name"]: a["measured"] for a in gpu_assumptions.answers(program)}
    found = gpu_assumptions.answers(program, flags=["--altered"])
    assert [a["name"] for a in found] == list(held)
    assert [a for a in found if a["outcome"] != "does not hold"] == []
    told = {a["name"]: a["measured"] for a in found if "expected" not in a["measured"]}
    assert len(told) > 40
    assert told == {name: f"as if: {held[name]}" for name in told}


def written(folder: Path, body: str) -> Path:
    """A program of three checks that answers as `body` says: of the names in `todo`."""
    path = folder / "program"
    checks = [{"name": n, "claim": "c", "rests": "r", "rate": n == "fast"} for n in CHECKS]
    path.write_text(
        f"#!{sys.executable}\n"
        "import json, os, sys, time\n"
        f"checks = {{c['name']: c for c in {checks!r}}}\n"
        "def say(**m): print(json.dumps(m), flush=True)\n"
        "def answer(name, outcome='held'): say(**checks[name], outcome=outcome, measured='m')\n"
        "if '--list' in sys.argv:\n"
        "    [say(**c) for c in checks.values()]\n"
        "    sys.exit()\n"
        f"for name in sys.argv[1:]:\n    say(begins=name)\n    {body}\n"
    )
    path.chmod(0o755)
    return path


CHECKS = ("first", "second", "third", "fast")


@pytest.mark.parametrize(
    ("body", "outcome", "measured"),
    [
        ("time.sleep(60) if name == 'second' else answer(name)", "failed", "hangs: no answer"),
        ("os.abort() if name == 'second' else answer(name)", "failed", "ended by SIGABRT"),
        ("answer(name, 'failed' if name == 'second' else 'held'); name == 'second' and sys.exit(3)",
         "failed", "m"),
        ("answer(name, 'does not hold' if name == 'second' else 'held')", "does not hold", "m"),
    ],
)  # fmt: skip
def test_one_bad_check_costs_no_other(tmp_path: Path, body, outcome, measured) -> None:
    found = gpu_assumptions.answers(written(tmp_path, body), seconds_each=1.0)
    assert [a["name"] for a in found] == list(CHECKS)
    outcomes = [a["outcome"] for a in found]
    assert outcomes == ["held", outcome, "held", "held"]
    assert found[1]["measured"].startswith(measured)
    label = "no answer" if outcome == "failed" else "not"
    assert gpu_assumptions.summary(found) == f"2 of 3 hold; {label}: second"
    page = "\n".join(gpu_report.assumptions_markdown(found, dry=False))
    assert f"| second: c | {outcome} |" in page and "Held: first, third." in page


def test_a_device_that_answers_nothing_is_given_up(tmp_path: Path) -> None:
    body = "time.sleep(60)"
    found = gpu_assumptions.answers(written(tmp_path, body), seconds_each=0.2)
    assert [a["outcome"] for a in found] == ["failed"] * 4
    assert [a["measured"].split(":")[0] for a in found] == ["hangs"] * 3 + ["not run"]


def test_rates_do_not_count(tmp_path: Path) -> None:
    found = gpu_assumptions.answers(
        written(tmp_path, "answer(name, 'does not hold' if name == 'fast' else 'held')")
    )
    assert gpu_assumptions.summary(found) == "3 of 3 hold; rates off: fast"
    assert [gpu_assumptions.holds(a) or a["rate"] for a in found] == [True] * 4
    json.dumps(found)
