"""From a call of a Triton convolution to its launch: what is remembered, that what depends on it is
asked again, what it takes, and that a graph can capture it. The compiler is real; the device, and
what launches on it, stand in."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton")

from fastconv import _triton

if _triton.INTERPRETED:
    pytest.skip("TRITON_INTERPRET is on: nothing is compiled here", allow_module_level=True)

import triton
import triton_budgets

from fastconv import cost_triton, gpu, select_triton
from fastconv._triton import conv, conv_plan, depthwise
from fastconv.problem import ConvSpec

GEMM = cost_triton.IMPLICIT_GEMM["64x64x64_w4_s4"]
TILES = cost_triton.DEPTHWISE["m64_c64_w4"]
SMALL = GEMM._replace(block_m=16, block_n=16, block_k=16, warps=1, stages=1)  # quickly compiled
MOVES = ([1, 1], [1, 1], [1, 1])
# Of a launch: grid, stream and function, what is for profilers' hooks, the kernel's arguments.
_HOOKS = slice(6, 9)


class _Utils:
    """What loading a kernel asks of a driver."""

    def __init__(self) -> None:
        self.loaded = 0

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": cost_triton._SHARED[90]}

    def load_binary(self, *kernel: Any) -> tuple[Any, ...]:
        self.loaded += 1
        return object(), self.loaded, 32, 0, 1024

    def unload_module(self, module: Any) -> None:
        pass


class _StandIn(triton_budgets._Driver):
    """Compiles for sm_90; `launched` has what would have been launched."""

    def __init__(self) -> None:
        super().__init__(90)
        self.utils, self.launched = _Utils(), []
        launched = self.launched

        class Launcher:
            def __init__(self, source: Any, metadata: Any) -> None:
                pass

            def __call__(self, *args: Any) -> None:
                launched.append(args)

        self.launcher_cls = Launcher

    def get_current_device(self) -> int:
        return -190  # of its own, so that its kernels meet no other driver


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[_StandIn]:
    stand_in = _StandIn()
    known, before = triton.runtime.driver, triton.runtime.driver._active

    def forget() -> None:
        conv_plan.forget()
        depthwise.forget()
        for kernel in (*conv.kernels().values(), *depthwise.kernels().values()):
            kernel.device_caches.pop(stand_in.get_current_device(), None)

    forget()
    with triton.knobs.cache.scope():
        triton.knobs.cache.dir = str(triton_budgets.ROOT / "build" / "triton")
        known.set_active(stand_in)
        yield stand_in
        forget()
        gc.collect()  # a kernel that goes asks its driver to unload it
        known._active = before


def tensors(groups: int = 1, size: int = 14) -> tuple[Tensor, Tensor, Tensor]:
    x = torch.empty(2, 64, size, size, dtype=torch.bfloat16)
    w = torch.empty(64, 64 // groups, 3, 3, dtype=torch.bfloat16)
    return *(t.to(memory_format=torch.channels_last) for t in (x, w)), x.new_empty(64)  # type: ignore[return-value]


def calls() -> dict[str, Callable[[], Tensor]]:
    """Each launcher once; x is dy of the same size."""
    x, w, bias = tensors()
    v = tensors(64)[1]
    split = GEMM._replace(split=4)
    last = {"channels_last": True}
    return {
        "fprop": lambda: conv.conv_fprop(x, w, bias, *MOVES, 1, config=GEMM),
        "dgrad": lambda: conv.conv_dgrad(x, w, x.shape, *MOVES, 1, config=GEMM, **last),
        "wgrad": lambda: conv.conv_wgrad(x, x, w.shape, *MOVES, 1, config=split, **last),
        "depthwise fprop": lambda: depthwise.conv_fprop(x, v, bias, *MOVES, 64, config=TILES),
        "depthwise dgrad": lambda: depthwise.conv_dgrad(
            x, v, x.shape, *MOVES, 64, config=TILES, **last
        ),
        "depthwise wgrad": lambda: depthwise.conv_wgrad(
            x, x, v.shape, *MOVES, 64, config=TILES, **last
        ),
    }


def handed(launch: tuple[Any, ...]) -> list[Any]:
    """A launch as data: tensors by dtype and strides, since results are new at every call."""
    args = list(launch)
    del args[_HOOKS]
    return [(a.dtype, a.stride(), tuple(a.shape)) if isinstance(a, Tensor) else a for a in args]


def test_a_remembered_launch_is_that_of_triton(device: _StandIn, monkeypatch: Any) -> None:
    """Grid, function and every argument, constants among them; and Triton is not asked again."""
    everything = calls()
    for call in everything.values():
        call()
    first = list(device.launched)
    device.launched.clear()
    monkeypatch.setattr(triton.runtime.jit.JITFunction, "run", lambda *_, **__: 1 / 0)
    for call in everything.values():
        call()
    assert len(first) == 10 and len(device.launched) == len(first)
    for one, two in zip(first, device.launched, strict=True):
        assert handed(one) == handed(two)
        assert one[4] == two[4] and one[0] > 0


def test_other_alignments_and_sizes_are_other_kernels(device: _StandIn) -> None:
    """What a kernel was compiled for is asked at every call: of operands, vectors, residuals."""
    x, w, bias = tensors()
    store = torch.empty(x.numel() + 1, dtype=x.dtype)
    crooked = store[1:].as_strided(x.shape, x.stride())
    odd = torch.empty(65, dtype=x.dtype)[1:]

    def run(x: Tensor, bias: Tensor | None, residual: Tensor | None = None) -> int:
        device.launched.clear()
        end = (1, 0.0, residual, False, None, None)
        conv.conv_fprop(x, w, bias, *MOVES, 1, config=SMALL, epilogue=end)
        return device.launched[0][4]  # the loaded function

    straight = run(x, bias)
    assert run(x, bias) == straight
    others = [run(crooked, bias), run(x, odd), run(x, bias, x), run(x, bias, crooked)]
    assert len({straight, *others}) == 5
    assert [run(crooked, bias), run(x, odd), run(x, bias)] == [others[0], others[1], straight]
    # Sizes are numbers of the same kernel, in a plan of their own.
    assert run(tensors(size=18)[0], bias) == straight
    assert run(x, bias.float()) not in {straight, *others}
    # A launch alone, whose plan asked nothing of its tensors.
    step = conv_plan.plan_merges(3, 4, 16, 40, 64)[0]
    device.launched.clear()
    for first in (torch.empty(3, 64), torch.empty(193)[1:].view(3, 64), torch.empty(3, 64)):
        conv.launch(step, (first, torch.empty(3, 64), torch.empty(1, 64), torch.empty(1, 64)))
    one, two, three = (launch[4] for launch in device.launched)
    assert one == three != two
    device.launched.clear()
    conv.launch(step, [torch.empty(n, 64, dtype=torch.float64) for n in (3, 3, 1, 1)])
    assert device.launched[0][4] not in (one, two)


class _Ops(TorchDispatchMode):
    """Names of the operations that PyTorch is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.__name__.partition(".")[0])
        return func(*args, **(kwargs or {}))


def test_a_graph_can_capture_it(device: _StandIn) -> None:
    """After one call of warm-up: memory from PyTorch's allocator alone, nothing loaded, nothing
    read back or waited for, everything in the current stream."""
    for name, call in calls().items():
        call()
        loaded = device.utils.loaded
        device.launched.clear()
        with _Ops() as ops:
            call()
        assert set(ops.names) <= {"new_empty_strided", "new_empty", "permute", "view"}, name
        assert device.utils.loaded == loaded
        assert all(launch[3] == device.get_current_stream(0) for launch in device.launched)


def seconds(f: Callable[[], Any], times: int) -> float:
    """Of this thread alone, whatever else the machine does."""
    start = time.thread_time()
    for _ in range(times):
        f()
    return (time.thread_time() - start) / times


def test_a_remembered_launch_takes_a_fraction_of_tritons_own_way(device: _StandIn) -> None:
    """Which on its own takes longer than the whole call does, from tensors to result."""
    call = calls()["fprop"]
    found: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conv, "launch", lambda *launch: found.append(launch))
        call()
    ((step, given),) = found
    kernel = conv.kernels()[step.kernel]

    def theirs() -> None:
        kernel[(step.grid,)](*given, *step.numbers, **step.constants)

    def ours() -> None:
        conv.launch(step, given)

    rounds = [[seconds(f, 20) for f in (ours, call, theirs)] for _ in range(20)]
    launch, whole, own = (min(times) for times in zip(*rounds, strict=True))
    assert launch < 0.4 * own and whole < own, (launch, whole, own)


def test_the_first_call_of_a_problem_is_quick_once_compiled(
    device: _StandIn, monkeypatch: Any
) -> None:
    """The choice among all configurations by the model, the plan, Triton's own look-up and loading
    from its cache on disk, in a process that has seen the kernel's source before."""
    described = gpu.Gpu("Pretend H200", 90, 132, 13000)
    monkeypatch.setattr(gpu, "describe", lambda key: described)
    monkeypatch.setattr(select_triton, "machine_refusal", lambda *_: None)
    monkeypatch.setattr("fastconv.trust.error_of", lambda *_: "")
    key = device.get_current_device()

    def first(size: int) -> float:
        x, w, bias = tensors(size=size)
        kernel = conv.kernels()["conv_fprop_implicit_gemm_kernel"]
        kernel.device_caches.pop(key, None)
        start = time.thread_time()
        spec = ConvSpec(
            "fprop", "cuda:0", x.dtype, tuple(x.shape), tuple(w.shape),
            *(tuple(v) for v in MOVES), 1, True,
        )  # fmt: skip
        entries = [c for c in select_triton.candidates(spec) if c.reason is None]
        name = min(entries, key=lambda c: c.cost).name
        conv.conv_fprop(x, w, bias, *MOVES, 1, config=select_triton.config_of(name))
        return time.thread_time() - start

    first(14)  # compiled, unless it is on disk already
    assert min(first(size) for size in (14, 18, 22)) < 50e-3
