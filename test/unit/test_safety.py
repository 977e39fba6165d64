import math
import threading
import time

import numpy as np
import pytest

from lnn_ros.safety import Limit, Limiter, Watchdog

SPEED = Limit('linear.x', 0.0, 2.0, 4.0, 0.5)
TURN = Limit('angular.z', -3.0, 3.0, 20.0, 0.0)


@pytest.fixture
def limiter():
    return Limiter([SPEED, TURN])


@pytest.mark.parametrize(
    ('requested', 'dt', 'sent'),
    [
        ((1.0, 1.0), 1.0, (1.0, 1.0)),
        ((9.0, -9.0), 10.0, (2.0, -3.0)),  # clamped
        ((-1e30, 1e30), 10.0, (0.0, 3.0)),
        ((2.0, 3.0), 0.05, (0.7, 1.0)),  # slewed up, from the safe values
        ((0.0, -3.0), 0.05, (0.3, -1.0)),  # and down
        ((2.0, -3.0), 0.0, (0.5, 0.0)),
    ],
)
def test_request_is_held_to_bounds_and_slew(limiter, requested, dt, sent):
    np.testing.assert_allclose(limiter.apply(np.array(requested), dt), sent, atol=1e-12)


def test_slew_goes_on_from_what_was_sent_not_from_what_was_asked(limiter):
    sent = [limiter.apply(np.array([9.0, 9.0]), 0.05).copy() for _ in range(4)]
    np.testing.assert_allclose(sent, [[0.7, 1.0], [0.9, 2.0], [1.1, 3.0], [1.3, 3.0]])
    # back from the bound at once: the request far beyond it was not remembered
    np.testing.assert_allclose(limiter.apply(np.array([0.0, 0.0]), 0.05), [1.1, 2.0])


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize('position', [0, 1])
def test_value_that_is_not_finite_never_passes(limiter, position, bad):
    before = limiter.apply(np.array([0.6, 0.1]), 0.05).copy()
    requested = np.array([0.6, 0.1], dtype=np.float32)
    requested[position] = bad
    assert limiter.apply(requested, 0.05) is None
    # nor has it touched what the slew goes on from
    np.testing.assert_array_equal(limiter.apply(np.array([9.0, 9.0]), 0.0), before)


def test_nothing_random_gets_past_bounds_and_slew(limiter):
    rng = np.random.default_rng(0)
    last = limiter.safe
    for _ in range(2000):
        dt = rng.exponential(0.02)
        sent = limiter.apply(rng.normal(0.0, 3.0, 2).astype(np.float32), dt).copy()
        assert (sent >= [0.0, -3.0]).all() and (sent <= [2.0, 3.0]).all()
        assert (abs(sent - last) <= np.array([4.0, 20.0]) * dt + 1e-12).all()
        last = sent


def test_safe_command_goes_out_at_once_and_the_slew_goes_on_from_it(limiter):
    limiter.apply(np.array([2.0, 3.0]), 10.0)
    np.testing.assert_array_equal(limiter.sent_safe(), [0.5, 0.0])
    np.testing.assert_allclose(limiter.apply(np.array([2.0, 3.0]), 0.05), [0.7, 1.0])


def test_safe_command_cannot_be_overwritten_by_its_receiver(limiter):
    with pytest.raises(ValueError, match='read-only'):
        limiter.sent_safe()[0] = 1.0


def test_narrower_limits_hold_from_the_next_command_on(limiter):
    limiter.apply(np.array([2.0, 3.0]), 10.0)
    limiter.set_limits([Limit('linear.x', 0.0, 1.0, 0.5, 0.0), Limit('angular.z', -3, 3, 2.0, 0.0)])
    sent = limiter.apply(np.array([2.0, 0.0]), 0.1)
    # the bound at once, the slew from what was sent last
    np.testing.assert_allclose(sent, [1.0, 2.8])
    np.testing.assert_array_equal(limiter.sent_safe(), [0.0, 0.0])


@pytest.mark.parametrize(
    ('minimum', 'maximum', 'slew', 'safe', 'text'),
    [
        (1.0, 1.0, 1.0, 1.0, 'minimum 1.0 must be less than maximum 1.0'),
        (2.0, 1.0, 1.0, 1.5, 'minimum 2.0 must be less than maximum 1.0'),
        (0.0, 1.0, 0.0, 0.0, 'slew 0.0 must be greater than 0'),
        (0.0, 1.0, -1.0, 0.0, 'slew -1.0 must be greater than 0'),
        (0.0, 1.0, 1.0, 1.1, 'safe value 1.1 must lie in'),
        (0.0, 1.0, 1.0, -0.1, 'safe value -0.1 must lie in'),
        (math.nan, 1.0, 1.0, 0.0, 'must all be finite'),
        (0.0, math.inf, 1.0, 0.0, 'must all be finite'),
        (0.0, 1.0, math.inf, 0.0, 'must all be finite'),
        (0.0, 1.0, 1.0, math.nan, 'must all be finite'),
    ],
)
def test_limit_that_contradicts_itself_is_refused_by_name(minimum, maximum, slew, safe, text):
    with pytest.raises(ValueError, match=f'linear.x: .*{text}'):
        Limit('linear.x', minimum, maximum, slew, safe)


# The watchdog. Nothing here sleeps: every wait is for a condition and ends when that holds.


class Expiries:
    """Keeps every call of the watchdog with its time, and lets a test wait for the next."""

    def __init__(self):
        self.calls = []
        self._count = threading.Semaphore(0)

    def __call__(self, silence):
        self.calls.append((time.monotonic(), silence))
        self._count.release()

    def wait(self, seconds=20.0):
        return self._count.acquire(timeout=seconds)


@pytest.fixture
def watch():
    """Start watchdogs that are stopped when the test ends, however it ends."""
    started = []

    def start(timeout, on_expire):
        started.append(Watchdog(timeout, on_expire))
        started[-1].start()
        return started[-1]

    yield start
    for watchdog in started:
        watchdog.stop()


def test_watchdog_fires_again_and_again_while_nothing_feeds_it(watch):
    expiries = Expiries()
    begun = time.monotonic()
    watch(0.1, expiries)
    assert all(expiries.wait() for _ in range(4))
    times, silences = zip(*expiries.calls, strict=True)
    assert times[0] - begun >= 0.1
    assert min(np.diff(times)) >= 0.09
    # it tells the whole silence, not the time since it last fired
    assert all(silence >= 0.1 * (i + 1) - 0.01 for i, silence in enumerate(silences))


def test_watchdog_outlives_a_call_that_fails(watch, caplog):
    expiries = Expiries()

    def fail(silence):
        expiries(silence)
        raise RuntimeError('publish failed')

    watch(0.05, fail)
    assert all(expiries.wait() for _ in range(3))
    assert 'publish failed' in caplog.text


def test_watchdog_is_quiet_while_it_is_fed(watch):
    expiries = Expiries()
    watchdog = watch(0.5, expiries)
    begun = fed = time.monotonic()
    longest = 0.0
    while fed - begun < 1.5 and not expiries.wait(0.05):
        watchdog.feed()
        fed, before = time.monotonic(), fed
        longest = max(longest, fed - before)
    assert not expiries.calls or longest > 0.45, 'it fired although it was fed in time'
    assert expiries.wait(), 'it did not fire when feeding ended'


def test_fed_watchdog_counts_the_silence_from_the_last_feed(watch):
    expiries = Expiries()
    watchdog = watch(0.1, expiries)
    assert expiries.wait() and expiries.wait()
    watchdog.feed()
    fed = time.monotonic()
    known = len(expiries.calls)
    assert expiries.wait()
    first = next((at, silence) for at, silence in expiries.calls[known:] if at > fed)
    assert first[0] - fed >= 0.09
    assert first[1] == pytest.approx(first[0] - fed, abs=0.05)


def test_stopped_watchdog_has_ended_its_thread_and_never_fires_again(watch):
    expiries = Expiries()
    watchdog = watch(0.05, expiries)
    assert expiries.wait()
    watchdog.stop()
    assert 'watchdog' not in [thread.name for thread in threading.enumerate()]
    known = len(expiries.calls)
    watchdog.stop()  # harmless
    assert len(expiries.calls) == known


def test_stop_waits_for_a_call_under_way(watch):
    inside, leave, left = threading.Event(), threading.Event(), threading.Event()

    def on_expire(silence):
        inside.set()
        leave.wait(20.0)
        left.set()

    watchdog = watch(0.05, on_expire)
    assert inside.wait(20.0)
    stopper = threading.Thread(target=watchdog.stop)
    stopper.start()
    assert not left.is_set() and stopper.is_alive()
    leave.set()
    stopper.join(20.0)
    assert left.is_set() and not stopper.is_alive()


def test_watchdog_may_be_stopped_from_its_own_call(watch):
    stopped = threading.Event()
    box = []

    def on_expire(silence):
        box[0].stop()
        stopped.set()

    box.append(Watchdog(0.2, on_expire))
    box[0].start()
    assert stopped.wait(20.0)


def test_watchdog_that_never_started_can_be_stopped():
    Watchdog(1.0, Expiries()).stop()


@pytest.mark.parametrize('timeout', [0.0, -1.0, math.nan, math.inf])
def test_watchdog_refuses_a_timeout_that_is_not_a_positive_number(timeout):
    with pytest.raises(ValueError, match='watchdog timeout'):
        Watchdog(timeout, Expiries())
