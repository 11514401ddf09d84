"""Derivatives: first and second order, forward mode, functorch, and what is kept for them."""

from __future__ import annotations

import gc

import pytest
import torch
import torch.nn.functional as F
from cases import CONV_CASES
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import fastconv
from fastconv import ops, select

OURS = {1: fastconv.conv1d, 2: fastconv.conv2d, 3: fastconv.conv3d}
TORCH = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
NAMES = ["auto", *select.names()]
F64 = {"dtype": torch.float64}


def problem(algo):
    """Small float64 operands that the algorithm applies to, and the keyword arguments."""
    if algo.startswith("winograd"):
        x, w, b = (
            torch.randn(1, 2, 5, 5, **F64),
            torch.randn(2, 2, 3, 3, **F64),
            torch.randn(2, **F64),
        )
        kwargs = {"padding": 1}
    else:
        x, w, b = (
            torch.randn(2, 2, 6, 5, **F64),
            torch.randn(4, 1, 3, 2, **F64),
            torch.randn(4, **F64),
        )
        kwargs = {"stride": (2, 1), "padding": 1, "dilation": (1, 2), "groups": 2}
    return [t.requires_grad_() for t in (x, w, b)], kwargs


@pytest.mark.parametrize("algo", NAMES)
def test_gradcheck(algo):
    tensors, kwargs = problem(algo)
    torch.autograd.gradcheck(
        lambda x, w, b: fastconv.conv2d(x, w, b, algo=algo, **kwargs),
        tensors,
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
        check_undefined_grad=True,
    )


@pytest.mark.parametrize("algo", NAMES)
def test_gradgradcheck(algo):
    tensors, kwargs = problem(algo)
    torch.autograd.gradgradcheck(
        lambda x, w, b: fastconv.conv2d(x, w, b, algo=algo, **kwargs),
        tensors,
        check_fwd_over_rev=True,
        check_rev_over_rev=True,
        check_batched_grad=True,
    )


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("padding", [1, "same"])
def test_gradcheck_other_ranks_unbatched(rank, padding):
    x = torch.randn(2, *[4] * rank, **F64).requires_grad_()
    w = torch.randn(3, 2, *[2] * rank, **F64).requires_grad_()
    torch.autograd.gradcheck(
        lambda x, w: OURS[rank](x, w, padding=padding, algo="direct"), (x, w), check_forward_ad=True
    )
    torch.autograd.gradgradcheck(
        lambda x, w: OURS[rank](x, w, padding=padding, algo="direct"), (x, w)
    )


@pytest.mark.parametrize("direction", ["dgrad", "wgrad"])
def test_gradient_ops_are_differentiable(direction):
    dy, lists = torch.randn(2, 3, 4, 3, **F64).requires_grad_(), ([2, 1], [1, 0], [1, 2], 1)
    if direction == "dgrad":
        other, size = torch.randn(3, 2, 3, 2, **F64).requires_grad_(), [2, 2, 8, 5]
        f = ops.conv_dgrad
    else:
        other, size = torch.randn(2, 2, 8, 5, **F64).requires_grad_(), [3, 2, 3, 2]
        f = ops.conv_wgrad
    call = lambda dy, other: f(dy, other, size, *lists, False, "direct")  # noqa: E731
    torch.autograd.gradcheck(call, (dy, other), check_forward_ad=True, check_batched_grad=True)
    torch.autograd.gradgradcheck(call, (dy, other), check_fwd_over_rev=True)


@pytest.mark.parametrize("case", CONV_CASES, ids=lambda c: c.id)
@pytest.mark.parametrize("algo", ["auto", "direct"])
def test_gradients_of_every_case(case, algo):
    x, w, b = (
        torch.randn(s, **F64) for s in (case.input_size, case.weight_size, case.weight_size[:1])
    )
    results = []
    for f in (TORCH[case.rank], lambda *args: OURS[case.rank](*args, algo=algo)):
        leaves = [t.clone().requires_grad_() for t in (x, w, b)]
        y = f(*leaves, *case.params)
        cotangent = torch.linspace(-1, 1, y.numel(), **F64).view(y.shape)
        results.append(torch.autograd.grad(y, leaves, cotangent))
    for ours, theirs in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("needs", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 1)], ids=str)
@pytest.mark.parametrize("algo", ["auto", "direct"])
def test_only_wanted_gradients(needs, algo):
    tensors = [torch.randn(s, **F64) for s in ((2, 3, 6, 6), (4, 3, 3, 3), (4,))]
    for t, need in zip(tensors, needs, strict=True):
        t.requires_grad_(bool(need))
    fastconv.conv2d(*tensors, algo=algo).square().sum().backward()
    ours = [t.grad for t in tensors]
    for t in tensors:
        t.grad = None
    F.conv2d(*tensors).square().sum().backward()
    for t, need, mine in zip(tensors, needs, ours, strict=True):
        assert (mine is not None) == bool(need)
        if need:
            torch.testing.assert_close(mine, t.grad)


def saved_bytes(f):
    """Bytes of distinct storages that autograd keeps for f()."""
    kept = {}

    def pack(t):
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        f()
    return sum(kept.values())


def test_saves_only_what_is_needed():
    x, w = torch.randn(2, 3, 16, 16), torch.randn(4, 3, 3, 3)
    bytes_x, bytes_w = x.numel() * 4, w.numel() * 4

    def run(x_needs, w_needs):
        x_leaf, w_leaf = x.clone().requires_grad_(x_needs), w.clone().requires_grad_(w_needs)
        b = torch.randn(4, requires_grad=True)
        return saved_bytes(lambda: fastconv.conv2d(x_leaf, w_leaf, b, algo="direct"))

    assert run(True, False) == bytes_w
    assert run(False, True) == bytes_x
    assert run(True, True) == bytes_x + bytes_w
    assert run(False, False) == 0


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("algo", ["auto", "direct"])
def test_in_place_change_of_a_saved_tensor_is_noticed(which, algo):
    leaves = [torch.randn(2, 3, 6, 6).requires_grad_(), torch.randn(4, 3, 3, 3).requires_grad_()]
    tensors = [t.clone() for t in leaves]
    y = fastconv.conv2d(*tensors, algo=algo)
    with torch.no_grad():
        tensors[which].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_in_place_change_of_what_is_not_saved_is_fine():
    x, w = torch.randn(2, 3, 6, 6), torch.randn(4, 3, 3, 3, requires_grad=True)
    b = torch.zeros(4, requires_grad=True)
    y = fastconv.conv2d(x.requires_grad_(), w.detach(), b, algo="direct")
    with torch.no_grad():
        x.add_(1)
        b.add_(1)
    y.sum().backward()
    assert x.grad is not None


def test_graph_is_freed():
    before = torch.randn(1, 2, 5, 5, requires_grad=True)
    fastconv.conv2d(before, torch.randn(2, 2, 3, 3), algo="direct").sum().backward()
    gc.collect()
    with pytest.raises(RuntimeError, match="second time"):
        y = fastconv.conv2d(before, torch.randn(2, 2, 3, 3), algo="direct").sum()
        y.backward()
        y.backward()


def test_memory_format_of_gradients():
    x = torch.randn(2, 8, 6, 6).contiguous(memory_format=torch.channels_last).requires_grad_()
    w = torch.randn(4, 8, 3, 3).contiguous(memory_format=torch.channels_last).requires_grad_()
    y = fastconv.conv2d(x, w, algo="direct")
    dx, dw = torch.autograd.grad(y, (x, w), torch.randn_like(y))
    assert dx.stride() == x.stride() and dw.stride() == w.stride()


# --- functorch ------------------------------------------------------------------------------------

PARAMS = {"stride": 2, "padding": 1, "groups": 2}


def ours(x, w, b=None, algo="direct"):
    return fastconv.conv2d(x, w, b, algo=algo, **PARAMS)


def theirs(x, w, b=None):
    return F.conv2d(x, w, b, **PARAMS)


OPERANDS = ((3, 4, 7, 6), (6, 2, 3, 3), (6,))


@pytest.mark.parametrize(
    "dims",
    [
        (0, None, None),
        (None, 0, None),
        (None, None, 0),
        (0, 0, None),
        (0, 0, 0),
        (1, 2, 1),
        (None, 1, 0),
        (0, None, 0),
        (4, None, None),
        (-1, -2, None),
    ],
    ids=str,
)
@pytest.mark.parametrize("algo", ["auto", "direct"])
def test_vmap(dims, algo):
    tensors = []
    for size, dim in zip(OPERANDS, dims, strict=True):
        t = torch.randn(size, **F64)
        if dim is not None:
            t = torch.stack([torch.randn(size, **F64) for _ in range(5)], dim)
        tensors.append(t)
    mine = vmap(lambda *t: ours(*t, algo=algo), in_dims=dims)(*tensors)
    torch.testing.assert_close(mine, vmap(theirs, in_dims=dims)(*tensors))


def test_vmap_is_one_convolution(monkeypatch):
    calls = []
    run = ops.conv_run.run_fprop
    monkeypatch.setattr(ops.conv, "run_fprop", lambda *a: calls.append(1) or run(*a))
    vmap(ours, in_dims=(0, 0))(torch.randn(9, *OPERANDS[0]), torch.randn(9, *OPERANDS[1]))
    assert len(calls) == 1


def test_nested_vmap_and_unbatched():
    x, w = torch.randn(3, 5, 4, 7, 6, **F64), torch.randn(5, 6, 2, 3, 3, **F64)

    def nested(f):
        return vmap(vmap(f, in_dims=(0, 0)), in_dims=(0, None))(x, w)

    torch.testing.assert_close(nested(ours), nested(theirs))


@pytest.mark.parametrize("argument", [0, 1, 2])
def test_transforms(argument):
    tensors = tuple(torch.randn(s, **F64) for s in ((1, 2, 5, 4), (2, 1, 3, 3), (2,)))

    def scalar(f):
        return lambda *t: f(*t).sin().sum()

    for transform in (grad, jacrev, jacfwd, hessian):
        mine = transform(scalar(ours), argnums=argument)(*tensors)
        expected = transform(scalar(theirs), argnums=argument)(*tensors)
        torch.testing.assert_close(mine, expected)
    for outer in (jacfwd, jacrev):
        for inner in (jacfwd, jacrev):
            mine = outer(inner(scalar(ours), argument), argument)(*tensors)
            torch.testing.assert_close(
                mine, outer(inner(scalar(theirs), argument), argument)(*tensors)
            )


def test_jvp_vjp():
    x, w, b = (torch.randn(s, **F64) for s in OPERANDS)
    tangents = tuple(torch.randn_like(t) for t in (x, w, b))
    torch.testing.assert_close(jvp(ours, (x, w, b), tangents), jvp(theirs, (x, w, b), tangents))
    for position in range(3):

        def along(f, position=position):
            """f of one operand, the others held."""
            return lambda t: f(*(t if i == position else o for i, o in enumerate((x, w, b))))

        one = (((x, w, b)[position],), (tangents[position],))
        torch.testing.assert_close(jvp(along(ours), *one), jvp(along(theirs), *one))
    y, pull = vjp(ours, x, w, b)
    expected, pull_expected = vjp(theirs, x, w, b)
    torch.testing.assert_close(pull(y), pull_expected(expected))


def test_forward_mode_dual_numbers():
    x, w = torch.randn(2, 2, 5, 5, **F64), torch.randn(4, 1, 3, 3, **F64)
    x_t, w_t = torch.randn_like(x), torch.randn_like(w)
    results = []
    for f in (ours, theirs):
        with forward_ad.dual_level():
            y = f(forward_ad.make_dual(x, x_t), forward_ad.make_dual(w, w_t))
            results.append(forward_ad.unpack_dual(y).tangent)
    assert results[0] is not None
    torch.testing.assert_close(results[0], results[1])


def test_per_sample_gradients_of_a_layer():
    layer = torch.nn.Conv2d(2, 3, 3).double()
    x = torch.randn(6, 2, 5, 5, **F64)

    def loss(parameters, sample, f):
        y = f(sample.unsqueeze(0), parameters["weight"], parameters["bias"])
        return y.square().sum()

    parameters = {k: v.detach() for k, v in layer.named_parameters()}
    mine = vmap(grad(loss), (None, 0, None))(
        parameters, x, lambda *a: fastconv.conv2d(*a, algo="direct")
    )
    expected = vmap(grad(loss), (None, 0, None))(parameters, x, F.conv2d)
    torch.testing.assert_close(mine, expected)
    assert torch.equal(functional_call(layer, parameters, (x,)), layer(x))


def test_errors_under_transforms_are_pytorchs():
    x, w = torch.randn(5, 2, 3, 8, 8), torch.randn(6, 4, 3, 3)
    with pytest.raises(RuntimeError) as expected:
        vmap(lambda x: F.conv2d(x, w))(x)
    with pytest.raises(RuntimeError) as mine:
        vmap(lambda x: fastconv.conv2d(x, w, algo="direct"))(x)
    assert str(mine.value) == str(expected.value)


def test_checkpoint():
    from torch.utils.checkpoint import checkpoint

    x, w = torch.randn(1, 2, 6, 6, requires_grad=True), torch.randn(2, 2, 3, 3, requires_grad=True)
    f = lambda x, w: fastconv.conv2d(x, w, algo="direct").relu()  # noqa: E731
    expected = torch.autograd.grad(f(x, w).sum(), (x, w))
    mine = torch.autograd.grad(checkpoint(f, x, w, use_reentrant=False).sum(), (x, w))
    torch.testing.assert_close(mine, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_16_bit_training(dtype):
    x, w, b = (
        torch.randn(s).to(dtype).requires_grad_() for s in ((2, 4, 8, 8), (4, 4, 3, 3), (4,))
    )
    y = fastconv.conv2d(x, w, b, padding=1, algo="direct")
    grads = torch.autograd.grad(y.float().square().sum(), (x, w, b))
    wide = [t.detach().float().requires_grad_() for t in (x, w, b)]
    expected = torch.autograd.grad(
        F.conv2d(*wide, padding=1).to(dtype).float().square().sum(), wide
    )
    for mine, other in zip(grads, expected, strict=True):
        assert mine.dtype == dtype
        torch.testing.assert_close(
            mine.float(), other, rtol=5e-2, atol=0.02 * float(other.abs().max())
        )
