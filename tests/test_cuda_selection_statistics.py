"""What is chosen for a convolution whose statistics are wanted, too: costs and memory count with
them, also where an algorithm is named. On a pretended GPU; nothing runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace

import pytest
import torch

from fastconv import _C, cost_aten_cuda, gpu, select, select_cuda, select_triton, trust
from fastconv.problem import ConvSpec

# Where tma's fastest instance splits tiles, which takes no statistics.
SPEC = ConvSpec(
    "fprop", "cuda:0", torch.bfloat16, (32, 256, 14, 14), (256, 256, 3, 3), (1, 1), (1, 1), (1, 1),
    1, True, "ieee",
)  # fmt: skip
MOMENT = 3 * 4  # count, mean and sum of squares of a channel in a tile


@pytest.fixture(autouse=True)
def pretended(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An H200 on which every kernel has passed its check."""
    if not _C.cuda_instances():
        pytest.skip("this build has no CUDA kernels")
    monkeypatch.setattr(gpu, "describe", lambda key: gpu.Gpu("NVIDIA H200", 90, 132, 13000))
    monkeypatch.setattr(gpu, "refusal", lambda key: None)
    monkeypatch.setattr(select_triton, "machine_refusal", lambda device, dtype: None)
    monkeypatch.setattr(trust, "error_of", lambda device, name: None)
    monkeypatch.setattr(select_cuda, "admitted", lambda spec, name: True)
    monkeypatch.setattr(select_cuda, "free_bytes", lambda device: 1 << 40)
    monkeypatch.setattr(cost_aten_cuda, "seconds", lambda spec: 1e3)
    select.forget()
    yield
    select.forget()


def ours(statistics: bool) -> dict[str, select.Candidate]:
    entries = select.candidates(SPEC, statistics)
    return {c.name: c for c in entries if c.reason is None and c.name != select.ATEN}


def test_a_named_algorithm_is_ranked_with_its_statistics() -> None:
    plain, training = select.resolve(SPEC, "tma"), select.choose_with_statistics(SPEC, "tma", None)
    assert not select_cuda.takes_statistics(plain) and select_cuda.takes_statistics(training)
    own = {name: c for name, c in ours(True).items() if name.startswith("tma/")}
    assert own[training].cost == min(c.cost for c in own.values()) < own[plain].cost
    # One that is named itself is taken as it is.
    assert select.choose_with_statistics(SPEC, plain, None) == plain
    with pytest.raises(RuntimeError, match="'depthwise' does not apply"):
        select.choose_with_statistics(SPEC, "depthwise", None)
    assert select.choose_with_statistics(SPEC, select.ATEN, None) == select.ATEN


def test_a_workspace_has_room_for_the_statistics() -> None:
    pixels = 32 * 14 * 14
    without, those = ours(False), ours(True)
    assert without.keys() == those.keys()
    for name, c in those.items():
        more = c.workspace - without[name].workspace
        if not select_cuda.takes_statistics(name):
            assert more == 0, name
        elif name.startswith("triton_"):
            rows = select_triton.config_of(name).block_m
            assert more == 256 * -(-pixels // rows) * 8, name
        else:
            assert more >= 256 * MOMENT, name
    for tile in ("tma/fprop_bf16_nhwc_wgmma_128x128x64", "im2col/fprop_bf16_nhwc_mma_64x64x32"):
        assert those[tile].workspace == 256 * -(-pixels // 64) * MOMENT


def test_free_memory_is_asked_for_the_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    best = min(ours(True).values(), key=lambda c: (c.backend == "triton", c.cost))
    assert ours(False)[best.name].workspace == 0 < best.workspace
    for free, taken in ((best.workspace, True), (best.workspace - 1, False)):
        monkeypatch.setattr(select_cuda, "free_bytes", lambda key, free=free: free)
        select.forget()
        name = select.choose_with_statistics(SPEC, select.AUTO, None)
        assert (name == best.name) == taken
        assert name in ours(True) and ours(True)[name].workspace <= free


def test_the_models_in_python_have_the_rates_of_those_in_cpp(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device = gpu.describe("cuda:0")

    def estimates() -> dict[str, float]:
        found = {select.ATEN: cost_aten_cuda.seconds_on(SPEC, device)}
        return found | select_triton.estimates(SPEC, device)

    before, rates = estimates(), gpu.rates(90, 132)
    assert rates.l2_bytes_per_s > rates.bytes_per_s > 1e12
    assert rates.best_16_flops == rates.warpgroup_16_flops > rates.tensor_16_flops
    assert gpu.rates(80, 108).best_16_flops == gpu.rates(80, 108).tensor_16_flops > 1e14
    tenth = {name: value / 10 for name, value in asdict(rates).items() if name != "launch_s"}
    monkeypatch.setattr(gpu, "rates", lambda *device: replace(rates, **tenth))
    after = estimates()
    assert len(after) > 5 and all(after[name] > 2 * before[name] for name in before)
