"""Every kernel of the build within the committed table, and the table without stale rows."""

from __future__ import annotations

import copy

import pytest
from emulated import instances, planned_launches

from . import budgets, build, occupancy
from .build import Resources
from .families import family_of
from .launches import TYPICAL, typical_launches
from .toolchain import ARCHS, readable

KEY = ("kernel<float>", "sm_90a")
TABLE = {
    "nvcc": "13.0",
    "kernels": [
        {
            "kernel": "kernel<float>",
            "sm_90a": {"registers": 64, "shared": 1024, "stack": 0, "spills": 0},
        }
    ],
}


# --- the build ------------------------------------------------------------------------------------


@pytest.mark.cuda_build
def test_build_is_within_its_budgets():
    found = budgets.compare(
        budgets.read(), build.kernels(), build.built_archs(), build.nvcc_release()
    )
    assert not found, "\n".join([*found, "after a look: make budgets"])


@pytest.mark.cuda_build
def test_ptxas_had_nothing_to_say():
    found = {name: build.complaints_of(text) for name, text in build.reports().items()}
    assert not any(found.values()), {name: lines for name, lines in found.items() if lines}


# --- the table ------------------------------------------------------------------------------------


def test_nothing_in_the_table_spills():
    for row in budgets.read()["kernels"]:
        for arch in ARCHS:
            used = budgets.budget_of(row, arch)
            assert used is not None, f"{row['kernel']} was not built for {arch}"
            assert used.stack == used.spills == 0, f"{row['kernel']} ({arch})"


def test_families_fit_the_table():
    assert not budgets.misfits(budgets.read())


def test_occupancy_follows_from_the_row():
    for row in budgets.read()["kernels"]:
        for arch in ARCHS:
            r = row[arch]
            if "threads" in r:
                part = occupancy.occupancy(
                    occupancy.capability_of(arch),
                    r["threads"],
                    r["registers"],
                    r["shared"] + r["dynamic_shared"],
                )
                assert part > 0 and abs(part - r["occupancy"]) < 1e-4, f"{row['kernel']} ({arch})"


def test_table_knows_every_launch():
    """Launch plans of usual problems, without a GPU or nvcc: each names a kernel of the table, with
    no more threads' occupancy lost than the table says."""
    rows = {row["kernel"]: row for row in budgets.read()["kernels"]}
    for kernel, ways in typical_launches().items():
        assert kernel in rows, f"{kernel} is launched, but not in the table"
        for arch in filter(family_of(kernel).has_code_for, ARCHS):
            r = rows[kernel][arch]
            kept = {(way.threads, way.dynamic_shared) for way in ways}
            assert (r["threads"], r["dynamic_shared"]) in kept, (
                f"{kernel} is no longer launched as the table says: make budgets"
            )


def test_every_instance_runs_a_usual_problem():
    for instance in instances():
        assert any(not instance.refusal(case) for case in TYPICAL), str(instance)


def test_plans_name_kernels_as_the_compiler_does():
    instance = next(i for i in instances() if i.name == "fprop_bf16_nhwc_window3_s1")
    case = next(c for c in TYPICAL if not instance.refusal(c))
    (record,) = planned_launches(instance, case)
    assert readable(record.kernel) == "conv_fprop_depthwise_nhwc_kernel<__nv_bfloat16, 3, 1, false>"
    assert record.threads == 128 and record.dynamic_bytes > 0


# --- the comparison sees ... ----------------------------------------------------------------------


def check(used: dict, table: dict | None = None, release: str = "13.0") -> list[str]:
    return budgets.compare(table or TABLE, used, ("sm_90a",), release)


def test_a_fitting_kernel_passes():
    assert check({KEY: Resources(64, 1024, 0, 0)}) == []
    assert check({KEY: Resources(50, 0, 0, 0)}) == []


@pytest.mark.parametrize(
    ("used", "says"),
    [
        (Resources(65, 0, 0, 0), "65 registers, not 64"),
        (Resources(64, 1025, 0, 0), "1025 bytes shared, not 1024"),
        (Resources(64, 0, 16, 0), "a stack of 16 bytes"),
        (Resources(64, 0, 0, 8), "8 bytes spilled"),
    ],
)
def test_an_excess_is_seen(used, says):
    (found,) = check({KEY: used})
    assert says in found


def test_a_spill_that_the_table_allows_is_still_one():
    table = copy.deepcopy(TABLE)
    table["kernels"][0]["sm_90a"].update(stack=16, spills=8)
    assert len(check({KEY: Resources(64, 0, 16, 8)}, table)) == 1


def test_a_new_kernel_and_a_stale_row_are_seen():
    new = {("kernel<double>", "sm_90a"): Resources(32, 0, 0, 0)}
    assert check(new) == [
        "kernel<double> (sm_90a) is not in the table",
        "kernel<float> (sm_90a) is in the table, but not in the build",
    ]


def test_misfits_with_the_families_are_seen():
    table = budgets.read()
    assert len(budgets.misfits({**table, "kernels": [*table["kernels"], {"kernel": "new"}]})) == 1
    first, *others = table["kernels"]
    name = first["kernel"].split("<")[0]
    low = {"kernel": first["kernel"], "sm_80": {**first["sm_80"], "occupancy": 0.125}}
    (found,) = budgets.misfits({**table, "kernels": [low, *others]})
    assert name in found and "occupancy 12%, not 50%" in found
    gone = [row for row in table["kernels"] if not row["kernel"].startswith("probe_kernel")]
    assert budgets.misfits({**table, "kernels": gone}) == ["no kernel matches probe_kernel"]


def test_another_nvcc_may_take_a_few_registers_more():
    assert check({KEY: Resources(80, 0, 0, 0)}, release="12.9") == []
    assert check({KEY: Resources(81, 0, 0, 0)}, release="12.9")
    assert check({KEY: Resources(64, 0, 8, 8)}, release="12.9")


def test_what_is_written_can_be_read(tmp_path):
    path = tmp_path / "budgets.json"
    table = budgets.make_table(
        {KEY: Resources(64, 1024, 0, 0)}, {"kernel<float>": ()}, release="13.0"
    )
    budgets.write(table, path)
    assert budgets.read(path) == table == TABLE
