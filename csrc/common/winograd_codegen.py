"""Writes winograd_transforms.h: the Cook-Toom matrices of F(m, r), in exact fractions.

For n = m + r - 1 and n - 1 points a_i plus infinity, the m outputs of an r-tap correlation are
y = A^T [(G g) * (B^T d)] with (Winograd 1980; Lavin and Gray 2015, arXiv:1509.09308)

    A^T[k][i] = a_i^k,   G[i][k] = a_i^k / M_i(a_i),   B^T[i] = coefficients of M_i(x),

M_i(x) = prod_{j != i} (x - a_j); the row of infinity has M(x) = prod_j (x - a_j), and the last unit
vector in G and in A. B^T depends on the points alone, so F(m, r) and F(r, m) share it: the first
serves fprop and dgrad, the second wgrad, where the tile of dy is the filter.

The tile of six uses the points 0, +-3/4, +-3/2, infinity: exact in binary, as many operations as
the usual 0, +-1, +-2, infinity because pairs +-a share an even and an odd part, and 2 to 3 times
smaller rounding errors (M_i and a_i^k are better balanced).

Run `python csrc/common/winograd_codegen.py` to rewrite the header (`--check` compares instead).
"""

import argparse
import sys
from fractions import Fraction
from pathlib import Path

HEADER = Path(__file__).with_name("winograd_transforms.h")
Matrix = list[list[Fraction]]
# (name, outputs m, taps r, finite points); F(r, m) comes along for wgrad.
TILES = [
    ("WinogradF2x2_3x3", 2, 3, [Fraction(p) for p in (0, 1, -1)]),
    ("WinogradF4x4_3x3", 4, 3, [Fraction(p, 4) for p in (0, 3, -3, 6, -6)]),
]


def _polynomial(roots: list[Fraction]) -> list[Fraction]:
    """Coefficients of prod (x - root), lowest power first."""
    coefficients = [Fraction(1)]
    for root in roots:
        shifted = [Fraction(0), *coefficients]
        coefficients = [
            s - root * c for s, c in zip(shifted, [*coefficients, Fraction(0)], strict=True)
        ]
    return coefficients


def cook_toom(m: int, r: int, points: list[Fraction]) -> tuple[Matrix, Matrix, Matrix]:
    """A^T [m, n], G [n, r] and B^T [n, n] of F(m, r) for n - 1 = m + r - 2 distinct points."""
    n = m + r - 1
    if len(set(points)) != n - 1:
        raise ValueError(f"F({m}, {r}) needs {n - 1} distinct points, got {points}")
    g, bt = [], []
    for i, a in enumerate(points):
        others = points[:i] + points[i + 1 :]
        scale = Fraction(1)
        for b in others:
            scale *= a - b
        # The point 0 has one tap, which then needs no negation.
        sign = -1 if a == 0 and scale < 0 else 1
        g.append([sign * a**k / scale for k in range(r)])
        bt.append([sign * c for c in [*_polynomial(others), Fraction(0)]])
    g.append([Fraction(int(k == r - 1)) for k in range(r)])
    bt.append(_polynomial(points))
    at = [[a**k for a in points] + [Fraction(int(k == m - 1))] for k in range(m)]
    return at, g, bt


def _constant(value: Fraction) -> str:
    numerator, denominator = value.as_integer_ratio()
    return f"S({numerator})" if denominator == 1 else f"S({numerator}) / S({denominator})"


def _combination(terms: list[tuple[Fraction, str]]) -> str:
    """c0 * x0 + c1 * x1 ..., units first, so that the rest contract to multiply-adds."""
    terms = sorted((t for t in terms if t[0] != 0), key=lambda t: (abs(t[0]) != 1, t[0] < 0))
    text = ""
    for c, name in terms:
        product = name if abs(c) == 1 else f"({_constant(abs(c))}) * {name}"
        if not text:
            text = product if c > 0 else f"-{product}"
        else:
            text += f" {'+' if c > 0 else '-'} {product}"
    return text


def straight_line(matrix: Matrix) -> list[str]:
    """C++ statements for y = matrix x, on arrays x and y of V with scalars S.

    Shared: x_i + x_j and x_i - x_j where columns i and j agree up to signs (A^T), and the even and
    odd parts of rows that agree up to signs (G, B^T). Both pairs come from points +a and -a.
    """
    lines = []
    columns = {f"x[{j}]": [row[j] for row in matrix] for j in range(len(matrix[0]))}
    names = list(columns)
    for a in range(len(names)):
        for b in range(a + 1, len(names)):
            u, v = columns.get(names[a]), columns.get(names[b])
            if u is None or v is None or u == v or sum(c != 0 for c in u) < 2:
                continue
            if all(p in (q, -q) for p, q in zip(u, v, strict=True)):
                tag = len(lines) // 2
                lines.append(f"const V s{tag} = {names[a]} + {names[b]};")
                lines.append(f"const V d{tag} = {names[a]} - {names[b]};")
                zero = Fraction(0)
                columns[f"s{tag}"] = [p if p == q else zero for p, q in zip(u, v, strict=True)]
                columns[f"d{tag}"] = [p if p != q else zero for p, q in zip(u, v, strict=True)]
                del columns[names[a]], columns[names[b]]
    rows = [[(c[i], name) for name, c in columns.items()] for i in range(len(matrix))]
    done = set()
    for i in range(len(rows)):
        for j in range(i + 1, len(rows)):
            p, q = rows[i], rows[j]
            even = [t for t, s in zip(p, q, strict=True) if t[0] == s[0] != 0]
            odd = [t for t, s in zip(p, q, strict=True) if t[0] == -s[0] != 0]
            support = sum(t[0] != 0 or s[0] != 0 for t, s in zip(p, q, strict=True))
            if {i, j} & done or not even or not odd or len(even) + len(odd) != support:
                continue
            done |= {i, j}
            # The odd part with a unit coefficient, so that its factor joins the final multiply-add.
            factor = next((t[0] for t in reversed(odd)), Fraction(1))
            lines.append(f"const V e{i} = {_combination(even)};")
            lines.append(f"const V o{i} = {_combination([(c / factor, n) for c, n in odd])};")
            for row, sign in ((i, 1), (j, -1)):
                both = [(Fraction(1), f"e{i}"), (sign * factor, f"o{i}")]
                lines.append(f"y[{row}] = {_combination(both)};")
    for i, row in enumerate(rows):
        if i not in done:
            lines.append(f"y[{i}] = {_combination(row)};")
    return lines


def _function(name: str, comment: str, matrix: Matrix) -> list[str]:
    rows, cols = len(matrix), len(matrix[0])
    body = [f"    {line}" for line in straight_line(matrix)]
    return [
        f"  // {comment}",
        "  template <class S, class V>",
        f"  FC_HOST_DEVICE static void {name}(const V (&x)[{cols}], V (&y)[{rows}]) {{",
        *body,
        "  }",
    ]


def _tile(name: str, m: int, r: int, points: list[Fraction]) -> list[str]:
    at, g, bt = cook_toom(m, r, points)
    wgrad_at, wgrad_g, wgrad_bt = cook_toom(r, m, points)
    assert bt == wgrad_bt
    listed = ", ".join(str(p) for p in points)
    return [
        f"// F({m}, {r}) and F({r}, {m}), points {listed}, infinity.",
        f"struct {name} {{",
        f"  static constexpr int kOut = {m};",
        f"  static constexpr int kTaps = {r};",
        f"  static constexpr int kTile = {m + r - 1};",
        *_function("input", "B^T, of both", bt),
        *_function("filter", f"G of F({m}, {r})", g),
        *_function("output", f"A^T of F({m}, {r})", at),
        *_function("wgrad_filter", f"G of F({r}, {m}): the tile of dy", wgrad_g),
        *_function("wgrad_output", f"A^T of F({r}, {m})", wgrad_at),
        "};",
        "",
    ]


def generate() -> str:
    """The text of winograd_transforms.h."""
    lines = [
        "// Written by winograd_codegen.py, which documents the mathematics; do not edit.",
        "// One-dimensional transforms y = matrix x as straight-line code. V is a value or vector",
        "// type, S its scalar; constants are exact quotients, folded by the compiler.",
        "#pragma once",
        '#include "conv_problem.h"',
        "",
        "namespace fastconv {",
        "",
    ]
    for tile in TILES:
        lines += _tile(*tile)
    return "\n".join([*lines, "}  // namespace fastconv", ""])


def main() -> int:
    """Writes the header, or with --check says whether the committed one is current."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    if parser.parse_args().check:
        current = HEADER.read_text() == generate()
        print(f"{HEADER.name}: {'up to date' if current else 'differs from the generator'}")
        return 0 if current else 1
    HEADER.write_text(generate())
    return 0


if __name__ == "__main__":
    sys.exit(main())
