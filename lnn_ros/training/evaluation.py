"""Closed-loop evaluation on tracks that training never saw, with 95 % intervals."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lnn_ros.controller import Controller
from lnn_ros.policy import Policy
from lnn_ros.sim.car import CarWorld
from lnn_ros.sim.episode import LaneScore, drive
from lnn_ros.sim.sensors import Stream

Z95 = 1.959964  # two-sided 95 % quantile of the normal distribution


@dataclass(frozen=True)
class Condition:
    """What the sensors do; see `sim.sensors.Stream`. Jitter and drops hit both streams."""

    name: str
    camera_rate: float = 30.0
    imu_rate: float = 100.0
    jitter: float = 0.0
    drop: float = 0.0
    latency: float = 0.0

    def streams(self) -> dict[str, Stream]:
        return {
            'image': Stream(self.camera_rate, self.jitter, self.drop, self.latency),
            'imu': Stream(self.imu_rate, self.jitter, self.drop, 0.0),
        }


NOMINAL = Condition('nominal')
CONDITIONS = {
    condition.name: condition
    for condition in (
        NOMINAL,
        Condition('rate_x0.25', camera_rate=7.5, imu_rate=25.0),
        Condition('rate_x2', camera_rate=60.0, imu_rate=200.0),
        Condition('rate_x4', camera_rate=120.0, imu_rate=400.0),
        Condition('jitter', jitter=0.8),
        Condition('drop_50', drop=0.5),
        Condition('latency', latency=0.1),
        Condition('slow_jitter_drop', camera_rate=10.0, jitter=0.5, drop=0.3),
    )
}


class Evaluation:
    """Drives a policy through conditions and keeps every episode's score.

    Args:
        policy: what drives.
        duration: seconds per episode.
        min_speed: metres along the centre line per second below which an episode is no success: a
            car that crawls stays in its lane for ever.
    """

    def __init__(self, policy: Policy, duration: float = 30.0, min_speed: float = 1.0) -> None:
        self.policy, self.duration, self.min_speed = policy, duration, min_speed
        self.scores: dict[str, list[LaneScore]] = {}
        self._world: CarWorld | None = None

    def run(
        self,
        condition: Condition,
        seeds: Iterable[int],
        on_episode: Callable[[int, LaneScore], None] | None = None,
    ) -> None:
        """Drive one episode per track seed under `condition`."""
        scores = self.scores.setdefault(condition.name, [])
        for seed in seeds:
            if self._world is None:
                self._world = CarWorld(seed)
            self._world.reset(seed)
            score = drive(
                self._world, Controller(self.policy), condition.streams(), seed, self.duration
            )
            scores.append(score)
            if on_episode is not None:
                on_episode(seed, score)

    def close(self) -> None:
        """Free the world's renderer."""
        if self._world is not None:
            self._world.close()

    def succeeded(self, score: LaneScore) -> bool:
        """Never out of the lane, for the whole time, and not by crawling."""
        whole = score.duration > 0.98 * self.duration
        return whole and not score.leaves and score.mean_speed >= self.min_speed

    def rows(self) -> list[dict[str, Any]]:
        """Return one flat row per figure: success (Wilson), progress and error (bootstrap)."""
        rows = []
        for name, scores in self.scores.items():
            wins = sum(self.succeeded(score) for score in scores)
            figures = {
                'success': ('1', wins / len(scores), *wilson(wins, len(scores))),
                'progress': ('m', *bootstrap([score.progress for score in scores])),
                'error': ('m', *bootstrap([score.mean_error for score in scores])),
            }
            for metric, (unit, value, low, high) in figures.items():
                rows.append(
                    {
                        'name': name,
                        'metric': metric,
                        'value': value,
                        'low': low,
                        'high': high,
                        'n': len(scores),
                        'unit': unit,
                    }
                )
        return rows

    def summary(self, name: str) -> dict[str, float]:
        """Return the values alone of one condition."""
        return {row['metric']: row['value'] for row in self.rows() if row['name'] == name}


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Return the 95 % interval of a proportion (Wilson 1927)."""
    p, z2 = successes / n, Z95 * Z95
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * np.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return max(float(centre - half), 0.0), min(float(centre + half), 1.0)


def bootstrap(values: Sequence[float], resamples: int = 10_000) -> tuple[float, float, float]:
    """Return (mean, low, high): the mean and its 95 % percentile bootstrap interval."""
    sample = np.asarray(values)
    rng = np.random.default_rng(0)
    means = sample[rng.integers(0, sample.size, (resamples, sample.size))].mean(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(sample.mean()), float(low), float(high)
