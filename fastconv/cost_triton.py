"""Configurations of the Triton convolutions, and the estimated seconds of each on a GPU.

The tables are short: a configuration costs a compilation of some seconds when it is first used on a
kind of problem. Between them a model decides, without running any: the time of a tile is what its
products or its bytes from L2 take, tiles go over the multiprocessors in waves, and memory sets a
floor. Rates are those of csrc/cuda/device_rates.h. Not measured on a GPU: only ratios between
candidates are used.
"""

from __future__ import annotations

from functools import lru_cache
from math import prod

import torch

from fastconv import gpu
from fastconv._triton.conv_geometry import Config, ConvGeometry, make_geometry, vector
from fastconv._triton.conv_reads import Read, dgrad_read, fprop_read, wgrad_reads
from fastconv._triton.depthwise import Config as DepthwiseConfig
from fastconv._triton.launching import Facts
from fastconv.problem import ConvSpec, dense_strides

# Shared memory that a program may have, bytes; of other chips the smallest is taken.
_SHARED = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
_LEAST_SHARED = 99 * 1024
_MOST_FLOAT32 = 32  # elements of a step: with more, addresses and rounded operands spill
# Loads per multiprocessor and second, from compute capability 9 and below it: by 32 lanes of four
# schedulers, at eight instructions each for address, mask and copy.
_LOADS = (2.8e10, 2.2e10)
_LEAST_ASYNCHRONOUS = 4  # bytes of a load; of less, products wait for it
_LAUNCH = 4e-6  # its launcher looks at more than ours in C++ before a kernel starts
_PROGRAM = 1.5e-6  # until a program's first tiles have come from memory, and to store its results
_SLICES = 264  # programs that wgrad's split aims at: two on each multiprocessor of a large GPU
_LEAST_STEPS = 8  # of a slice
_MOST_PARTIAL_BYTES = 1 << 28

IMPLICIT_GEMM = {
    "128x256x64_w8_s3": Config(128, 256, 64, 8, 3, 8),
    "128x128x64_w8_s3": Config(128, 128, 64, 8, 3, 8),
    "128x128x64_w8_s3_descriptor": Config(128, 128, 64, 8, 3, 8, descriptor=True),
    "128x64x64_w4_s4": Config(128, 64, 64, 4, 4, 8),
    "64x64x64_w4_s4": Config(64, 64, 64, 4, 4, 8),
    "128x128x32_w8_s3": Config(128, 128, 32, 8, 3, 8),
    "128x64x32_w4_s4": Config(128, 64, 32, 4, 4, 8),
    "64x64x32_w4_s4": Config(64, 64, 32, 4, 4, 8),
    "128x32x32_w4_s4": Config(128, 32, 32, 4, 4, 8),
    "64x32x32_w4_s3_persistent": Config(64, 32, 32, 4, 3, 8, persistent=True),
    # For float32 in two parts.
    "128x64x16_w4_s4": Config(128, 64, 16, 4, 4, 8),
    "64x64x16_w4_s4": Config(64, 64, 16, 4, 4, 8),
}
_DEEP = tuple(name for name in IMPLICIT_GEMM if "x64_w" in name)  # of 16 bits
_SHALLOW = tuple(name for name in IMPLICIT_GEMM if name not in _DEEP)
# What is considered, by compute capability: without wgmma's asynchronous products, steps of 64
# need more shared memory than they save synchronisation.
PER_ARCHITECTURE = {
    80: _SHALLOW,
    90: (
        *_DEEP,
        "128x128x32_w8_s3",
        "64x64x32_w4_s4",
        "128x32x32_w4_s4",
        "64x32x32_w4_s3_persistent",
    ),
}
# Where both parts of split operands do not fit into registers: compiled for either, each of these
# kept some in local memory (of other chips nothing is known: taken to be as sm_80).
_SPILLING_IN_THREE_PRODUCTS = {
    80: frozenset(("128x128x32_w8_s3", "128x64x32_w4_s4", "64x64x32_w4_s4")),
    90: frozenset(("128x128x32_w8_s3", "128x64x32_w4_s4")),
}
DEPTHWISE = {
    config.name: config
    for config in (
        DepthwiseConfig(64, 64, 4),
        DepthwiseConfig(16, 64, 2),
        DepthwiseConfig(64, 8, 2),
        DepthwiseConfig(512, 1, 4),
        DepthwiseConfig(128, 1, 2),
    )
}


def names_for(capability: int) -> tuple[str, ...]:
    """The implicit-GEMM configurations that are considered on such a device."""
    return PER_ARCHITECTURE[90 if capability == 90 else 80]


def with_residual(config: Config) -> Config:
    """What takes this configuration's place where an epilogue adds a residual: tiles of 128 results
    per thread leave no registers for it."""
    if config.block_m * config.block_n < 128 * 32 * config.warps:
        return config
    return config._replace(block_n=config.block_n // 2)


def shared_bytes(config: Config, itemsize: int) -> int:
    """What the stages of a configuration take."""
    return (config.block_m + config.block_n) * config.block_k * itemsize * config.stages


def resources_refusal(
    config: Config, dtype: torch.dtype, capability: int, products: str = "ieee"
) -> str | None:
    """Why a device cannot hold this configuration; None if it can. products: of float32."""
    if config.descriptor and capability < 90:
        return f"tensor descriptors need sm_90, the device is sm_{capability}"
    if dtype.itemsize == 4 and config.block_k > _MOST_FLOAT32:
        return f"its steps of {config.block_k} float32 elements do not fit into registers"
    if dtype.itemsize == 2 and config.block_k < 32:
        return f"its steps of {config.block_k} are for float32"
    if products == "tf32x3":
        spilling = _SPILLING_IN_THREE_PRODUCTS[90 if capability == 90 else 80]
        if any(IMPLICIT_GEMM[name] == config for name in spilling):
            return "both TF32 parts of its operands do not fit into registers"
    need, room = shared_bytes(config, dtype.itemsize), _SHARED.get(capability, _LEAST_SHARED)
    if need > room:
        return f"its tiles take {need} bytes of shared memory, sm_{capability} has {room}"
    return None


def _rate(spec: ConvSpec, config: Config, precision: str, rates: gpu.Rates) -> float:
    """Products that all multiprocessors finish per second, as FLOP."""
    if spec.dtype == torch.float32:
        if precision == "ieee":
            return rates.fma_flops * 0.5  # operands of each product come from shared memory
        rate = rates.best_tf32_flops / (3 if precision == "tf32x3" else 1)
    else:
        rate = rates.best_16_flops
    # Small tiles leave the tensor cores waiting for operands.
    return rate * min(0.75, 0.35 + 0.1 * (config.block_m * config.block_n) / 8192)


@lru_cache(4096)
def _geometry(spec: ConvSpec) -> ConvGeometry:
    lists = (spec.stride, spec.padding, spec.dilation, spec.groups)
    return make_geometry(spec.direction, spec.input_size, spec.weight_size, *lists)


def _facts(spec: ConvSpec, size: tuple[int, ...]) -> Facts:
    return Facts(tuple(size), tuple(dense_strides(size, spec.channels_last)), spec.dtype, True)


@lru_cache(4096)
def reads(spec: ConvSpec, config: Config) -> tuple[tuple[int, Read], ...]:
    """(elements, how they are read) of each operand that is gathered, of dense ones."""
    g, x, y = _geometry(spec), _facts(spec, spec.input_size), _facts(spec, spec.output_size)
    if spec.direction == "fprop":
        return ((prod(x.shape), fprop_read(g, x, config)),)
    if spec.direction == "dgrad":
        return ((prod(y.shape), dgrad_read(g, y, config)),)
    of_dy, of_x = wgrad_reads(g, y, x, config)
    return (prod(y.shape), of_dy), (prod(x.shape), of_x)


def _copied(spec: ConvSpec, config: Config) -> list[tuple[int, int]]:
    """(elements read, elements written) of each operand that is copied first."""
    found = reads(spec, config)
    return [(n, prod(read.copy.shape)) for n, read in found if read.copy is not None]


def _loads(spec: ConvSpec, config: Config) -> tuple[float, int]:
    """(loads of one step's tiles, bytes of the smallest)."""
    found = [read.vector for _, read in reads(spec, config)]
    if spec.direction == "wgrad":
        sides = (config.block_m, config.block_n)
    else:
        C = spec.weight_size[1]
        if spec.direction == "fprop":
            C = _depth(spec, config)
        sides, found = (config.block_m, config.block_n), [found[0], min(vector(C), 8)]
    tiles = [side * config.block_k / v for side, v in zip(sides, found, strict=True)]
    return sum(tiles), min(found) * spec.dtype.itemsize


def _depth(spec: ConvSpec, config: Config) -> int:
    """Channels of a group that fprop multiplies: those of a copy may be filled up."""
    ((_, read),) = reads(spec, config)
    return spec.weight_size[1] if read.copy is None else read.copy.shape[1] // spec.groups


def useful_fraction(spec: ConvSpec, config: Config) -> float:
    """Of fprop's products, those that are asked for: the rest fills blocks of gemm_k."""
    _, steps, _ = _gemm(spec, config)
    return spec.weight_size[1] * prod(spec.weight_size[2:]) / (steps * config.block_k)


def _gemm(spec: ConvSpec, config: Config) -> tuple[int, int, int]:
    """(tiles, steps of each, classes or slices) of a direction's product."""
    taps, groups = prod(spec.weight_size[2:]), spec.groups
    C, K = spec.weight_size[1], spec.weight_size[0] // groups

    def ceil(a: int, b: int) -> int:
        return -(-a // b)

    def steps(depth: int, count: int) -> int:
        apart, packed = count * ceil(depth, config.block_k), ceil(depth * count, config.block_k)
        return packed if 4 * packed <= 3 * apart else apart

    if spec.direction == "fprop":
        pixels = spec.output_size[0] * prod(spec.output_size[2:])
        tiles = ceil(pixels, config.block_m) * groups * ceil(K, config.block_n)
        return tiles, steps(_depth(spec, config), taps), 1
    if spec.direction == "dgrad":
        classes = prod(spec.stride)
        inputs = ceil(spec.input_size[0] * prod(spec.input_size[2:]), classes)
        tiles = classes * ceil(inputs, config.block_m) * groups * ceil(C, config.block_n)
        return tiles, steps(K, ceil(taps, classes)), classes
    pixels = spec.output_size[0] * prod(spec.output_size[2:])
    columns, packed = taps * ceil(C, config.block_n), ceil(taps * C, config.block_n)
    columns = packed if 4 * packed <= 3 * columns else columns
    tiles = groups * ceil(K, config.block_m) * columns
    return tiles, ceil(pixels, config.block_k), 1


@lru_cache(4096)
def splits(spec: ConvSpec, config: Config) -> int:
    """Slices of the pixels for wgrad: of the problem alone, so that no device adds up otherwise."""
    tiles, steps, _ = _gemm(spec, config)
    fitting = _MOST_PARTIAL_BYTES // (4 * max(prod(spec.weight_size), 1))
    return max(1, min(-(-_SLICES // tiles), steps // _LEAST_STEPS, fitting))


def moments_bytes(spec: ConvSpec, config: Config | DepthwiseConfig) -> int:
    """Bytes of the parts of y's statistics: mean and m2 of each tile's channels."""
    pixels = spec.output_size[0] * prod(spec.output_size[2:])
    return 8 * -(-pixels // config.block_m) * spec.output_size[1]


def workspace(spec: ConvSpec, config: Config | DepthwiseConfig) -> int:
    """Bytes of scratch: partial sums, a filter in another order."""
    size = spec.dtype.itemsize
    filter_bytes = prod(spec.weight_size) * size
    if isinstance(config, DepthwiseConfig):
        return (
            4 * prod(spec.weight_size) * _SLICES * 2 if spec.direction == "wgrad" else filter_bytes
        )
    copies = sum(written for _, written in _copied(spec, config)) * size
    if spec.direction == "fprop":
        return copies + filter_bytes // spec.weight_size[1] * _depth(spec, config)
    if spec.direction == "dgrad":
        return copies + filter_bytes
    return copies + 4 * prod(spec.weight_size) * (splits(spec, config) + 1)


def _moved(spec: ConvSpec) -> int:
    """Bytes that have to come from memory or go there."""
    sizes = (spec.input_size, spec.output_size, spec.weight_size)
    return sum(prod(size) for size in sizes) * spec.dtype.itemsize


def implicit_gemm_seconds(
    spec: ConvSpec, config: Config, precision: str, capability: int, sm_count: int
) -> float:
    """Estimated seconds of a direction with this configuration."""
    rates = gpu.rates(capability, sm_count)
    tiles, steps, _ = _gemm(spec, config)
    split = splits(spec, config) if spec.direction == "wgrad" else 1
    tiles, steps = tiles * split, -(-steps // split)
    flops = 2 * config.block_m * config.block_n * config.block_k
    moved = (config.block_m + config.block_n) * config.block_k * spec.dtype.itemsize
    if config.descriptor:
        moved *= 0.9  # no addresses to work out, which the products would wait for
    loads, least = _loads(spec, config)
    issue = loads / _LOADS[0 if capability >= 90 else 1]
    bound = max(flops / _rate(spec, config, precision, rates), moved / rates.l2_bytes_per_s)
    step = bound * sm_count
    tile = steps * (max(step, issue) if least >= _LEAST_ASYNCHRONOUS else step + issue)
    # Programs that share a multiprocessor share its rates and hide each other's first loads.
    resident = max(1, min(4, 16 // config.warps))
    waves, rest = divmod(tiles, sm_count * resident)
    seconds = waves * (resident * tile + _PROGRAM)
    if rest:
        seconds += -(-rest // sm_count) * tile + _PROGRAM
    bytes_ = _moved(spec) + (8 * split * prod(spec.weight_size) if split > 1 else 0)
    launches = _LAUNCH * (2 if spec.direction == "wgrad" else 1)
    if prod(spec.weight_size[2:]) > 1 and not spec.channels_last:
        launches += _LAUNCH  # the filter in another order
    for read, written in _copied(spec, config):
        launches += _LAUNCH + (read + written) * spec.dtype.itemsize / (0.8 * rates.bytes_per_s)
    return max(seconds, bytes_ / rates.bytes_per_s) + launches


def depthwise_seconds(
    spec: ConvSpec, config: DepthwiseConfig, capability: int, sm_count: int
) -> float:
    """Estimated seconds of a depthwise direction in these tiles."""
    rates = gpu.rates(capability, sm_count)
    size = spec.input_size if spec.direction == "dgrad" else spec.output_size
    rows, channels, taps = size[0] * prod(size[2:]), size[1], prod(spec.weight_size[2:])
    tiles = -(-rows // config.block_m) * -(-channels // config.block_c)
    # What a tile has beyond the tensor costs its issue slots all the same.
    elements = tiles * config.block_m * config.block_c
    flops = 2 * elements * taps * (2 if spec.direction == "wgrad" else 1)
    l2 = elements * taps * spec.dtype.itemsize
    # Fewer programs than multiprocessors leave some idle.
    busy = min(sm_count, tiles) / sm_count
    seconds = max(flops / (0.4 * rates.fma_flops), l2 / (3 * rates.l2_bytes_per_s)) / busy
    return max(seconds, _moved(spec) / (0.8 * rates.bytes_per_s)) + 2 * _LAUNCH
