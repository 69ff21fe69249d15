"""Random counts, compiled: each value follows from a key and its place alone, so neither chunks nor threads matter.

Random words come from Threefry-2x32 with 13 rounds (doi:10.1145/2063384.2063405). They become normal numbers by Giles'
polynomials (GPU Computing Gems, 2011, chapter 10) and Poisson counts by his expansion of the quantile
(doi:10.1145/2699466). Only additions, products, quotients and square roots are used on that way, which every machine
rounds alike.
"""

from __future__ import annotations

import numba
import numpy as np

# Pixels drawn at a time; a pair of random words serves two pixels half a block apart.
BLOCK = 256
HALF = BLOCK // 2

# From this mean on counts come from the expansion, below from adding up probabilities.
EXPAND_FROM = np.float32(6.0)

f32, u32, i32 = np.float32, np.uint32, np.int32
_always = numba.njit(error_model="numpy")


@_always
def _mix(a, b, turn):
    a = u32(a + b)
    b = u32(u32(u32(b << u32(turn)) | u32(b >> u32(32 - turn))) ^ a)
    return a, b


@_always
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


@_always
def _log(x):
    """Natural logarithm of a positive float32, to 1e-7 or so; libraries differ in the last bit, this does not."""
    bits = f32(x).view(np.int32)
    exponent = i32(i32(bits - i32(0x3F3504F3)) >> i32(23))
    m = i32(bits - i32(exponent << i32(23))).view(np.float32)  # from 0.707 to 1.414
    s = (m - f32(1)) / (m + f32(1))
    s2 = s * s
    series = f32(2) + s2 * (f32(2 / 3) + s2 * (f32(2 / 5) + s2 * (f32(2 / 7) + s2 * f32(2 / 9))))
    return f32(exponent) * f32(0.6931471805599453) + s * series


@_always
def _normal(word):
    """The normal number below which a share of (word + 1/2) / 2**32 of all lie."""
    upper = word >= u32(0x80000000)
    rest = u32(~word) if upper else word
    p = (f32(rest) + f32(0.5)) * f32(2.0**-32)
    w = -_log(f32(4) * p * (f32(1) - p))
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
    c = np.sqrt(max(w, f32(5))) - f32(3)
    far = f32(-0.000200214257)
    far = f32(0.000100950558) + far * c
    far = f32(0.00134934322) + far * c
    far = f32(-0.00367342844) + far * c
    far = f32(0.00573950773) + far * c
    far = f32(-0.0076224613) + far * c
    far = f32(0.00943887047) + far * c
    far = f32(1.00167406) + far * c
    far = f32(2.83297682) + far * c
    z = (near if w < f32(5) else far) * (f32(1) - f32(2) * p) * f32(1.4142135623730951)
    return z if upper else -z


@_always
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


@_always
def _expand(mean, z):
    """The Poisson quantile that the normal number z stands for."""
    root = np.sqrt(mean)
    z2 = z * z
    x = mean + root * z + f32(1 / 3) + z2 * f32(1 / 6)
    x -= z * (f32(1 / 36) + z2 * f32(1 / 72)) / root
    x += (f32(-8 / 405) + z2 * (f32(7 / 810) + z2 * f32(1 / 270))) / mean
    return f32(i32(max(x, f32(0))))


@_always
def _fill_words(words, k0, k1, block, index):
    for j in range(HALF):
        words[j], words[j + HALF] = _hash(k0, k1, u32(u32(block * HALF) + u32(j)), index)


@_always
def _count_up(mean, words, counts, scratch):
    """Replace the counts of small means in a block: probabilities are added up until they reach the random share."""
    # One array holds all rows: of several, compilers can't tell that they don't overlap, and give up on vectors.
    SHARE, TERM, TOTAL, COUNT, MEAN = 0, BLOCK, 2 * BLOCK, 3 * BLOCK, 4 * BLOCK
    largest = f32(0)
    for j in range(BLOCK):
        scratch[SHARE + j] = (f32(words[j]) + f32(0.5)) * f32(2.0**-32)
    for j in range(BLOCK):
        m = min(mean[j], EXPAND_FROM)
        largest = max(largest, m)
        scratch[MEAN + j] = m
    for j in range(BLOCK):
        scratch[TERM + j] = scratch[TOTAL + j] = _exp(-scratch[MEAN + j])
        scratch[COUNT + j] = f32(0)
    for k in range(1, i32(largest + f32(8) * np.sqrt(largest) + f32(7))):
        inverse = f32(1) / f32(k)
        for j in range(BLOCK):
            scratch[COUNT + j] += f32(scratch[SHARE + j] > scratch[TOTAL + j])
            scratch[TERM + j] *= scratch[MEAN + j] * inverse
            scratch[TOTAL + j] += scratch[TERM + j]
    for j in range(BLOCK):
        counts[j] = scratch[COUNT + j] if mean[j] < EXPAND_FROM else counts[j]


@_always
def _draw_block(mean, words, counts, scratch):
    """Poisson counts of a block of means."""
    n = len(mean)
    few = 0
    for j in range(n):
        few += mean[j] < EXPAND_FROM
    if few < n:
        for j in range(n):
            counts[j] = _expand(max(mean[j], EXPAND_FROM), _normal(words[j]))
    if few:
        _count_up(mean, words, counts, scratch)
