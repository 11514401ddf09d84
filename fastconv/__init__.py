"""fastconv: hand-written convolution kernels for PyTorch."""

from fastconv import _library

_C = _library.load()
