"""Loads the compiled parts: the op library (no Python in it) and the geometry module ``_C``.

Nothing here compiles, downloads, or needs a GPU, nvcc or Triton.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import torch

_OPS = Path(__file__).parent / "libfastconv_ops.so"
_REBUILD = (
    "Build it with `pip install --no-build-isolation .` (or `python setup.py build_ext --inplace`"
    " in a source tree), in the environment and with the PyTorch that will use it."
)


def load() -> ModuleType:
    """Registers ``torch.ops.fastconv`` and returns the ``_C`` module.

    Raises:
        ImportError: the library is missing, or was built for another Python or an incompatible
            PyTorch; the text says which and how to rebuild.
    """
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if version < (2, 11):
        raise ImportError(f"fastconv needs torch >= 2.11, this is torch {torch.__version__}")
    if not _OPS.exists():
        raise ImportError(f"fastconv's compiled library {_OPS} is missing. {_REBUILD}")
    try:
        torch.ops.load_library(str(_OPS))
    except OSError as error:
        raise ImportError(
            f"fastconv's compiled library does not load with torch {torch.__version__}: {error}."
            f" {_REBUILD}"
        ) from error
    try:
        return importlib.import_module("fastconv._C")
    except ImportError as error:
        raise ImportError(
            f"fastconv's geometry module does not load in this Python: {error}. {_REBUILD}"
        ) from error
