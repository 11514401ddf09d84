"""The machine code of every kernel of the build: what its family claims is there, and nothing that
no kernel may have."""

from __future__ import annotations

from collections import defaultdict

import pytest

from . import build
from .families import family_of
from .machine_code import Code, complaints, opcode


def three_products(code: dict) -> dict[str, list[str]]:
    """Kernels of three TF32 products that have not three times the products of the same tile by
    one."""

    def products(kernel: str) -> int:
        return sum(opcode(text).startswith("HMMA") for _, text in code[kernel])

    found = {}
    for kernel in code:
        if "_im2col_kernel<GemmTile<float, (GemmMath)3, 64, 64" in kernel:
            three, one = products(kernel), products(kernel.replace("(GemmMath)3", "(GemmMath)1"))
            if not three == 3 * one > 0:
                found[kernel] = [f"{three} HMMA, where one product each has {one}"]
    return found


@pytest.mark.cuda_build
@pytest.mark.parametrize("arch", build.built_archs())
def test_instructions(arch):
    code = build.machine_code(arch)
    assert code, f"no kernels for {arch} in {build.LIBRARY}"
    found = defaultdict(list)
    for kernel, instructions in code.items():
        family = family_of(kernel)
        if family is None:
            found[kernel].append("is in no row of families.FAMILIES")
            continue
        claims = family.claims if family.has_code_for(arch) else frozenset()
        found[kernel] += complaints(Code(instructions), claims, bool(family.divides))
    for kernel, lines in three_products(code).items():
        found[kernel] += lines
    bad = {kernel: lines for kernel, lines in found.items() if lines}
    assert not bad, "\n".join(f"{name} ({arch}): {line}" for name in bad for line in bad[name])


def test_products_are_counted():
    name = "conv_fprop_im2col_kernel<GemmTile<float, (GemmMath){}, 64, 64, 32, 32, 4, 3>, true>"
    one, three = ([(16 * i, "HMMA.1688.F32.TF32 R4") for i in range(n)] for n in (2, 6))
    assert three_products({name.format(1): one, name.format(3): three}) == {}
    for wrong in (three[:5], []):
        assert three_products({name.format(1): one, name.format(3): wrong}) != {}


DISASSEMBLY = """
\t.target\tsm_90a
\t.section\t.text._Z5firstv,"ax",@progbits
_Z5firstv:
.text._Z5firstv:
        /*0000*/              @P0 BRA `(.L_x_1) ;
.L_x_0:
        /*0010*/                   FFMA R0, R1, R2, R0 ;
        /*0020*/              @!P0 CALL.REL.NOINC `($_Z5firstv$__internal_0_$__cuda_div) ;
.L_x_1:
$_Z5firstv$__internal_0_$__cuda_div:
        /*0030*/                   EXIT ;
.L_x_2:
\t.section\t.text._Z6secondv,"ax",@progbits
.text._Z6secondv:
        /*0000*/                   BRA `(.L_x_3);
.L_x_3:
        /*10010*/                  EXIT ;
"""


def test_a_disassembly_is_read():
    assert build.parse_disassembly(DISASSEMBLY) == {
        "_Z5firstv": [
            (0, "@P0 BRA 0x30"),
            (16, "FFMA R0, R1, R2, R0"),
            (32, "@!P0 CALL.REL.NOINC 0x30"),
            (48, "EXIT"),
        ],
        "_Z6secondv": [(0, "BRA 0x10010"), (0x10010, "EXIT")],
    }


# --- the looking itself ---------------------------------------------------------------------------


def parsed(text: str) -> Code:
    """One instruction a line, 16 bytes apart; a label `name:` stands for the next address."""
    labels, lines = {}, []
    for line in text.strip().splitlines():
        if line.strip().endswith(":"):
            labels[line.strip()[:-1]] = len(lines) * 16
        else:
            lines.append(line.strip())
    for name, address in labels.items():
        lines = [line.replace(f"@{name}", hex(address)) for line in lines]
    return Code([(16 * i, line) for i, line in enumerate(lines)])


LOOP = """
MOV R0, RZ
S2R R1, SR_TID.X
head:
LDG.E.128 R4, [R2.64]
FFMA R8, R4, R5, R8
FFMA R9, R4, R5, R9
FFMA R10, R4, R5, R10
FFMA R11, R4, R5, R11
{inside}
@P0 BRA @head
{outside}
STG.E.128 [R2.64], R8
EXIT
"""


def test_a_loop_is_found():
    code = parsed(LOOP.format(inside="NOP", outside="NOP"))
    (places,) = code.main_loops()
    assert [code.opcodes[i] for i in places][:2] == ["LDG.E.128", "FFMA"]
    assert len(places) == 7


def test_division_counts_inside_of_the_loop_only():
    inside = parsed(LOOP.format(inside="MUFU.RCP R3, R4", outside="NOP"))
    outside = parsed(LOOP.format(inside="NOP", outside="MUFU.RCP R3, R4"))
    assert complaints(inside, frozenset()) == ["division in a main loop: MUFU.RCP R3, R4"]
    assert complaints(inside, frozenset(), divides=True) == []
    assert complaints(outside, frozenset()) == []


def test_a_sigmoid_is_no_division():
    sigmoid = "MUFU.EX2 R3, R4\n    MUFU.RCP R3, R3"
    assert complaints(parsed(LOOP.format(inside=sigmoid, outside="NOP")), frozenset()) == []
    for more in ("MUFU.RCP R5, R6", "I2F.U32.RP R5, R6"):
        code = parsed(LOOP.format(inside=f"{sigmoid}\n    {more}", outside="NOP"))
        assert complaints(code, frozenset()) == ["division in a main loop: MUFU.RCP R3, R3"]


def test_a_jump_into_the_middle_is_no_loop():
    """Rare paths are placed behind the end and jump back."""
    code = parsed(
        """
        @P0 BRA @rare
        back:
        FFMA R0, R1, R2, R0
        EXIT
        rare:
        MUFU.RCP R3, R4
        BRA @back
        """
    )
    assert code.loops == []


def test_nested_loops_count_the_inner():
    code = parsed(
        """
        outer:
        MUFU.RCP R3, R4
        inner:
        FFMA R0, R1, R2, R0
        FFMA R1, R1, R2, R0
        FFMA R2, R1, R2, R0
        FFMA R3, R1, R2, R0
        @P0 BRA @inner
        @P1 BRA @outer
        EXIT
        """
    )
    assert len(code.loops) == 2
    (places,) = code.main_loops()
    assert "MUFU.RCP" not in {code.opcodes[i] for i in places}


def test_waiting_for_an_mbarrier_is_no_inner_loop():
    wait = "wait:\nSYNCS.PHASECHK.TRANS64.TRYWAIT P1, [R2], R3\n@!P1 BRA @wait\nMUFU.RCP R3, R4"
    (places,) = (code := parsed(LOOP.format(inside=wait, outside="NOP"))).main_loops()
    assert "FFMA" in {code.opcodes[i] for i in places}
    assert complaints(code, frozenset()) == ["division in a main loop: MUFU.RCP R3, R4"]


@pytest.mark.parametrize(
    ("instruction", "bad"),
    [
        ("RED.E.ADD.F32.FTZ.RN.STRONG.GPU [R2.64], R4", True),
        ("REDG.E.ADD.F32.FTZ.RN.STRONG.GPU desc[UR4][R2.64], R4", True),
        ("ATOMG.E.ADD.F32 PT, R0, [R2.64], R4", True),
        ("ATOMS.ADD R0, [R2], R4", True),
        ("REDUX.SUM UR4, R0", False),
        ("STL [R1], R4", True),
        ("LDL.128 R4, [R1]", True),
        ("LDS.128 R4, [R1]", False),
    ],
)
def test_atomics_and_local_memory(instruction, bad):
    code = parsed(LOOP.format(inside=instruction, outside="NOP"))
    assert bool(complaints(code, frozenset())) == bad


@pytest.mark.parametrize(
    ("claim", "instruction"),
    [
        ("load128", "LDG.E.128.CONSTANT R8, desc[UR8][R12.64]"),
        ("store128", "@!P0 STG.E.128 desc[UR8][R12.64], R8"),
        ("async_copy", "LDGSTS.E.BYPASS.LTC128B.128 [R5], desc[UR4][R2.64]"),
        ("async_copy128", "LDGSTS.E.BYPASS.128 [R5], [R2.64]"),
        ("tensor", "HMMA.16816.F32.BF16 R4, R8, R2, R4"),
        ("tensor_bf16", "HMMA.16816.F32.BF16 R4, R8, R2, R4"),
        ("tensor_f16", "HMMA.16816.F32 R4, R8, R2, R4"),
        ("tensor_tf32", "HMMA.1688.F32.TF32 R4, R8, R2, R4"),
        ("ldmatrix", "LDSM.16.M88.4 R4, [R1]"),
        ("wgmma_bf16", "HGMMA.64x128x16.F32.BF16 R24, gdesc[UR8], R24, gsb0"),
        ("wgmma_f16", "HGMMA.64x64x16.F32 R24, gdesc[UR8].tnspB, R24, gsb0"),
        ("tma_im2col", "UTMALDG.4D.IM2COL [UR8], [UR4], UR16"),
        ("tma_tile", "UTMALDG.3D [UR8], [UR4], desc[UR6]"),
        ("tma_box", "UTMALDG.4D [UR8], [UR4], desc[UR6]"),
        ("multicast_im2col", "UTMALDG.4D.IM2COL.MULTICAST [UR8], [UR4], UR16, UR9"),
        ("tma_store", "UTMASTG.2D [UR8], [UR4], desc[UR6]"),
        ("stmatrix", "STSM.16.M88.4 [R2], R4"),
        ("multicast_tile", "UTMALDG.3D.MULTICAST [UR8], [UR4], UR16"),
    ],
)
def test_claims_need_their_instruction(claim, instruction):
    without = parsed(LOOP.format(inside="LDG.E R0, [R2.64]", outside="NOP").replace(".128", ""))
    (found,) = complaints(without, frozenset({claim}))
    assert found.startswith(f"claims {claim}")
    inside = parsed(LOOP.format(inside=instruction, outside="NOP"))
    assert complaints(inside, frozenset({claim})) == []


@pytest.mark.parametrize(
    ("claim", "instruction"),
    [
        ("load128", "LDG.E.128 R8, [R12.64]"),
        ("async_copy", "LDGSTS.E [R5], [R2.64]"),
        ("tensor_bf16", "HMMA.16816.F32.BF16 R4, R8, R2, R4"),
    ],
)
def test_one_outside_of_the_loops_is_not_enough(claim, instruction):
    text = LOOP.replace("LDG.E.128", "LDG.E")
    outside = parsed(text.format(inside="NOP", outside=instruction))
    assert len(complaints(outside, frozenset({claim}))) == 1


def test_a_loop_that_is_left_by_a_call():
    """As ptxas writes it for sm_80; the loop behind it is one too."""
    loop = LOOP.format(inside="{}", outside="NOP").strip().removesuffix("EXIT")
    loop = loop.replace("@P0 BRA @head", "@P0 CALL.REL.NOINC @behind\nBRA @head\nbehind:")
    inside = ("MOV R0, RZ", "MUFU.RCP R3, R4")
    both = "\n".join(
        loop.format(what).replace("head", f"head{i}").replace("behind", f"behind{i}")
        for i, what in enumerate(inside)
    )
    code = parsed(f"{both}\nEXIT")
    assert len(code.main_loops()) == 2
    assert complaints(code, frozenset()) == ["division in a main loop: MUFU.RCP R3, R4"]


def test_a_call_in_a_loop_is_a_division():
    code = parsed(LOOP.format(inside="@P0 CALL.REL.NOINC @far", outside="NOP") + "far:\nRET R4")
    (found,) = complaints(code, frozenset())
    assert found.startswith("division in a main loop: @P0 CALL")


def test_opcodes():
    assert opcode("@!UP0 LDG.E.128 R8, [R2.64]") == "LDG.E.128"
    assert opcode("EXIT") == "EXIT"
