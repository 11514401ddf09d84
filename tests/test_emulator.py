"""The emulation itself: what it computes, and that it catches what it says it catches."""

from __future__ import annotations

import numpy as np
import pytest
from emulated import emulation


@pytest.mark.parametrize("n", [1, 255, 256, 1000])
def test_runs_a_kernel(n: int) -> None:
    x = np.arange(n, dtype=np.int32)
    y, statistics = emulation().run_probe(x, seed=1, workers=2)
    np.testing.assert_array_equal(y, x + 1)
    assert statistics.threads == -(-n // 256) * 256
