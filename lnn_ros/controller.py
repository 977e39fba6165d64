"""The straight way: message -> interval -> held inputs -> network step -> limits -> command.

One object, used live by the node and in the simulator's process, so that both compute the same
thing. It knows neither ROS nor torch and it has no clock: time is what the stamps say.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lnn_ros.core import Engine, open_engine
from lnn_ros.observation import ImageReader, ImuReader, ObservationError
from lnn_ros.policy import Policy
from lnn_ros.safety import Limit, Limiter, Mode
from lnn_ros.timing import NS_PER_S, Drop, Interval, Late, Reset, Step, Verdict, seconds_to_ns


class Command(NamedTuple):
    """What to send to the motors.

    Attributes:
        values: (outputs,) in the contract's units; a view that the next command overwrites.
        stamp_ns: stamp of the message that brought it.
        mode: anything but RUNNING means that `values` is the safe command.
    """

    values: NDArray[np.float64]
    stamp_ns: int
    mode: Mode


@dataclass(frozen=True)
class Settings:
    """How a controller treats time; all in seconds but `warmup_steps`.

    Attributes:
        max_gap: longest interval that is integrated; a longer one resets the state.
        jump_threshold: a stamp further back than this resets the state.
        max_age: per stream, how old its newest message may be; older is STALE.
        warmup_steps: trigger messages after a reset whose command is not used.
    """

    max_gap: float = 0.5
    jump_threshold: float = 1.0
    max_age: Mapping[str, float] = field(default_factory=lambda: {'image': 1.0, 'imu': 0.2})
    warmup_steps: int = 5

    def __post_init__(self) -> None:
        for stream, age in self.max_age.items():
            if not (age > 0.0 and math.isfinite(age)):
                raise ValueError(
                    f'max_age of {stream} is {age} s, but it must be greater than 0 s and finite'
                )
        if self.warmup_steps < 0:
            raise ValueError(f'warmup_steps is {self.warmup_steps}, but it must not be negative')


def policy_limits(policy: Policy) -> list[Limit]:
    """Return the limits that a policy was trained with."""
    return [Limit(o.name, o.min, o.max, o.slew, o.safe) for o in policy.contract.outputs]


class Controller:
    """Turns sensor messages into commands.

    Args:
        policy: the network and its contract.
        settings: how time is treated.
        engine: runs the network; by default the fastest one there is.

    Attributes:
        mode: see `safety.Mode`.
        counts: messages `received/<stream>`, `late/<stream>`, `drop/<stream>/<reason>`,
            `reset/<reason>` and `fault`.
        dt: the last interval over which the state was advanced, in seconds (0 when the last message
            brought none).
    """

    def __init__(
        self, policy: Policy, settings: Settings | None = None, engine: Engine | None = None
    ) -> None:
        self.settings = settings or Settings()
        self.policy = policy
        self.engine = engine or open_engine(policy)
        self.limiter = Limiter(policy_limits(policy))
        self.interval = Interval(self.settings.max_gap, self.settings.jump_threshold)
        self.counts: Counter[str] = Counter()
        self.mode = Mode.WAITING
        self.dt = 0.0
        contract = policy.contract
        self._trigger = contract.trigger
        self._image = ImageReader(contract.image) if contract.image else None
        self._imu = ImuReader(contract.imu) if contract.imu else None
        self._max_age_ns = {s: seconds_to_ns(self.settings.max_age[s]) for s in contract.streams}
        self._held_ns: dict[str, int] = {}  # stamp of what is held, per stream
        self._commanded_ns = 0
        self._warmup = self.settings.warmup_steps
        self._reset_reason = ''

    def reset(self) -> None:
        """Forget the state and every held input, as at the start."""
        self.interval.forget()
        self._restart()
        self._reset_reason = 'requested'

    def stop(self) -> NDArray[np.float64]:
        """Take note that the safe command goes out between two messages; return it.

        The next command's slew starts from it: the silence before does not count.
        """
        self._commanded_ns = 0
        return self.limiter.sent_safe()

    def on_image(
        self, data: object, height: int, width: int, encoding: str, step: int, stamp_ns: int
    ) -> Command | None:
        """Take a frame (see `ImageReader.read`); return a command if frames are the trigger.

        Raises:
            ObservationError: the frame is ignored; nothing has changed.
        """
        self.counts['received/image'] += 1
        self.dt = 0.0
        if self._image is None:
            return None
        try:
            pixels = self._image.read(data, height, width, encoding, step)
        except ObservationError:
            self.counts['drop/image/unreadable'] += 1
            raise
        verdict = self._judge('image', stamp_ns)
        if isinstance(verdict, Drop):
            return None
        self.engine.hold_image(pixels)
        return self._advance('image', stamp_ns, verdict)

    def on_imu(
        self,
        angular_velocity: Sequence[float],
        linear_acceleration: Sequence[float],
        stamp_ns: int,
    ) -> Command | None:
        """Take an IMU sample (see `ImuReader.read`); return a command if the IMU is the trigger.

        Raises:
            ObservationError: the sample is ignored; nothing has changed.
        """
        self.counts['received/imu'] += 1
        self.dt = 0.0
        if self._imu is None:
            return None
        try:
            values = self._imu.read(angular_velocity, linear_acceleration)
        except ObservationError:
            self.counts['drop/imu/unreadable'] += 1
            raise
        verdict = self._judge('imu', stamp_ns)
        if isinstance(verdict, Drop):
            return None
        self.engine.hold_imu(values)
        return self._advance('imu', stamp_ns, verdict)

    def _judge(self, stream: str, stamp_ns: int) -> Verdict:
        """Count what a stamp means, and start anew if it says so."""
        verdict = self.interval.judge(stream, stamp_ns)
        if isinstance(verdict, Drop):
            self.counts[f'drop/{stream}/{verdict.reason}'] += 1
        elif isinstance(verdict, Reset):
            self.counts[f'reset/{verdict.reason}'] += 1
            self._restart()
            self._reset_reason = verdict.reason
            self._commanded_ns = stamp_ns
        elif isinstance(verdict, Late):
            self.counts[f'late/{stream}'] += 1
        return verdict

    def _advance(self, stream: str, stamp_ns: int, verdict: Verdict) -> Command | None:
        """Bring the state to the newest stamp with what is held now; command if asked to."""
        were_all_there = len(self._held_ns) == len(self._max_age_ns)
        self._held_ns[stream] = stamp_ns
        now_ns = self.interval.newest_ns
        if 'image' in self._held_ns:
            self.engine.hold_image_age((now_ns - self._held_ns['image']) / NS_PER_S)
        if were_all_there and isinstance(verdict, Step):
            self.dt = verdict.dt_ns / NS_PER_S
            self.engine.advance(self.dt)
        else:
            self.engine.jump()
        return self._command(now_ns, stamp_ns) if stream == self._trigger else None

    def _command(self, now_ns: int, stamp_ns: int) -> Command:
        values = self.limiter.safe
        if len(self._held_ns) < len(self._max_age_ns):
            self.mode = Mode.WAITING
        elif any(now_ns - self._held_ns[s] > age for s, age in self._max_age_ns.items()):
            self.mode = Mode.STALE
            # the state went on without that input, further than training ever saw
            self.engine.reset()
            self._warmup = self.settings.warmup_steps
        elif self._warmup > 0:
            self._warmup -= 1
            self.mode = Mode.WARMUP
        else:
            # now_ns: a trigger behind the other stream is as late as the state that answers it
            since_ns = now_ns - self._commanded_ns if self._commanded_ns else 0
            limited = self.limiter.apply(self.engine.command(), since_ns / NS_PER_S)
            if limited is None:
                self.counts['fault'] += 1
                self._restart()
                self._reset_reason = 'fault'
                self.mode = Mode.FAULT
            else:
                self.mode = Mode.RUNNING
                values = limited
        if self.mode is not Mode.RUNNING:
            values = self.limiter.sent_safe()
        self._commanded_ns = now_ns
        return Command(values, stamp_ns, self.mode)

    def why(self) -> str:
        """Say what keeps the mode from RUNNING, for a log line."""
        if self.mode is Mode.WAITING:
            missing = [stream for stream in self._max_age_ns if stream not in self._held_ns]
            return f'no {" and no ".join(missing)} since the last reset ({self._reset_reason})'
        if self.mode is Mode.STALE:
            ages = {s: self.interval.newest_ns - held for s, held in self._held_ns.items()}
            return ' and '.join(
                f'{s} is {ages[s] / NS_PER_S:.2f} s old (max_age {most / NS_PER_S:g} s)'
                for s, most in self._max_age_ns.items()
                if ages[s] > most
            )
        return 'a value is not finite' if self.mode is Mode.FAULT else ''

    def _restart(self) -> None:
        self.engine.reset()
        self._held_ns.clear()
        self._warmup = self.settings.warmup_steps
        self.mode = Mode.WAITING
