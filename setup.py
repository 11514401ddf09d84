"""Builds fastconv: an op library free of Python (PyTorch's stable ABI) and a small pybind11 module.

Environment: FASTCONV_CUDA=auto|0|1, TORCH_CUDA_ARCH_LIST, MAX_JOBS, CUDA_HOME, CXX,
FASTCONV_WIDE_ISA=1 (adds the test instruction set that runs the 64-byte-vector paths on AVX2).
"""

import hashlib
import os
import platform
import re
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
        "-mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx2 -mfma -mf16c -mprefer-vector-width=512",
        64,
    ),
}
PORTABLE_ISAS = {"baseline": ("", 16)}
WIDE_ISA = {"wide": ("-mavx2 -mfma -mf16c", 64)}


# -O2 with the vectoriser of -O3: the same speed (loops that count are unrolled by pragmas) for two
# thirds of the time to compile.
KERNEL_FLAGS = "-O2 -ftree-vectorize -fvect-cost-model=dynamic -fno-math-errno"
# Two or more registers to a vector: what the optimiser makes of that takes it a third of the time
# of all other sets. Multiplications and additions are fused as in those, to the same bits.
WIDE_FLAGS = "-O1 -fexpensive-optimizations -fno-math-errno"
# What only hands arguments on: templates by the dozen, and no loop over elements.
HANDS_ON = {"ops.cpp": "-O1", "register.cpp": "-O1", "pool.cpp": "-O1"}


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
    """(nvcc, its release) to build with, or (None, ""); FASTCONV_CUDA decides."""
    switch = os.environ.get("FASTCONV_CUDA", "auto").strip().lower()
    if switch not in ("auto", "0", "1"):
        raise BuildError(f"FASTCONV_CUDA must be auto, 0 or 1, got {switch!r}")
    nvcc = find_nvcc()
    if switch == "0" or (switch == "auto" and (nvcc is None or torch.version.cuda is None)):
        return None, ""
    if nvcc is None:
        raise BuildError(
            "FASTCONV_CUDA=1, but nvcc was not found. Install the CUDA toolkit (12.8 or newer),"
            " put nvcc on PATH or set CUDA_HOME; or build without CUDA kernels by"
            " FASTCONV_CUDA=0."
        )
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    match = re.search(r"release (\d+)\.(\d+)", text)
    if match is None:
        raise BuildError(f"{nvcc} --version printed no release: {text.strip()!r}")
    release = f"{match[1]}.{match[2]}"
    if torch.version.cuda and torch.version.cuda.split(".")[0] != match[1]:
        raise BuildError(
            f"nvcc is CUDA {release}, torch {torch.__version__} was built for CUDA"
            f" {torch.version.cuda}: the major versions must agree. Point CUDA_HOME at a"
            " matching toolkit, or set FASTCONV_CUDA=0."
        )
    return nvcc, release


def cuda_folder(nvcc, name):
    """The toolkit's folder that holds `name` (layouts differ, and nvcc may be a wrapper)."""
    command = [nvcc, "--dryrun", "-E", "-x", "cu", os.devnull]
    dry = subprocess.run(command, capture_output=True, text=True).stderr
    top = re.search(r"^#\$ TOP=(.*)$", dry, re.MULTILINE)
    top = Path(top[1].strip() if top else Path(nvcc).resolve().parent.parent)
    target = top / "targets" / f"{platform.machine()}-linux"
    for base in (top, target):
        for folder in ("include", "lib64", "lib"):
            if (base / folder / name).exists():
                return (base / folder).resolve()
    raise BuildError(f"{name} was not found in the CUDA toolkit at {top}")


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

    def build(self, out, rule, inputs, after=(), **variables):
        inputs = " ".join(self._esc(i) for i in inputs)
        after = " ".join(["", "|", *(self._esc(i) for i in after)]) if after else ""
        self.lines.append(f"build {self._esc(out)}: {rule} {inputs}{after}")
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


def define(name, value):
    return f"'-D{name}=\"{value}\"'"


def first_line(command):
    out = subprocess.run(command, capture_output=True, text=True).stdout
    return out.splitlines()[0].strip() if out else "unknown"


def source_hash():
    """Names a build's native sources: results cached for one build are not used by another.

    Triton's are not among them: nothing is remembered of its kernels but by Triton, which names
    what it compiled by its source.
    """
    digest = hashlib.sha256()
    for folder in ("csrc", "kernels"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".cpp", ".h", ".cu", ".cuh"):
                digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


class Compilation:
    """All compile and link edges of one build; `facts` end up in the Python module."""

    def __init__(self, torch, folder):
        import pybind11
        from torch.utils.cpp_extension import include_paths

        self.cxx = os.environ.get("CXX", "c++")
        if shutil.which(self.cxx.split()[0]) is None:
            raise BuildError(
                f"no C++ compiler: {self.cxx!r} was not found. Install g++ >= 11 or clang >= 15,"
                " or set CXX."
            )
        self.folder = folder
        self.ninja = NinjaFile(folder)
        self.torch_lib = Path(torch.__file__).parent / "lib"
        self.torch_includes = " ".join(f"-isystem {quote(p)}" for p in include_paths())
        self.python_includes = " ".join(
            f"-isystem {quote(p)}" for p in (pybind11.get_include(), sysconfig.get_path("include"))
        )
        self.facts = {
            "FC_BUILD_TORCH": torch.__version__,
            "FC_BUILD_COMPILER": first_line([*self.cxx.split(), "--version"]),
            "FC_BUILD_ID": source_hash(),
            "FC_BUILD_CUDA": "",
            "FC_BUILD_ARCHS": "",
        }
        self.objects = []
        self.link_flags = ""
        x86 = platform.machine() in ("x86_64", "AMD64")
        wide = x86 and os.environ.get("FASTCONV_WIDE_ISA") == "1"
        self.isas = dict(X86_ISAS if x86 else PORTABLE_ISAS, **(WIDE_ISA if wide else {}))
        common = f"-std=c++17 -O3 -fPIC -fvisibility=hidden -Wall -I{quote(ROOT / 'csrc')}"
        common += f" -DTORCH_TARGET_VERSION={TARGET_VERSION}"
        self.ninja.rule("cxx", f"{self.cxx} -MMD -MF $out.d {common} $flags -c $in -o $out", "gcc")
        self.ninja.rule("link", f"{self.cxx} -shared $in -o $out $flags")

    def compile(self, source, flags="", suffix=""):
        name = str(source.relative_to(ROOT)).replace("/", "_")
        return self.ninja.build(self.folder / f"{name}{suffix}.o", "cxx", [source], flags=flags)

    def add_bindings(self, with_cuda):
        """First, because they take longest; nothing in them is worth optimising."""
        lists = "-DFC_WITH_CUDA" if with_cuda else ""
        self.bindings = [
            self.compile(ROOT / "csrc/bindings.cpp", f"{self.python_includes} -O0"),
            self.compile(ROOT / "csrc/cuda_lists.cpp", f"-O0 {lists}"),
        ]

    def add_cpu(self):
        sources = [*(ROOT / "csrc/common").glob("*.cpp"), *(ROOT / "csrc/cpu").glob("*.cpp")]
        for source in [*sorted(sources), ROOT / "csrc/ops.cpp"]:
            if source.name.endswith("_isa.cpp"):
                for isa, (flags, width) in self.isas.items():
                    level = WIDE_FLAGS if isa == "wide" else KERNEL_FLAGS
                    flags = f"{flags} {level} -DFC_ISA={isa} -DFC_VEC_BYTES={width}"
                    self.objects.append(self.compile(source, flags, f".{isa}"))
            else:
                flags = f"{self.torch_includes} {HANDS_ON.get(source.name, '')}"
                self.objects.append(self.compile(source, flags))

    def add_cuda(self, nvcc, release):
        gencode, names = gencode_flags()
        include, lib = cuda_folder(nvcc, "cuda_runtime.h"), cuda_folder(nvcc, "libcudart_static.a")
        self.facts.update(FC_BUILD_CUDA=release, FC_BUILD_ARCHS=",".join(names))
        self.ninja.rule(
            "nvcc",
            # -O is for the launchers, which the host's compiler is given: kernels are optimised
            # whatever it says. Compressed, they are an eighth of their size, for next to no time.
            # What ptxas says of every kernel is kept beside the object for the static checks.
            f"{quote(nvcc)} -MMD -MF $out.d -std=c++17 -O1 -lineinfo --expt-relaxed-constexpr"
            " -Xfatbin -compress-all -Xptxas -v"
            f" -ccbin {self.cxx.split()[0]} -Xcompiler -fPIC,-fvisibility=hidden"
            f" -I{quote(ROOT / 'csrc')} -I{quote(ROOT / 'kernels/cuda')} {' '.join(gencode)}"
            " -c $in -o $out 2> $out.log || { cat $out.log >&2; exit 1; };"
            " grep -i warning $out.log >&2 || true",
            "gcc",
        )
        for source in sorted((ROOT / "csrc/cuda").glob("*.cu")):
            out = self.folder / f"csrc_cuda_{source.name}.o"
            self.objects.append(self.ninja.build(out, "nvcc", [source]))
        flags = f"{self.torch_includes} -isystem {quote(include)} -DUSE_CUDA "
        flags += define("FC_BUILD_ARCHS", self.facts["FC_BUILD_ARCHS"])
        for source in sorted((ROOT / "csrc/cuda").glob("*.cpp")):
            self.objects.append(self.compile(source, flags))
        # cudart is linked statically, so that the library also loads where no CUDA runtime is.
        self.link_flags = f"-L{quote(lib)} -lcudart_static -lrt -ldl -lpthread"

    def link(self):
        """The op library, and the Python module that asks it for the catalogue."""
        ops = self.ninja.build(
            self.folder / "libfastconv_ops.so",
            "link",
            self.objects,
            flags=f"-Wl,-soname,libfastconv_ops.so -L{quote(self.torch_lib)} {self.link_flags}"
            " -Wl,--no-as-needed -ltorch -ltorch_cpu -lc10",
        )
        facts = " ".join(define(name, value) for name, value in self.facts.items())
        build_info = self.compile(ROOT / "csrc/build_info.cpp", facts)
        module = self.ninja.build(
            self.folder / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}",
            "link",
            [*self.bindings, build_info],
            after=[ops],
            flags=f"-L{quote(self.folder)} -l:libfastconv_ops.so -Wl,-rpath,'$$ORIGIN'"
            " -Wl,--allow-shlib-undefined",
        )
        return ops, module


class NinjaBuildExt(build_ext):
    """Compiles everything with one ninja run and puts two shared objects into the package."""

    def run(self):
        torch = require_torch()
        nvcc, release = cuda_requested(torch)
        compilation = Compilation(torch, (ROOT / self.object_folder()).resolve())
        compilation.add_bindings(with_cuda=bool(nvcc))
        compilation.add_cpu()
        if nvcc:
            compilation.add_cuda(nvcc, release)
        built = compilation.link()
        compilation.ninja.run(default_jobs(), self.verbose > 1)
        package = self.package_folder()
        package.mkdir(parents=True, exist_ok=True)
        for file in built:
            # Replaced, not overwritten: a running process may have the old file mapped, and another
            # may be about to load it.
            target = package / file.name
            shutil.copy2(file, target.with_suffix(".new"))
            os.replace(target.with_suffix(".new"), target)

    def object_folder(self):
        # An editable install is given a temporary folder, in which everything would be compiled
        # anew each time; it builds in place, so it shares the objects of the other in-place builds.
        if not getattr(self, "editable_mode", False):
            return self.build_temp
        name = f"temp.{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
        return Path("build") / name

    def package_folder(self):
        in_source = self.inplace or getattr(self, "editable_mode", False)
        return ROOT / "fastconv" if in_source else Path(self.build_lib) / "fastconv"

    def get_outputs(self):
        suffix = sysconfig.get_config_var("EXT_SUFFIX")
        return [str(self.package_folder() / f) for f in ("libfastconv_ops.so", f"_C{suffix}")]

    def get_output_mapping(self):
        return {}


setup(
    ext_modules=[Extension("fastconv._C", sources=[])],
    cmdclass={"build_ext": NinjaBuildExt},
)
