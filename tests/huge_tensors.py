"""Problems with tensors of more than 2^31 elements, of which a run by emulation touches a few."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from cases import ConvCase
from emulated import Instance, emulation, native_problem, source_lines

At = tuple[int, int, int, int]


@dataclass(frozen=True)
class Huge:
    """A bfloat16 tensor of which only the given elements are not zero; the rest of its memory is
    never touched."""

    size: At
    values: dict[At, int] = field(default_factory=dict)

    def offset(self, at: At, layout: str) -> int:
        order = (0, 2, 3, 1) if layout == "NHWC" else (0, 1, 2, 3)
        offset = 0
        for axis in order:
            offset = offset * self.size[axis] + at[axis]
        return offset

    def at(self, offset: int, layout: str) -> At:
        order = (1, 3, 2, 0) if layout == "NHWC" else (3, 2, 1, 0)
        found = [0, 0, 0, 0]
        for axis in order:
            offset, found[axis] = divmod(offset, self.size[axis])
        return tuple(found)

    def sparse(self, layout: str) -> tuple[int, list[tuple[int, np.ndarray]]]:
        content = {v: torch.tensor([v], dtype=torch.bfloat16) for v in self.values.values()}
        return 2 * math.prod(self.size), [
            (2 * self.offset(at, layout), content[v].view(torch.uint8).numpy())
            for at, v in self.values.items()
        ]


def run_huge(
    instance: Instance,
    case: ConvCase,
    operands: tuple[Huge, Huge],
    places: list[At],
    block_limit: int = 1 << 40,
) -> list[float]:
    """The result's elements at `places` after the first, the last and some other blocks."""
    sizes = (case.output_size, case.input_size, case.weight_size)
    result = Huge(sizes[("fprop", "dgrad", "wgrad").index(instance.direction)])
    assert max(math.prod(size) for size in sizes) > 2**31
    module = emulation()
    with source_lines(module):
        found, *_ = module.run_conv(
            instance.algorithm,
            instance.name,
            native_problem(case),
            *(t.sparse(instance.layout) for t in operands),
            None,
            module.Device(90, 132),
            peeks=[(2 * result.offset(at, instance.layout), 2) for at in places],
            seed=1,
            block_limit=block_limit,
            check_accesses=False,  # three times faster, and the buffers have their guard pages
        )
    return [float(torch.from_numpy(e).view(torch.bfloat16)[0]) for e in found]
