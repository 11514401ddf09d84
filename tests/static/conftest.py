"""The checks of the build need nvcc and a build that it made; elsewhere they are deselected."""

from __future__ import annotations

import pytest
from deselection import deselect

from . import build, toolchain


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "nvcc: needs nvcc; deselected where it is not found")
    config.addinivalue_line(
        "markers", "cuda_build: needs a build with CUDA for sm_80 or sm_90a; else deselected"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    missing = set()
    if toolchain.find_nvcc() is None:
        missing |= {"nvcc", "cuda_build"}
    elif not build.built_archs():
        missing.add("cuda_build")
    deselect(config, items, missing)
