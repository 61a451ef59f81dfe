#!/usr/bin/env python3
"""Computes epsilon of many removals on a grid, with 40 digits for one release and a transform in long double.
tests/unit/pld.c compares the double arithmetic of privacy/account/pld.c with these values.

    tests/golden/account_long.py Q NOISE STEPS DELTA [INTERVAL]        needs numpy, scipy, mpmath"""
import sys

import mpmath as mp
import numpy as np
import scipy.fft

q, z, steps, delta, interval = [*map(float, sys.argv[1:]), 1e-4][:5]
mp.mp.dps = 40
q_, z_, h = mp.mpf(q), mp.mpf(z), mp.mpf(interval)


def loss(x):
    return mp.log(1 - q_ + q_ * mp.exp((x - mp.mpf(1) / 2) / z_**2))


def tails(point):
    """P and Q of a loss above this one."""
    part = mp.expm1(point) / q_
    if part <= -1:
        return mp.mpf(1), mp.mpf(1)
    x = mp.mpf(1) / 2 + z_**2 * mp.log1p(part)
    above = lambda y: mp.erfc(y / z_ / mp.sqrt(2)) / 2
    return q_ * above(x - 1) + (1 - q_) * above(x), above(x)


first = int(mp.floor(loss(-mp.mpf("9.8") * z_) / h))
size = int(mp.ceil(loss(1 + mp.mpf("9.8") * z_) / h)) - first + 1
mass = np.zeros(size, dtype=np.longdouble)
p_before, q_before, infinity = mp.mpf(1), mp.mpf(1), 0.0
for i in range(size + 1):
    p_above, q_above = tails((first + i) * h) if i < size else (mp.mpf(0), mp.mpf(0))
    p_cell, q_cell = p_before - p_above, q_before - q_above
    p_before, q_before = p_above, q_above
    if i == 0:
        mass[0] += np.longdouble(mp.nstr(p_cell, 25))
        continue
    upper = (p_cell - q_cell * mp.exp((first + i - 1) * h)) / (-mp.expm1(-h) if i < size else 1)
    mass[i - 1] += np.longdouble(mp.nstr(p_cell - upper, 25))
    if i < size:
        mass[i] = np.longdouble(mp.nstr(upper, 25))
    else:
        infinity = float(upper)

n = 1 << 18
wrapped = np.zeros(n, dtype=np.longdouble)
np.add.at(wrapped, (np.arange(size) + first) % n, mass)
composed = scipy.fft.ifft(np.exp(steps * np.log(scipy.fft.fft(wrapped.astype(np.clongdouble))))).real
place = np.arange(-n // 4, n - n // 4)
composed, losses = composed[place % n], place * np.longdouble(interval)
low, high = 0.0, 20.0
for _ in range(80):
    middle = (low + high) / 2
    over = losses > middle
    spent = steps * infinity + float((composed[over] * -np.expm1(middle - losses[over])).sum())
    low, high = (middle, high) if spent > delta else (low, middle)
print(high)
