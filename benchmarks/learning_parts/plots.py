"""Curves as an SVG file, without a plotting library."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

__all__ = ["curves"]

Points = Sequence[tuple[float, float]]

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM, _RIGHT = 640, 400, 64, 36, 52, 150


def curves(title: str, x_name: str, y_name: str, lines: Mapping[str, Points]) -> str:
    """One line a name, with a mark at each point, on axes that begin at 0 (or below, where a value is)."""
    points = [point for line in lines.values() for point in line]
    xs, ys = ([point[axis] for point in points] or [1.0] for axis in (0, 1))
    across = _Axis(min(0.0, *xs), max(xs), _LEFT, _WIDTH - _RIGHT)
    up = _Axis(min(0.0, *ys), max(ys), _HEIGHT - _BOTTOM, _TOP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif"'
        f' font-size="12">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        _text(_LEFT, 20, title, size=14),
        _text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 12, x_name, anchor="middle"),
        f'<g transform="rotate(-90 16 {_HEIGHT / 2})">{_text(16, _HEIGHT / 2, y_name, anchor="middle")}</g>',
    ]
    for tick in across.ticks():
        x = across.at(tick)
        parts.append(_line(x, _TOP, x, _HEIGHT - _BOTTOM, "#ddd"))
        parts.append(_text(x, _HEIGHT - _BOTTOM + 18, f"{tick:.4g}", anchor="middle"))
    for tick in up.ticks():
        y = up.at(tick)
        parts.append(_line(_LEFT, y, _WIDTH - _RIGHT, y, "#ddd"))
        parts.append(_text(_LEFT - 6, y + 4, f"{tick:.4g}", anchor="end"))
    for place, (name, line) in enumerate(lines.items()):
        colour = _COLOURS[place % len(_COLOURS)]
        marks = [(across.at(x), up.at(y)) for x, y in line]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in marks)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>' for x, y in marks]
        parts.append(
            _line(_WIDTH - _RIGHT + 12, _TOP + 20 * place, _WIDTH - _RIGHT + 32, _TOP + 20 * place, colour)
        )
        parts.append(_text(_WIDTH - _RIGHT + 38, _TOP + 20 * place + 4, name))
    return "\n".join([*parts, "</svg>", ""])


class _Axis:
    """Values low..high onto pixels start..end, in round steps."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self.low, self.high = low, high if high > low else low + 1.0
        self.start, self.end = start, end

    def at(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        rough = (self.high - self.low) / 5
        size = 10.0 ** len(str(int(rough))) / 10 if rough >= 1 else 1.0
        while size > rough:
            size /= 10
        step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= rough)
        first = round(self.low / step + 0.49) * step
        return [first + i * step for i in range(12) if first + i * step <= self.high * (1 + 1e-9)]


def _line(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"/>'


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 12) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}"'
    return f'<text {place} fill="#222">{html.escape(text)}</text>'
