"""Line charts as SVG, drawn by hand: no script, no font, no colour but the page's own. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 720, 240
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 12, 34
"""Room around the lines, for the axes."""
MOST_POINTS = 600

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Line:
    """One line; `css` is its class on the page."""

    name: str
    css: str
    points: Points


@dataclass(frozen=True)
class Shade:
    """A part of the x axis with a background; `label` is shown where a pointer rests on it."""

    start: float
    end: float
    css: str
    label: str


@dataclass(frozen=True)
class Chart:
    """A chart; `level` is a dashed line with its name."""

    title: str
    x: str
    y: str
    lines: Sequence[Line]
    shades: Sequence[Shade] = ()
    level: tuple[float, str] | None = None

    def svg(self) -> str:
        """The drawing; empty if there is nothing to draw."""
        points = [point for line in self.lines for point in line.points]
        if len(points) < 2:
            return ""
        xs = [x for x, _ in points] + [edge for shade in self.shades for edge in (shade.start, shade.end)]
        ys = [y for _, y in points] + ([self.level[0]] if self.level else [])
        axes = Axes((min(xs), max(xs)), (min(0.0, *ys), max(ys) * 1.05 or 1.0))
        parts = []
        for shade in self.shades:
            left = axes.x(shade.start)
            width, height = max(1.0, axes.x(shade.end) - left), HEIGHT - TOP - BOTTOM
            parts.append(
                f'<rect class="{shade.css}" x="{left:.1f}" y="{TOP}" width="{width:.1f}" height="{height}">'
                f"<title>{escape(shade.label)}</title></rect>"
            )
        parts.append(axes.grid(self.x, self.y))
        for line in self.lines:
            places = " ".join(f"{axes.x(x):.1f},{axes.y(y):.1f}" for x, y in thin(line.points))
            parts.append(
                f'<polyline class="{line.css}" points="{places}"><title>{escape(line.name)}</title></polyline>'
            )
        parts += [axes.level(*self.level)] if self.level else []
        name = escape(self.title)
        return (
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{name}"><title>{name}</title>'
            f"{''.join(parts)}</svg>"
        )


@dataclass(frozen=True)
class Axes:
    """From values to places."""

    xs: tuple[float, float]
    ys: tuple[float, float]

    def x(self, value: float) -> float:
        """From the left."""
        low, high = self.xs
        return LEFT + (value - low) / ((high - low) or 1) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        """From the top."""
        low, high = self.ys
        return HEIGHT - BOTTOM - (value - low) / ((high - low) or 1) * (HEIGHT - TOP - BOTTOM)

    def grid(self, x: str, y: str) -> str:
        """Lines and numbers at round values, and what the axes are."""
        parts = []
        for value in ticks(*self.ys):
            at = self.y(value)
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
            parts.append(f'<text class="tick" x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{value:g}</text>')
        for value in ticks(*self.xs):
            at = self.x(value)
            parts.append(f'<text class="tick" x="{at:.1f}" y="{HEIGHT - 16}" text-anchor="middle">{value:g}</text>')
        parts.append(f'<text class="tick" x="{WIDTH - RIGHT}" y="{HEIGHT - 3}" text-anchor="end">{escape(x)}</text>')
        parts.append(f'<text class="tick" x="{LEFT + 4}" y="{TOP + 10}">{escape(y)}</text>')
        return "".join(parts)

    def level(self, value: float, name: str) -> str:
        """A dashed line across."""
        at = self.y(value)
        return (
            f'<line class="level" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
            f'<text class="tick" x="{WIDTH - RIGHT}" y="{at - 4:.1f}" text-anchor="end">{escape(name)}</text>'
        )


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round values between two."""
    if high <= low:
        return [low]
    rough = (high - low) / about
    scale = 10 ** math.floor(math.log10(rough))
    step = next(factor * scale for factor in (1, 2, 5, 10) if factor * scale >= rough)
    first = math.ceil(low / step - 1e-9)
    return [round(number * step, 10) for number in range(first, math.floor(high / step + 1e-9) + 1)]


def thin(points: Points) -> list[tuple[float, float]]:
    """At most MOST_POINTS of them, means of equal parts."""
    if len(points) <= MOST_POINTS:
        return list(points)
    parts = [
        points[len(points) * part // MOST_POINTS : len(points) * (part + 1) // MOST_POINTS]
        for part in range(MOST_POINTS)
    ]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]
