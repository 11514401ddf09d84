"""The Winograd transforms: the committed header is what the generator writes, and its code itself,
run on exact polynomials, is a convolution."""

import importlib.util
import re
import subprocess
import sys
from fractions import Fraction
from itertools import product
from pathlib import Path

import pytest

COMMON = Path(__file__).resolve().parent.parent / "csrc" / "common"
GENERATOR = COMMON / "winograd_codegen.py"
HEADER = COMMON / "winograd_transforms.h"


class Linear:
    """An exact linear form over symbols; supports just what straight-line transforms use."""

    def __init__(self, terms):
        self.terms = {k: v for k, v in terms.items() if v != 0}

    def __add__(self, other):
        keys = self.terms.keys() | other.terms.keys()
        return Linear({k: self.terms.get(k, 0) + other.terms.get(k, 0) for k in keys})

    def __neg__(self):
        return Linear({k: -v for k, v in self.terms.items()})

    def __sub__(self, other):
        return self + (-other)

    def __rmul__(self, scalar):
        assert isinstance(scalar, Fraction)
        return Linear({k: scalar * v for k, v in self.terms.items()})


def emitted_functions():
    """(struct, function) -> (inputs, outputs, body as code), parsed from the committed header."""
    functions = {}
    for struct, text in re.findall(r"struct (\w+) \{(.*?)\n\};", HEADER.read_text(), re.S):
        pattern = r"static void (\w+)\(const V \(&x\)\[(\d+)\], V \(&y\)\[(\d+)\]\) \{(.*?)\n  \}"
        for name, cols, rows, body in re.findall(pattern, text, re.S):
            code = "\n".join(line.strip().rstrip(";") for line in body.strip().splitlines())
            code = code.replace("const V ", "")
            functions[struct, name] = int(cols), int(rows), compile(code, name, "exec")
    return functions


FUNCTIONS = emitted_functions()


def transform(struct, name, x):
    cols, rows, code = FUNCTIONS[struct, name]
    assert len(x) == cols
    y = [None] * rows
    exec(code, {"S": Fraction, "x": x, "y": y})
    assert all(v is not None for v in y)
    return y


def matrix(struct, name):
    """The matrix of the emitted code: exact, and linear by construction of Linear."""
    cols, rows, _ = FUNCTIONS[struct, name]
    y = transform(struct, name, [Linear({j: Fraction(1)}) for j in range(cols)])
    return [[y[i].terms.get(j, Fraction(0)) for j in range(cols)] for i in range(rows)]


def bilinear(struct, filter_name, output_name):
    """Coefficients of y_p in x_i g_j, from the emitted code."""
    a, g, b = (matrix(struct, name) for name in (output_name, filter_name, "input"))
    tile = range(len(b))
    return {
        (p, i, j): sum(a[p][e] * g[e][j] * b[e][i] for e in tile)
        for p, i, j in product(range(len(a)), tile, range(len(g[0])))
    }


ALGORITHMS = [
    pytest.param("WinogradF2x2_3x3", "filter", "output", 2, 3, id="F(2,3)"),
    pytest.param("WinogradF2x2_3x3", "wgrad_filter", "wgrad_output", 3, 2, id="F(3,2)"),
    pytest.param("WinogradF4x4_3x3", "filter", "output", 4, 3, id="F(4,3)"),
    pytest.param("WinogradF4x4_3x3", "wgrad_filter", "wgrad_output", 3, 4, id="F(3,4)"),
]


def load_generator():
    spec = importlib.util.spec_from_file_location(GENERATOR.stem, GENERATOR)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_header_is_what_the_generator_writes():
    assert HEADER.read_bytes().decode() == load_generator().generate()
    check = subprocess.run([sys.executable, str(GENERATOR), "--check"], capture_output=True)
    assert check.returncode == 0


@pytest.mark.parametrize(("struct", "filter_name", "output_name", "m", "r"), ALGORITHMS)
def test_emitted_code_is_the_correlation(struct, filter_name, output_name, m, r):
    found = bilinear(struct, filter_name, output_name)
    assert found.keys() == set(product(range(m), range(m + r - 1), range(r)))
    for (p, i, j), coefficient in found.items():
        assert coefficient == (i == p + j), (p, i, j, coefficient)


@pytest.mark.parametrize(("struct", "filter_name", "output_name", "m", "r"), ALGORITHMS)
def test_emitted_code_nests_to_two_dimensions(struct, filter_name, output_name, m, r):
    """The identity on integers, rows then columns, as the kernels nest it."""
    n = m + r - 1
    x = [[Fraction(7 * i * i + 3 * j + i * j) for j in range(n)] for i in range(n)]
    g = [[Fraction(5 * i - 2 * j * j + 1) for j in range(r)] for i in range(r)]

    def nested(name, values):
        columns = [transform(struct, name, list(c)) for c in zip(*values, strict=True)]
        return [transform(struct, name, list(c)) for c in zip(*columns, strict=True)]

    u, v = nested(filter_name, g), nested("input", x)
    y = nested(output_name, [[u[i][j] * v[i][j] for j in range(n)] for i in range(n)])
    taps = list(product(range(r), repeat=2))
    assert y == [
        [sum(x[p + a][q + b] * g[a][b] for a, b in taps) for q in range(m)] for p in range(m)
    ]


@pytest.mark.parametrize("struct", ["WinogradF2x2_3x3", "WinogradF4x4_3x3"])
def test_constants_have_short_exact_input_and_output_transforms(struct):
    """The point set is exact in binary, so that only the filter transform rounds its constants."""
    for name in ("input", "output", "wgrad_output"):
        for row in matrix(struct, name):
            assert all(c.denominator & (c.denominator - 1) == 0 for c in row), (name, row)


def test_generator_refuses_repeated_points():
    with pytest.raises(ValueError, match="distinct points"):
        load_generator().cook_toom(2, 3, [Fraction(0), Fraction(1), Fraction(1)])
