"""What Triton's compiler makes of the pooling kernels for sm_90, without a GPU.

The launchers are called on CPU tensors, but instead of launching they hand over what they would
launch; each kernel is then compiled for exactly those arguments, in every dtype.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from fastconv import _triton
from fastconv._triton import pool

triton = pytest.importorskip("triton")
if _triton.INTERPRETED:
    # The environment asked for the interpreter, and then this process has no compiler to look at;
    # the suite runs these tests without that variable.
    pytest.skip("TRITON_INTERPRET is on: nothing is compiled here", allow_module_level=True)

ROOT = Path(__file__).resolve().parent.parent
DTYPES = _triton.DTYPES
# Over the border, so that no check can be left out; small, because code grows with the taps. An
# input is held by as many outputs as a window has taps.
WINDOW = ([2, 2], [1, 1], [1, 1])
TAPS = 4
ONES = [1, 1]
SIZE, OUT = (2, 64, 13, 13), (2, 64, 14, 14)


def calls(x: torch.Tensor) -> dict[str, tuple[Any, ...]]:
    """For every kernel a call of its launcher: (launcher, arguments)."""
    y = torch.empty(OUT, dtype=x.dtype)
    last = x.stride(1) == 1
    if last:
        y = y.to(memory_format=torch.channels_last)
    byte = torch.empty_like(y, dtype=torch.uint8)
    seed = torch.zeros(1, dtype=torch.int64)
    size = list(x.shape)
    return {
        "max_pool_fprop_kernel": ("max_pool_fprop", x, *WINDOW, ONES, False, 1),
        "sum_pool_fprop_kernel": ("sum_pool_fprop", x, *WINDOW, False, False, 0),
        "lp_pool_fprop_kernel": ("lp_pool_fprop", x, *WINDOW, False, 2.0, True),
        "sample_pool_fprop_kernel": ("sample_pool_fprop", x, seed, *WINDOW, False, 1),
        "expectation_pool_fprop_kernel": ("expectation_pool_fprop", x, *WINDOW, False),
        "max_pool_at_kernel": ("max_pool_at", x, byte, *WINDOW, ONES),
        "max_pool_dgrad_kernel": ("max_pool_dgrad", y, byte, size, *WINDOW, ONES, last),
        "sum_pool_dgrad_kernel": ("sum_pool_dgrad", y, size, *WINDOW, False, 0, last),
        "lp_pool_dgrad_kernel": ("lp_pool_dgrad", y, x, y, *WINDOW, 2.0, True),
    }


def variants(x: torch.Tensor) -> dict[str, tuple[Any, ...]]:
    """Paths that `calls` leaves out, compiled in one dtype only."""
    y, place = torch.empty(OUT), torch.empty(OUT).long()
    long = ([9, 9], [1, 1], [4, 4])
    return {
        "places": ("max_pool_fprop", x, *WINDOW, ONES, False, 2),
        "no index": ("max_pool_fprop", x, *WINDOW, [2, 2], False, 0),
        "long window": ("max_pool_fprop", x, *long, ONES, False, 1),
        "adaptive": ("sum_pool_fprop", x, [5, 5], [0, 0], [0, 0], False, True, 0),
        "divisor": ("sum_pool_fprop", x, *WINDOW, False, True, -3),
        "power": ("lp_pool_fprop", x, *WINDOW, False, 2.5, False),
        "places back": ("max_pool_dgrad", y, place, list(x.shape), *WINDOW, ONES, False),
        "long window back": ("sum_pool_dgrad", x, list(x.shape), *long, False, 0, False),
        "power back": ("lp_pool_dgrad", y, x, y, *WINDOW, 2.5, False),
        "at places": ("max_pool_at", x, place, *WINDOW, ONES),
        "dilated back": (
            "max_pool_dgrad",
            *(torch.empty(2, 64, 11, 11), torch.empty(2, 64, 11, 11).byte(), list(x.shape)),
            *([2, 2], [1, 1], [0, 0], [2, 2], False),
        ),
    }


class Hopper:
    """A driver of a device that is not there, as far as compiling asks for one."""

    def get_current_target(self) -> Any:
        return triton.backends.compiler.GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return -90  # no real device's compiled kernels mix with these

    def get_current_stream(self, device: int) -> int:
        return 0


class Built(NamedTuple):
    ptx: str
    cubin: Path
    registers: int
    stack: int
    shared: int

    def sass(self) -> list[str]:
        """The machine instructions' names. Half a second each, so only where PTX does not tell."""
        text = cuobjdump("-sass", self.cubin)
        names = re.findall(r"/\*[0-9a-f]{4}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", text)
        assert "EXIT" in names
        return names

    def wide_loads(self) -> int:
        """Loads of 16 bytes per thread."""
        return len(re.findall(r"\bld\.global\.(?:v4\.b32|v2\.b64)", self.ptx))


def cuobjdump(*arguments: str | Path) -> str:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return subprocess.run([tool, *arguments], capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Built]]:
    """build(launcher, *arguments): what the one kernel that this call launches compiles to."""
    cubin = tmp_path_factory.mktemp("triton") / "kernel.cubin"
    launched: list[Any] = []

    def compiled(launcher: str, *arguments: Any) -> Built:
        launched.clear()
        getattr(pool, launcher)(*arguments)
        ((name, _, args, constants),) = launched
        args = tuple(a.dtype if isinstance(a, torch.Tensor) else a for a in args)
        kernel = pool.kernels()[name].warmup(*args, grid=(1,), **constants)
        cubin.write_bytes(kernel.asm["cubin"])
        used = dict(re.findall(r"(\w+):(\d+)", cuobjdump("-res-usage", cubin)))
        registers, stack = int(used["REG"]), int(used["STACK"])
        return Built(kernel.asm["ptx"], cubin, registers, stack, kernel.metadata.shared)

    driver, before = triton.runtime.driver, triton.runtime.driver._active
    driver.set_active(Hopper())
    with pytest.MonkeyPatch.context() as patch, triton.knobs.cache.scope():
        patch.setattr(pool, "launch", lambda *what: launched.append(what))
        # Kept between runs: entries are named by a hash of all that goes into a compilation.
        triton.knobs.cache.dir = str(ROOT / "build" / "triton")
        yield compiled
    driver._active = before


def image(dtype: torch.dtype, channels_last: bool) -> torch.Tensor:
    x = torch.empty(SIZE, dtype=dtype)
    return x.to(memory_format=torch.channels_last) if channels_last else x


def check(built: Built) -> None:
    """No spills, no atomics, resources that let several programs share a multiprocessor."""
    assert not re.search(r"\b(atom|red)\.", built.ptx) and "st.global" in built.ptx
    # Flushed subnormal numbers would part from the CPU kernels' results.
    # (The library's exp2 of float64 looks at its argument's upper half so.)
    assert ".ftz.f32" not in built.ptx or "rcp.approx.ftz.f64" in built.ptx
    # A stack is there for spills, but also where a slow path is called.
    if built.stack > 0:
        assert not [name for name in built.sass() if name.startswith(("STL", "LDL"))]
    assert built.registers <= 128 and built.shared <= 8192


def test_every_kernel_is_in_the_table() -> None:
    assert set(calls(image(torch.float32, False))) == set(pool.kernels())


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("name", sorted(calls(image(torch.float32, False))))
def test_nhwc(build, name: str, dtype: torch.dtype) -> None:
    built = build(*calls(image(dtype, True))[name])
    check(built)
    # Each tap of each operand once, 16 bytes at a time; sampling keeps its window in registers.
    # Where an index leads, addresses are not consecutive.
    reads = {"max_pool_at_kernel": 0, "lp_pool_dgrad_kernel": 2 * TAPS + 1}
    assert built.wide_loads() == reads.get(name, TAPS)
    # Copies need no conversion, and the compiler compares maxima in float32 but selects 16 bits.
    narrow = {torch.bfloat16: r"cvt\.rn\.bf16(x2)?\.f32", torch.float16: r"cvt\.rn\.f16(x2)?\.f32"}
    if dtype in narrow and not name.startswith(("max_pool_at", "max_pool_fprop", "sample")):
        assert re.search(narrow[dtype], built.ptx)
    if dtype != torch.float64:
        assert "f64" not in built.ptx


@pytest.mark.parametrize("name", sorted(calls(image(torch.float32, False))))
def test_nchw(build, name: str) -> None:
    """Every thread stores what it computed: threads exchange nothing."""
    built = build(*calls(image(torch.float32, False))[name])
    check(built)
    assert built.shared == 0 and "shfl" not in built.ptx and built.registers <= 96


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
def test_machine_code(build, dtype: torch.dtype) -> None:
    """That what PTX says of loads and atomics is true of the instructions."""
    built = build(*calls(image(dtype, True))["max_pool_fprop_kernel"])
    names = built.sass()
    assert len([n for n in names if re.match(r"LDG\.E(\.\w+)*\.128", n)]) == TAPS
    assert not [n for n in names if n.startswith(("ATOM", "RED"))]


@pytest.mark.parametrize("which", sorted(variants(image(torch.float32, False))))
def test_other_paths(build, which: str) -> None:
    check(build(*variants(image(torch.float32, False))[which]))


def test_64_bit_offsets(build, monkeypatch) -> None:
    monkeypatch.setattr("fastconv._triton.pool_geometry._INT32", 0)
    x = image(torch.float32, True)
    chosen = [calls(x)[name] for name in ("sample_pool_fprop_kernel", "max_pool_dgrad_kernel")]
    chosen += [variants(x)[which] for which in ("places", "long window", "adaptive")]
    for call in chosen:
        built = build(*call)
        check(built)
        assert "s64" in built.ptx or "u64" in built.ptx
