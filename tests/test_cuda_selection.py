"""Choice and trust of CUDA kernel instances, and the way of a call to them: on a pretended GPU
whose kernels are emulated.
"""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from pretend_gpu import H200, pretend_gpu

import fastconv
from fastconv import _C, cost_aten_cuda, gpu, select, select_cuda, select_triton, selftest, trust
from fastconv.ops import conv_run
from fastconv.problem import ConvSpec

pytestmark = pytest.mark.cuda_kernels


@pytest.fixture(autouse=True)
def pretended(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pretend_gpu(monkeypatch):
        yield
    # Undone here, before another test runs, and what the pretence left in the caches with it.
    monkeypatch.undo()
    select.forget()
    trust.reload()


def grouped_spec(direction="fprop", dtype=torch.float32, products="ieee", channels_last=False):
    """Where PyTorch is weak, so that `auto` wants one of ours."""
    return ConvSpec(
        direction, "cuda:0", dtype, (8, 64, 56, 56), (64, 2, 3, 3), (1, 1), (1, 1), (1, 1), 32,
        channels_last, products,
    )  # fmt: skip


def spec_3x3(input_size, filters, direction="fprop", **change):
    spec = ConvSpec(
        direction, "cuda:0", torch.float32, input_size, (filters, input_size[1], 3, 3), (1, 1),
        (1, 1), (1, 1), 1, False, "ieee",
    )  # fmt: skip
    return replace(spec, **change)


def ours(spec):
    return [c for c in select.candidates(spec) if c.reason is None and c.name != "aten"]


def passes(monkeypatch, error="", fails=lambda name: True):
    """Every check of an instance that `fails` names ends with this error; all checks are listed."""
    seen = []

    def check(instance, device, limit):
        seen.append(instance.name)
        return selftest.Outcome(instance.name, limit, error if fails(instance.name) else "", 0.0)

    monkeypatch.setattr(selftest, "check", check)
    return seen


def test_candidates_name_their_instances():
    for direction in ("fprop", "dgrad", "wgrad"):
        entries = select.candidates(grouped_spec(direction))
        assert entries[-1].name == "aten" and entries[-1].cost > 0
        ours = [c for c in entries[:-1] if c.backend == "cuda"]
        assert {c.name for c in entries[:-1] if c not in ours} == set(select_triton.ALGORITHMS)
        for c in ours:
            algorithm, slash, instance = c.name.partition("/")
            assert algorithm in _C.cuda_algorithms()
            assert bool(slash) == (c.reason is None), c
            assert c.reason is not None or (direction in instance and c.cost > 0)
        assert {c.name.partition("/")[0] for c in ours} == set(_C.cuda_algorithms())
        refused = next(c for c in entries if c.name.startswith("depthwise"))
        assert "groups" in refused.reason


def test_auto_checks_an_instance_once_before_it_is_used(monkeypatch):
    seen = passes(monkeypatch)
    spec = grouped_spec()
    cheapest = min(ours(spec), key=lambda c: c.cost).name
    assert select.choose(spec) == cheapest
    select.forget()
    assert select.choose(spec) == cheapest
    assert seen == [cheapest]
    trust.reload()  # as another process would find it
    select.forget()
    assert select.choose(spec) == cheapest and seen == [cheapest]
    # Another driver has not been checked.
    monkeypatch.setattr(gpu, "describe", lambda key: replace(H200, driver=13010))
    select.forget()
    assert select.choose(spec) == cheapest and seen == [cheapest] * 2


def test_what_fails_is_named_once_and_passed_over(monkeypatch):
    seen = passes(monkeypatch, error="off by 3")
    spec = grouped_spec()
    wanted = [
        c.name
        for c in sorted(ours(spec), key=lambda c: c.cost)
        if c.cost < select_cuda.MARGIN * select.candidates(spec)[-1].cost
    ]
    assert wanted
    with pytest.warns(RuntimeWarning, match="failed its check on Pretend H200") as caught:
        assert select.choose(spec) == "aten"
    assert seen == wanted
    assert [str(w.message).split()[3] for w in caught] == wanted
    select.forget()
    with pytest.raises(RuntimeError, match=r"failed its check on this device: off by 3"):
        select.resolve(spec, wanted[0])
    assert select.choose(spec) == "aten" and seen == wanted


def test_nothing_is_checked_during_capture(monkeypatch):
    seen = passes(monkeypatch)
    monkeypatch.setattr(trust, "capturing", lambda: True)
    assert select.choose(grouped_spec()) == "aten"
    assert not seen
    monkeypatch.setattr(trust, "capturing", lambda: False)
    assert select.choose(grouped_spec()) != "aten"  # the capture's choice was not kept
    monkeypatch.setattr(trust, "capturing", lambda: True)
    select.forget()
    assert select.choose(grouped_spec()) != "aten"  # known by now


def test_a_result_file_vouches_for_its_build_and_architecture(monkeypatch, tmp_path):
    seen = passes(monkeypatch)
    spec = grouped_spec()
    cheapest = min(ours(spec), key=lambda c: c.cost).name
    outcomes = [{"instance": cheapest, "error": ""}]
    for build, capability, vouched in (
        ("another", 90, False),
        (_C.build_id, 80, False),
        (_C.build_id, 90, True),
    ):
        facts = {"build": build, "capability": capability, "outcomes": outcomes}
        (tmp_path / "result.json").write_text(json.dumps(facts))
        monkeypatch.setattr(trust, "VOUCHED", tmp_path)
        trust._vouched.cache_clear()
        trust.clear()
        select.forget()
        seen.clear()
        assert select.choose(spec) == cheapest
        assert seen == ([] if vouched else [cheapest])
    trust._vouched.cache_clear()


def test_a_workspace_that_does_not_fit_is_passed_over(monkeypatch):
    """The cheapest that fits is taken."""
    passes(monkeypatch)
    monkeypatch.setattr(cost_aten_cuda, "seconds", lambda spec: 1e3)
    spec = spec_3x3((8, 64, 56, 56), 64, "wgrad")
    by_cost = sorted(ours(spec), key=lambda c: c.cost)
    largest = by_cost[0].workspace
    assert largest and select.choose(spec) == by_cost[0].name
    for free in (largest - 1, 0):
        monkeypatch.setattr(select_cuda, "free_bytes", lambda key, free=free: free)
        select.forget()
        fitting = next((c.name for c in by_cost if c.workspace <= free), "aten")
        assert select.choose(spec) == fitting != by_cost[0].name
    monkeypatch.setattr(select_cuda, "free_bytes", lambda key: largest)
    select.forget()
    assert select.choose(spec) == by_cost[0].name


def test_precision_decides_on_tf32(monkeypatch):
    passes(monkeypatch)
    kernels = {}
    for algorithm, name, *_, products in _C.cuda_instances():
        kernels.setdefault(products.name, set()).add(f"{algorithm}/{name}")
    tf32, tf32x3 = kernels["tf32"], kernels["tf32x3"]
    for allowed in (True, False):
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", allowed)
        default = "tf32" if allowed else "ieee"
        assert select.products_for("cuda:0", torch.float32, "auto") == default
        for precision in ("ieee", "tf32", "tf32x3"):
            request = f"direct+{precision}|auto"
            assert select.products_for("cuda:0", torch.float32, request) == precision
        assert select.products_for("cuda:0", torch.bfloat16, "auto+tf32") == "ieee"
        assert select.products_for("cpu", torch.float32, "auto+tf32") == "ieee"
    names = {c.name for c in ours(grouped_spec())}
    assert not names & (tf32 | tf32x3)
    names = {c.name for c in ours(grouped_spec(products="tf32x3"))}
    assert names & tf32x3 and not names & tf32
    names = {c.name for c in ours(grouped_spec(products="tf32"))}
    assert names & tf32x3 and names & tf32
    # Where tensor cores are far ahead of FMA.
    monkeypatch.setattr(gpu, "describe", lambda key: gpu.Gpu("NVIDIA A100", 80, 108, 13000))
    dense = spec_3x3((32, 256, 28, 28), 256, products="tf32x3", stride=(2, 2), channels_last=True)
    assert "tf32x3" in select.resolve(dense, "im2col")
    # PyTorch's own follows its switch, which the name then carries.
    assert select.resolve(grouped_spec(), "aten+ieee") == "aten+ieee"
    assert select.resolve(grouped_spec(), "aten") == "aten"
    assert select.resolve(grouped_spec(dtype=torch.bfloat16), "aten+ieee") == "aten"


def test_pytorchs_switch_is_set_for_the_call_and_restored(monkeypatch):
    seen = []
    monkeypatch.setattr(
        torch, "convolution", lambda *args: seen.append(torch.backends.cudnn.allow_tf32)
    )
    for before in (True, False):
        with torch.backends.cudnn.flags(allow_tf32=before):
            for precision in ("tf32", "ieee", "tf32x3"):
                conv_run.run_fprop(None, None, None, (1,), (0,), (1,), 1, f"aten+{precision}")
                assert torch.backends.cudnn.allow_tf32 == before
    assert seen == [True, False, False] * 2


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("algo", ["auto", "direct_plain", "direct", "im2col", "winograd"])
def test_values_and_gradients(algo, dtype, channels_last):
    """The whole way, twice: a new plan and a remembered one."""
    x, w = torch.randn(2, 6, 9, 8), torch.randn(10, 6, 3, 3)
    b = torch.randn(10)
    if channels_last:
        x, w = (t.contiguous(memory_format=torch.channels_last) for t in (x, w))
    leaves = [t.to(dtype).requires_grad_() for t in (x, w, b)]
    exact = [t.detach().double().requires_grad_() for t in leaves]
    expected = F.conv2d(*exact, padding=1)
    dy = torch.randn(expected.shape).to(dtype)
    theirs = torch.autograd.grad(expected, exact, dy.double())
    for _ in range(2):
        y = fastconv.conv2d(*leaves, padding=1, algo=algo, precision="ieee")
        assert y.is_contiguous(memory_format=torch.channels_last) == channels_last
        scale = 1 if dtype == torch.float32 else 2**14
        for got, want in zip(
            (y, *torch.autograd.grad(y, leaves, dy)), (expected, *theirs), strict=True
        ):
            assert got.dtype == dtype
            assert (got.double() - want).abs().max() <= scale * 3e-6 * (1 + want.abs().max())


def test_layouts_are_brought_together():
    """Operands of any strides, computed in the format of the result."""
    x, w = torch.randn(2, 4, 7, 6).double(), torch.randn(5, 4, 3, 3).double()
    for operands in (
        (x.to(memory_format=torch.channels_last), w),
        (x, w.to(memory_format=torch.channels_last)),
        (x.flip(0)[:, :, ::2], w.transpose(2, 3)),
        (x[:1].expand(3, -1, -1, -1), w[:, :, :, :1].expand(5, 4, 3, 2)),
    ):
        y = fastconv.conv2d(*operands, algo="direct_plain")
        torch.testing.assert_close(y, F.conv2d(*operands))


@pytest.mark.parametrize("channels_last", [False, True])
def test_statistics_cost_a_pass_over_y_where_a_kernel_takes_none(channels_last):
    spec = grouped_spec(dtype=torch.bfloat16, channels_last=channels_last)
    seconds = 3e-6 + 8 * 64 * 56 * 56 * 2 / 4e12
    known, added = _C.cuda_stats_instances(), set()
    for before, after in zip(
        select.candidates(spec), select.candidates(spec, statistics=True), strict=True
    ):
        taking = before.name in known or before.name.startswith("triton_")
        more = 0 if taking or before.reason else seconds
        assert after.cost == pytest.approx(before.cost + more), before
        if before.reason is None:
            added.add((before.name.partition("/")[0], more > 0))
    assert {("im2col", False), ("direct", False), ("direct_plain", True), ("aten", True)} <= added


def test_forced():
    spec = grouped_spec()
    assert select.resolve(spec, "direct").startswith("direct/")
    assert select.resolve(spec, "direct").partition("/")[2].startswith("fprop_f32_nchw")
    one = ours(spec)[0].name
    assert select.resolve(spec, one) == one
    with pytest.raises(RuntimeError, match=r"'depthwise' does not apply to .*groups"):
        select.resolve(spec, "depthwise")
    with pytest.raises(RuntimeError, match=r"no algorithm or kernel for wgrad"):
        select.resolve(grouped_spec("wgrad"), one)
    assert select.resolve(grouped_spec("wgrad"), f"{one}|auto")
    with pytest.raises(ValueError, match="unknown algorithm 'direct/nothing'"):
        fastconv.conv2d(torch.ones(1, 1, 3, 3), torch.ones(1, 1, 3, 3), algo="direct/nothing")


def test_a_device_that_no_build_covers(monkeypatch):
    blackwell = replace(H200, capability=100)
    monkeypatch.setattr(gpu, "refusal", lambda key: gpu.uncovered(blackwell))
    x, w = torch.randn(1, 2, 5, 5), torch.randn(3, 2, 3, 3)
    torch.testing.assert_close(fastconv.conv2d(x, w), F.conv2d(x, w))
    with pytest.raises(RuntimeError, match=r"no built architecture .*sm_80.* covers .*sm_100"):
        fastconv.conv2d(x, w, algo="direct")
    ours = [c for c in select.candidates(grouped_spec()) if c.backend == "cuda"]
    assert ours and all("sm_100" in c.reason for c in ours)
    explanation = str(fastconv.explain(x, w))
    assert "none of ours applies" in explanation and "TORCH_CUDA_ARCH_LIST=10.0" in explanation


def test_out_of_memory_keeps_its_type(monkeypatch):
    def exhausted(*args):
        raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB")

    for name in ("_fprop", "_fprop_packed"):
        monkeypatch.setattr(conv_run, name, exhausted)
    x, w = torch.randn(1, 2, 5, 5), torch.randn(3, 2, 3, 3)
    with pytest.raises(torch.OutOfMemoryError, match=r"20\.00 GiB"):
        fastconv.conv2d(x, w, algo="direct")


@pytest.mark.parametrize("direction", ["dgrad", "wgrad"])
def test_out_of_memory_of_a_gradient_keeps_its_type(monkeypatch, direction):
    """A workspace that does not fit, of a kernel that was named: no other is taken in its place."""
    x, w = torch.randn(1, 4, 9, 9, requires_grad=True), torch.randn(8, 4, 3, 3, requires_grad=True)
    y = fastconv.conv2d(x, w, algo="winograd_f4x4_3x3")

    def exhausted(*args):
        raise RuntimeError("CUDA out of memory. Tried to allocate 155.00 GiB")

    for name in (f"_{direction}", f"_{direction}_packed"):
        monkeypatch.setattr(conv_run, name, exhausted)
    with pytest.raises(torch.OutOfMemoryError, match=r"155\.00 GiB"):
        torch.autograd.grad(y.sum(), x if direction == "dgrad" else w)


@pytest.mark.parametrize("direction", ["fprop", "dgrad", "wgrad"])
def test_an_image_beyond_32_bits_goes_to_those_who_take_it(monkeypatch, direction):
    """2^32 elements in one image of x: who counts them in 32 bits says so, `auto` takes another."""
    passes(monkeypatch)
    spec = spec_3x3((2, 64, 8192, 8192), 64, direction)
    reasons = {c.name: c.reason for c in select.candidates(spec)}
    assert "the elements of one image is" in reasons["im2col"]
    with pytest.raises(RuntimeError, match=r"'im2col' does not apply to .*2147483647"):
        select.resolve(spec, "im2col")
    chosen = select.choose(spec)
    assert chosen == select.resolve(spec, "im2col|auto") != "aten"
    assert reasons[chosen] is None


@pytest.mark.parametrize("direction", ["fprop", "dgrad", "wgrad"])
def test_many_images_beyond_32_bits_are_taken_by_all(direction):
    """2^33 elements of x and y, 2^21 to an image: only sums over all of them could overflow."""
    spec = spec_3x3((4096, 512, 64, 64), 512, direction)
    able = {c.name.partition("/")[0] for c in select.candidates(spec) if c.reason is None}
    assert {"direct", "direct_plain", "im2col", "winograd_f4x4_3x3", "aten"} <= able
    for c in ours(spec):
        assert 0 < c.cost < 1000 and 0 <= c.workspace <= 1 << 31, c


def test_a_workspace_larger_than_the_device_leaves_auto_a_choice(monkeypatch):
    """The filters of non-fused Winograd alone take 9.7 GB: named, it is taken; `auto` goes on."""
    passes(monkeypatch)
    monkeypatch.setattr(cost_aten_cuda, "seconds", lambda spec: 1e3)
    spec = spec_3x3((8, 8192, 28, 28), 8192)
    best, *rest = sorted(ours(spec), key=lambda c: c.cost)
    assert best.workspace > 1 << 33
    monkeypatch.setattr(select_cuda, "free_bytes", lambda key: 1 << 33)
    assert select.choose(spec) == next(c.name for c in rest if c.workspace <= 1 << 33)
    assert select.resolve(spec, best.name) == best.name


def test_explain_lists_every_mechanism_of_an_algorithm():
    x, w = torch.randn(4, 32, 14, 14), torch.randn(32, 32, 3, 3)
    for precision, engines in (("ieee", {"fma"}), ("tf32", {"fma", "tf32"})):
        explained = fastconv.explain(x, w, padding=1, precision=precision)
        for direction in ("fprop", "dgrad", "wgrad"):
            found = {row.name for row in explained[direction].rows}
            for tile in ("winograd_f2x2_3x3", "winograd_f4x4_3x3"):
                assert {n for n in found if n.startswith(tile)} == {
                    f"{tile}/{direction}_f32_nchw_{mechanism}_{engine}"
                    for mechanism in ("fused", "nonfused")
                    for engine in engines
                }


def test_explain_says_what_is_trusted(monkeypatch):
    passes(monkeypatch, error="off by 3")
    x, w = torch.randn(8, 64, 56, 56), torch.randn(64, 2, 3, 3)
    with pytest.warns(RuntimeWarning, match="failed its check on Pretend H200"):
        fastconv.explain(x, w, groups=32, padding=1, precision="ieee")
    text = str(fastconv.explain(x, w, groups=32, padding=1, precision="ieee"))
    assert "Pretend H200, sm_90" in text
    assert "no: failed its check on this device: off by 3" in text
    assert "none of ours that is trusted on this device" in text


@pytest.mark.filterwarnings("ignore:fastconv. CUDA kernel direct")
def test_autotune_measures_and_remembers_on_the_device(monkeypatch):
    x, w = torch.randn(1, 4, 6, 6), torch.randn(4, 4, 3, 3)
    checked = passes(monkeypatch, "off by 3", fails=lambda name: name.startswith("direct/"))
    with fastconv.autotune(), torch.no_grad():
        y = fastconv.conv2d(x, w, padding=1)
    torch.testing.assert_close(y, F.conv2d(x, w, padding=1), rtol=1e-4, atol=1e-4)
    spec = ConvSpec(
        "fprop", "cuda:0", torch.float32, (1, 4, 6, 6), (4, 4, 3, 3), (1, 1), (1, 1), (1, 1), 1,
        False, select.products_for("cuda:0", torch.float32, "auto"),
    )  # fmt: skip
    entry = fastconv.explain(x, w, padding=1)["fprop"]
    measured = {row.name for row in entry.rows if row.measured is not None}
    assert "aten" in measured and len(measured) > 2
    assert any(name.startswith("direct/") for name in checked)
    assert not any(name.startswith("direct/") for name in measured)
    assert select.recorded(spec, torch.get_num_threads(), _C.cpu_isa()) == entry.chosen
    assert "Pretend H200" in fastconv.autotune.cache_path().read_text()


@pytest.mark.parametrize("algorithm", _C.cuda_algorithms())
def test_selftest_runs_an_instance_of_each_algorithm(algorithm):
    chosen = [i for i in selftest.instances() if i.algorithm == algorithm][:2]
    for instance in chosen:
        outcome = selftest.check(instance, torch.device("cpu"), 1)
        assert outcome.passed, outcome


def test_selftest_sees_a_wrong_kernel(monkeypatch):
    instance = selftest.instances()[0]
    real = selftest.launch

    def off(*args):
        y = real(*args)
        y[(-1,) * y.dim()] += 1e-3
        return y

    monkeypatch.setattr(selftest, "launch", off)
    outcome = selftest.check(instance, torch.device("cpu"), 1)
    assert not outcome.passed and "times the bound" in outcome.error
    values = iter(range(2))
    monkeypatch.setattr(selftest, "launch", lambda *a: real(*a) + 1e-9 * next(values))
    outcome = selftest.check(instance, torch.device("cpu"), 1)
    assert outcome.passed or "two runs differ" in outcome.error
    monkeypatch.setattr(selftest, "launch", lambda *a: real(*a) * float("nan"))
    assert not selftest.check(instance, torch.device("cpu"), 1).passed


def test_selftest_sees_wrong_statistics(monkeypatch):
    taking = _C.cuda_stats_instances()
    instance = next(i for i in selftest.instances() if i.name in taking)
    real = selftest.launch_stats
    for wrong in (lambda y, a, b: (y, a, 1.01 * b), lambda y, a, b: (y + 1e-6, a, b)):
        monkeypatch.setattr(selftest, "launch_stats", lambda *a, wrong=wrong: wrong(*real(*a)))
        outcome = selftest.check(instance, torch.device("cpu"), 1)
        assert "the statistics are not those of the result" in outcome.error


def test_selftest_has_problems_for_every_instance():
    without = [i.name for i in selftest.instances() if not any(True for _ in i.problems())]
    assert not without


def test_selftest_records_and_reports(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    seen = passes(monkeypatch)
    file = tmp_path / "outcome.json"
    assert selftest.main(["--json", str(file), "--only", "direct_plain/fprop"]) == 0
    facts = json.loads(file.read_text())
    assert [o["instance"] for o in facts["outcomes"]] == seen and facts["capability"] == 90
    assert trust.error_of("cuda:0", seen[0]) == ""
    assert f"{len(seen)} of {len(seen)} passed" in capsys.readouterr().out
    passes(monkeypatch, error="off by 3")
    assert selftest.main(["--only", "direct_plain/fprop"]) == 1
    assert trust.error_of("cuda:0", seen[0]) == "off by 3"
