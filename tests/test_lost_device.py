"""A kernel that takes the device down: it alone is blamed, in the self-test and at a first use."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from pretend_gpu import pretend_gpu, take_down

from fastconv import gpu, select, select_cuda, selftest, trust
from fastconv.problem import ConvSpec

pytestmark = pytest.mark.cuda_kernels
TESTS = Path(__file__).parent
CPU = torch.device("cpu")  # where the pretended device computes
ONLY = "direct_plain/fprop"


@pytest.fixture(autouse=True)
def pretended(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pretend_gpu(monkeypatch):
        small = tuple(p for p in selftest.PROBLEMS if p.name == "asymmetric")
        monkeypatch.setattr(selftest, "PROBLEMS", small)
        yield
    # Undone here, before another test runs, and what the pretence left in the caches with it.
    monkeypatch.undo()
    select.forget()
    trust.reload()


def names(only: str = ONLY) -> list[str]:
    return [i.name for i in selftest.instances() if only in i.name]


def recorded(found: list[str]) -> dict[str, str]:
    """What the store holds of these instances, as another process would find it."""
    trust.reload()
    known = {name: trust.error_of("cuda:0", name) for name in found}
    return {name: error for name, error in known.items() if error is not None}


def wanted(monkeypatch: pytest.MonkeyPatch) -> tuple[ConvSpec, list[str]]:
    """A problem, and the instances that `auto` would take for it, the best first."""
    monkeypatch.setattr(select_cuda, "MARGIN", 2.0)  # several of them
    spec = ConvSpec(
        "fprop", "cuda:0", torch.float32, (8, 64, 56, 56), (64, 2, 3, 3), (1, 1), (1, 1), (1, 1),
        32, False, "ieee",
    )  # fmt: skip
    *ours, aten = select.candidates(spec)
    good = [c for c in ours if c.reason is None and c.cost < select_cuda.MARGIN * aten.cost]
    return spec, [c.name for c in sorted(good, key=lambda c: c.cost)]


def test_probe_tells_a_lost_device_from_a_passing_error(monkeypatch):
    assert gpu.loss(CPU) == ""
    errors: list[str] = []
    ones = torch.ones

    def failing(*args, **kwargs):
        if errors:
            raise RuntimeError(errors.pop())
        return ones(*args, **kwargs)

    monkeypatch.setattr(torch, "ones", failing)
    errors[:] = ["invalid configuration argument"]
    assert gpu.loss(CPU) == ""
    errors[:] = ["CUDA out of memory. Tried to allocate 2 bytes"]
    assert gpu.loss(CPU) == ""
    errors[:] = ["CUDA error: unspecified launch failure\nSearch for it."] * 2
    assert gpu.loss(CPU) == "CUDA error: unspecified launch failure"


def test_selftest_stops_at_the_instance_that_takes_the_device_down(monkeypatch):
    good, bad, *rest = names()
    assert rest
    take_down(monkeypatch, [bad])
    first, second = selftest.run(CPU, ONLY)
    assert (first.instance, second.instance) == (good, bad)
    assert first.passed and not second.passed and second.device_lost
    known = recorded(names())
    assert set(known) == {good, bad} and known[good] == ""
    assert "illegal memory access was encountered; nothing runs on the device" in known[bad]
    assert "\n" not in known[bad]
    with pytest.raises(RuntimeError, match="does not work: CUDA error: an illegal memory access"):
        next(selftest.run(CPU, ONLY, done={good, bad}))
    assert set(recorded(names())) == {good, bad}


def test_an_error_that_leaves_the_device_working_stops_nothing(monkeypatch):
    bad, *rest = names()
    launch = selftest.launch

    def refused(instance, *args):
        if instance.name == bad:
            raise RuntimeError("conv_fprop: invalid argument")
        return launch(instance, *args)

    monkeypatch.setattr(selftest, "launch", refused)
    outcomes = list(selftest.run(CPU, ONLY))
    assert [o.passed for o in outcomes] == [False, *[True] * len(rest)]
    assert recorded(names()) == {
        bad: "asymmetric: conv_fprop: invalid argument",
        **dict.fromkeys(rest, ""),
    }


def pretended_run(tmp_path: Path, *words: str, **environment: str):
    """The command in a process of its own, and what it wrote."""
    (tmp_path / "tmp").mkdir()
    file = tmp_path / "outcome.json"
    script = [sys.executable, str(TESTS / "pretend_selftest.py"), "--only", ONLY]
    done = subprocess.run(
        [*script, "--json", str(file), *words],
        env={
            **os.environ,
            "PYTHONPATH": str(TESTS.parent),
            "TMPDIR": str(tmp_path / "tmp"),
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert not list((tmp_path / "tmp").iterdir())
    return done, json.loads(file.read_text())


@pytest.mark.parametrize("kind", ["faults", "hangs"])
def test_selftest_goes_on_in_fresh_processes(tmp_path, kind):
    """A middle and the last instance (of those that fault, the first as well) take the device down
    or never end: the table is complete, each instance ran once, and only these are blamed."""
    found = names()
    bad = {found[len(found) // 2], found[-1]} | ({found[0]} if kind == "faults" else set())
    environment = {f"FASTCONV_PRETEND_{kind.upper()}": ",".join(bad)}
    # Long for one of the others, also on a busy machine.
    done, facts = pretended_run(tmp_path, "--seconds-each", "8", **environment)
    assert facts["complete"]
    assert [o["instance"] for o in facts["outcomes"]] == found
    assert {o["instance"] for o in facts["outcomes"] if o["error"]} == bad
    lines = done.stdout.splitlines()
    assert [line.split()[1] for line in lines if line[:6].strip() in ("ok", "FAILED")] == found
    # None after the last.
    assert done.stdout.count("going on in a fresh one") == len(bad) - 1
    assert f"{len(found) - len(bad)} of {len(found)} passed" in lines[-1]
    known = recorded(found)
    assert {name for name, error in known.items() if error} == bad and set(known) == set(found)
    assert kind == "faults" or known[found[-1]] == "no answer within 8 s"


def test_selftest_says_that_the_device_does_not_work(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu, "loss", lambda device: "CUDA error: unspecified launch failure")
    assert selftest.main(["--only", ONLY]) == 2
    assert "does not work: CUDA error: unspecified launch failure" in capsys.readouterr().err
    assert not recorded(names())


def test_first_use_blames_the_instance_that_took_the_device_down(monkeypatch):
    spec, (bad, *others) = wanted(monkeypatch)
    assert others
    with monkeypatch.context() as patch:
        take_down(patch, [bad])
        with pytest.warns(RuntimeWarning) as caught:
            assert select.choose(spec) == "aten"
        (warning,) = caught
        assert f"CUDA kernel {bad} failed its check" in str(warning.message)
        assert "nothing runs on the device" in str(warning.message)
        with warnings.catch_warnings():  # said once
            warnings.simplefilter("error")
            select.forget()
            assert select.choose(spec) == "aten"
        assert list(recorded([bad, *others])) == [bad]
    # In a fresh process.
    trust.reload()
    select.forget()
    assert select.choose(spec) == others[0]
    assert recorded([bad, *others])[others[0]] == ""


def test_nothing_is_blamed_for_a_device_that_was_lost_before(monkeypatch):
    spec, found = wanted(monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(gpu, "loss", lambda device: "CUDA error: unspecified launch failure")
        with pytest.warns(RuntimeWarning, match=r"cuda:0 is lost to this process \(CUDA") as caught:
            assert select.choose(spec) == "aten"
        assert len(caught) == 1
        assert not recorded(found)
    trust.reload()
    select.forget()
    assert select.choose(spec) == found[0]


def test_no_memory_for_a_check_says_nothing_of_the_kernel(monkeypatch):
    spec, found = wanted(monkeypatch)
    with monkeypatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("error")

        def exhausted(*args):
            raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB")

        patch.setattr(selftest, "launch", exhausted)
        assert select.choose(spec) == "aten"
        assert not recorded(found)
        (outcome, *_) = selftest.run(CPU, found[0])
        assert not outcome.passed and not recorded(found)
    select.forget()
    assert select.choose(spec) == found[0]
