"""Random counts, compiled: each value follows from a key and its place alone, so neither chunks nor threads matter.

Random words come from Threefry-2x32 with 13 rounds (doi:10.1145/2063384.2063405). They become normal numbers by Giles'
polynomials (GPU Computing Gems, 2011, chapter 10) and Poisson counts by his expansion of the quantile
(doi:10.1145/2699466). Only additions, products, quotients and square roots are used on that way, which every machine
rounds alike.
"""

from __future__ import annotations

import numba
import numpy as np

from niseg_gpu.kernels.compiled import compiled

# Pixels drawn at a time; a pair of random words serves two pixels half a block apart.
BLOCK = 256
HALF = BLOCK // 2

# Rows of the block that is worked on, all in one array: compilers can't tell that several do not overlap, and would
# give up on vectors.
MEAN, COUNT, SHARE, SMALL, TERM, TOTAL, BELOW, WORK = range(0, 8 * BLOCK, BLOCK)

# From this mean on counts come from the expansion, below from adding up probabilities.
EXPAND_FROM = np.float32(6.0)

f32, u32, i32 = np.float32, np.uint32, np.int32

# Division as NumPy has it: raising where the divisor is 0 would keep compilers from using vectors.
inlined = numba.njit(error_model="numpy")
kept = compiled(error_model="numpy")


@inlined
def _mix(a, b, turn):
    a = u32(a + b)
    b = u32(u32(u32(b << u32(turn)) | u32(b >> u32(32 - turn))) ^ a)
    return a, b


@inlined
def _hash(k0, k1, a, b):
    """Threefry-2x32-13: two words from a key of two words and a place of two words."""
    k2 = u32(u32(k0 ^ k1) ^ u32(0x1BD11BDA))
    a, b = u32(a + k0), u32(b + k1)
    a, b = _mix(a, b, 13)
    a, b = _mix(a, b, 15)
    a, b = _mix(a, b, 26)
    a, b = _mix(a, b, 6)
    a, b = u32(a + k1), u32(b + u32(k2 + u32(1)))
    a, b = _mix(a, b, 17)
    a, b = _mix(a, b, 29)
    a, b = _mix(a, b, 16)
    a, b = _mix(a, b, 24)
    a, b = u32(a + k2), u32(b + u32(k0 + u32(2)))
    a, b = _mix(a, b, 13)
    a, b = _mix(a, b, 15)
    a, b = _mix(a, b, 26)
    a, b = _mix(a, b, 6)
    a, b = u32(a + k0), u32(b + u32(k1 + u32(3)))
    return _mix(a, b, 17)


@inlined
def _log(x):
    """Natural logarithm of a positive float32, to 1e-7 or so; libraries differ in the last bit, this does not."""
    bits = f32(x).view(np.int32)
    exponent = i32(i32(bits - i32(0x3F3504F3)) >> i32(23))
    m = i32(bits - i32(exponent << i32(23))).view(np.float32)  # from 0.707 to 1.414
    s = (m - f32(1)) / (m + f32(1))
    s2 = s * s
    series = f32(2) + s2 * (f32(2 / 3) + s2 * (f32(2 / 5) + s2 * (f32(2 / 7) + s2 * f32(2 / 9))))
    return f32(exponent) * f32(0.6931471805599453) + s * series


@inlined
def _bend(w):
    """What a share's distance from the middle is multiplied by to give a normal number; w as in `fill_normal`."""
    c = w - f32(2.5)
    near = f32(2.81022636e-08)
    near = f32(3.43273939e-07) + near * c
    near = f32(-3.5233877e-06) + near * c
    near = f32(-4.39150654e-06) + near * c
    near = f32(0.00021858087) + near * c
    near = f32(-0.00125372503) + near * c
    near = f32(-0.00417768164) + near * c
    near = f32(0.246640727) + near * c
    near = f32(1.50140941) + near * c
    c = np.sqrt(w if w > f32(5) else f32(5)) - f32(3)
    far = f32(-0.000200214257)
    far = f32(0.000100950558) + far * c
    far = f32(0.00134934322) + far * c
    far = f32(-0.00367342844) + far * c
    far = f32(0.00573950773) + far * c
    far = f32(-0.0076224613) + far * c
    far = f32(0.00943887047) + far * c
    far = f32(1.00167406) + far * c
    far = f32(2.83297682) + far * c
    return (near if w < f32(5) else far) * f32(1.4142135623730951)


@inlined
def _exp(x):
    """Exponential function for x from -10 to 0, to 1e-7 or so."""
    n = i32(x * f32(1.4426950408889634) - f32(0.5))
    r = x - f32(n) * f32(0.693359375) + f32(n) * f32(2.12194440e-4)
    series = f32(1 / 720) + r * f32(1 / 5040)
    series = f32(1 / 120) + r * series
    series = f32(1 / 24) + r * series
    series = f32(1 / 6) + r * series
    series = f32(1 / 2) + r * series
    series = f32(1) + r * (f32(1) + r * series)
    return series * i32(i32(n + i32(127)) << i32(23)).view(np.float32)


@inlined
def _expand(mean, z):
    """The Poisson quantile that the normal number z stands for."""
    root = np.sqrt(mean)
    z2 = z * z
    x = mean + root * z + f32(1 / 3) + z2 * f32(1 / 6)
    inverse = f32(1) / root
    x -= z * (f32(1 / 36) + z2 * f32(1 / 72)) * inverse
    x += (f32(-8 / 405) + z2 * (f32(7 / 810) + z2 * f32(1 / 270))) * (inverse * inverse)
    return f32(i32(x if x > f32(0) else f32(0)))


@inlined
def fill_words(words, k0, k1, block, index):
    for j in range(HALF):
        words[j], words[j + HALF] = _hash(k0, k1, u32(u32(block * HALF) + u32(j)), index)


@inlined
def fill_normal(words, work, row):
    """Put into a row of `work` the normal numbers below which shares of (word + 1/2) / 2**32 of all lie."""
    # Several short loops: in one long one each pixel's chain of operations is waited for.
    for j in range(BLOCK):
        signed = i32(words[j])
        rest = i32(~signed) if signed < i32(0) else signed
        work[SHARE + j] = (f32(rest) + f32(0.5)) * f32(2.0**-32)
    for j in range(BLOCK):
        p = work[SHARE + j]
        work[TERM + j] = -_log(f32(4) * p * (f32(1) - p))
    for j in range(BLOCK):
        z = _bend(work[TERM + j]) * (f32(1) - f32(2) * work[SHARE + j])
        work[row + j] = z if i32(words[j]) < i32(0) else -z


@inlined
def _count_up(words, work):
    """Replace the counts of small means in a block: probabilities are added up until they reach the random share."""
    largest = f32(0)
    for j in range(BLOCK):
        work[SHARE + j] = (f32(words[j]) + f32(0.5)) * f32(2.0**-32)
    for j in range(BLOCK):
        work[SMALL + j] = min(work[MEAN + j], EXPAND_FROM)
        largest = max(largest, work[SMALL + j])
    for j in range(BLOCK):
        work[TERM + j] = work[TOTAL + j] = _exp(-work[SMALL + j])
        work[BELOW + j] = f32(0)
    for k in range(1, i32(largest + f32(8) * np.sqrt(largest) + f32(7))):
        inverse = f32(1) / f32(k)
        for j in range(BLOCK):
            work[BELOW + j] += f32(work[SHARE + j] > work[TOTAL + j])
            work[TERM + j] *= work[SMALL + j] * inverse
            work[TOTAL + j] += work[TERM + j]
    for j in range(BLOCK):
        work[COUNT + j] = work[BELOW + j] if work[MEAN + j] < EXPAND_FROM else work[COUNT + j]


@inlined
def draw_block(words, work):
    """Draw Poisson counts of a block into the row COUNT of `work`; its row MEAN holds their means."""
    few = 0
    for j in range(BLOCK):
        few += work[MEAN + j] < EXPAND_FROM
    if few < BLOCK:
        fill_normal(words, work, COUNT)
        for j in range(BLOCK):
            mean = work[MEAN + j]
            work[COUNT + j] = _expand(mean if mean > EXPAND_FROM else EXPAND_FROM, work[COUNT + j])
    if few:
        _count_up(words, work)


@kept
def _draw_poisson(mean, counts, first, last, k0, k1, index):
    words, work = np.empty(BLOCK, np.uint32), np.empty(WORK, np.float32)
    for b in range(first, last):
        fill_words(words, k0, k1, b, index)
        for j in range(BLOCK):
            work[MEAN + j] = mean[b * BLOCK + j]
        draw_block(words, work)
        for j in range(BLOCK):
            counts[b * BLOCK + j] = work[COUNT + j]


def draw_poisson(mean: np.ndarray, *, key: tuple[np.uint32, np.uint32], index: int = 0) -> np.ndarray:
    """Draw Poisson counts.

    Below a mean of 6 probabilities are added up, exact to 1e-6. Above, the expansion keeps the distribution function
    to 0.0003.

    Parameters
    ----------
    mean : ndarray of float32
        Expected counts, 0 to 2**31.
    key : (uint32, uint32)
        From `niseg_gpu.simulate.streams.make_key`.
    index : int, optional
        Tells draws of one key from one another, such as the number of a frame.

    Returns
    -------
    ndarray of float32
        Whole numbers, shaped as the mean.
    """
    padded = pad_blocks(mean, np.float32)
    counts = np.empty_like(padded)
    _draw_poisson(padded, counts, 0, len(padded) // BLOCK, *key, np.uint32(index))
    return counts[: mean.size].reshape(mean.shape)


def pad_blocks(values: np.ndarray, dtype: type) -> np.ndarray:
    """Return the values as one row, with zeros up to a whole number of blocks."""
    padded = np.zeros(-(-values.size // BLOCK) * BLOCK, dtype)
    padded[: values.size] = values.ravel()
    return padded
