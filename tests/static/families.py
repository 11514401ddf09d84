"""Which kernels claim what of their machine code: one table, by kernel name.

The first row that matches a kernel counts. Every kernel has to have one, so that a new family says
what it is, and every row a kernel, so that a renamed one does not leave its claims behind.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

# Enough for kernels that keep tiles in registers and shared memory: what hides their latency is how
# much each thread has under way, not how many threads there are. 0.15 is two blocks of 160 threads.
BLOCKED = 0.15
# For those whose threads load, add and store an element or two and have nothing else to wait with.
STREAMING = 0.5
# For those that memory alone bounds. Divisions and powers of fp64 take too many registers for it.
POOLING = 0.75
WIDE, STAGED = "load128 store128", "async_copy128 shared128 store128"
# For those that memory alone bounds, whose threads have up to eight channels' constants and several
# vectors in registers.
BACKWARD = 0.25
SHARE = "floating-point, a merged part's share of the count"
FP64_SIGMOID = "floating-point, fp64's sigmoid"
BY_WINDOW = "floating-point, by a window's size, once per window"


@dataclass(frozen=True)
class Family:
    """`pattern` matches the kernel's whole readable name; `claims` are keys of
    machine_code.EVIDENCE; `occupancy` is the least that is acceptable, on either architecture;
    `divides`: why there is a division in its main loop; `arch`: the only one that has its code, in
    the others it is empty."""

    pattern: str
    claims: frozenset[str] = frozenset()
    occupancy: float = BLOCKED
    divides: str = ""
    arch: str = ""

    def has_code_for(self, arch: str) -> bool:
        return self.arch in ("", arch)


def family(
    pattern: str,
    claims: str = "",
    occupancy: float = BLOCKED,
    divides: str = "",
    arch: str = "",
) -> Family:
    return Family(pattern, frozenset(claims.split()), occupancy, divides, arch)


# (scalar type, GemmMath, what its main loop shows)
GEMM_ENGINES = (
    ("float", 0, "shared128"),
    ("float", 1, "tensor_tf32"),
    ("__half", 2, "ldmatrix tensor_f16"),
    ("__nv_bfloat16", 2, "ldmatrix tensor_bf16"),
)

WARPGROUP_ENGINES = (
    ("__half", "wgmma_f16"),
    ("__nv_bfloat16", "wgmma_bf16"),
    ("float", "wgmma_tf32"),
)


# Three products of split operands: both parts of them are in registers beside the accumulators, so
# that 8 warps are on an SM; each has 16 independent groups of three products under way.
THREE_PRODUCTS = (("float", 3, "tensor_tf32"),)


def gemm_families(
    kernel: str,
    wide: str,
    engines: tuple[tuple[str, int, str], ...],
    occupancy: float = BLOCKED,
):
    """Kernels over GemmTile. `wide` matches the arguments of an operand that is loaded by vectors;
    scalars of 16-bit types are smaller than a cp.async."""
    tile = rf"{kernel}<GemmTile<"
    for scalar, math, engine in engines:
        single = "async_copy " if scalar == "float" else ""
        name = rf"{tile}{scalar}, \(GemmMath\){math}, "
        stores = "store128 " if scalar == "float" else "store64 "  # four columns of C
        yield family(name + wide, f"async_copy128 {stores}{engine}", occupancy)
        yield family(name + ".*", stores + single + engine, occupancy)


FAMILIES: tuple[Family, ...] = (
    family(r"probe_kernel"),
    # Direct.
    family(r"conv_gather_direct_kernel<(float|double), true, .*>", "load128 store128 shared128"),
    family(r"conv_gather_direct_kernel<.*>", "shared128"),
    family(r"conv_wgrad_direct_kernel<(float|double), true, .*>", "load128 shared128"),
    family(r"conv_wgrad_direct_kernel<.*>", "shared128"),
    family(r"conv_wgrad_direct_reduce_kernel<.*>", occupancy=STREAMING),
    family(
        r"conv_(fprop|dgrad|wgrad)_direct_plain_kernel<.*>",
        divides="the plain twin works its coordinates out anew",
    ),
    # Implicit and batched GEMM.
    *gemm_families(
        r"conv_(fprop|dgrad|wgrad)_im2col_kernel",
        r".*, ([48], \d|1, [48])(, \w+)?>",
        GEMM_ENGINES,
    ),
    *gemm_families(
        r"conv_(fprop|dgrad|wgrad)_im2col_kernel",
        r".*, ([48], \d|1, [48])(, \w+)?>",
        THREE_PRODUCTS,
        occupancy=0.12,
    ),
    family(r"conv_wgrad_im2col_reduce_kernel<.*>", occupancy=STREAMING),
    *(
        family(
            rf"conv_(fprop|dgrad)_tma_kernel<WgmmaTile<{scalar}, .*>",
            f"{engine} tma_im2col tma_tile multicast_im2col multicast_tile tma_store store128"
            f"{'' if scalar == 'float' else ' stmatrix'}",
            arch="sm_90a",
        )
        for scalar, engine in WARPGROUP_ENGINES
    ),
    # What one cluster leaves for another.
    *(
        family(
            rf"conv_(fprop|dgrad)_tma_streamk_kernel<WgmmaTile<{scalar}, .*>",
            f"{engine} tma_im2col tma_tile multicast_tile tma_store stmatrix load128 store128",
            arch="sm_90a",
        )
        for scalar, engine in (("__half", "wgmma_f16"), ("__nv_bfloat16", "wgmma_bf16"))
    ),
    *(
        family(
            rf"conv_dgrad_strided_tma_kernel<WgmmaTile<{scalar}, .*>",
            f"{engine} tma_im2col tma_tile shared128 store128",
            arch="sm_90a",
        )
        for scalar, engine in WARPGROUP_ENGINES
    ),
    # Fragments go to memory as they lie.
    *(
        family(
            rf"conv_wgrad_tma_kernel<ConvWgradTmaTile<{scalar}, .*>",
            f"{engine} tma_im2col tma_tile",
            arch="sm_90a",
        )
        for scalar, engine in (("__half", "wgmma_f16"), ("__nv_bfloat16", "wgmma_bf16"))
    ),
    family(
        r"conv_(fprop|dgrad)_tma_tf32x3_kernel<WgmmaSplitTile<.*>",
        "wgmma_tf32 ldmatrix tma_im2col tma_tile multicast_im2col multicast_tile tma_store"
        " store128",
        arch="sm_90a",
    ),
    family(
        r"conv_dgrad_strided_tma_tf32x3_kernel<WgmmaSplitTile<.*>",
        "wgmma_tf32 ldmatrix tma_im2col tma_tile shared128 store128",
        arch="sm_90a",
    ),
    family(r"conv_filter_tf32x3_kernel", WIDE, STREAMING),
    family(r"conv_filter_turned_kernel<.*>", WIDE, STREAMING),
    *(
        family(
            rf"conv_(fprop|dgrad)_halo_kernel<HaloTile<{scalar}, .*>",
            f"{engine} ldmatrix tma_tile multicast_tile tma_box store128",
            arch="sm_90a",
        )
        for scalar, engine in (("__half", "wgmma_f16"), ("__nv_bfloat16", "wgmma_bf16"))
    ),
    # fp32's fragments go to memory as they lie. The wide tile's accumulators leave registers for
    # two blocks of four warps, each with 32 independent products under way; fp32's weights leave
    # sm_80's shared memory for as many.
    *(
        family(
            rf"conv_fprop_rows_kernel<RowsTile<{scalar}, {fragments}, .*>",
            f"{engine} ldmatrix async_copy async_copy128 load128 {stores}",
            occupancy,
        )
        for scalar, engine, stores, fragments, occupancy in (
            (r"__half, \(GemmMath\)2", "tensor_f16", "store128", 4, 0.12),
            (r"__half, \(GemmMath\)2", "tensor_f16", "store128", 2, BLOCKED),
            (r"__nv_bfloat16, \(GemmMath\)2", "tensor_bf16", "store128", 4, 0.12),
            (r"__nv_bfloat16, \(GemmMath\)2", "tensor_bf16", "store128", 2, BLOCKED),
            (r"float, \(GemmMath\)[13]", "tensor_tf32", "store64", 2, 0.12),
        )
    ),
    # Inception modules: (NHWC, VEC_X, VEC_W). The pool's windows are loads of 16 bytes where pixels
    # are vectors.
    *(
        family(
            rf"inception_fprop_pointwise_kernel<SlicedTile<GemmTile<{scalar}, \(GemmMath\){math},"
            r" .*, true, [48], [48]>",
            f"load128 async_copy128 {engine}",
        )
        for scalar, math, engine in (*GEMM_ENGINES, *THREE_PRODUCTS)
    ),
    *gemm_families(
        r"inception_fprop_\w+_kernel<SlicedTile",
        r".*, (true, [48], [48]|false, 1, [48])>",
        (*GEMM_ENGINES, *THREE_PRODUCTS),
    ),
    # The Winograd matrices' rows are padded to vectors, so that no product of theirs loads scalars.
    family(
        r"gemm_batched_kernel<GemmTile<float, \(GemmMath\)0, .*, 4, 4>", "async_copy128 shared128"
    ),
    family(
        r"gemm_batched_kernel<GemmTile<float, \(GemmMath\)1, .*, 4, 4>", "async_copy128 tensor_tf32"
    ),
    # Winograd.
    family(r"conv_filter_winograd_kernel<.*>", "shared128 store128", occupancy=STREAMING),
    family(
        r"conv_fprop_winograd_fused_kernel<\w+, WinogradTf32, .*>",
        "async_copy128 shared128 tensor_tf32",
    ),
    family(r"conv_fprop_winograd_fused_kernel<\w+, WinogradFma, .*>", "async_copy128 shared128"),
    family(r"conv_wgrad_winograd_fused_kernel<\w+, WinogradTf32, .*>", "shared128 tensor_tf32"),
    family(r"conv_wgrad_winograd_fused_kernel<\w+, WinogradFma, .*>", "shared128"),
    family(r"conv_wgrad_winograd_reduce_kernel<.*>", occupancy=STREAMING),
    # Not fused: a thread's tile is strided in both its tensor and its matrices, and neighbours
    # along the contiguous axis are neighbouring threads, so their accesses are scalars.
    family(
        r"conv_transform_winograd_kernel<Winograd(Input|Filter|WgradFilter)<.*>",
        occupancy=STREAMING,
    ),
    family(r"conv_output_winograd_kernel<.*>", occupancy=STREAMING),
    family(r"conv_wgrad_winograd_output_kernel<.*>", occupancy=STREAMING),
    # Depthwise.
    family(r"conv_(fprop|dgrad)_depthwise_nhwc_kernel<.*>", "load128 store128 shared128"),
    family(r"conv_wgrad_depthwise_nhwc_kernel<.*>", "load128"),
    family(r"conv_\w+_depthwise_nchw_kernel<.*>", "async_copy128"),
    family(r"conv_(fprop|dgrad)_depthwise_any_kernel<.*, true, [48](, \w+)?>", "load128 store128"),
    family(
        r"conv_fprop_depthwise_any_kernel<.*, false, 1, true>",
        occupancy=STREAMING,
        divides="64-bit positions of tensors of 2^31 pixels or more, behind a branch",
    ),
    family(
        r"conv_wgrad_depthwise_any_kernel<.*, true, [48]>",
        "load128",
        divides="64-bit positions of tensors of 2^31 pixels or more, behind a branch",
    ),
    family(r"conv_(fprop|dgrad)_depthwise_any_kernel<.*>", occupancy=STREAMING),
    family(
        r"conv_wgrad_depthwise_any_kernel<.*>",
        divides="64-bit positions of tensors of 2^31 pixels or more, behind a branch",
    ),
    family(r"conv_wgrad_depthwise_sum_kernel<.*>", occupancy=STREAMING),
    # Batch normalisation with activation; 8, 4, 2: channels of a vector of f16, f32, f64.
    family(r"norm_(fprop|dgrad)_(planes|channels)_kernel<double.*>", "", BACKWARD, FP64_SIGMOID),
    family(r"norm_sums_(planes|channels)_kernel<double.*>", "", BACKWARD, FP64_SIGMOID),
    family(r"norm_fprop_(planes_kernel<\w+>|channels_kernel<\w+, [48]>)", WIDE, STREAMING),
    family(r"norm_dgrad_(planes_kernel<\w+>|channels_kernel<\w+, [48]>)", WIDE, BACKWARD),
    family(r"norm_sums_(planes_kernel<\w+>|channels_kernel<\w+, [48]>)", "load128", BACKWARD),
    family(
        r"norm_stats_(planes_kernel<\w+>|channels_kernel<\w+, [248]>)", "load128", STREAMING, SHARE
    ),
    family(r"norm_stats_channels_kernel<.*>", "", STREAMING, SHARE),
    family(r"norm_\w+_channels_kernel<\w+, 1>", "", STREAMING),
    family(r"norm_merge_kernel<.*>", "", STREAMING, SHARE),
    family(r"norm_merge_tiles_kernel<.*", "", STREAMING, SHARE),
    # Pooling. PoolKind: 0 maximum, 1 sum, 2 power, 3 sample, 4 expectation.
    family(r"pool_fprop_channels_kernel<\w+, \(PoolKind\)[01], \d>", WIDE, POOLING),
    family(r"pool_fprop_channels_kernel<float, \(PoolKind\)[34], 0>", WIDE, POOLING),
    # Two walks and a random number a lane leave registers for four lanes of 16-bit types.
    family(r"pool_fprop_channels_kernel<\w+, \(PoolKind\)[34], 0>", occupancy=POOLING),
    family(r"pool_dgrad_channels_kernel<\w+, \(PoolKind\)0>", WIDE, POOLING),
    family(r"pool_dgrad_channels_kernel<.*>", WIDE, POOLING, BY_WINDOW),
    family(r"pool_fprop_global_(channels|planes)_kernel<.*>", "load128", POOLING),
    family(r"pool_fprop_planes_kernel<\w+, \(PoolKind\)1, .*>", STAGED, POOLING, BY_WINDOW),
    family(r"pool_fprop_planes_kernel<.*>", STAGED, POOLING),
    family(r"pool_dgrad_planes_kernel<\w+, \(PoolKind\)0>", STAGED, POOLING),
    family(r"pool_dgrad_planes_kernel<.*>", "load128 shared128 store128", POOLING),
    family(r"pool_fprop_any_kernel<double, \(PoolKind\)2>", "", STREAMING, BY_WINDOW),
    family(r"pool_dgrad_any_kernel<double, \(PoolKind\)[12]>", "", STREAMING, BY_WINDOW),
    family(r"pool_fprop_any_kernel<\w+, \(PoolKind\)2>", "", POOLING, "a power's logarithm"),
    family(r"pool_(fprop_any_kernel<.*|dgrad_any_kernel<\w+, \(PoolKind\)0)>", "", POOLING),
    family(r"pool_dgrad_any_kernel<.*>", "", POOLING, BY_WINDOW),
    family(r"pool_(gather_any|unpool_(channels|planes))_kernel<.*>", occupancy=POOLING),
)


def family_of(kernel: str) -> Family | None:
    for row in FAMILIES:
        if re.fullmatch(row.pattern, kernel):
            return row
    return None
