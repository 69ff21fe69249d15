"""From neutrons to counts of a camera, compiled."""

from __future__ import annotations

import numpy as np

from niseg_gpu.simulate.noise import (
    BLOCK,
    COUNT,
    MEAN,
    WORK,
    compiled,
    draw_block,
    f32,
    fill_normal,
    fill_words,
    i32,
    u32,
)

NOISE = WORK  # one row more than drawing counts needs


@compiled
def blur_rows(light, kernel, gain, offset, out):
    """Blur an image with symmetric weights along both axes; the margin is used up.

    Parameters
    ----------
    light : (Y + 2R, X + 2R) ndarray of float32
        Image with a margin.
    kernel : (2R + 1,) ndarray of float32
        Weights along each axis.
    gain, offset : float32
        The result is multiplied by `gain`, then `offset` is added.
    out : (Y, X) ndarray of float32
    """
    reach = len(kernel) // 2
    height, width = out.shape
    row = np.empty(width + 2 * reach, np.float32)
    for i in range(height):
        for x in range(len(row)):
            row[x] = light[i + reach, x] * kernel[reach]
        for by in range(1, reach + 1):
            weight = kernel[reach + by]
            for x in range(len(row)):
                row[x] += (light[i + reach - by, x] + light[i + reach + by, x]) * weight
        for x in range(width):
            out[i, x] = row[x + reach] * kernel[reach]
        for by in range(1, reach + 1):
            weight = kernel[reach + by]
            for x in range(width):
                out[i, x] += (row[x + reach - by] + row[x + reach + by]) * weight
        for x in range(width):
            out[i, x] = out[i, x] * gain + offset


@compiled
def read_out(photons, counts, counts_per_photon, read_noise, bias, k0, k1, index):
    """Draw photons (Poisson), add the camera's noise (normal) and bias and round; return how many values were clipped.

    Parameters
    ----------
    photons : (P,) ndarray of float32
        Their means; P is a whole number of blocks.
    counts : (P,) ndarray of uint16
        The image.
    counts_per_photon, read_noise, bias : float32
        The last two in counts.
    k0, k1, index : uint32
        Key of the random numbers and number of the frame.
    """
    words, work = np.empty(BLOCK, np.uint32), np.empty(WORK + BLOCK, np.float32)
    n_clipped = 0
    for b in range(len(photons) // BLOCK):
        fill_words(words, u32(~k0), k1, b, index)
        fill_normal(words, work, NOISE)
        fill_words(words, k0, k1, b, index)
        for j in range(BLOCK):
            work[MEAN + j] = photons[b * BLOCK + j]
        draw_block(words, work)
        for j in range(BLOCK):
            work[COUNT + j] = work[COUNT + j] * counts_per_photon + (bias + f32(0.5))
            work[COUNT + j] += work[NOISE + j] * read_noise
        over = i32(0)
        for j in range(BLOCK):
            over += i32(work[COUNT + j] >= f32(65536))
        n_clipped += over
        for j in range(BLOCK):
            value = work[COUNT + j]
            value = value if value > f32(0) else f32(0)
            counts[b * BLOCK + j] = np.uint16(i32(value if value < f32(65535) else f32(65535)))
    return n_clipped
