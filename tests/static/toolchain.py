"""nvcc, cuobjdump, nvdisasm and c++filt: where they are, and what they print."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# What the committed table is of; a build for other architectures is not compared with it.
ARCHS = ("sm_80", "sm_90a")


def find_nvcc() -> str | None:
    """As setup.py does."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if home and (Path(home) / "bin/nvcc").exists():
        return str(Path(home) / "bin/nvcc")
    default = Path("/usr/local/cuda/bin/nvcc")
    return shutil.which("nvcc") or (str(default) if default.exists() else None)


def find_cuobjdump() -> str:
    """The toolkit's, or that of NVIDIA's package, or the one that the Triton package carries. With
    nvdisasm beside it, or on PATH."""
    found = shutil.which("cuobjdump")
    beside = [Path(find_nvcc() or "nvcc").resolve().parent, Path("/usr/local/cuda/bin")]
    carried = [*_in_package("nvidia", "cu*/bin"), *_in_package("triton", "backends/nvidia/bin")]
    candidates = [Path(found)] if found else []
    candidates += [folder / "cuobjdump" for folder in (*beside, *carried)]
    for candidate in candidates:
        if candidate.exists() and (
            candidate.with_name("nvdisasm").exists() or shutil.which("nvdisasm")
        ):
            return str(candidate)
    raise FileNotFoundError(
        "no cuobjdump on PATH, beside nvcc or in a Python package:"
        " pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm"
    )


def _in_package(package: str, pattern: str) -> list[Path]:
    spec = importlib.util.find_spec(package)
    folders = (spec.submodule_search_locations or []) if spec else []
    return sorted(found for folder in folders for found in Path(folder).glob(pattern))


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """stdout; raises with the command's own message."""
    result = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, cwd=cwd
    )
    if result.returncode != 0:
        raise RuntimeError(f"{command[0]} failed:\n{result.stderr or result.stdout}")
    return result.stdout


def cuobjdump(*arguments: str | Path) -> str:
    return run(find_cuobjdump(), *arguments)


def nvdisasm(*arguments: str | Path) -> str:
    beside = Path(find_cuobjdump()).with_name("nvdisasm")
    return run(beside if beside.exists() else "nvdisasm", *arguments)


@cache
def demangle(symbol: str) -> str:
    """A kernel's readable, stable name: no return type, namespace or parameters."""
    return demangle_all((symbol,))[symbol]


@cache
def demangle_all(symbols: tuple[str, ...]) -> dict[str, str]:
    filtered = subprocess.run(
        ["c++filt", "-p"], input="\n".join(symbols), capture_output=True, text=True, check=True
    ).stdout.splitlines()
    return {s: readable(name) for s, name in zip(symbols, filtered, strict=True)}


@cache
def readable(name: str) -> str:
    """`name` as c++filt or the emulation print it, in the one spelling of the table."""
    name = name.removeprefix("void ").replace("fastconv::cuda::", "").replace("fastconv::", "")
    # Compilers differ in casts of enumerators and integers: (Direction)1, (int)3, 3u, 3ul.
    name = re.sub(r"\((?:unsigned )?(?:int|long|char|short|bool)\)", "", name)
    name = re.sub(r"(?<=\d)u?l?\b(?<!\d)", "", name)
    return re.sub(r"\s+", " ", name).replace("> >", ">>").replace("> >", ">>").strip()


def compile_cuda(source: Path, out: Path, arch: str = "sm_90a", *flags: str) -> str:
    """One file to an object, as setup.py compiles; returns what ptxas says."""
    nvcc = find_nvcc()
    assert nvcc is not None
    command = [nvcc, "-std=c++17", "-O1", "-Xptxas", "-v", "--expt-relaxed-constexpr"]
    command += [f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'kernels/cuda'}", *flags]
    command += [f"-gencode=arch={arch.replace('sm', 'compute')},code={arch}"]
    command += ["-c", str(source), "-o", str(out)]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        raise RuntimeError(result.stderr)
    return result.stderr
