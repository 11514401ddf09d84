"""Builds the emulation: the unchanged launchers and kernels, compiled by a C++ compiler.

    python tests/emulator/build.py [variant ...]

One ninja file per variant, in build/emulator/<variant>; only what changed is compiled again.
Needs a C++17 compiler, ninja and pybind11; no CUDA toolkit.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = ROOT / "tests/emulator"
KERNEL_FLAGS = "-x c++ -Wno-unknown-pragmas"  # .cu files; `#pragma unroll` means nothing here
COMMON_FLAGS = (
    # Default visibility and no unique symbols: an error names the kernel by its symbol, and several
    # variants live in one process.
    "-std=c++17 -g1 -fPIC -fno-gnu-unique -Wall -DFC_EMULATE"
)


class BuildError(RuntimeError):
    """The compiler's message."""


@dataclass(frozen=True)
class Variant:
    """One way to compile everything. kernel_flags: for launchers and kernels only."""

    name: str
    flags: str
    kernel_flags: str = ""
    link_flags: str = ""


VARIANTS = {
    # Loads and stores of kernel code call access_checks.cpp; no sanitizer library is linked.
    "plain": Variant(
        "plain",
        "-O2",
        "-fsanitize=thread,alignment --param tsan-instrument-func-entry-exit=0",
    ),
}


# What is built in each variant: the registered kernels, and the planted bugs that test the
# emulation.
MODULES = ("kernels", "planted")


def module_path(module: str, variant: str) -> Path:
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    return folder(variant) / f"{module_name(module, variant)}{suffix}"


def module_name(module: str, variant: str) -> str:
    return f"emulated_{module}_{variant}"


def folder(variant: str) -> Path:
    return ROOT / "build/emulator" / variant


def build(module: str = "kernels", variant: str = "plain", verbose: bool = False) -> Path:
    """Brings one module up to date and returns its path. Safe to call from several
    processes at once. Raises BuildError with the compiler's output."""
    out = folder(variant)
    out.mkdir(parents=True, exist_ok=True)
    with (out / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        text = ninja_text(VARIANTS[variant])
        ninja_file = out / "build.ninja"
        if not ninja_file.exists() or ninja_file.read_text() != text:
            ninja_file.write_text(text)
        target = module_path(module, variant)
        command = [ninja(), "-C", str(out), f"-j{jobs()}", target.name]
        result = subprocess.run(command, stdout=None if verbose else subprocess.PIPE, text=True)
        if result.returncode != 0:
            raise BuildError(f"building the CUDA emulation failed\n{result.stdout or ''}")
    return target


def ninja() -> str:
    found = shutil.which("ninja")
    if found:
        return found
    import ninja as package

    return os.path.join(package.BIN_DIR, "ninja")


def jobs() -> int:
    return int(os.environ.get("MAX_JOBS") or len(os.sched_getaffinity(0)))


def kernel_sources(module: str) -> list[Path]:
    """What is compiled with the kernel flags."""
    where = {"kernels": ROOT / "csrc/cuda", "planted": HERE / "planted"}[module]
    return sorted(where.glob("*.cu"))


def host_sources(module: str) -> list[Path]:
    apart = ("bindings.cpp", "torch_ops.cpp")
    core = sorted(p for p in HERE.glob("*.cpp") if p.name not in apart)
    if module == "planted":
        return core
    return [*core, ROOT / "csrc/common/conv_problem.cpp", ROOT / "csrc/cuda/conv_registry.cpp"]


def bindings_source(module: str) -> Path:
    return {"kernels": HERE / "bindings.cpp", "planted": HERE / "planted/bindings.cpp"}[module]


def ninja_text(variant: Variant) -> str:
    import pybind11

    cxx = os.environ.get("CXX", "c++")
    includes = f"-I{HERE} -I{ROOT / 'csrc'} -I{ROOT / 'kernels/cuda'}"
    python = f"-isystem {pybind11.get_include()} -isystem {sysconfig.get_path('include')}"
    flags = f"{COMMON_FLAGS} {variant.flags} {includes}"
    lines = [
        "ninja_required_version = 1.5",
        "rule cxx",
        f"  command = {cxx} -MMD -MF $out.d {flags} $flags -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        f"  command = {cxx} -shared -Wl,-Bsymbolic -o $out $in -ldl -lpthread {variant.link_flags}",
    ]
    known = set()
    for module in MODULES:
        name = module_name(module, variant.name)
        edges = [
            *((p, "") for p in host_sources(module)),
            *((p, f"{KERNEL_FLAGS} {variant.kernel_flags}") for p in kernel_sources(module)),
            (bindings_source(module), f"{python} -fvisibility=hidden -DFC_MODULE_NAME={name}"),
        ]
        objects = []
        for source, extra in edges:
            target = str(source.relative_to(ROOT)).replace("/", "_") + ".o"
            objects.append(target)
            if target not in known:
                lines += [f"build {target}: cxx {source}", f"  flags = {extra}"]
            known.add(target)
        lines.append(f"build {module_path(module, variant.name).name}: link {' '.join(objects)}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    for wanted in sys.argv[1:] or VARIANTS:
        for part in MODULES:
            print(build(part, wanted, verbose=True))
