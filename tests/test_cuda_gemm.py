"""The batched matrix product of the CUDA kernels (detail/gemm_batched.cuh), by emulation: every
orientation, tails of every tile extent, strides, splits, and the exactness of small integers."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import pytest
import torch
from cuda_probe import library
from torch import Tensor

DTYPES = {
    "f32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "f16": torch.float16,
}
# What the instance writes; float32 where it is not the operands' type.
SAME_OUTPUT = ("f16_kk_vec", "f16_kn_vec", "f16_mk_vec", "f16_mn_vec", "bf16_kk_one")
PLACEMENTS = {"end": 0, "start": 1, "end_aligned": 2}


class Params(ctypes.Structure):
    """GemmBatchedParams."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("a", "b", "c")),
        *((name, ctypes.c_int) for name in ("M", "N", "K", "splits")),
        *((name, ctypes.c_int64) for name in ("batch", "a_batch", "b_batch", "c_batch", "c_split")),
        *((name, ctypes.c_int) for name in ("a_row", "b_row", "c_row")),
        *((name, ctypes.c_int) for name in ("m_tiles", "n_tiles", "split_tiles")),
        ("vec4", ctypes.c_bool),
    )


@dataclass(frozen=True)
class Instance:
    index: int
    name: str

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.name.split("_")[0]]

    @property
    def out_dtype(self) -> torch.dtype:
        return self.dtype if self.name in SAME_OUTPUT else torch.float32

    @property
    def a_k(self) -> bool:
        return self.name.split("_")[1][0] == "k"

    @property
    def b_k(self) -> bool:
        return self.name.split("_")[1][1] == "k"

    @property
    def vec(self) -> int:
        return 16 // self.dtype.itemsize if self.name.endswith("vec") else 1

    def __str__(self) -> str:
        return self.name


NAMES = (
    *(f"{dtype}_{ab}_vec" for dtype in DTYPES for ab in ("kk", "kn", "mk", "mn")),
    *("f32_kn_one", "tf32_mk_one", "bf16_kk_one", "f16_mn_one"),
)
INSTANCES = tuple(Instance(index, name) for index, name in enumerate(NAMES))


def test_the_names_are_the_probes() -> None:
    assert [library().gemm_instance(i.index).decode() for i in INSTANCES] == list(NAMES)
    assert library().gemm_instance(len(NAMES)) is None


def integers(*size: int, dtype: torch.dtype, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-3, 4, size, generator=generator).to(dtype)


def padded(matrix: Tensor, extra: int) -> Tensor:
    """Rows `extra` elements further apart, NaN between them."""
    out = matrix.new_full((*matrix.shape[:-1], matrix.shape[-1] + extra), torch.nan)
    out[..., : matrix.shape[-1]] = matrix
    return out


def run(
    instance: Instance,
    a: Tensor,
    b: Tensor,
    extra: int = 0,
    splits: int = 1,
    seed: int = 1,
    placement: str = "end",
) -> Tensor:
    """a [batch, M, K], b [batch, K, N] -> [splits, batch, M, N]; rows of all three are `extra`
    elements longer than they need to be."""
    batch, m, k = a.shape
    n = b.shape[2]
    stored_a = padded((a if instance.a_k else a.mT).contiguous(), extra)
    stored_b = padded((b.mT if instance.b_k else b).contiguous(), extra)
    c = torch.full((splits, batch, m, n + extra), torch.nan, dtype=instance.out_dtype)
    params = Params(
        M=m,
        N=n,
        K=k,
        splits=splits,
        batch=batch,
        a_batch=stored_a[0].numel(),
        b_batch=stored_b[0].numel(),
        c_batch=c[0, 0].numel(),
        c_split=c[0].numel(),
        a_row=stored_a.shape[-1],
        b_row=stored_b.shape[-1],
        c_row=n + extra,
    )
    error = library().run_gemm(
        instance.index,
        *(
            argument
            for t in (stored_a, stored_b, c)
            for argument in (ctypes.c_void_p(t.data_ptr()), ctypes.c_int64(t.nbytes))
        ),
        ctypes.byref(params),
        a.dtype.itemsize,
        c.dtype.itemsize,
        seed,
        PLACEMENTS[placement],
    )
    assert error == b"", error.decode()
    assert c[..., n:].isnan().all(), "written between the rows of C"
    return c[..., :n]


# On and off every tile extent (64 and 128; 16, 32 along K; 2 to 4 stages). Vector instances take
# the next multiple of their copies.
SIZES = ((1, 1, 1), (64, 64, 64), (65, 63, 17), (129, 129, 33), (3, 5, 257))


def rounded(extent: int, multiple: int) -> int:
    return -(-extent // multiple) * multiple


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("instance", INSTANCES, ids=str)
def test_small_integers_are_exact(instance: Instance, size: tuple[int, int, int]) -> None:
    m, n, k = (rounded(extent, instance.vec) for extent in size)
    a = integers(2, m, k, dtype=instance.dtype, seed=m)
    b = integers(2, k, n, dtype=instance.dtype, seed=n)
    # Vector copies want every matrix at 16 bytes, so at the end of a page only where sizes allow.
    placement = "end" if instance.vec == 1 else "start"
    extra = 3 if instance.vec == 1 else instance.vec * (k % 3)
    c = run(instance, a, b, extra, seed=k % 3 + 1, placement=placement)
    assert torch.equal(c[0].double(), a.double() @ b.double())


@pytest.mark.parametrize("instance", INSTANCES, ids=str)
def test_splits_sum_their_ranges(instance: Instance) -> None:
    """Five splits of K: each the product of its own tiles, the last ones with nothing left."""
    m, n, k = 40, 72, 136
    a = integers(3, m, k, dtype=instance.dtype, seed=5)
    b = integers(3, k, n, dtype=instance.dtype, seed=6)
    block_k = 64 // instance.dtype.itemsize
    per_split = rounded(rounded(k, block_k) // block_k, 5) // 5 * block_k
    c = run(instance, a, b, splits=5, placement="start")
    for split in range(5):
        part = slice(split * per_split, (split + 1) * per_split)
        expected = a[..., part].double() @ b[:, part].double()
        assert torch.equal(c[split].double(), expected), split


@pytest.mark.parametrize("instance", INSTANCES, ids=str)
def test_nothing_to_sum_is_zero(instance: Instance) -> None:
    a = torch.zeros(1, 8, 0, dtype=instance.dtype)
    b = torch.zeros(1, 0, 16, dtype=instance.dtype)
    assert torch.equal(run(instance, a, b)[0], torch.zeros(1, 8, 16, dtype=instance.out_dtype))


@pytest.mark.parametrize("instance", INSTANCES, ids=str)
def test_random_values_and_their_repetition(instance: Instance) -> None:
    """Within the rounding of the type, and the same bits whatever the order of the threads."""
    generator = torch.Generator().manual_seed(3)
    a = torch.randn(2, 72, 200, generator=generator).to(instance.dtype)
    b = torch.randn(2, 200, 136, generator=generator).to(instance.dtype)
    results = [run(instance, a, b, seed=seed, placement="start")[0] for seed in (1, 2, 3)]
    assert all(torch.equal(results[0], other) for other in results)
    magnitude = a.double().abs() @ b.double().abs()
    bound = 8 * 2.0**-24 * magnitude
    if instance.name.startswith("tf32"):
        bound += (2 * 2.0**-11 + 2.0**-22) * magnitude
    expected = a.double() @ b.double()
    if instance.out_dtype != torch.float32:
        bound += torch.finfo(instance.out_dtype).eps / 2 * expected.abs()
    assert ((results[0].double() - expected).abs() <= bound).all()
