"""Pictures of augmented samples, to see what a network is trained on."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from annotated_types import Ge

from niseg_gpu.figures import PALETTE, Picture, Theme, find_limits, render
from niseg_gpu.options import check_options
from niseg_gpu.unet.augmentation import Augmentation

TILE_IN = 1.9
MASK_COLOUR = PALETTE[1]


def draw_augmented(
    image: np.ndarray,
    mask: np.ndarray,
    *,
    settings: Augmentation,
    seed: Annotated[int, Ge(0)] = 0,
    n_samples: Annotated[int, Ge(1)] = 9,
) -> Picture:
    """Draw a sample and what augmentation makes of it, the mask in colour.

    Parameters
    ----------
    image : (Y, X) or (Z, Y, X) ndarray
        Of a volume the slice at half its depth is shown.
    mask : ndarray of bool or integers
        As the image; what is not 0 is coloured.
    settings : Augmentation
    seed : int
        Of the random numbers.
    n_samples : int
        Besides the original.

    Returns
    -------
    Picture
        ``light`` and ``dark``, the bytes of PNG files for either ground.
    """
    import jax

    check_options(draw_augmented, seed=seed, n_samples=n_samples)
    image, mask = np.asarray(image), np.asarray(mask)

    from niseg_gpu.unet.augment import augment

    def repeat(values: np.ndarray) -> np.ndarray:
        return np.repeat(np.asarray(values)[None], n_samples, axis=0)

    images, masks = augment(repeat(image), repeat(mask), key=jax.random.key(seed), settings=settings)
    pairs = [(image, mask), *zip(np.asarray(images), np.asarray(masks), strict=True)]
    flat = [tuple(np.asarray(a[a.shape[0] // 2] if a.ndim == 3 else a) for a in pair) for pair in pairs]
    limits = find_limits(np.asarray(flat[0][0], np.float32))
    n_columns = min(len(flat), 5)
    n_rows = -(-len(flat) // n_columns)
    shape = max((values.shape for values, _ in flat), key=lambda s: s[0] / s[1])
    high = TILE_IN * shape[0] / shape[1]

    def draw(figure: Any, theme: Theme) -> None:
        for i, (values, marked) in enumerate(flat):
            row, column = divmod(i, n_columns)
            place = (
                column / n_columns,
                1 - (row + 1) / n_rows,
                0.96 / n_columns,
                0.98 / n_rows - 0.22 / (n_rows * high),
            )
            ax = figure.add_axes(place)
            ax.imshow(_tint(values, marked, limits), interpolation="nearest")
            ax.set_axis_off()
            ax.set_title("original" if i == 0 else f"sample {i}", color=theme.ink, fontsize=9, pad=3)

    return render(draw, TILE_IN * n_columns, (high + 0.22) * n_rows)


def _tint(values: np.ndarray, mask: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    """Return an image in grey, half covered by colour where the mask is."""
    from matplotlib.colors import to_rgb

    grey = np.clip((np.asarray(values, np.float32) - limits[0]) / (limits[1] - limits[0]), 0.0, 1.0)[..., None]
    strength = np.where(mask != 0, 0.55, 0.0)[..., None]
    return (1.0 - strength) * np.repeat(grey, 3, axis=-1) + strength * np.array(to_rgb(MASK_COLOUR))
