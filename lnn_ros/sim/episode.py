"""A closed loop in one process: world -> sensors -> controller -> world, without DDS."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from lnn_ros.controller import Command, Controller
from lnn_ros.sim.car import CarTruth, CarWorld
from lnn_ros.sim.sensors import Stream, deliveries
from lnn_ros.timing import NS_PER_S, seconds_to_ns

Twist = tuple[float, float]
"""(linear.x in m/s, angular.z in rad/s) of base_link, as in REP 103."""


@dataclass
class LaneScore:
    """How a drive went, judged on the privileged state.

    Attributes:
        leaves: how often a wheel went out of the lane (back in and out again counts twice).
        progress: metres driven along the centre line.
        duration: seconds that were judged.
        mean_error, max_error: of the absolute lateral offset from the centre line, in metres.
    """

    leaves: int = 0
    progress: float = 0.0
    duration: float = 0.0
    max_error: float = 0.0
    _weighted: float = 0.0
    _in_lane: bool = True

    @property
    def mean_error(self) -> float:
        return self._weighted / self.duration if self.duration else 0.0

    @property
    def mean_speed(self) -> float:
        """Metres along the centre line per second."""
        return self.progress / self.duration if self.duration else 0.0

    def add(self, truth: CarTruth, dt: float) -> None:
        """Judge `dt` seconds that ended at `truth`."""
        self.leaves += self._in_lane and not truth.in_lane
        self._in_lane = truth.in_lane
        self.progress = truth.progress
        self.duration += dt
        self._weighted += abs(truth.lateral) * dt
        self.max_error = max(self.max_error, abs(truth.lateral))


def drive(
    world: CarWorld,
    controller: Controller,
    streams: Mapping[str, Stream],
    seed: int,
    duration: float,
    act: Callable[[Command], Twist] | None = None,
    on_message: Callable[[str], bool] | None = None,
) -> LaneScore:
    """Let `controller` drive `world` from where it stands; the world is reset by the caller.

    Args:
        streams: `image` and `imu`, see `sim.sensors.Stream`.
        seed: of jitter and drops.
        duration: seconds at most.
        act: chooses what is driven given the controller's command; by default that command.
        on_message: called with the stream after every delivered message; True ends the drive.

    Returns:
        how it went. The drive ends early when the car has left its lane by more than 2 m.
    """
    score = LaneScore()
    start_ns = last_ns = world.time_ns
    end_ns = start_ns + seconds_to_ns(duration)
    captured: dict[tuple[str, int], tuple[np.ndarray, ...]] = {}
    for event in deliveries(streams, start_ns, seed):
        if event.time_ns > end_ns:
            break
        world.advance_to(event.time_ns)
        key = (event.stream, event.stamp_ns)
        if event.kind == 'capture':
            captured[key] = (world.image(),) if event.stream == 'image' else world.imu()
            continue
        sample = captured.pop(key)
        if event.kind == 'drop':
            continue
        if event.stream == 'image':
            height, width, _ = sample[0].shape
            command = controller.on_image(
                sample[0], height, width, 'rgb8', 3 * width, event.stamp_ns
            )
        else:
            command = controller.on_imu(sample[0].tolist(), sample[1].tolist(), event.stamp_ns)
        if command is not None:
            values = act(command) if act else (command.values[0], command.values[1])
            world.command(*values)
            truth = world.truth()
            score.add(truth, (event.time_ns - last_ns) / NS_PER_S)
            last_ns = event.time_ns
            if abs(truth.lateral) > 2.0:
                break
        if on_message is not None and on_message(event.stream):
            break
    return score
