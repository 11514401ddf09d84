"""Which kernels claim what of their machine code: one table, by kernel name.

Every kernel has to match exactly one row (the first that matches counts), so that a new family says
what it is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """`pattern` matches the kernel's whole readable name; `claims` are keys of
    machine_code.EVIDENCE; `divides`: why there is a division in its main loop."""

    pattern: str
    claims: frozenset[str] = frozenset()
    divides: str = ""


def family(pattern: str, claims: str = "", divides: str = "") -> Family:
    return Family(pattern, frozenset(claims.split()), divides)


def gemm_families(kernel: str, wide: str) -> tuple[Family, ...]:
    """Kernels over GemmTile. `wide` matches the arguments of an operand that is loaded by vectors;
    scalars of 16-bit types are smaller than a cp.async."""
    tile = rf"{kernel}<GemmTile<"
    rows = []
    for scalar, math, tensor in (
        ("float", 0, "shared128"),
        ("float", 1, "tensor_tf32"),
        ("__half", 2, "ldmatrix tensor_f16"),
        ("__nv_bfloat16", 2, "ldmatrix tensor_bf16"),
    ):
        single = "async_copy " if scalar == "float" else ""
        rows.append(
            family(rf"{tile}{scalar}, \(GemmMath\){math}, {wide}", f"async_copy128 {tensor}")
        )
        rows.append(family(rf"{tile}{scalar}, \(GemmMath\){math}, .*", single + tensor))
    return tuple(rows)


FAMILIES: tuple[Family, ...] = (
    family(r"probe_kernel"),
    # Direct.
    family(r"conv_gather_direct_kernel<(float|double), true, .*>", "load128 store128 shared128"),
    family(r"conv_gather_direct_kernel<.*>", "shared128"),
    family(r"conv_wgrad_direct_kernel<(float|double), true, .*>", "load128 shared128"),
    family(r"conv_wgrad_direct_kernel<.*>", "shared128"),
    family(r"conv_wgrad_direct_reduce_kernel<.*>"),
    family(
        r"conv_(fprop|dgrad|wgrad)_direct_plain_kernel<.*>",
        divides="the plain twin works its coordinates out anew",
    ),
    # Implicit and batched GEMM.
    *gemm_families(r"conv_(fprop|dgrad|wgrad)_im2col_kernel", r".*, ([48], \d|1, [48])(, \w+)?>"),
    *gemm_families(r"gemm_batched_kernel", r".*, ([48], \d|1, [48])>"),
    family(r"conv_wgrad_im2col_reduce_kernel<.*>"),
    # Winograd.
    family(r"conv_filter_winograd_kernel<.*>", "shared128 store128"),
    family(
        r"conv_fprop_winograd_fused_kernel<\w+, WinogradTf32, .*>",
        "async_copy128 shared128 tensor_tf32",
    ),
    family(r"conv_fprop_winograd_fused_kernel<\w+, WinogradFma, .*>", "async_copy128 shared128"),
    family(r"conv_wgrad_winograd_fused_kernel<\w+, WinogradTf32, .*>", "shared128 tensor_tf32"),
    family(r"conv_wgrad_winograd_fused_kernel<\w+, WinogradFma, .*>", "shared128"),
    family(r"conv_wgrad_winograd_reduce_kernel<.*>"),
    # Depthwise.
    family(r"conv_(fprop|dgrad)_depthwise_nhwc_kernel<.*>", "load128 store128 shared128"),
    family(r"conv_wgrad_depthwise_nhwc_kernel<.*>", "load128"),
    family(r"conv_\w+_depthwise_nchw_kernel<.*>", "async_copy128"),
    family(r"conv_(fprop|dgrad)_depthwise_any_kernel<.*, true, [48]>", "load128 store128"),
    family(
        r"conv_wgrad_depthwise_any_kernel<.*, true, [48]>",
        "load128",
        divides="64-bit positions of tensors of 2^31 pixels or more, behind a branch",
    ),
    family(r"conv_(fprop|dgrad)_depthwise_any_kernel<.*>"),
    family(
        r"conv_wgrad_depthwise_any_kernel<.*>",
        divides="64-bit positions of tensors of 2^31 pixels or more, behind a branch",
    ),
    family(r"conv_wgrad_depthwise_sum_kernel<.*>"),
)


def family_of(kernel: str) -> Family | None:
    for row in FAMILIES:
        if re.fullmatch(row.pattern, kernel):
            return row
    return None
