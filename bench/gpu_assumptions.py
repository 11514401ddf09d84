"""`python -m bench.gpu_assumptions [--emulated] [--json FILE]`: does the device do what the kernels
take it to do? Builds the checks of tests/gpu/assumptions and runs each of them.

A check that hangs or takes the device down costs its own answer alone: the others are run by
another process. `--emulated` builds against the emulation instead, which shows that the checks
pass where the assumptions hold. The exit code is 1 where one does not hold or could not be asked;
rates are reported and do not count.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench import gpu_machine
from bench.gpu_machine import ROOT
from bench.gpu_stages import died

SOURCES = ROOT / "tests" / "gpu" / "assumptions"
ENCODER = ROOT / "csrc" / "cuda" / "tensor_map.cu"
OUT = ROOT / "build" / "assumptions"
SECONDS_EACH = 15.0  # the first one's context takes a few
LOST_AFTER = 3  # processes that hung or died one after the other: the device is gone
SHOWN = 8  # names in a summary
HELD, NOT_APPLICABLE = "held", "not applicable"


class BuildError(RuntimeError):
    """The compiler's message."""


def sources() -> list[Path]:
    return [*sorted(SOURCES.glob("*.cu")), ENCODER]


def headers() -> list[Path]:
    """What the wrappers and the encoder of tensor maps are made of."""
    folders = ("kernels/cuda/detail", "csrc/cuda", "csrc/common")
    return [path for f in folders for path in (ROOT / f).iterdir() if path.suffix in (".h", ".cuh")]


def newest(paths: Iterable[Path]) -> float:
    return max(path.stat().st_mtime for path in paths)


def compiled(command: Sequence[str]) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        raise BuildError(f"{' '.join(command)}\n{done.stdout}")


def build(folder: Path = OUT) -> Path:
    """For the present device; files side by side, since a compiler's start takes the longest."""
    nvcc = gpu_machine.find_nvcc()
    if nvcc is None:
        raise BuildError("nvcc was not found")
    arch = gpu_machine.architecture() or "9.0a"
    number = arch.replace(".", "")
    flags = f"-std=c++17 -O2 --expt-relaxed-constexpr -I{ROOT / 'csrc'} -I{ROOT / 'kernels/cuda'}"
    flags += f" -gencode=arch=compute_{number},code=sm_{number}"
    folder.mkdir(parents=True, exist_ok=True)
    jobs = {source: folder / f"{source.stem}_{number}.o" for source in sources()}
    common = newest([*SOURCES.glob("*.h"), *headers()])
    workers = int(os.environ.get("MAX_JOBS") or len(os.sched_getaffinity(0)))
    with ThreadPoolExecutor(workers) as pool:
        commands = [
            [nvcc, *flags.split(), "-c", str(source), "-o", str(to)]
            for source, to in jobs.items()
            if not to.exists() or to.stat().st_mtime < max(common, newest([source]))
        ]
        list(pool.map(compiled, commands))
    target = folder / "assumptions"
    compiled([nvcc, *flags.split(), *map(str, jobs.values()), "-o", str(target)])
    return target


def build_emulated(folder: Path = OUT) -> Path:
    """The same sources for the CPU. Safe to call from several processes at once."""
    sys.path.insert(0, str(ROOT / "tests"))
    from emulator import build as emulator

    objects = emulator.core("plain")
    folder.mkdir(parents=True, exist_ok=True)
    target, main = folder / "assumptions_emulated", SOURCES / "main.cu"
    made_of = [*objects, *sources(), *SOURCES.glob("*.h"), *headers(), *emulator.HERE.glob("*.h")]
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if target.exists() and target.stat().st_mtime > newest(made_of):
            return target
        # As one: most of the time would be headers'.
        others = [word for p in sources() if p != main for word in ("-include", str(p))]
        flags = f"{emulator.COMMON_FLAGS} {emulator.KERNEL_FLAGS} {emulator.CHECKED} -O0".split()
        fresh, program = folder / "main.o", folder / "assumptions_fresh"
        compiled([emulator.compiler(), *flags, *others, "-c", str(main), "-o", str(fresh)])
        # The emulation's objects come first: a function of the standard library that both have is
        # taken from there, and those of the checks report their memory accesses to the emulation.
        link = [emulator.compiler(), "-rdynamic", *map(str, objects), str(fresh)]
        compiled([*link, "-o", str(program), "-ldl", "-lpthread"])
        program.replace(target)
    return target


def names_of(program: Path) -> list[dict]:
    done = subprocess.run([program, "--list"], stdout=subprocess.PIPE, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def answers(
    program: Path, seconds_each: float = SECONDS_EACH, flags: Sequence[str] = ()
) -> list[dict]:
    """The outcome of every check, in their order."""
    todo = names_of(program)
    found: list[dict] = []
    lost = 0
    while todo:
        told, reason = one_process(program, [c["name"] for c in todo], seconds_each, flags)
        found += told
        todo = todo[len(told) :]
        lost = 0 if told else lost + 1
        if not todo or (told and told[-1]["outcome"] == "failed"):
            continue
        found.append({**todo.pop(0), "outcome": "failed", "measured": reason})
        if lost >= LOST_AFTER:
            reason = f"not run: the {LOST_AFTER} before gave no answer"
            found += [{**check, "outcome": "failed", "measured": reason} for check in todo]
            break
    return found


def one_process(
    program: Path, names: Sequence[str], seconds_each: float, flags: Sequence[str]
) -> tuple[list[dict], str]:
    """What it told of these checks from the first one on, and why it told no more."""
    process = subprocess.Popen(
        [program, *flags, *names], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    lines: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        for line in process.stdout:
            lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    told: list[dict] = []
    said = ""
    until = time.monotonic() + seconds_each
    try:
        while True:
            line = lines.get(timeout=max(0.0, until - time.monotonic()))
            if line is None:
                break
            try:
                message = json.loads(line)
            except ValueError:
                said = line.strip()
                continue
            until = time.monotonic() + seconds_each
            if "outcome" in message:
                told.append(message)
    except queue.Empty:
        process.kill()
        # What a device does not give back is not waited for.
        return told, f"hangs: no answer within {seconds_each:.0f} s"
    code = process.wait()
    return told, f"{died(code)}{': ' if said else ''}{said}"


def holds(answer: dict) -> bool:
    return answer["outcome"] in (HELD, NOT_APPLICABLE)


def summary(found: Sequence[dict]) -> str:
    behaviours = [a for a in found if not a["rate"]]
    asked = [a for a in behaviours if a["outcome"] != NOT_APPLICABLE]
    bad = [a for a in asked if not holds(a)]
    off = [a for a in found if a["rate"] and not holds(a)]
    silent = [a for a in bad if a["outcome"] == "failed"]
    words = [f"{len(asked) - len(bad)} of {len(asked)} hold"]
    for label, which in (
        ("not", [a for a in bad if a not in silent]),
        ("no answer", silent),
        ("rates off", off),
    ):
        words += [f"{label}: {', '.join(a['name'] for a in which[:SHOWN])}"] if which else []
        words[-1] += f" and {len(which) - SHOWN} more" if len(which) > SHOWN else ""
    return "; ".join(words)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--emulated", action="store_true", help="against the emulation; no GPU")
    parser.add_argument("--json", type=Path, help="write the answers there")
    args = parser.parse_args()
    try:
        program = build_emulated() if args.emulated else build()
    except BuildError as error:
        print(error)
        print("summary: the checks do not compile")
        return 1
    found = answers(program)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")
    for a in found:
        mark = "" if holds(a) else "off " if a["rate"] else "FAILED "
        print(f"{mark}{a['name']:<26} {a['outcome']:<14} {a['measured']}")
    print(f"summary: {summary(found)}")
    return 0 if found and all(holds(a) or a["rate"] for a in found) else 1


if __name__ == "__main__":
    sys.exit(main())
