"""What a GPU result depends on: device, driver, versions, clocks, revision. Prints JSON.

Everything is optional: what cannot be found out is null, and what cannot be imported is named.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CLOCKS = (
    "clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,temperature.gpu,power.draw,power.limit,"
    "clocks_event_reasons.active"
)
NEEDED = ("torch", "numpy", "pybind11", "ninja", "pytest")
USEFUL = ("triton", "hypothesis", "pytest_benchmark", "psutil", "rich")


def output_of(*command: str) -> str | None:
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def revision() -> str:
    """The commit, '-dirty' when tracked files differ from it; FASTCONV_REVISION, else 'unknown',
    where the tree came without its history."""
    head = output_of("git", "rev-parse", "HEAD")
    if head is None:
        return os.environ.get("FASTCONV_REVISION", "unknown")
    return head + ("-dirty" if output_of("git", "status", "--porcelain", "-uno") else "")


def nvidia_smi(fields: str) -> dict[str, str] | None:
    """One row of `nvidia-smi --query-gpu`, first device."""
    text = output_of("nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader", "--id=0")
    if not text:
        return None
    return dict(
        zip(fields.split(","), map(str.strip, text.split("\n")[0].split(",")), strict=False)
    )


def architecture() -> str | None:
    """What to build for: the present device alone, which halves the time. 9.0 -> 9.0a."""
    found = (nvidia_smi("compute_cap") or {}).get("compute_cap", "")
    if not found.replace(".", "").isdigit():
        return None
    return f"{found}a" if int(found.split(".")[0]) >= 9 else found


def find_nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
    beside = Path(home) / "bin" / "nvcc"
    return shutil.which("nvcc") or (str(beside) if beside.exists() else None)


def find_sanitizer() -> str | None:
    """compute-sanitizer, on PATH or in the toolkit's folder."""
    nvcc = find_nvcc()
    places = [Path(nvcc).resolve().parent] if nvcc else []
    places += [Path("/usr/local/cuda/bin"), Path("/usr/local/cuda/compute-sanitizer")]
    beside = (str(place / "compute-sanitizer") for place in places)
    found = shutil.which("compute-sanitizer")
    return found or next((path for path in beside if os.access(path, os.X_OK)), None)


def nvcc_release() -> str | None:
    nvcc = find_nvcc()
    match = (
        re.search(r"release ([\d.]+), V([\d.]+)", output_of(nvcc, "--version") or "")
        if nvcc
        else None
    )
    return match[2] if match else None


def _torch_facts() -> dict:
    import torch

    facts = {
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "device": None,
    }
    if torch.cuda.is_available():
        p = torch.cuda.get_device_properties(0)
        facts |= {
            "device": p.name,
            "capability": [p.major, p.minor],
            "sm_count": p.multi_processor_count,
            "memory_gib": round(p.total_memory / 2**30, 1),
            "l2_mib": round(getattr(p, "L2_cache_size", 0) / 2**20, 1),
        }
    return facts


def _fastconv_facts() -> dict:
    sys.path.insert(0, str(ROOT))
    import fastconv
    from fastconv import _C

    return {
        "fastconv": fastconv.__version__,
        "build_id": _C.build_id,
        "build_archs": _C.build_archs,
        "cuda_algorithms": list(_C.cuda_algorithms()),
        "cuda_instances": len(_C.cuda_instances()),
        "cuda_pool_instances": len(_C.cuda_pool_instances()),
    }


def describe() -> dict:
    """Everything that a reader needs to judge or repeat a result."""
    facts = {
        "revision": revision(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "cores": len(os.sched_getaffinity(0)),
        "nvcc": nvcc_release(),
        "compute_sanitizer": find_sanitizer(),
        "driver": (nvidia_smi("driver_version") or {}).get("driver_version"),
        "clocks": nvidia_smi(CLOCKS),
        "missing": [],
        "problems": [],
    }
    for name in (*NEEDED, *USEFUL):
        if importlib.util.find_spec(name) is None and shutil.which(name) is None:
            facts["missing"].append(name)
    try:
        facts["triton"] = importlib.import_module("importlib.metadata").version("triton")
    except Exception:
        facts["triton"] = None
    for part in (_torch_facts, _fastconv_facts):
        try:
            facts |= part()
        except Exception as error:  # a broken installation is what this is here to report
            facts["problems"].append(f"{type(error).__name__}: {error}")
    return facts


def slug(facts: dict) -> str:
    """A folder name: 'nvidia-h200'."""
    name = facts.get("device") or "no-device"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def main(argv: list[str]) -> int:
    facts = describe()
    Path(argv[0]).write_text(json.dumps(facts, indent=2) + "\n")
    missing = [name for name in facts["missing"] if name in NEEDED]
    said = [facts.get("device") or "no CUDA device", f"torch {facts.get('torch')}"]
    if "cuda_instances" in facts:
        counts = facts["cuda_instances"], facts["cuda_pool_instances"]
        said.append("{} convolution and {} pooling kernel instances".format(*counts))
    said += [f"missing: {', '.join(facts['missing'])}"] if facts["missing"] else []
    print("\n".join(facts["problems"]))
    print("summary:", ", ".join([*said, *facts["problems"]])[:300])
    return 1 if missing or facts["problems"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
