"""Draws the icon: a chip that is filled as far as the GPU is, with a mark where something is out of the ordinary. Plain
arithmetic over pixels, and no image library.
"""

import functools
from collections.abc import Callable

from gpud.core.record import Record
from gpud.tray.settings import Settings
from gpud.tray.view import Snapshot

SIZES = (16, 22, 32, 48)
"""Trays scale what they have; small icons that were not drawn for their size come out blurred."""

LEVELS = 8
"""Steps of the filling: what cannot be seen is not sent."""

Color = tuple[int, int, int, int]
"""Red, green, blue and opacity, each up to 255."""

DARK: Color = (32, 36, 42, 235)
GREY: Color = (146, 153, 161, 255)
LIGHT: Color = (240, 243, 246, 255)
BLUE: Color = (61, 155, 242, 255)
AMBER: Color = (246, 165, 27, 255)
RED: Color = (230, 57, 53, 255)
"""A grey ring around a dark body: it can be seen on a light panel and on a dark one."""

Shape = Callable[[float, float], float]
"""How far a point of the unit square is outside of the shape; negative inside."""


class Picture(Record):
    """What the icon shows: eighths of filling, a color, and a mark: "", pause, alert, cross or dots."""

    level: int
    tint: str
    mark: str


def picture(now: Snapshot, settings: Settings) -> Picture:
    percent = now.percent
    tint = "blue"
    # While nothing is loaded gpud lets the driver sleep, and its figures are old ones: nobody is warned by them.
    if not all(model.at_rest for model in now.models):
        tint = "red" if percent >= settings.red else "amber" if percent >= settings.amber else "blue"
    if now.state == "unavailable":
        mark = "cross"
    elif now.degraded:
        mark = "alert"
    elif now.state == "yielded":
        mark = "pause"
    elif now.state in ("loading", "unloading", "suspending"):
        mark = "dots"
    else:
        # Not by its color alone: some people do not see it, and some trays show none.
        mark = "alert" if tint == "red" else ""
    return Picture(round(percent * LEVELS / 100), tint, mark)


@functools.lru_cache(maxsize=8)
def pixmaps(shown: Picture) -> list[list[object]]:
    """In the form that the tray's protocol has for them: width, height, and ARGB in network byte order."""
    return [[size, size, draw(shown, size)] for size in SIZES]


def draw(shown: Picture, size: int) -> bytes:
    layers = _layers(shown, size)
    pixels = bytearray()
    for row in range(size):
        y = (row + 0.5) / size
        for column in range(size):
            x = (column + 0.5) / size
            pixels += _pixel(layers, x, y, size)
    return bytes(pixels)


def _pixel(layers: list[tuple[Shape, Color]], x: float, y: float, size: int) -> bytes:
    red = green = blue = alpha = 0.0
    for shape, color in layers:
        # A pixel whose middle is on the edge is half covered.
        cover = min(1.0, max(0.0, 0.5 - shape(x, y) * size)) * color[3] / 255
        if cover:
            alpha = cover + alpha * (1 - cover)
            share = cover / alpha
            red += (color[0] - red) * share
            green += (color[1] - green) * share
            blue += (color[2] - blue) * share
    return bytes((round(alpha * 255), round(red), round(green), round(blue)))


def _layers(shown: Picture, size: int) -> list[tuple[Shape, Color]]:
    """From the bottom to the top."""
    tints = {"blue": BLUE, "amber": AMBER, "red": RED}
    # Lines of whole pixels: a line of one and a half is a smear on a small icon.
    line = max(1, round(size / 16)) / size
    pins = max(1, round(size / 11)) / size
    body = pins
    layers: list[tuple[Shape, Color]] = []
    for middle in (0.3, 0.5, 0.7):
        for x, y, width, height in (
            (middle, 0.5, line * 1.2, 1.0),
            (0.5, middle, 1.0, line * 1.2),
        ):
            layers.append((_box(x - width / 2, y - height / 2, x + width / 2, y + height / 2, 0), GREY))
    layers.append((_box(body, body, 1 - body, 1 - body, 0.12), GREY))
    inside = body + line
    layers.append((_box(inside, inside, 1 - inside, 1 - inside, 0.06), DARK))
    if shown.level:
        top = 1 - inside - (1 - 2 * inside) * shown.level / LEVELS
        layers.append((_box(inside, top, 1 - inside, 1 - inside, 0.02), tints[shown.tint]))
    return layers + _mark(shown.mark, line)


def _mark(mark: str, line: float) -> list[tuple[Shape, Color]]:
    thick = max(0.11, 2 * line)
    if mark == "pause":
        return _outlined([_box(0.34, 0.3, 0.34 + thick, 0.7, 0), _box(0.66 - thick, 0.3, 0.66, 0.7, 0)], line)
    if mark == "alert":
        left, right = 0.5 - thick / 2, 0.5 + thick / 2
        return _outlined([_box(left, 0.24, right, 0.58, 0), _box(left, 0.66, right, 0.66 + thick, 0)], line)
    if mark == "cross":
        return _outlined([_slanted(1, thick), _slanted(-1, thick)], line)
    if mark == "dots":
        half = thick / 2
        return _outlined([_box(x - half, 0.5 - half, x + half, 0.5 + half, 0) for x in (0.3, 0.5, 0.7)], line)
    return []


def _outlined(shapes: list[Shape], line: float) -> list[tuple[Shape, Color]]:
    """Light on whatever is below, with a dark edge."""

    def grown(shape: Shape) -> Shape:
        return lambda x, y: shape(x, y) - line / 2

    return [(grown(shape), DARK) for shape in shapes] + [(shape, LIGHT) for shape in shapes]


def _box(left: float, top: float, right: float, bottom: float, radius: float) -> Shape:
    radius = min(radius, (right - left) / 2, (bottom - top) / 2)
    middle_x, middle_y = (left + right) / 2, (top + bottom) / 2
    half_x, half_y = (right - left) / 2 - radius, (bottom - top) / 2 - radius

    def outside(x: float, y: float) -> float:
        dx, dy = abs(x - middle_x) - half_x, abs(y - middle_y) - half_y
        if dx <= 0 or dy <= 0:
            return max(dx, dy) - radius
        return float((dx * dx + dy * dy) ** 0.5) - radius

    return outside


def _slanted(direction: int, thick: float) -> Shape:
    """A bar from corner to corner, cut where the chip's inside ends."""
    limits = _box(0.26, 0.26, 0.74, 0.74, 0)

    def outside(x: float, y: float) -> float:
        across = abs((x - 0.5) - direction * (y - 0.5)) / 2**0.5 - thick / 2
        return max(across, limits(x, y))

    return outside
