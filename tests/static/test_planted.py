"""Bad kernels, compiled on the fly: every check sees the one that it is for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from . import build, toolchain
from .build import Resources
from .machine_code import Code, complaints

pytestmark = pytest.mark.nvcc

SOURCE = """
#include <cstdint>
#include "detail/async_copy.cuh"
#include "detail/mma.cuh"

extern "C" {

// Sixteen times the registers that its launch bound leaves.
__global__ void __launch_bounds__(1024) spills_kernel(const float* x, float* y) {
  float a[96];
#pragma unroll
  for (int i = 0; i < 96; ++i) a[i] = x[i * 1024 + threadIdx.x];
#pragma unroll
  for (int j = 0; j < 8; ++j)
#pragma unroll
    for (int i = 0; i < 96; ++i) a[i] = a[i] * a[(i * 7 + j) % 96] + x[i + j];
#pragma unroll
  for (int i = 0; i < 96; ++i) y[i * 1024 + threadIdx.x] = a[i];
}

__global__ void __launch_bounds__(256) indexes_kernel(const float* x, float* y, int n) {
  float a[8];
  for (int i = 0; i < 8; ++i) a[i] = x[i];
  for (int i = 0; i < n; ++i) a[(i * n) & 7] += x[i];
  y[threadIdx.x] = a[threadIdx.x & 7];
}

__global__ void __launch_bounds__(256) atomic_kernel(const float* x, float* y) {
  atomicAdd(y, x[threadIdx.x]);
}

__global__ void __launch_bounds__(256) divides_kernel(const float* x, float* y, int n, int w) {
  float s = 0;
#pragma unroll 4
  for (int i = 0; i < n; ++i) s += x[i / w] * x[i];
  y[threadIdx.x] = s;
}

__global__ void __launch_bounds__(256) divides_before_kernel(const float* x, float* y, int n,
                                                             int w) {
  const float* from = x + n / w;
  float s = 0;
#pragma unroll 4
  for (int i = 0; i < n; ++i) s += from[i] * x[i];
  y[threadIdx.x] = s;
}

__global__ void __launch_bounds__(256) narrow_kernel(const float* x, float* y, int n) {
  for (int i = threadIdx.x; i < n; i += 256)
    for (int j = 0; j < 4; ++j) y[4 * i + j] = x[4 * i + j];
}

__global__ void __launch_bounds__(256) wide_kernel(const float4* x, float4* y, int n) {
  for (int i = threadIdx.x; i < n; i += 256) y[i] = x[i];
}

// The one wide load is not where the time goes.
__global__ void __launch_bounds__(256) wide_once_kernel(const float* x, float* y, int n) {
  float4 s = reinterpret_cast<const float4*>(x)[threadIdx.x];
#pragma unroll 4
  for (int i = 0; i < n; ++i) s.x += x[i * 256 + threadIdx.x] * s.y + s.z * s.w;
  y[threadIdx.x] = s.x;
}

__global__ void __launch_bounds__(32) tensor_kernel(const uint4* x, float* y, int n) {
  __shared__ uint4 rows[32 * 32];
  float d[4] = {};
#pragma unroll 1
  for (int i = 0; i < n; ++i) {
    uint4* row = rows + 32 * (i % 32) + threadIdx.x;
    fastconv::cuda::cp_async<16>(row, x + 32 * i + threadIdx.x, true);
    fastconv::cuda::cp_async_commit();
    fastconv::cuda::cp_async_wait<0>();
    __syncwarp();
    uint32_t a[4];
    fastconv::cuda::ldmatrix_x4(a, row);
#pragma unroll
    for (int k = 0; k < 4; ++k)
      fastconv::cuda::mma_m16n8k16<__nv_bfloat16>(d, a, {a[k], a[3 - k]});
  }
  for (int i = 0; i < 4; ++i) y[4 * threadIdx.x + i] = d[i];
}

// The same without tensor cores, and through registers.
__global__ void __launch_bounds__(32) no_tensor_kernel(const float* x, float* y, int n) {
  __shared__ float rows[32 * 4];
  float d[4] = {};
#pragma unroll 1
  for (int i = 0; i < n; ++i) {
    rows[threadIdx.x] = x[32 * i + threadIdx.x];
    __syncwarp();
    for (int k = 0; k < 4; ++k) d[k] += rows[k] * rows[threadIdx.x ^ k];
    __syncwarp();
  }
  for (int i = 0; i < 4; ++i) y[4 * threadIdx.x + i] = d[i];
}
}
"""


@dataclass(frozen=True)
class Planted:
    out: Path
    report: str
    resources: dict[str, Resources]
    code: dict[str, Code]


@pytest.fixture(scope="module", params=toolchain.ARCHS)
def planted(request, tmp_path_factory) -> Planted:
    folder: Path = tmp_path_factory.mktemp("planted")
    source, out = folder / "planted.cu", folder / "planted.o"
    source.write_text(SOURCE)
    report = toolchain.compile_cuda(source, out, request.param)
    return Planted(
        out,
        report,
        {name: found for (name, _), found in build.parse_report(report).items()},
        {k: Code(body) for k, body in build.machine_code(request.param, out).items()},
    )


def test_spills(planted):
    used = planted.resources["spills_kernel"]
    assert used.stack > 0 and used.spills > 0
    assert any("bytes stack frame" in line for line in build.complaints_of(planted.report))
    assert any(
        "local memory" in line for line in complaints(planted.code["spills_kernel"], frozenset())
    )


def test_a_stack_without_spills(planted):
    """An array that is indexed by a variable lives in local memory."""
    used = planted.resources["indexes_kernel"]
    assert used.stack > 0 and used.spills == 0
    found = complaints(planted.code["indexes_kernel"], frozenset())
    assert any("local memory" in line for line in found)


def test_float_atomics(planted):
    found = complaints(planted.code["atomic_kernel"], frozenset())
    assert any(line.startswith("atomic: ") for line in found)


def test_division(planted):
    found = complaints(planted.code["divides_kernel"], frozenset())
    assert any("division in a main loop" in line for line in found)
    assert complaints(planted.code["divides_before_kernel"], frozenset()) == []


def test_wide_accesses(planted):
    claims = frozenset({"load128", "store128"})
    assert len(complaints(planted.code["narrow_kernel"], claims)) == 2
    assert complaints(planted.code["wide_kernel"], claims) == []


def test_a_wide_access_outside_of_the_loop(planted):
    (found,) = complaints(planted.code["wide_once_kernel"], frozenset({"load128"}))
    assert found.startswith("claims load128")


def test_engines(planted):
    claims = frozenset({"async_copy", "async_copy128", "ldmatrix", "tensor", "tensor_bf16"})
    assert complaints(planted.code["tensor_kernel"], claims) == []
    assert len(complaints(planted.code["no_tensor_kernel"], claims)) == len(claims)
    # bf16 is neither of these.
    others = frozenset({"tensor_f16", "tensor_tf32"})
    assert len(complaints(planted.code["tensor_kernel"], others)) == 2


def test_the_two_sources_of_resources_agree(planted):
    """cuobjdump of the object and ptxas's report."""
    held = build.parse_resources(toolchain.cuobjdump("-res-usage", planted.out))
    assert len(held) == SOURCE.count("__global__")
    assert {name for name, _ in held} == planted.resources.keys()
    for (name, _), found in held.items():
        assert found.registers == planted.resources[name].registers
        assert (found.stack > 0) == (planted.resources[name].stack > 0)


@pytest.mark.parametrize(
    "line",
    [
        "ptxas info    : (C7508) Potential Performance Loss: wgmma.mma_async instructions are"
        " serialized due to ...",
        "ptxas /tmp/x.ptx, line 9; warning : Unresolved extern",
        "    24 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads",
    ],
)
def test_lines_that_fail_a_build(line):
    assert build.complaints_of(f"ptxas info    : 0 bytes gmem\n{line}\n") == [line.strip()]


def test_lines_that_do_not():
    assert build.complaints_of("    0 bytes stack frame, 0 bytes spill stores\n") == []
