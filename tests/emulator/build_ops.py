"""Builds the emulated kernels once more as a torch op library (torch_ops.cpp): the objects of the
plain variant, and the package's own op layer over them.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
from pathlib import Path

import torch
from torch.utils.cpp_extension import include_paths

from emulator import build

STABLE_ABI = "-DTORCH_TARGET_VERSION=0x020b000000000000"  # as setup.py


def library_path() -> Path:
    return build.folder("plain") / "libfastconv_emulated_ops.so"


def build_ops() -> Path:
    """Brings the library up to date and returns its path. Raises build.BuildError."""
    module = build.build("kernels", "plain")
    folder, library = build.folder("plain"), library_path()
    sources = [build.HERE / "torch_ops.cpp", *(build.ROOT / "csrc").rglob("*.h"), module]
    with (folder / "ops.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        newest = max(path.stat().st_mtime for path in sources)
        if library.exists() and library.stat().st_mtime > newest:
            return library
        cxx = os.environ.get("CXX", "c++")
        includes = [build.HERE, build.ROOT / "csrc", build.ROOT / "kernels/cuda"]
        objects = [
            str(folder / (str(source.relative_to(build.ROOT)).replace("/", "_") + ".o"))
            for source in (*build.host_sources("kernels"), *build.kernel_sources("kernels"))
        ]
        target = library.with_suffix(f".{os.getpid()}")
        _run(
            [
                cxx,
                *build.COMMON_FLAGS.split(),
                "-O1",
                STABLE_ABI,
                *(f"-I{path}" for path in includes),
                *(f"-isystem{path}" for path in include_paths()),
                "-shared",
                "-Wl,-Bsymbolic",
                str(build.HERE / "torch_ops.cpp"),
                *objects,
                f"-L{Path(torch.__file__).parent / 'lib'}",
                *["-ltorch", "-ltorch_cpu", "-lc10", "-ldl", "-lpthread", "-o"],
                str(target),
            ]
        )
        target.replace(library)
    return library


def _run(command: list[str]) -> None:
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if result.returncode != 0:
        raise build.BuildError(f"building the emulated ops failed\n{result.stdout}")
