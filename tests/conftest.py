"""Fixtures, marks and device selection.

Tests marked `gpu` or `cuda_kernels` are deselected where there is no CUDA device, or no CUDA kernel
in the build.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Iterator

# Before PyTorch starts its threads: idle ones sleep instead of spinning. On a busy machine a tiny
# parallel region otherwise waits a time slice for a thread that is not running (one test: 46 s
# instead of 0.1 s). Not for benchmarks, which have the machine to themselves and time the wake-up.
if not any("benchmarks" in argument for argument in sys.argv):
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import hypothesis
import pytest
import torch
from deselection import deselect

from fastconv import _C

hypothesis.settings.register_profile(
    "fastconv",
    deadline=None,  # the first call of a kernel starts threads
    derandomize=True,
    database=None,
    max_examples=60,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("fastconv")

SEED = 20240229


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "gpu: needs a CUDA device; deselected where there is none")
    config.addinivalue_line(
        "markers", "cuda_kernels: needs a build with CUDA kernels; deselected without"
    )
    config.addinivalue_line("markers", "slow: takes more than a few seconds; runs by default")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Half a million objects that are never garbage: looking through them again and again takes a
    third of the time to collect the tests, and each gc.collect() of a test a third of a second."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    missing = [] if torch.cuda.is_available() else ["gpu"]
    if not _C.build_cuda:
        missing.append("cuda_kernels")
    deselect(config, items, missing)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(SEED)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Each device that a device-independent test should run on."""
    return torch.device(request.param)


@pytest.fixture
def set_threads() -> Iterator[Callable[[int], None]]:
    """`torch.set_num_threads`, undone after the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def poisoned_empty() -> Iterator[None]:
    """Fresh tensors and workspaces start as NaN (bytes as 255), so an element that a kernel reads
    or leaves unwritten shows."""
    was_on = torch.are_deterministic_algorithms_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(was_on)
    torch.utils.deterministic.fill_uninitialized_memory = fill


def _isas() -> list[str]:
    from fastconv import _C

    return _C.cpu_isas()


@pytest.fixture(params=_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set that this build and this CPU have, in use during the test."""
    from fastconv import _C

    before = _C.cpu_isa()
    _C.set_cpu_isa(request.param)
    yield request.param
    _C.set_cpu_isa(before)
