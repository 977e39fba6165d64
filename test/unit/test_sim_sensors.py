from itertools import islice, takewhile

import numpy as np
import pytest

from lnn_ros.sim.sensors import Stream, deliveries

SECOND = 1_000_000_000
START = SECOND


def events(seconds, seed=0, **streams):
    """Return the list of events of the first `seconds`."""
    endless = deliveries(streams, START, seed)
    return list(takewhile(lambda e: e.time_ns <= START + seconds * SECOND, endless))


def stamps(happened, stream, kind='capture'):
    return np.array([e.stamp_ns for e in happened if e.stream == stream and e.kind == kind])


def test_mean_rate_does_not_drift_without_jitter():
    captures = stamps(events(100, image=Stream(rate=30.0)), 'image')
    assert len(captures) == 3000
    assert captures[-1] == START + 100 * SECOND
    assert set(np.diff(captures) // 1_000_000) == {33, 34}


def test_captures_fall_on_physics_steps():
    captures = stamps(events(10, image=Stream(rate=29.97, jitter=0.5)), 'image')
    assert not np.any((captures - START) % 1_000_000)


def test_jitter_varies_the_intervals_uniformly_and_keeps_the_mean():
    intervals = np.diff(stamps(events(400, imu=Stream(rate=50.0, jitter=0.4)), 'imu')) / 20e6
    assert intervals.mean() == pytest.approx(1.0, abs=0.01)
    assert intervals.std() == pytest.approx(0.4 / np.sqrt(3), abs=0.01)
    assert intervals.min() >= 0.55 and intervals.max() <= 1.45
    assert np.quantile(intervals, [0.25, 0.75]) == pytest.approx([0.8, 1.2], abs=0.06)


def test_stamps_strictly_increase_at_the_highest_rate_and_jitter():
    happened = events(20, imu=Stream(rate=500.0, jitter=0.5))
    assert np.diff(stamps(happened, 'imu')).min() >= 1_000_000


def test_dropped_samples_are_captured_and_never_delivered():
    happened = events(200, image=Stream(rate=30.0, drop=0.3, latency=0.05))
    captured = set(stamps(happened, 'image'))
    dropped = set(stamps(happened, 'image', 'drop'))
    delivered = set(stamps(happened, 'image', 'delivery'))
    assert len(dropped) / len(captured) == pytest.approx(0.3, abs=0.03)
    assert not dropped & delivered
    still_under_way = captured - dropped - delivered
    assert all(stamp > START + 199.9 * SECOND for stamp in still_under_way)


def test_latency_delays_the_delivery_and_leaves_the_stamp():
    happened = events(5, image=Stream(rate=30.0, jitter=0.2, latency=0.08))
    arrivals = [e for e in happened if e.kind == 'delivery']
    assert {e.time_ns - e.stamp_ns for e in arrivals} == {80_000_000}
    assert {e.stamp_ns for e in arrivals} <= set(stamps(happened, 'image'))
    assert len(arrivals) > 140


def test_without_latency_the_delivery_follows_its_capture_at_once():
    happened = events(3, image=Stream(rate=30.0), imu=Stream(rate=100.0))
    for capture, delivery in zip(happened[::2], happened[1::2], strict=True):
        assert capture.kind == 'capture'
        assert delivery == capture._replace(kind='delivery')


def test_events_come_in_time_order():
    happened = events(
        20,
        image=Stream(rate=30.0, jitter=0.3, drop=0.2, latency=0.07),
        imu=Stream(rate=100.0, jitter=0.3, latency=0.004),
    )
    times = [e.time_ns for e in happened]
    assert times == sorted(times)
    assert {e.kind for e in happened} == {'capture', 'delivery', 'drop'}


def test_same_seed_repeats_and_another_seed_differs():
    stream = Stream(rate=30.0, jitter=0.3, drop=0.2)
    assert events(5, seed=1, image=stream) == events(5, seed=1, image=stream)
    assert events(5, seed=1, image=stream) != events(5, seed=2, image=stream)


def test_one_stream_does_not_depend_on_the_other():
    image = Stream(rate=30.0, jitter=0.3, drop=0.2)
    alone = [e for e in events(5, image=image) if e.stream == 'image']
    beside = events(5, imu=Stream(rate=200.0, jitter=0.5, drop=0.5), image=image)
    assert alone == [e for e in beside if e.stream == 'image']


def test_capture_times_do_not_depend_on_drop_and_latency():
    plain = events(5, image=Stream(rate=30.0, jitter=0.3))
    faulty = events(5, image=Stream(rate=30.0, jitter=0.3, drop=0.5, latency=0.1))
    assert np.array_equal(stamps(plain, 'image'), stamps(faulty, 'image'))


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ({'rate': 0.0}, 'rate 0.0 Hz is not positive'),
        ({'rate': float('nan')}, 'rate nan Hz'),
        ({'rate': float('inf')}, 'rate inf Hz'),
        ({'rate': 30.0, 'jitter': 1.0}, 'jitter 1.0 is outside 0 <= jitter < 1'),
        ({'rate': 30.0, 'drop': -0.1}, 'drop -0.1 is outside 0 <= drop < 1'),
        ({'rate': 30.0, 'drop': float('nan')}, 'drop nan'),
        ({'rate': 30.0, 'latency': -0.01}, 'latency -0.01 s is negative'),
    ],
)
def test_impossible_settings_are_refused_with_value_and_rule(settings, message):
    with pytest.raises(ValueError, match=message):
        Stream(**settings)


def test_a_rate_above_that_of_the_physics_is_refused_before_the_first_event():
    with pytest.raises(ValueError, match='imu: intervals at 1500.0 Hz'):
        deliveries({'imu': Stream(rate=1500.0)}, START, 0)
    fastest = deliveries({'imu': Stream(rate=1000.0)}, START, 0)
    assert [e.stamp_ns for e in islice(fastest, 4)][::2] == [START + 1_000_000, START + 2_000_000]
