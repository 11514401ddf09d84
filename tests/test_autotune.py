"""Autotuning: what is measured, kept, shared between processes, and survives a bad file."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import fastconv
from fastconv import autotune_cache, select

measuring = sys.modules["fastconv.autotune"]
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A cache of this test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    autotune_cache.reload()
    autotune_cache._store.warned.clear()
    yield tmp_path
    monkeypatch.undo()
    autotune_cache.reload()
    autotune_cache._store.warned.clear()


@pytest.fixture
def timed(monkeypatch):
    """Replaces the clock: `timed.pick` wins; `timed.specs` lists what was measured."""

    class Timed:
        pick = "direct"
        specs: list = []  # noqa: RUF012

    def measure(spec, tensors, rounds=5):
        Timed.specs.append(spec)
        names = [c.name for c in select.candidates(spec) if c.reason is None]
        return {name: 0.5 if name == Timed.pick else 1.0 for name in names}

    Timed.specs = []
    monkeypatch.setattr(measuring, "measure", measure)
    return Timed


def operands(grad=False):
    return torch.randn(1, 4, 8, 8, requires_grad=grad), torch.randn(4, 4, 3, 3, requires_grad=grad)


def stored():
    path = fastconv.autotune.cache_path()
    return json.loads(path.read_text())["entries"] if path.exists() else {}


def test_measures_every_candidate_once(home):
    x, w = operands()
    with fastconv.autotune():
        y = fastconv.conv2d(x, w, padding=1)
        content = stored()
        fastconv.conv2d(x, w, padding=1)
    torch.testing.assert_close(y, F.conv2d(x, w, padding=1), rtol=1e-4, atol=1e-4)
    assert stored() == content and len(content) == 1
    ((key, entry),) = content.items()
    spec = autotune_spec()
    assert str(spec) in key
    applicable = {c.name for c in select.candidates(spec) if c.reason is None}
    assert set(entry["seconds"]) == applicable and "aten" in applicable
    assert entry["winner"] == min(entry["seconds"], key=entry["seconds"].get)


def autotune_spec(direction="fprop"):
    from fastconv.problem import ConvSpec

    return ConvSpec(
        direction, "cpu", torch.float32, (1, 4, 8, 8), (4, 4, 3, 3), (1, 1), (1, 1), (1, 1), 1
    )


def test_each_direction_is_measured_on_its_first_call(timed):
    x, w = operands(grad=True)
    with fastconv.autotune():
        y = fastconv.conv2d(x, w, padding=1)
        assert [s.direction for s in timed.specs] == ["fprop"]
        y.sum().backward()
        assert [s.direction for s in timed.specs] == ["fprop", "dgrad", "wgrad"]
        fastconv.conv2d(x, w, padding=1).sum().backward()
        assert len(timed.specs) == 3
        fastconv.conv2d(x, w, padding=1, algo="direct")
        fastconv.conv2d(x, w)
    assert len(timed.specs) == 4
    fastconv.conv2d(x, w, stride=2)
    assert len(timed.specs) == 4, "measures outside the context"


@pytest.mark.parametrize("winner", ["direct", "im2col", "aten"])
def test_the_winner_is_taken_inside_and_outside(timed, winner):
    timed.pick = winner
    x, w = operands()
    fastconv.conv2d(x, w, padding=1)  # a decision by estimate comes first
    with fastconv.autotune():
        fastconv.conv2d(x, w, padding=1)
        assert fastconv.explain(x, w, padding=1)["fprop"].chosen == winner
    choice = fastconv.explain(x, w, padding=1)["fprop"]
    assert choice.chosen == winner and "measured" in choice.why
    assert next(r for r in choice.rows if r.name == winner).measured == 0.5
    assert select.choose(autotune_spec()) == winner


def test_threads_and_dtype_are_told_apart(timed, set_threads):
    x, w = operands()
    with fastconv.autotune():
        for threads in (1, 2):
            set_threads(threads)
            fastconv.conv2d(x, w, padding=1)
        fastconv.conv2d(x.double(), w.double(), padding=1)
    assert len(timed.specs) == 3 and len(stored()) == 3


def test_enable_disable_nesting(timed):
    x, w = operands()
    tuner = fastconv.autotune()
    tuner.enable()
    with fastconv.autotune():
        pass
    fastconv.conv2d(x, w)
    assert len(timed.specs) == 1
    tuner.disable()
    tuner.disable()
    fastconv.conv2d(x, w, padding=1)
    assert len(timed.specs) == 1 and select.measure is None


def test_decorator(timed):
    @fastconv.autotune()
    def step():
        fastconv.conv2d(*operands())

    step()
    assert len(timed.specs) == 1 and select.measure is None


def test_an_error_inside_ends_it(timed):
    with pytest.raises(KeyError), fastconv.autotune():
        raise KeyError
    assert select.measure is None


def test_what_cannot_be_measured_still_runs(timed):
    x, w = operands()
    with fastconv.autotune():
        torch.vmap(lambda x: fastconv.conv2d(x, w))(x.unsqueeze(0))
        fastconv.conv2d(x.int(), w.int())
        fastconv.conv2d(x.to("meta"), w.to("meta"))
        fastconv.conv2d(x[:0], w)
        with torch._subclasses.FakeTensorMode():
            fastconv.conv2d(torch.empty(1, 4, 9, 9), torch.empty(4, 4, 3, 3))
    assert all(s.device == "cpu" and s.dtype == torch.float32 for s in timed.specs)
    assert all(9 not in s.input_size and not s.empty for s in timed.specs)


def test_file_is_private_and_reread(timed, home):
    with fastconv.autotune():
        fastconv.conv2d(*operands(), padding=1)
    path = fastconv.autotune.cache_path()
    assert path.parent == home / "fastconv"
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert not list(path.parent.glob("*.tmp"))
    autotune_cache.reload()
    assert select.choose(autotune_spec()) == "direct"
    content = json.loads(path.read_text())
    assert content["environment"]["torch"] == torch.__version__
    fastconv.autotune.clear()
    assert not path.exists()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '{"entries": {}}',
        '{"environment": {"torch": "1.0"}, "entries": {"x": 1}}',
        "\x00\xff",
        '{"environment": ENV, "entries": [1]}',
        '{"environment": ENV}',
        '{"environment": ENV, "entries": {"KEY": {"winner": "rm -rf", "seconds": {}}}}',
        '{"environment": ENV, "entries": {"KEY": 3}}',
        '{"environment": ENV, "entries": {"KEY": {"winner": ["direct"], "seconds": {}}}}',
    ],
)
def test_bad_file_is_ignored_and_rewritten(timed, text):
    path = fastconv.autotune.cache_path()
    path.parent.mkdir(parents=True)
    key = autotune_cache.entry_key(autotune_spec(), torch.get_num_threads(), fastconv._C.cpu_isa())
    path.write_text(
        text.replace("ENV", json.dumps(autotune_cache.environment())).replace("KEY", key)
    )
    autotune_cache.reload()
    x, w = operands()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            fastconv.conv2d(x, w, padding=1)
        with fastconv.autotune():
            fastconv.conv2d(x, w, padding=1)
    assert len([c for c in caught if "autotune cache" in str(c.message)]) <= 1
    assert stored()[key]["winner"] == "direct"


def test_winner_that_does_not_apply_is_not_taken():
    path = fastconv.autotune.cache_path()
    path.parent.mkdir(parents=True)
    spec = autotune_spec()
    key = autotune_cache.entry_key(spec, torch.get_num_threads(), fastconv._C.cpu_isa())
    entry = {"winner": "winograd", "seconds": {}}  # an alias, never a winner
    content = {"environment": autotune_cache.environment(), "entries": {key: entry}}
    path.write_text(json.dumps(content))
    autotune_cache.reload()
    assert select.choose(spec) in ("aten", *fastconv._C.cpu_algorithms())


def test_unwritable_directory_works_in_memory(timed, home, monkeypatch):
    blocked = home / "file"
    blocked.write_text("not a directory")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    autotune_cache.reload()
    with pytest.warns(RuntimeWarning, match="stay in memory"), fastconv.autotune():
        fastconv.conv2d(*operands(), padding=1)
    assert select.choose(autotune_spec()) == "direct"


WRITER = """
import sys, torch, fastconv
from fastconv import autotune_cache
from fastconv.problem import ConvSpec
for i in range(12):
    spec = ConvSpec("fprop", "cpu", torch.float32, (1, 4, 8, 8 + i), (int(sys.argv[1]), 4, 3, 3),
                    (1, 1), (1, 1), (1, 1), 1)
    autotune_cache.record(spec, 1, "avx2", {"direct": 1.0, "aten": 2.0})
"""


def test_concurrent_writers_lose_nothing():
    environment = {**os.environ, "PYTHONPATH": str(Path(fastconv.__file__).parent.parent)}
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(k)], env=environment) for k in (1, 2, 3)
    ]
    assert [w.wait(timeout=300) for w in writers] == [0, 0, 0]
    assert len(stored()) == 36
