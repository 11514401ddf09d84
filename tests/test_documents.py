"""The documents say what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bench import readme
from fastconv import catalogue

ROOT = Path(__file__).resolve().parent.parent


def test_tables_match_the_registry():
    assert catalogue.stale_documents(ROOT) == [], "run `make docs`"


def test_a_stale_table_is_seen(tmp_path):
    for path, names in catalogue.DOCUMENTS.items():
        text = catalogue.fill((ROOT / path).read_text(), names[-1], "| made up |")
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text)
    assert catalogue.main(["--check", "--root", str(tmp_path)]) == 1
    assert catalogue.main(["--write", "--root", str(tmp_path)]) == 0
    assert catalogue.main(["--check", "--root", str(tmp_path)]) == 0


def test_missing_markers_are_refused():
    with pytest.raises(ValueError, match="no markers"):
        catalogue.fill("# A document", "operations", "table")


def test_every_device_kernel_is_in_the_catalogue():
    text = (ROOT / "kernels" / "README.md").read_text()
    sources = [*(ROOT / "kernels" / "cuda").rglob("*.cuh")]
    assert sources
    for source in sources:
        for kernel in re.findall(r"__global__[^{;]*?(\w+_kernel)\(", source.read_text()):
            assert f"`{kernel}`" in text, f"{kernel} of {source.name} is not in kernels/README.md"
    scripts = [*(ROOT / "kernels" / "triton_src").glob("*.py")]
    rows = {
        f"| `{kernel}` | `triton_src/{script.name}` |"
        for script in scripts
        for kernel in re.findall(r"^def (\w+_kernel)\(", script.read_text(), re.MULTILINE)
    }
    assert rows and not [row for row in rows if row not in text]


def test_measured_tables_are_those_of_the_result_files():
    text = readme.README.read_text()
    assert list(readme.RESULTS.glob("*/*.json"))
    assert catalogue.fill(text, "measured", readme.measured()) == text, "python -m bench readme"


def test_example_in_the_readme_runs(capsys):
    text = (ROOT / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})
