"""Layers: torch.nn's classes with the same arguments, parameters and state_dict, on fastconv."""

from fastconv.nn.conv import Conv1d, Conv2d, Conv3d, ConvNd
from fastconv.nn.pool import (
    AvgPool1d,
    AvgPool2d,
    AvgPool3d,
    L2Pool2d,
    LPPool1d,
    LPPool2d,
    LPPool3d,
    MaxPool1d,
    MaxPool2d,
    MaxPool3d,
    SumPool2d,
)

__all__ = [
    "AvgPool1d",
    "AvgPool2d",
    "AvgPool3d",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvNd",
    "L2Pool2d",
    "LPPool1d",
    "LPPool2d",
    "LPPool3d",
    "MaxPool1d",
    "MaxPool2d",
    "MaxPool3d",
    "SumPool2d",
]
