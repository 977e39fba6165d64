"""What the controller's engine is told while somebody drives, with the expert's command beside it.

The recorder stands in the engine's place inside the real `Controller`, so the network is trained on
exactly the sequence of intervals and held inputs that it meets at run time.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lnn_ros import policy as policy_file
from lnn_ros.controller import Command, Controller
from lnn_ros.core import Engine, open_engine
from lnn_ros.policy import Policy
from lnn_ros.sim.car import CarWorld
from lnn_ros.sim.episode import Twist, drive
from lnn_ros.sim.expert import PurePursuit
from lnn_ros.sim.sensors import Stream

RESCUE_BEYOND, RESCUE_WITHIN = 0.6, 0.1  # m from the centre line


@dataclass(frozen=True)
class Range:
    """A value drawn uniformly, or log-uniformly for rates, once per episode."""

    low: float
    high: float

    def draw(self, rng: np.random.Generator, log: bool = False) -> float:
        if log:
            return float(np.exp(rng.uniform(np.log(self.low), np.log(self.high))))
        return float(rng.uniform(self.low, self.high))


@dataclass(frozen=True)
class Collection:
    """How episodes are driven for training.

    Attributes:
        rows: messages per episode (an episode with a slower camera lasts longer).
        camera_rate, imu_rate: Hz; drawn log-uniformly per episode.
        jitter, drop, latency: as in `sim.sensors.Stream`; the latency is the camera's.
        burst_rate: bursts of action noise per second; each adds a constant for 0.2 to 0.8 s.
        burst_angular_z, burst_linear_x: largest addition, in rad/s and m/s.
    """

    rows: int
    camera_rate: Range
    imu_rate: Range
    jitter: Range
    drop: Range
    latency: Range
    burst_rate: float
    burst_angular_z: float
    burst_linear_x: float


class Recorder:
    """An engine (see `core.Engine`) that passes calls on and keeps what the network was told."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.state = engine.state
        self.images: list[NDArray[np.float16]] = []
        self.dt, self.age = 0.0, 0.0
        self._imu: NDArray[np.float32] | None = None
        self.rows: list[tuple[float, int, float, NDArray[np.float32]]] = []

    def reset(self) -> None:
        self._engine.reset()

    def hold_image(self, pixels: NDArray[np.float32]) -> None:
        self.images.append(pixels.astype(np.float16))
        self._engine.hold_image(pixels)

    def hold_image_age(self, age: float) -> None:
        self.age = age
        self._engine.hold_image_age(age)

    def hold_imu(self, values: NDArray[np.float32]) -> None:
        self._imu = values.copy()
        self._engine.hold_imu(values)

    def advance(self, dt: float) -> None:
        self.dt = dt
        self._engine.advance(dt)

    def jump(self) -> None:
        self._engine.jump()

    def command(self) -> NDArray[np.float32]:
        return self._engine.command()

    def end_of_message(self) -> bool:
        """Close the row of one message; False while some input has not been seen yet."""
        if not self.images or self._imu is None:
            return False
        self.rows.append((self.dt, len(self.images) - 1, self.age, self._imu))
        self.dt = 0.0
        return True


class Disturbance:
    """Bursts of action noise, so that the expert shows the way back to its line."""

    def __init__(self, collection: Collection, rng: np.random.Generator) -> None:
        self._collection, self._rng = collection, rng
        self._until = 0.0
        self._added = (0.0, 0.0)
        self._next = rng.exponential(1.0 / collection.burst_rate)

    def add(self, twist: Twist, now: float) -> Twist:
        """Return `twist` with what is added at `now` seconds."""
        if now >= self._next:
            spec = self._collection
            self._added = (
                self._rng.uniform(-spec.burst_linear_x, spec.burst_linear_x),
                self._rng.uniform(-spec.burst_angular_z, spec.burst_angular_z),
            )
            self._until = now + self._rng.uniform(0.2, 0.8)
            self._next = self._until + self._rng.exponential(1.0 / spec.burst_rate)
        if now >= self._until:
            return twist
        return max(twist[0] + self._added[0], 0.0), twist[1] + self._added[1]


def collect_episode(
    world: CarWorld, policy: Policy, collection: Collection, seed: int, student: bool
) -> dict[str, NDArray[Any]]:
    """Drive one episode on the track `seed` and return what the network was told.

    Args:
        student: the policy drives and the expert only says what it would have done (DAgger, Ross et
            al. 2011); otherwise the expert drives.

    Returns:
        images (n, channels, height, width) float16; per message: dt (rows,) s, image (rows,) index
        of the frame held after it, age (rows,) s, imu (rows, fields), target (rows, outputs) in SI
        units.
    """
    rng = np.random.default_rng((seed, int(student)))
    faults = collection.jitter.draw(rng), collection.drop.draw(rng)
    streams = {
        'image': Stream(
            collection.camera_rate.draw(rng, log=True), *faults, collection.latency.draw(rng)
        ),
        'imu': Stream(collection.imu_rate.draw(rng, log=True), *faults, 0.0),
    }
    world.reset(seed)
    start_ns = world.time_ns
    expert = PurePursuit()
    disturbance = Disturbance(collection, rng)
    recorder = Recorder(open_engine(policy))
    controller = Controller(policy, engine=recorder)
    targets: list[Twist] = []
    rescue = not student

    def act(command: Command) -> Twist:
        nonlocal rescue
        if student:  # far off the road there is nothing to learn: the expert brings the car back
            off = abs(world.truth().lateral)
            rescue = off > RESCUE_BEYOND or (rescue and off > RESCUE_WITHIN)
        twist = expert(world) if rescue else (float(command.values[0]), float(command.values[1]))
        return disturbance.add(twist, (command.stamp_ns - start_ns) * 1e-9)

    def on_message(stream: str) -> bool:
        if recorder.end_of_message():
            targets.append(expert(world))
        return len(targets) == collection.rows

    # the bound is far beyond any rate that is drawn: an episode ends with its rows
    drive(world, controller, streams, seed, 600.0, act, on_message)
    if len(targets) < collection.rows:
        raise RuntimeError(
            f'track {seed}: the car was lost after {len(targets)} of {collection.rows} messages; '
            'make the bursts smaller'
        )
    dt, image, age, imu = zip(*recorder.rows, strict=True)
    return {
        'images': np.stack(recorder.images),
        'dt': np.array(dt, dtype=np.float32),
        'image': np.array(image, dtype=np.int64),
        'age': np.array(age, dtype=np.float32),
        'imu': np.stack(imu),
        'target': np.array(targets, dtype=np.float32),
    }


def collect(
    policy_path: Path,
    collection: Collection,
    seeds: list[int],
    student: bool,
    folder: Path,
    processes: int,
) -> Iterator[Path]:
    """Drive the episodes that `folder` does not hold yet; yield each one's file as it is there."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {seed: folder / f'{seed}.npz' for seed in seeds}
    missing = [seed for seed, path in paths.items() if not path.exists()]
    yield from (path for seed, path in paths.items() if seed not in missing)
    if not missing:
        return
    # spawn: a forked copy of an OpenGL context or of torch's threads does not work
    with ProcessPoolExecutor(processes, get_context('spawn')) as pool:
        jobs = [
            pool.submit(_collect_to_file, policy_path, collection, seed, student, paths[seed])
            for seed in missing
        ]
        for job in jobs:
            yield job.result()


_worlds: list[CarWorld] = []  # one per worker process: a renderer takes a second to make


def _collect_to_file(
    policy_path: Path, collection: Collection, seed: int, student: bool, path: Path
) -> Path:
    if not _worlds:
        _worlds.append(CarWorld(seed))
    episode = collect_episode(_worlds[0], policy_file.load(policy_path), collection, seed, student)
    partial = path.with_suffix('.part')
    with partial.open('wb') as file:
        np.savez(file, **episode)  # type: ignore[arg-type]
    partial.replace(path)
    return path
