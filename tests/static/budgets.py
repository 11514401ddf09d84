"""The committed table of what every kernel may use, and the comparison with a build.

    python -m tests.static.budgets            compares; exits 1 if anything differs
    python -m tests.static.budgets --write    rewrites budgets.json from the build in place
    python -m tests.static.budgets --table    prints it by kernel

`make budgets` builds, rewrites the table and renews the kernel catalogue. Needs a build with CUDA
for sm_80 and sm_90a, cuobjdump (toolchain.find_cuobjdump) and, to write, the emulation, which knows
how the launchers launch.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from . import build, occupancy
from .build import Key, Resources
from .families import FAMILIES, family_of
from .toolchain import ARCHS

TABLE = Path(__file__).with_name("budgets.json")
# Another release of nvcc may allocate a little differently; it must still not spill.
OTHER_RELEASE_REGISTERS = 16

Table = dict[str, Any]


def read(path: Path = TABLE) -> Table:
    return json.loads(path.read_text())


def budget_of(row: dict[str, Any], arch: str) -> Resources | None:
    found = row.get(arch)
    if found is None:
        return None
    return Resources(found["registers"], found["shared"], found["stack"], found["spills"])


def compare(
    table: Table, kernels: dict[Key, Resources], archs: tuple[str, ...], release: str
) -> list[str]:
    """What of the build the table does not allow or does not know, and what it has for nothing."""
    rows = {row["kernel"]: row for row in table["kernels"]}
    spare = 0 if release == table["nvcc"] else OTHER_RELEASE_REGISTERS
    found = []
    for (kernel, arch), used in sorted(kernels.items()):
        if arch not in archs:
            continue
        budget = budget_of(rows[kernel], arch) if kernel in rows else None
        if budget is None:
            found.append(f"{kernel} ({arch}) is not in the table")
            continue
        if used.registers > budget.registers + spare:
            found.append(f"{kernel} ({arch}): {used.registers} registers, not {budget.registers}")
        if used.shared > budget.shared:
            found.append(f"{kernel} ({arch}): {used.shared} bytes shared, not {budget.shared}")
        # Whatever the table says.
        if used.stack or used.spills:
            found.append(
                f"{kernel} ({arch}): a stack of {used.stack} bytes, {used.spills} bytes spilled"
            )
    for kernel, row in rows.items():
        for arch in archs:
            if arch in row and (kernel, arch) not in kernels:
                found.append(f"{kernel} ({arch}) is in the table, but not in the build")
    return found


def make_table(kernels: dict[Key, Resources], launches: dict[str, Any], release: str) -> Table:
    """The table of a build. `launches`: kernel -> its typical launches; the one with the lowest
    occupancy is kept."""
    rows = []
    for kernel in sorted({name for name, _ in kernels}):
        row: dict[str, Any] = {"kernel": kernel}
        for arch in ARCHS:
            used = kernels.get((kernel, arch))
            if used is None:
                continue
            row[arch] = {
                "registers": used.registers,
                "shared": used.shared,
                "stack": used.stack,
                "spills": used.spills,
            }

            def resident(launch: Any, used: Resources = used, arch: str = arch) -> float:
                return occupancy.occupancy(
                    occupancy.capability_of(arch),
                    launch.threads,
                    used.registers,
                    used.shared + launch.dynamic_shared,
                )

            claimed = family_of(kernel)
            runs = claimed is None or claimed.has_code_for(arch)
            ways = launches.get(kernel, ()) if runs else ()
            if ways:
                worst = min(ways, key=lambda way: (resident(way), way.threads, way.dynamic_shared))
                row[arch]["threads"] = worst.threads
                row[arch]["dynamic_shared"] = worst.dynamic_shared
                row[arch]["occupancy"] = round(resident(worst), 4)
        rows.append(row)
    return {"nvcc": release, "kernels": rows}


def write(table: Table, path: Path = TABLE) -> None:
    """One kernel a line, so that a change shows which."""
    lines = ",\n".join("  " + json.dumps(row) for row in table["kernels"])
    path.write_text(f'{{\n"nvcc": {json.dumps(table["nvcc"])},\n"kernels": [\n{lines}\n]}}\n')


def misfits(table: Table) -> list[str]:
    """Where the table and families.FAMILIES do not fit each other."""
    found, used = [], set()
    for row in table["kernels"]:
        claimed = family_of(row["kernel"])
        if claimed is None:
            found.append(f"{row['kernel']} is in no row of families.FAMILIES")
            continue
        used.add(claimed.pattern)
        for arch in ARCHS:
            part = row.get(arch, {}).get("occupancy", 1.0)
            if part < claimed.occupancy:
                found.append(
                    f"{row['kernel']} ({arch}): occupancy {part:.0%}, not {claimed.occupancy:.0%}"
                )
    found += [f"no kernel matches {row.pattern}" for row in FAMILIES if row.pattern not in used]
    return found


def print_table(table: Table) -> None:
    for row in table["kernels"]:
        for arch in ARCHS:
            if arch in row:
                r = row[arch]
                part = f"{r['occupancy']:.0%}" if "occupancy" in r else "-"
                print(
                    f"{row['kernel']:74} {arch:7} {r['registers']:4} registers"
                    f" {r['shared'] + r.get('dynamic_shared', 0):7} shared {part:>5}"
                )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.static.budgets", description=__doc__)
    parser.add_argument("--write", action="store_true", help="rewrite the table")
    parser.add_argument("--table", action="store_true", help="print the table")
    arguments = parser.parse_args(argv)
    if arguments.table:
        print_table(read())
        return 0
    archs = build.built_archs()
    if arguments.write:
        if set(archs) != set(ARCHS):
            print(f"the build has {archs or 'no CUDA'}, the table is of {ARCHS}", file=sys.stderr)
            return 1
        # The tests' own modules (cases, emulated) are imported by their plain names.
        sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
        from .launches import typical_launches

        write(make_table(build.kernels(), typical_launches(), build.nvcc_release()))
        print(f"{len(read()['kernels'])} kernels written to {TABLE}")
    found = compare(read(), build.kernels(), archs, build.nvcc_release())
    found += misfits(read())
    print("\n".join(found) or "the build is as the table says")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
