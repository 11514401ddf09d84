"""The launchers and the package around Triton's pooling kernels: what they are called with, where
they are, and that nobody pays for Triton who does not use it."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch

import fastconv

pytest.importorskip("triton")

from fastconv import _triton
from fastconv._triton.pool_geometry import make_geometry, tile


def test_what_needs_64_bits() -> None:
    def wide(size: tuple[int, ...], kernel: int, stride: int) -> bool:
        rank = len(size) - 2
        lists = [[v] * rank for v in (kernel, stride, 0, 1)]
        return make_geometry("test", size, *lists, False).wide

    assert not wide((1, 1, 2**15, 2**15), 2, 2)
    assert wide((2, 1, 2**15, 2**15), 2, 2)
    assert wide((1, 1, 2**31), 2, 2)
    assert wide((1, 1, 100_003), 50_000, 0)  # where a window starts: i * in / out
    assert not wide((1, 1, 1003), 500, 0)


def test_tiles_cover_and_shrink() -> None:
    for inner, itemsize in product((1, 2, 3, 64, 100, 5000), (2, 4, 8)):
        sizes = []
        for rows in (1, 1000, 10**6):
            block_m, block_c, warps = tile(rows, inner, itemsize)
            sizes.append(block_m * block_c)
            per_thread = block_m * block_c / (32 * warps)
            assert per_thread == (2 if inner == 1 else 16 // itemsize)
        assert sizes == sorted(sizes)


def test_every_bare_op_has_a_launcher_with_its_arguments() -> None:
    """But unpooling, which scatters in an order that a gather would have to search for."""
    from fastconv._triton import pool as launchers

    schemas = {
        name.split("::")[1]: torch.ops.fastconv.__getattr__(name.split("::")[1]).default._schema
        for name in torch._C._dispatch_get_registrations_for_dispatch_key("CPU")
        # `.packed` and the like are other ways to call the same op.
        if name.startswith("fastconv::") and "_pool" in name and "." not in name
    }
    bare = {n: s for n, s in schemas.items() if n.endswith(("_fprop", "_dgrad", "_at"))}
    bare.pop("max_unpool_fprop", None)
    assert len(bare) == 9
    for name, schema in bare.items():
        parameters = list(inspect.signature(getattr(launchers, name)).parameters)
        assert parameters == [a.name for a in schema.arguments], name


# The package.


def test_link_is_relative_and_inside_the_repository() -> None:
    link = Path(fastconv.__file__).parent / "_triton"
    if not link.is_symlink():
        assert (link / "pool.py").is_file()  # installed
        return
    assert os.readlink(link) == "../kernels/triton_src"


_USER = """
import json, sys, fastconv, torch
from fastconv import _triton
from fastconv._triton import pool
facts = {"early": "triton" in sys.modules, "info": fastconv.info.collect()["backends"]["triton"]}
facts["reason"] = _triton.applicable(torch.device("cpu"), torch.float32)
x = torch.arange(16.0).view(1, 1, 4, 4)
y, index = pool.max_pool_fprop(x, [2, 2], [2, 2], [0, 0], [1, 1], False, 2)
print(json.dumps({**facts, "y": y.tolist(), "index": index.tolist()}))
"""


def test_as_a_user() -> None:
    """In a process of its own: nothing imports Triton unasked; the environment decides."""
    done = subprocess.run(
        [sys.executable, "-c", _USER],
        capture_output=True,
        text=True,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=Path(fastconv.__file__).parent.parent,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    facts = json.loads(done.stdout.splitlines()[-1])
    assert facts["early"] is False and facts["reason"] is None and facts["info"]["works"]
    assert facts["y"] == [[[[5, 7], [13, 15]]]] and facts["index"] == [[[[5, 7], [13, 15]]]]


def test_reasons(monkeypatch) -> None:
    cpu = torch.device("cpu")
    reason = _triton.applicable.__wrapped__
    monkeypatch.setattr(_triton, "INTERPRETED", True)
    assert reason(cpu, torch.float32) is None
    assert reason(cpu, torch.int32) == "the Triton kernels have no int32"
    monkeypatch.setattr(_triton, "INTERPRETED", False)
    assert "not on cpu" in reason(cpu, torch.float32)
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        assert "no CUDA device" in _triton.status()["reason"]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert "7.5 is below 8.0" in reason(torch.device("cuda", 0), torch.float32)
    for found, refused in (
        ("2.1.0", True), ("3.5.1", True), ("3.6.0", False), ("3.10.0+git1", False),
        ("4.0", False), ("unknown", False),
    ):  # fmt: skip
        monkeypatch.setattr(_triton, "version", lambda found=found: found)
        text = f"Triton {found} is installed, the kernels need 3.6 or later"
        assert (reason(cpu, torch.float32) == text) is refused
        assert (_triton.status()["reason"] == text) is refused
    monkeypatch.setattr(_triton, "version", lambda: None)
    assert reason(cpu, torch.float32) == "Triton is not installed"
    assert _triton.status()["reason"] == "Triton is not installed"
