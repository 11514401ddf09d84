"""Runs jobs in the sanitized build, in a process of its own: `python sanitized_run.py MODULE JOBS`.

The sanitizers' library is preloaded and ends the process at the first error, with a report on
stderr. JOBS is a JSON list of {"call", "args", "options"}; arguments {"bytes": ...} are base64. No
torch here: it takes long to load under the sanitizers.
"""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np


def run_jobs(module: Path, jobs: list[dict[str, Any]]) -> subprocess.CompletedProcess[str]:
    """The process's outcome; stdout has a line per job begun, and "all done" at the end."""
    compiler = os.environ.get("CXX", "c++")
    # The C++ library too, or exceptions find no way through the interceptors.
    libraries = [
        subprocess.run(
            [compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in ("libasan.so", "libstdc++.so.6")
    ]
    environment = {
        **os.environ,
        # Python's own allocations are not ours to judge.
        "ASAN_OPTIONS": "detect_leaks=0:handle_segv=1:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "LD_PRELOAD": " ".join(libraries),
        "PYTHONMALLOC": "malloc",
    }
    return subprocess.run(
        [sys.executable, __file__, str(module), "-"],
        input=json.dumps(jobs, default=_encode),
        env=environment,
        capture_output=True,
        text=True,
    )


def _encode(value: Any) -> dict[str, str]:
    return {"bytes": base64.b64encode(np.ascontiguousarray(value).tobytes()).decode()}


def _decode(value: Any) -> Any:
    if isinstance(value, dict) and "bytes" in value:
        return np.frombuffer(base64.b64decode(value["bytes"]), np.uint8)
    if isinstance(value, dict):
        return {name: _decode(each) for name, each in value.items()}
    return value


def _call(module: Any, job: dict[str, Any]) -> None:
    args = [_decode(a) for a in job["args"]]
    if job["call"] == "run_conv":
        algorithm, instance, problem, a, b, bias, device = args
        args = [
            algorithm,
            instance,
            module.ConvProblem(*problem),
            a,
            b,
            bias,
            module.Device(*device),
        ]
    if job["call"] == "run_pool":
        instance, problem, options, operands, device = args
        problem, options = module.PoolProblem(*problem), module.PoolOptions(*options)
        args = [instance, problem, options, operands, module.Device(*device)]
    options = {name: _decode(value) for name, value in job["options"].items()}
    if "epilogue" in options:
        options["epilogue"] = module.Epilogue(*options["epilogue"])
    getattr(module, job["call"])(*args, **options)


def main(module_path: str) -> None:
    name = Path(module_path).name.split(".")[0]
    spec = importlib.util.spec_from_file_location(name, module_path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for job in json.load(sys.stdin):
        print(job["name"], flush=True)
        _call(module, job)
    print("all done", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
