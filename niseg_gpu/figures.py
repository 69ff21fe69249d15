"""Arrays in, PNG bytes out: what all pictures have in common, each for a light and a dark page.

Drawn on matplotlib's Agg canvas without pyplot, so that no global state is touched and threads do not meet.
Colour stands for a cluster number here and nowhere else: cluster 3 has one colour in every picture of every run.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

# The first six are P. Tol's "bright" scheme (SRON/EPS/TN/09-002). The others were added one by one, each the colour
# farthest in CIELAB from all before it and from grey, as seen with normal vision, protanopia, deuteranopia and
# tritanopia (doi:10.1109/TVCG.2009.113); the first twelve are neither light nor dark, for lines on any page.
PALETTE = tuple(
    "#" + colour
    for colour in """
    4477AA EE6677 228833 CCBB44 66CCEE AA3377 7860F0 849CFC E4B478 E40C24 A890B4 8460CC 783C3C D8D80C 304890 6C24B4
    A8D8A8 CC2460 D87800 F06054 9C000C 6CA8E4 00B484 60E4E4 CC48B4 0C6C54 CCD86C 0048D8 7884FC 00600C 3C6C84 A8C000
    78E490 6C84CC CC9C48 B46030 6CA89C 900090 783CB4 909054 84543C 488490 24CC6C 78A818 C00000 900C6C 909CCC 78C0CC
    84CCA8 FCB4FC 487818 F0CC48 6060D8 30906C D89C90 F09CCC 6C4884 E4249C 609C6C F03C3C C0A8FC 843060 604824 5484E4
    """.split()
)
NO_DATA_COLOUR = "#B0B0B0"
MAP_PIXELS = 600  # about what a map has room for; larger images are shrunk to it
PIXEL_AXES = ("y (pixel)", "x (pixel)")
_DPI, _DPI_WIDE = 140, 115  # a little more than a page shows
_LARGE_PNG, _LARGE_PNG_OF_FEW_COLOURS = 500_000, 250_000


class Theme(NamedTuple):
    """Colours of one page, all grey: text, lesser text, grid, ground, and the shade where there are no data."""

    ink: str
    muted: str
    grid: str
    ground: str
    shade: str


LIGHT = Theme("#222222", "#606060", "#e2e2e2", "#ffffff", "#eeeeee")
DARK = Theme("#e8e8e8", "#a6a6a6", "#383838", "#1c1c1c", "#2b2b2b")


class Picture(NamedTuple):
    """One drawing as PNG bytes, for a light and for a dark page, and its size in pixels."""

    light: bytes
    dark: bytes
    width: int
    height: int


def cluster_colour(cluster: int) -> str:
    """Return the colour of a cluster number, the same in every run; it comes round after 64."""
    return PALETTE[cluster % len(PALETTE)]


def shrink(image: np.ndarray, *, limit: int = MAP_PIXELS, how: str = "mean") -> np.ndarray:
    """Reduce an image by whole blocks of n×n until no side exceeds ``limit``.

    Parameters
    ----------
    image : (Y, X) ndarray
    how : {"mean", "max", "stride"}
        ``mean`` leaves out values that are not finite (a block without any finite value is NaN) and gives float32;
        ``max`` keeps single bright pixels; ``stride`` takes the block's middle pixel, for label maps.
    """
    n = -(-max(image.shape) // limit)
    if how == "stride":
        return image[min(n // 2, image.shape[0] - 1) :: n, min(n // 2, image.shape[1] - 1) :: n]
    if how == "max":
        return _fold(np.maximum, image, n)
    finite = np.isfinite(image)
    if finite.all():
        high, wide = (np.minimum(n, side - np.arange(0, side, n)) for side in image.shape)
        number = np.outer(high, wide).astype(np.float32)
    else:
        image, number = np.where(finite, image, 0), _fold(np.add, finite.astype(np.float32), n)
    total = _fold(np.add, image.astype(np.float32, copy=False), n)
    return np.divide(total, number, out=np.full(total.shape, np.nan, np.float32), where=number > 0)


def _fold(operation: np.ufunc, image: np.ndarray, n: int) -> np.ndarray:
    """Reduce blocks of n×n, smaller ones at the end; slices are several times as fast here as ``ufunc.reduceat``."""
    for axis in (0, 1):
        folded = image[::n].copy()
        for start in range(1, n):
            part = image[start::n]
            operation(folded[: len(part)], part, out=folded[: len(part)])
        image = folded.T if axis == 0 else folded
    return image.T


def find_limits(values: np.ndarray, *, low: float = 0.5, high: float = 99.5) -> tuple[float, float]:
    """Return two percentiles of the finite values, never equal, (0, 1) when there are none."""
    values = values[np.isfinite(values)]
    if not values.size:
        return 0.0, 1.0
    bottom, top = (float(v) for v in np.percentile(values, (low, high)))
    if top > bottom:
        return bottom, top
    margin = 0.5 * abs(bottom) or 0.5
    return bottom - margin, bottom + margin


def style(ax: Any, theme: Theme, label: str | None) -> None:
    from matplotlib.ticker import FuncFormatter, ScalarFormatter

    for axis in (ax.xaxis, ax.yaxis):
        if isinstance(axis.get_major_formatter(), ScalarFormatter):  # no offset such as "1e6" away from its axis
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.6g}"))
    if label is not None:
        ax.set_ylabel(label, color=theme.ink)
    ax.tick_params(which="both", color=theme.muted, labelcolor=theme.muted, labelsize=9)
    for spine in ax.spines.values():
        spine.set_color(theme.muted)
        spine.set_linewidth(0.6)


def load_libraries() -> None:
    """Import what pictures are drawn with, which takes as long as to draw some."""
    import matplotlib.backends.backend_agg
    import matplotlib.figure  # noqa: F401
    from PIL import Image

    Image.preinit()


def render(draw: Callable[[Any, Theme], Sequence[Any] | None], width_in: float, height_in: float) -> Picture:
    """Draw a picture for a light and for a dark page.

    Parameters
    ----------
    draw : callable
        Draws on a figure in the colours of a theme. Where it returns axes, only what lies outside them depends on the
        theme; the dark picture is then made from the light one, which is faster than drawing again.
    """
    light, kept = _paint(draw, LIGHT, width_in, height_in)
    dark = _darken(light, kept) if kept else _paint(draw, DARK, width_in, height_in)[0]
    return Picture(_encode(light), _encode(dark), *light.shape[1::-1])


def _paint(draw: Callable, theme: Theme, width_in: float, height_in: float) -> tuple[np.ndarray, list[tuple]]:
    """Return (rows, columns, RGB) and the insides, as slices, of the axes whose colours are the same in every theme."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure((width_in, height_in), dpi=_DPI if width_in < 8 else _DPI_WIDE, facecolor=theme.ground)
    canvas = FigureCanvasAgg(figure)
    axes = draw(figure, theme) or ()
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]
    boxes = [ax.get_window_extent() for ax in axes]
    height = pixels.shape[0]
    return pixels, [
        (slice(height - round(box.y1) + 1, height - round(box.y0)), slice(round(box.x0) + 1, round(box.x1)))
        for box in boxes
    ]


def _darken(light: np.ndarray, kept: list[tuple]) -> np.ndarray:
    """Turn the light theme's ground and ink into the dark theme's, with all greys between, but not inside ``kept``."""
    from_ground, from_ink, to_ground, to_ink = (
        int(colour[1:3], 16) for colour in (LIGHT.ground, LIGHT.ink, DARK.ground, DARK.ink)
    )
    grey = np.clip((np.arange(256) - from_ink) / (from_ground - from_ink), 0, 1)
    dark = np.round(to_ink + grey * (to_ground - to_ink)).astype(np.uint8)[light]
    for inside in kept:
        dark[inside] = light[inside]
    return dark


def _encode(pixels: np.ndarray) -> bytes:
    """Return PNG bytes of an RGB picture, with one channel where all is grey, with a palette where it is large."""
    from PIL import Image

    red, green, blue = (pixels[..., i] for i in range(3))
    is_grey = np.array_equal(red, green) and np.array_equal(red, blue)
    image = Image.fromarray(np.ascontiguousarray(red if is_grey else pixels))
    png = _save_png(image)
    few = image.getcolors(1024) is not None
    if is_grey or len(png) < (_LARGE_PNG_OF_FEW_COLOURS if few else _LARGE_PNG):
        return png
    # The slower way keeps the colours of a label map as they are; the faster is for hundreds of noisy lines.
    method = Image.Quantize.MEDIANCUT if few else Image.Quantize.FASTOCTREE
    return _save_png(image.quantize(256, method=method, dither=Image.Dither.NONE))


def _save_png(image: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG", compress_level=4)
    return out.getvalue()
