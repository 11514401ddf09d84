"""fastconv: hand-written convolution kernels for PyTorch."""

from fastconv import _library

_C = _library.load()

from fastconv import nn  # noqa: E402  (all of these need the library loaded)
from fastconv.convert import convert, revert  # noqa: E402
from fastconv.functional import conv1d, conv2d, conv3d  # noqa: E402

__all__ = ["conv1d", "conv2d", "conv3d", "convert", "nn", "revert"]
