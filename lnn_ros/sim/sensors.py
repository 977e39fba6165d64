"""When sensors sample, which samples are lost and when the rest arrive; knows no engine."""

import heapq
import math
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np


@dataclass(frozen=True)
class Stream:
    """How one sensor samples.

    rate: nominal samples per second, > 0.
    jitter: each interval is multiplied by 1 + jitter * U(-1, 1); 0 <= jitter < 1.
    drop: probability that a sample never arrives; 0 <= drop < 1.
    latency: s from capture to delivery, >= 0.
    Raises ValueError for anything else.
    """

    rate: float
    jitter: float = 0.0
    drop: float = 0.0
    latency: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 < self.rate < np.inf:
            raise ValueError(
                f'rate {self.rate} Hz is not positive and finite: give the nominal sample rate'
            )
        for name, value, cure in (
            ('jitter', self.jitter, '0.2 varies each interval by up to 20 %'),
            ('drop', self.drop, '0.1 loses one sample in ten'),
        ):
            if not 0.0 <= value < 1.0:
                raise ValueError(f'{name} {value} is outside 0 <= {name} < 1: {cure}')
        if not 0.0 <= self.latency < np.inf:
            raise ValueError(
                f'latency {self.latency} s is negative or not finite: a sample cannot arrive '
                'before its capture, use 0 for none'
            )


class Event(NamedTuple):
    """One thing that happens to one sample.

    capture: render the image or read the IMU now, at `time_ns`.
    delivery: hand the sample captured at `stamp_ns` to its subscribers.
    drop: the sample just captured is lost; it has closed the sensor's averaging window.
    """

    time_ns: int
    kind: Literal['capture', 'delivery', 'drop']
    stream: str
    stamp_ns: int


def deliveries(
    streams: Mapping[str, Stream], start_ns: int, seed: int, step_ns: int = 1_000_000
) -> Iterator[Event]:
    """Yield, without end and in time order, the events of all streams after `start_ns`.

    Captures fall on physics steps of `step_ns`, counted from `start_ns`, and so do deliveries;
    the stamps of one stream strictly increase. A capture is followed at once by its drop or, at
    latency 0, by its delivery. What is due at the same time comes in the order: deliveries, then
    captures, each in the order of `streams`. A stream's times depend on the seed, its name and
    its own settings, not on the other streams.

    Raises ValueError if a stream samples faster than the physics steps.
    """
    for name, stream in streams.items():
        if stream.rate * step_ns > (1.0 - stream.jitter) * 1e9:
            raise ValueError(
                f'{name}: intervals at {stream.rate} Hz and jitter {stream.jitter} can be shorter '
                f'than the physics step of {step_ns} ns: lower the rate or the jitter'
            )
    return _merge(streams, start_ns, seed, step_ns)


def _merge(
    streams: Mapping[str, Stream], start_ns: int, seed: int, step_ns: int
) -> Iterator[Event]:
    names = list(streams)
    # The name's checksum, not hash(), which changes from process to process.
    rngs = {name: np.random.default_rng([seed, zlib.crc32(name.encode())]) for name in names}
    # Time in nominal intervals since the start: with jitter 0 a whole number, hence no drift.
    elapsed = dict.fromkeys(names, 0.0)
    queue: list[tuple[int, bool, int, int]] = []  # time, is it a capture, stream, stamp

    def push_capture(index: int) -> None:
        name = names[index]
        stream = streams[name]
        elapsed[name] += 1.0 + stream.jitter * rngs[name].uniform(-1.0, 1.0)
        steps = math.floor(elapsed[name] * 1e9 / (stream.rate * step_ns) + 0.5)
        time_ns = start_ns + steps * step_ns
        heapq.heappush(queue, (time_ns, True, index, time_ns))

    for index in range(len(names)):
        push_capture(index)
    while queue:
        time_ns, is_capture, index, stamp_ns = heapq.heappop(queue)
        name = names[index]
        if not is_capture:
            yield Event(time_ns, 'delivery', name, stamp_ns)
            continue
        yield Event(time_ns, 'capture', name, stamp_ns)
        latency_ns = round(streams[name].latency * 1e9 / step_ns) * step_ns
        # Drawn whatever the settings, so that `drop` does not shift the times under jitter.
        if rngs[name].random() < streams[name].drop:
            yield Event(time_ns, 'drop', name, stamp_ns)
        elif latency_ns == 0:
            yield Event(time_ns, 'delivery', name, stamp_ns)
        else:
            heapq.heappush(queue, (time_ns + latency_ns, False, index, stamp_ns))
        push_capture(index)
