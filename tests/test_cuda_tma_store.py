"""How the kernels by TMA and wgmma store: by TMA where the result's base and pitch are multiples
of 16 bytes, wherever its channels and pixels end, by the warps themselves elsewhere; boxes that
come again within a tile and in the next one; residuals by vectors and one by one."""

from __future__ import annotations

import pytest
import torch
from cases import ConvCase, conv_case
from conv_runner import integer_operands, integer_reference
from emulated import Epilogue, Instance, find_instance, run_instance
from test_emulated_epilogue import untouched

NAMES = (
    "fprop_bf16_nhwc_wgmma_128x64x64",
    "fprop_f16_nhwc_wgmma_256x128x64",
    "fprop_bf16_nhwc_wgmma_128x256x64_pair_m",
    "fprop_f16_nhwc_wgmma_256x128x64_pair_n_split2",
    "fprop_tf32_nhwc_wgmma_128x128x32",
    "fprop_tf32x3_nhwc_wgmma_128x64x32",
)
# Channels before y, of y, and behind it.
SLICES = {
    "dense": (0, 72, 0),
    "eights": (8, 72, 16),
    # TMA clips in the middle of 16 bytes, and of the second box of a tile.
    "cut": (8, 77, 11),
    # TMA's for fp32, for 16-bit types not; and no eights of floats.
    "fours": (4, 76, 4),
    "odd": (3, 77, 2),
    "base": (3, 72, 5),
}


def case_of(filters: int) -> ConvCase:
    """Two tiles of 128 pixels, the second one's last box begun."""
    return conv_case("stored", (2, 8, 7, 15), (filters, 8, 1, 2))


def stored(instance: Instance, case: ConvCase, epilogue: Epilogue, sm_count: int) -> int:
    """Small integers must come out exactly, and nothing beside them. Returns how often threads
    waited for others."""
    counted: dict[str, int] = {}
    x, w, bias = (t.to(instance.dtype) for t in integer_operands(case, "fprop"))
    generator = torch.Generator().manual_seed(5)
    residual = None
    if epilogue.residual:
        residual = torch.randint(-9, 10, case.output_size, generator=generator).to(instance.dtype)
    y = run_instance(
        instance.algorithm, instance.name, case, "fprop", (x, w), bias, 2,
        placement="start", sm_count=sm_count, epilogue=epilogue, residual=residual,
        statistics=counted,
    )  # fmt: skip
    expected = integer_reference(case, "fprop").double()
    if residual is not None:
        expected = expected + residual.double()
    if epilogue.activation == "relu":
        expected = expected.relu()
    last = epilogue.first + case.weight_size[0]
    assert torch.equal(y[:, epilogue.first : last], expected.to(instance.dtype)), epilogue
    assert untouched(y[:, : epilogue.first]) and untouched(y[:, last:]), "wrote beside its slice"
    return counted["switches"]


@pytest.mark.parametrize("slice_of", SLICES)
@pytest.mark.parametrize("name", NAMES)
def test_stored(name: str, slice_of: str) -> None:
    """One block does all tiles, or each its own; plain, and with all that may follow."""
    instance = find_instance("tma", name)
    before, filters, behind = SLICES[slice_of]
    channels = before + filters + behind if before else 0
    case = case_of(filters)
    stored(instance, case, Epilogue(y_channels=channels, first=before), 132)
    followed = Epilogue("relu", residual="before", y_channels=channels, first=before)
    stored(instance, case, followed, 1)


@pytest.mark.parametrize("name", [name for name in NAMES if "split" not in name])
def test_by_tma_where_it_may(name: str) -> None:
    """Whoever copies a box waits for it to be full, and then for the copy: TMA's stores save the
    second. Nothing else differs between these."""
    instance = find_instance("tma", name)
    by_lanes, *by_tma = (
        stored(instance, case_of(72), Epilogue(y_channels=88, first=first), 1)
        for first in (3, 0, 8, 16)
    )
    assert all(waits < by_lanes for waits in by_tma), (by_tma, by_lanes)


@pytest.mark.parametrize("name", NAMES)
def test_residual_off_its_alignment(name: str) -> None:
    """It is read one by one, and y stored by TMA all the same."""
    instance = find_instance("tma", name)
    stored(instance, case_of(72), Epilogue("relu", residual="before", residual_off=True), 1)
