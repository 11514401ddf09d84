"""What the emulated instructions compute, against independent definitions: conversions, warp
collectives, ldmatrix, mma.sync; the order of threads and what it may not change; speed."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from emulated import emulation
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def all_and_between(dtype: torch.dtype) -> Floats:
    """Every finite value of the dtype, the ties between neighbours, and what lies just beside."""
    bits = np.arange(1 << 16, dtype=np.uint16)
    values = torch.from_numpy(bits.view(np.int16)).view(dtype).double().numpy()
    values = np.unique(values[np.isfinite(values)])
    ties = (values[1:] + values[:-1]) / 2  # exact in fp32 for both types
    exact = np.concatenate([values, ties]).astype(np.float32)
    beside = [np.nextafter(exact, side, dtype=np.float32) for side in (-np.inf, np.inf)]
    largest = np.float32(values[-1])
    over = np.array([65519.996, 65520, 1e30, 3.4e38, largest], np.float32)
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45], np.float32)
    return np.concatenate([exact, *beside, over, -over, special])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_conversions_round_to_nearest_even(dtype: torch.dtype) -> None:
    module = emulation("planted")
    name = {torch.float16: "half", torch.bfloat16: "bfloat16"}[dtype]
    values = all_and_between(dtype)
    ours = getattr(module, f"float_to_{name}")(values)
    theirs = torch.from_numpy(values).to(dtype).view(torch.int16).numpy().view(np.uint16)
    nan = np.isnan(values)
    np.testing.assert_array_equal(ours[~nan], theirs[~nan])
    assert (ours[nan] == 0x7FFF).all()  # CUDA's NaN

    bits = np.arange(1 << 16, dtype=np.uint16)
    back = getattr(module, f"{name}_to_float")(bits)
    expected = torch.from_numpy(bits.view(np.int16)).view(dtype).float().numpy()
    np.testing.assert_array_equal(back, expected)  # NaN equals NaN here


def test_tf32_rounds_to_nearest_ties_away() -> None:
    rng = np.random.default_rng(3)
    values = rng.standard_normal(10000).astype(np.float32) * np.float32(2) ** rng.integers(
        -120, 120, 10000
    ).astype(np.float32)
    # Exactly between two numbers of 11 significant bits, of both signs.
    ties = ((rng.integers(1024, 2048, 1000) + 0.5) * rng.choice([-1, 1], 1000)).astype(np.float32)
    values = np.concatenate([values, ties])
    got = emulation("planted").round_to_tf32(values).view(np.float32).astype(np.float64)
    mantissa, exponent = np.frexp(values.astype(np.float64))
    scaled = mantissa * 2048
    away = np.trunc(scaled + np.copysign(0.5, scaled))
    np.testing.assert_array_equal(got, np.ldexp(away / 2048, exponent))


def run_values(name: str, x: Floats, outputs: int, seed: int = 1) -> Floats:
    y, _ = emulation("planted").run(name, False, x.view(np.uint8), outputs, seed=seed)
    return y.view(np.float32)


# --- warp collectives: x is 64 numbers, two warps of 32 ------------------------------------------


@pytest.mark.parametrize("width", [32, 16, 8, 2])
def test_shuffles(width: int) -> None:
    """Rows of y: idx (source 3), xor 5, down 3, up 2, each within segments of `width` lanes."""
    x = np.concatenate([np.arange(64), [width]]).astype(np.float32)
    y = run_values("shuffles", x, 4 * 64).reshape(4, 64)
    for thread in range(64):
        lane, warp = thread % 32, thread // 32 * 32
        start, end = lane // width * width, lane // width * width + width

        def at(source: int, warp: int = warp) -> float:
            return float(x[warp + source])

        assert y[0, thread] == at(start + 3 % width)
        # Earlier segments can be read, later ones cannot.
        assert y[1, thread] == at(lane ^ 5 if lane ^ 5 < end else lane)
        assert y[2, thread] == at(lane + 3 if lane + 3 < end else lane)
        assert y[3, thread] == at(lane - 2 if lane - 2 >= start else lane)


def test_votes_and_block_predicates() -> None:
    x = np.zeros(64, np.float32)
    x[[1, 5, 31, 32, 40]] = 1
    y = run_values("votes", x, 8 * 64).reshape(8, 64)
    first, second = (1 << 1) | (1 << 5) | (1 << 31), (1 << 0) | (1 << 8)
    ballot = y[0].astype(np.uint64) + y[1].astype(np.uint64) * 65536
    np.testing.assert_array_equal(ballot, [first] * 32 + [second] * 32)
    np.testing.assert_array_equal(y[2], [1] * 64)  # any
    np.testing.assert_array_equal(y[3], [0] * 64)  # all
    np.testing.assert_array_equal(y[4], [5] * 64)  # __syncthreads_count
    np.testing.assert_array_equal(y[5], [1] * 64)  # __syncthreads_or
    np.testing.assert_array_equal(y[6], [0] * 64)  # __syncthreads_and
    # Of the upper half of each warp only, by a mask: lanes 16 to 31.
    upper = y[7].reshape(2, 2, 16)
    assert (upper[:, 0] == -1).all() and (upper[0, 1] == 1).all() and (upper[1, 1] == 0).all()


def test_integer_atomics() -> None:
    """Of 256 threads in 4 blocks: sum, max, min, or, and a ticket each from atomicCAS."""
    x = np.random.default_rng(5).permutation(256).astype(np.float32)
    y = run_values("atomics", x, 5 + 256)
    ints = x.astype(np.int64)
    assert y[:5].tolist() == [ints.sum(), 255, -255, np.bitwise_or.reduce(ints), 256]
    np.testing.assert_array_equal(np.sort(y[5:]), np.arange(256))


# --- fragments, spelled out from the PTX ISA ------------------------------------------------------


def test_ldmatrix() -> None:
    """Four 8x8 matrices of 16-bit numbers, plain and transposed."""
    matrices = np.arange(256, dtype=np.float32).reshape(4, 8, 8)
    y = run_values("ldmatrix", matrices.reshape(-1), 2 * 4 * 32 * 2).reshape(2, 4, 32, 2)
    for lane in range(32):
        row, column = lane // 4, lane % 4 * 2
        for m in range(4):
            assert y[0, m, lane].tolist() == matrices[m, row, column : column + 2].tolist()
            assert y[1, m, lane].tolist() == matrices[m, column : column + 2, row].tolist()


@pytest.mark.parametrize("kind", ["f16", "bf16", "tf32"])
def test_mma(kind: str) -> None:
    """Fragments filled element by element from the tables of the PTX ISA; d = a b + c exactly for
    small integers."""
    depth = 8 if kind == "tf32" else 16
    rng = np.random.default_rng(11)
    a, b, c = (
        rng.integers(-4, 5, shape).astype(np.float32)
        for shape in ((16, depth), (depth, 8), (16, 8))
    )
    lanes = np.arange(32)
    group, in_group = lanes // 4, lanes % 4
    if kind == "tf32":
        fragments_a = [a[group + 8 * (i % 2), in_group + 4 * (i // 2)] for i in range(4)]
        fragments_b = [b[in_group + 4 * i, group] for i in range(2)]
    else:
        # a0, a1: (g, 2t), (g, 2t+1); a2, a3: row + 8; a4, a5: column + 8; a6, a7: both.
        rows = [0, 0, 8, 8, 0, 0, 8, 8]
        columns = [0, 1, 0, 1, 8, 9, 8, 9]
        fragments_a = [a[group + r, 2 * in_group + k] for r, k in zip(rows, columns, strict=True)]
        fragments_b = [b[2 * in_group + k, group] for k in (0, 1, 8, 9)]
    places = [(group + r, 2 * in_group + k) for r in (0, 8) for k in (0, 1)]
    fragments_c = [c[place] for place in places]
    x = np.concatenate([*fragments_a, *fragments_b, *fragments_c]).astype(np.float32)
    y = run_values(f"mma_{kind}", x, 4 * 32).reshape(4, 32)
    expected = a @ b + c
    for i, place in enumerate(places):
        np.testing.assert_array_equal(y[i], expected[place])


# --- order, workers, speed ------------------------------------------------------------------------


def test_seed_changes_the_order_and_nothing_else() -> None:
    """A kernel that writes down in which order its threads came: another for every seed, the same
    for the same seed."""
    x = np.zeros(256, np.float32)
    orders = {seed: tuple(run_values("arrival_order", x, 256, seed)) for seed in (1, 2, 3)}
    assert len(set(orders.values())) == 3
    for seed, order in orders.items():
        assert sorted(order) == list(range(256))
        assert tuple(run_values("arrival_order", x, 256, seed)) == order


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_any_number_of_workers(workers: int) -> None:
    x = np.arange(1 << 14, dtype=np.float32)
    y, statistics = emulation("planted").run(
        "missing_syncthreads", False, x.view(np.uint8), x.size, seed=1, workers=workers
    )
    np.testing.assert_array_equal(y.view(np.float32), x.reshape(-1, 128)[:, ::-1].reshape(-1))
    assert (statistics.threads, statistics.blocks) == (1 << 14, 128)


def test_ucontext_switch() -> None:
    """The switch for processors without the assembly one runs the same kernels."""
    module = emulation("planted", "ucontext")
    x = np.arange(1024, dtype=np.float32)
    for name in ("missing_syncthreads", "dropped_wait"):
        y, _ = module.run(name, False, x.view(np.uint8), x.size, seed=1)
        np.testing.assert_array_equal(y.view(np.float32), x.reshape(-1, 128)[:, ::-1].reshape(-1))
    with pytest.raises(RuntimeError, match="deadlock"):
        module.run("deadlock", True, x[:128].view(np.uint8), 128, seed=1)


def test_threads_per_second(record_property) -> None:
    """At least 3e5 CUDA threads per second and core, every access checked. Processor time, and the
    best of three: a busy machine is no failure (an EPYC of family 25 reaches ten times that)."""
    x = np.arange(1 << 18, dtype=np.float32)
    best = 0.0
    for _ in range(3):
        start = time.thread_time()
        _, statistics = emulation("planted").run(
            "missing_syncthreads", False, x.view(np.uint8), x.size, seed=1, workers=1
        )
        best = max(best, statistics.threads / (time.thread_time() - start))
    record_property("threads_per_second", best)
    print(f"\nemulation: {best:.3g} CUDA threads per second of processor time")
    assert best > 3e5
