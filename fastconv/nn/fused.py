"""ConvBNReLU1d to 3d: a convolution, its batch normalisation and an activation as one layer.

They are torch.nn.Sequential of (Conv, BatchNorm, activation): the same children, parameters and
state_dict, and what is written or hooked there stays where it was. Only forward is one operation.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fastconv.activated import conv_act
from fastconv.activations import named
from fastconv.fused import conv_bn_relu
from fastconv.nn.conv import Conv1d, Conv2d, Conv3d, ConvNd

_CONV = {1: Conv1d, 2: Conv2d, 3: Conv3d}
_NORM = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def run_chain(
    conv: nn.Module,
    norm: nn.Module,
    input: Tensor,
    activation: str | None,
    negative_slope: float = 0.01,
    residual: Tensor | None = None,
    residual_after: bool = False,
    process_group: Any | None = None,
    recompute: bool = False,
) -> Tensor:
    """What conv, norm (a batch normalisation) and the activation compute one after another.

    Reads the layers as they are now, counts the batch, and updates the running statistics, as
    torch.nn.BatchNorm2d does.
    """
    momentum = 0.0 if norm.momentum is None else norm.momentum
    mean = _tensor(norm, norm._buffers, "running_mean")
    var = _tensor(norm, norm._buffers, "running_var")
    if norm.training and norm.track_running_stats and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if norm.momentum is None:
            momentum = 1.0 / float(norm.num_batches_tracked)
    training = norm.training or (mean is None and var is None)
    keep = not norm.training or norm.track_running_stats
    input, padding = _padded(conv, input)
    return conv_bn_relu(
        input,
        _tensor(conv, conv._parameters, "weight"),
        _tensor(conv, conv._parameters, "bias"),
        _tensor(norm, norm._parameters, "weight"),
        _tensor(norm, norm._parameters, "bias"),
        mean if keep else None,
        var if keep else None,
        training=training,
        momentum=momentum,
        eps=norm.eps,
        stride=conv.stride,
        padding=padding,
        dilation=conv.dilation,
        groups=conv.groups,
        activation=activation,
        negative_slope=negative_slope,
        residual=residual,
        residual_after=residual_after,
        process_group=process_group,
        recompute=recompute,
        algo=getattr(conv, "algo", "auto"),
        precision=getattr(conv, "precision", None),
    )


def run_activated(
    conv: nn.Module,
    input: Tensor,
    activation: str | None,
    negative_slope: float = 0.01,
    residual: Tensor | None = None,
    residual_after: bool = False,
) -> Tensor:
    """What conv and the activation compute one after another."""
    input, padding = _padded(conv, input)
    return conv_act(
        input,
        _tensor(conv, conv._parameters, "weight"),
        _tensor(conv, conv._parameters, "bias"),
        stride=conv.stride,
        padding=padding,
        dilation=conv.dilation,
        groups=conv.groups,
        activation=activation,
        negative_slope=negative_slope,
        residual=residual,
        residual_after=residual_after,
        algo=getattr(conv, "algo", "auto"),
        precision=getattr(conv, "precision", None),
    )


def _padded(conv: nn.Module, input: Tensor) -> tuple[Tensor, Any]:
    """The input with the borders that are not zeros, and the padding that is left to do."""
    if conv.padding_mode == "zeros":
        return input, conv.padding
    sides = conv._reversed_padding_repeated_twice
    return nn.functional.pad(input, sides, mode=conv.padding_mode), 0


def _tensor(module: nn.Module, held: dict[str, Any], name: str) -> Tensor | None:
    """An attribute that `held` most likely has: nn.Module looks everywhere else first."""
    if name in held:
        return held[name]
    return getattr(module, name)


def has_hooks(module: nn.Module) -> bool:
    """Whether something watches this layer's calls."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def _activation_layer(name: str | None, negative_slope: float) -> nn.Module:
    kind = named(name, negative_slope).name
    layers = {"relu": nn.ReLU, "relu6": nn.ReLU6, "silu": nn.SiLU, "none": nn.Identity}
    return nn.LeakyReLU(negative_slope) if kind == "leaky_relu" else layers[kind]()


class ConvBNReLUNd(nn.Sequential):
    """What the three ranks share. Children: 0 the convolution, 1 the normalisation, 2 the rest."""

    rank: int

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] = 1,
        padding: int | tuple[int, ...] | str = 0,
        dilation: int | tuple[int, ...] = 1,
        groups: int = 1,
        bias: bool = False,
        padding_mode: str = "zeros",
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        activation: str | None = "relu",
        negative_slope: float = 0.01,
        residual_after: bool = False,
        process_group: Any | None = None,
        recompute: bool = False,
        algo: str = "auto",
        precision: str | None = None,
    ) -> None:
        placed = {"device": device, "dtype": dtype}
        last = _activation_layer(activation, negative_slope)
        super().__init__(
            _CONV[self.rank](
                in_channels,
                out_channels,
                kernel_size,
                stride,
                padding,
                dilation,
                groups,
                bias,
                padding_mode,
                **placed,
                algo=algo,
                precision=precision,
            ),
            _NORM[self.rank](out_channels, eps, momentum, affine, track_running_stats, **placed),
            last,
        )
        self.activation, self.negative_slope = named(activation, negative_slope)
        self.residual_after = residual_after
        self.process_group, self.recompute = process_group, recompute

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        conv, norm, *_ = children = self._modules.values()
        if any(map(has_hooks, children)):
            if self.process_group is not None:
                raise RuntimeError(
                    "a child of this layer has hooks, which synchronised statistics cannot serve"
                )
            z = self[1](self[0](input))
            if residual is None:
                return self[2](z)
            return self[2](z) + residual if self.residual_after else self[2](z + residual)
        return run_chain(
            conv,
            norm,
            input,
            self.activation,
            self.negative_slope,
            residual,
            self.residual_after,
            self.process_group,
            self.recompute,
        )

    def __getstate__(self) -> dict[str, Any]:
        # A process group belongs to this process; only "world" has a meaning elsewhere.
        group = self.process_group
        return {**self.__dict__, "process_group": group if isinstance(group, str) else None}

    def __prepare_scriptable__(self):
        return ConvNd.__prepare_scriptable__(self)


_DOC = """Conv{rank}d, BatchNorm{rank}d and an activation as one operation.

    A torch.nn.Sequential of these three: state_dict keys are "0.weight", "1.running_mean", ...

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias,
            padding_mode: as in torch.nn.Conv{rank}d; bias is off, the normalisation has one.
        eps, momentum, affine, track_running_stats: as in torch.nn.BatchNorm{rank}d.
        activation, negative_slope, residual_after, process_group, recompute, algo, precision: as
            in fastconv.conv_bn_relu. Pickling and copying drop process_group.

    Call: layer(input, residual=None). Shapes, dtypes, layouts, determinism, errors: those of
    fastconv.conv_bn_relu. A child with hooks makes the children run one by one (refused
    with a process_group).
    """


class ConvBNReLU1d(ConvBNReLUNd):
    rank = 1
    __doc__ = _DOC.format(rank=1)


class ConvBNReLU2d(ConvBNReLUNd):
    rank = 2
    __doc__ = _DOC.format(rank=2)


class ConvBNReLU3d(ConvBNReLUNd):
    rank = 3
    __doc__ = _DOC.format(rank=3)
