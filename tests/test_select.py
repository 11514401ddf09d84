"""The registry: candidates with reasons, forced and automatic choice, decisions that go stale."""

from __future__ import annotations

import itertools

import pytest
import torch
from cases import CONV_CASES
from hypothesis import given
from hypothesis import strategies as st

import fastconv
from fastconv import _C, cost_aten, explain, select, select_triton
from fastconv.problem import DIRECTIONS, ConvSpec, conv_output_size


def spec(direction="fprop", **change):
    values = {
        "direction": direction,
        "device": "cpu",
        "dtype": torch.float32,
        "input_size": (2, 16, 14, 14),
        "weight_size": (32, 16, 3, 3),
        "stride": (1, 1),
        "padding": (1, 1),
        "dilation": (1, 1),
        "groups": 1,
    }
    return ConvSpec(**{**values, **change})


@pytest.mark.parametrize("case", CONV_CASES, ids=lambda c: c.id)
def test_geometry_agrees_with_the_kernels_and_the_definition(case):
    s = ConvSpec("fprop", "cpu", torch.float32, case.input_size, case.weight_size, *case.params[:0],
                 case.stride, case.padding, case.dilation, case.groups)  # fmt: skip
    assert s.output_size == case.output_size == (case.input_size[0], case.weight_size[0],
                                                 *s.native.output[3 - case.rank :])  # fmt: skip
    assert s.macs == s.native.macs and s.rank == case.rank


extent = st.integers(1, 40)


@given(data=st.data(), rank=st.integers(1, 3))
def test_geometry_agrees_on_random_problems(data, rank):
    def axes(strategy):
        return tuple(data.draw(st.lists(strategy, min_size=rank, max_size=rank)))

    sizes, kernel = axes(extent), axes(st.integers(1, 7))
    stride, padding, dilation = (
        axes(st.integers(1, 5)),
        axes(st.integers(0, 6)),
        axes(st.integers(1, 4)),
    )
    x, w = (2, 6, *sizes), (4, 3, *kernel)
    fits = all(
        i + 2 * p >= d * (k - 1) + 1
        for i, k, p, d in zip(sizes, kernel, padding, dilation, strict=True)
    )
    if not fits:
        with pytest.raises(ValueError, match="larger than the padded input"):
            _C.ConvProblem(x, w, stride, padding, dilation, 2)
        return
    native = _C.ConvProblem(x, w, stride, padding, dilation, 2)
    assert conv_output_size(x, w, stride, padding, dilation)[2:] == list(native.output[3 - rank :])


def test_candidates_are_the_kernels_and_pytorch():
    for direction in DIRECTIONS:
        entries = select.candidates(spec(direction))
        assert [c.name for c in entries] == [*_C.cpu_algorithms(), "aten"]
        for c in entries:
            assert c.reason is not None or c.cost > 0
            assert c.name == "aten" or c.reason is not None or c.workspace >= 0
    assert set(select.names()) - {"winograd"} == {c.name for c in entries}
    for device in ("cuda", "cuda:0"):
        ours = {*_C.cuda_algorithms(), *select_triton.ALGORITHMS}
        assert set(select.names(device)) - {"winograd"} == {*ours, "aten"}
    assert select.names("meta") == ("aten",)


@pytest.mark.parametrize(
    "change,text",
    [({"dtype": torch.int32}, "int32"), ({"device": "meta"}, "meta"), ({"groups": 3}, "groups=3")],
    ids=str,
)
def test_reasons_carry_the_values(change, text):
    entries = select.candidates(spec(**change))
    assert all(text in c.reason for c in entries if c.name != "aten")
    assert entries[-1].reason is None
    assert select.choose(spec(**change)) == "aten"


def test_forced():
    assert select.resolve(spec(), "direct") == "direct"
    assert select.resolve(spec(), "aten") == "aten"
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"'direct' does not apply to conv2d fprop int32"):
            select.resolve(spec(dtype=torch.int32), "direct")
    assert select.resolve(spec(dtype=torch.int32), "direct|auto") == "aten"
    assert select.resolve(spec(), "direct|auto") == "direct"
    with pytest.raises(ValueError, match="expected one of: auto, direct"):
        select.resolve(spec(), "nothing")


def entry(name, cost, reason=None):
    return select.Candidate(name, "cpu", reason, cost, 0)


def test_cheapest():
    aten = select.Candidate("aten", "aten", None, 1.0, None)
    pick = select.cheapest
    assert pick([entry("a", 0.5), entry("b", 0.4), aten], "avx2") == "b"
    assert pick([entry("a", 0.97), aten], "avx2") == "aten"  # within the model's error
    assert pick([entry("a", 0.7), aten], "avx512") == "aten"  # unmeasured: only if far better
    assert pick([entry("a", 0.3), aten], "avx512") == "a"
    assert pick([entry("a", 0.1, "no"), aten], "avx2") == "aten"
    assert pick([aten], "avx2") == "aten"


@pytest.fixture
def counted(monkeypatch):
    """How often the candidates are weighed."""
    calls = []
    weigh = select.candidates
    monkeypatch.setattr(select, "candidates", lambda s: calls.append(s) or weigh(s))
    select.forget()
    yield calls
    select.forget()


def test_decisions_are_remembered_until_something_changes(counted, set_threads):
    x, w = torch.randn(2, 16, 14, 14), torch.randn(32, 16, 3, 3)
    set_threads(2)
    fastconv.conv2d(x, w)
    once = len(counted)
    assert once > 0
    fastconv.conv2d(x, w)
    assert len(counted) == once
    set_threads(1)
    fastconv.conv2d(x, w)
    assert len(counted) > once, "the number of threads is part of the decision"
    before = len(counted)
    isa = _C.cpu_isa()
    other = next((name for name in _C.cpu_isas() if name != isa), isa)
    try:
        _C.set_cpu_isa(other)
        fastconv.conv2d(x, w)
        assert len(counted) > before, "the instruction set is part of the decision"
    finally:
        _C.set_cpu_isa(isa)


def algo_of(args):
    """The only text among a direction's arguments."""
    (algo,) = (a for a in args if isinstance(a, str))
    return algo


def test_a_changed_decision_is_taken(monkeypatch):
    x, w = torch.randn(2, 16, 14, 14), torch.randn(32, 16, 3, 3)
    ran = []
    from fastconv import functional

    run = functional.run_fprop
    monkeypatch.setattr(functional, "run_fprop", lambda *a: ran.append(algo_of(a)) or run(*a))
    for name in ("direct", "im2col", "direct"):
        monkeypatch.setattr(select, "recorded", lambda s, t, i, name=name: name)
        select.forget()
        fastconv.conv2d(x, w)
        fastconv.conv2d(x, w)
    select.forget()
    assert ran == ["direct"] * 2 + ["im2col"] * 2 + ["direct"] * 2


def test_each_direction_chooses_its_own(monkeypatch):
    ran = []
    from fastconv.ops import conv_autograd, conv_run

    for module, function in (
        (conv_autograd, "run_fprop"),
        (conv_run, "run_dgrad"),
        (conv_run, "run_wgrad"),
    ):
        original = getattr(module, function)
        monkeypatch.setattr(
            module,
            function,
            lambda *a, f=original, n=function: ran.append((n, algo_of(a))) or f(*a),
        )
    picks = {"fprop": "direct", "dgrad": "im2col", "wgrad": "aten"}
    monkeypatch.setattr(select, "recorded", lambda s, t, i: picks[s.direction])
    select.forget()
    x = torch.randn(2, 4, 8, 8, requires_grad=True)
    w = torch.randn(4, 4, 3, 3, requires_grad=True)
    fastconv.conv2d(x, w).sum().backward()
    select.forget()
    assert ran == [("run_fprop", "direct"), ("run_dgrad", "im2col"), ("run_wgrad", "aten")]


@pytest.mark.parametrize("case", CONV_CASES, ids=lambda c: c.id)
def test_aten_cost_is_a_time(case):
    for direction, dtype, threads in itertools.product(
        DIRECTIONS, (torch.float32, torch.float64, torch.bfloat16, torch.float16), (1, 2, 8)
    ):
        s = ConvSpec(direction, "cpu", dtype, case.input_size, case.weight_size, case.stride,
                     case.padding, case.dilation, case.groups)  # fmt: skip
        assert 1e-6 < cost_aten.seconds(s, threads) < 10


def test_aten_cost_grows_with_the_problem():
    small = cost_aten.seconds(spec(), 1)
    assert cost_aten.seconds(spec(input_size=(64, 16, 56, 56)), 1) > 10 * small
    big = spec(input_size=(8, 256, 28, 28), weight_size=(256, 256, 3, 3))
    assert cost_aten.seconds(big, 2) < 0.8 * cost_aten.seconds(big, 1)


def test_explain():
    x, w, b = torch.randn(2, 16, 14, 14), torch.randn(32, 16, 3, 3), torch.randn(32)
    e = explain(x, w, b, padding="same")
    assert [c.direction for c in e.choices] == list(DIRECTIONS)
    text = str(e)
    for name in _C.cpu_algorithms():
        assert name in text
    for choice in e.choices:
        assert choice.chosen == select.choose(spec(choice.direction)) and choice.why in text
    assert "x 2x16x14x14 w 32x16x3x3" in text and _C.cpu_isa() in text
    assert "asked for" in str(explain(x, w, algo="direct"))
    integer = explain(x.int(), w.int())
    assert integer["fprop"].chosen == "aten" and "int32" in str(integer)
    assert explain(x.to("meta"), w.to("meta"))["wgrad"].chosen == "aten"
    assert explain(x[0], w, padding=1)["fprop"].rows
    assert explain(torch.randn(1, 2, 9), torch.randn(2, 2, 4), padding="same").problem.startswith(
        "conv1d"
    )


def test_explain_names_what_is_wrong():
    x, w = torch.randn(2, 16, 14, 14), torch.randn(32, 16, 3, 3)
    with pytest.raises(RuntimeError, match=r"expected input.*to have 15 channels"):
        explain(x, w[:, :15])
    with pytest.raises(ValueError, match="unknown algorithm"):
        explain(x, w, algo="fft")
    with pytest.raises(RuntimeError, match="does not apply"):
        explain(x.int(), w.int(), algo="direct")
