"""Tests of the device: one that hangs or dies costs no other's answer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONFTEST = f"""
import os, pathlib, sys
sys.path.insert(0, {str(ROOT / "tests" / "gpu")!r})
from journal import Journal

def pytest_configure(config):
    config.pluginmanager.register(Journal(pathlib.Path(os.environ["FASTCONV_GPU_JOURNAL"])))
"""


def started(folder: Path, tests: str, seconds: float = 3.0) -> subprocess.Popen[str]:
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "test_it.py").write_text("import os, time, pytest\n" + tests)
    words = ("-q", "-p", "no:cacheprovider", "--confcutdir", str(folder), "--rootdir", str(folder))
    return subprocess.Popen(
        [sys.executable, "-m", "bench.gpu_tests", *words, str(folder / "test_it.py")],
        cwd=ROOT,
        env={**os.environ, "FASTCONV_GPU_TEST_SECONDS": str(seconds)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def test_every_other_test_has_its_answer(tmp_path: Path) -> None:
    process = started(
        tmp_path,
        "def test_a(): pass\n"
        "def test_hangs(): time.sleep(600)\n"
        "def test_b(): assert False\n"
        "def test_dies(): os.abort()\n"
        "def test_c(): pytest.skip('no need')\n"
        "def test_leaves(): pytest.exit('the device is lost', 3)\n"
        "def test_d(): pass\n",
    )
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 1, text
    assert text.splitlines()[-1] == (
        "summary: 1 failed, 2 passed, 1 skipped,"
        " no answer: test_it.py::test_hangs, test_it.py::test_dies, test_it.py::test_leaves"
    ), text
    assert "FAILED test_it.py::test_hangs: hung; a fresh process goes on" in text
    assert "in test_hangs" in text  # where it was
    assert "FAILED test_it.py::test_dies: ended by SIGABRT" in text


def test_all_well(tmp_path: Path) -> None:
    process = started(tmp_path, "def test_a(): pass\ndef test_b(): pass\n")
    text, _ = process.communicate(timeout=120)
    assert (process.returncode, text.splitlines()[-1]) == (0, "summary: 2 passed"), text


def test_a_last_test_that_dies_is_no_success(tmp_path: Path) -> None:
    process = started(tmp_path, "def test_a(): pass\ndef test_b(): os._exit(0)\n")
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 1, text
    assert text.splitlines()[-1] == "summary: 1 passed, no answer: test_it.py::test_b"


def test_nothing_to_run_is_no_success(tmp_path: Path) -> None:
    process = started(tmp_path, "")
    text, _ = process.communicate(timeout=120)
    assert (process.returncode, text.splitlines()[-1]) == (1, "summary: no tests"), text


def test_the_end_of_its_time_is_told(tmp_path: Path) -> None:
    """As the runner of the stages ends one: all of its processes at once, of which that of the
    tests does not end."""
    mark = tmp_path / "there"
    process = started(
        tmp_path,
        "def test_a(): pass\n"
        "def test_b():\n"
        "    import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"    open({str(mark)!r}, 'w'); time.sleep(600)\n"
        "def test_c(): pass\n",
        seconds=300,
    )
    until = time.monotonic() + 100
    while not mark.exists() and time.monotonic() < until:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGTERM)
    began = time.monotonic()
    text, _ = process.communicate(timeout=60)
    assert time.monotonic() - began < 30  # its own time would be 300
    expected = "summary: 1 passed, no answer: test_it.py::test_b, 1 not run"
    assert (process.returncode, text.splitlines()[-1]) == (1, expected), text
