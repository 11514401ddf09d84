"""The differentiable operations on tensors, between `fastconv.functional` and the kernels."""

from fastconv.ops.conv import conv_dgrad, conv_fprop, conv_wgrad

__all__ = ["conv_dgrad", "conv_fprop", "conv_wgrad"]
