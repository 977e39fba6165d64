"""A continuous system that is known exactly, to see what a network makes of its samples.

Two inputs, each a sum of sines; four outputs, all 0 at time 0:

    a' = (u1 - a) / 1 s                     low-pass
    b' = (u1 u2 - b) / 0.5 s                product, then low-pass
    c' = (a - c) / 2 s                      cascade of two low-passes
    d' = (tanh(2 u2) - d) / 0.3 s           saturation, then low-pass

Everything lives on a grid of 5 ms, of which 1, 2, 5, 10, 50 and 100 Hz are whole multiples, so that
all samplings of a recording see the same signal.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Ticks = NDArray[np.int64]

GRID = 0.005
"""Seconds between two points of a recording."""
OUTPUTS = ('low-pass', 'product', 'cascade', 'saturation')
TIME_CONSTANTS = (1.0, 0.5, 2.0, 0.3)
SINES = 6
BAND = (0.03, 0.3)
"""Frequencies of the sines in Hz. 1 Hz still samples the fastest more than three times a period, so
that a net has a chance there; see `held` for what the samples alone allow."""
SHORTEST, LONGEST = 0.01, 1.0
"""Jittered intervals, in seconds."""


@dataclass(frozen=True)
class Recording:
    """Inputs u (count, points, 2) and outputs y (count, points, 4) on the grid, from time 0 on."""

    u: Array
    y: Array


@dataclass(frozen=True)
class Samples:
    """What a network gets: sample k comes dt[:, k] seconds after the one before; u is 0 at time 0.

    u (count, steps, 2), dt (count, steps) in seconds, y (count, steps, 4).
    """

    u: Array
    dt: Array
    y: Array


def inputs(count: int, duration: float, seed: int) -> Array:
    """Return (count, points, 2): sums of sines of unit power that all begin at 0, at time 0.

    Beginning at 0, they tell every net what the input was before the first sample.
    """
    rng = np.random.default_rng(seed)
    shape = (count, 2, SINES)
    frequency = np.exp(rng.uniform(math.log(BAND[0]), math.log(BAND[1]), shape))
    amplitude = rng.uniform(0.3, 1.0, shape) * rng.choice((-1.0, 1.0), shape)
    amplitude /= np.sqrt((amplitude**2).sum(axis=-1, keepdims=True) / 2.0)
    time = np.arange(round(duration / GRID) + 1) * GRID
    u = np.zeros((count, len(time), 2))
    for k in range(SINES):  # one at a time: all at once takes SINES times the memory
        angle = 2.0 * np.pi * frequency[:, None, :, k] * time[None, :, None]
        u += amplitude[:, None, :, k] * np.sin(angle)
    return u


def respond(u: Array) -> Array:
    """Return the outputs (count, points, 4) for inputs (count, points, 2) on the grid."""
    tau = np.asarray(TIME_CONSTANTS)
    decay = np.exp(-GRID / tau)
    # exact for a drive that is linear between two points
    late = 1.0 - tau / GRID * (1.0 - decay)
    early = 1.0 - decay - late
    drive = np.stack((u[..., 0], u[..., 0] * u[..., 1], u[..., 0], np.tanh(2.0 * u[..., 1])), -1)
    y = np.zeros_like(drive)
    for k in range(1, y.shape[1]):
        y[:, k, :] = decay * y[:, k - 1] + early * drive[:, k - 1] + late * drive[:, k]
        # the cascade is driven by the low-pass, which has just been computed
        y[:, k, 2] = decay[2] * y[:, k - 1, 2] + early[2] * y[:, k - 1, 0] + late[2] * y[:, k, 0]
    return y


def record(count: int, duration: float, seed: int) -> Recording:
    """Return recordings of `duration` seconds."""
    u = inputs(count, duration, seed)
    return Recording(u, respond(u))


def every(rate: float, duration: float, count: int) -> Ticks:
    """Return the grid points (count, steps) of samples at a rate in Hz.

    Raises:
        ValueError: when the interval is no multiple of the grid.
    """
    stride = round(1.0 / rate / GRID)
    if stride < 1 or abs(stride * GRID * rate - 1.0) > 1e-9:
        raise ValueError(f'{rate} Hz: its interval must be a multiple of {GRID} s')
    ticks = np.arange(stride, round(duration / GRID) + 1, stride)
    return np.tile(ticks, (count, 1))


def jittered(count: int, steps: int, duration: float, rng: np.random.Generator) -> Ticks:
    """Return the grid points (count, steps) of samples at random, log-uniform intervals."""
    ticks = np.zeros((count, steps), np.int64)
    todo = np.arange(count)
    while len(todo):
        interval = np.exp(rng.uniform(math.log(SHORTEST), math.log(LONGEST), (len(todo), steps)))
        ticks[todo] = np.rint(interval / GRID).astype(np.int64).cumsum(axis=1)
        todo = todo[ticks[todo, -1] > round(duration / GRID)]  # rarely longer than the recording
    return ticks


def sample(recording: Recording, ticks: Ticks) -> Samples:
    """Return what is seen at grid points (count, steps)."""
    rows = np.arange(len(ticks))[:, None]
    dt = np.diff(ticks, axis=1, prepend=0) * GRID
    return Samples(recording.u[rows, ticks], dt, recording.y[rows, ticks])


def held(recording: Recording, ticks: Ticks, hold: str) -> Array:
    """Return the outputs at `ticks` of the system itself, given the samples and a hold.

    What it misses is lost by sampling and not by a net; a net can only make up for it by knowing
    what such signals are like.
    """
    points = np.arange(recording.u.shape[1])
    u = np.zeros_like(recording.u)
    for i, (row, own) in enumerate(zip(recording.u, ticks, strict=True)):
        known = np.concatenate(([0], own))
        if hold == 'linear':
            u[i] = np.stack([np.interp(points, known, row[known, c]) for c in range(2)], -1)
        else:
            u[i] = row[known[np.searchsorted(known, points).clip(max=len(known) - 1)]]
    return sample(Recording(u, respond(u)), ticks).y


def nmse(predicted: Array, y: Array) -> float:
    """Return the mean over outputs of (mean squared error / variance), of (..., outputs)."""
    axes = tuple(range(y.ndim - 1))
    return float((((predicted - y) ** 2).mean(axes) / y.var(axes)).mean())
