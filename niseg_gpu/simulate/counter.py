"""Random numbers by place: a key and a counter give a number, so blocks may be made in any order and on any machine.

The counter runs through SplitMix64 (doi:10.1145/2660193.2660195), whose output function can be entered anywhere.
"""

from __future__ import annotations

import math

import numpy as np

from niseg_gpu.kernels.compiled import compiled

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_S30, _S27, _S31, _S11 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(11)


def make_key(*words: int) -> np.uint64:
    """Return the key of a stream of random numbers.

    Parameters
    ----------
    *words : int
        Seed first, then what tells streams apart; each counts by its last 63 bits.
    """
    key = np.uint64(0)
    for word in words:
        key = np.uint64(hash_counter(key, np.int64(int(word) & (2**63 - 1))))
    return key


@compiled
def hash_counter(key, counter):
    """Return 64 random bits, uint64, of a key (uint64) and a counter (integer)."""
    x = np.uint64(key) + (np.uint64(counter) + np.uint64(1)) * _GOLDEN
    x = (x ^ (x >> _S30)) * _MIX_1
    x = (x ^ (x >> _S27)) * _MIX_2
    return x ^ (x >> _S31)


@compiled
def hash_place(key, z, y, x):
    """Return 64 random bits of a key and a place, whole numbers of any sign."""
    return hash_counter(hash_counter(hash_counter(key, z), y), x)


@compiled
def to_uniform(bits):
    """Turn 64 random bits into a float64 above 0 and below 1."""
    return (np.float64(bits >> _S11) + 0.5) * (1.0 / 9007199254740992.0)


@compiled
def to_normal(bits):
    """Turn 64 random bits into a number of the standard normal distribution.

    The inverse of the distribution function to seven digits, Wichura's algorithm AS 241 (doi:10.2307/2347330).
    """
    u = to_uniform(bits)
    q = u - 0.5
    if abs(q) <= 0.425:
        r = 0.180625 - q * q
        top = ((59.109374720 * r + 159.29113202) * r + 50.434271938) * r + 3.3871327179
        return q * top / (((67.187563600 * r + 78.757757664) * r + 17.895169469) * r + 1.0)
    r = math.sqrt(-math.log(min(u, 1.0 - u)))
    if r <= 5.0:
        r -= 1.6
        top = ((0.17023821103 * r + 1.3067284816) * r + 2.7568153900) * r + 1.4234372777
        z = top / ((0.12021132975 * r + 0.73700164250) * r + 1.0)
    else:
        r -= 5.0
        top = ((0.017337203997 * r + 0.42868294337) * r + 3.0812263860) * r + 6.6579051150
        z = top / ((0.012258202635 * r + 0.24197894225) * r + 1.0)
    return z if q > 0.0 else -z


@compiled
def draw_uniform(key, counter):
    """Return the uniform number above 0 and below 1 of a key and a counter."""
    return to_uniform(hash_counter(key, counter))


@compiled
def draw_normal(key, counter):
    """Return the standard normal number of a key and a counter."""
    return to_normal(hash_counter(key, counter))
