"""The C++ geometry, its symbolic twin, the reference and PyTorch agree on every output size."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from cases import CONV_CASES, ConvCase, conv_case
from conv_runner import native_problem
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from fastconv import _C
from fastconv.problem import conv_output_size

PROBLEMS = Path(__file__).parent.parent / "bench" / "problems"


def network_cases() -> list[ConvCase]:
    networks = json.loads((PROBLEMS / "networks.json").read_text())["networks"]
    return [
        conv_case(
            f"{net}_{i}",
            (2, layer["C"], *layer["spatial"]),
            (layer["K"], layer["C"] // layer["groups"], *layer["kernel"]),
            tuple(layer["stride"]),
            tuple(layer["padding"]),
            tuple(layer["dilation"]),
            layer["groups"],
        )
        for net, entry in networks.items()
        for i, layer in enumerate(entry["layers"])
        if layer["op"] == "conv"
    ]


def deepbench_cases() -> list[ConvCase]:
    sets = json.loads((PROBLEMS / "deepbench.json").read_text())["sets"]
    return [
        conv_case(
            f"{name}_{i}",
            (layer["N"], layer["C"], *layer["spatial"]),
            (layer["K"], layer["C"], *layer["kernel"]),
            tuple(layer["stride"]),
            tuple(layer["padding"]),
        )
        for name, layers in sets.items()
        for i, layer in enumerate(layers)
    ]


def random_case(rng: random.Random, name: str) -> ConvCase:
    """Any rank and parameters, with a kernel that just about fits now and then."""
    rank = rng.randint(1, 3)
    groups = rng.choice([1, 1, 2, 3, 7])
    axes = []
    for _ in range(rank):
        kernel, dilation, padding = rng.randint(1, 8), rng.randint(1, 5), rng.randint(0, 9)
        least = max(1, dilation * (kernel - 1) + 1 - 2 * padding)
        extent = least + rng.choice([0, 0, 1, rng.randint(0, 40)])
        axes.append((extent, kernel, rng.randint(1, 9), padding, dilation))
    extent, kernel, stride, padding, dilation = zip(*axes, strict=True)
    channels, filters = groups * rng.randint(1, 4), groups * rng.randint(1, 4)
    return conv_case(
        name,
        (rng.randint(0, 3), channels, *extent),
        (filters, channels // groups, *kernel),
        stride,
        padding,
        dilation,
        groups,
    )


def torch_output_size(case: ConvCase) -> tuple[int, ...]:
    """What PyTorch's own shape function says, without computing anything."""
    x = torch.empty(case.input_size, device="meta")
    w = torch.empty(case.weight_size, device="meta")
    convolution = (F.conv1d, F.conv2d, F.conv3d)[case.rank - 1]
    out = convolution(x, w, None, case.stride, case.padding, case.dilation, case.groups)
    return tuple(out.shape)


def assert_all_agree(case: ConvCase) -> None:
    expected = torch_output_size(case)
    assert case.output_size == expected
    native = native_problem(case)
    skip = 3 - case.rank
    assert (native.N, native.K, *native.output[skip:]) == expected
    assert native.output[:skip] == [1] * skip
    twin = conv_output_size(
        case.input_size, case.weight_size, case.stride, case.padding, case.dilation
    )
    assert tuple(twin) == expected


@pytest.mark.parametrize("case", CONV_CASES, ids=lambda c: c.id)
def test_output_size_of_the_case_list(case: ConvCase) -> None:
    assert_all_agree(case)


@pytest.mark.parametrize("source", [network_cases, deepbench_cases])
def test_output_size_of_the_benchmark_problems(source) -> None:
    cases = source()
    assert len(cases) > 50
    for case in cases:
        assert_all_agree(case)


def test_output_size_of_random_problems() -> None:
    rng = random.Random(0)
    for i in range(2000):
        case = random_case(rng, f"random_{i}")
        try:
            assert_all_agree(case)
        except (AssertionError, RuntimeError, ValueError) as error:
            raise AssertionError(f"{case}") from error


def test_symbolic_twin_on_symints() -> None:
    """The same numbers when the sizes are symbols, and still a function of them."""
    from torch._dynamo.source import ConstantSource
    from torch.fx.experimental.symbolic_shapes import DimDynamic

    env = ShapeEnv()

    def symbol(hint: int, name: str) -> torch.SymInt:
        source = ConstantSource(name)
        node = env.create_symbol(hint, source, dynamic_dim=DimDynamic.DYNAMIC)
        return env.create_symintnode(node, hint=hint, source=source)

    n, h, w = symbol(5, "n"), symbol(17, "h"), symbol(22, "w")
    out = conv_output_size([n, 3, h, w], [8, 3, 3, 5], [2, 3], [1, 4], [2, 1])
    assert isinstance(out[0], torch.SymInt) and isinstance(out[2], torch.SymInt)
    assert [int(v) for v in out] == [5, 8, 8, 9]


def test_fields() -> None:
    case = next(c for c in CONV_CASES if c.id == "all_asymmetric")
    p = native_problem(case)
    assert (p.rank, p.N, p.C, p.K, p.groups) == (2, 2, 6, 4, 2)
    assert (p.input, p.filter) == ([1, 19, 14], [1, 2, 5])
    assert (p.stride, p.padding, p.dilation) == ([1, 3, 1], [0, 1, 4], [1, 4, 2])
    outputs = torch.Size(case.output_size).numel()
    assert p.macs == outputs * 3 * 2 * 5


GOOD = ([2, 4, 8, 9], [6, 2, 3, 3], [1, 1], [0, 0], [1, 1], 2)


@pytest.mark.parametrize(
    ("position", "value", "text"),
    [
        (0, [8], "got 1 and 4"),
        (0, [2, 4], "got 2 and 4"),
        (0, [2, 4, 8], "got 3 and 4"),
        (0, [1, 1, 2, 3, 4, 5], "got 6 and 4"),
        (0, [2, 3, 8, 9], "C=3 .* of 2 channels, groups=2"),
        (0, [2, 4, 2, 9], "kernel 3 .*padded input 2"),
        (1, [5, 2, 3, 3], "K=5 .* groups=2"),
        (1, [6, 2, 0, 3], "kernel 0"),
        (1, [6, 2, 3, 12], "kernel 12 .*padded input 9"),
        (2, [1], "need 2 entries"),
        (2, [1, 0], "stride 0"),
        (2, [-3, 1], "stride -3"),
        (3, [0, -1], "padding -1"),
        (3, [0, 0, 0], "need 2 entries"),
        (4, [0, 1], "dilation 0"),
        (4, [4, 1], "kernel 3 .dilation 4. .*padded input 8"),
        (5, 0, "groups=0"),
        (5, -1, "groups=-1"),
        (5, 3, "C=4 .*groups=3"),
    ],
)
def test_bad_values_are_refused_with_their_values(position: int, value: object, text: str) -> None:
    _C.ConvProblem(*GOOD)
    arguments = list(GOOD)
    arguments[position] = value
    with pytest.raises(ValueError, match=text):
        _C.ConvProblem(*arguments)


def test_extents_beyond_32_bits() -> None:
    huge = 2**40
    p = _C.ConvProblem([1, 1, huge], [1, 1, 3], [2], [1], [1], 1)
    assert p.output[2] == (huge + 2 - 3) // 2 + 1
