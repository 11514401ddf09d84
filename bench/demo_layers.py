"""The demo's second half: every algorithm on a dozen layers of real networks, against PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from rich.table import Table

from bench import providers
from bench.conv_problem import problems_of
from bench.measure import measure
from bench.problems import ConvLayer
from bench.providers import PYTORCH
from bench.report import milliseconds
from fastconv import select

U = 2.0**-24  # unit roundoff of fp32, the demo's dtype


def _layer(
    net: str,
    C: int,
    spatial: tuple[int, ...],
    K: int,
    kernel: tuple[int, ...],
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    groups: int = 1,
) -> ConvLayer:
    rank = len(spatial)
    return ConvLayer(
        net,
        C,
        spatial,
        K,
        kernel,
        (stride,) * rank,
        (padding,) * rank,
        (dilation,) * rank,
        groups,
    )


LAYERS = (
    _layer("ResNet-50 stem", 3, (224, 224), 64, (7, 7), stride=2, padding=3),
    _layer("ResNet-50", 64, (56, 56), 64, (3, 3), padding=1),
    _layer("ResNet-50", 128, (28, 28), 128, (3, 3), padding=1),
    _layer("ResNet-50", 256, (14, 14), 256, (3, 3), padding=1),
    _layer("VGG-16", 512, (14, 14), 512, (3, 3), padding=1),
    _layer("ResNet-50", 256, (56, 56), 64, (1, 1)),
    _layer("ResNet-50", 512, (28, 28), 1024, (1, 1), stride=2),
    _layer("GoogLeNet 3a", 16, (28, 28), 32, (5, 5), padding=2),
    _layer("MobileNetV2", 144, (56, 56), 144, (3, 3), padding=1, groups=144),
    _layer("ResNeXt-50", 128, (56, 56), 128, (3, 3), padding=1, groups=32),
    _layer("DeepLab", 256, (28, 28), 256, (3, 3), padding=2, dilation=2),
    _layer("wav2vec 2.0", 512, (799,), 512, (3,), stride=2),
    _layer("C3D conv5a", 512, (2, 7, 7), 512, (3, 3, 3), padding=1),
)
QUICK_LAYERS = (LAYERS[0], LAYERS[3], LAYERS[7], LAYERS[8], LAYERS[11])


@dataclass
class Comparison:
    """One layer: the rows of every direction, by contender."""

    layer: ConvLayer
    rows: dict[str, dict[str, dict]] = field(default_factory=dict)  # contender -> direction -> row

    @property
    def title(self) -> str:
        return f"{self.layer.net}  {self.layer.label}"

    def error(self, contender: str) -> float | None:
        """The largest |error| / sum|x||w| over the directions that ran; None if none did."""
        errors = [row["error"] for row in self.rows[contender].values() if "error" in row]
        return max(errors) * U if errors else None

    @property
    def wrong(self) -> list[str]:
        return [
            f"{self.title}: {contender} {direction}: {_why(row)}"
            for contender, directions in self.rows.items()
            for direction, row in directions.items()
            if row["status"] in ("wrong", "error")
        ]


def _why(row: dict) -> str:
    return row.get("reason") or f"error {row['error']:.1f}, limit {row['tolerance']:.0f}"


def contenders(device: str = "cpu") -> tuple[str, ...]:
    """'auto' and every algorithm of our own for a device, under its own name."""
    aliases = ("aten", "winograd")
    return ("auto", *(name for name in select.names(device) if name not in aliases))


def compare(
    layers: Sequence[ConvLayer],
    directions: Sequence[str],
    device: str = "cpu",
    seconds: float = 0.06,
    batch: int = 1,
    on_problem: Callable[[str], None] = lambda title: None,
) -> Iterator[Comparison]:
    """Checks and times every contender on every layer; yields layer by layer."""
    names = (PYTORCH, *contenders(device))
    runners = [providers.provider(name, device) for name in names]
    for layer in layers:
        comparison = Comparison(layer, {name: {} for name in names})
        problems = problems_of(layer, batch, directions, ("nchw",), torch.float32, device)
        for problem in problems:
            on_problem(f"{comparison.title} {problem.direction}")
            for row in measure(problem, runners, seconds, goals=()):
                comparison.rows[row["contender"]][problem.direction] = row
        yield comparison


def table(comparisons: Sequence[Comparison], directions: Sequence[str]) -> Table:
    """Per layer and algorithm: error, and per direction the time and the ratio to PyTorch."""
    out = Table(title="Every algorithm against PyTorch, fp32, batch 1")
    out.add_column("layer")
    out.add_column("algorithm", no_wrap=True)
    out.add_column("error", justify="right", no_wrap=True)
    for direction in directions:
        out.add_column(f"{direction}\nms", justify="right", no_wrap=True)
        out.add_column("\nratio", justify="right", no_wrap=True)
    for comparison in comparisons:
        first = True
        for contender, by_direction in comparison.rows.items():
            if all(row["status"] == "not applicable" for row in by_direction.values()):
                continue
            error = comparison.error(contender)
            cells = ["" if error is None else f"{error:.1e}"]
            for direction in directions:
                cells += _cells(by_direction[direction])
            name = _name(contender, by_direction)
            out.add_row(comparison.title if first else "", name, *cells)
            first = False
        out.add_section()
    out.caption = (
        "error: max |y - y64| / sum|x||w|, worst direction. "
        "ratio: PyTorch's time / ours, above 1 is quicker."
    )
    return out


def _name(contender: str, rows: dict[str, dict]) -> str:
    """'auto' says what it chose."""
    if contender != "auto":
        return contender
    chosen = dict.fromkeys(row["ran"] for row in rows.values())
    return f"auto: {', '.join(map(_short, chosen))}"


def _short(name: str) -> str:
    return name.removesuffix("_3x3")


def _cells(row: dict) -> list[str]:
    if row["status"] == "ok":
        ratio = "" if row["contender"] == PYTORCH else f"{row['ratio']:.2f}"
        return [milliseconds(row["ms"]["median"]), ratio]
    return ["[red]WRONG[/red]" if row["status"] in ("wrong", "error") else "-", ""]
