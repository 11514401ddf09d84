"""Builds the emulation: the unchanged launchers and kernels, compiled by a C++ compiler.

    python tests/emulator/build.py [variant ...]

Everything lands in build/emulator, through one ninja file; only what changed is compiled again.
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
OUT = ROOT / "build/emulator"
# The registered kernels, and the planted bugs that test the emulation.
MODULES = ("kernels", "planted")

COMMON_FLAGS = (
    # An error names the kernel by its symbol, hence default visibility; no unique symbols, because
    # several modules live in one process.
    f"-std=c++17 -g1 -fPIC -fno-gnu-unique -Wall -DFC_EMULATE -I{HERE} -I{ROOT / 'csrc'}"
    f" -I{ROOT / 'kernels/cuda'}"
)
KERNEL_FLAGS = "-x c++ -Wno-unknown-pragmas"  # .cu files; `#pragma unroll` means nothing here


@dataclass(frozen=True)
class Variant:
    """One way to compile everything; kernel_flags are for launchers and kernels only."""

    flags: str
    kernel_flags: str = ""
    link_flags: str = ""
    kernels_of: str = ""  # the variant whose compiled kernels it shares


# Loads and stores of kernel code call access_checks.cpp; no sanitizer library is linked.
CHECKED = "-fsanitize=thread,alignment --param tsan-instrument-func-entry-exit=0"
# The first error ends the process. The sanitizers' library has to be preloaded. Alignment and null
# are left to the plain variant, and addresses are checked in calls: a third of the time to compile.
SANITIZED = (
    "-fsanitize=address,bounds,shift,signed-integer-overflow,integer-divide-by-zero,bool,enum,"
    "unreachable,vla-bound -fno-sanitize-recover=undefined"
    " --param asan-instrumentation-with-call-threshold=0"
)
VARIANTS = {
    "plain": Variant("-O2", CHECKED),
    # Not optimised: that compiles four times as fast, and hides nothing.
    "sanitized": Variant(f"-O0 {SANITIZED}", link_flags=SANITIZED),
    # The switch between fibers that works on any processor.
    "ucontext": Variant("-O2 -DFC_EMULATE_UCONTEXT", kernels_of="plain"),
}


class BuildError(RuntimeError):
    """The compiler's message."""


def compiler() -> str:
    return os.environ.get("CXX", "c++")


def folder(variant: str) -> Path:
    """Where the objects of a variant are."""
    return OUT / variant


def module_name(module: str) -> str:
    return f"emulated_{module}"


def module_path(module: str, variant: str) -> Path:
    return folder(variant) / f"{module_name(module)}{sysconfig.get_config_var('EXT_SUFFIX')}"


def build(module: str = "kernels", variant: str = "plain", verbose: bool = False) -> Path:
    """Brings one module up to date and returns its path. Safe to call from several processes at
    once. Raises BuildError with the compiler's output."""
    OUT.mkdir(parents=True, exist_ok=True)
    with (OUT / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        text = ninja_text()
        ninja_file = OUT / "build.ninja"
        if not ninja_file.exists() or ninja_file.read_text() != text:
            ninja_file.write_text(text)
        target = module_path(module, variant)
        command = [ninja(), "-C", str(OUT), f"-j{jobs()}", str(target.relative_to(OUT))]
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


def core(variant: str) -> list[Path]:
    """The emulation's own objects, brought up to date: what a program of kernels is linked with."""
    build("planted", variant)
    apart = ("bindings", "torch_ops", "planted")
    objects = sorted(folder(variant).glob("tests_emulator_*.cpp.o"))
    return [p for p in objects if not any(a in p.name for a in apart)]


def kernel_sources(module: str) -> list[Path]:
    """What is compiled with the kernel flags."""
    where = {"kernels": ROOT / "csrc/cuda", "planted": HERE / "planted"}[module]
    return sorted(where.glob("*.cu"))


def host_sources(module: str) -> list[Path]:
    core = sorted(
        p
        for p in HERE.glob("*.cpp")
        if not p.name.endswith("bindings.cpp") and p.name != "torch_ops.cpp"
    )
    if module == "planted":
        return core
    registries = sorted((ROOT / "csrc/cuda").glob("*_registry.cpp"))
    return [*core, ROOT / "csrc/common/conv_problem.cpp", *registries]


def bindings_sources(module: str) -> list[Path]:
    if module == "planted":
        return [HERE / "planted/bindings.cpp"]
    return sorted(HERE.glob("*bindings.cpp"))


def ninja_text() -> str:
    import pybind11

    python = f"-isystem {pybind11.get_include()} -isystem {sysconfig.get_path('include')}"
    # The table of where the no-ops of __launch_bounds__ are: nobody reads it, and it does not
    # survive linking two files that instantiate one kernel.
    objcopy = shutil.which("objcopy")
    strip = f" && {objcopy} -R __patchable_function_entries $out" if objcopy else ""
    lines = [
        "ninja_required_version = 1.5",
        "rule cxx",
        f"  command = {compiler()} -MMD -MF $out.d {COMMON_FLAGS} $flags -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule kernel",
        f"  command = {compiler()} -MMD -MF $out.d {COMMON_FLAGS} $flags -c $in -o $out{strip}",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        f"  command = {compiler()} -shared -Wl,-Bsymbolic -o $out $in -ldl -lpthread $flags",
    ]

    def compile_edge(source: Path, folder: str, flags: str, rule: str = "cxx") -> str:
        target = f"{folder}/{str(source.relative_to(ROOT)).replace('/', '_')}.o"
        edge = f"build {target}: {rule} {source}\n  flags = {flags}"
        if edge not in lines:
            lines.append(edge)
        return target

    for module in MODULES:
        # pybind11 takes long to compile and no kernel runs in it: once for all variants.
        hidden = f"-O1 -fvisibility=hidden {python} -DFC_MODULE_NAME={module_name(module)}"
        bindings = [compile_edge(p, "common", hidden) for p in bindings_sources(module)]
        for name, variant in VARIANTS.items():
            compiled = variant.kernels_of or name
            flags = f"{VARIANTS[compiled].flags} {VARIANTS[compiled].kernel_flags}"
            kernel_flags = f"{KERNEL_FLAGS} {flags}"
            objects = [
                *bindings,
                *(compile_edge(p, name, variant.flags) for p in host_sources(module)),
                *(
                    compile_edge(p, compiled, kernel_flags, "kernel")
                    for p in kernel_sources(module)
                ),
            ]
            target = module_path(module, name).relative_to(OUT)
            lines += [
                f"build {target}: link {' '.join(objects)}",
                f"  flags = {variant.link_flags}",
            ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    for wanted in sys.argv[1:] or ("plain", "sanitized"):
        for part in MODULES:
            print(build(part, wanted, verbose=True))
