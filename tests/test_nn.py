"""fastconv.nn's layers against torch.nn's: same arguments, parameters, results and refusals."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
import warnings

import pytest
import torch
from layers_check import assert_close, assert_same_function, fastconv_operators
from torch import nn
from torch.nn.utils import parametrize, skip_init

import fastconv

RANKS = {1: (nn.Conv1d, fastconv.nn.Conv1d), 2: (nn.Conv2d, fastconv.nn.Conv2d),
         3: (nn.Conv3d, fastconv.nn.Conv3d)}  # fmt: skip
EXTENT = {1: (17,), 2: (9, 11), 3: (5, 6, 7)}

ARGUMENTS = [
    pytest.param((4, 6, 3), {}, id="k3"),
    pytest.param((4, 6, 1), {"bias": False}, id="k1_no_bias"),
    pytest.param((4, 6, 3), {"stride": 2, "padding": 1}, id="stride2"),
    pytest.param((4, 6, 3), {"dilation": 2, "padding": 2, "groups": 2}, id="dilated_groups"),
    pytest.param((4, 8, 3), {"groups": 4, "padding": "same"}, id="depthwise_same"),
    pytest.param((4, 6, 4), {"padding": "same"}, id="even_same"),
    pytest.param((4, 6, 2), {"padding": "valid", "stride": 3}, id="valid"),
    pytest.param((4, 6, 3), {"padding": 2, "padding_mode": "reflect"}, id="reflect"),
    pytest.param((4, 6, 3), {"padding": 2, "padding_mode": "replicate"}, id="replicate"),
    pytest.param((4, 6, 3), {"padding": 2, "padding_mode": "circular"}, id="circular"),
    pytest.param((4, 6, 4), {"padding": "same", "padding_mode": "circular"}, id="circular_same"),
    pytest.param((4, 6, 3), {"padding": "valid", "padding_mode": "reflect"}, id="reflect_valid"),
    pytest.param((4, 6, 3), {"dtype": torch.float32, "device": "cpu"}, id="factory"),
]


def _pair(rank: int, args=(4, 6, 3), algo: str = "auto", **kwargs) -> tuple[nn.Module, nn.Module]:
    """torch's layer and ours, made with the same arguments after the same seed."""
    layers = []
    for cls, extra in zip(RANKS[rank], ({}, {"algo": algo}), strict=True):
        torch.manual_seed(3)
        layers.append(cls(*args, **{"dtype": torch.float64, **kwargs, **extra}))
    return layers[0], layers[1]


def _input(rank: int, layer: nn.Module, batch: int | None = 2) -> torch.Tensor:
    lead = () if batch is None else (batch,)
    return torch.randn(*lead, layer.in_channels, *EXTENT[rank], dtype=layer.weight.dtype)


@pytest.mark.parametrize("rank", RANKS)
def test_signature_is_torchs_and_two_keywords(rank):
    theirs, ours = (inspect.signature(cls).parameters for cls in RANKS[rank])
    assert list(ours)[: len(theirs)] == list(theirs)
    for name, parameter in theirs.items():
        assert ours[name].default == parameter.default
        assert ours[name].kind == parameter.kind
    extra = {name: p for name, p in ours.items() if name not in theirs}
    assert {n: (p.kind, p.default) for n, p in extra.items()} == {
        "algo": (inspect.Parameter.KEYWORD_ONLY, "auto"),
        "precision": (inspect.Parameter.KEYWORD_ONLY, None),
    }


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize(("args", "kwargs"), ARGUMENTS)
def test_same_layer(rank, args, kwargs):
    torchs, ours = _pair(rank, args, **kwargs)
    assert isinstance(ours, RANKS[rank][0])
    assert repr(ours) == repr(torchs)
    state, expected = ours.state_dict(), torchs.state_dict()
    assert list(state) == list(expected)
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    assert vars(ours).keys() == vars(torchs).keys()


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize(("args", "kwargs"), ARGUMENTS)
@pytest.mark.parametrize("batch", [2, None], ids=["batched", "unbatched"])
def test_same_function(rank, args, kwargs, batch):
    torchs, ours = _pair(rank, args, algo="im2col", **kwargs)
    x = _input(rank, ours, batch)
    assert_same_function(ours, torchs, x)
    if kwargs.get("padding_mode", "zeros") == "zeros":
        ran = fastconv_operators(lambda: ours(x))
        assert ran == {"fastconv::conv_fprop"}


@pytest.mark.parametrize("algo", ["auto", *fastconv.select.names()])
def test_every_algorithm_computes_the_layer(algo):
    torchs, ours = _pair(2, (8, 8, 3), algo=algo, padding=1, dtype=torch.float32)
    assert_same_function(ours, torchs, torch.randn(2, 8, 12, 12))
    assert (f"algo={algo}" in repr(ours)) == (algo != "auto")


def test_repr_shows_algo_and_precision_only_where_chosen():
    assert repr(fastconv.nn.Conv2d(3, 4, 3)) == repr(nn.Conv2d(3, 4, 3))
    chosen = fastconv.nn.Conv2d(3, 4, 3, algo="direct", precision="ieee")
    torchs = repr(nn.Conv2d(3, 4, 3))
    assert repr(chosen) == torchs[:-1] + ", algo=direct, precision=ieee)"


@pytest.mark.parametrize("algo", fastconv.select.names())
def test_nothing_is_stale_after_the_weight_changes(algo):
    torchs, ours = _pair(2, (8, 8, 3), algo=algo, padding=1)
    x = torch.randn(1, 8, 10, 10, dtype=torch.float64)
    before = ours(x)
    for layer in (torchs, ours):
        with torch.no_grad():
            layer.weight.mul_(-2)
            layer.bias.add_(1)
    assert not torch.equal(ours(x), before)
    assert_close(ours(x), torchs(x), "in-place update")
    state = {name: torch.randn_like(value) for name, value in torchs.state_dict().items()}
    for layer in (torchs, ours):
        layer.load_state_dict(state)
    assert_close(ours(x), torchs(x), "load_state_dict")
    for layer in (torchs, ours):
        layer.weight.data = state["weight"] * 3
    assert_close(ours(x), torchs(x), ".data")


@pytest.mark.parametrize("rank", RANKS)
def test_state_dict_goes_both_ways(rank):
    torchs, ours = _pair(rank)
    other = RANKS[rank][0](4, 6, 3, dtype=torch.float64)
    x = _input(rank, ours)
    ours.load_state_dict(other.state_dict(), strict=True)
    assert_close(ours(x), other(x))
    torchs.load_state_dict(ours.state_dict(), strict=True)
    assert_close(torchs(x), other(x))


def _saved(layer: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, _saved, lambda m: pickle.loads(pickle.dumps(m))],
                         ids=["deepcopy", "torch.save", "pickle"])  # fmt: skip
def test_copies(copied):
    layer = fastconv.nn.Conv2d(3, 4, 3, algo="direct", precision="ieee", padding_mode="circular")
    other = copied(layer)
    assert type(other) is type(layer)
    assert repr(other) == repr(layer)
    assert (other.algo, other.precision) == ("direct", "ieee")
    assert other.weight.data_ptr() != layer.weight.data_ptr()
    x = torch.randn(1, 3, 8, 8)
    assert torch.equal(other(x), layer(x))


def test_state_dict_loads_with_weights_only():
    layer = fastconv.nn.Conv2d(3, 4, 3)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    nn.Conv2d(3, 4, 3).load_state_dict(torch.load(file, weights_only=True))


def test_factories_and_deferred_allocation():
    assert fastconv.nn.Conv2d(3, 4, 3, dtype=torch.bfloat16).bias.dtype == torch.bfloat16
    meta = fastconv.nn.Conv2d(3, 4, 3, device="meta")
    assert meta.weight.is_meta
    assert meta(torch.empty(2, 3, 8, 8, device="meta")).shape == (2, 4, 6, 6)
    materialised = meta.to_empty(device="cpu")
    materialised.reset_parameters()
    assert materialised(torch.randn(2, 3, 8, 8)).isfinite().all()
    assert skip_init(fastconv.nn.Conv1d, 3, 4, 3).weight.shape == (4, 3, 3)


def test_channels_last():
    torchs, ours = _pair(2, (8, 8, 3), algo="direct", dtype=torch.float32)
    torchs.to(memory_format=torch.channels_last)
    ours.to(memory_format=torch.channels_last)
    x = torch.randn(2, 8, 9, 9)
    for input in (x, x.to(memory_format=torch.channels_last)):
        assert ours(input).stride() == torchs(input).stride()
        assert_same_function(ours, torchs, input)


def test_autocast():
    torchs, ours = _pair(2, (8, 8, 3), algo="direct", dtype=torch.float32)
    x = torch.randn(2, 8, 9, 9)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, expected = ours(x), torchs(x)
    assert y.dtype == expected.dtype == torch.bfloat16
    # One rounding of the result to 8 bits on either side.
    assert (y.float() - expected.float()).abs().max() <= 2**-7 * expected.abs().max()
    y.sum().backward()
    assert ours.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("algo", ["auto", "direct"])
def test_compile_and_export(algo):
    torchs, ours = _pair(2, algo=algo, padding="same", padding_mode="reflect", dtype=torch.float32)
    x = torch.randn(2, 4, 9, 9)
    assert_same_function(torch.compile(ours, fullgraph=True, backend="aot_eager"), torchs, x)
    exported = torch.export.export(ours, (x,))
    targets = {str(node.target) for node in exported.graph.nodes}
    assert any(target.startswith("fastconv.") for target in targets), targets
    assert_close(exported.module()(x), torchs(x))


def test_symbolic_trace():
    torchs, ours = _pair(2, algo="im2col", padding=1, padding_mode="circular")
    traced = torch.fx.symbolic_trace(nn.Sequential(ours, nn.ReLU()))
    x = _input(2, ours)
    assert_close(traced(x), torch.relu(torchs(x)))
    assert fastconv_operators(lambda: traced(x)) == {"fastconv::conv_fprop"}


@pytest.mark.parametrize(("args", "kwargs"), ARGUMENTS)
@pytest.mark.parametrize("batch", [2, None], ids=["batched", "unbatched"])
def test_jit_trace(args, kwargs, batch):
    torchs, ours = _pair(2, args, algo="direct", **kwargs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(nn.Sequential(ours, nn.ReLU()), _input(2, ours, batch))
        file = io.BytesIO()
        torch.jit.save(traced, file)
        file.seek(0)
        loaded = torch.jit.load(file)
    x = _input(2, ours, batch).repeat_interleave(2, dim=-1)  # a size that was not traced
    for graph in (traced, loaded):
        assert_close(graph(x), torch.relu(torchs(x)))
        assert "fastconv::conv_fprop" in fastconv_operators(lambda graph=graph: graph(x))
    assert_same_function(traced, nn.Sequential(torchs, nn.ReLU()), x)


def test_functional_call_and_vmap():
    _, ours = _pair(1, algo="direct")
    x = _input(1, ours)
    weights = {n: torch.randn(3, *p.shape, dtype=p.dtype) for n, p in ours.named_parameters()}

    def call(params):
        return torch.func.functional_call(ours, params, (x,))

    stacked = torch.vmap(call)(weights)
    for i in range(3):
        expected = nn.functional.conv1d(x, weights["weight"][i], weights["bias"][i])
        assert_close(stacked[i], expected)


def test_scripting_is_refused_in_plain_words():
    model = nn.Sequential(nn.ReLU(), fastconv.nn.Conv2d(3, 4, 3))
    for refused in (model, model[1]):
        with pytest.raises(RuntimeError, match=r"fastconv\.nn\.Conv2d cannot be scripted.*revert"):
            torch.jit.script(refused)
    assert model(torch.randn(1, 3, 5, 5)).shape == (1, 4, 3, 3)


def test_replicas_share_what_data_parallel_shares():
    layer = fastconv.nn.Conv2d(3, 4, 3, algo="direct")
    replica = layer._replicate_for_data_parallel()
    assert type(replica) is type(layer)
    assert replica.algo == "direct"


def test_parametrization_on_our_own_layer():
    torchs, ours = _pair(2, algo="direct")
    for layer in (torchs, ours):
        nn.utils.parametrizations.weight_norm(layer)
    x = _input(2, ours)
    assert_same_function(ours, torchs, x)
    parametrize.remove_parametrizations(ours, "weight")
    assert type(ours) is fastconv.nn.Conv2d


BAD_ARGUMENTS = [
    ((4, 6, 3), {"groups": 3}),
    ((4, 5, 3), {"groups": 2}),
    ((4, 6, 3), {"groups": 0}),
    ((4, 6, 3), {"padding": "same", "stride": 2}),
    ((4, 6, 3), {"padding": "some"}),
    ((4, 6, 3), {"padding_mode": "zero"}),
    ((4, 6), {}),
]


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize(("args", "kwargs"), BAD_ARGUMENTS)
def test_bad_arguments_are_refused_as_by_torch(rank, args, kwargs):
    errors = []
    for cls in RANKS[rank]:
        with pytest.raises((ValueError, TypeError)) as caught:
            cls(*args, **kwargs)
        # A missing argument is reported with the class's path; sets print in any order.
        errors.append((type(caught.value), sorted(str(caught.value).replace("fastconv.", ""))))
    assert errors[0] == errors[1]


@pytest.mark.parametrize("bad", ["fastest", "", None, 3])
def test_unknown_algo(bad):
    with pytest.raises(ValueError, match="algo") as caught:
        fastconv.nn.Conv2d(3, 4, 3, algo=bad)
    if isinstance(bad, str):
        assert "im2col" in str(caught.value)  # the known names are listed


def test_unknown_precision():
    with pytest.raises(ValueError, match=r"precision must be one of .*tf32.* got 'half'"):
        fastconv.nn.Conv2d(3, 4, 3, precision="half")


def test_algo_and_precision_are_keywords_only():
    with pytest.raises(TypeError, match="positional"):
        fastconv.nn.Conv2d(3, 4, 3, 1, 0, 1, 1, True, "zeros", None, None, "direct")


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("kwargs", [{}, {"padding": 1, "padding_mode": "circular"}],
                         ids=["zeros", "circular"])  # fmt: skip
def test_bad_input_is_refused_as_by_torch_and_breaks_nothing(rank, kwargs):
    torchs, ours = _pair(rank, algo="im2col", **kwargs)
    good = _input(rank, ours)
    bad = {
        "channels": good[:, :3],
        "rank": good[0, 0],
        "dtype": good.float(),
        "too small": good[..., :1] if not kwargs else good[..., :0],
        "not a tensor": good.tolist(),
    }
    for name, value in bad.items():
        errors = []
        for layer in (torchs, ours):
            with pytest.raises((RuntimeError, TypeError, AttributeError, ValueError)) as caught:
                layer(value)
            # What follows is the list of arguments, which may go by position or by name.
            errors.append((type(caught.value), str(caught.value).split(" - got")[0]))
        assert errors[0] == errors[1], name
        assert_close(ours(good), torchs(good), f"after {name}")


@pytest.mark.parametrize("algo", [n for n in fastconv.select.names() if n.startswith("winograd")])
def test_forced_algorithm_that_does_not_apply_says_why(algo):
    layer = fastconv.nn.Conv2d(3, 4, 3, stride=2, algo=algo)
    with pytest.raises(RuntimeError, match=r"winograd.*does not apply.*stride"):
        layer(torch.randn(1, 3, 9, 9))
    layer.algo = "auto"
    assert layer(torch.randn(1, 3, 9, 9)).shape == (1, 4, 4, 4)
