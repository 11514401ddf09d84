"""Which kernel instances `auto` may use on the present GPU, of CUDA C++ and of Triton.

An instance is admitted if it passed the self-test on this device, driver and build (a quick check
of that one instance runs at its first use and is remembered), or if `fastconv/vouched/*.json`, the
self-test's result file of a real run, vouches for it on this architecture and build. One that
failed is not used again, and named in one warning. What says nothing of an instance (no memory
left, a device that was lost before) is not held against it.
"""

from __future__ import annotations

import json
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import torch

from fastconv import _C, _triton, gpu
from fastconv._version import __version__
from fastconv.json_store import JsonStore

VOUCHED = Path(__file__).parent / "vouched"


def environment() -> dict[str, Any]:
    """What an outcome depends on besides the device and the instance."""
    return {
        "format": 1,
        "fastconv": __version__,
        "build": _C.build_id,
        "torch": torch.__version__,
        "triton": _triton.version(),
    }


def _valid(entry: dict[str, Any]) -> bool:
    return isinstance(entry.get("error"), str)


_store = JsonStore("selftest", lambda: environment(), _valid)
_warned: set[str] = set()


def _key(device: str, name: str) -> str:
    return f"{gpu.describe(device).identity} {name}"


@cache
def _vouched(capability: int) -> frozenset[str]:
    names: set[str] = set()
    for path in sorted(VOUCHED.glob("*.json")):
        try:
            facts = json.loads(path.read_text())
            if facts["capability"] == capability and facts["build"] == _C.build_id:
                names.update(o["instance"] for o in facts["outcomes"] if o["error"] == "")
        except (OSError, ValueError, KeyError, TypeError) as error:
            warnings.warn(f"fastconv: {path} is ignored ({error})", RuntimeWarning, stacklevel=2)
    return frozenset(names)


def error_of(device: str, name: str) -> str | None:
    """Empty: the instance passed on this device; None: nothing is known; else how it failed."""
    entry = _store.current().get(_key(device, name))
    if entry is not None:
        return entry["error"]
    return "" if name in _vouched(gpu.describe(device).capability) else None


def record(device: str, errors: dict[str, str]) -> None:
    """Keeps outcomes, by instance: empty where it passed, else how it failed."""
    if not errors:
        return
    _store.put_all({_key(device, name): {"error": error} for name, error in errors.items()})
    from fastconv import select

    select.forget()


def capturing() -> bool:
    """Whether a CUDA graph is being captured on the current stream."""
    return torch.cuda.is_current_stream_capturing()


def _quick_check(device: str, name: str) -> str | None:
    """Empty: the instance passes, which is recorded; None: that could not be found out now; else
    how it failed, recorded as well."""
    from fastconv import selftest  # it records here

    instance = selftest.instance_named(name)
    on = selftest.torch_device(device)
    with torch.no_grad():
        lost = gpu.loss(on)
        if lost:
            _warn_once(
                device,
                f"{device} is lost to this process ({lost}): no CUDA kernel can be checked on it",
            )
            return None
        outcome = selftest.check_and_probe(instance, on, selftest.QUICK)
    if outcome.inconclusive:
        return None
    record(device, {name: outcome.error})
    if outcome.device_lost:  # then PyTorch's own kernels fail next, and this says why
        _warned.add(device)
    return outcome.error


def _warn_once(what: str, text: str) -> None:
    if what not in _warned:
        _warned.add(what)
        warnings.warn(f"fastconv: {text}", RuntimeWarning, stacklevel=4)


def admit(device: str, name: str) -> bool:
    """Whether `auto` may use the instance now; checks it first if nothing is known of it.

    During CUDA graph capture nothing can be checked, and what is unknown is not used.
    """
    error = error_of(device, name)
    if error is None:
        if capturing():
            return False
        error = _quick_check(device, name)
    if error:
        identity = gpu.describe(device).identity
        _warn_once(name, f"CUDA kernel {name} failed its check on {identity}, not used: {error}")
    return error == ""


def reload() -> None:
    """Drops what is in memory; the file is read again when next needed."""
    _store.reload()
    _warned.clear()


def clear() -> None:
    """Forgets every outcome, also on disk; what is vouched for stays."""
    _store.clear()
    _warned.clear()
