"""The build: its refusals read well, and wheel, install and editable install work anywhere."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import types
import venv
from pathlib import Path

import pytest
import torch

import fastconv

ROOT = Path(__file__).resolve().parent.parent
SETUP = ROOT / "setup.py"


@pytest.fixture
def setup_module(monkeypatch):
    """setup.py as a module: its functions, without running setup()."""
    monkeypatch.setattr("setuptools.setup", lambda **_: None)
    spec = importlib.util.spec_from_file_location("fastconv_setup", SETUP)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fake_torch(version="2.13.0+cpu", cuda=None):
    return types.SimpleNamespace(__version__=version, version=types.SimpleNamespace(cuda=cuda))


def fake_nvcc(tmp_path, release="13.0"):
    path = tmp_path / "nvcc"
    path.write_text(f'#!/bin/sh\necho "Cuda compilation tools, release {release}, V{release}.88"\n')
    path.chmod(0o755)
    return str(path)


def test_missing_torch_names_no_build_isolation(setup_module, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(SystemExit, match="--no-build-isolation"):
        setup_module.require_torch()


def test_old_torch_is_refused(setup_module, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", fake_torch("2.10.1"))
    with pytest.raises(SystemExit, match=r"2\.10\.1 is too old.*2\.11"):
        setup_module.require_torch()


def test_missing_compiler_is_named(setup_module, monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(SystemExit, match=r"no C\+\+ compiler: 'no-such-compiler' was not found"):
        setup_module.Compilation(torch, tmp_path)


def test_cuda_switch_values(setup_module, monkeypatch):
    monkeypatch.setenv("FASTCONV_CUDA", "yes")
    with pytest.raises(SystemExit, match="must be auto, 0 or 1, got 'yes'"):
        setup_module.cuda_requested(fake_torch())


def test_cuda_required_without_nvcc(setup_module, monkeypatch):
    monkeypatch.setenv("FASTCONV_CUDA", "1")
    monkeypatch.setattr(setup_module, "find_nvcc", lambda: None)
    with pytest.raises(SystemExit, match=r"nvcc was not found\. Install the CUDA toolkit"):
        setup_module.cuda_requested(fake_torch())


@pytest.mark.parametrize(
    ("switch", "torch_cuda", "expected"),
    [("auto", None, False), ("auto", "13.0", True), ("0", "13.0", False), ("1", None, True)],
)
def test_cuda_switch_decides(setup_module, monkeypatch, tmp_path, switch, torch_cuda, expected):
    nvcc = fake_nvcc(tmp_path)
    monkeypatch.setenv("FASTCONV_CUDA", switch)
    monkeypatch.setattr(setup_module, "find_nvcc", lambda: nvcc)
    found = setup_module.cuda_requested(fake_torch(cuda=torch_cuda))
    assert found == ((nvcc, "13.0") if expected else (None, ""))


def test_cuda_major_mismatch_is_refused(setup_module, monkeypatch, tmp_path):
    monkeypatch.setenv("FASTCONV_CUDA", "1")
    monkeypatch.setattr(setup_module, "find_nvcc", lambda: fake_nvcc(tmp_path, "12.8"))
    with pytest.raises(SystemExit, match=r"nvcc is CUDA 12\.8.*CUDA 13\.0.*must agree"):
        setup_module.cuda_requested(fake_torch("2.13.0+cu130", "13.0"))


def test_architecture_list(setup_module, monkeypatch):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.6 9.0a+PTX")
    flags, names = setup_module.gencode_flags()
    assert names == ["sm_86", "sm_90a", "compute_90a"]
    assert flags[-1] == "-gencode=arch=compute_90a,code=compute_90a"
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "Hopper")
    with pytest.raises(SystemExit, match="cannot read 'Hopper'"):
        setup_module.gencode_flags()


def test_max_jobs(setup_module, monkeypatch):
    monkeypatch.setenv("MAX_JOBS", "3")
    assert setup_module.default_jobs() == 3
    monkeypatch.delenv("MAX_JOBS")
    assert 1 <= setup_module.default_jobs() <= (os.cpu_count() or 1)


def test_library_is_free_of_python_and_loads_without_cuda():
    library = ROOT / "fastconv" / "libfastconv_ops.so"
    needed = subprocess.run(["ldd", library], capture_output=True, text=True).stdout
    assert "libtorch_cpu" in needed
    assert "python" not in needed.lower()
    assert "libcuda" not in needed
    if fastconv._C.build_cuda:  # its kernels are in there all the same
        assert torch.library.get_kernel("fastconv::probe", "CUDA") is not None
        with pytest.raises(NotImplementedError, match="probe"):
            torch.ops.fastconv.probe(torch.zeros(1, dtype=torch.int32))


def build_environment():
    """The environment that repeats this tree's build, so that ninja has nothing left to compile."""
    return {
        **os.environ,
        "FASTCONV_CUDA": "1" if fastconv._C.build_cuda else "0",
        "FASTCONV_WIDE_ISA": "1" if "wide" in fastconv._C.cpu_isas() else "0",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }


def run(command, cwd, env):
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture
def fresh_venv(tmp_path):
    """A virtual environment that sees this one's packages but has no fastconv of its own."""
    folder = tmp_path / "venv"
    venv.create(folder)
    python = folder / "bin" / "python"
    site = run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], "/", None)
    # In this order: a newer setuptools here must hide an older one of the system's.
    paths = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *sys.path]
    paths = [p for p in dict.fromkeys(paths) if p.endswith("-packages")]
    (Path(site.strip()) / "parent.pth").write_text("\n".join(paths) + "\n")
    return python


# One process for all: importing torch is most of what each takes.
USE = """
import fastconv, json, os, runpy, sys, torch
y = torch.ops.fastconv.conv_fprop(torch.ones(1, 2, 5, 5), torch.ones(3, 2, 3, 3), None,
                                  [1, 1], [0, 0], [1, 1], 1, "direct")
assert y.shape == (1, 3, 3, 3) and bool((y == 18).all())
from fastconv._triton import pool  # its folder is a link in the repository
assert os.path.isfile(os.path.join(os.path.dirname(pool.__file__), "pool_forward.py"))
print(os.path.dirname(fastconv.__file__))
sys.argv = ["info", "--json"]
runpy.run_module("fastconv.info", run_name="__main__")
"""


@pytest.mark.parametrize("how", ["wheel", "install", "editable"])
@pytest.mark.parametrize("where", ["root", "elsewhere"])
def test_install(how, where, fresh_venv, tmp_path):
    """Every way of installing, from the repository and from elsewhere; then used from elsewhere."""
    where_cwd, target = (ROOT, ".") if where == "root" else (tmp_path, str(ROOT))
    env = build_environment()
    env["PATH"] = f"{fresh_venv.parent}:{Path(sys.executable).parent}:{env['PATH']}"
    pip = [sys.executable, "-m", "pip", "--python", fresh_venv]
    common = ["--no-build-isolation", "--no-deps", "-q"]
    if how == "wheel":
        run([*pip, "wheel", target, "-w", tmp_path / "dist", *common], where_cwd, env)
        (wheel,) = (tmp_path / "dist").glob("fastconv-*.whl")
        run([*pip, "install", "--no-deps", "-q", wheel], tmp_path, env)
    elif how == "install":
        run([*pip, "install", target, *common], where_cwd, env)
    else:
        run([*pip, "install", "-e", target, *common], where_cwd, env)
    env.pop("PYTHONPATH", None)
    used, _, printed = run([fresh_venv, "-c", USE], tmp_path, env).partition("\n")
    location = Path(used)
    if how == "editable":
        assert location == ROOT / "fastconv"
    else:
        assert fresh_venv.parent.parent in location.parents
    info = json.loads(printed)
    assert info["fastconv"]["version"] == "0.1.0"
    assert info["backends"]["cpu"]["works"]


def test_source_distribution_holds_the_linked_folder(tmp_path):
    """The archive has the Triton sources as plain files where they are imported from."""
    run([sys.executable, "setup.py", "-q", "sdist", "-d", tmp_path], ROOT, build_environment())
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as files:
        held = {
            name.split("/", 1)[-1] for name in files.getnames() if files.getmember(name).isfile()
        }
    sources = [path.name for path in (ROOT / "kernels" / "triton_src").glob("*.py")]
    assert "pool.py" in sources
    assert held >= {f"fastconv/_triton/{name}" for name in sources}
    assert held >= {f"kernels/triton_src/{name}" for name in sources}


def test_architecture_coverage():
    from fastconv.gpu import covers

    assert covers(["sm_80"], 8, 6)
    assert not covers(["sm_80"], 7, 5)
    assert not covers(["sm_80", "sm_90a", "compute_90a"], 10, 0)  # 90a runs on 9.0 alone
    assert covers(["sm_80", "sm_90a"], 9, 0)
    assert covers(["compute_80"], 12, 0)


def test_import_never_compiles(tmp_path):
    """With no compiler, no nvcc and no ninja in reach, import and info still work."""
    env = {k: v for k, v in os.environ.items() if k not in ("CXX", "CUDA_HOME")}
    env.update(PATH=str(tmp_path), PYTHONPATH=str(ROOT))
    out = run([sys.executable, "-m", "fastconv.info"], tmp_path, env)
    assert "backends" in out


def test_import_brings_in_no_compiler(tmp_path):
    """Everybody who imports the package would wait for them."""
    heavy = "{'triton', 'torch._dynamo', 'torch._inductor', 'matplotlib'}"
    code = f"import torch, sys, fastconv; print({heavy} & set(sys.modules))"
    assert run([sys.executable, "-c", code], tmp_path, {"PYTHONPATH": str(ROOT)}).strip() == "set()"


def test_unloadable_library_says_how_to_rebuild(monkeypatch, tmp_path):
    from fastconv import _library

    broken = tmp_path / "libfastconv_ops.so"
    monkeypatch.setattr(_library, "_OPS", broken)
    with pytest.raises(ImportError, match=r"missing\. Build it with"):
        _library.load()
    broken.write_bytes(b"not a library")
    with pytest.raises(ImportError, match="does not load with torch"):
        _library.load()
