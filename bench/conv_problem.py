"""One convolution of the benchmark: its tensors, its exact answer, its limits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from bench import correctness, gpu_check
from bench.problem import Once, Problem, Verdict, with_layout
from bench.problems import ConvLayer
from fastconv import gpu
from fastconv.problem import ConvSpec

PARTS = ("fprop", "dgrad", "wgrad")
DIRECTIONS = (*PARTS, "forward+backward")
EPILOGUES = ("none", "bias", "bias+relu")  # of fprop
PRECISIONS = ("ieee", "tf32", "tf32x3")  # of float32 on CUDA
REFERENCES = ("pytorch", "definition")  # of the exact answer: PyTorch's in float64, or gpu_check's


@dataclass(frozen=True)
class ConvProblem(Problem):
    """x: [N, C, *spatial], w: [K, C/groups, *kernel], dy: [N, K, *out], bias: [K]; normal random
    numbers. The result of "forward+backward" is (y, dx, dw)."""

    w: Tensor
    dy: Tensor
    bias: Tensor | None = None
    epilogue: str = "none"
    precision: str = "ieee"

    family: ClassVar[str] = "conv"
    layer: ConvLayer

    @property
    def op(self) -> str:
        return f"conv{self.layer.rank}d"

    @property
    def parts(self) -> tuple[str, ...]:
        """The single directions that it consists of."""
        return PARTS if self.direction == "forward+backward" else (self.direction,)

    def spec(self, direction: str) -> ConvSpec:
        """One direction of it as the registry of algorithms knows it."""
        layer = self.layer
        return ConvSpec(
            direction=direction,
            device=gpu.device_key(self.x.device),
            dtype=self.x.dtype,
            input_size=tuple(self.x.shape),
            weight_size=tuple(self.w.shape),
            stride=layer.stride,
            padding=layer.padding,
            dilation=layer.dilation,
            groups=layer.groups,
            channels_last=self.layout == "channels_last" and layer.rank > 1,
            products=self.precision if self.x.is_cuda and self.x.dtype == torch.float32 else "ieee",
        )

    def judge(self, result: Any, ran: str) -> Verdict:
        results = result if isinstance(result, tuple) else (result,)
        verdicts = []
        for part, given, exact in zip(self.parts, results, self.answer.value, strict=True):
            if isinstance(exact, gpu_check.Answer):
                tf32 = self.precision == "tf32"
                where = (self.layer, part, self.batch, tf32)
                verdicts.append(gpu_check.judge(given, exact, ran, *where))
                continue
            terms = correctness.gemm_k(self.layer, part, self.batch)
            unit = correctness.TF32_UNIT if self.precision == "tf32" else None
            verdicts.append(correctness.judge(given, exact, ran, terms, unit))
        return max(verdicts, key=lambda v: (bool(v.reason), v.error / v.tolerance, v.error))

    def bytes(self) -> int:
        return self.layer.elements(self.batch) * len(self.parts) * self.x.element_size()

    def flops(self) -> float:
        return 2.0 * self.layer.macs(self.batch) * len(self.parts)

    def facts(self) -> dict:
        layer = self.layer
        return super().facts() | {
            "C": layer.C,
            "K": layer.K,
            "dense_3x3_stride_1": layer.is_dense_3x3_stride_1,
            "epilogue": self.epilogue,
            "precision": self.precision,
            "geometry": layer.geometry(self.batch),
        }


def make_tensors(
    layer: ConvLayer, batch: int, dtype: torch.dtype, device: str = "cpu"
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, w, dy, bias of a layer, NCHW: the same numbers for the same sizes on every device of a
    kind; a GPU makes its own, which takes it no time."""
    generator = torch.Generator(device).manual_seed(0)
    sizes = (layer.input_size(batch), layer.weight_size, layer.output_size(batch), (layer.K,))
    x, w, dy, bias = (
        torch.randn(size, generator=generator, device=device, dtype=torch.float32).to(dtype)
        for size in sizes
    )
    return x, w, dy, bias


def problems_of(
    layer: ConvLayer,
    batch: int,
    directions: Sequence[str],
    layouts: Sequence[str],
    dtype: torch.dtype,
    device: str = "cpu",
    epilogue: str = "none",
    precision: str = "ieee",
    reference: str | None = None,
) -> Iterator[ConvProblem]:
    """One per direction and layout; the exact answer is shared by the layouts of a direction.
    reference: one of REFERENCES; None for the definition on a GPU, where it needs no transfer, and
    PyTorch on the CPU, where it is quicker."""
    reference = reference or ("pytorch" if device == "cpu" else "definition")
    x, w, dy, bias = make_tensors(layer, batch, dtype, device)
    for direction in directions:
        with_bias = bias if direction == "fprop" and epilogue != "none" else None
        parts = PARTS if direction == "forward+backward" else (direction,)

        def exact(parts=parts, with_bias=with_bias) -> list[Any]:
            relu = epilogue == "bias+relu"
            answer = correctness.reference if reference == "pytorch" else gpu_check.exact
            return [answer(layer, p, x, w, dy, with_bias, relu) for p in parts]

        answer = Once(exact)
        for layout in layouts:
            if layout == "channels_last" and layer.rank == 1 and "nchw" in layouts:
                continue  # a 1-D problem has one layout
            tensors = [with_layout(t, layout) for t in (x, w, dy)]
            yield ConvProblem(
                layer,
                batch,
                direction,
                layout,
                tensors[0],
                answer,
                tensors[1],
                tensors[2],
                with_bias,
                epilogue if with_bias is not None else "none",
                precision,
            )
