"""`python -m bench model`: estimates against measured times, over the committed results and over
made-up ones of a GPU with planted misjudgements."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from bench import model
from bench.__main__ import main
from bench.gpu_layers import timed_layers
from fastconv import _C

RESULTS = sorted((Path(model.__file__).parent / "results").glob("*/*.json"))
H200 = {"device": "NVIDIA H200", "capability": [9, 0], "sm_count": 132}
SLOWER = 1.25  # than estimated, all alike


def comparable(path: Path) -> dict | None:
    """A result with convolutions, each of several kernels, on a machine that is like this one."""
    found = json.loads(path.read_text())
    if not any(
        r["op"] == "conv2d" and r["direction"] in model.PARTS for r in found.get("rows", [])
    ):
        return None
    if found["machine"]["fastconv_isa"] not in _C.cpu_isas() or found["settings"]["autotune"]:
        return None
    return found


@pytest.mark.parametrize("path", RESULTS, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_committed_results(path: Path) -> None:
    """The models still choose, of what was timed, what was fast."""
    found = comparable(path)
    if found is None:
        pytest.skip("no single convolutions in it, or of another processor")
    of = model.summary(*model.verdicts(found))
    if not of["problems"]:
        pytest.skip("it has times of one kernel each")
    assert of["problems"] >= 50 and of["pairs"] >= of["problems"]
    assert 1 <= of["regret"] < 1.05 and of["worst_regret"] < 2
    assert of["pairs_in_order"] >= 0.9 * of["pairs"]
    for name in ("direct", "im2col"):
        ratios = of["ratios"][name]
        assert ratios["rows"] >= 50 and ratios["p10"] <= ratios["p50"] <= ratios["p90"]


def result() -> dict[str, Any]:
    """Two layers on a GPU: every instance, all of them slower than estimated by the same factor."""
    if not _C.cuda_instances():
        pytest.skip("this build has no CUDA kernels")
    machine = {"threads": 2, "fastconv_isa": _C.cpu_isa(), "gpu": H200}
    rows = []
    for item in timed_layers()[:2]:
        row = {
            "op": "conv2d",
            "net": item.layer.net,
            "layer": item.layer.label,
            "batch": item.batch,
            "direction": "fprop",
            "layout": "channels_last",
            "device": "cuda",
            "dtype": "bfloat16",
            "geometry": item.layer.geometry(item.batch),
            "status": "ok",
            "ours": True,
        }
        known = model.estimates(model.spec_of(row), model.Machine.of(machine))
        ours = {n: s for n, s in known.items() if n.startswith(("tma/", "halo/", "im2col/"))}
        times = {name: {"median": 1e3 * SLOWER * seconds} for name, seconds in ours.items()}
        best = min(ours, key=ours.__getitem__)
        rows += [row | {"contender": name, "ran": name, "ms": ms} for name, ms in times.items()]
        rows.append(row | {"contender": "auto", "ran": best, "ms": dict(times[best])})
        rows.append(row | {"contender": "pytorch", "ran": "pytorch", "ours": False,
                           "ms": {"median": 3 * times[best]["median"]}})  # fmt: skip
    return {"machine": machine, "rows": rows}


def kernels(found: dict, layer: int) -> list[dict]:
    """Rows of instances on one of the layers, by their time."""
    labels = list(dict.fromkeys(row["layer"] for row in found["rows"]))
    own = [r for r in found["rows"] if r["layer"] == labels[layer] and "/" in r["contender"]]
    return sorted(own, key=lambda r: r["ms"]["median"])


def figures(found: dict) -> dict:
    return model.summary(*model.verdicts(found))


def test_a_model_that_is_off_by_one_factor_chooses_right() -> None:
    of = figures(result())
    assert of["problems"] == 2 and of["left_out"] == {}
    assert of["regret"] == pytest.approx(1) and of["worst"] == []
    assert of["pairs"] == of["pairs_in_order"] > 50
    assert of["auto_regret"] == pytest.approx(1)
    for name in ("tma", "halo", "im2col"):
        assert [of["ratios"][name][q] for q in ("p10", "p90")] == pytest.approx([SLOWER] * 2)


def test_a_misjudged_kernel_shows_as_regret() -> None:
    """What is estimated to be the fastest takes three times the second's time."""
    found = result()
    first, second, *_ = kernels(found, 1)
    first["ms"]["median"] = 3 * second["ms"]["median"]
    auto = next(
        r for r in found["rows"] if (r["layer"], r["contender"]) == (first["layer"], "auto")
    )
    auto["ms"]["median"] = first["ms"]["median"]
    of = figures(found)
    assert of["worst_regret"] == pytest.approx(3)
    assert of["regret"] == of["auto_regret"] == pytest.approx(3**0.5)  # of two problems
    assert of["within_a_tenth"] == 1 and of["pairs_in_order"] < of["pairs"]
    (worst,) = of["worst"]
    assert (worst["choice"]["name"], worst["best"]["name"]) == (first["ran"], second["ran"])
    assert first["layer"] in worst["problem"]


def test_auto_is_held_to_pytorch_too() -> None:
    found = result()
    for row in found["rows"]:
        if row["contender"] == "pytorch":
            row["ms"]["median"] /= 6
    of = figures(found)
    assert of["regret"] == pytest.approx(1) and of["auto_regret"] == pytest.approx(2)


def test_order_is_asked_of_times_that_differ() -> None:
    """Swapping the slowest with the fastest puts both out of order with all between; times within
    a tenth of each other have no order."""
    found = result()
    found["rows"] = [row for row in found["rows"] if row["contender"] != "auto"]
    ordered = kernels(found, 0)
    ordered[0]["ms"], ordered[-1]["ms"] = ordered[-1]["ms"], ordered[0]["ms"]
    of, before = figures(found), figures(result())
    assert of["pairs"] == before["pairs"]
    assert before["pairs_in_order"] - of["pairs_in_order"] > len(ordered) // 2
    level = result()
    for row in level["rows"]:
        row["ms"]["median"] = 1.0
    assert figures(level)["pairs"] == 0


def test_a_choice_without_a_time_is_said() -> None:
    found = result()
    first = kernels(found, 0)[0]
    found["rows"] = [
        r for r in found["rows"] if (r["layer"], r["ran"]) != (first["layer"], first["ran"])
    ]
    of = figures(found)
    assert of["unmeasured_choices"] == figures(result())["unmeasured_choices"] + 1
    assert "has no time" in "\n".join(model.markdown(of))


def test_what_is_left_out_is_counted() -> None:
    found = result()
    labels = list(dict.fromkeys(row["layer"] for row in found["rows"]))
    for row in found["rows"]:
        if row["layer"] == labels[0]:
            row |= {"geometry": None, "net": "nobody's"}
    for row in kernels(found, 1)[1:]:
        row["status"] = "wrong"
    of = figures(found)
    assert of["problems"] == 0
    assert sorted(of["left_out"].values()) == [1, 1]
    assert any("nobody's" in why for why in of["left_out"])
    assert "No problem" in model.markdown(of)[0]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    good, bad, far = (tmp_path / f"{name}.json" for name in ("good", "bad", "far"))
    good.write_text(json.dumps(result()))
    out = tmp_path / "model.json"
    assert main(["model", str(good), "--json", str(out)]) == 0
    assert "2 problems" in capsys.readouterr().out
    assert json.loads(out.read_text())["problems"] == 2
    bad.write_text("{}")
    assert main(["model", str(bad)]) == 2
    elsewhere = copy.deepcopy(result())
    elsewhere["machine"]["fastconv_isa"] = "vax"
    far.write_text(json.dumps(elsewhere))
    assert main(["model", str(far)]) == 2
    assert "vax" in capsys.readouterr().err
    good.write_text(json.dumps(result() | {"rows": []}))
    assert main(["model", str(good)]) == 1
