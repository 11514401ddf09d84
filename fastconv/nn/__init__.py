"""Layers: torch.nn's classes with the same arguments, parameters and state_dict, on fastconv."""

from fastconv.nn.conv import Conv1d, Conv2d, Conv3d, ConvNd

__all__ = ["Conv1d", "Conv2d", "Conv3d", "ConvNd"]
