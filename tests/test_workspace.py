"""Each algorithm takes from the allocator what it declares as workspace, nothing else, stays inside
it, and declares a bounded amount."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cases import DIRECTIONS, DTYPES, ConvCase, conv_case
from conv_runner import ALGORITHMS, native_dtype, native_problem, refusal

from fastconv import _C

HERE = Path(__file__).parent
THREADS = 2
# The op's own lists, handles and strings, and the allocator's rounding.
SMALL_CHANGE = 16 * 1024

Row = dict[str, object]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    """What `memory_cases.py` measured, in a process of its own."""
    library = tmp_path_factory.mktemp("probe") / "malloc_probe.so"
    compiler = os.environ.get("CC") or shutil.which("cc") or "gcc"
    subprocess.run(
        [
            *(*compiler.split(), "-O1", "-shared", "-fPIC", "-o", str(library)),
            *(str(HERE / "malloc_probe.c"), "-ldl", "-lpthread"),
        ],
        check=True,
    )
    paths = [str(HERE.parent), str(HERE), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "LD_PRELOAD": str(library), "PYTHONPATH": os.pathsep.join(paths)}
    run = subprocess.run(
        [sys.executable, str(HERE / "memory_cases.py"), str(THREADS)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    return [json.loads(line) for line in run.stdout.splitlines()]


def rows_of(measured: list[Row], algo: str, direction: str) -> list[Row]:
    rows = [r for r in measured if (r["algo"], r["direction"]) == (algo, direction)]
    assert len(rows) > 15, f"only {len(rows)} measurements"
    return rows


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("algo", ALGORITHMS)
def test_extra_memory_is_the_declared_workspace(
    measured: list[Row], algo: str, direction: str
) -> None:
    for row in rows_of(measured, algo, direction):
        assert 0 <= row["extra"] - row["declared"] <= SMALL_CHANGE, row
        assert row["kept"] <= SMALL_CHANGE, row


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("algo", ALGORITHMS)
def test_nothing_is_written_past_workspace_and_output(
    measured: list[Row], algo: str, direction: str
) -> None:
    for row in rows_of(measured, algo, direction):
        assert row["overruns"] == 0, row


# Sizes for which a whole im2col matrix takes gigabytes.
HUGE_CASES: tuple[ConvCase, ...] = (
    conv_case("vgg_1", (256, 64, 224, 224), (64, 64, 3, 3), padding=1),
    conv_case("vgg_5", (256, 512, 14, 14), (512, 512, 3, 3), padding=1),
    conv_case("strided", (256, 128, 56, 56), (256, 128, 3, 3), stride=2, padding=1),
    conv_case("stem", (256, 3, 224, 224), (64, 3, 7, 7), stride=2, padding=3),
    conv_case("pointwise", (256, 256, 56, 56), (64, 256, 1, 1)),
    conv_case("depthwise", (256, 144, 56, 56), (144, 1, 3, 3), padding=1, groups=144),
    conv_case("grouped", (256, 256, 56, 56), (256, 8, 3, 3), padding=1, groups=32),
    conv_case("audio", (64, 128, 160_000), (128, 128, 9), padding=4),
    conv_case("video", (16, 64, 16, 112, 112), (64, 64, 3, 3, 3), padding=1),
)


@pytest.mark.parametrize("case", HUGE_CASES, ids=lambda c: c.id)
@pytest.mark.parametrize("algo", ALGORITHMS)
def test_workspace_is_bounded(algo: str, case: ConvCase) -> None:
    """Tens of megabytes beyond a few copies of the weights, whatever the batch."""
    weights = torch.Size(case.weight_size).numel()
    for direction in DIRECTIONS:
        for dtype in DTYPES:
            if refusal(algo, case, direction, dtype):
                continue
            for threads in (1, 2, 16):
                declared = _C.cpu_workspace(
                    algo,
                    native_problem(case),
                    native_dtype(dtype),
                    getattr(_C.Direction, direction),
                    threads,
                )
                accumulator = 8 if dtype == torch.float64 else 4
                bound = (32 + 4 * threads) * 2**20 + 8 * weights * accumulator
                assert declared <= bound, f"{direction} {dtype} {threads} threads: {declared:,}"
