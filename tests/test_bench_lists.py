"""The benchmark's lists of layers, single convolutions, models' layers, and the physical floors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from bench import ceilings, inception_problem, lists, pool_problem, problems
from bench.__main__ import main
from bench.pool_problems import PoolLayer, pool_layers
from bench.problems import ConvLayer, conv_layers

# Multiply-adds of one image through the convolutions, in 1e9, as published with the networks.
PUBLISHED_GMACS = {
    "resnet18": 1.81,
    "resnet50": 4.09,
    "resnet152": 11.51,
    "vgg16": 15.35,
    "googlenet": 1.50,
    "inception_v3": 5.71,
    "densenet121": 2.83,
    "mobilenet_v2": 0.30,
    "squeezenet1_1": 0.349,
    "resnext50_32x4d": 4.23,
}


@pytest.mark.parametrize("name", lists.names())
def test_every_list_loads(name: str) -> None:
    layers = lists.layers(name)
    assert layers and lists.source(name)
    for layer in layers:
        assert min(layer.output_size(1)) > 0, layer
        if isinstance(layer, ConvLayer):
            assert layer.C % layer.groups == 0 and layer.K % layer.groups == 0


@pytest.mark.parametrize("net", PUBLISHED_GMACS)
def test_lists_have_the_published_work(net: str) -> None:
    gmacs = sum(layer.count * layer.macs(1) for layer in conv_layers(net)) / 1e9
    assert gmacs == pytest.approx(PUBLISHED_GMACS[net], rel=0.01)


@pytest.mark.parametrize("net", ["family", *problems.networks()])
def test_pools_have_pytorchs_shapes(net: str) -> None:
    for layer in pool_layers(net):
        if layer.kind != "stochastic":
            with torch.device("meta"):
                y = pool_problem.pytorch_pool(layer, torch.empty(layer.input_size(1)))
            assert tuple(y.shape) == layer.output_size(1), layer


def test_inception_modules_are_googlenets() -> None:
    modules = inception_problem.modules()
    outputs = [module.output_size(1)[1] for module in modules]
    assert outputs == [256, 480, 512, 512, 512, 528, 832, 832, 1024]
    # Each reads what the one before it writes, a pool in between where the extent halves.
    assert [module.C for module in modules] == [192, *outputs[:-1]]


def test_unknown_list_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown list of layers 'lenet'.*resnet50.*stress"):
        lists.layers("lenet")


def test_list_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in (*lists.names(), "pytorch_channels_last", "winograd"))


def test_single_convolution_as_miopen_names_it(tmp_path: Path) -> None:
    out = tmp_path / "one.json"
    command = "conv -n 2 -c 4 -H 9 -W 8 -k 6 -y 3 -x 2 -p 1 -q 0 -u 2 -v 1 -l 1 -j 2 -g 2 -F 5"
    command += f" --threads {torch.get_num_threads()} --seconds 0.001 --layout nchw --json {out}"
    assert main(command.split()) == 0
    text = out.read_text()
    assert "4x9x8>6 3x2 /2x1 d1x2 g2" in text
    assert '"direction": "fprop"' in text and '"direction": "wgrad"' in text
    assert '"direction": "dgrad"' not in text


@pytest.mark.parametrize(
    "options, text",
    [
        ("-c 3 -g 2", "-g 2 must divide -c 3"),
        ("-F 9", "a sum of 1, 2 and 4"),
        ("-H 2 -W 2 -y 3", "there is no such convolution"),
        ("-u 0", "there is no such convolution"),
    ],
)
def test_impossible_convolutions(
    options: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["conv", *options.split()]) == 2
    assert text in capsys.readouterr().err


class Small(nn.Module):
    """A model of somebody's."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, padding=1)
        self.body = nn.ModuleList(nn.Conv2d(8, 8, 3, padding="same", groups=2) for _ in range(3))
        self.pool = nn.MaxPool2d(2, ceil_mode=True)
        self.head = nn.AdaptiveAvgPool2d((None, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for layer in self.body:
            x = layer(x)
        return self.head(self.pool(x))


def test_layers_of_a_model() -> None:
    found = lists.model_layers(f"{__name__}:Small", (2, 3, 17, 15))
    one, two = (1, 1), (2, 2)
    assert found == [
        ConvLayer("Small", 3, (17, 15), 8, (3, 3), two, one, one),
        ConvLayer("Small", 8, (9, 8), 8, (3, 3), one, one, one, groups=2, count=3),
        PoolLayer("Small", "max", 8, (9, 8), two, two, (0, 0), True),
        PoolLayer("Small", "adaptive_avg", 8, (5, 4), (5, 1)),
    ]
    with pytest.raises(ValueError, match="does not run on an input of"):
        lists.model_layers(f"{__name__}:Small", (2, 4, 17, 15))


# An H200's datasheet: what an independent calculation of these floors assumed.
PEAKS = {
    "triad_bytes_per_s": 4.8e12,
    "gemm_bfloat16_flops": 989.4e12,
    "gemm_tf32_flops": 494.7e12,
    "gemm_float32_flops": 66.9e12,
}
# C, K, kernel, stride, extent, groups, N, arithmetic -> GFLOP, MB, microseconds.
FLOORS = (
    ((3, 64, 3, 1, 224, 1, 32, "bfloat16"), (5.549, 215.2, 44.8)),
    ((256, 256, 3, 1, 56, 1, 1, "float32"), (3.699, 8.782, 55.3)),
    ((512, 512, 3, 1, 14, 1, 256, "tf32"), (236.8, 215.0, 479.0)),
    ((3, 64, 7, 2, 224, 1, 32, "bfloat16"), (7.553, 61.03, 12.7)),
    ((64, 64, 3, 1, 56, 1, 1, "tf32"), (0.2312, 1.753, 0.467)),
    ((256, 512, 1, 2, 56, 1, 32, "bfloat16"), (6.577, 38.8, 8.08)),
    ((2048, 512, 1, 1, 7, 1, 256, "float32"), (26.31, 132.6, 393.0)),
    ((16, 32, 5, 1, 28, 1, 1, "bfloat16"), (0.02007, 0.1009, 0.021)),
    ((192, 384, 3, 1, 7, 1, 32, "float32"), (2.081, 6.267, 31.1)),
    ((384, 384, 3, 1, 13, 2, 32, "bfloat16"), (7.177, 9.634, 7.25)),
)
POOL_FLOORS = (  # C, kernel, stride, padding, extent, ceil_mode, N, bytes -> MB, microseconds
    ((64, 3, 2, 1, 112, False, 32, 2), (64.23, 13.4)),
    ((64, 3, 2, 0, 112, True, 256, 4), (1028.0, 214.0)),
    ((2048, 7, 7, 0, 7, False, 1, 4), (0.4096, 0.0853)),
)


@pytest.mark.parametrize("shape, floor", FLOORS)
def test_floors_of_convolutions(shape: tuple, floor: tuple) -> None:
    C, K, kernel, stride, extent, groups, batch, arithmetic = shape
    pair = lambda value: (value, value)  # noqa: E731
    layer = ConvLayer(
        "t", C, pair(extent), K, pair(kernel), pair(stride), pair(kernel // 2), pair(1), groups
    )
    size = 2 if arithmetic == "bfloat16" else 4
    flops, moved = 2.0 * layer.macs(batch), layer.elements(batch) * size
    assert flops / 1e9 == pytest.approx(floor[0], rel=1e-3)
    assert moved / 1e6 == pytest.approx(floor[1], rel=1e-3)
    milliseconds = ceilings.floor_of(flops, moved, arithmetic, PEAKS)
    assert milliseconds * 1e3 == pytest.approx(floor[2], rel=6e-3)


@pytest.mark.parametrize("shape, floor", POOL_FLOORS)
def test_floors_of_pools(shape: tuple, floor: tuple) -> None:
    C, kernel, stride, padding, extent, ceil_mode, batch, size = shape
    pairs = [(value, value) for value in (extent, kernel, stride, padding)]
    layer = PoolLayer("t", "max", C, *pairs, ceil_mode)
    moved = layer.elements(batch, "forward") * size
    assert moved / 1e6 == pytest.approx(floor[0], rel=1e-3)
    assert ceilings.floor_of(0, moved, "float32", PEAKS) * 1e3 == pytest.approx(floor[1], rel=6e-3)
