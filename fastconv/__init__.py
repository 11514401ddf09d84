"""fastconv: hand-written convolution and pooling kernels for PyTorch."""

import importlib as _importlib

from fastconv import _library
from fastconv._version import __version__

_C = _library.load()

# After the library, which they need. `autotune` and `explain` name a module and what it offers; the
# latter wins.
from fastconv import nn  # noqa: E402
from fastconv.activated import conv_act  # noqa: E402
from fastconv.autotune import autotune  # noqa: E402
from fastconv.convert import convert, revert  # noqa: E402
from fastconv.explain import explain  # noqa: E402
from fastconv.functional import conv1d, conv2d, conv3d  # noqa: E402
from fastconv.fused import conv_bn_relu  # noqa: E402
from fastconv.inception import inception  # noqa: E402
from fastconv.pooling import (  # noqa: E402
    avg_pool1d,
    avg_pool2d,
    avg_pool3d,
    l2_pool2d,
    lp_pool1d,
    lp_pool2d,
    lp_pool3d,
    max_pool1d,
    max_pool2d,
    max_pool3d,
    sum_pool2d,
)
from fastconv.pooling_adaptive import (  # noqa: E402
    adaptive_avg_pool1d,
    adaptive_avg_pool2d,
    adaptive_avg_pool3d,
    adaptive_max_pool1d,
    adaptive_max_pool2d,
    adaptive_max_pool3d,
    max_unpool1d,
    max_unpool2d,
    max_unpool3d,
)
from fastconv.pooling_features import l2_pool_features, maxout  # noqa: E402
from fastconv.pooling_stochastic import (  # noqa: E402
    stochastic_pool1d,
    stochastic_pool2d,
    stochastic_pool3d,
)

__all__ = [
    "__version__",
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "adaptive_avg_pool3d",
    "adaptive_max_pool1d",
    "adaptive_max_pool2d",
    "adaptive_max_pool3d",
    "autotune",
    "avg_pool1d",
    "avg_pool2d",
    "avg_pool3d",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_act",
    "conv_bn_relu",
    "convert",
    "explain",
    "inception",
    "l2_pool2d",
    "l2_pool_features",
    "lp_pool1d",
    "lp_pool2d",
    "lp_pool3d",
    "max_pool1d",
    "max_pool2d",
    "max_pool3d",
    "max_unpool1d",
    "max_unpool2d",
    "max_unpool3d",
    "maxout",
    "nn",
    "revert",
    "stochastic_pool1d",
    "stochastic_pool2d",
    "stochastic_pool3d",
    "sum_pool2d",
]


def __getattr__(name: str):
    # Imported when first used; `info` also runs as `python -m fastconv.info`.
    if name in ("info", "reference", "testing"):
        return _importlib.import_module(f"fastconv.{name}")
    raise AttributeError(f"module 'fastconv' has no attribute {name!r}")
