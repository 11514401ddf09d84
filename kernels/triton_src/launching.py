"""How kernels are launched: what all calls of one problem share is worked out once.

Triton finds a launch's compiled kernel by looking at each of its arguments and hashing them, which
takes longer than many a layer does on a GPU. A `Launch` holds every argument but the tensors, so
that later calls only ask of these what compiled code depends on: their dtypes, and whether they lie
at multiples of 16.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

Shape = tuple[int, ...]
_ALIGNMENT = 16  # bytes; what Triton compiles a pointer for, or not


class Box(NamedTuple):
    """A tensor's memory as a descriptor shows it to the tensor memory accelerator."""

    shape: Shape
    strides: Shape
    block: Shape

    def of(self, t: Tensor) -> Any:
        from triton.tools.tensor_descriptor import TensorDescriptor

        return TensorDescriptor(t, list(self.shape), list(self.strides), list(self.block))


class Facts(NamedTuple):
    """What a plan may depend on of a tensor."""

    shape: Shape
    strides: Shape
    dtype: torch.dtype
    aligned: bool


def facts(t: Tensor | None) -> Facts | None:
    if t is None:
        return None
    return Facts(t.shape, t.stride(), t.dtype, t.data_ptr() % _ALIGNMENT == 0)


@dataclass(eq=False)
class Launch:
    """One launch of a kernel: all but its tensors.

    A kernel's parameters are tensors first, then `numbers`, then the compiler's `constants`, which
    are given by name, along with what is for the compiler alone (num_warps, ...). boxes: tensors,
    by their places, that go as descriptors.
    """

    kernel: str
    grid: int
    numbers: tuple[int | float, ...]
    constants: dict[str, Any]
    boxes: dict[int, Box] = field(default_factory=dict)
    # By device, alignments and dtypes: the compiled kernel at this grid, and its arguments after
    # the tensors.
    compiled: dict[tuple[Any, ...], tuple[Callable[..., None], tuple[Any, ...]]] = field(
        default_factory=dict, repr=False
    )

    def given(self, tensors: Sequence[Tensor | None]) -> Sequence[Any]:
        """The tensors as the kernel gets them."""
        if not self.boxes:
            return tensors
        return [
            self.boxes[at].of(t) if at in self.boxes and t is not None else t
            for at, t in enumerate(tensors)
        ]


def run(kernel: Any, step: Launch, tensors: Sequence[Tensor | None]) -> None:
    """Runs the step's `kernel` on the device of its first tensor, in its current stream."""
    device = tensors[0].device  # type: ignore[union-attr]
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        _run(kernel, step, tensors, device.index)
        return
    with torch.cuda.device(device):
        _run(kernel, step, tensors, device.index)


def _run(kernel: Any, step: Launch, tensors: Sequence[Tensor | None], device: int | None) -> None:
    key: list[Any] = [device]
    for t in tensors:
        if t is None:
            key.append(None)
        else:
            key.append(t.dtype if t.data_ptr() % _ALIGNMENT == 0 else (t.dtype,))
    kind = tuple(key)
    given = step.given(tensors)
    known = step.compiled.get(kind)
    if known is not None:
        start, rest = known
        start(*given, *rest)
        return
    found = kernel[(step.grid,)](*given, *step.numbers, **step.constants)
    if hasattr(found, "packed_metadata"):  # else interpreted, or still being compiled
        names = kernel.arg_names[len(tensors) + len(step.numbers) :]
        rest = (*step.numbers, *(step.constants[name] for name in names))
        step.compiled[kind] = found[(step.grid, 1, 1)], rest
