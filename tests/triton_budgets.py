"""What Triton's compiler makes of the convolutions' configurations, without a GPU.

The launchers are called on CPU tensors, but hand over what they would launch; that is compiled for
sm_80 and sm_90. `python tests/triton_budgets.py --write` renews the committed table of registers
and shared memory; tests/test_triton_conv_compiled.py holds the code to it.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton

from fastconv import cost_triton, select_triton
from fastconv._triton import conv, depthwise, norm

ROOT = Path(__file__).resolve().parent.parent
TABLE = Path(__file__).with_name("triton_budgets.json")
ARCHITECTURES = (80, 90)
# Steady state: whole blocks of channels, a border, several tiles. NHWC, but for tiles of one
# channel.
_IMAGE, _FILTER = (2, 256, 14, 14), (256, 256, 3, 3)
_DEPTHWISE_FILTER = (256, 1, 3, 3)
_MOVES = ([1, 1], [1, 1], [1, 1])


# Where 16 bits have larger steps.
_FOR_FLOAT32 = ("128x128x32_w8_s3", "64x64x32_w4_s4")


# The passes of normalisation, `config` being the layout.
NORM = "norm"
NORM_PASSES = ("stats", "fprop", "sums", "dgrad", "merge")
_NORM_DTYPES = (torch.bfloat16, torch.float32, torch.float16, torch.float64)
_FEATURES = (32, 256, 28, 28)


@dataclass(frozen=True)
class Build:
    """One kernel of the table. rounds: of float32's products."""

    arch: int
    algorithm: str
    config: str
    direction: str
    dtype: torch.dtype
    rounds: str = "ieee"

    @property
    def key(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        kind = dtype if self.rounds == "ieee" else self.rounds
        return f"sm_{self.arch} {self.algorithm}/{self.config} {self.direction} {kind}"


def _builds() -> Iterator[Build]:
    """Every configuration on its architecture once, the dtypes in turn; each direction and way of
    rounding with one of them."""
    kinds = ((torch.bfloat16, "ieee"), (torch.float16, "ieee"), (torch.float32, "tf32"))
    gemm = select_triton.IMPLICIT_GEMM
    for arch in ARCHITECTURES:
        number = 0
        for name in cost_triton.names_for(arch):
            config = cost_triton.IMPLICIT_GEMM[name]
            if config.block_k < 32:
                continue  # of three products, below
            if arch == 90 and name in _FOR_FLOAT32:
                yield Build(arch, gemm, name, "fprop", *kinds[2])
                continue
            while cost_triton.resources_refusal(config, kinds[number % 3][0], arch):
                number += 1  # of a dtype that the configuration is not for
            yield Build(arch, gemm, name, "fprop", *kinds[number % 3])
            number += 1
        large = "128x128x64_w8_s3" if arch == 90 else "128x128x32_w8_s3"
        for direction in ("dgrad", "wgrad"):
            yield Build(arch, gemm, large, direction, torch.bfloat16)
    for arch, name in (
        (90, "64x64x32_w4_s4"),
        (80, "128x64x16_w4_s4"),
        (80, "64x64x16_w4_s4"),
    ):
        yield Build(arch, gemm, name, "fprop", torch.float32, "tf32x3")
    yield Build(80, gemm, "64x64x32_w4_s4", "fprop", torch.float32, "ieee")
    for name in cost_triton.DEPTHWISE:
        yield Build(90, select_triton.DEPTHWISE, name, "fprop", torch.bfloat16)
    for direction in ("dgrad", "wgrad"):
        yield Build(80, select_triton.DEPTHWISE, "m64_c64_w4", direction, torch.float16)
        yield Build(80, select_triton.DEPTHWISE, "m512_c1_w4", direction, torch.float32)
    for name in ("m64_c64_w4", "m512_c1_w4"):
        yield Build(90, select_triton.DEPTHWISE, name, "stats", torch.bfloat16)
    for number, direction in enumerate(NORM_PASSES):
        dtypes = [_NORM_DTYPES[(number + i) % 4] for i in range(4)]
        yield Build(90, NORM, "nhwc", direction, dtypes[0])
        yield Build(80, NORM, "nhwc", direction, dtypes[1])
        if direction != "merge":  # which knows of no layout
            yield Build(90, NORM, "nchw", direction, dtypes[2])
            yield Build(80, NORM, "nchw", direction, dtypes[3])


BUILDS = tuple(_builds())


class Built(NamedTuple):
    sass: str
    registers: int
    stack: int
    shared: int

    @property
    def spills(self) -> int:
        """Loads and stores of local memory; a stack alone may be for a call."""
        return len(re.findall(r"\b(?:STL|LDL)\b", self.sass))

    @property
    def spills_in_loops(self) -> int:
        """Those between a branch backwards and where it leads."""
        code = re.findall(
            r"/\*([0-9a-f]{4,})\*/\s+(?:@!?\w+\s+)?([A-Z]\w*)[^;]*?(0x\w+)?\s*;", self.sass
        )
        lines = [(int(at, 16), name, int(to, 16) if to else 0) for at, name, to in code]
        loops = [(to, at) for at, name, to in lines if name == "BRA" and 0 < to < at]
        assert loops, "no loop was found"
        return sum(
            name in ("STL", "LDL") and any(first <= at <= last for first, last in loops)
            for at, name, _ in lines
        )

    def row(self) -> dict[str, int]:
        return {"registers": self.registers, "shared": self.shared, "spills": self.spills}


class _Driver:
    """Of a device that is not there, as far as compiling asks for one."""

    def __init__(self, arch: int) -> None:
        self.arch = arch

    def get_current_target(self) -> Any:
        return triton.backends.compiler.GPUTarget("cuda", self.arch, 32)

    def get_current_device(self) -> int:
        return -self.arch  # no real device's compiled kernels mix with these

    def get_current_stream(self, device: int) -> int:
        return 0


def _tool(*arguments: str | Path) -> str:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return subprocess.run([tool, *arguments], capture_output=True, text=True, check=True).stdout


def module_of(build: Build) -> Any:
    known = {select_triton.IMPLICIT_GEMM: conv, select_triton.DEPTHWISE: depthwise, NORM: norm}
    return known[build.algorithm]


@contextmanager
def _kept(*modules: Any) -> Iterator[list[Any]]:
    """(kernel, arguments, constants) of what the modules would launch."""
    found: list[Any] = []

    def keep(step: Any, tensors: Any) -> None:
        args = (*step.given(tensors), *step.numbers)
        found.append((step.kernel, args, step.constants))

    real = [(module, module.launch) for module in modules]
    for module in modules:
        module.launch = keep
    try:
        yield found
    finally:
        for module, launch in real:
            module.launch = launch


def _norm_launches(build: Build) -> list[Any]:
    """With all that a pass may have: SiLU, a residual before it, gradients of both."""
    kind = torch.channels_last if build.config == "nhwc" else torch.contiguous_format
    y = torch.empty(_FEATURES, dtype=build.dtype).to(memory_format=kind)
    vector = torch.empty(y.shape[1], dtype=norm.statistics_type(y.dtype))
    of_norm, end = (vector,) * 4, (4, 0.0, False)
    with _kept(norm) as found:
        if build.direction in ("stats", "merge"):
            norm.norm_act_stats(y)
        elif build.direction == "fprop":
            norm.norm_act_fprop(y, *of_norm, y, *end)
        elif build.direction == "sums":
            norm.norm_act_sums(y, y, *of_norm, y, *end)
        else:
            norm.norm_act_dgrad(y, y, *of_norm, y, vector, vector, 3.0, *end, True)
    return found


def launches(build: Build) -> list[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    """(kernel, arguments, constants) of what a call with this configuration launches."""
    module = module_of(build)
    if module is norm:
        return _norm_launches(build)
    config = select_triton.CONFIGS[build.algorithm][build.config]
    groups = 1 if module is conv else 256
    last = module is conv or config.block_c > 1
    kind = torch.channels_last if last else torch.contiguous_format
    x, w = (
        torch.empty(size, dtype=build.dtype).to(memory_format=kind)
        for size in (_IMAGE, _FILTER if groups == 1 else _DEPTHWISE_FILTER)
    )
    known: dict[str, Any] = {"config": config, "precision": build.rounds}
    with _kept(conv, depthwise) as found:
        if build.direction == "fprop":
            bias = torch.empty(w.shape[0], dtype=build.dtype)
            roomy = module is depthwise or cost_triton.with_residual(config) == config
            end = (1, 0.0, x if roomy else None, False, None, None)
            module.conv_fprop(x, w, bias, *_MOVES, groups, epilogue=end, **known)
        elif build.direction == "stats":
            module.conv_stats(x, w, None, *_MOVES, groups, **known)
        elif build.direction == "dgrad":
            module.conv_dgrad(x, w, _IMAGE, *_MOVES, groups, channels_last=last, **known)
        else:
            module.conv_wgrad(x, x, w.shape, *_MOVES, groups, channels_last=last, **known)
    return found


def compile_build(build: Build) -> Built:
    """The main kernel of a configuration, compiled."""
    prefix = "norm" if build.algorithm == NORM else "conv"
    kernel = f"{prefix}_{build.direction}_"
    if build.direction == "stats" and build.algorithm != NORM:
        kernel = "conv_fprop_"  # which takes them along
    ((name, args, constants),) = (
        row for row in launches(build) if row[0].startswith(kernel)
        and not row[0].endswith("_sum_kernel")
    )  # fmt: skip
    return compile_launch(build.arch, name, args, constants)


def compile_launch(arch: int, name: str, args: tuple[Any, ...], constants: dict[str, Any]) -> Built:
    module = norm if name.startswith("norm_") else depthwise if "depthwise" in name else conv
    args = tuple(a.dtype if isinstance(a, torch.Tensor) else a for a in args)
    with driver(arch), tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        kernel = module.kernels()[name].warmup(*args, grid=(1,), **constants)
        cubin.write(kernel.asm["cubin"])
        cubin.flush()
        used = dict(re.findall(r"(\w+):(\d+)", _tool("-res-usage", cubin.name)))
        sass = _tool("-sass", cubin.name)
    numbers = int(used["REG"]), int(used["STACK"]), int(kernel.metadata.shared)
    return Built(sass, *numbers)


@contextmanager
def driver(arch: int) -> Iterator[None]:
    """Compiles for this architecture. Results are kept in the build folder between runs: entries
    are named by a hash of all that goes into a compilation."""
    known, before = triton.runtime.driver, triton.runtime.driver._active
    known.set_active(_Driver(arch))
    with triton.knobs.cache.scope():
        triton.knobs.cache.dir = str(ROOT / "build" / "triton")
        try:
            yield
        finally:
            known._active = before


def main() -> int:
    if sys.argv[1:] != ["--write"]:
        print(__doc__)
        return 2
    rows = {build.key: compile_build(build).row() for build in BUILDS}
    facts = {"triton": triton.__version__, "kernels": rows}
    TABLE.write_text(json.dumps(facts, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
