# SPDX-License-Identifier: MIT
"""Figures, their bounds, and their results."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from bench_lib.processes import BenchError


@dataclass(frozen=True, slots=True)
class Sample:
    """The figure of one round; without a reference, its score is barfs' own figure."""

    barfs: float
    reference: float | None = None

    @property
    def score(self) -> float:
        return self.barfs if self.reference is None else self.barfs / self.reference


@dataclass(frozen=True, slots=True)
class Figure:
    """A row of the table. `must` bounds the median score: from above, or from below."""

    title: str
    unit: str
    must: float | None = None
    more_is_better: bool = False


@dataclass(frozen=True, slots=True)
class Result:
    """A figure's samples; `values` are medians, `ratio` the median of the rounds' ratios."""

    figure: Figure
    samples: Sequence[Sample]

    @property
    def barfs(self) -> float:
        return statistics.median(sample.barfs for sample in self.samples)

    @property
    def reference(self) -> float | None:
        values = [sample.reference for sample in self.samples if sample.reference is not None]
        return statistics.median(values) if values else None

    @property
    def scores(self) -> list[float]:
        return [sample.score for sample in self.samples]

    @property
    def is_met(self) -> bool:
        """Whether the figure meets its bound."""
        if self.figure.must is None:
            return True
        score = statistics.median(self.scores)
        return (
            score >= self.figure.must if self.figure.more_is_better else score <= self.figure.must
        )

    def row(self) -> list[str]:
        """title, unit, barfs, reference, median, lowest to highest, must, verdict"""
        must, verdict = "", ""
        if self.figure.must is not None:
            must = f"{'>=' if self.figure.more_is_better else '<='} {self.figure.must:g}"
            verdict = "ok" if self.is_met else "MISS"
        head = [self.figure.title, self.figure.unit, _short(self.barfs)]
        if self.reference is None:
            spread = f"{_short(min(self.scores))}..{_short(max(self.scores))}"
            return [*head, "", "", spread, must, verdict]
        spread = f"{min(self.scores):.2f}..{max(self.scores):.2f}"
        median = f"{statistics.median(self.scores):.2f}"
        return [*head, _short(self.reference), median, spread, must, verdict]

    def to_json(self) -> dict[str, object]:
        return {
            **asdict(self.figure),
            "barfs": self.barfs,
            "reference": self.reference,
            "score": statistics.median(self.scores),
            "lowest": min(self.scores),
            "highest": max(self.scores),
            "ok": self.is_met,
            "samples": [asdict(sample) for sample in self.samples],
        }


def _short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}"


HEAD = ["figure", "unit", "barfs", "C", "ratio", "min..max", "must", ""]


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows in columns; the first column is aligned left, the others right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        first, *others = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        first = row[0].ljust(widths[0])
        lines.append("  ".join([first, *others]).rstrip())
    return "\n".join(lines)


def collect(rounds: Sequence[Mapping[str, Sample]], figures: Mapping[str, Figure]) -> list[Result]:
    """The results in the order of `figures`, without those that no round measured."""
    unknown = {name for each in rounds for name in each} - figures.keys()
    if unknown:
        raise BenchError(f"no figure is called {', '.join(sorted(unknown))}")
    return [
        Result(figure, samples)
        for name, figure in figures.items()
        if (samples := [each[name] for each in rounds if name in each])
    ]
