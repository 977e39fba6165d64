from functools import partial

import numpy as np
import pytest

from lnn_ros.controller import Controller, Settings, policy_limits
from lnn_ros.core.numpy_engine import NumpyEngine
from lnn_ros.observation import ObservationError
from lnn_ros.policy import Policy
from lnn_ros.safety import Limit, Mode

T0 = 1_763_800_000_000_000_000
MS = 1_000_000
SAFE = (0.1, -0.2)
SLEW = 4.0  # of linear.x, per second
WAITING, WARMUP, RUNNING, STALE, FAULT = (
    Mode.WAITING,
    Mode.WARMUP,
    Mode.RUNNING,
    Mode.STALE,
    Mode.FAULT,
)
LEVEL = (0.0, 0.0, 9.81)


class Drive:
    """A controller, told messages by their stamps in milliseconds after T0."""

    def __init__(self, policy, engine=None, **settings):
        self.policy = policy
        self.controller = Controller(policy, Settings(**settings), engine)

    def imu(self, ms, turn=None, stamp_ns=None):
        """Tell an IMU sample; return (values, mode) of its command, or None."""
        turn = np.sin(ms / 30.0) if turn is None else turn
        stamp_ns = T0 + round(ms * MS) if stamp_ns is None else stamp_ns
        return self._plain(self.controller.on_imu((0.1, -0.2, turn), LEVEL, stamp_ns), stamp_ns)

    def image(self, ms, seed=None, stamp_ns=None):
        """Tell a frame of noise; return (values, mode) of its command, or None."""
        stamp_ns = T0 + round(ms * MS) if stamp_ns is None else stamp_ns
        rng = np.random.default_rng(stamp_ns if seed is None else seed)
        frame = (rng.integers(0, 256, (12, 16, 3)) * rng.random()).astype(np.uint8)
        command = self.controller.on_image(frame, 12, 16, 'rgb8', 48, stamp_ns)
        return self._plain(command, stamp_ns)

    @staticmethod
    def _plain(command, stamp_ns):
        if command is None:
            return None
        assert command.stamp_ns == stamp_ns
        return tuple(command.values.tolist()), command.mode

    @property
    def state(self):
        return self.controller.engine.state.tobytes()

    @property
    def counts(self):
        return dict(self.controller.counts)

    def start(self):
        """Bring image and IMU to 60 ms, past the warm-up."""
        self.image(0)
        for ms in range(0, 61, 10):
            last = self.imu(ms)
        self.image(60)
        assert last[1] is RUNNING
        return self

    def go_on(self, ms, n=30):
        """Tell an ordinary stretch of messages from `ms` on; return all their commands."""
        commands = []
        for i in range(n):
            if i % 3 == 0:
                commands.append(self.image(ms + 10 * i - 1))
            commands.append(self.imu(ms + 10 * i))
        return commands


@pytest.fixture(scope='module')
def policy(make_contract, make_policy):
    return make_policy(make_contract(('image', 'imu'), 'imu'))


@pytest.fixture
def drive(policy):
    return Drive(policy).start()


def eager(policy, column=None, tensor='readout.0.weight', value=3e38):
    """Return `policy` asking for the maximum always, or made to overflow at one IMU input."""
    tensors = {name: value.copy() for name, value in policy.tensors.items()}
    if column is None:
        tensors['readout.2.bias'][:] = 10.0
        tensors['readout.2.weight'][:] = 0.0
    else:
        tensors[tensor][0, column] = value
    return Policy(policy.contract, tensors)


class Listening(NumpyEngine):
    """The real engine, which also keeps what it was told about time."""

    def __init__(self, policy):
        super().__init__(policy)
        self.heard = []

    def advance(self, dt):
        self.heard.append(('advance', dt))
        super().advance(dt)

    def hold_image(self, pixels):
        self.heard.append('image')
        super().hold_image(pixels)

    def hold_imu(self, values):
        self.heard.append('imu')
        super().hold_imu(values)

    def hold_image_age(self, age):
        self.heard.append(('age', age))
        super().hold_image_age(age)


# Modes.


def test_controller_waits_for_both_inputs_then_warms_up_then_runs(policy):
    drive = Drive(policy)
    assert [drive.imu(ms) for ms in (0, 10)] == [(SAFE, WAITING)] * 2
    assert drive.image(11) is None
    assert [drive.imu(ms) for ms in (20, 30, 40, 50, 60)] == [(SAFE, WARMUP)] * 5
    values, mode = drive.imu(70)
    assert mode is RUNNING and values != SAFE


def test_state_advances_during_warm_up(policy):
    drive = Drive(policy)
    drive.image(0)
    states = [drive.state, *((drive.imu(ms), drive.state)[1] for ms in (0, 10, 20))]
    assert len(set(states)) == 3  # the first sample only brought the input


def test_images_command_where_they_are_the_trigger(make_contract, make_policy):
    drive = Drive(make_policy(make_contract(('image', 'imu'), 'image')), warmup_steps=1)
    assert drive.image(0) == (SAFE, WAITING)
    assert drive.imu(5) is None
    assert drive.image(33) == (SAFE, WARMUP)
    assert drive.image(66)[1] is RUNNING


@pytest.mark.parametrize(
    ('streams', 'channels'), [(('imu',), 3), (('image',), 1)], ids=['imu only', 'mono image only']
)
def test_policy_of_one_stream_runs_on_it_and_ignores_the_other(
    make_contract, make_policy, streams, channels
):
    trigger = streams[0]
    drive = Drive(make_policy(make_contract(streams, trigger, channels)))
    tell, other = (drive.imu, drive.image) if trigger == 'imu' else (drive.image, drive.imu)
    assert [tell(10 * i)[1] for i in range(7)] == [WARMUP] * 5 + [RUNNING] * 2
    before = drive.state
    assert other(65) is None
    assert drive.state == before
    tell(70)
    assert drive.controller.dt == 0.01


@pytest.mark.parametrize('trigger', ['imu', 'image'])
def test_input_older_than_its_max_age_is_stale_until_the_next_one(
    make_contract, make_policy, trigger
):
    policy = make_policy(make_contract(('image', 'imu'), trigger))
    drive = Drive(policy, warmup_steps=0, max_age={'image': 0.1, 'imu': 0.1})
    tell, other = (drive.imu, drive.image) if trigger == 'imu' else (drive.image, drive.imu)
    other(0)
    assert [tell(ms)[1] for ms in (50, 100)] == [RUNNING] * 2  # 100 ms is not yet too old
    before = drive.state
    assert tell(100.000001) == (SAFE, STALE)
    assert tell(150) == (SAFE, STALE)
    assert drive.state != before  # it goes on under the input that it has
    other(155)
    assert tell(160)[1] is RUNNING  # the state was never lost: no second warm-up


# Which messages count.


def unreadable_image(drive, **change):
    fields = {'height': 12, 'width': 16, 'encoding': 'rgb8', 'step': 48, **change}
    with pytest.raises(ObservationError):
        drive.controller.on_image(bytes(12 * 48), *fields.values(), T0 + 65 * MS)


def nan_imu(drive):
    with pytest.raises(ObservationError):
        drive.controller.on_imu((0.0, np.nan, 0.0), LEVEL, T0 + 65 * MS)


JUNK = [
    ('drop/imu/duplicate', lambda drive: drive.imu(60, turn=2.0)),
    ('drop/image/duplicate', lambda drive: drive.image(60, seed=5)),
    ('drop/imu/out_of_order', lambda drive: drive.imu(55, turn=2.0)),
    ('drop/image/out_of_order', lambda drive: drive.image(40, seed=5)),
    ('drop/imu/unset', lambda drive: drive.imu(0, turn=2.0, stamp_ns=0)),
    ('drop/image/unset', lambda drive: drive.image(0, seed=5, stamp_ns=0)),
    ('drop/image/unreadable', partial(unreadable_image, encoding='16UC1')),
    ('drop/image/unreadable', partial(unreadable_image, step=47)),
    ('drop/image/unreadable', partial(unreadable_image, height=13)),
    ('drop/imu/unreadable', nan_imu),
]


@pytest.mark.parametrize(('count', 'tell'), JUNK)
def test_useless_message_is_counted_and_changes_nothing(policy, drive, count, tell):
    untold = Drive(policy).start()
    before = drive.state
    assert tell(drive) is None
    assert drive.state == before
    assert drive.counts.get(count) == 1
    assert drive.go_on(80) == untold.go_on(80)
    assert drive.state == untold.state


def test_interval_after_a_nan_sample_covers_the_time_since_the_last_good_one(drive):
    nan_imu(drive)
    drive.imu(80)
    assert drive.controller.dt == 0.02


def test_late_image_refreshes_the_input_and_does_not_advance_the_state(policy, drive):
    untold = Drive(policy).start()
    for each in (drive, untold):
        each.imu(100)
    before = drive.state
    assert drive.image(70) is None
    assert drive.state == before
    assert drive.controller.dt == 0.0
    assert drive.counts['late/image'] == untold.counts.get('late/image', 0) + 1
    assert drive.imu(110) != untold.imu(110)
    assert drive.controller.dt == untold.controller.dt == 0.01


def test_engine_hears_intervals_inputs_and_ages_in_the_order_of_the_stamps(policy):
    engine = Listening(policy)
    drive = Drive(policy, engine)
    drive.imu(0)
    drive.imu(10)  # no frame yet: nothing to integrate
    drive.image(4)
    drive.imu(20)
    drive.image(23)
    drive.image(23)
    drive.imu(21)
    drive.imu(32.5)
    assert engine.heard == [
        'imu',
        'imu',
        *('image', ('age', 0.006)),
        *(('advance', 0.01), 'imu', ('age', 0.016)),
        *(('advance', 0.003), 'image', ('age', 0.0)),
        *('imu', ('age', 0.0)),
        *(('advance', 0.0095), 'imu', ('age', 0.0095)),
    ]
    assert drive.counts == {
        'received/imu': 5,
        'received/image': 3,
        'reset/first': 1,
        'late/image': 1,
        'late/imu': 1,
        'drop/image/duplicate': 1,
    }


# Resets.


@pytest.mark.parametrize(
    ('reason', 'ms'),
    [('gap', 560.000001), ('gap', 10**9), ('clock_back', -940.000001), ('clock_back', -(10**12))],
)
@pytest.mark.parametrize('stream', ['imu', 'image'])
def test_reset_by_a_stamp_makes_the_controller_as_good_as_new(policy, drive, reason, ms, stream):
    new = Drive(policy)
    first = getattr(drive, stream)(ms), getattr(new, stream)(ms)
    assert first[0] == first[1] == ((SAFE, WAITING) if stream == 'imu' else None)
    assert drive.state == bytes(4 * 7)
    assert drive.counts[f'reset/{reason}'] == 1
    after = drive.go_on(ms + 20)
    assert after == new.go_on(ms + 20)
    modes = [command[1] for command in after if command is not None]
    assert modes[:6] == [WARMUP] * 5 + [RUNNING]


def test_interval_of_exactly_the_longest_gap_is_integrated(drive):
    drive.imu(560)
    assert drive.controller.dt == 0.5
    assert 'reset/gap' not in drive.counts


def test_controller_recovers_from_one_stamp_far_in_the_future(drive):
    drive.imu(10**9)
    commands = drive.go_on(80)
    assert commands[-1][1] is RUNNING
    assert drive.counts['reset/gap'] == drive.counts['reset/clock_back'] == 1


# Faults.


@pytest.mark.filterwarnings('ignore:overflow', 'ignore:invalid value')
@pytest.mark.parametrize('tensor', ['readout.0.weight', 'cell.drive'])
def test_overflow_of_the_network_is_a_fault_and_the_controller_recovers(policy, tensor):
    # finite weights, an ordinary sample: only the product is not finite
    broken = eager(policy, column=-4, tensor=tensor)  # angular_velocity.z
    drive = Drive(broken)
    drive.image(0)
    for ms in range(0, 61, 10):
        drive.imu(ms, turn=0.0)
    told = [drive.imu(70, turn=2.0)]
    if tensor == 'cell.drive':  # it reaches the state with the next interval
        assert np.isfinite(told[0][0]).all()
        told = [drive.imu(80, turn=0.0)]
    assert told == [(SAFE, FAULT)]
    assert drive.state == bytes(4 * 7)
    assert drive.counts['fault'] == 1

    new = Drive(broken)
    assert drive.imu(90, turn=0.0) == new.imu(90, turn=0.0) == (SAFE, WAITING)
    for each in (drive, new):
        each.image(91)
    recovered = [(drive.imu(ms, 0.0), new.imu(ms, 0.0)) for ms in range(100, 200, 10)]
    assert all(mine == fresh for mine, fresh in recovered)
    assert recovered[-1][0][1] is RUNNING
    assert drive.counts['fault'] == 1


# Limits.


def test_limits_are_those_of_the_policy(policy):
    assert policy_limits(policy) == [
        Limit('linear.x', 0.0, 2.0, 4.0, 0.1),
        Limit('angular.z', -3.0, 3.0, 20.0, -0.2),
    ]


def test_slew_uses_the_intervals_of_the_stamps(policy):
    drive = Drive(eager(policy)).start()
    last = drive.imu(70)[0][0]
    for ms, told, dt in [
        (77, drive.imu, 0.007),
        (100, drive.imu, 0.023),
        (101, drive.imu, 0.001),
        (112, drive.image, None),
        (108, drive.imu, 0.011),  # late: the state that answers stands at 112 ms
        (120, drive.imu, 0.008),
    ]:
        command = told(ms)
        if dt is not None:
            assert command[0][0] - last == pytest.approx(SLEW * dt, abs=1e-9)
            last = command[0][0]


def test_slew_starts_from_the_safe_command_after_it_was_sent(policy):
    drive = Drive(eager(policy), max_age={'image': 0.1, 'imu': 0.1}).start()
    assert drive.imu(160)[0][0] > 0.4
    assert drive.imu(170) == (SAFE, STALE)
    drive.image(171)
    assert drive.imu(180)[0][0] == pytest.approx(SAFE[0] + SLEW * 0.01)


@pytest.mark.parametrize('stamp_ms', [10, -5000, 10_000], ids=['first', 'clock back', 'gap'])
def test_first_command_after_a_reset_is_slewed_even_without_warm_up(
    make_contract, make_policy, stamp_ms
):
    # after a reset there is no interval that a change could be spread over
    drive = Drive(eager(make_policy(make_contract(('imu',), 'imu'))), warmup_steps=0)
    before = SAFE
    if stamp_ms != 10:
        for ms in range(0, 101, 10):
            before, _ = drive.imu(ms)
    values, mode = drive.imu(stamp_ms)
    assert mode is RUNNING
    assert np.abs(np.subtract(values, before)).max() <= 20.0 * 0.01


# Replay.


def test_replay_of_the_same_messages_gives_the_same_bits(policy):
    rng = np.random.default_rng(1)
    now, messages = 0.0, []
    for _ in range(600):
        now += rng.choice([rng.exponential(8.0), 600.0, -1500.0, 0.0], p=[0.96, 0.01, 0.01, 0.02])
        ms = now - rng.choice([0.0, 25.0, 3.0], p=[0.8, 0.15, 0.05])
        messages.append((('imu', 'image')[rng.random() < 0.3], ms))

    def tell(drive):
        return [getattr(drive, stream)(ms) for stream, ms in messages], drive.state

    first, second = Drive(policy), Drive(policy)
    commands = tell(first)
    modes = {command[1] for command in commands[0] if command is not None}
    assert {WAITING, WARMUP, RUNNING} <= modes
    assert {'late/image', 'drop/imu/out_of_order', 'reset/gap', 'reset/clock_back'} <= set(
        first.counts
    )
    assert tell(second) == commands
    first.controller.reset()
    assert tell(first) == commands


def test_reset_forgets_state_inputs_and_time(drive):
    drive.controller.reset()
    assert drive.state == bytes(4 * 7)
    assert drive.controller.mode is WAITING
    assert drive.imu(60) == (SAFE, WAITING)  # not a duplicate


# Settings.


@pytest.mark.parametrize(
    ('settings', 'text'),
    [
        ({'max_gap': 0.0}, 'max_gap is 0.0 s'),
        ({'jump_threshold': -1.0}, 'jump_threshold is -1.0 s'),
        ({'max_age': {'image': 0.0, 'imu': 0.2}}, 'max_age of image is 0.0 s'),
        ({'max_age': {'image': 1.0, 'imu': float('nan')}}, 'max_age of imu is nan s'),
        ({'max_age': {'image': 1.0, 'imu': float('inf')}}, 'max_age of imu is inf s'),
        ({'warmup_steps': -1}, 'warmup_steps is -1'),
    ],
)
def test_setting_out_of_range_is_refused_by_name(policy, settings, text):
    with pytest.raises(ValueError, match=text):
        Controller(policy, Settings(**settings))
