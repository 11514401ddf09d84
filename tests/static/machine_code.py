"""Looks at a kernel's instructions: loops, wide accesses, tensor cores, atomics, local memory."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache, cached_property
from itertools import pairwise

from .build import Instruction


def opcode(text: str) -> str:
    """`@!P0 LDG.E.128.CONSTANT R8, desc[UR8][R12.64]` -> LDG.E.128.CONSTANT"""
    if text.startswith("@"):
        text = text.split(None, 1)[1]
    return text.split(" ", 1)[0]


@cache
def opcode_is(pattern: str, opcode: str) -> bool:
    """Whether the opcode matches from its start. There are a few hundred opcodes in half a million
    instructions, which is why this is remembered."""
    return re.match(pattern, opcode) is not None


class Code:
    """The instructions of one kernel, its basic blocks and its loops."""

    def __init__(self, instructions: list[Instruction]) -> None:
        self.instructions = instructions
        self.opcodes = [opcode(text) for _, text in instructions]

    def matching(self, pattern: str, within: Iterable[int] | None = None) -> list[str]:
        """Instructions whose opcode matches from its start."""
        places = range(len(self.opcodes)) if within is None else within
        return [self.instructions[i][1] for i in places if opcode_is(pattern, self.opcodes[i])]

    # --- blocks: instruction ranges, and where they go ------------------------------------------

    @cached_property
    def blocks(self) -> list[range]:
        index = {address: i for i, (address, _) in enumerate(self.instructions)}
        starts = {0}
        for i in range(len(self.instructions)):
            if self._target(i) in index:
                starts.add(index[self._target(i)])
            if self._jumps(i) and i + 1 < len(self.instructions):
                starts.add(i + 1)
        ordered = [*sorted(starts), len(self.instructions)]
        return [range(a, b) for a, b in pairwise(ordered)]

    def _jumps(self, i: int) -> bool:
        leaves = opcode_is(r"(BRA|BRX|JMP|JMX|EXIT|RET)\b", self.opcodes[i])
        return leaves or self._target(i) is not None

    def calls(self, i: int) -> bool:
        """A call of a function, such as a 64-bit division."""
        return opcode_is(r"CALL\b", self.opcodes[i]) and not self._jumps(i)

    def _target(self, i: int) -> int | None:
        """Address that it may jump to."""
        if not opcode_is(r"(BRA|JMP|CALL)\b", self.opcodes[i]):
            return None
        address, text = self.instructions[i]
        found = re.findall(r"0x([0-9a-f]+)", text)
        target = int(found[-1], 16) if found else None
        if self.opcodes[i].startswith("CALL"):
            # For sm_80 ptxas leaves a loop by a call, under a predicate, to just behind the jump
            # back, which follows; nothing returns from there.
            over = self.instructions[min(i + 2, len(self.instructions) - 1)][0]
            return target if text.startswith("@") and address < over == target else None
        return target

    @cached_property
    def successors(self) -> list[list[int]]:
        start_of = {self.instructions[block[0]][0]: b for b, block in enumerate(self.blocks)}
        found = []
        for b, block in enumerate(self.blocks):
            last = block[-1]
            text = self.instructions[last][1]
            to = []
            target = self._target(last)
            if target in start_of:
                to.append(start_of[target])
            # BRA with a predicate as its operand is as conditional as one under a guard.
            conditional = text.startswith("@") or re.search(r"\bU?P\d\b", text) is not None
            if (not self._jumps(last) or conditional) and b + 1 < len(self.blocks):
                to.append(b + 1)
            found.append(to)
        return found

    # --- loops ------------------------------------------------------------------------------------

    @cached_property
    def loops(self) -> list[frozenset[int]]:
        """Natural loops, as sets of blocks: a jump back to a block that all ways lead through.
        Out-of-line code that jumps back into the middle is none."""
        dominators = self._dominators()
        predecessors: list[list[int]] = [[] for _ in self.blocks]
        for b, to in enumerate(self.successors):
            for t in to:
                predecessors[t].append(b)
        merged: dict[int, set[int]] = {}
        for b, to in enumerate(self.successors):
            for head in to:
                if b not in dominators or head not in dominators[b]:
                    continue
                body = merged.setdefault(head, {head})
                pending = [b]
                while pending:
                    block = pending.pop()
                    if block not in body:
                        body.add(block)
                        pending += predecessors[block]
        return [frozenset(body) for body in merged.values()]

    def _dominators(self) -> dict[int, set[int]]:
        """Of every block that can be reached."""
        order, seen, pending = [], {0}, [0]
        while pending:
            block = pending.pop()
            order.append(block)
            for to in self.successors[block]:
                if to not in seen:
                    seen.add(to)
                    pending.append(to)
        predecessors: dict[int, list[int]] = {b: [] for b in order}
        for b in order:
            for to in self.successors[b]:
                predecessors[to].append(b)
        found = {b: set(order) for b in order}
        found[0] = {0}
        changed = True
        while changed:
            changed = False
            for b in sorted(order):
                if b == 0:
                    continue
                new = set.intersection(*(found[p] for p in predecessors[b])) | {b}
                if new != found[b]:
                    found[b], changed = new, True
        return found

    def main_loops(self) -> list[list[int]]:
        """Instructions of the innermost loops that multiply and add: where the time goes. One that
        only waits for an mbarrier is none of its own."""
        found = []
        working = [loop for loop in self.loops if not self._waits(loop)]
        for loop in working:
            if any(other < loop for other in working):
                continue
            places = [i for b in sorted(loop) for i in self.blocks[b]]
            if self._products(places) >= 4:
                found.append(places)
        return found

    def _waits(self, loop: frozenset[int]) -> bool:
        places = [i for b in loop for i in self.blocks[b]]
        return bool(self.matching(r"SYNCS\.PHASECHK", places)) and not self._products(places)

    def _products(self, places: Iterable[int]) -> int:
        return len(self.matching(r"(FFMA|HMMA|HGMMA|DFMA|DMMA)\b", places))


# --- what must hold -------------------------------------------------------------------------------

# Claim -> (instruction that shows it, where it has to be). What is loaded is loaded over and over,
# and a stray wide load in front of a loop of narrow ones shows nothing; what is stored may be
# stored at the end.
EVIDENCE = {
    "load128": (r"LDG\.(\w+\.)*128", "a loop"),
    "store128": (r"STG\.(\w+\.)*128", "the kernel"),
    "store64": (r"STG\.(\w+\.)*64", "the kernel"),
    "shared128": (r"LDS\.(\w+\.)*128", "a loop"),
    "async_copy": (r"LDGSTS", "a loop"),
    "async_copy128": (r"LDGSTS\.(\w+\.)*128", "a loop"),
    "ldmatrix": (r"LDSM", "a main loop"),
    "tensor": (r"HMMA", "a main loop"),
    "tensor_tf32": (r"HMMA\.\d+\.F32\.TF32", "a main loop"),
    "tensor_f16": (r"HMMA\.\d+\.F32$", "a main loop"),
    "tensor_bf16": (r"HMMA\.\d+\.F32\.BF16", "a main loop"),
    "wgmma_f16": (r"HGMMA\.64x\d+x16\.F32$", "a main loop"),
    "wgmma_bf16": (r"HGMMA\.64x\d+x16\.F32\.BF16", "a main loop"),
    "wgmma_tf32": (r"HGMMA\.64x\d+x8\.F32\.TF32", "a main loop"),
    "tma_im2col": (r"UTMALDG\.[45]D\.IM2COL", "a loop"),
    "tma_tile": (r"UTMALDG\.3D$", "a loop"),
    "tma_box": (r"UTMALDG\.4D$", "a loop"),
    "multicast_im2col": (r"UTMALDG\.[45]D\.IM2COL\.MULTICAST", "a loop"),
    "tma_store": (r"UTMASTG", "a loop"),
    "stmatrix": (r"STSM", "a loop"),
    "multicast_tile": (r"UTMALDG\.3D\.MULTICAST", "a loop"),
}


# Global (RED, REDG, ATOM, ATOMG) and shared (ATOMS, with its compare-and-swap loops), and TMA's.
ATOMICS = r"(REDG?|ATOM[GS]?|UTMAREDG|UBLKRED)(\.|$)"


def complaints(code: Code, claims: frozenset[str], divides: bool = False) -> list[str]:
    """What the instructions of one kernel do that they should not, or lack that they should have.

    Args:
        claims: keys of EVIDENCE.
        divides: an integer division in the main loop is known and meant.
    """
    main_loops = code.main_loops()
    places = {
        "the kernel": range(len(code.opcodes)),
        "a loop": sorted({i for loop in code.loops for b in loop for i in code.blocks[b]}),
        "a main loop": sorted({i for loop in main_loops for i in loop}),
    }
    found = []
    for claim in sorted(claims):
        pattern, where = EVIDENCE[claim]
        if not code.matching(pattern, places[where]):
            found.append(f"claims {claim}, has no {pattern} in {where}")
    # Also integer atomics: what they count in could only be an order, and that is not repeatable.
    found += [f"atomic: {text}" for text in code.matching(ATOMICS)[:3]]
    found += [f"local memory: {text}" for text in code.matching(r"(LDL|STL)(\.|$)")[:3]]
    if not divides:
        for loop in main_loops:
            # A 32-bit division starts with a reciprocal, a 64-bit one is a call.
            slow = code.matching(r"MUFU\.RCP(\.|$)", loop)
            # A sigmoid (SiLU) is one exponential and one reciprocal; a division of integers
            # converts one of them, rounding up.
            sigmoids = len(code.matching(r"MUFU\.EX2(\.|$)", loop))
            if len(slow) <= sigmoids and not code.matching(r"I2F\.(\w+\.)*RP(\.|$)", loop):
                slow = []
            slow += [code.instructions[i][1] for i in loop if code.calls(i)]
            found += [f"division in a main loop: {text}" for text in slow[:1]]
    return found
