"""The public functions against PyTorch's: values, formats, argument forms, routing."""

from __future__ import annotations

import inspect
import itertools
import warnings

import pytest
import torch
import torch.nn.functional as F
from cases import CONV_CASES, LAYOUT_PAIRS, LAYOUTS, ConvCase
from tolerances import conv_tolerance

import fastconv
from fastconv import arguments, select

OURS = {1: fastconv.conv1d, 2: fastconv.conv2d, 3: fastconv.conv3d}
TORCH = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def operands(case: ConvCase, dtype=torch.float32):
    x = torch.randn(case.input_size).to(dtype)
    w = torch.randn(case.weight_size).to(dtype)
    b = torch.randn(case.weight_size[0]).to(dtype)
    return x, w, b


def assert_close(y, x, w, b, params, algo, rank):
    expected = TORCH[rank](x.double(), w.double(), b.double(), *params)
    magnitude = TORCH[rank](x.double().abs(), w.double().abs(), b.double().abs(), *params)
    gemm_k = w[0].numel() + 1
    bound = conv_tolerance(algo, "fprop", x.dtype, expected, magnitude, gemm_k)
    assert y.dtype == x.dtype and y.shape == expected.shape
    assert ((y.double() - expected).abs() <= bound).all()


@pytest.fixture
def no_aten(monkeypatch):
    """PyTorch's convolution raises: what computes now is ours."""

    def refuse(*args, **kwargs):
        raise AssertionError("PyTorch's convolution ran")

    monkeypatch.setattr(torch, "convolution", refuse)
    # The one table that functional.py and arguments.py call PyTorch through.
    for rank in (1, 2, 3):
        monkeypatch.setitem(arguments.TORCH, rank, refuse)


@pytest.mark.parametrize("case", CONV_CASES, ids=lambda c: c.id)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_values_auto(case, dtype):
    x, w, b = operands(case, dtype)
    y = OURS[case.rank](x, w, b, *case.params)
    if not y.numel():
        assert tuple(y.shape) == case.output_size
        return
    if dtype == torch.float32:  # under auto any algorithm may have run: the loosest of the bounds
        expected = TORCH[case.rank](x, w, b, *case.params)
        torch.testing.assert_close(
            y, expected, rtol=1e-4, atol=1e-4 * float(1 + expected.abs().max())
        )
    else:
        reference = TORCH[case.rank](x.float(), w.float(), b.float(), *case.params)
        torch.testing.assert_close(y.float(), reference, rtol=2e-2, atol=2e-2 * w[0].numel() ** 0.5)


@pytest.mark.parametrize(
    "case", [c for c in CONV_CASES if "empty" not in c.tags], ids=lambda c: c.id
)
@pytest.mark.parametrize("algo", ["direct", "im2col"])
def test_values_named_algorithm(case, algo, no_aten):
    x, w, b = operands(case)
    y = OURS[case.rank](x, w, b, *case.params, algo=algo)
    assert_close(y, x, w, b, case.params, algo, case.rank)


@pytest.mark.parametrize("layouts", LAYOUT_PAIRS, ids="-".join)
@pytest.mark.parametrize("algo", ["auto", "direct"])
def test_layouts(layouts, algo):
    x, w = (
        LAYOUTS[layouts[0]](torch.randn(2, 6, 9, 8)),
        LAYOUTS[layouts[1]](torch.randn(4, 6, 3, 3)),
    )
    y, expected = fastconv.conv2d(x, w, padding=1, algo=algo), F.conv2d(x, w, padding=1)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
    assert y.stride() == expected.stride()


STRIDED_SHAPES = [
    ((2, 3, 8, 7), (4, 3, 3, 3)),
    ((1, 3, 8, 7), (4, 3, 3, 3)),
    ((2, 1, 8, 7), (4, 1, 3, 3)),
    ((2, 3, 1, 1), (4, 3, 1, 1)),
    ((1, 1, 8, 8), (1, 1, 3, 3)),
    ((1, 3, 1, 1), (4, 3, 1, 1)),
    ((1, 1, 1, 1), (1, 1, 1, 1)),
    ((2, 3, 8, 7), (1, 3, 1, 1)),
    ((20, 16, 8, 8), (16, 16, 3, 3)),
    ((2, 3, 5, 6, 7), (4, 3, 3, 3, 3)),
    ((1, 1, 5, 6, 7), (4, 1, 1, 1, 1)),
]


def strided_variants(shape):
    t = torch.randn(shape)
    yield t
    yield t.contiguous(memory_format={4: torch.channels_last, 5: torch.channels_last_3d}[t.dim()])
    yield t.transpose(-1, -2).contiguous().transpose(-1, -2)
    yield t.transpose(0, 1).contiguous().transpose(0, 1)
    yield t.movedim(1, -1).contiguous().movedim(-1, 1)
    yield torch.randn([2 * s for s in shape])[tuple(slice(0, None, 2) for _ in shape)]
    yield torch.randn(()).expand(shape)
    yield torch.randn(1, *shape[1:]).expand(shape)
    yield torch.randn(shape[0], 1, *shape[2:]).expand(shape)


@pytest.mark.parametrize("shapes", STRIDED_SHAPES, ids=str)
def test_memory_format_is_pytorchs(shapes):
    rank = len(shapes[0]) - 2
    for x, w in itertools.product(*map(strided_variants, shapes)):
        expected = TORCH[rank](x, w)
        y = OURS[rank](x, w, algo="direct")
        assert y.stride() == expected.stride(), (x.stride(), w.stride())
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
        meta = OURS[rank](x.to("meta"), w.to("meta"))
        assert meta.shape == y.shape and meta.device.type == "meta"


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("algo", ["auto", "direct", "aten"])
def test_argument_forms(rank, algo):
    ours, theirs = OURS[rank], TORCH[rank]
    x, w, b = torch.randn(2, 4, *[9] * rank), torch.randn(6, 2, *[3] * rank), torch.randn(6)
    forms = [
        {"stride": 2, "padding": 1, "dilation": 2},
        {"stride": (2,) * rank, "padding": [1] * rank, "dilation": (2,) * rank},
        {"stride": [2], "padding": (1,), "dilation": [1]},
        {"stride": torch.Size([2] * rank)},
        {"padding": "valid", "stride": 2},
        {"padding": "same"},
        {"padding": "same", "dilation": 3},
        {"padding": tuple(range(rank)), "stride": tuple(range(1, rank + 1))},
    ]
    for form in forms:
        for repeat in range(2):  # the second call takes the remembered plan
            y = ours(x, w, b, groups=2, algo=algo, **form)
            expected = theirs(x, w, b, groups=2, **form)
            torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4, msg=f"{form} {repeat}")


def test_numpy_integers():
    np = pytest.importorskip("numpy")
    x, w = torch.randn(1, 2, 8, 8), torch.randn(2, 1, 3, 3)
    kwargs = {"stride": np.int64(2), "padding": (np.int32(1), 2), "groups": np.int64(2)}
    expected = F.conv2d(x, w, **kwargs)
    torch.testing.assert_close(fastconv.conv2d(x, w, **kwargs, algo="direct"), expected)


@pytest.mark.parametrize("kernel", [(2, 2), (4, 3), (3, 2), (1, 4), (5, 6)], ids=str)
@pytest.mark.parametrize("dilation", [1, 2, 3])
@pytest.mark.parametrize("algo", ["auto", "direct"])
def test_same_padding_with_even_kernels(kernel, dilation, algo):
    x, w = torch.randn(2, 3, 13, 12), torch.randn(4, 3, *kernel)
    expected = F.conv2d(x, w, padding="same", dilation=dilation)
    y = fastconv.conv2d(x, w, padding="same", dilation=dilation, algo=algo)
    assert y.shape[2:] == x.shape[2:]
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("algo", ["auto", "direct"])
def test_unbatched(rank, algo):
    x, w, b = torch.randn(4, *[7] * rank), torch.randn(6, 4, *[2] * rank), torch.randn(6)
    for padding in (1, "same"):
        expected = TORCH[rank](x, w, b, padding=padding)
        y = OURS[rank](x, w, b, padding=padding, algo=algo)
        assert y.dim() == rank + 1 and y.stride() == expected.stride()
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("algo", ["auto", "direct", "im2col"])
@pytest.mark.parametrize(
    "x_size,w_size",
    [((0, 4, 8, 8), (6, 4, 3, 3)), ((2, 0, 8, 8), (6, 0, 3, 3)), ((0, 4, 8), (6, 4, 3))],
    ids=str,
)
def test_zero_sized(x_size, w_size, algo):
    rank = len(x_size) - 2
    results = []
    for f in (TORCH[rank], lambda *args: OURS[rank](*args, algo=algo)):
        x = torch.ones(x_size, requires_grad=True)
        w = torch.ones(w_size, requires_grad=True)
        y = f(x, w)
        y.sum().backward()
        results.append((y.shape, x.grad, w.grad))
    assert results[0][0] == results[1][0]
    torch.testing.assert_close(results[1][1:], results[0][1:])


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.complex64], ids=str)
def test_dtypes_that_only_pytorch_takes(dtype):
    x, w = torch.ones(1, 2, 5, 5).to(dtype), torch.ones(3, 2, 3, 3).to(dtype)
    for _ in range(2):
        assert torch.equal(fastconv.conv2d(x, w), F.conv2d(x, w))
    with pytest.raises(RuntimeError, match="'direct' does not apply: dtype must be float32"):
        fastconv.conv2d(x, w, algo="direct")


def test_lazy_views_and_offsets():
    store = torch.randn(5000)
    x = store[17:].as_strided((2, 3, 8, 8), (900, 201, 20, 2))
    w = torch.complex(torch.randn(4, 3, 3, 3), torch.randn(4, 3, 3, 3)).conj().imag
    assert w.is_neg()  # a view whose sign is not applied yet
    y = fastconv.conv2d(x, w, algo="direct")
    torch.testing.assert_close(y, F.conv2d(x, w), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("precision", [None, "ieee", "tf32", "tf32x3"])
def test_precision_is_accepted_and_ieee_on_the_cpu(precision):
    x, w = torch.randn(1, 4, 6, 6), torch.randn(4, 4, 3, 3)
    y = fastconv.conv2d(x, w, algo="direct", precision=precision)
    assert torch.equal(y, fastconv.conv2d(x, w, algo="direct"))


def test_signature_is_pytorchs_plus_two_keywords():
    for f in OURS.values():
        parameters = inspect.signature(f).parameters
        names = ["input", "weight", "bias", "stride", "padding", "dilation", "groups"]
        assert list(parameters) == [*names, "algo", "precision"]
        assert [parameters[n].default for n in names[2:]] == [None, 1, 0, 1, 1]
        assert parameters["algo"].kind is inspect.Parameter.KEYWORD_ONLY
        assert f.__doc__ and "Raises" in f.__doc__
    x, w = torch.randn(1, 2, 5, 5), torch.randn(2, 2, 3, 3)
    torch.testing.assert_close(fastconv.conv2d(input=x, weight=w), F.conv2d(x, w))


class Logged(torch.Tensor):
    """A subclass that records which functions it goes through."""

    seen: list = []  # noqa: RUF012

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        cls.seen.append(func)
        return super().__torch_function__(func, types, args, kwargs or {})


def test_torch_function_subclass():
    x = torch.randn(1, 2, 5, 5).as_subclass(Logged)
    w = torch.randn(3, 2, 3, 3)
    Logged.seen.clear()
    y = fastconv.conv2d(x, w, padding=1, algo="direct")
    assert type(y) is Logged and fastconv.conv2d in Logged.seen
    expected = F.conv2d(x.as_subclass(torch.Tensor), w, padding=1)
    torch.testing.assert_close(y.as_subclass(torch.Tensor), expected, rtol=1e-4, atol=1e-4)


def test_torch_function_mode():
    seen = []

    class Mode(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **(kwargs or {}))

    with Mode():
        fastconv.conv1d(torch.randn(1, 2, 5), torch.randn(2, 2, 3))
    assert fastconv.conv1d in seen


def test_subclass_with_its_own_operators_goes_to_pytorch():
    from torch.testing._internal.two_tensor import TwoTensor

    x = TwoTensor(torch.randn(1, 2, 5, 5), torch.randn(1, 2, 5, 5))
    w = torch.randn(3, 2, 3, 3)
    y = fastconv.conv2d(x, w)
    assert type(y) is TwoTensor
    torch.testing.assert_close(y.b, F.conv2d(x.b, w))
    with pytest.raises(RuntimeError, match="TwoTensor"):
        fastconv.conv2d(x, w, algo="direct")


def test_mkldnn_and_sparse_layouts_go_to_pytorch():
    x, w = torch.randn(1, 2, 5, 5), torch.randn(3, 2, 3, 3)
    y = fastconv.conv2d(x.to_mkldnn(), w.to_mkldnn())
    torch.testing.assert_close(y.to_dense(), F.conv2d(x, w), rtol=1e-4, atol=1e-4)
    with pytest.raises(RuntimeError) as theirs:
        F.conv2d(x.to_sparse(), w)
    with pytest.raises(RuntimeError) as ours:
        fastconv.conv2d(x.to_sparse(), w)
    assert str(ours.value) == str(theirs.value)


def test_inference_mode():
    with torch.inference_mode():
        x, w = torch.randn(1, 2, 5, 5), torch.randn(3, 2, 3, 3)
        y = fastconv.conv2d(x, w, algo="direct")
        assert y.is_inference()
        torch.testing.assert_close(y, F.conv2d(x, w), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("padding", [1, "same", "valid"])
def test_jit_trace(padding):
    """The recorded graph holds the operator alone, and chooses and checks anew for other sizes."""
    x, w, b = torch.randn(1, 3, 8, 8), torch.randn(4, 3, 4, 3), torch.randn(4)
    with warnings.catch_warnings():
        warnings.simplefilter("error", torch.jit.TracerWarning)  # nothing read a size in Python
        traced = torch.jit.trace(lambda *t: fastconv.conv2d(*t, padding=padding), (x, w, b))
        untaken = torch.jit.trace(lambda *t: fastconv.conv2d(*t), (x.cfloat(), w.cfloat()))
    kinds = [node.kind() for node in traced.graph.nodes()]
    assert "fastconv::conv" in kinds
    assert not [kind for kind in kinds if "conv" in kind and kind != "fastconv::conv"]
    larger = torch.randn(2, 3, 11, 9)
    torch.testing.assert_close(
        traced(larger, w, b), F.conv2d(larger, w, b, padding=padding), rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(untaken(x.cfloat(), w.cfloat()), F.conv2d(x.cfloat(), w.cfloat()))
    with pytest.raises(RuntimeError, match="to have 3 channels"):
        torch.jit.trace(lambda x: fastconv.conv2d(x, w), torch.randn(1, 2, 8, 8))
    with pytest.raises(RuntimeError, match=r"winograd.* does not apply"):
        torch.jit.trace(lambda x: fastconv.conv2d(x, w, algo="winograd"), x)


def test_default_device_context():
    with torch.device("cpu"):
        y = fastconv.conv2d(torch.ones(1, 1, 3, 3), torch.ones(1, 1, 3, 3))
    assert y.item() == 9


def test_a_remembered_plan_is_not_used_for_another_call():
    """Everything that a plan rests on tells calls apart."""
    x, w = torch.randn(2, 4, 9, 9), torch.randn(4, 4, 3, 3)
    for kwargs in (
        {},
        {"stride": 2},
        {"padding": 1},
        {"padding": "same"},
        {"dilation": 2},
        {"bias": torch.randn(4)},
        {"stride": (1, 2)},
        {"stride": (2, 1)},
    ):
        for dtype in (torch.float32, torch.float64):
            bias = kwargs.get("bias")
            call = {**kwargs, "bias": None if bias is None else bias.to(dtype)}
            y = fastconv.conv2d(x.to(dtype), w.to(dtype), algo="direct", **call)
            expected = F.conv2d(x.to(dtype), w.to(dtype), **call)
            torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(TypeError):
        fastconv.conv2d(x, w, stride=True, algo="direct")
    with pytest.raises(TypeError):
        fastconv.conv2d(x, w, stride=1.0, algo="direct")
    for name in ("stride", "padding", "dilation"):
        fastconv.conv2d(x, w, algo="direct", **{name: (1, 1)})
        for bad in ((True, True), (1, 1.0), [True, 1]):  # equal to (1, 1)
            with pytest.raises(TypeError):
                fastconv.conv2d(x, w, algo="direct", **{name: bad})
    with pytest.raises(RuntimeError, match=r"Input type .* and bias type"):
        fastconv.conv2d(x, w, torch.randn(4).double(), algo="direct")


@pytest.mark.parametrize("algo", [n for n in select.names() if n != "aten"])
def test_repeatable_and_independent_of_threads(algo, set_threads):
    x, w = torch.randn(2, 8, 14, 14), torch.randn(8, 8, 3, 3)
    results = []
    for threads in (1, 2, 2):
        set_threads(threads)
        results.append(fastconv.conv2d(x, w, padding=1, algo=algo))
    assert torch.equal(results[0], results[1]) and torch.equal(results[1], results[2])
