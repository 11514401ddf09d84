"""Builds fastconv: an op library free of Python (PyTorch's stable ABI) and a small pybind11 module.

Environment: FASTCONV_CUDA=auto|0|1, TORCH_CUDA_ARCH_LIST, MAX_JOBS, CUDA_HOME, CXX,
FASTCONV_WIDE_ISA=1 (adds the test instruction set that runs the 64-byte-vector paths on AVX2).
"""

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
MIN_TORCH = (2, 11)
TARGET_VERSION = "0x020b000000000000"  # stable ABI of 2.11
DEFAULT_ARCHS = "8.0;9.0a+PTX"
# (folder of compile flags, vector bytes); see csrc/cpu/isa.h
X86_ISAS = {
    "baseline": ("", 16),
    "avx2": ("-mavx2 -mfma -mf16c", 32),
    "avx512": (
        "-mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx2 -mfma -mf16c"
        " -mprefer-vector-width=512",
        64,
    ),
}
WIDE_ISA = {"wide": ("-mavx2 -mfma -mf16c", 64)}


class BuildError(SystemExit):
    def __init__(self, text):
        super().__init__(f"\nfastconv: {text}\n")


def require_torch():
    try:
        import torch
    except ImportError as error:
        raise BuildError(
            "PyTorch is needed to build and was not found in the build environment. Install"
            " torch >= 2.11 first, then run pip with --no-build-isolation (pip otherwise builds"
            " in an empty environment)."
        ) from error
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if version < MIN_TORCH:
        raise BuildError(
            f"PyTorch {torch.__version__} is too old: the op library uses the stable ABI of"
            " 2.11. Upgrade torch to 2.11 or newer."
        )
    return torch


def find_nvcc():
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if home and (Path(home) / "bin" / "nvcc").exists():
        return str(Path(home) / "bin" / "nvcc")
    found = shutil.which("nvcc")
    if found is None and Path("/usr/local/cuda/bin/nvcc").exists():
        found = "/usr/local/cuda/bin/nvcc"
    return found


def cuda_requested(torch):
    """The nvcc to build with, or None; FASTCONV_CUDA decides."""
    switch = os.environ.get("FASTCONV_CUDA", "auto").strip().lower()
    if switch not in ("auto", "0", "1"):
        raise BuildError(f"FASTCONV_CUDA must be auto, 0 or 1, got {switch!r}")
    nvcc = find_nvcc()
    if switch == "0" or (switch == "auto" and (nvcc is None or torch.version.cuda is None)):
        return None
    if nvcc is None:
        raise BuildError(
            "FASTCONV_CUDA=1, but nvcc was not found. Install the CUDA toolkit (12.8 or newer),"
            " put nvcc on PATH or set CUDA_HOME; or build without CUDA kernels by"
            " FASTCONV_CUDA=0."
        )
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    release = next((w for w in text.replace(",", " ").split() if w.startswith("V1")), "V0")[1:]
    if torch.version.cuda and release.split(".")[0] != torch.version.cuda.split(".")[0]:
        raise BuildError(
            f"nvcc is CUDA {release}, torch {torch.__version__} was built for CUDA"
            f" {torch.version.cuda}: the major versions must agree. Point CUDA_HOME at a"
            " matching toolkit, or set FASTCONV_CUDA=0."
        )
    return nvcc


def gencode_flags():
    """-gencode flags and the list of architectures, from TORCH_CUDA_ARCH_LIST."""
    flags, names = [], []
    wanted = os.environ.get("TORCH_CUDA_ARCH_LIST", DEFAULT_ARCHS)
    for entry in wanted.replace(";", " ").split():
        ptx = entry.endswith("+PTX")
        arch = entry.removesuffix("+PTX").replace(".", "")
        if not arch.rstrip("af").isdigit():
            raise BuildError(f"TORCH_CUDA_ARCH_LIST: cannot read {entry!r} (want e.g. 9.0a+PTX)")
        flags.append(f"-gencode=arch=compute_{arch},code=sm_{arch}")
        names.append(f"sm_{arch}")
        if ptx:
            flags.append(f"-gencode=arch=compute_{arch},code=compute_{arch}")
            names.append(f"compute_{arch}")
    return flags, names


def default_jobs():
    """MAX_JOBS, else cores, held to one job per 1.5 GiB of free memory."""
    if os.environ.get("MAX_JOBS"):
        return max(1, int(os.environ["MAX_JOBS"]))
    jobs = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        jobs = min(jobs, max(1, int(free / 1.5 / 2**30)))
    except (ValueError, OSError):
        pass
    return max(1, jobs or 1)


class NinjaFile:
    """Collects compile edges and writes build.ninja."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.lines = ["ninja_required_version = 1.5", f"builddir = {self._esc(folder)}"]

    @staticmethod
    def _esc(path):
        return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")

    def rule(self, name, command, deps=None):
        self.lines += ["", f"rule {name}", f"  command = {command}", f"  description = {name} $out"]
        if deps:
            self.lines += ["  depfile = $out.d", f"  deps = {deps}"]

    def build(self, out, rule, inputs, **variables):
        inputs = " ".join(self._esc(i) for i in inputs)
        self.lines.append(f"build {self._esc(out)}: {rule} {inputs}")
        self.lines += [f"  {key} = {value}" for key, value in variables.items()]
        return out

    def run(self, jobs, verbose):
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "build.ninja").write_text("\n".join(self.lines) + "\n")
        command = [ninja_executable(), "-C", str(self.folder), f"-j{jobs}"]
        if verbose:
            command.append("-v")
        if subprocess.run(command).returncode != 0:
            raise BuildError("the build failed; the compiler's message is above.")


def ninja_executable():
    found = shutil.which("ninja")
    if found:
        return found
    try:
        import ninja
    except ImportError as error:
        raise BuildError("ninja was not found; pip install ninja.") from error
    return os.path.join(ninja.BIN_DIR, "ninja")


def quote(path):
    return f"'{path}'" if " " in str(path) else str(path)


class NinjaBuildExt(build_ext):
    """Compiles everything with one ninja run and puts two shared objects into the package."""

    def run(self):
        torch = require_torch()
        import pybind11
        from torch.utils.cpp_extension import include_paths

        cxx = os.environ.get("CXX", "c++")
        if shutil.which(cxx.split()[0]) is None:
            raise BuildError(
                f"no C++ compiler: {cxx!r} was not found. Install g++ >= 11 or clang >= 15, or"
                " set CXX."
            )
        nvcc = cuda_requested(torch)
        folder = (ROOT / self.build_temp).resolve()
        ninja = NinjaFile(folder)
        x86 = platform.machine() in ("x86_64", "AMD64")
        wide = x86 and os.environ.get("FASTCONV_WIDE_ISA") == "1"
        isas = dict(X86_ISAS if x86 else {"baseline": ("", 16)}, **(WIDE_ISA if wide else {}))

        torch_lib = Path(torch.__file__).parent / "lib"
        torch_includes = " ".join(f"-isystem {quote(p)}" for p in include_paths())
        common = f"-std=c++17 -O3 -fPIC -fvisibility=hidden -Wall -I{quote(ROOT / 'csrc')}"
        common += f" -DTORCH_TARGET_VERSION={TARGET_VERSION}"
        if wide:
            common += " -DFC_BUILD_WIDE_ISA"
        ninja.rule("cxx", f"{cxx} -MMD -MF $out.d {common} $flags -c $in -o $out", "gcc")
        ninja.rule("link", f"{cxx} -shared $in -o $out $flags")

        objects = []

        def compile_cxx(source, flags="", suffix=""):
            out = folder / (str(source.relative_to(ROOT)).replace("/", "_") + suffix + ".o")
            return ninja.build(out, "cxx", [source], flags=flags)

        for source in sorted([*(ROOT / "csrc/common").glob("*.cpp"), *(ROOT / "csrc/cpu").glob("*.cpp")]):
            if source.name.endswith("_isa.cpp"):
                for isa, (flags, width) in isas.items():
                    flags = f"{flags} -DFC_ISA={isa} -DFC_VEC_BYTES={width} -fno-math-errno"
                    objects.append(compile_cxx(source, flags, "." + isa))
            else:
                objects.append(compile_cxx(source, torch_includes))
        objects.append(compile_cxx(ROOT / "csrc/ops.cpp", torch_includes))

        cuda_facts, link_cuda = ("", ""), ""
        if nvcc:
            gencode, names = gencode_flags()
            cuda_home = Path(nvcc).resolve().parent.parent
            nvcc_flags = (
                f"-std=c++17 -O3 -lineinfo --expt-relaxed-constexpr -Xcompiler -fPIC"
                f" -I{quote(ROOT / 'csrc')} -I{quote(ROOT / 'kernels/cuda')} {' '.join(gencode)}"
            )
            ninja.rule("nvcc", f"{quote(nvcc)} -MMD -MF $out.d {nvcc_flags} -c $in -o $out", "gcc")
            for source in sorted((ROOT / "csrc/cuda").glob("*.cu")):
                objects.append(ninja.build(folder / f"cuda_{source.name}.o", "nvcc", [source]))
            cuda_includes, cuda_lib = cuda_paths(nvcc, cuda_home)
            for source in sorted((ROOT / "csrc/cuda").glob("*.cpp")):
                flags = f"{torch_includes} -isystem {quote(cuda_includes)} -DUSE_CUDA"
                objects.append(compile_cxx(source, flags))
            # cudart is linked statically, so that the library also loads where no CUDA runtime is.
            link_cuda = f"-L{quote(cuda_lib)} -lcudart_static -lrt -ldl -lpthread"
            cuda_facts = (nvcc_release(nvcc), ",".join(names))

        ops = folder / "libfastconv_ops.so"
        ninja.build(
            ops,
            "link",
            objects,
            flags=f"-Wl,-soname,libfastconv_ops.so -L{quote(torch_lib)} {link_cuda}"
            " -Wl,--no-as-needed -ltorch -ltorch_cpu -lc10",
        )
        facts = (
            f'-DFC_BUILD_TORCH=\\"{torch.__version__}\\" -DFC_BUILD_CUDA=\\"{cuda_facts[0]}\\"'
            f' -DFC_BUILD_ARCHS=\\"{cuda_facts[1]}\\"'
        )
        python_flags = (
            f"-isystem {quote(pybind11.get_include())}"
            f" -isystem {quote(sysconfig.get_path('include'))} {facts}"
        )
        bindings = compile_cxx(ROOT / "csrc/bindings.cpp", python_flags)
        module = folder / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
        # The module asks the op library for the catalogue: one registry, in one place.
        ninja.lines.append(
            f"build {NinjaFile._esc(module)}: link {NinjaFile._esc(bindings)} | {NinjaFile._esc(ops)}"
        )
        ninja.lines.append(
            f"  flags = -L{quote(folder)} -l:libfastconv_ops.so -Wl,-rpath,'$$ORIGIN'"
            " -Wl,--allow-shlib-undefined"
        )
        ninja.run(default_jobs(), self.verbose > 1)

        package = ROOT / "fastconv" if self.inplace else Path(self.build_lib) / "fastconv"
        package.mkdir(parents=True, exist_ok=True)
        for built in (ops, module):
            # Replace rather than overwrite: a process may have the old file mapped.
            target = package / built.name
            target.unlink(missing_ok=True)
            shutil.copy2(built, target)

    def get_outputs(self):
        package = Path(self.build_lib) / "fastconv"
        suffix = sysconfig.get_config_var("EXT_SUFFIX")
        return [str(package / "libfastconv_ops.so"), str(package / f"_C{suffix}")]


def cuda_paths(nvcc, home):
    """Include and library folders, asked from nvcc itself (wrappers and split installs exist)."""
    dry = subprocess.run(
        [nvcc, "--dryrun", "-E", "-x", "cu", os.devnull], capture_output=True, text=True
    ).stderr
    include, lib = home / "include", home / "lib64"
    for line in dry.splitlines():
        if line.startswith("#$ TOP="):
            top = Path(line.split("=", 1)[1].strip())
            include, lib = top / "include", top / "lib64"
            target = top / "targets" / f"{platform.machine()}-linux"
            if not include.exists():
                include = target / "include"
            if not lib.exists():
                lib = target / "lib"
    return include, lib


def nvcc_release(nvcc):
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    return next((w[1:] for w in text.replace(",", " ").split() if w.startswith("V1")), "unknown")


setup(
    ext_modules=[Extension("fastconv._C", sources=[])],
    cmdclass={"build_ext": NinjaBuildExt},
)
