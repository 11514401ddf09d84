"""The emulation catches what it says it catches: small kernels with one bug each, planted in
tests/emulator/planted, and their correct twins."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from emulated import emulation, source_lines
from numpy.typing import NDArray

Floats = NDArray[np.float32]
SEEDS = (1, 2, 3)
PLACEMENTS = ("end", "start", "end_aligned")


def reversed_blocks(size: int) -> Callable[[Floats], Floats]:
    return lambda x: x.reshape(-1, size)[:, ::-1].reshape(-1)


def warp_sums(lanes: int = 32) -> Callable[[Floats], Floats]:
    return lambda x: np.repeat(x.reshape(-1, lanes).sum(1), lanes)


def half_warp_sums(x: Floats) -> Floats:
    """Of the first 16 lanes of each warp; the others write nothing."""
    y = warp_sums(16)(x).reshape(-1, 2, 16)
    y[:, 1] = np.nan
    return y.reshape(-1)


def sums_without_idle(x: Floats) -> Floats:
    busy = np.where(np.arange(128) < 88, x, 0).astype(np.float32)
    return np.where(np.arange(128) < 88, warp_sums()(busy), np.nan)


def rows_of_31_reversed(x: Floats) -> Floats:
    y = np.full(128, np.nan, np.float32)
    y[:124] = reversed_blocks(31)(x[:124])
    return y


def handed_over(x: Floats) -> Floats:
    y = np.full_like(x, np.nan)
    y[:64] = reversed_blocks(32)(x[:64])
    return y


def rolled(x: Floats) -> Floats:
    """Each lane has the next one's."""
    return np.roll(x.reshape(-1, 32), -1, axis=1).reshape(-1)


def product_of_matrices(x: Floats) -> Floats:
    y = np.full_like(x, np.nan)
    y[:128] = (x[:256].reshape(16, 16) @ x[256:].reshape(16, 8)).reshape(-1)
    return y


def plus_neighbour(step: int) -> Callable[[Floats], Floats]:
    def expected(x: Floats) -> Floats:
        padded = np.pad(x, 1)
        return x + padded[1 + step : 1 + step + x.size]

    return expected


def only_first(value: Callable[[Floats], float]) -> Callable[[Floats], Floats]:
    def expected(x: Floats) -> Floats:
        y = np.full_like(x, np.nan)
        y[0] = value(x)
        return y

    return expected


@dataclass(frozen=True)
class Planted:
    """What the correct twin computes, and how the bug shows: an error whose text matches, or (None)
    wrong values. `values`: it also shows in the values (or as an error) when no access is checked,
    so that it would be found on a machine whose compiler cannot instrument."""

    expected: Callable[[Floats], Floats]
    error: str | None
    n: int = 128
    values: bool = True


def identity(x: Floats) -> Floats:
    return x


def stored_rows(x: Floats) -> Floats:
    """And the number of rows added."""
    return reversed_blocks(128)(x) + x.size // 128


def product_of_rows(x: Floats) -> Floats:
    a, b = x[:2048].reshape(2, 64, 16)
    return (a @ b.T).reshape(-1)


RACE = r"race: (read|write) .*, with no barrier between"
RACE_OF_BLOCKS = r"race: (read|write) .* of block number \d+ (wrote|read) in the same launch"
LOAD_IN_FLIGHT = f"which a bulk tensor load of thread .* in flight will write|{RACE}"
STORE_IN_FLIGHT = "(read of|write to) .* which a bulk tensor store in flight will write"
STORE_READS = "written while a bulk tensor store was reading"
IN_ONE_LAUNCH = "race: .* in the same launch"
PLANTED = {
    # Barriers.
    "missing_syncthreads": Planted(reversed_blocks(128), RACE, 1024),
    "missing_barrier_before_reuse": Planted(reversed_blocks(128), RACE, 1024),
    "divergent_barrier": Planted(reversed_blocks(128), "divergent barrier: __syncthreads at"),
    "deadlock": Planted(
        reversed_blocks(128),
        r"deadlock: 16 threads wait in __syncwarp .* 112 threads wait in __syncthreads",
    ),
    "race_of_two_warps": Planted(lambda x: np.full_like(x, x[::32].sum()), RACE, values=False),
    "depends_on_other_block": Planted(
        lambda x: x + np.pad(x, (128, 0))[: x.size], "race: .* in the same launch", 1024
    ),
    "two_blocks_write_one_element": Planted(
        identity, "race: write .* wrote in the same launch", values=False
    ),
    # Warps.
    "missing_syncwarp": Planted(rolled, RACE),
    "global_read_before_syncwarp": Planted(rolled, IN_ONE_LAUNCH, values=False),
    "global_write_before_syncwarp": Planted(rolled, IN_ONE_LAUNCH, values=False),
    "global_memory_of_another_warp": Planted(identity, IN_ONE_LAUNCH, values=False),
    "lane_not_in_mask": Planted(warp_sums(), r"lane \d+ is not in its own mask 0x0000ffff"),
    "different_masks": Planted(warp_sums(), "with mask 0x[0-9a-f]+, but lane .* with mask"),
    "different_collectives": Planted(warp_sums(), "__shfl_(xor|down)_sync at .* but lane"),
    "exited_lane_in_mask": Planted(
        sums_without_idle, r"thread exits, but lane|names lanes 0x[0-9a-f]+ that have exited"
    ),
    "shuffle_from_inactive_lane": Planted(half_warp_sums, None),
    "activemask_as_full_mask": Planted(warp_sums(), None),
    "named_barrier_thread_count": Planted(
        lambda x: np.concatenate([x[63::-1], x[64:]]), "deadlock: 64 threads wait in named barrier"
    ),
    "named_barrier_hand_over": Planted(handed_over, f"{RACE}|deadlock|more arrivals than", 128),
    # Memory.
    "global_read_behind": Planted(
        plus_neighbour(1), "out of bounds: read of 0 bytes behind the end of x", 200
    ),
    "global_read_before": Planted(
        plus_neighbour(-1), "out of bounds: read of 4 bytes before x", 200
    ),
    "global_write_behind": Planted(
        identity, r"out of bounds: write to \d+ bytes behind the end of y", 200
    ),
    "global_access_far_away": Planted(identity, "out of bounds: read of 34359738164 bytes behind"),
    "write_to_input": Planted(identity, "write to byte .* of x .*, which is an input"),
    "shared_write_out_of_bounds": Planted(
        rows_of_31_reversed, r"out of bounds: write to tile\+496 \(of 496 bytes\)|" + RACE
    ),
    "shared_read_out_of_bounds": Planted(
        plus_neighbour(1), r"out of bounds: read of tile\+512 \(of 512 bytes\)"
    ),
    "uninitialised_shared_read": Planted(
        lambda x: plus_neighbour(1)(x) + plus_neighbour(-1)(x) - x, None
    ),
    "misaligned_vector": Planted(identity, "misaligned access to '.*float4'"),
    "misaligned_shared_vector": Planted(identity, "misaligned access to '.*float4'"),
    "output_not_initialised": Planted(identity, None),
    "tail_not_covered": Planted(identity, None, 200),
    "thread_count_wrong": Planted(identity, None, 200),
    "uninitialised_workspace": Planted(only_first(np.sum), None, 1000),
    "stack_overflow": Planted(lambda x: x, "stack overflow", 32),
    "endless_loop": Planted(lambda x: x, "endless loop", 32),
    # cp.async.
    "dropped_wait": Planted(
        reversed_blocks(128), "which a cp.async of thread .* in flight will write", 1024
    ),
    "wait_count_off_by_one": Planted(
        reversed_blocks(128), "which a cp.async of thread .* in flight will write", 1024
    ),
    "no_barrier_after_wait": Planted(
        reversed_blocks(128), f"which a cp.async of thread .* in flight will write|{RACE}", 1024
    ),
    "copy_over_stage_in_use": Planted(
        reversed_blocks(128), f"which a cp.async of thread .* in flight will write|{RACE}", 1024
    ),
    "copy_never_waited_for": Planted(
        reversed_blocks(128), "thread exits with 1 cp.async copies that nothing waited for", 1024
    ),
    "store_into_pending_copy": Planted(
        identity, r"write to tile\+\d+ .* which a cp.async of thread .* in flight will write"
    ),
    "copy_source_misaligned": Planted(identity, "cp.async .*: source not aligned to its size"),
    "copy_destination_misaligned": Planted(identity, "destination not aligned to its size"),
    "copy_outside_of_shared": Planted(identity, r"cp.async .* to tile\+512 .* outside"),
    "copy_source_out_of_bounds": Planted(identity, "out of bounds: read of .* behind", 100),
    # Tensor cores.
    "wrong_fragment_index": Planted(product_of_matrices, None, 384),
    "ldmatrix_wrong_row": Planted(product_of_matrices, None, 384),
    "ldmatrix_misaligned_row": Planted(product_of_matrices, "is not aligned to 16 bytes", 384),
    "ldmatrix_not_transposed": Planted(product_of_matrices, None, 384),
    "mma_in_half_a_warp": Planted(
        product_of_matrices, "thread exits, but lane .* waits for it in mma.sync|that have", 384
    ),
    # mbarrier, TMA, wgmma.
    "tma_no_full_wait": Planted(reversed_blocks(128), LOAD_IN_FLIGHT, 1024),
    "tma_wrong_phase": Planted(reversed_blocks(128), LOAD_IN_FLIGHT, 1024),
    "tma_too_many_bytes": Planted(
        reversed_blocks(128),
        r"deadlock: .* mbarrier.try_wait .* lacks 0 of 1 .* and 16 bytes",
        1024,
    ),
    "tma_too_few_bytes": Planted(
        reversed_blocks(128), "deadlock: .* mbarrier.try_wait .* lacks 0 of 1 .* -16 bytes", 1024
    ),
    "mbarrier_no_init_fence": Planted(
        reversed_blocks(128), "is used before its init was made visible", 1024
    ),
    "tma_slot_too_early": Planted(
        reversed_blocks(128), f"{RACE}|another one in flight|more arrivals at", 1024
    ),
    "mbarrier_never_released": Planted(
        reversed_blocks(128), r"deadlock: .* mbarrier.try_wait .* lacks 128 of 128 arrivals", 1024
    ),
    "mbarrier_arrives_twice": Planted(
        reversed_blocks(128), f"{LOAD_IN_FLIGHT}|more arrivals at", 1024
    ),
    "tma_misaligned": Planted(reversed_blocks(128), "not aligned to 128 bytes", 1024),
    "wgmma_no_proxy_fence": Planted(
        product_of_rows, "wgmma reads .* wrote without a fence.proxy.async since", 4096, False
    ),
    "wgmma_no_barrier": Planted(product_of_rows, RACE, 4096),
    "wgmma_no_wait": Planted(product_of_rows, None, 4096),
    "wgmma_no_fence": Planted(product_of_rows, "wgmma without wgmma.fence", 4096),
    "wgmma_accumulator_touched": Planted(product_of_rows, "an accumulator was written", 4096),
    "wgmma_operand_changed": Planted(product_of_rows, f"{RACE}|wrote without", 4096),
    "wgmma_wrong_stride": Planted(product_of_rows, "no multiple of the swizzle pattern", 4096),
    "wgmma_wrong_start": Planted(product_of_rows, "not in the first row of a swizzle", 4096),
    "wgmma_half_a_warpgroup": Planted(product_of_rows, "issued different numbers of wgmma", 4096),
    "wgmma_not_committed": Planted(product_of_rows, "thread exits with wgmma", 4096),
    "wgmma_registers_no_fence": Planted(
        product_of_rows, "A in registers was written after the last wgmma.fence", 4096
    ),
    "wgmma_registers_fenced_early": Planted(
        product_of_rows, "A in registers was written after the last wgmma.fence", 4096
    ),
    "wgmma_registers_changed": Planted(
        product_of_rows, "A in registers was written while the wgmma was in flight", 4096
    ),
    "wgmma_registers_fragment": Planted(product_of_rows, None, 4096),
    "tma_store_no_proxy_fence": Planted(
        stored_rows, "store reads .* wrote without a fence.proxy.async since", 1024, False
    ),
    "tma_store_no_wait": Planted(stored_rows, "exits with bulk tensor stores", 1024),
    "tma_store_not_committed": Planted(
        stored_rows, f"exits with bulk tensor stores|{STORE_IN_FLIGHT}|{STORE_READS}", 1024
    ),
    "tma_store_reused_early": Planted(stored_rows, STORE_READS, 1024),
    "tma_store_no_barrier_after_wait": Planted(stored_rows, f"{STORE_READS}|{RACE}", 1024, False),
    "tma_store_misaligned": Planted(stored_rows, "not aligned to 128 bytes", 1024),
    "tma_store_read_back": Planted(stored_rows, STORE_IN_FLIGHT, 1024),
    "tma_store_read_back_no_barrier": Planted(
        stored_rows, f"{STORE_IN_FLIGHT}|{IN_ONE_LAUNCH}", 1024
    ),
    "tma_store_axes_swapped": Planted(identity, STORE_IN_FLIGHT, 360),
    "tma_store_extent_too_large": Planted(identity, "map goes beyond|in flight will write", 360),
    "tma_store_not_swizzled": Planted(identity, None, 360),
    "tma_store_rounds": Planted(identity, "the map is one that rounds", 360),
    "tma_store_boxes_overlap": Planted(identity, STORE_IN_FLIGHT, 360, False),
    # Clusters.
    "cluster_no_start_sync": Planted(
        reversed_blocks(128), "of another block .* no barrier of the cluster since its init", 1024
    ),
    "cluster_no_end_sync": Planted(
        reversed_blocks(128), "behind the cluster's last barrier|of the cluster has exited", 1024
    ),
    "cluster_own_arrival_only": Planted(
        reversed_blocks(128), r"deadlock: block 0 of the cluster: .* lacks 128 of 256", 1024
    ),
    "cluster_own_slot_only": Planted(
        reversed_blocks(128), f"{LOAD_IN_FLIGHT}|{RACE}|another one in flight|more arrivals", 1024
    ),
    "cluster_own_half_expected": Planted(
        reversed_blocks(128), f"{LOAD_IN_FLIGHT}|deadlock: .* -256 bytes|{RACE}", 1024
    ),
    "cluster_wrong_mask": Planted(
        reversed_blocks(128), "deadlock: .* lacks 0 of 1 arrivals and 256 bytes", 1024
    ),
    "cluster_beyond_its_size": Planted(reversed_blocks(128), "block 2 of a cluster of 2", 1024),
    "peer_no_sync_before": Planted(
        identity, "what another block .* reads, with no barrier|wrote, with no barrier", 512, False
    ),
    "peer_no_sync_behind": Planted(
        identity, "what another block .* reads, with no barrier|wrote, with no barrier", 512, False
    ),
    "peer_no_end_sync": Planted(
        identity, "behind the cluster's last barrier|of the cluster has exited", 512
    ),
    "peer_outside": Planted(identity, "ld.shared::cluster .* outside", 512),
    "cluster_odd_grid": Planted(identity, "clusters of 2 blocks in a grid of 3", 512),
    # Flags between blocks; eight blocks, more than run at a time.
    "flag_no_wait": Planted(identity, RACE_OF_BLOCKS, 512, False),
    "flag_no_sync_before_release": Planted(identity, RACE_OF_BLOCKS, 512, False),
    "flag_no_sync_behind_wait": Planted(identity, RACE_OF_BLOCKS, 512, False),
    "flag_written_behind_release": Planted(identity, RACE_OF_BLOCKS, 512, False),
    "flag_not_taken_back": Planted(identity, "has the value since before the launch", 512),
    "flag_of_a_later_block": Planted(identity, "deadlock: .* ld.acquire of a flag", 512),
    "flag_of_another_block": Planted(
        identity, f"{RACE_OF_BLOCKS}|deadlock: .* ld.acquire of a flag", 512
    ),
    "flag_without_order": Planted(identity, "blocks start in no particular order", 512),
    "flag_outside": Planted(identity, "st.release .* outside of its buffer", 512),
    # Launches.
    "too_many_threads": Planted(identity, "invalid launch configuration: block of 1025 x 1 x 1"),
    "too_many_threads_in_z": Planted(identity, "invalid launch configuration: .* 64 in z"),
    "no_threads": Planted(identity, "invalid launch configuration: block of 0"),
    "no_blocks": Planted(identity, "invalid launch configuration: grid of 0"),
    "grid_y_too_large": Planted(identity, "grid of 1 x 65536 x 1 blocks .* 65535 in y and z"),
    "dynamic_shared_too_large": Planted(identity, "232449 bytes of dynamic shared memory"),
    "static_shared_too_large": Planted(identity, "static shared memory of 49156 bytes"),
    "shared_sum_too_large": Planted(identity, "49152 static and 184320 dynamic bytes"),
    "launch_bound": Planted(identity, r"128 x 1 x 1 threads, but __launch_bounds__\(64\)"),
}


def run(name: str, bug: bool, x: Floats, seed: int, check_accesses: bool = True) -> Floats:
    module = emulation("planted")
    with source_lines(module):
        y, _ = module.run(
            name,
            bug,
            x.view(np.uint8),
            x.size,
            seed=seed,
            check_accesses=check_accesses,
            placement=getattr(module.Placement, PLACEMENTS[seed % len(PLACEMENTS)]),
            seconds=0.5,
        )
    return y.view(np.float32)


def planted_input(planted: Planted) -> Floats:
    # Small integers, so that sums are exact in any order; none is zero, so that none goes missing.
    values = np.random.default_rng(7).integers(1, 9, planted.n)
    return values.astype(np.float32)


def test_every_scenario_has_its_test() -> None:
    assert set(emulation("planted").scenarios()) == {*PLANTED, "offset_in_32_bits"}


@pytest.mark.parametrize("check_accesses", [True, False], ids=["checked", "unchecked"])
@pytest.mark.parametrize("name", PLANTED)
def test_correct_twin_passes(name: str, check_accesses: bool) -> None:
    x = planted_input(PLANTED[name])
    for seed in SEEDS:
        y = run(name, False, x, seed, check_accesses)
        np.testing.assert_array_equal(y, PLANTED[name].expected(x))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", PLANTED)
def test_planted_bug_is_caught(name: str, seed: int) -> None:
    """By each of the seeds alone."""
    planted = PLANTED[name]
    x = planted_input(planted)
    if planted.error is None:
        y = run(name, True, x, seed)
        assert not np.array_equal(y, planted.expected(x), equal_nan=True)
        return
    with pytest.raises(RuntimeError) as caught:
        run(name, True, x, seed)
    assert re.search(planted.error, str(caught.value)), str(caught.value)


@pytest.mark.parametrize("name", [name for name, planted in PLANTED.items() if planted.values])
def test_planted_bug_shows_without_access_checks(name: str) -> None:
    """As an error, or as a wrong value in some element; with one of the three seeds at least."""
    x = planted_input(PLANTED[name])

    def shows(seed: int) -> bool:
        try:
            y = run(name, True, x, seed, check_accesses=False)
        except RuntimeError:
            return True
        return not np.array_equal(y, PLANTED[name].expected(x), equal_nan=True)

    assert any(shows(seed) for seed in SEEDS)


@pytest.mark.parametrize("bug", [False, True])
def test_offset_in_32_bits(bug: bool) -> None:
    """A tensor of 2^32 elements of which nothing but the touched pages is there, and only some of
    the grid's blocks run: the first, the last and others."""
    module = emulation("planted")
    n = 1 << 32
    last = 4 * (n - (1 << 20))  # the last row's first element
    x = (4 * n, [(last, np.array([41], np.float32).view(np.uint8))])

    def result() -> float:
        y, statistics = module.run(
            "offset_in_32_bits", bug, x, n, [(last, 4)], seed=1, block_limit=16
        )
        assert statistics.blocks == 16
        return float(y[0].view(np.float32)[0])

    if bug:
        with pytest.raises(RuntimeError, match=r"out of bounds|invalid access .* before"):
            result()
    else:
        assert result() == 42


def test_error_names_kernel_block_thread_and_line() -> None:
    x = planted_input(PLANTED["global_read_behind"])
    with pytest.raises(RuntimeError) as caught:
        run("global_read_behind", True, x, 1)
    pattern = (
        r"global_read_behind<true>: out of bounds: read of 0 bytes behind the end of x"
        r" \(800 bytes\) \(memory.cu:\d+\) \[block \(1,0,0\) thread \(71,0,0\)\]"
    )
    assert re.search(pattern, str(caught.value)), str(caught.value)


def test_next_run_is_clean_after_an_error() -> None:
    x = planted_input(PLANTED["deadlock"])
    for _ in range(3):
        with pytest.raises(RuntimeError, match="deadlock"):
            run("deadlock", True, x, 1)
        np.testing.assert_array_equal(run("deadlock", False, x, 1), PLANTED["deadlock"].expected(x))
