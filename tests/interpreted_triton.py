"""The Triton launchers with their kernels run by Triton's interpreter, on CPU tensors.

TRITON_INTERPRET is read when a kernel is defined. So that one process can both run the kernels and
compile them, this makes a second copy of the package `fastconv._triton`, defined while it is on.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import triton
from triton.runtime import interpreter

import fastconv

NAME = "interpreted_triton_package"
FOLDER = Path(fastconv.__file__).parent / "_triton"


def load(name: str = "pool") -> ModuleType:
    """A module of the copy that has launchers."""
    if NAME not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            NAME, FOLDER / "__init__.py", submodule_search_locations=[str(FOLDER)]
        )
        assert spec is not None and spec.loader is not None
        package = importlib.util.module_from_spec(spec)
        sys.modules[NAME] = package
        spec.loader.exec_module(package)
        package.INTERPRETED = True
    module = importlib.import_module(f"{NAME}.{name}")
    with triton.knobs.runtime.scope():
        triton.knobs.runtime.interpret = True
        kernels = module.kernels()
    assert all(isinstance(k, interpreter.InterpretedFunction) for k in kernels.values())
    _index_by_any_numpy()
    _patch_once()
    return module


def _index_by_any_numpy() -> None:
    """As Triton 3.9 does itself. In 3.6 a scalar, which the interpreter keeps as an array of one
    element, becomes an index by int(array), and from NumPy 2.4 on that is a TypeError: no loop over
    a number of the kernel's arguments would run."""
    patch = getattr(interpreter, "_patch_lang_tensor", None)
    if patch is None or getattr(patch, "index", False):
        return

    def indexed(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.squeeze()))

    indexed.index = True  # type: ignore[attr-defined]
    interpreter._patch_lang_tensor = indexed


def _patch_once() -> None:
    """Keeps the interpreter from looking through the language again at each call of a function
    within a kernel, which is a fifth of its time."""
    patch = getattr(interpreter, "_patch_lang", None)
    scope = getattr(interpreter, "_LangPatchScope", None)
    if patch is None or scope is None or getattr(patch, "once", False):
        return

    def once(fn: Any) -> Any:
        inside = not triton.language.core.is_builtin(triton.language.load)
        return scope() if inside else patch(fn)

    once.once = True  # type: ignore[attr-defined]
    interpreter._patch_lang = once


@contextmanager
def everywhere(patch: pytest.MonkeyPatch) -> Iterator[None]:
    """As in a process that was started with TRITON_INTERPRET=1: the package's own launchers run the
    interpreter's kernels, on CPU tensors, where a Triton algorithm is named."""
    from fastconv import _triton, select
    from fastconv._triton import conv, depthwise, norm, pool

    patch.setattr(_triton, "INTERPRETED", True)
    for module in (conv, depthwise, norm, pool):
        patch.setattr(module, "kernels", load(module.__name__.rpartition(".")[2]).kernels)
    patch.setattr(conv, "INTERPRETED", True)
    _triton.applicable.cache_clear()
    select.forget()
    try:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            yield
    finally:
        _triton.applicable.cache_clear()
        select.forget()


def quietly(f: Any, *args: Any) -> Any:
    """f(*args) without NumPy's warnings: lanes beyond the end compute on zeros, as on a GPU."""
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return f(*args)
