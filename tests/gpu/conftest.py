"""Fixtures of the device tests. Complete by itself, so that `pytest --confcutdir tests/gpu` runs
where the rest of the suite's packages (hypothesis, ...) are missing."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # cases, tolerances, conv_runner

# Deterministic mode, which poisons fresh memory, asks for this before cuBLAS starts.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import pytest
import torch
from gpu_runner import EMULATED, poisoned
from journal import Journal

SEED = 20240229


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "gpu: needs a CUDA device; deselected where there is none")
    path = os.environ.get("FASTCONV_GPU_JOURNAL")
    if path:
        config.pluginmanager.register(Journal(Path(path)), "journal")


@pytest.fixture(autouse=True, scope="session")
def _pretended() -> Iterator[None]:
    """In the emulated rehearsal the package takes CPU tensors for a GPU's."""
    if not EMULATED:
        yield
        return
    from pretend_gpu import pretend_gpu

    with pretend_gpu():
        yield


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every fresh tensor of every test here starts as NaN, workspaces as bytes of 255. float32 is
    float32: PyTorch's default for convolutions would let `auto` and PyTorch round to TF32."""
    torch.manual_seed(SEED)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    with poisoned():
        yield


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """A kernel that faults takes the context with it: stop here instead of blaming what follows."""
    if not torch.cuda.is_initialized():
        return
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        pytest.exit(f"the device is lost since {item.nodeid}: {str(error).splitlines()[0]}", 3)
