"""Measures algorithms on the caller's own problems and remembers the winners."""

from __future__ import annotations

import contextlib
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastconv import _C, autotune_cache, gpu, select, select_cuda, select_triton, trust
from fastconv.ops import conv
from fastconv.ops.conv_run import run_dgrad, run_fprop, run_wgrad
from fastconv.problem import ConvSpec

ROUNDS = 5
SAMPLE = 200e-6  # seconds; a shorter call is repeated within a sample, against the timer's noise
HOPELESS = 4.0  # a candidate this many times slower than the best in its first runs is dropped

_lock = threading.RLock()
_depth = 0


def _runner(spec: ConvSpec, name: str, tensors: tuple[Any, ...]) -> Callable[[], Tensor]:
    geometry = (spec.stride, spec.padding, spec.dilation, spec.groups)
    if select_triton.is_ours(name):
        name = select_triton.at_precision(spec, name, None)
    if spec.direction == "fprop":
        return lambda: run_fprop(*tensors, *geometry, name)
    if spec.direction == "dgrad":
        size, run = spec.input_size, run_dgrad
    else:
        size, run = spec.weight_size, run_wgrad
    return lambda: run(*tensors, size, *geometry, spec.channels_last, name)


def _device_seconds(run: Callable[[], Tensor], calls: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(calls):
        run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e-3 / calls


def _host_seconds(run: Callable[[], Tensor], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        run()
    return (time.perf_counter() - start) / calls


def measure(spec: ConvSpec, tensors: tuple[Any, ...], rounds: int = ROUNDS) -> dict[str, float]:
    """Median seconds of every applicable candidate, `aten` included, interleaved round by round.

    On a CUDA device by events on the current stream, and only of instances that pass their check.
    """
    on_gpu = gpu.is_cuda(spec.device)
    _seconds = _device_seconds if on_gpu else _host_seconds
    runs = {
        c.name: _runner(spec, c.name, tensors)
        for c in select.candidates(spec)
        if c.reason is None
        and not (on_gpu and c.name != select.ATEN and not select_cuda.admitted(spec, c.name))
    }
    with torch.no_grad():
        first = {}
        for name, run in runs.items():
            run()  # allocations, code and weights in cache
            first[name] = _seconds(run, 1)
        best = min(first.values())
        runs = {name: run for name, run in runs.items() if first[name] <= HOPELESS * best}
        samples: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(rounds):
            for name, run in runs.items():
                calls = max(1, min(50, int(SAMPLE / first[name])))
                samples[name].append(_seconds(run, calls))
    return {**first, **{name: statistics.median(times) for name, times in samples.items()}}


def _measure_and_record(spec: ConvSpec, tensors: tuple[Any, ...]) -> str | None:
    """The hook of `select.choose`: None where these tensors cannot be measured."""
    plain = all(
        t is None
        or (
            type(t) in (Tensor, torch.nn.Parameter)
            and not torch._C._functorch.is_functorch_wrapped_tensor(t)
        )
        for t in tensors
    )
    if not plain or conv.tracing() or spec.empty:
        return None
    if gpu.is_cuda(spec.device) and trust.capturing():
        return None  # timing needs to wait for the device, which a capture forbids
    tensors = tuple(None if t is None else t.detach() for t in tensors)
    seconds = measure(spec, tensors)
    return autotune_cache.record(spec, torch.get_num_threads(), _C.cpu_isa(), seconds)


class autotune(contextlib.ContextDecorator):
    """Context manager: inside, each new problem is measured on its first call.

    Every applicable algorithm of a direction, PyTorch's own included, runs a few times on the real
    tensors; the median decides and is remembered, also in later processes, and is used by
    `algo="auto"` inside and outside the context. The gradients are measured when they are first
    computed. Without `with`: `tuner = fastconv.autotune(); tuner.enable(); ...; tuner.disable()`.

    Process-wide; may be nested. A corrupt cache file is ignored with a warning; where none can be
    written, results stay in memory.
    """

    def __init__(self) -> None:
        self._active = 0

    def enable(self) -> autotune:
        """Starts measuring; returns self."""
        global _depth
        with _lock:
            _depth += 1
            self._active += 1
            select.measure = _measure_and_record
            select.forget()  # what was decided by estimate is to be measured
        return self

    def disable(self) -> None:
        """Stops measuring (when every enabled tuner has stopped). What was measured stays."""
        global _depth
        with _lock:
            if self._active == 0:
                return
            self._active -= 1
            _depth -= 1
            if _depth == 0:
                select.measure = None
                select.forget()

    __enter__ = enable

    def __exit__(self, *error: object) -> None:
        self.disable()

    @staticmethod
    def cache_path() -> Path:
        """The JSON file that measured winners are kept in."""
        return autotune_cache.cache_path()

    @staticmethod
    def clear() -> None:
        """Forgets every measurement, also on disk."""
        autotune_cache.clear()
