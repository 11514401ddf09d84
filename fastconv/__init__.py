"""fastconv: hand-written convolution kernels for PyTorch."""

from pathlib import Path as _Path

import torch as _torch

_torch.ops.load_library(str(_Path(__file__).parent / "libfastconv_ops.so"))

from fastconv import _C  # noqa: E402,F401  (needs the op library loaded first)
