"""What has to be true of any call on a device, whatever it computes: graphs, streams, no waiting,
the current device. `run` takes operands and returns a tensor or several."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

SLEEP_CYCLES = 80_000_000  # about 40 ms: far longer than the host needs for a call

Run = Callable[..., Any]
Operands = Sequence[Tensor | None]


def results_of(run: Run, operands: Operands) -> tuple[Tensor, ...]:
    found = run(*operands)
    found = found if isinstance(found, tuple) else (found,)
    return tuple(t for t in found if t is not None)


def spoil(t: Tensor) -> None:
    """What no kernel writes."""
    t.fill_(torch.nan if t.is_floating_point() else 254)


@contextmanager
def no_synchronisation() -> Iterator[None]:
    """PyTorch raises on any call of its own that waits for the device."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def warm_up(run: Run, operands: Operands) -> None:
    """Outside of a capture, on another stream, as PyTorch asks for."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run(*operands)
    torch.cuda.current_stream().wait_stream(side)


def check_graph(run: Run, operands: Operands, others: Operands, note: str) -> None:
    """Captured once, replayed on the operands' and on other values in the same buffers."""
    warm_up(run, operands)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = results_of(run, operands)
    first = [None if t is None else t.clone() for t in operands]
    for values in (first, others):
        for t, value in zip(operands, values, strict=True):
            if t is not None:
                t.copy_(value)
        for t in results:
            spoil(t)
        graph.replay()
        expected = results_of(run, operands)
        assert all(map(torch.equal, results, expected)), f"{note}: the replay differs"


def check_side_stream(run: Run, operands: Operands, note: str) -> None:
    """Runs behind the work of the current stream: its first operand arrives there late."""
    expected = results_of(run, operands)
    late = torch.empty_like(operands[0])
    spoil(late)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(SLEEP_CYCLES)
        late.copy_(operands[0])
        results = results_of(run, (late, *operands[1:]))
    side.synchronize()
    assert all(map(torch.equal, results, expected)), f"{note}: did not wait for its stream"


def check_returns_at_once(run: Run, operands: Operands, note: str) -> None:
    """Returns while the stream is still busy with something else."""
    run(*operands)  # modules load at the first launch, which may wait
    torch.cuda.synchronize()
    busy = torch.cuda.Event()
    with no_synchronisation():
        torch.cuda._sleep(SLEEP_CYCLES)
        busy.record()
        run(*operands)
        returned_first = not busy.query()
    torch.cuda.synchronize()
    assert returned_first, f"{note}: the call waited for the device"


def check_devices(run: Run, operands: Operands) -> None:
    """Runs on its operands' device, whatever device is current, and leaves that as it was."""
    expected = [t.cpu() for t in results_of(run, operands)]
    for index in range(torch.cuda.device_count()):
        there = torch.device("cuda", index)
        results = results_of(run, [None if t is None else t.to(there) for t in operands])
        assert all(t.device == there for t in results)
        assert torch.cuda.current_device() == 0
        home = [t.cpu() for t in results]
        same_chip = torch.cuda.get_device_capability(index) == torch.cuda.get_device_capability(0)
        assert not same_chip or all(torch.equal(*pair) for pair in zip(home, expected, strict=True))
