"""Who can run a problem. A provider turns it into a call without arguments, so that the timer sees
nothing but the call itself.

To add one, subclass `Provider` and name it on the command line: `--providers auto,my.module:Mine`.
It needs a name and a method per family of operations that it runs; a method may raise
`NotApplicable` with the reason.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import fastconv
import fastconv.functional
from bench import correctness
from bench.contenders import COMPILED, COPY, GEMM, PYTORCH
from bench.conv_problem import ConvProblem
from bench.fused_problem import EPS, FusedProblem
from bench.inception_problem import InceptionProblem, inception
from bench.network_problem import NetworkProblem
from bench.pool_problem import PoolProblem, pytorch_pool
from bench.pool_problems import LP_POWER
from bench.problem import Problem, with_layout
from fastconv import _C, select, select_pool
from fastconv.ops import conv as ops

Call = Callable[[], Any]


class NotApplicable(RuntimeError):
    """A provider does not run a problem, and why."""


class Provider:
    """Somebody who runs problems.

    name: as rows and the command line have it. ours: whether it counts as fastconv's; then a wrong
    answer is an error of the run.
    """

    name = ""
    ours = False

    def conv(self, problem: ConvProblem) -> Call:
        raise NotApplicable(f"{self.name} runs no convolutions")

    def fused(self, problem: FusedProblem) -> Call:
        raise NotApplicable(f"{self.name} runs no convolution with normalisation")

    def pool(self, problem: PoolProblem) -> Call:
        raise NotApplicable(f"{self.name} runs no poolings")

    def inception(self, problem: InceptionProblem) -> Call:
        raise NotApplicable(f"{self.name} runs no inception modules")

    def network(self, problem: NetworkProblem) -> Call:
        raise NotApplicable(f"{self.name} runs no networks")

    def ran(self, problem: Problem) -> str:
        """The concrete algorithm; asked before and after the first call."""
        return self.name

    def prepare(self, problem: Problem) -> Call:
        return getattr(self, problem.family)(problem)


def with_gradients(run: Callable[..., Tensor], operands: tuple[Tensor, ...], dy: Tensor) -> Call:
    """(y, gradients of the operands) of one training step of `run`."""
    leaves = [t.detach().requires_grad_() for t in operands]

    def call() -> tuple[Tensor, ...]:
        with torch.enable_grad():
            y = run(*leaves)
        return (y.detach(), *torch.autograd.grad(y, leaves, dy))

    return call


def arranged(problem: Problem, layout: str) -> Problem:
    """The same problem with its tensors in a layout."""

    def arrange(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(with_layout(t, layout) for t in value)
        return with_layout(value, layout)

    names = [name for name in ("x", "w", "dy") if hasattr(problem, name)]
    tensors = {name: arrange(getattr(problem, name)) for name in names}
    return replace(problem, layout=layout, **tensors)


class PyTorch(Provider):
    """Eager PyTorch in the problem's layout; cuDNN searches its algorithms in channels_last, and
    takes its defaults in NCHW: the two ways that users have it."""

    name = PYTORCH

    def conv(self, problem: ConvProblem) -> Call:
        p = problem
        if p.direction == "forward+backward":
            return with_gradients(lambda x, w: _torch_conv(p, x, w), (p.x, p.w), p.dy)
        if p.direction == "fprop":
            return lambda: _torch_conv(p, p.x, p.w)
        return lambda: correctness.convolution(p.layer, p.direction, p.x, p.w, p.dy)

    def fused(self, problem: FusedProblem) -> Call:
        p = problem
        forward = (F.conv1d, F.conv2d, F.conv3d)[p.layer.rank - 1]
        operands = (*p.norm[:2], p.x, p.w)
        if p.direction == "inference":
            return lambda: p.run(forward, *operands)
        return with_gradients(lambda *leaves: p.run(forward, *leaves), operands, p.dy)

    def pool(self, problem: PoolProblem) -> Call:
        p = problem
        if p.direction == "forward":
            return lambda: pytorch_pool(p.layer, p.x)
        return with_gradients(lambda x: pytorch_pool(p.layer, x), (p.x,), p.dy)

    def inception(self, problem: InceptionProblem) -> Call:
        return lambda: inception(F.conv2d, F.max_pool2d, problem.x, problem.w)

    def network(self, problem: NetworkProblem) -> Call:
        model = problem.make()
        return lambda: model(problem.x)

    def prepare(self, problem: Problem) -> Call:
        run = super().prepare(problem)
        if not problem.x.is_cuda:
            return run

        def searching() -> Any:
            torch.backends.cudnn.benchmark = problem.layout == "channels_last"
            torch.backends.cudnn.allow_tf32 = getattr(problem, "precision", "") == "tf32"
            return run()

        return searching


class ChannelsLast(PyTorch):
    """Eager PyTorch in channels_last whatever the problem's layout: what a user could have."""

    name = "pytorch_channels_last"

    def prepare(self, problem: Problem) -> Call:
        return super().prepare(arranged(problem, "channels_last"))


class Compiled(PyTorch):
    """torch.compile in its most patient mode; its search runs at the first call."""

    name = COMPILED

    def prepare(self, problem: Problem) -> Call:
        if problem.direction in ("forward+backward", "training"):
            raise NotApplicable("torch.compile is timed on single directions")
        # One code object serves every problem: after a few it would silently stay uncompiled.
        torch._dynamo.reset()
        # The GPU's timer captures the graph itself.
        mode = "max-autotune-no-cudagraphs" if problem.x.is_cuda else "max-autotune"
        p: Any = problem
        if problem.family == "pool":
            compiled = torch.compile(lambda x: pytorch_pool(p.layer, x), mode=mode)
            return lambda: compiled(p.x)
        if problem.family == "inception":
            raise NotApplicable("torch.compile is not timed on inception modules")
        if problem.family == "network":
            model = torch.compile(p.make(), mode=mode)
            return lambda: model(p.x)
        if problem.family == "fused":
            forward = (F.conv1d, F.conv2d, F.conv3d)[p.layer.rank - 1]
            compiled = torch.compile(lambda *operands: p.run(forward, *operands), mode=mode)
            return lambda: compiled(*p.norm[:2], p.x, p.w)
        if p.direction == "fprop":
            compiled = torch.compile(lambda x, w: _torch_conv(p, x, w), mode=mode)
            return lambda: compiled(p.x, p.w)
        compiled = torch.compile(
            lambda x, w, dy: correctness.convolution(p.layer, p.direction, x, w, dy), mode=mode
        )
        return lambda: compiled(p.x, p.w, p.dy)


class OneDNN(Provider):
    """oneDNN in layouts of its own choice: input and output stay in them, the weight was reordered
    before."""

    name = "onednn"

    def conv(self, problem: ConvProblem) -> Call:
        p, layer = problem, problem.layer
        if p.direction != "fprop" or layer.rank != 2 or p.epilogue != "none" or p.x.is_cuda:
            raise NotApplicable("oneDNN's own layouts are timed on 2-D fprop on the CPU")
        x = p.x.to_mkldnn()
        geometry = (list(layer.padding), list(layer.stride), list(layer.dilation), layer.groups)
        reorder = torch._C._nn.mkldnn_reorder_conv2d_weight
        w = reorder(p.w.to_mkldnn(), *geometry, list(p.x.shape))
        layout = (list(layer.stride), list(layer.padding), list(layer.dilation), layer.groups)
        return lambda: F.conv2d(x, w, None, *layout)


class Copy(Provider):
    """The physical limit of what is bound by memory: a copy that moves the problem's bytes."""

    name = COPY

    def prepare(self, problem: Problem) -> Call:
        count = problem.bytes() // 2 // problem.x.element_size()
        source = torch.ones(count, dtype=problem.x.dtype, device=problem.x.device)
        target = torch.empty_like(source)
        return lambda: target.copy_(source)


class Gemm(Provider):
    """The limit of what is bound by arithmetic: PyTorch's matrix product (cuBLAS on a GPU) of the
    extents that the convolution has as one."""

    name = GEMM

    def conv(self, problem: ConvProblem) -> Call:
        p, layer = problem, problem.layer
        if p.direction != "fprop" or layer.groups != 1 or p.precision == "tf32x3":
            raise NotApplicable("a matrix product of equal extents is of fprop, of one group")
        gemm_m, gemm_n = p.dy.numel() // layer.K, layer.K
        gemm_k = p.w.numel() // layer.K
        like = {"dtype": p.x.dtype, "device": p.x.device}
        a, b = torch.randn(gemm_m, gemm_k, **like), torch.randn(gemm_k, gemm_n, **like)
        out = torch.empty(gemm_m, gemm_n, **like)

        def call() -> Tensor:
            torch.backends.cuda.matmul.allow_tf32 = p.precision == "tf32"
            return torch.mm(a, b, out=out)

        return call


class Fastconv(Provider):
    """fastconv through the functions that its layers call, with one algorithm or "auto"."""

    ours = True

    def __init__(self, algo: str) -> None:
        self.name = algo

    def _require(self, names: tuple[str, ...], what: str) -> None:
        if self.name != select.AUTO and self.name.partition("/")[0] not in names:
            raise NotApplicable(f"fastconv has no {what} called {self.name}")

    def conv(self, problem: ConvProblem) -> Call:
        self._require(select.names(problem.x.device.type), "convolution")
        p, layer = problem, problem.layer
        precision = p.precision if p.x.is_cuda and p.x.dtype == torch.float32 else None
        algo = select.with_precision(self.name, precision)
        geometry = (list(layer.stride), list(layer.padding), list(layer.dilation), layer.groups)
        channels_last = p.layout == "channels_last" and layer.rank > 1
        if p.direction == "dgrad":
            size = list(p.x.shape)
            return lambda: ops.conv_dgrad(p.dy, p.w, size, *geometry, channels_last, algo)
        if p.direction == "wgrad":
            size = list(p.w.shape)
            return lambda: ops.conv_wgrad(p.dy, p.x, size, *geometry, channels_last, algo)
        functions = (fastconv.conv1d, fastconv.conv2d, fastconv.conv3d)
        forward = functions[layer.rank - 1]
        relu = p.epilogue == "bias+relu"

        def run(x: Tensor, w: Tensor) -> Tensor:
            y = forward(x, w, p.bias, *geometry, algo=self.name, precision=precision)
            return y.relu_() if relu else y

        if relu and p.direction == "fprop":  # what a converted model's chain comes to
            moves = dict(zip(("stride", "padding", "dilation", "groups"), geometry, strict=True))
            return lambda: fastconv.conv_act(
                p.x, p.w, p.bias, **moves, algo=self.name, precision=precision
            )
        if p.direction == "forward+backward":
            return with_gradients(run, (p.x, p.w), p.dy)
        return lambda: run(p.x, p.w)

    def fused(self, problem: FusedProblem) -> Call:
        self._require(select.names(problem.x.device.type), "convolution")
        p, layer = problem, problem.layer
        options: dict[str, Any] = {
            "training": p.direction == "training",
            "momentum": 0.0,
            "eps": EPS,
            "stride": layer.stride,
            "padding": layer.padding,
            "dilation": layer.dilation,
            "groups": layer.groups,
            "algo": self.name,
        }

        def run(gamma: Tensor, beta: Tensor, x: Tensor, w: Tensor) -> Tensor:
            return fastconv.conv_bn_relu(x, w, None, gamma, beta, *p.norm[2:], **options)

        operands = (*p.norm[:2], p.x, p.w)
        if p.direction == "inference":
            return lambda: run(*operands)
        return with_gradients(run, operands, p.dy)

    def pool(self, problem: PoolProblem) -> Call:
        self._require(select_pool.names(), "pooling")
        p = problem
        if p.direction == "forward":
            return lambda: _our_pool(p, p.x, self.name)
        return with_gradients(lambda x: _our_pool(p, x, self.name), (p.x,), p.dy)

    def inception(self, problem: InceptionProblem) -> Call:
        self._require(select.names(problem.x.device.type), "convolution")

        p = problem
        biases = [torch.zeros(w.shape[0], dtype=w.dtype, device=w.device) for w in p.w]
        return lambda: fastconv.inception(p.x, p.w, biases, algo=self.name)

    def network(self, problem: NetworkProblem) -> Call:
        self._require((), "whole network")
        model = problem.make()
        fastconv.convert(model, fuse=True)
        return lambda: model(problem.x)

    def ran(self, problem: Problem) -> str:
        if not isinstance(problem, ConvProblem):
            return self.name
        self._require(select.names(problem.x.device.type), "convolution")
        return "+".join(
            dict.fromkeys(select.resolve(problem.spec(d), self.name) for d in problem.parts)
        )


def _torch_conv(problem: ConvProblem, x: Tensor, w: Tensor) -> Tensor:
    layer = problem.layer
    forward = (F.conv1d, F.conv2d, F.conv3d)[layer.rank - 1]
    geometry = (layer.stride, layer.padding, layer.dilation, layer.groups)
    y = forward(x, w, problem.bias, *geometry)
    return y.relu_() if problem.epilogue == "bias+relu" else y


def _our_pool(problem: PoolProblem, x: Tensor, algo: str) -> Tensor:
    layer = problem.layer
    window = (layer.kernel, layer.stride)
    if layer.kind == "max":
        return fastconv.max_pool2d(x, *window, layer.padding, 1, layer.ceil_mode, algo=algo)
    if layer.kind == "avg":
        return fastconv.avg_pool2d(x, *window, layer.padding, layer.ceil_mode, algo=algo)
    if layer.kind == "lp":
        return fastconv.lp_pool2d(x, LP_POWER, *window, layer.ceil_mode, algo=algo)
    if layer.kind == "adaptive_avg":
        return fastconv.adaptive_avg_pool2d(x, layer.kernel, algo=algo)
    return fastconv.stochastic_pool2d(x, *window, layer.padding, layer.ceil_mode, algo=algo)


def instances_of(problem: Problem, products: str) -> list[str]:
    """Every CUDA kernel instance for this convolution's direction, layout and arithmetic."""
    if not isinstance(problem, ConvProblem):
        return []
    dtype = str(problem.x.dtype).removeprefix("torch.")
    layout = _C.Layout.NHWC if problem.layout == "channels_last" else _C.Layout.NCHW
    wanted = (problem.direction, dtype, layout, products)
    return [
        f"{algorithm}/{name}"
        for algorithm, name, direction, kind, at, multiplies in _C.cuda_instances()
        if (direction.name, kind.name, at, multiplies.name) == wanted
    ]


_PLAIN = (PyTorch(), ChannelsLast(), Compiled(), OneDNN(), Copy(), Gemm())
PROVIDERS: dict[str, Provider] = {provider.name: provider for provider in _PLAIN}


def known(device: str = "cpu") -> tuple[str, ...]:
    """Names that `--providers` takes."""
    return tuple(dict.fromkeys((*PROVIDERS, "auto", *select.names(device), *select_pool.names())))


def provider(name: str, device: str = "cpu") -> Provider:
    """By name, or "module:Class" for one of the user's.

    Raises: ValueError on an unknown name, with the known ones.
    """
    if name in PROVIDERS:
        return PROVIDERS[name]
    if ":" in name:
        module, _, attribute = name.partition(":")
        try:
            made = getattr(importlib.import_module(module), attribute)()
        except (ImportError, AttributeError) as error:
            raise ValueError(f"cannot load the provider {name!r}: {error}") from error
        if not isinstance(made, Provider):
            raise ValueError(f"{name!r} is no bench.providers.Provider")
        made.name = made.name or attribute
        return made
    if name.partition("/")[0] not in known(device):
        raise ValueError(f"unknown provider {name!r}; known: {', '.join(known(device))}")
    return Fastconv(name)
