"""The public functions and the ops on the device: errors, nothing to compute, autograd, layers."""

from __future__ import annotations

import pytest
import torch
from cases import CONV_CASES, LAYOUTS, ConvCase
from conv_runner import (
    assert_close,
    native_problem,
    operand_sizes,
    random_operands,
    reference_conv,
)
from gpu_runner import (
    CASE,
    DEVICE,
    ON_CPU_KERNELS,
    Instance,
    instances,
    losses_of_training,
    marks,
    one_of_each,
    run,
    run_algo,
)
from torch import Tensor, nn

import fastconv
from fastconv import _C

pytestmark = marks()
EMPTY_CASES = [case for case in CONV_CASES if "empty" in case.tags]
ALGORITHMS = sorted({i.algorithm for i in instances()})
FUNCTIONS = (fastconv.conv1d, fastconv.conv2d, fastconv.conv3d)
AUTO_CASES = [
    CASE[name]
    for name in ("3x3", "pointwise", "stem_7x7_stride2", "groups2", "depthwise", "stride2", "1d")
] + [CASE["3d"]]
AUTO_DTYPES = (torch.float32, torch.bfloat16)
# PyTorch's own fp32 convolution may be a Winograd one.
TORCH_TOLERANCE = {torch.float32: 2e-4, torch.bfloat16: 2e-2}


def filled(size: tuple[int, ...], dtype: torch.dtype, value: float | None = None) -> Tensor:
    if value is not None:
        return torch.full(size, value, dtype=dtype, device=DEVICE)
    return torch.randn(size, dtype=torch.float64).to(DEVICE, dtype)


def forward(case: ConvCase, x: Tensor, w: Tensor, bias: Tensor | None, algo: str = "auto"):
    stride, padding, dilation, groups = case.params
    return FUNCTIONS[case.rank - 1](x, w, bias, stride, padding, dilation, groups, algo=algo)


def torch_forward(case: ConvCase, x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
    stride, padding, dilation, groups = case.params
    functions = (torch.conv1d, torch.conv2d, torch.conv3d)
    return functions[case.rank - 1](x, w, bias, stride, padding, dilation, groups)


@pytest.mark.parametrize("direction", ["fprop", "dgrad", "wgrad"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("case", EMPTY_CASES, ids=lambda c: c.id)
def test_nothing_to_compute(case: ConvCase, algorithm: str, direction: str) -> None:
    """No launch with an empty grid: zeros, or an empty result."""
    a, b = (filled(size, torch.float32) for size in operand_sizes(case, direction))
    result = run_algo(algorithm, case, direction, (a, b))
    sizes = {"fprop": case.output_size, "dgrad": case.input_size, "wgrad": case.weight_size}
    assert tuple(result.shape) == sizes[direction]
    assert torch.equal(result, torch.zeros_like(result))


def test_unknown_names() -> None:
    case = CASE["3x3"]
    x, w = (filled(size, torch.float32) for size in operand_sizes(case, "fprop"))
    with pytest.raises(RuntimeError, match=r"unknown .*'no_such'"):
        run_algo("no_such", case, "fprop", (x, w))
    if not ON_CPU_KERNELS:
        with pytest.raises(RuntimeError, match=r"unknown .* 'direct_plain/no_such'"):
            run_algo("direct_plain/no_such", case, "fprop", (x, w))


def test_a_forced_instance_that_does_not_apply() -> None:
    """Its own reason, with the values, and nothing is launched."""
    refused = 0
    for instance in one_of_each():
        for case in (CASE["1d"], CASE["3d"], CASE["5x5"], CASE["stride2"], CASE["groups2"]):
            reason = "" if ON_CPU_KERNELS else _refusal(instance, case)
            if not reason:
                continue
            refused += 1
            a, b = (filled(s, instance.dtype) for s in operand_sizes(case, instance.direction))
            with pytest.raises(RuntimeError, match="does not apply"):
                run(instance, case, (a, b), None)
    assert refused or ALGORITHMS == ["direct_plain"] or ON_CPU_KERNELS


def _refusal(instance: Instance, case: ConvCase) -> str:
    return _C.cuda_refusal(instance.algorithm, instance.name, native_problem(case))


def test_an_instance_of_another_direction_dtype_or_layout() -> None:
    case = CASE["3x3"]
    other = {torch.float32: torch.bfloat16}
    for instance in () if ON_CPU_KERNELS else one_of_each():
        dtype = other.get(instance.dtype, torch.float32)
        a, b = (filled(s, dtype) for s in operand_sizes(case, instance.direction))
        with pytest.raises(RuntimeError, match="another direction, dtype or layout"):
            run(instance, case, (a, b), None)


def test_dtypes_without_kernels() -> None:
    case = CASE["3x3"]
    x, w = (torch.zeros(s, dtype=torch.int32, device=DEVICE) for s in operand_sizes(case, "fprop"))
    with pytest.raises(RuntimeError, match="float32, float64, bfloat16 or float16"):
        run_algo("direct", case, "fprop", (x, w))


@pytest.mark.parametrize("layout", [*LAYOUTS])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_any_strides(algorithm: str, layout: str) -> None:
    """Sliced, transposed and offset operands give what dense ones give."""
    case = CASE["3x3"]
    for direction in ("fprop", "dgrad", "wgrad"):
        a, b, bias = (
            None if t is None else t.to(DEVICE)
            for t in random_operands(case, direction, torch.float32)
        )
        strided = LAYOUTS[layout](a), LAYOUTS[layout](b)
        try:
            result = run_algo(algorithm, case, direction, strided, bias)
        except RuntimeError as error:
            assert "does not apply" in str(error)
            continue
        expected, magnitude = reference_conv(
            case, direction, (a.cpu(), b.cpu()), None if bias is None else bias.cpu()
        )
        assert_close(result.cpu(), expected, magnitude, algorithm, case, direction, layout)


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels_last"])
@pytest.mark.parametrize("dtype", AUTO_DTYPES, ids=str)
@pytest.mark.parametrize("case", AUTO_CASES, ids=lambda c: c.id)
def test_auto_trains_like_torch(case: ConvCase, dtype: torch.dtype, channels_last: bool) -> None:
    """Forward and all gradients of `auto`, against PyTorch in float64 on the CPU."""
    x, w, bias = (t.to(DEVICE) for t in random_operands(case, "fprop", dtype))
    if channels_last and case.rank > 1:
        last = torch.channels_last if case.rank == 2 else torch.channels_last_3d
        x, w = x.to(memory_format=last), w.to(memory_format=last)
    ours = [t.clone().requires_grad_() for t in (x, w, bias)]
    theirs = [t.double().cpu().clone().requires_grad_() for t in (x, w, bias)]
    y = forward(case, *ours)
    y64 = torch_forward(case, *theirs)
    dy = torch.randn_like(y64).to(dtype)
    y.backward(dy.to(DEVICE))
    y64.backward(dy.double())
    pairs = {"y": (y, y64)} | {
        name: (a.grad, b.grad) for name, a, b in zip(("dx", "dw", "db"), ours, theirs, strict=True)
    }
    for name, (got, want) in pairs.items():
        assert got.dtype == dtype and got.device.type == DEVICE.type
        error = (got.double().cpu() - want).abs().max() / want.abs().max()
        assert error < TORCH_TOLERANCE[dtype], f"{case.id} {name}: relative error {error:.2g}"


def test_layers_learn() -> None:
    """A few steps on one batch, in mixed precision: the loss goes down."""
    torch.manual_seed(1)
    model = nn.Sequential(
        fastconv.nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        fastconv.nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 10 * 10, 4),
    ).to(DEVICE)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = losses_of_training(model, optimiser)
    assert losses[-1] < 0.5 * losses[0], losses


def test_explain_names_the_device() -> None:
    x, w = (filled(s, torch.float32) for s in operand_sizes(CASE["3x3"], "fprop"))
    text = str(fastconv.explain(x, w, padding=1))
    assert ("cpu" if ON_CPU_KERNELS else "cuda:0") in text and "aten" in text


@pytest.mark.gpu
def test_out_of_memory_stays_itself() -> None:
    """A result of 839 GB: PyTorch's own exception, and the device still works."""
    x = filled((1, 1, 1024, 1024), torch.float32)
    w = filled((200_000, 1, 1, 1), torch.float32)
    with pytest.raises(torch.OutOfMemoryError):
        fastconv.conv2d(x, w)
    assert torch.isfinite(fastconv.conv2d(x, w[:2])).all()
