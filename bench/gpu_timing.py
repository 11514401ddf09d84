"""Times calls on a device: CUDA-graph replays between events, the L2 cache flushed before each.

A call is captured once, so that what is timed is the device's work and not the host's. Before a
sample a buffer several times the size of the L2 is overwritten: the operands come from memory, and
the host has issued the events and the replay before the device gets to them. What cannot be
captured is launched as it is, behind a pause that hides the host's part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from bench.timing import Timing, quantile

FLUSH_BYTES = 256 << 20
PAUSE_CYCLES = 400_000  # about 0.2 ms: longer than the host needs to issue one call
WARM_UP_CALLS = 2
MIN_SAMPLES, MAX_SAMPLES = 5, 25
BATCHES = 5


class CudaTimer:
    """Milliseconds by CUDA events."""

    device = "cuda"

    def __init__(self) -> None:
        self.flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=self.device)
        self.how: dict[str, str] = {}

    def prepare(self, name: str, run: Callable[[], object]) -> Callable[[], None]:
        """Warms `run` up outside a capture, captures it, and returns what a sample calls."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP_CALLS):
                run()
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                run()
        except RuntimeError as reason:
            torch.cuda.synchronize()  # raises if it is the device that is lost
            self.how[name] = f"launches ({str(reason).splitlines()[0][:80]})"

            def launch() -> None:
                torch.cuda._sleep(PAUSE_CYCLES)
                self._begin()
                run()

            return launch
        self.how[name] = "graph"

        def replay() -> None:
            self._begin()
            graph.replay()

        return replay

    def once(self, name: str, run: Callable[[], object]) -> Callable[[], None]:
        """For calls so slow that a sample is all they get: neither warmed up nor captured."""
        self.how[name] = "launches (slow)"

        def launch() -> None:
            self._begin()
            run()

        return launch

    def _begin(self) -> None:
        self.start.record()

    def samples(self, ready: Mapping[str, Callable[[], None]], rounds: int) -> dict[str, list]:
        """`rounds` samples of each, taking turns; the first place rotates."""
        events: dict[str, list] = {name: [] for name in ready}
        names = list(ready)
        for turn in range(rounds):
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                self.flush.zero_()
                self.start = torch.cuda.Event(enable_timing=True)
                stop = torch.cuda.Event(enable_timing=True)
                ready[name]()
                stop.record()
                events[name].append((self.start, stop))
            torch.cuda.synchronize()
        return {
            name: [start.elapsed_time(stop) for start, stop in pairs]
            for name, pairs in events.items()
        }

    def rate_samples(self, run: Callable[[], object], count: int) -> list[float]:
        """Milliseconds per call over batches of `count` calls back to back, the cache left warm:
        for the ceilings."""
        run()
        torch.cuda.synchronize()
        found = []
        for _ in range(BATCHES):
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for _ in range(count):
                run()
            stop.record()
            torch.cuda.synchronize()
            found.append(start.elapsed_time(stop) / count)
        return found


def timings(
    timer: CudaTimer,
    ready: Mapping[str, Callable[[], object]],
    seconds: float,
) -> dict[str, Timing]:
    """Medians of everything that is ready, in about `seconds` for each of them. A contender whose
    first sample alone takes longer keeps that one."""
    first = timer.samples(ready, 1)
    patient = {name: run for name, run in ready.items() if first[name][0] < seconds * 1e3}
    found = dict(first)
    if patient:
        longest = max(first[name][0] for name in patient) + 0.15  # the flush
        rounds = int(seconds * 1e3 / longest)
        found |= timer.samples(patient, max(MIN_SAMPLES, min(rounds, MAX_SAMPLES)))
    return {name: _timing(found[name]) for name in ready}


def _timing(milliseconds: Sequence[float]) -> Timing:
    values = list(milliseconds)
    return Timing(*(quantile(values, q) for q in (0.5, 0.2, 0.8)), len(values))
