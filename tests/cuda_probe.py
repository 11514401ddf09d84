"""Compiles tests/cuda_probe.cu against the emulation and loads it."""

from __future__ import annotations

import ctypes
import fcntl
import os
import subprocess
from functools import cache

from emulator import build

PATTERNS = ("tests/cuda_probe.cu", "tests/emulator/*.h", "kernels/cuda/detail/*")


@cache
def library() -> ctypes.CDLL:
    """The probe, compiled again when something that it is made of is newer.

    Raises:
        CalledProcessError: the compiler's messages are on standard error.
    """
    objects = build.core("plain")
    folder, variant = build.folder("plain"), build.VARIANTS["plain"]
    target, fresh = folder / "cuda_probe.so", folder / "cuda_probe.new"
    probe = folder / "cuda_probe.o"
    compiler = os.environ.get("CXX", "c++")
    with (folder / "cuda_probe.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        sources = [p for pattern in PATTERNS for p in build.ROOT.glob(pattern)]
        if older(probe, sources):
            flags = (
                f"{build.COMMON_FLAGS} {variant.flags} {build.KERNEL_FLAGS} {variant.kernel_flags}"
            )
            includes = [f"-I{build.ROOT / d}" for d in ("tests/emulator", "csrc", "kernels/cuda")]
            command = [compiler, *flags.split(), *includes, "-c", sources[0], "-o", probe]
            subprocess.run(command, check=True)
        if older(target, [probe, *objects]):
            link = [compiler, "-shared", "-Wl,-Bsymbolic", "-o", fresh, probe, *objects, "-ldl"]
            subprocess.run(link, check=True)
            os.replace(fresh, target)
    lib = ctypes.CDLL(str(target))
    for name in ("gemm_instance", "run_gemm"):
        getattr(lib, name).restype = ctypes.c_char_p
    return lib


def older(target: os.PathLike[str], sources: list) -> bool:
    if not os.path.exists(target):
        return True
    return os.path.getmtime(target) < max(os.path.getmtime(p) for p in sources)
