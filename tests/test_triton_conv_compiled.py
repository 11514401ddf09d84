"""What Triton's compiler makes of every committed configuration for sm_80 and sm_90, without a GPU:
registers, shared memory and spills as in tests/triton_budgets.json, none of them in a loop, and the
instructions that each configuration is for."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from fastconv import _triton

if _triton.INTERPRETED:
    # The environment asked for the interpreter, and then this process has no compiler to look at;
    # the suite runs these tests without that variable.
    pytest.skip("TRITON_INTERPRET is on: nothing is compiled here", allow_module_level=True)

import triton
import triton_budgets
from triton_budgets import BUILDS, TABLE, Build, Built, compile_build

from fastconv import cost_triton, select_triton
from fastconv._triton import conv

FACTS = json.loads(TABLE.read_text())
SAME_COMPILER = FACTS["triton"] == triton.__version__
# Other compilers may need somewhat more registers (Triton 3.6 takes 40 more where 3.9 stores one
# value away before the loop), and shared memory for what warps of a reduction exchange (3.6 up to
# 3 KB): nothing beside the tiles of products, of which no more stages fit with or without it.
SLACK, SHARED_SLACK = (0, 0) if SAME_COMPILER else (40, 3072)
# One value waits in local memory while the loop runs: it is stored before it and loaded behind.
SPILLING = {"sm_80 triton_implicit_gemm/64x64x32_w4_s4 fprop tf32": 3}
# Of sm_90, a warpgroup's products; of sm_80, a warp's.
PRODUCTS = {90: "HGMMA", 80: "HMMA"}


def names(built: Built) -> set[str]:
    return set(re.findall(r"\b([A-Z][A-Z0-9_]{2,})\b", built.sass))


def judge(build: Build, built: Built, row: dict[str, int]) -> None:
    assert built.registers <= row["registers"] + SLACK, (built.row(), row)
    assert built.shared <= row["shared"] + SHARED_SLACK, (built.row(), row)
    assert built.spills <= SPILLING.get(build.key, 0)
    if built.spills:
        assert built.spills_in_loops == 0
    found = names(built)
    assert "EXIT" in found and not found & {"ATOM", "ATOMG", "RED"}
    if build.algorithm == triton_budgets.NORM:
        assert not found & {"HMMA", "HGMMA"}
        # What is as large as y comes and goes by 16 bytes of a thread.
        reads, writes = {"stats": (1, 0), "fprop": (2, 1), "sums": (3, 0), "dgrad": (3, 2),
                         "merge": (0, 0)}[build.direction]  # fmt: skip
        wide = [
            len(re.findall(rf"{name}\.E(?:\.\w+)*?\.128", built.sass)) for name in ("LDG", "STG")
        ]
        assert wide[0] >= reads and wide[1] >= writes
        assert not re.search(r"\b(LDG|STG)\S*U16", built.sass)
        return
    if build.algorithm == select_triton.DEPTHWISE:
        assert not found & {"HMMA", "HGMMA"} and "FFMA" in found
        wide = len(re.findall(r"LDG\.E\.128", built.sass))
        config = select_triton.CONFIGS[build.algorithm][build.config]
        assert (wide > 0) == (config.block_c > 1)
        return
    if build.rounds == "ieee" and build.dtype == torch.float32:
        assert not found & {"HMMA", "HGMMA"} and "FFMA" in found
        return
    assert PRODUCTS[build.arch] in found
    if select_triton.config_of(f"{build.algorithm}/{build.config}").descriptor:
        assert "UTMALDG" in found
    else:
        assert "LDGSTS" in found and re.search(r"LDGSTS\.E(\.\w+)*\.128", built.sass)


@pytest.mark.parametrize("build", BUILDS, ids=lambda b: b.key.replace(" ", "-"))
def test_budget(build: Build) -> None:
    judge(build, compile_build(build), FACTS["kernels"][build.key])


def test_nchw_is_loaded_and_stored_in_vectors(monkeypatch) -> None:
    """Of pixels, where nothing moves them: a filter of one tap over several images, in the three
    directions. Else of channels, of a copy: a 3x3 filter, and one over three channels."""
    found: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def kept(step: Any, tensors: Any) -> None:
        found.append((step.kernel, (*step.given(tensors), *step.numbers), step.constants))

    def operands(*sizes: tuple[int, ...]) -> list[torch.Tensor]:
        return [torch.empty(size, dtype=torch.bfloat16) for size in sizes]

    monkeypatch.setattr(conv, "launch", kept)
    config = cost_triton.IMPLICIT_GEMM["64x64x32_w4_s4"]
    x, w = operands((4, 256, 14, 16), (256, 256, 1, 1))
    moves = ([1, 1], [0, 0], [1, 1], 1)
    conv.conv_fprop(x, w, None, *moves, config=config)
    conv.conv_dgrad(x, w, x.shape, *moves, config=config)
    conv.conv_wgrad(x, x, w.shape, *moves, config=config)
    for sizes in (((4, 256, 14, 16), (256, 256, 3, 3)), ((4, 3, 28, 32), (64, 3, 7, 7))):
        x, w = operands(*sizes)
        conv.conv_fprop(x, w, None, [1, 1], [w.shape[2] // 2] * 2, [1, 1], 1, config=config)
    gemm = "conv_{}_implicit_gemm_kernel".format
    copied = ["conv_repack_kernel", gemm("fprop")]
    assert [f[0] for f in found] == [*map(gemm, ("fprop", "dgrad", "wgrad")), *copied, *copied]
    for number, launch in enumerate(found):
        built = triton_budgets.compile_launch(80, *launch)
        few = "64" if number >= 5 else "128"  # bits of four channels
        assert not re.search(r"\bLD[GS]\S*U16|\bSTG\S*U16", built.sass), launch[0]
        if launch[0] == "conv_repack_kernel":
            assert "LDG.E.128" in built.sass and f"STG.E.{few}" in built.sass
        else:
            gathered = set(re.findall(r"LDGSTS\.E(?:\.\w+)*?(?:\.(\d+))?\s", built.sass))
            assert gathered == {few}, (launch[0], gathered)
            assert "STG.E.128" in built.sass and "HMMA" in built.sass
        assert built.spills == 0 or (not SAME_COMPILER and built.spills_in_loops == 0)


def test_three_products_are_for_configurations_that_hold_both_parts() -> None:
    """On either architecture one is left that was compiled without spilling."""
    for arch in triton_budgets.ARCHITECTURES:
        left = {
            name
            for name in cost_triton.names_for(arch)
            if not cost_triton.resources_refusal(
                cost_triton.IMPLICIT_GEMM[name], torch.float32, arch, "tf32x3"
            )
        }
        compiled = {b.config for b in BUILDS if b.arch == arch and b.rounds == "tf32x3"}
        assert compiled and compiled <= left
        assert "128x128x32_w8_s3" not in left


def test_the_table_has_every_configuration() -> None:
    assert set(FACTS["kernels"]) == {build.key for build in BUILDS}
    for arch in triton_budgets.ARCHITECTURES:
        found = {b.config for b in BUILDS if b.arch == arch and b.direction == "fprop"}
        assert set(cost_triton.names_for(arch)) <= found
    spilling = {key: row["spills"] for key, row in FACTS["kernels"].items() if row["spills"]}
    assert spilling == SPILLING
    assert set(cost_triton.DEPTHWISE) <= {b.config for b in BUILDS}


def test_spills_in_a_loop_are_told_from_others() -> None:
    code = "/*0010*/ {} ;\n/*0020*/ @P0 FFMA R1, R2 ;\n/*0030*/ {} ;\n/*0040*/ @!P1 BRA 0x20 ;\n"
    outside, inside = (
        Built(code.format(*names), 8, 8, 0)
        for names in (("STL [R1], R2", "FFMA R1, R2"), ("FFMA R1, R2", "LDL R2, [R1]"))
    )
    assert (outside.spills, outside.spills_in_loops) == (1, 0)
    assert (inside.spills, inside.spills_in_loops) == (1, 1)


def test_what_is_over_its_budget_is_seen() -> None:
    build = Build(80, select_triton.IMPLICIT_GEMM, "128x32x32_w4_s4", "fprop", torch.bfloat16)
    built, row = compile_build(build), FACTS["kernels"][build.key]
    judge(build, built, row)
    for worse in (
        built._replace(registers=row["registers"] + 1 + SLACK),
        built._replace(shared=row["shared"] + 1 + SHARED_SLACK),
        built._replace(sass=built.sass + " STL [R1], R2 ;"),
        built._replace(sass=built.sass + " LDL R2, [R1] ;"),
        built._replace(sass=built.sass.replace("HMMA", "FFMA")),
        built._replace(sass=built.sass + " RED.E.ADD.F32 ;"),
    ):
        with pytest.raises(AssertionError):
            judge(build, worse, row)
