import pytest

from lnn_ros.timing import Drop, Interval, Late, Reset, Step, seconds_to_ns

NOW = 1_763_800_000_123_456_789  # a stamp of 2025: far beyond what a float64 second resolves
MS = 1_000_000


@pytest.fixture
def interval():
    """Image last stamped NOW, IMU and the state at NOW + 40 ms; gap 500 ms, threshold 1000 ms."""
    interval = Interval(max_gap=0.5, jump_threshold=1.0)
    assert interval.judge('image', NOW) == Reset('first')
    assert interval.judge('imu', NOW + 40 * MS) == Step(40 * MS)
    return interval


@pytest.mark.parametrize(
    ('stream', 'stamp_ns', 'verdict'),
    [
        ('imu', 0, Drop('unset')),
        ('imu', -1, Drop('unset')),
        ('imu', NOW + 40 * MS, Drop('duplicate')),
        ('image', NOW, Drop('duplicate')),
        ('imu', NOW + 40 * MS - 1, Drop('out_of_order')),
        ('imu', NOW - 960 * MS, Drop('out_of_order')),  # exactly the jump threshold
        ('image', NOW - 960 * MS, Drop('out_of_order')),
        ('imu', NOW - 960 * MS - 1, Reset('clock_back')),
        ('image', NOW - 960 * MS - 1, Reset('clock_back')),
        ('image', NOW + 1, Late(40 * MS - 1)),
        ('image', NOW + 40 * MS, Late(0)),
        ('another', NOW - 960 * MS, Late(1000 * MS)),  # its first message
        ('imu', NOW + 40 * MS + 1, Step(1)),
        ('image', NOW + 40 * MS + 1, Step(1)),
        ('imu', NOW + 540 * MS, Step(500 * MS)),  # exactly the longest gap
        ('imu', NOW + 540 * MS + 1, Reset('gap')),
        ('image', NOW + 540 * MS + 1, Reset('gap')),
    ],
)
def test_stamp_gets_the_verdict_of_the_table(interval, stream, stamp_ns, verdict):
    given = interval.judge(stream, stamp_ns)
    assert given == verdict
    assert type(given) is type(verdict)  # the verdicts are tuples: Step(1) == Late(1)
    stands_at = stamp_ns if isinstance(verdict, Step | Reset) else NOW + 40 * MS
    assert interval.newest_ns == stands_at


def test_differences_are_exact_to_the_nanosecond_at_todays_epoch():
    interval = Interval(max_gap=0.5, jump_threshold=1.0)
    interval.judge('imu', NOW)
    stamp_ns = NOW
    for dt_ns in (1, 2, 3, 99, 10_000_001, 127, 499_999_999):
        stamp_ns += dt_ns
        verdict = interval.judge('imu', stamp_ns)
        assert verdict == Step(dt_ns)
        assert type(verdict.dt_ns) is int


def test_dropped_stamp_leaves_the_next_interval_whole(interval):
    for stamp_ns in (0, NOW + 40 * MS, NOW + 30 * MS):
        assert isinstance(interval.judge('imu', stamp_ns), Drop)
    assert interval.judge('imu', NOW + 50 * MS) == Step(10 * MS)


def test_late_stamp_is_its_streams_last_from_then_on(interval):
    assert interval.judge('image', NOW + 20 * MS) == Late(20 * MS)
    assert interval.judge('image', NOW + 20 * MS) == Drop('duplicate')
    assert interval.judge('image', NOW + 10 * MS) == Drop('out_of_order')
    assert interval.judge('imu', NOW + 50 * MS) == Step(10 * MS)


@pytest.mark.parametrize('years', [1, 200])
def test_one_stamp_far_in_the_future_costs_two_resets_and_no_more(interval, years):
    far_ns = NOW + years * 365 * 24 * 3600 * 1000 * MS
    assert interval.judge('imu', far_ns) == Reset('gap')
    assert interval.judge('imu', NOW + 50 * MS) == Reset('clock_back')
    assert interval.judge('image', NOW + 33 * MS) == Late(17 * MS)
    assert interval.judge('imu', NOW + 60 * MS) == Step(10 * MS)


def test_stamp_less_than_the_threshold_ahead_blocks_its_stream_only_until_time_has_caught_up(
    interval,
):
    assert interval.judge('imu', NOW + 840 * MS) == Reset('gap')
    assert interval.judge('imu', NOW + 50 * MS) == Drop('out_of_order')
    assert interval.judge('image', NOW + 50 * MS) == Late(790 * MS)
    assert interval.judge('imu', NOW + 850 * MS) == Step(10 * MS)


def test_restarted_clock_starts_a_new_time_line_for_every_stream(interval):
    assert interval.judge('imu', 5 * MS) == Reset('clock_back')
    assert interval.judge('image', 4 * MS) == Late(1 * MS)
    assert interval.judge('imu', 15 * MS) == Step(10 * MS)


def test_forgetting_makes_any_stamp_the_first(interval):
    interval.forget()
    assert interval.judge('imu', NOW + 40 * MS) == Reset('first')
    assert interval.judge('image', NOW) == Late(40 * MS)


@pytest.mark.parametrize('seconds', [0.0, -0.1, float('nan'), float('inf')])
@pytest.mark.parametrize('name', ['max_gap', 'jump_threshold'])
def test_duration_that_is_not_a_positive_number_is_refused_by_name(name, seconds):
    with pytest.raises(ValueError, match=name):
        Interval(**{'max_gap': 0.5, 'jump_threshold': 1.0, name: seconds})


@pytest.mark.parametrize(
    ('seconds', 'ns'),
    [(0.0, 0), (1e-9, 1), (0.1, 100_000_000), (1.4e-9, 1), (86400.0, 864 * 10**11)],
)
def test_seconds_become_the_nearest_nanosecond(seconds, ns):
    assert seconds_to_ns(seconds) == ns
    assert type(seconds_to_ns(seconds)) is int
