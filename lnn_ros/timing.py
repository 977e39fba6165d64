"""From header stamps to intervals: what a message's stamp means for the network's state.

Stamps are integer nanoseconds and are only ever subtracted as integers: a float32 second at today's
epoch is 128 s coarse, and a float64 second still loses the last 100 ns.

Several streams (image, IMU) share one state and therefore one time line. `newest` is the stamp that
the state stands at; each stream also has its own last stamp.

| stamp t                                             | verdict               |
|-----------------------------------------------------|-----------------------|
| t <= 0                                              | Drop('unset')         |
| nothing seen yet                                    | Reset('first')        |
| equal to this stream's last                         | Drop('duplicate')     |
| newest - t > jump_threshold                         | Reset('clock_back')   |
| older than this stream's last                       | Drop('out_of_order')  |
| not newer than `newest` (another stream is ahead)   | Late(newest - t)      |
| t - newest > max_gap                                | Reset('gap')          |
| otherwise                                           | Step(t - newest)      |
"""

from __future__ import annotations

import math
from typing import NamedTuple

NS_PER_S = 1_000_000_000


class Step(NamedTuple):
    """Take the message's values, and advance the state by `dt_ns` (> 0) nanoseconds."""

    dt_ns: int


class Late(NamedTuple):
    """The state stands `behind_ns` (>= 0) after this stamp: take the values, do not advance.

    A camera's transport takes longer than an IMU's, so its frames arrive behind the IMU's stamps as
    a rule; dropping them would blind the controller, integrating a negative interval would corrupt
    it.
    """

    behind_ns: int


class Drop(NamedTuple):
    """Ignore the message altogether."""

    reason: str


class Reset(NamedTuple):
    """Forget the state and start again at this stamp."""

    reason: str


Verdict = Step | Late | Drop | Reset

_UNSET = Drop('unset')
_DUPLICATE = Drop('duplicate')
_OUT_OF_ORDER = Drop('out_of_order')


def seconds_to_ns(seconds: float) -> int:
    """Round a duration in seconds to integer nanoseconds."""
    return round(seconds * NS_PER_S)


class Interval:
    """Judges the stamps of every stream that feeds one network state.

    Args:
        max_gap: longest interval, in seconds, over which the state may be integrated.
        jump_threshold: a stamp further back than this, in seconds, means that the clock was set
            back (a bag was restarted, a simulation was reset); less than this is ordinary disorder.

    Raises:
        ValueError: when either is not a positive, finite number.
    """

    def __init__(self, max_gap: float, jump_threshold: float) -> None:
        for name, value in (('max_gap', max_gap), ('jump_threshold', jump_threshold)):
            if not (value > 0.0 and math.isfinite(value)):
                raise ValueError(f'{name} is {value} s, but it must be greater than 0 s and finite')
        self.max_gap_ns = seconds_to_ns(max_gap)
        self.jump_threshold_ns = seconds_to_ns(jump_threshold)
        self.newest_ns = 0
        self._last_ns: dict[str, int] = {}

    def forget(self) -> None:
        """Make the next message the first one again."""
        self.newest_ns = 0
        self._last_ns.clear()

    def judge(self, stream: str, stamp_ns: int) -> Verdict:
        """Say what to do with a message of `stream` stamped `stamp_ns`, and remember the stamp."""
        if stamp_ns <= 0:
            return _UNSET
        if not self.newest_ns:
            return self._reset(stream, stamp_ns, 'first')
        last_ns = self._last_ns.get(stream, 0)
        if stamp_ns == last_ns:
            return _DUPLICATE
        ahead_ns = stamp_ns - self.newest_ns
        if ahead_ns < -self.jump_threshold_ns:
            return self._reset(stream, stamp_ns, 'clock_back')
        if stamp_ns < last_ns:
            return _OUT_OF_ORDER
        if ahead_ns > self.max_gap_ns:
            return self._reset(stream, stamp_ns, 'gap')
        self._last_ns[stream] = stamp_ns
        if ahead_ns <= 0:
            return Late(-ahead_ns)
        self.newest_ns = stamp_ns
        return Step(ahead_ns)

    def _reset(self, stream: str, stamp_ns: int, reason: str) -> Reset:
        self.newest_ns = stamp_ns
        self._last_ns.clear()
        self._last_ns[stream] = stamp_ns
        return Reset(reason)
