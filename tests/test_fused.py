"""conv_bn_relu and ConvBNReLU against PyTorch's separate layers: values, gradients, statistics."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastconv
from fastconv import activations, fused
from fastconv.nn import ConvBNReLU1d, ConvBNReLU2d, ConvBNReLU3d

CONVS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
LAYERS = {1: ConvBNReLU1d, 2: ConvBNReLU2d, 3: ConvBNReLU3d}
# rank, N, C, K, extents, kernel, moves
CASES = [
    (1, 3, 4, 6, (17,), 3, {"padding": 1}),
    (2, 2, 5, 7, (9, 11), 3, {"stride": 2, "padding": 1}),
    (2, 3, 8, 16, (14, 14), 1, {}),
    (2, 2, 6, 9, (10, 8), 3, {"padding": "same", "dilation": 2, "groups": 3}),
    (2, 2, 8, 8, (13, 13), 3, {"padding": 1, "groups": 8}),
    (2, 2, 16, 16, (16, 16), 3, {"padding": 1}),
    (2, 2, 4, 4, (8, 8), 2, {"padding": "same"}),  # an odd total: pads first
    (3, 2, 3, 5, (5, 6, 7), 3, {"padding": (1, 0, 1)}),
]
TOLERANCE = {torch.float64: 1e-11, torch.float32: 2e-5, torch.bfloat16: 5e-2, torch.float16: 6e-3}


def tensors(rank, N, C, K, extents, kernel, moves, dtype=torch.float64, last=False, bias=True):
    gen = torch.Generator().manual_seed(rank * 100 + C)

    def rand(*size):
        return torch.randn(*size, generator=gen, dtype=torch.float64)

    x = rand(N, C, *extents).to(dtype)
    w = (rand(K, C // moves.get("groups", 1), *[kernel] * rank) * 0.4).to(dtype)
    if last and rank > 1:
        form = torch.channels_last if rank == 2 else torch.channels_last_3d
        x, w = x.contiguous(memory_format=form), w.contiguous(memory_format=form)
    b = rand(K).to(dtype) if bias else None
    kind = torch.float64 if dtype == torch.float64 else torch.float32
    gamma, beta = (1 + 0.3 * rand(K)).to(kind), (0.5 * rand(K)).to(kind)
    mean, var = rand(K).to(kind), (0.5 + rand(K).abs()).to(kind)
    y = CONVS[rank](x, w, b, **moves)
    residual = rand(*y.shape).to(dtype)
    if last and rank > 1:
        residual = residual.contiguous(memory_format=form)
    return x, w, b, gamma, beta, mean, var, residual


def separate(x, w, b, gamma, beta, mean, var, residual, after, act, training, moves, eps=1e-5):
    y = CONVS[w.dim() - 2](x, w, b, **moves)
    z = F.batch_norm(y, mean, var, gamma, beta, training, 0.1, eps)
    if residual is None:
        return act(z)
    return act(z) + residual if after else act(z + residual)


def close(a, b, dtype, scale=1.0):
    limit = TOLERANCE[dtype] * scale * max(1.0, b.double().abs().max().item())
    torch.testing.assert_close(a.double(), b.double(), rtol=0, atol=limit)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_forward_and_running_statistics(case, dtype, last, training):
    rank, moves = case[0], case[-1]
    x, w, b, gamma, beta, mean, var, residual = tensors(*case, dtype, last)
    for name, res, after in (
        ("relu", None, False),
        ("silu", residual, False),
        ("leaky_relu", residual, True),
    ):
        act = activations.named(name)
        m, v, m64, v64 = mean.clone(), var.clone(), mean.double(), var.double()
        got = fastconv.conv_bn_relu(
            x, w, b, gamma, beta, m, v, training=training, activation=name, residual=res,
            residual_after=after, **moves,
        )  # fmt: skip
        wide = [None if t is None else t.double() for t in (x, w, b, gamma, beta)]
        wide_res = None if res is None else res.double()
        expected = separate(*wide, m64, v64, wide_res, after, act, training, moves)
        close(got, expected, dtype, 2.0)
        assert got.dtype == dtype
        if rank < 3:  # PyTorch's own 3-D convolution on the CPU drops the format
            assert got.stride() == CONVS[rank](x, w, b, **moves).stride()
        close(m, m64, dtype)
        close(v, v64, dtype, 2.0)
        if not training:
            assert torch.equal(m, mean) and torch.equal(v, var)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("case", [CASES[1], CASES[3], CASES[7]], ids=str)
@pytest.mark.parametrize("name", activations.NAMES)
def test_gradients_are_those_of_separate_layers(name, case, last, recompute):
    moves = case[-1]
    act = activations.named(name)
    for res_kind in ("none", "before", "after"):
        for training in (True, False):
            *values, mean, var, residual = tensors(*case, torch.float64, last)
            given = [*values, residual if res_kind != "none" else None]
            ours = [None if t is None else t.clone().requires_grad_() for t in given]
            theirs = [None if t is None else t.clone().requires_grad_() for t in given]
            after = res_kind == "after"
            z = fastconv.conv_bn_relu(
                *ours[:5], mean.clone(), var.clone(), training=training, activation=name,
                residual=ours[5], residual_after=after, recompute=recompute, **moves,
            )  # fmt: skip
            expected = separate(
                *theirs[:5], mean.clone(), var.clone(), theirs[5], after, act, training, moves
            )
            g = torch.randn_like(z)
            z.backward(g)
            expected.backward(g)
            for a, b in zip(ours, theirs, strict=True):
                if a is not None:
                    close(a.grad, b.grad, torch.float64, 10.0)


@pytest.mark.parametrize("res_kind", ["none", "before", "after"])
@pytest.mark.parametrize("name", ["relu", "silu"])
def test_gradcheck_and_second_order(name, res_kind):
    case = (2, 3, 2, 3, (4, 5), 3, {"padding": 1, "stride": 2})
    x, w, b, gamma, beta, _, _, residual = tensors(*case)
    given = [x, w, b, gamma, beta]
    if res_kind != "none":
        given.append(residual)

    def function(x, w, b, gamma, beta, residual=None):
        return fastconv.conv_bn_relu(
            x, w, b, gamma, beta, None, None, training=True, activation=name,
            residual=residual, residual_after=res_kind == "after", **case[-1],
        )  # fmt: skip

    inputs = [t.clone().requires_grad_() for t in given]
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


def test_forward_mode_and_transforms_are_composed():
    case = CASES[1]
    x, w, b, gamma, beta, *_ = tensors(*case)

    def function(x):
        return fastconv.conv_bn_relu(x, w, b, gamma, beta, None, None, training=True, **case[-1])

    def reference(x):
        return separate(x, w, b, gamma, beta, None, None, None, False, F.relu, True, case[-1])

    t = torch.randn_like(x)
    for got, expected in zip(
        torch.func.jvp(function, (x,), (t,)), torch.func.jvp(reference, (x,), (t,)), strict=True
    ):
        close(got, expected, torch.float64)
    batch = torch.stack([x, 2 * x])
    close(torch.vmap(function)(batch), torch.vmap(reference)(batch), torch.float64)
    close(
        torch.func.grad(lambda x: function(x).square().sum())(x),
        torch.func.grad(lambda x: reference(x).square().sum())(x),
        torch.float64,
        100.0,
    )


@pytest.mark.parametrize("recompute", [False, True])
def test_saved_bytes(recompute):
    """Separate layers keep the input, the convolution's result and the activation's result; this
    one the first two, with `recompute` the first alone."""
    layer = ConvBNReLU2d(32, 32, 3, padding=1, recompute=recompute)
    plain = nn.Sequential(
        nn.Conv2d(32, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU()
    )
    x = torch.randn(4, 32, 28, 28, requires_grad=True)

    def saved(module) -> int:
        parameters = {p.data_ptr() for p in module.parameters()}
        sizes = {}

        def pack(t):
            if t.data_ptr() not in parameters:
                sizes[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            module(x)
        return sum(sizes.values())

    share = saved(layer) / saved(plain)
    assert share <= (0.45 if recompute else 0.68), share


def test_folded_weights_follow_their_sources():
    layer = ConvBNReLU2d(4, 6, 3, padding=1, bias=True).eval()
    nn.init.normal_(layer[1].running_mean)
    x = torch.randn(2, 4, 8, 8)

    def separate_layers():
        return nn.Sequential.forward(layer, x)

    with torch.no_grad():
        first = layer(x)
        close(first, separate_layers(), torch.float32)
        w = fused._folded._entries[id(layer[0].weight)].value[0]
        layer(x)
        assert fused._folded._entries[id(layer[0].weight)].value[0] is w, "folded again for nothing"
        for change in (
            lambda: layer[0].weight.mul_(2),
            lambda: layer[0].bias.add_(1),
            lambda: layer[1].weight.mul_(3),
            lambda: layer[1].bias.add_(1),
            lambda: layer[1].running_mean.add_(1),
            lambda: layer[1].running_var.mul_(2),
            lambda: layer.load_state_dict({k: v * 0.5 for k, v in layer.state_dict().items()}),
            lambda: setattr(layer[1], "eps", 0.1),
            lambda: setattr(layer[1], "weight", nn.Parameter(torch.randn(6))),
        ):
            before = layer(x)
            change()
            after = layer(x)
            assert not torch.equal(before, after)
            close(after, separate_layers(), torch.float32, 4.0)
    with torch.inference_mode():
        close(layer(x), separate_layers(), torch.float32, 4.0)


def test_layer_is_the_sequential_of_its_children():
    for rank, layer_class in LAYERS.items():
        layer = layer_class(3, 4, 3, bias=True, momentum=None)
        conv, norm = getattr(nn, f"Conv{rank}d"), getattr(nn, f"BatchNorm{rank}d")
        plain = nn.Sequential(conv(3, 4, 3), norm(4, momentum=None), nn.ReLU())
        assert list(layer.state_dict()) == list(plain.state_dict())
        layer.load_state_dict(plain.state_dict())
        for step in range(3):
            x = torch.randn(2, 3, *[6] * rank) + step
            close(layer(x), plain(x), torch.float32, 4.0)
        for a, b in zip(layer.state_dict().values(), plain.state_dict().values(), strict=True):
            close(a, b, torch.float32)
        assert int(layer[1].num_batches_tracked) == 3
        layer.eval(), plain.eval()
        close(layer(x), plain(x), torch.float32, 4.0)
        for again in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            assert torch.equal(again(x), layer(x))


@pytest.mark.parametrize(
    "options",
    [
        {"affine": False},
        {"track_running_stats": False},
        {"padding_mode": "circular", "padding": 1},
        {"activation": None},
        {"activation": "leaky_relu", "negative_slope": 0.2},
        {"activation": "relu6"},
        {"eps": 0.1, "momentum": 0.3},
    ],
    ids=str,
)
def test_layer_options(options):
    layer = ConvBNReLU2d(3, 4, 3, **options)
    conv_options = {k: v for k, v in options.items() if k in ("padding_mode", "padding")}
    norm_options = {
        k: v
        for k, v in options.items()
        if k in ("affine", "track_running_stats", "eps", "momentum")
    }
    act = {None: nn.Identity(), "leaky_relu": nn.LeakyReLU(0.2), "relu6": nn.ReLU6()}
    plain = nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False, **conv_options),
        nn.BatchNorm2d(4, **norm_options),
        act.get(options.get("activation", "relu"), nn.ReLU()),
    )
    plain.load_state_dict(layer.state_dict())
    for mode in (True, False):
        layer.train(mode), plain.train(mode)
        x = 3 * torch.randn(2, 3, 8, 8)
        close(layer(x), plain(x), torch.float32, 4.0)
    for a, b in zip(layer.state_dict().values(), plain.state_dict().values(), strict=True):
        close(a, b, torch.float32)


def test_children_with_hooks_run():
    layer = ConvBNReLU2d(3, 4, 3)
    x, seen = torch.randn(2, 3, 8, 8), []
    expected = layer.eval()(x)
    layer[1].register_forward_hook(lambda m, args, out: seen.append(out.shape))
    close(layer(x), expected, torch.float32)
    assert seen == [torch.Size((2, 4, 6, 6))]


def test_autocast_and_mixed_precision():
    layer = ConvBNReLU2d(3, 4, 3)
    plain = nn.Sequential(*copy.deepcopy(list(layer)))
    x = torch.randn(2, 3, 8, 8)
    for mode in (True, False):
        layer.train(mode), plain.train(mode)
        with torch.autocast("cpu", torch.bfloat16):
            got, expected = layer(x), plain(x)
        assert got.dtype == expected.dtype == torch.bfloat16
        close(got, expected, torch.bfloat16)
    for dtype in (torch.bfloat16, torch.float16):
        mixed = ConvBNReLU2d(3, 4, 3).train()
        mixed[0].to(dtype)
        reference = copy.deepcopy(mixed)
        z = mixed(x.to(dtype))
        z.sum().backward()
        e = nn.Sequential.forward(reference, x.to(dtype))
        e.sum().backward()
        assert z.dtype == e.dtype
        close(z, e, dtype, 2.0)
        for a, b in zip(mixed.parameters(), reference.parameters(), strict=True):
            assert a.grad.dtype == b.grad.dtype
        close(mixed[1].running_var, reference[1].running_var, dtype)


def test_compiled_fullgraph():
    layer = ConvBNReLU2d(3, 4, 3)
    plain = nn.Sequential(*copy.deepcopy(list(layer)))
    compiled = torch.compile(lambda x: layer(x), fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    y = compiled(x)
    close(y, plain(x), torch.float32)
    y.sum().backward()
    assert x.grad is not None
    layer.eval(), plain.eval()
    with torch.no_grad():
        residual = torch.randn(2, 4, 6, 6)
        again = torch.compile(lambda x, r: layer(x, r), fullgraph=True, backend="aot_eager")
        close(again(x, residual), plain[2](plain[1](plain[0](x)) + residual), torch.float32)


def test_registered_ops_pass_opcheck():
    ops = torch.ops.fastconv
    x, w, b = torch.randn(2, 3, 6, 6), torch.randn(4, 3, 3, 3), torch.randn(4)
    y = torch.randn(2, 4, 6, 6).contiguous(memory_format=torch.channels_last)
    mean, rstd = torch.randn(4), torch.rand(4) + 1
    lists = ([1, 1], [1, 1], [1, 1], 1)
    norm = (mean, rstd, None, torch.randn(4), y)
    checks = ("test_schema", "test_faketensor")
    for op, args in (
        (ops.conv_act, (x, w, b, y, *lists, 1, 0.0, False, "auto")),
        (ops.conv_epilogue_fprop, (x, w, b, y, *lists, 4, 0.0, True, "direct")),
        (ops.conv_epilogue_into, (x, w, b, None, torch.empty(2, 9, 6, 6)[:, 2:6], *lists, 1, 0.0,
                                  False, "im2col")),
        (ops.conv_stats_fprop, (x, w, b, *lists, "direct")),
        (ops.norm_act_stats, (y,)),
        (ops.norm_act_fprop, (y, *norm, 1, 0.0, False)),
        (ops.epilogue_into, (y, None, y.clone(memory_format=torch.preserve_format), 1, 0.0, False)),
        (ops.norm_act_sums, (y, y, *norm, 2, 0.1, False)),
        (ops.norm_act_dgrad, (y, y, *norm, mean, rstd, 72.0, 1, 0.0, False, True)),
        (ops.norm_act_dgrad, (y, y, *norm, None, None, 72.0, 1, 0.0, True, False)),
    ):  # fmt: skip
        torch.library.opcheck(op.default, args, test_utils=checks)


def test_empty_batch_and_single_values():
    layer = ConvBNReLU2d(3, 4, 3)
    plain = nn.Sequential(*copy.deepcopy(list(layer)))
    x = torch.empty(0, 3, 8, 8)
    assert layer(x).shape == plain(x).shape == (0, 4, 6, 6)
    one = torch.randn(1, 3, 3, 3)
    with pytest.raises(ValueError, match="Expected more than 1 value per channel when training"):
        layer(one)
    close(layer.eval()(one), plain.eval()(one), torch.float32)


def test_errors_are_pytorchs():
    x, w = torch.randn(2, 3, 8, 8), torch.randn(4, 3, 3, 3)
    stats = (torch.zeros(4), torch.ones(4))

    def same(*args, **options):
        with pytest.raises((RuntimeError, ValueError)) as ours:
            fastconv.conv_bn_relu(*args, **options)
        return str(ours.value)

    with pytest.raises(RuntimeError) as theirs:
        F.conv2d(torch.randn(2, 5, 8, 8), w)
    assert same(torch.randn(2, 5, 8, 8), w, None, None, None, *stats) == str(theirs.value)
    with pytest.raises(RuntimeError) as theirs:
        F.batch_norm(F.conv2d(x, w), torch.zeros(5), torch.ones(4))
    assert same(x, w, None, None, None, torch.zeros(5), torch.ones(4)) == str(theirs.value)
    with pytest.raises(RuntimeError) as theirs:
        F.batch_norm(F.conv2d(x, w), *stats, torch.ones(3))
    assert same(x, w, None, torch.ones(3), None, *stats) == str(theirs.value)
    with pytest.raises(RuntimeError) as theirs:
        F.batch_norm(F.conv2d(x, w), None, None)
    assert same(x, w, None, None, None, None, None) == str(theirs.value)
    with pytest.raises(RuntimeError) as theirs:
        torch.zeros(2, 4, 6, 6) + torch.zeros(2, 4, 5, 6)
    text = same(x, w, None, None, None, *stats, residual=torch.zeros(2, 4, 5, 6))
    assert text == str(theirs.value)
    with pytest.raises(ValueError) as theirs:
        nn.BatchNorm2d(4)(torch.randn(4, 6, 6))
    assert same(x[0], w, None, None, None, *stats) == str(theirs.value)
    assert "unknown activation 'gelu'" in same(x, w, None, None, None, *stats, activation="gelu")
    assert "unknown algorithm" in same(x, w, None, None, None, *stats, algo="nope")


def test_residual_broadcasts():
    case = CASES[2]
    x, w, b, gamma, beta, mean, var, residual = tensors(*case)
    for piece in (residual[:1], residual[:, :, :1, :1], residual[0, 0]):
        got = fastconv.conv_bn_relu(x, w, b, gamma, beta, mean, var, residual=piece)
        expected = separate(x, w, b, gamma, beta, mean, var, piece, False, F.relu, False, {})
        close(got, expected, torch.float64)


@pytest.mark.parametrize("algo", ["direct", "im2col", "winograd", "aten"])
def test_named_algorithms(algo):
    case = CASES[5]
    x, w, b, gamma, beta, mean, var, residual = tensors(*case, torch.float32)
    for training in (False, True):
        stats = (mean.clone(), var.clone())
        got = fastconv.conv_bn_relu(
            x, w, b, gamma, beta, *stats, training=training, residual=residual, algo=algo, padding=1
        )
        stats = (mean.clone(), var.clone())
        expected = separate(
            x, w, b, gamma, beta, *stats, residual, False, F.relu, training, {"padding": 1}
        )
        close(got, expected, torch.float32, 10.0)


def profiled(run) -> list[str]:
    """The operators that a call dispatches, allocations aside."""
    run()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run()
    names = [event.name for event in profile.events() if "::" in event.name]
    quiet = ("aten::empty", "aten::detach", "aten::as_strided", "aten::view", "aten::contiguous")
    return [name for name in names if not name.startswith(quiet)]


def test_evaluation_is_one_operator():
    layer = ConvBNReLU2d(8, 16, 3, padding=1, algo="direct").eval()
    x, residual = torch.randn(2, 8, 12, 12), torch.randn(2, 16, 12, 12)
    with torch.no_grad():
        assert profiled(lambda: layer(x, residual)) == ["fastconv::conv_epilogue_fprop"]
        plain = nn.Sequential(*layer)
        assert len(profiled(lambda: plain(x))) > 2, "the profiler sees what is not fused"
