"""What this installation is and what works on this machine: ``python -m fastconv.info [--json]``.

Prints versions, the instruction set in use, built CUDA architectures against the present device,
the backends with the reason why one does not work, and where results are cached.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from typing import Any

import torch

from fastconv import _library
from fastconv._version import __version__


def cpu_model() -> str:
    """The processor's name, or its architecture where the system does not tell."""
    try:
        with open("/proc/cpuinfo") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _cuda(native: Any) -> dict[str, Any]:
    from fastconv.gpu import built_architectures, covers

    archs = built_architectures()
    facts: dict[str, Any] = {
        "built": bool(native.build_cuda),
        "nvcc": native.build_cuda or None,
        "architectures": archs,
        "torch_cuda": torch.version.cuda,
        "devices": [],
        "reason": None,
    }
    if not native.build_cuda:
        facts["reason"] = "built without CUDA kernels (FASTCONV_CUDA=0, or auto found no nvcc)"
    elif torch.version.cuda is None:
        facts["reason"] = f"torch {torch.__version__} is a CPU-only build"
    elif not torch.cuda.is_available():
        facts["reason"] = "torch sees no CUDA device"
    else:
        for index in range(torch.cuda.device_count()):
            major, minor = torch.cuda.get_device_capability(index)
            facts["devices"].append(
                {
                    "name": torch.cuda.get_device_name(index),
                    "capability": f"{major}.{minor}",
                    "covered": covers(archs, major, minor),
                }
            )
        if not any(d["covered"] for d in facts["devices"]):
            facts["reason"] = f"no built architecture ({', '.join(archs)}) covers the device"
        else:
            try:
                x = torch.zeros(1, dtype=torch.int32, device="cuda")
                if int(torch.ops.fastconv.probe(x)) != 1:
                    facts["reason"] = "the probe kernel returned a wrong result"
            except RuntimeError as error:
                facts["reason"] = f"the probe kernel failed: {error}"
    return facts


def collect() -> dict[str, Any]:
    """Everything that ``python -m fastconv.info --json`` prints, as plain data."""
    native = _library.load()
    from fastconv import _triton, autotune, select, select_triton

    wanted_isa = os.environ.get("FASTCONV_CPU_ISA")
    cuda, triton = _cuda(native), _triton.status()
    isa = native.cpu_isa()
    notes = []
    if wanted_isa and wanted_isa != isa:
        notes.append(
            f"FASTCONV_CPU_ISA={wanted_isa!r} is not available here"
            f" (available: {', '.join(native.cpu_isas())}); using {isa}"
        )
    if native.build_torch.split("+")[0] != torch.__version__.split("+")[0]:
        notes.append(
            f"compiled against torch {native.build_torch}, running on {torch.__version__}"
            " (the op library uses the stable ABI, which allows that)"
        )
    return {
        "fastconv": {
            "version": __version__,
            "path": os.path.dirname(os.path.abspath(__file__)),
            "build_id": native.build_id,
            "compiler": native.build_compiler,
            "build_torch": native.build_torch,
        },
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "torch": torch.__version__,
        "cpu": {
            "model": cpu_model(),
            "instruction_set": isa,
            "available": list(native.cpu_isas()),
            "threads": torch.get_num_threads(),
        },
        "cuda": cuda,
        "triton": triton,
        "backends": {
            "cpu": {"works": True, "reason": None, "algorithms": list(native.cpu_algorithms())},
            "cuda": {
                "works": cuda["reason"] is None,
                "reason": cuda["reason"],
                "algorithms": [
                    n for n in select.names("cuda") if n != "aten" and not select_triton.is_ours(n)
                ],
            },
            "triton": {
                "works": triton["reason"] is None,
                "reason": triton["reason"],
                "algorithms": [*select_triton.ALGORITHMS, *_triton.OPERATIONS],
            },
            "aten": {"works": True, "reason": None, "algorithms": ["aten"]},
        },
        "cache": str(autotune.cache_path()),
        "notes": notes,
    }


def render(facts: dict[str, Any]) -> str:
    """The same facts as text."""
    package, cpu, cuda = facts["fastconv"], facts["cpu"], facts["cuda"]
    lines = [
        f"fastconv    {package['version']}  (build {package['build_id']}, {package['path']})",
        f"compiled    {package['compiler']}, against torch {package['build_torch']}",
        f"torch       {facts['torch']}  (Python {facts['python']}, {facts['platform']})",
        f"cpu         {cpu['model']}: {cpu['instruction_set']}"
        f" (available: {', '.join(cpu['available'])}), {cpu['threads']} threads",
    ]
    if cuda["built"]:
        lines.append(f"cuda        nvcc {cuda['nvcc']} for {', '.join(cuda['architectures'])}")
    else:
        lines.append("cuda        not built")
    for device in cuda["devices"]:
        covered = "covered" if device["covered"] else "NOT covered by this build"
        lines.append(f"device      {device['name']} (sm {device['capability']}): {covered}")
    triton = facts["triton"]
    lines.append(f"triton      {triton['version'] if triton['installed'] else 'not installed'}")
    lines.append("backends")
    for name, backend in facts["backends"].items():
        state = "works" if backend["works"] else f"off: {backend['reason']}"
        algorithms = f"  [{', '.join(backend['algorithms'])}]" if backend["works"] else ""
        lines.append(f"  {name:<9} {state}{algorithms}")
    lines.append(f"cache       {facts['cache']}")
    lines += [f"note        {note}" for note in facts["notes"]]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m fastconv.info", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args(argv)
    facts = collect()
    print(json.dumps(facts, indent=2) if arguments.json else render(facts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
