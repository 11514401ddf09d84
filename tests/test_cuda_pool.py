"""The CUDA pooling kernels, emulated: what the sweep over the problem list does not see."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from emulated import CAPABILITY, SM_COUNT, emulation, source_lines
from emulated_pool import PoolInstance, _native, native_problem, pool_instances, run_pool
from torch import Tensor

from fastconv.pool_checks import (
    KEEP_BYTE,
    KEEP_NOTHING,
    KEEP_PLACE,
    PoolCase,
    PoolCheck,
    PoolOptions,
    adaptive_case,
    difference,
    expected,
    pool_case,
)

SHORT = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}
DTYPES = tuple(SHORT)
BYTE, PLACE = PoolOptions(index=KEEP_BYTE), PoolOptions(index=KEEP_PLACE)
L2 = PoolOptions(power=2.0)
# (pass, kind, how it is called)
PASSES = (
    ("forward", "max", BYTE),
    ("forward", "sum", PoolOptions(include_pad=False)),
    ("forward", "lp", L2),
    ("forward", "sample", BYTE),
    ("backward", "max", BYTE),
    ("backward", "sum", PoolOptions(include_pad=False)),
    ("backward", "lp", PoolOptions(power=2.0, rescale=True)),
)


def find(name: str) -> PoolInstance:
    (found,) = (instance for instance in pool_instances() if instance.name == name)
    return found


def chosen(
    pass_: str,
    kind: str,
    dtype: torch.dtype,
    layout: str,
    case: PoolCase,
    options: PoolOptions,
    address: int = 256,
) -> str:
    """The name of the kernel that an op runs."""
    group = (pass_, kind, dtype, layout)
    instance = next(i for i in pool_instances() if i.group == group)
    return instance.choice(case, options, address)


def run_checked(
    instance: PoolInstance, case: PoolCase, options: PoolOptions, **how: Any
) -> list[Any]:
    """Right, and what it launched."""
    wanted = expected(PoolCheck(instance.pass_, instance.kind, instance.dtype, case, options))
    launches: list[Any] = []
    result, index = run_pool(
        instance, case, options, wanted.operands, statistics=launches, workers=2, **how
    )
    wrong, _ = difference(result, index, wanted)
    assert not wrong, f"{instance} {case.id} {options} {how}: {wrong}"
    return launches


# --- which kernel runs ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["max", "sum", "lp"])
@pytest.mark.parametrize("dtype", DTYPES, ids=SHORT.get)
def test_usual_windows_have_kernels_of_their_own(dtype: torch.dtype, kind: str) -> None:
    options = {"max": BYTE, "lp": L2}.get(kind, PoolOptions())
    vector = "vec4" if dtype is torch.float32 else "vec8"
    size = (8, 64, 56, 56)
    for case, nchw, nhwc in (
        (pool_case("", size, 2), "planes_k2s2", f"{vector}_k2"),
        (pool_case("", size, 3, 2, 1), "planes_k3s2", f"{vector}_k3"),
        (pool_case("", size, 3, 1, 1), "planes_k3s1", f"{vector}_k3"),
        (pool_case("", size, 7, 1, 3), "planes_k7s1", f"{vector}_k7"),
        (pool_case("", (8, 64, 7, 7), 7, 1), "global", "global"),
        (adaptive_case("", (8, 64, 9, 11), (1, 1)), "global", "global"),
        (adaptive_case("", (8, 64, 5, 9, 11), (1, 1, 1)), "global", "global"),
        # Adaptive windows that are all equal are windows like any others.
        (adaptive_case("", size, (28, 28)), "planes_k2s2", f"{vector}_k2"),
        (pool_case("", size, 5, 3), "any", vector),
        (pool_case("", size, (3, 2)), "any", vector),
        (pool_case("", (8, 64, 9, 11, 12), 3, 2, 1), "any", vector),
        (pool_case("", (8, 64, 99), 3, 2, 1), "any", vector),
        (adaptive_case("", size, (5, 6)), "any", "any"),
    ):
        for layout, mechanism in (("NCHW", nchw), ("NHWC", nhwc)):
            name = f"fprop_{kind}_{SHORT[dtype]}_{layout.lower()}_{mechanism}"
            assert chosen("forward", kind, dtype, layout, case, options) == name, str(case)


@pytest.mark.parametrize("kind", ["max", "sum", "lp"])
@pytest.mark.parametrize("dtype", DTYPES, ids=SHORT.get)
def test_backward_of_square_windows_moves_vectors(dtype: torch.dtype, kind: str) -> None:
    options = {"max": BYTE, "lp": L2}.get(kind, PoolOptions())
    vector = "vec4" if dtype is torch.float32 else "vec8"
    for case in (
        pool_case("", (8, 64, 56, 56), 2),
        pool_case("", (8, 64, 56, 56), 3, 2, 1),
        pool_case("", (8, 64, 7, 7), 7, 1),
        adaptive_case("", (8, 64, 7, 7), (1, 1)),
    ):
        for layout, mechanism in (("NCHW", "planes"), ("NHWC", vector)):
            name = f"dgrad_{kind}_{SHORT[dtype]}_{layout.lower()}_{mechanism}"
            assert chosen("backward", kind, dtype, layout, case, options) == name, str(case)


@pytest.mark.parametrize("dtype", DTYPES, ids=SHORT.get)
def test_sampling_has_kernels_of_its_own(dtype: torch.dtype) -> None:
    size, short = (8, 64, 56, 56), SHORT[dtype]
    for kernel, nchw in ((2, "planes_k2s2"), (3, "planes_k3s2")):
        case = pool_case("", size, kernel, 2)
        for layout, mechanism in (("NCHW", nchw), ("NHWC", "vec4")):
            name = f"fprop_sample_{short}_{layout.lower()}_{mechanism}"
            assert chosen("forward", "sample", dtype, layout, case, BYTE) == name


@pytest.mark.parametrize("dtype", DTYPES, ids=SHORT.get)
def test_what_vectors_cannot_take_goes_by_elements(dtype: torch.dtype) -> None:
    size, short = (2, 64, 9, 9), SHORT[dtype]
    case = pool_case("", size, 3, 2, 1)
    forward = ("forward", "max", dtype)
    nhwc = f"fprop_max_{short}_nhwc"
    vector = "vec4" if dtype is torch.float32 else "vec8"
    assert chosen(*forward, "NHWC", case, BYTE) == f"{nhwc}_{vector}_k3"
    # 8 bytes off is aligned to the element only.
    assert chosen(*forward, "NHWC", case, BYTE, address=264) == f"{nhwc}_any"
    odd = pool_case("", (2, 66, 9, 9), 3, 2, 1)
    assert chosen(*forward, "NHWC", odd, BYTE) == f"{nhwc}_any"
    dilated = pool_case("", size, 3, 1, 2, 2)
    assert chosen(*forward, "NHWC", dilated, BYTE) == f"{nhwc}_{vector}"
    assert chosen(*forward, "NCHW", dilated, BYTE) == f"fprop_max_{short}_nchw_any"
    # NCHW kernels do not mind: their runs are aligned piece by piece.
    assert (
        chosen(*forward, "NCHW", case, BYTE, address=264) == f"fprop_max_{short}_nchw_planes_k3s2"
    )
    for layout in ("NCHW", "NHWC"):
        name = f"dgrad_max_{short}_{layout.lower()}_any"
        assert chosen("backward", "max", dtype, layout, case, PLACE) == name
        assert chosen("backward", "max", dtype, layout, dilated, BYTE) == name
        cubes = PoolOptions(power=3.0)
        name = f"fprop_lp_{short}_{layout.lower()}_any"
        assert chosen("forward", "lp", dtype, layout, case, cubes) == name


def test_rows_too_long_for_shared_memory() -> None:
    fits, not_fits = (pool_case("", (1, 2, 4, w), 3, 2, 1) for w in (1600, 2400))
    forward = ("forward", "max", torch.float32, "NCHW")
    assert chosen(*forward, fits, BYTE) == "fprop_max_f32_nchw_planes_k3s2"
    assert chosen(*forward, not_fits, BYTE) == "fprop_max_f32_nchw_any"


def test_double_precision_goes_by_elements() -> None:
    case = pool_case("", (2, 64, 8, 8), 2)
    for layout in ("NCHW", "NHWC"):
        name = f"fprop_max_f64_{layout.lower()}_any"
        assert chosen("forward", "max", torch.float64, layout, case, BYTE) == name


# --- how blocks share the planes ------------------------------------------------------------------


def planes_name(pass_: str, kind: str, dtype: torch.dtype, k: int, s: int) -> str:
    if pass_ == "backward":
        return f"dgrad_{kind}_{SHORT[dtype]}_nchw_planes"
    return f"fprop_{kind}_{SHORT[dtype]}_nchw_planes_k{k}s{s}"


STRIPS = [
    (*each, k, s, pad)
    for each in PASSES
    for k, s, pad in ((2, 2, 0), (3, 2, 1), (3, 1, 1), (7, 1, 3))
    # No kernel draws from planes at stride 1: a thread per element does.
    if each[1] != "sample" or s != 1
]


@pytest.mark.parametrize("placement", ["start", "offset"])
@pytest.mark.parametrize("pass_, kind, options, k, s, pad", STRIPS)
def test_planes_in_strips(
    pass_: str, kind: str, options: PoolOptions, k: int, s: int, pad: int, placement: str
) -> None:
    """A plane that does not fit into a block's shared memory; windows reach into the next strip."""
    case = pool_case(f"strips_k{k}s{s}", (1, 1, 95, 123), k, s, pad)
    instance = find(planes_name(pass_, kind, torch.float32, k, s))
    (launch,) = run_checked(instance, case, options, placement=placement)
    assert launch.blocks >= 2


@pytest.mark.parametrize("dtype", DTYPES, ids=SHORT.get)
@pytest.mark.parametrize("pass_, kind, options", PASSES)
def test_small_planes_share_a_block(
    pass_: str, kind: str, options: PoolOptions, dtype: torch.dtype
) -> None:
    """Also when the last block has fewer of them, and windows end before the plane does."""
    planes = 12 * SM_COUNT * 2 + 1
    case = pool_case("shared", (1, planes, 4, 3), 2)
    instance = find(planes_name(pass_, kind, dtype, 2, 2))
    (launch,) = run_checked(instance, case, options, check_accesses=False)
    assert launch.blocks == math.ceil(planes / 3)


@pytest.mark.parametrize("kind", ["max", "sum"])
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", DTYPES, ids=SHORT.get)
def test_global_by_whole_blocks(dtype: torch.dtype, layout: str, kind: str) -> None:
    """A plane for which a warp is too few; channels for which one block is."""
    size = (1, 2, 45, 61) if layout == "nchw" else (2, 320, 5, 5)
    case = adaptive_case("global", size, (1, 1), values="special" if kind == "max" else "normal")
    instance = find(f"fprop_{kind}_{SHORT[dtype]}_{layout}_global")
    (launch,) = run_checked(instance, case, PLACE if kind == "max" else PoolOptions())
    assert launch.blocks >= 2


def test_sums_of_planes_do_not_depend_on_their_alignment() -> None:
    case = adaptive_case("alignment", (3, 5, 7, 7), (1, 1))
    instance = find("fprop_sum_f32_nchw_global")
    operands = {"x": torch.randn(case.input_size, generator=torch.Generator().manual_seed(1))}
    aligned, offset = (
        run_pool(instance, case, PoolOptions(), operands, placement=placement)[0]
        for placement in ("start", "offset")
    )
    assert torch.equal(aligned, offset)


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize(
    "instance", [i for i in pool_instances() if (i.pass_, i.kind) == ("backward", "lp")], ids=str
)
def test_power_1_sends_nothing_back_to_a_sum_of_nan(instance: PoolInstance, rescale: bool) -> None:
    case = pool_case("nan_sums", (2, 16, 9, 8), 3, 2, 1, values="special")
    options = PoolOptions(power=1.0, rescale=rescale)
    wanted = expected(PoolCheck("backward", "lp", instance.dtype, case, options))
    assert wanted.operands["y"].isnan().any() and wanted.result.isfinite().all()
    run_checked(instance, case, options)


# --- places ---------------------------------------------------------------------------------------


def unpool(layout: str, case: PoolCase, x: Tensor, index: Tensor) -> tuple[Tensor, Any]:
    launches: list[Any] = []
    result, _ = run_pool(
        find(f"unpool_max_f32_{layout}_in_order"),
        case,
        PLACE,
        {"x": x, "index": index},
        statistics=launches,
    )
    return result, launches[0]


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_unpool_keeps_the_last_of_duplicates(layout: str) -> None:
    """Many to one place: within a warp, and between its steps."""
    case = pool_case("duplicates", (2, 3, 16, 24), 2)
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(case.output_size, generator=generator)
    index = torch.randint(0, 5, case.output_size, generator=generator)
    result, _ = unpool(layout, case, x, index)
    wanted = torch.zeros(2, 3, 16 * 24)
    for i in range(x[0, 0].numel()):
        wanted.scatter_(2, index.flatten(2)[..., i : i + 1], x.flatten(2)[..., i : i + 1])
    assert torch.equal(result.flatten(2), wanted)


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("place", [-1, 16 * 24])
def test_unpool_stops_at_a_place_outside_the_plane(layout: str, place: int) -> None:
    case = pool_case("outside", (1, 1, 16, 24), 2)
    index = torch.arange(8 * 12).view(case.output_size)
    index[0, 0, 3, 4] = place
    with pytest.raises(RuntimeError, match="trap"):
        unpool(layout, case, torch.ones(case.output_size), index)


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_gather_of_a_place_outside_the_plane_is_zero(layout: str) -> None:
    case = pool_case("outside", (1, 2, 4, 4), 2)
    index = torch.tensor([0, -1, 16, 15]).view(1, 1, 2, 2).expand(1, 2, 2, 2).contiguous()
    x = torch.arange(1.0, 33).view(case.input_size)
    instance = find(f"gather_max_f32_{layout}_any")
    result, _ = run_pool(instance, case, PLACE, {"x": x, "index": index})
    assert result.flatten(2).tolist() == [[[1, 0, 0, 16], [17, 0, 0, 32]]]


# --- more than 2^31 elements ----------------------------------------------------------------------


def sparse(elements: int, last: float) -> tuple[int, list[tuple[int, np.ndarray]]]:
    """A bfloat16 tensor of zeros, but for its last element; its memory is never touched."""
    content = torch.tensor([last], dtype=torch.bfloat16).view(torch.uint8).numpy()
    return 2 * elements, [(2 * (elements - 1), content)]


@pytest.mark.parametrize(
    "name, size, kernel, last",
    [
        ("fprop_max_bf16_nchw_planes_k2s2", (9, 65537, 60, 64), 2, 3.0),
        ("fprop_sum_bf16_nchw_planes_k2s2", (9, 65537, 60, 64), 2, 0.75),
        ("fprop_max_bf16_nchw_any", (9, 65537, 60, 64), 4, 3.0),
        ("fprop_sum_bf16_nchw_global", (9, 65537, 60, 64), (60, 64), 3 / 3840),
        ("fprop_max_bf16_nhwc_vec8_k2", (9000, 64, 60, 64), 2, 3.0),
        ("fprop_max_bf16_nhwc_global", (9000, 64, 60, 64), (60, 64), 3.0),
        ("fprop_sum_bf16_nhwc_any", (9000, 63, 60, 64), 4, 3 / 16),
        ("dgrad_sum_bf16_nchw_planes", (9, 65537, 60, 64), 2, 0.75),
        ("dgrad_sum_bf16_nhwc_vec8", (9000, 64, 60, 64), 2, 0.75),
        ("dgrad_sum_bf16_nhwc_any", (9000, 63, 60, 64), 4, 3 / 16),
    ],
)
def test_offsets_beyond_32_bits(name: str, size: Any, kernel: Any, last: float) -> None:
    """The first, the last and some other blocks; the last element of the result shows where the
    last one of the operand was read."""
    case, instance = pool_case(name, size, kernel), find(name)
    outputs = math.prod(case.output_size)
    forward = instance.pass_ == "forward"
    read, written = (math.prod(size), outputs) if forward else (outputs, math.prod(size))
    assert math.prod(size) > 2**31
    module = emulation()
    with source_lines(module):
        (found,), *_ = module.run_pool(
            name,
            native_problem(case),
            _native(PoolOptions(index=KEEP_NOTHING)),
            {"x" if forward else "dy": sparse(read, 3.0)},
            module.Device(CAPABILITY, SM_COUNT),
            [(2 * (written - 1), 2)],
            seed=1,
            workers=1,
            placement=module.Placement.start,
            block_limit=4,
        )
    result = torch.from_numpy(found).view(torch.bfloat16)
    assert float(result) == float(torch.tensor(last).bfloat16())


def test_more_vectors_than_32_bits_can_count() -> None:
    case = pool_case("", (2**25, 64, 40, 40), 2)
    name = chosen("forward", "max", torch.bfloat16, "NHWC", case, BYTE)
    assert name == "fprop_max_bf16_nhwc_any"
    assert "2^31 vectors" in find("fprop_max_bf16_nhwc_vec8_k2").refusal(case, BYTE)
