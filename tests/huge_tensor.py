"""A convolution of more elements than 32 bits count, in the emulation, where only the pages that a
kernel touches have memory."""

from __future__ import annotations

import numpy as np
import torch
from cases import conv_case
from emulated import Instance, emulation, native_problem


def check_last_pixel(instance: Instance, extent: int, tile_pixels: int) -> None:
    """fprop in bf16 of 17 x 2048 x 2048 pixels of 64 channels by filters of extent x extent: of its
    blocks the last, which has the last pixel, and the first."""
    sizes = (17, 64, 2048, 2048), (8, 64, extent, extent)
    case = conv_case("huge", *sizes, padding=extent // 2)
    module = emulation()
    pixels = 17 * 2048 * 2048
    x = torch.zeros(64, dtype=torch.bfloat16)
    x[3] = 2
    w = torch.zeros(8, extent, extent, 64, dtype=torch.bfloat16)
    w[5, extent // 2, extent // 2, 3] = 3

    def raw(t: torch.Tensor) -> np.ndarray:
        return t.flatten().view(torch.uint8).numpy()

    (last,), _, _ = module.run_conv(
        instance.algorithm,
        instance.name,
        native_problem(case),
        (pixels * 128, [(pixels * 128 - 128, raw(x))]),
        raw(w),
        None,
        module.Device(90, pixels // tile_pixels),  # a block to a tile, so that few are enough
        [(pixels * 16 - 16, 16)],
        seed=1,
        block_limit=2,
    )
    assert torch.from_numpy(last).view(torch.bfloat16).tolist() == [0, 0, 0, 0, 0, 6, 0, 0]
