"""Stochastic pooling as csrc/common/pool_sample.h says it, in plain Python."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

_MASK = 0xFFFFFFFF


def philox(key: int, counter: int) -> list[int]:
    """Four words of Philox 4x32-10; key and counter are taken modulo 2^64."""
    c = [counter & _MASK, counter >> 32 & _MASK, 0, 0]
    k = [key & _MASK, key >> 32 & _MASK]
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [b >> 32 ^ c[1] ^ k[0], b & _MASK, a >> 32 ^ c[3] ^ k[1], a & _MASK]
        k = [(k[0] + 0x9E3779B9) & _MASK, (k[1] + 0xBB67AE85) & _MASK]
    return c


def uniform(key: int, output: int, acc: type) -> Any:
    words = philox(key, output)
    if acc is np.float64:
        return acc((words[1] << 32 | words[0]) >> 11) * acc(2.0**-53)
    return acc(words[0] >> 8) * acc(2.0**-24)


def draw(values: list[Any], u: Any, acc: type) -> int:
    """Which of a window's real elements is taken."""
    weights = [acc(0) if v < 0 else v for v in values]
    total = acc(0)
    for weight in weights:
        total = total + weight
    if math.isnan(total):
        lost = [i for i, v in enumerate(values) if math.isnan(v)]
        return lost[-1] if lost else 0
    threshold, running, chosen = u * total, acc(0), 0
    for i, weight in enumerate(weights):
        running = running + weight
        if weight > 0:
            chosen = i
            if running > threshold or math.isinf(running):
                break
    return chosen


def sample(
    x: Tensor, seed: int, kernel: Any, stride: Any, padding: Any, outs: Any
) -> tuple[Tensor, Tensor]:
    """Taps and places in the plane, int64 [N, C, *outs], of every output's choice.

    A stride of 0 marks an adaptive axis; the taps then count in the longest window.
    """
    acc = np.float64 if x.dtype == torch.float64 else np.float32
    values = x.to(torch.float64 if acc is np.float64 else torch.float32).numpy()
    ins, rank = x.shape[2:], len(kernel)
    taps = torch.empty(*x.shape[:2], *outs, dtype=torch.int64)
    places = torch.empty_like(taps)
    with np.errstate(all="ignore"):
        for number, at in enumerate(product(*(range(n) for n in taps.shape))):
            axes = []
            for a in range(rank):
                i, n = at[2 + a], ins[a]
                if stride[a] == 0:
                    start, end = i * n // outs[a], -(-(i + 1) * n // outs[a])
                else:
                    start = i * stride[a] - padding[a]
                    end = min(start + kernel[a], n)
                axes.append([(p - start, p) for p in range(max(start, 0), end)])
            window = list(product(*axes))
            found = [values[at[0], at[1]][tuple(p for _, p in element)] for element in window]
            chosen = window[draw(found, uniform(seed, number, acc), acc)]
            tap = place = 0
            for a in range(rank):
                tap = tap * kernel[a] + chosen[a][0]
                place = place * ins[a] + chosen[a][1]
            taps[at], places[at] = tap, place
    return taps, places
