"""Traced graphs: torch.compile, export, make_fx, FakeTensor and meta, autocast, opcheck."""

from __future__ import annotations

import io
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import fastconv
from fastconv.problem import (
    conv_output_size,
    packed_moves,
    packed_sizes,
    unpacked_moves,
    unpacked_sizes,
)

OPS = torch.ops.fastconv


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()


def tensors(*sizes, dtype=torch.float32, grad=False):
    return [torch.randn(s).to(dtype).requires_grad_(grad) for s in sizes]


CALLS = {
    "plain": ((2, 3, 8, 8), (4, 3, 3, 3), {}),
    "everything": (
        (2, 4, 9, 8),
        (6, 2, 3, 2),
        {"stride": (2, 1), "padding": [1, 2], "dilation": 2, "groups": 2},
    ),
    "same": ((2, 3, 8, 8), (4, 3, 3, 3), {"padding": "same"}),
    "same even": ((2, 3, 8, 8), (4, 3, 2, 4), {"padding": "same"}),
    "valid": ((2, 3, 8, 8), (4, 3, 3, 3), {"padding": "valid", "stride": 2}),
    "unbatched": ((3, 8, 8), (4, 3, 3, 3), {"padding": 1}),
    "1d": ((2, 3, 8), (4, 3, 3), {"padding": 1}),
    "3d": ((1, 2, 4, 5, 6), (3, 2, 2, 2, 2), {"padding": 1}),
}


def functions(w):
    return {3: (fastconv.conv1d, F.conv1d), 4: (fastconv.conv2d, F.conv2d),
            5: (fastconv.conv3d, F.conv3d)}[w.dim()]  # fmt: skip


@pytest.mark.parametrize("algo", ["auto", "direct"])
@pytest.mark.parametrize("name", CALLS)
def test_compile_fullgraph(name, algo):
    x_size, w_size, kwargs = CALLS[name]
    x, w = tensors(x_size, w_size, grad=True)
    (b,) = tensors(w_size[:1], grad=True)
    ours, theirs = functions(w)
    f = torch.compile(
        lambda x, w, b: ours(x, w, b, algo=algo, **kwargs).relu(),
        fullgraph=True,
        backend="aot_eager",
    )
    y, expected = f(x, w, b), theirs(x, w, b, **kwargs).relu()
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
    assert y.stride() == expected.stride()
    mine = torch.autograd.grad(y.square().sum(), (x, w, b))
    other = torch.autograd.grad(expected.square().sum(), (x, w, b))
    torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-3)


def test_compile_inductor():
    # Convolutions alone, so that no C++ is generated and compiled.
    x, w, v = tensors((2, 3, 8, 8), (4, 3, 3, 3), (5, 4, 3, 3), grad=True)
    f = torch.compile(
        lambda x, w, v: fastconv.conv2d(fastconv.conv2d(x, w, padding=1), v, stride=2),
        fullgraph=True,
    )
    y, expected = f(x, w, v), F.conv2d(F.conv2d(x, w, padding=1), v, stride=2)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
    cotangent = torch.randn_like(y)
    mine = torch.autograd.grad(y, (x, w, v), cotangent)
    other = torch.autograd.grad(expected, (x, w, v), cotangent)
    torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-3)


def test_the_compiled_graph_holds_our_op():
    seen = []

    def backend(graph, inputs):
        seen.extend(str(n.target) for n in graph.graph.nodes if n.op == "call_function")
        return graph

    x, w = tensors((2, 3, 8, 8), (4, 3, 3, 3))
    torch.compile(lambda x, w: fastconv.conv2d(x, w), fullgraph=True, backend=backend)(x, w)
    assert any("fastconv.conv" in name for name in seen), seen


def test_dynamic_shapes():
    compiles = []

    def backend(graph, inputs):
        compiles.append(graph)
        return graph

    f = torch.compile(
        lambda x, w: fastconv.conv2d(x, w, padding=1, stride=2),
        fullgraph=True,
        dynamic=True,
        backend=backend,
    )
    (w,) = tensors((4, 3, 3, 3))
    for n, h in ((2, 8), (3, 11), (5, 14), (7, 9)):
        (x,) = tensors((n, 3, h, h + 1))
        torch.testing.assert_close(
            f(x, w), F.conv2d(x, w, padding=1, stride=2), rtol=1e-4, atol=1e-4
        )
    assert len(compiles) <= 2


def test_dynamic_training():
    f = torch.compile(
        lambda x, w: fastconv.conv2d(x, w, padding=1, algo="direct"),
        fullgraph=True,
        dynamic=True,
        backend="aot_eager",
    )
    for h in (6, 9, 13):
        x, w = tensors((2, 3, h, h), (4, 3, 3, 3), grad=True)
        mine = torch.autograd.grad(f(x, w).sum(), (x, w))
        other = torch.autograd.grad(F.conv2d(x, w, padding=1).sum(), (x, w))
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(4, 3, 3, 3))
        self.bias = torch.nn.Parameter(torch.randn(4))

    def forward(self, x):
        return fastconv.conv2d(x, self.weight, self.bias, padding=1).relu()


@pytest.mark.parametrize("strict", [False, True])
def test_export(strict):
    net, (x,) = Net(), tensors((2, 3, 8, 8))
    shapes = {"x": {0: torch.export.Dim("n", min=2), 2: torch.export.Dim("h", min=4)}}
    program = torch.export.export(net, (x,), dynamic_shapes=shapes, strict=strict)
    assert "fastconv.conv" in str(program.graph)
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    loaded = torch.export.load(buffer)
    (other,) = tensors((5, 3, 11, 8))
    torch.testing.assert_close(loaded.module()(other), net(other), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        net(other), F.conv2d(other, net.weight, net.bias, padding=1).relu(), rtol=1e-4, atol=1e-4
    )


def test_compile_what_only_pytorch_takes():
    x, w = torch.ones(1, 2, 5, 5, dtype=torch.int32), torch.ones(3, 2, 3, 3, dtype=torch.int32)
    f = torch.compile(lambda x, w: fastconv.conv2d(x, w), fullgraph=True, backend="aot_eager")
    assert torch.equal(f(x, w), F.conv2d(x, w))


def test_compile_bad_input_then_good():
    f = torch.compile(lambda x, w: fastconv.conv2d(x, w), backend="aot_eager", fullgraph=True)
    x, w = tensors((2, 3, 8, 8), (4, 5, 3, 3))
    with pytest.raises(Exception, match=r"expected input.*to have 5 channels"):
        f(x, w)
    (w,) = tensors((4, 3, 3, 3))
    torch.testing.assert_close(f(x, w), F.conv2d(x, w), rtol=1e-4, atol=1e-4)
    with pytest.raises(Exception, match="unknown algorithm"):
        torch.compile(lambda x, w: fastconv.conv2d(x, w, algo="fft"), backend="eager")(x, w)


def test_compiled_functorch():
    x, w = tensors((2, 3, 6, 6), (4, 3, 3, 3))

    def loss(f):
        return lambda w: f(x, w, padding=1).sin().sum()

    f = torch.compile(torch.func.grad(loss(fastconv.conv2d)), fullgraph=True, backend="aot_eager")
    expected = torch.func.grad(loss(F.conv2d))(w)
    torch.testing.assert_close(f(w), expected, rtol=1e-4, atol=1e-4)
    (xs,) = tensors((5, 2, 3, 6, 6))
    batched = torch.compile(
        torch.vmap(lambda x: fastconv.conv2d(x, w)), fullgraph=True, backend="aot_eager"
    )
    torch.testing.assert_close(
        batched(xs), torch.vmap(lambda x: F.conv2d(x, w))(xs), rtol=1e-4, atol=1e-4
    )


def test_compiled_forward_mode_keeps_the_tangent():
    x, w = tensors((2, 3, 6, 6), (4, 3, 3, 3))
    (x_t,) = tensors((2, 3, 6, 6))

    def tangent(f):
        return lambda x, x_t: torch.func.jvp(lambda x: f(x, w), (x,), (x_t,))[1]

    mine = torch.compile(tangent(fastconv.conv2d), backend="aot_eager")(x, x_t)
    torch.testing.assert_close(mine, tangent(F.conv2d)(x, x_t), rtol=1e-4, atol=1e-4)
    # A named algorithm leaves the graph for it.
    named = torch.compile(tangent(partial(fastconv.conv2d, algo="direct")), backend="aot_eager")
    torch.testing.assert_close(named(x, x_t), mine, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tracing_mode", ["real", "fake", "symbolic"])
def test_make_fx(tracing_mode):
    x, w = tensors((2, 3, 8, 8), (4, 3, 3, 3))
    graph = make_fx(lambda x, w: fastconv.conv2d(x, w, padding="same"), tracing_mode=tracing_mode)(
        x, w
    )
    assert "fastconv.conv" in graph.code
    torch.testing.assert_close(graph(x, w), F.conv2d(x, w, padding="same"), rtol=1e-4, atol=1e-4)
    gradient = make_fx(torch.func.grad(lambda w: fastconv.conv2d(x, w).square().sum()))(w)
    assert "fastconv.conv_dw" in gradient.code
    expected = torch.func.grad(lambda w: F.conv2d(x, w).square().sum())(w)
    torch.testing.assert_close(gradient(w), expected, rtol=1e-4, atol=1e-4)


def test_fake_tensors_inside_and_outside_their_mode():
    for algo in ("auto", "direct"):
        with FakeTensorMode() as mode:
            x, w = torch.empty(2, 3, 8, 8, requires_grad=True), torch.empty(4, 3, 3, 3)
            y = fastconv.conv2d(x, w, stride=2, padding=1, algo=algo)
            assert tuple(y.shape) == (2, 4, 4, 4) and y.requires_grad
            y.sum().backward()
            assert x.grad.shape == x.shape
            with pytest.raises(RuntimeError, match="to have 3 channels"):
                fastconv.conv2d(torch.empty(2, 5, 8, 8), w, algo=algo)
        x, w = mode.from_tensor(torch.randn(2, 3, 8, 8)), mode.from_tensor(torch.randn(4, 3, 3, 3))
        assert tuple(fastconv.conv2d(x, w, algo=algo).shape) == (2, 4, 6, 6)


def test_meta_tensors():
    x, w = torch.empty(2, 3, 8, 8, device="meta"), torch.empty(4, 3, 3, 3, device="meta")
    assert fastconv.conv2d(x, w, padding=1).shape == (2, 4, 8, 8)
    for channels_last in (False, True):
        if channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        y = OPS.conv(x, w, None, [1, 1], [1, 1], [1, 1], 1, "auto")
        expected = F.conv2d(*(torch.zeros_like(t, device="cpu") for t in (x, w)), padding=1)
        assert y.shape == expected.shape and y.stride() == expected.stride()


# --- autocast -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("algo", ["auto", "direct"])
def test_autocast(dtype, algo):
    combinations = [(torch.float32,) * 3, (torch.float32, dtype, torch.float32), (dtype,) * 3]
    combinations.append((torch.float64,) * 3)
    for dtypes in combinations:
        sizes = ((2, 3, 8, 8), (4, 3, 3, 3), (4,))
        x, w, b = (
            torch.randn(s, dtype=d, requires_grad=True) for s, d in zip(sizes, dtypes, strict=True)
        )
        with torch.autocast("cpu", dtype):
            y, expected = fastconv.conv2d(x, w, b, algo=algo), F.conv2d(x, w, b)
            op = OPS.conv(x, w, b, [1, 1], [0, 0], [1, 1], 1, algo)
        assert y.dtype == expected.dtype == op.dtype
        torch.testing.assert_close(y, expected, rtol=2e-2, atol=5e-2)
        torch.testing.assert_close(op, expected, rtol=2e-2, atol=5e-2)
        grads = torch.autograd.grad(y.float().sum(), (x, w, b))
        assert [g.dtype for g in grads] == list(dtypes)
    with torch.autocast("cpu", enabled=False):
        assert (
            fastconv.conv2d(*tensors((1, 1, 3, 3), (1, 1, 2, 2)), algo=algo).dtype == torch.float32
        )


def test_autocast_mismatch_is_pytorchs_error():
    x, w = torch.randn(1, 2, 5, 5, dtype=torch.float64), torch.randn(3, 2, 3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        with pytest.raises(RuntimeError) as expected:
            F.conv2d(x, w)
        with pytest.raises(RuntimeError) as mine:
            fastconv.conv2d(x, w, algo="direct")
    assert str(mine.value) == str(expected.value)


def test_compile_under_autocast():
    x, w = tensors((2, 3, 8, 8), (4, 3, 3, 3), grad=True)

    def f(x, w):
        with torch.autocast("cpu", torch.bfloat16):
            return fastconv.conv2d(x, w, algo="direct")

    y = torch.compile(f, fullgraph=True, backend="aot_eager")(x, w)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, f(x, w))
    assert torch.autograd.grad(y.float().sum(), w)[0].dtype == torch.float32


# --- the ops themselves ---------------------------------------------------------------------------

LISTS = ([2, 1], [1, 0], [1, 2], 2)
X, W, Y = (2, 4, 8, 7), (6, 2, 3, 2), (2, 6, 4, 5)


def test_sizes_used_below_fit():
    assert conv_output_size(X, W, *LISTS[:3]) == list(Y)


def op_arguments(name, algo, grad, channels_last=False, dtype=torch.float64):
    x, w, y = tensors(X, W, Y, dtype=dtype, grad=grad)
    (b,) = tensors((6,), dtype=dtype, grad=grad)
    if channels_last:
        x, y = (t.detach().contiguous(memory_format=torch.channels_last) for t in (x, y))
        x.requires_grad_(grad)
        y.requires_grad_(grad)
    if name in ("conv", "conv_fprop"):
        return (x, w, b, *LISTS, algo)
    if name in ("conv_dx", "conv_dgrad"):
        return (y, w, list(X), *LISTS, channels_last, algo)
    return (y, x, list(W), *LISTS, channels_last, algo)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("algo", ["auto", "aten", "direct", "direct|auto"])
@pytest.mark.parametrize("name", ["conv", "conv_dx", "conv_dw"])
def test_opcheck(name, algo, channels_last):
    op = getattr(OPS, name).default
    for grad in (False, True):
        args = op_arguments(name, algo, grad, channels_last)
        torch.library.opcheck(op, args)
    args = op_arguments(name, algo, False, channels_last, torch.bfloat16)
    torch.library.opcheck(op, args)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", ["conv_fprop", "conv_dgrad", "conv_wgrad"])
def test_opcheck_kernels(name, channels_last):
    op = getattr(OPS, name).default
    torch.library.opcheck(op, op_arguments(name, "direct", False, channels_last))


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", ["conv_fprop", "conv_dgrad", "conv_wgrad"])
def test_opcheck_packed(name, channels_last):
    """The geometry, and the gradients' sizes, in integers."""
    args = op_arguments(name, "direct", False, channels_last)
    moves = packed_moves(*LISTS[:3])
    if name == "conv_fprop":
        packed = (*args[:3], moves, *args[6:])
    else:
        packed = (*args[:2], moves, packed_sizes(args[2][2:]), *args[6:])
    op = getattr(OPS, name)
    torch.library.opcheck(op.packed, packed)
    assert torch.equal(op.packed(*packed), op.default(*args))


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_packed_moves(rank):
    values = [[1, 127, 3], [0, 2, 127], [127, 1, 5]]
    lists = [v[:rank] for v in values]
    assert list(unpacked_moves(packed_moves(*lists), rank)) == lists
    assert 0 <= packed_moves(*lists) < 2**63
    for i in range(3):
        large = [list(v) for v in lists]
        large[i][-1] = 128
        assert packed_moves(*large) is None


def test_packed_sizes():
    for sizes in ([5], [1, 2**21 - 1], [2**21 - 1, 3, 2**21 - 1]):
        assert unpacked_sizes(packed_sizes(sizes), len(sizes)) == sizes
        assert packed_sizes([*sizes[:-1], 2**21]) is None


def test_packed_ops_refuse():
    x = torch.randn(2, 3)
    for op in (OPS.conv_dgrad.packed, OPS.conv_wgrad.packed):
        with pytest.raises(RuntimeError, match="3 to 5 dimensions"):
            op(x, x, 0, 0, 1, False, "direct")
    y = torch.randn(1, 2, 4, 4)
    with pytest.raises(RuntimeError, match="groups must be positive"):
        OPS.conv_wgrad.packed(y, y, packed_moves((1, 1), (0, 0), (1, 1)), 1, 0, False, "direct")


def test_moves_too_large_to_pack():
    x, w = tensors((1, 2, 300, 5), (3, 2, 2, 3), dtype=torch.float64, grad=True)
    for arguments in ({"stride": (130, 1)}, {"padding": (129, 0)}, {"dilation": (140, 1)}):
        y, want = (
            f(x, w, **arguments) for f in (partial(fastconv.conv2d, algo="direct"), F.conv2d)
        )
        torch.testing.assert_close(y, want)
        dy = torch.randn_like(y)
        for got, expected in zip(
            *(torch.autograd.grad(t, (x, w), dy) for t in (y, want)), strict=True
        ):
            torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("name", ["conv", "conv_dx", "conv_dw"])
def test_ops_differentiate_on_their_own(name):
    op = getattr(OPS, name).default
    args = op_arguments(name, "direct", True)
    count = 3 if name == "conv" else 2
    torch.autograd.gradcheck(
        lambda *t: op(*t, *args[count:]), args[:count], check_batched_grad=True
    )
    torch.autograd.gradgradcheck(lambda *t: op(*t, *args[count:]), args[:count])


def test_ops_raise_with_the_reason():
    x, w = tensors((2, 3, 8, 8), (4, 3, 3, 3))
    with pytest.raises(ValueError, match="unknown algorithm"):
        OPS.conv(x, w, None, [1, 1], [0, 0], [1, 1], 1, "fft")
    with pytest.raises(RuntimeError, match="channels"):
        OPS.conv(x, w[:, :2], None, [1, 1], [0, 0], [1, 1], 1, "direct")
    with pytest.raises(RuntimeError):
        OPS.conv_fprop(x, w, None, [1, 1], [0, 0], [1, 1], 1, "fft")
