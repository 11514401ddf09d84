"""fastconv: hand-written convolution kernels for PyTorch."""

from fastconv import _library

_C = _library.load()

from fastconv.functional import conv1d, conv2d, conv3d  # noqa: E402  (needs the library loaded)

__all__ = ["conv1d", "conv2d", "conv3d"]
