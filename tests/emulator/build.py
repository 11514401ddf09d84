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
    """One way to compile everything."""

    name: str
    flags: str
    link_flags: str = ""


VARIANTS = {
    "plain": Variant("plain", "-O2"),
}


def module_path(variant: str) -> Path:
    return folder(variant) / f"{module_name(variant)}{sysconfig.get_config_var('EXT_SUFFIX')}"


def module_name(variant: str) -> str:
    return f"fastconv_emulated_{variant}"


def folder(variant: str) -> Path:
    return ROOT / "build/emulator" / variant


def build(variant: str = "plain", verbose: bool = False) -> Path:
    """Brings one variant up to date and returns the module's path. Safe to call from several
    processes at once. Raises BuildError with the compiler's output."""
    out = folder(variant)
    out.mkdir(parents=True, exist_ok=True)
    with (out / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        text = ninja_text(VARIANTS[variant])
        ninja_file = out / "build.ninja"
        if not ninja_file.exists() or ninja_file.read_text() != text:
            ninja_file.write_text(text)
        command = [ninja(), "-C", str(out), f"-j{jobs()}"]
        result = subprocess.run(command, stdout=None if verbose else subprocess.PIPE, text=True)
        if result.returncode != 0:
            raise BuildError(f"building the CUDA emulation failed\n{result.stdout or ''}")
    return module_path(variant)


def ninja() -> str:
    found = shutil.which("ninja")
    if found:
        return found
    import ninja as package

    return os.path.join(package.BIN_DIR, "ninja")


def jobs() -> int:
    return int(os.environ.get("MAX_JOBS") or len(os.sched_getaffinity(0)))


def sources() -> list[tuple[Path, str]]:
    """(source, flags)"""
    import pybind11

    python = f"-isystem {pybind11.get_include()} -isystem {sysconfig.get_path('include')}"
    emulator = [(p, "") for p in sorted(HERE.glob("*.cpp")) if p.name != "bindings.cpp"]
    kernels = [(p, KERNEL_FLAGS) for p in sorted((ROOT / "csrc/cuda").glob("*.cu"))]
    return [
        *emulator,
        (ROOT / "csrc/common/conv_problem.cpp", ""),
        (ROOT / "csrc/cuda/conv_registry.cpp", ""),
        *kernels,
        (HERE / "bindings.cpp", python),
    ]


def ninja_text(variant: Variant) -> str:
    cxx = os.environ.get("CXX", "c++")
    includes = f"-I{HERE} -I{ROOT / 'csrc'} -I{ROOT / 'kernels/cuda'}"
    flags = f"{COMMON_FLAGS} -DFC_MODULE_NAME={module_name(variant.name)} {variant.flags}"
    lines = [
        "ninja_required_version = 1.5",
        "rule cxx",
        f"  command = {cxx} -MMD -MF $out.d {flags} {includes} $flags -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        f"  command = {cxx} -shared -Wl,-Bsymbolic -o $out $in -ldl -lpthread {variant.link_flags}",
    ]
    objects = []
    for source, extra in sources():
        target = str(source.relative_to(ROOT)).replace("/", "_") + ".o"
        objects.append(target)
        lines += [f"build {target}: cxx {source}", f"  flags = {extra}"]
    lines += [f"build {module_path(variant.name).name}: link {' '.join(objects)}", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    for wanted in sys.argv[1:] or VARIANTS:
        print(build(wanted, verbose=True))
