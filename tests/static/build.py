"""What is in the built library: every kernel's resources and code, and what ptxas said of it."""

from __future__ import annotations

import re
import sys
import sysconfig
import tempfile
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from . import toolchain
from .toolchain import ARCHS, ROOT

LIBRARY = ROOT / "fastconv/libfastconv_ops.so"
# Of setup.py's build_ext: an object of every launcher file and, beside it, ptxas's report.
OBJECTS = ROOT / f"build/temp.{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
REBUILD = "build again: python setup.py build_ext --inplace with FASTCONV_CUDA=1"

Instruction = tuple[int, str]  # address, text


@dataclass(frozen=True)
class Resources:
    """Of one kernel on one architecture; bytes, but for the registers of a thread."""

    registers: int
    shared: int  # static
    stack: int
    spills: int


Key = tuple[str, str]  # kernel, architecture


def built_archs() -> tuple[str, ...]:
    """Architectures of the table that the build in place has machine code for."""
    from fastconv import _C

    return tuple(arch for arch in ARCHS if arch in _C.build_archs.split(","))


def nvcc_release() -> str:
    from fastconv import _C

    return _C.build_cuda


# --- what ptxas reported --------------------------------------------------------------------------


def parse_report(text: str) -> dict[Key, Resources]:
    """The kernels of one `nvcc -Xptxas -v`."""
    rows, symbol, arch, stack, spills = [], "", "", 0, 0
    for line in text.splitlines():
        if match := re.search(r"Compiling entry function '(\S+)' for '(\w+)'", line):
            symbol, arch = match.groups()
        elif match := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores", line):
            stack, spills = int(match[1]), int(match[2])
        elif symbol and (match := re.search(r"Used (\d+) registers", line)):
            shared = re.search(r"(\d+)(?:\+\d+)? bytes smem", line)
            found = Resources(int(match[1]), int(shared[1]) if shared else 0, stack, spills)
            rows.append((symbol, arch, found))
            symbol = ""
    return _by_name(rows)


def complaints_of(report: str) -> list[str]:
    """Lines that a build should not have: warnings, wgmma run one after the other, stack frames."""
    return [
        line.strip()
        for line in report.splitlines()
        if "warning" in line.lower()
        or re.search(r"\bC75\d\d\b|serializ", line)
        or re.search(r"[1-9]\d* bytes stack frame", line)
    ]


@cache
def reports() -> dict[str, str]:
    """Launcher file -> what nvcc printed when it was compiled."""
    found = {}
    for source in sorted((ROOT / "csrc/cuda").glob("*.cu")):
        report = OBJECTS / f"csrc_cuda_{source.name}.o.log"
        if not report.exists():
            raise FileNotFoundError(f"{report} is missing; {REBUILD}")
        found[source.name] = report.read_text()
    return found


# --- what the library holds -----------------------------------------------------------------------


def parse_resources(text: str) -> dict[Key, Resources]:
    """`cuobjdump -res-usage`, which tells spills not apart from the stack."""
    rows, symbol, arch = [], "", ""
    for line in text.splitlines():
        if match := re.search(r"^arch = (\w+)", line.strip()):
            arch = match[1]
        elif match := re.search(r"Function (\S+):", line):
            symbol = match[1]
        elif symbol and "REG:" in line:
            value = {key: int(number) for key, number in re.findall(r"(\w+):(\d+)", line)}
            stack = max(value["STACK"], value.get("LOCAL", 0))
            rows.append((symbol, arch, Resources(value["REG"], value["SHARED"], stack, stack)))
            symbol = ""
    return _by_name(rows)


@cache
def kernels() -> dict[Key, Resources]:
    """Every kernel of the library on every architecture of the table."""
    reported: dict[Key, Resources] = {}
    for text in reports().values():
        reported.update(parse_report(text))
    held = parse_resources(toolchain.cuobjdump("-res-usage", LIBRARY))
    missing = sorted(set(held) - set(reported))
    if missing:
        raise RuntimeError(f"ptxas's reports in {OBJECTS} lack {missing[:3]}; {REBUILD}")
    return {
        key: replace(found, spills=reported[key].spills, shared=reported[key].shared)
        for key, found in sorted(held.items())
        if key[1] in ARCHS
    }


def machine_code(arch: str, path: Path = LIBRARY) -> dict[str, list[Instruction]]:
    """Kernel -> its instructions in order, for one architecture.

    File by file with nvdisasm: `cuobjdump -sass` calls it too, but prints every encoding, which is
    three quarters of its text and a third of its time."""
    code: dict[str, list[Instruction]] = {}
    with tempfile.TemporaryDirectory() as folder:
        toolchain.run(toolchain.find_cuobjdump(), "-xelf", arch, path.resolve(), cwd=Path(folder))
        for cubin in sorted(Path(folder).glob("*.cubin")):
            for symbol, body in parse_disassembly(toolchain.nvdisasm("-c", "-ndf", cubin)).items():
                # Two launchers may have a kernel in common, of which the loader takes either.
                if code.setdefault(symbol, body) != body:
                    raise RuntimeError(f"{symbol} differs between files of {path}")
    names = toolchain.demangle_all(tuple(code))
    return {names[symbol]: body for symbol, body in code.items()}


SECTION = re.compile(r"^\t\.section\t\.text\.([^,\s]+).*$", re.MULTILINE)
# An instruction, or a label of the next one.
LINE = re.compile(r"^ +/\*([0-9a-f]{4,})\*/ +([^;]*?) *;|^([.$\w]+):$", re.MULTILINE)
TARGET = re.compile(r"`\(([^)]+)\)")


def parse_disassembly(text: str) -> dict[str, list[Instruction]]:
    """Symbol -> instructions, of `nvdisasm -c`. Where they jump to is an address again, as the
    machine has it."""
    _, *parts = SECTION.split(text)
    return {
        symbol: _instructions(body) for symbol, body in zip(parts[::2], parts[1::2], strict=True)
    }


def _instructions(text: str) -> list[Instruction]:
    found, labels, waiting = [], {}, []
    for address, instruction, label in LINE.findall(text):
        if label:
            waiting.append(label)
            continue
        at = int(address, 16)
        labels.update(dict.fromkeys(waiting, at))
        waiting.clear()
        found.append((at, instruction))

    def address_of(target: re.Match[str]) -> str:
        return hex(labels[target[1]])

    return [
        (at, TARGET.sub(address_of, instruction) if "`" in instruction else instruction)
        for at, instruction in found
    ]


def _by_name(rows: list[tuple[str, str, Resources]]) -> dict[Key, Resources]:
    names = toolchain.demangle_all(tuple(dict.fromkeys(symbol for symbol, _, _ in rows)))
    return {(names[symbol], arch): found for symbol, arch, found in rows}
