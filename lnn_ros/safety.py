"""The last word before a motor: finite check, clamp, slew, modes, and a watchdog on real time."""

from __future__ import annotations

import enum
import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


class Mode(enum.Enum):
    """What the controller is doing; only RUNNING sends the network's command."""

    WAITING = 'waiting'  # some input has not been seen yet
    WARMUP = 'warm-up'  # the state is too young to be trusted
    RUNNING = 'running'
    STALE = 'stale'  # an input is older than its max_age
    FAULT = 'fault'  # the network gave a value that is not finite


@dataclass(frozen=True)
class Limit:
    """Bounds of one output.

    Attributes:
        name: the output's name, for messages.
        minimum, maximum: bounds, in the output's unit.
        slew: largest change per second, in the output's unit per second.
        safe: the value that is sent whenever the network's may not be.
    """

    name: str
    minimum: float
    maximum: float
    slew: float
    safe: float

    def __post_init__(self) -> None:
        numbers = (self.minimum, self.maximum, self.slew, self.safe)
        if not all(math.isfinite(number) for number in numbers):
            raise ValueError(f'{self.name}: limits {numbers} must all be finite')
        if not self.minimum < self.maximum:
            raise ValueError(
                f'{self.name}: minimum {self.minimum} must be less than maximum {self.maximum}'
            )
        if not self.minimum <= self.safe <= self.maximum:
            raise ValueError(
                f'{self.name}: safe value {self.safe} must lie in [{self.minimum}, {self.maximum}]'
            )
        if not self.slew > 0.0:
            raise ValueError(f'{self.name}: slew {self.slew} must be greater than 0')


class Limiter:
    """Applies the limits of every output; a value that is not finite never passes.

    `limits` may be replaced between calls (parameters change at run time).
    """

    def __init__(self, limits: Sequence[Limit]) -> None:
        self._last = np.array([limit.safe for limit in limits])
        self.set_limits(limits)

    def set_limits(self, limits: Sequence[Limit]) -> None:
        """Replace the limits; what was sent last is kept, so that the slew goes on from it."""
        self.limits = tuple(limits)
        self.safe = np.array([limit.safe for limit in limits])
        self.safe.flags.writeable = False

    def apply(self, requested: NDArray[np.floating], dt: float) -> NDArray[np.float64] | None:
        """Clamp `requested` (outputs,) to the bounds and to the slew over `dt` seconds.

        Returns:
            the values to send, a view that the next call overwrites, or None if any requested value
            is not finite (min and max would otherwise turn a NaN into a plausible command).
        """
        values = requested.tolist()  # a few numbers: plain Python takes a third of numpy's time
        if not all(map(math.isfinite, values)):
            return None
        for i, limit in enumerate(self.limits):
            last, reach = self._last.item(i), limit.slew * dt
            value = min(max(values[i], last - reach), last + reach)
            self._last[i] = min(max(value, limit.minimum), limit.maximum)
        return self._last

    def sent_safe(self) -> NDArray[np.float64]:
        """Take note that the safe command goes out now (at once: no slew), and return it."""
        self._last[:] = self.safe
        return self.safe


class Watchdog:
    """Calls `on_expire` from its own thread when `feed` has not been called for `timeout` seconds.

    It runs on the monotonic clock, so a paused simulation clock, a set-back system clock or a
    blocked executor cannot hold it up. While nothing feeds it, it calls again every `timeout`.
    """

    def __init__(self, timeout: float, on_expire: Callable[[float], None]) -> None:
        if not (timeout > 0.0 and math.isfinite(timeout)):
            raise ValueError(f'watchdog timeout is {timeout} s, but it must be greater than 0 s')
        self.timeout = timeout
        self._on_expire = on_expire
        self._fed = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name='watchdog', daemon=True)

    def start(self) -> None:
        """Start to watch; the first time-out counts from now."""
        self.feed()
        self._thread.start()

    def feed(self) -> None:
        """Say that a command has just gone out."""
        self._fed = time.monotonic()

    def stop(self) -> None:
        """End the thread; `on_expire` is not called after this returns."""
        self._stop.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        deadline = self._fed + self.timeout
        while not self._stop.wait(max(deadline - time.monotonic(), 0.0)):
            now = time.monotonic()
            silence = now - self._fed
            if silence >= self.timeout:
                try:
                    self._on_expire(silence)
                except Exception:  # this thread must outlive it: the next call may get through
                    logging.getLogger(__name__).exception('watchdog: the safe command failed')
                deadline = now + self.timeout
            else:
                deadline = self._fed + self.timeout
