from functools import partial

import numpy as np
import pytest

from lnn_ros.controller import Controller, Settings, policy_limits
from lnn_ros.observation import ObservationError
from lnn_ros.policy import Policy
from lnn_ros.safety import Limit, Mode

T0 = 1_763_800_000_000_000_000  # of new_drive's milliseconds
MS = 1_000_000
SAFE = (0.1, -0.2)
WAITING, WARMUP, RUNNING, STALE, FAULT = (
    Mode.WAITING,
    Mode.WARMUP,
    Mode.RUNNING,
    Mode.STALE,
    Mode.FAULT,
)
LEVEL = (0.0, 0.0, 9.81)


@pytest.fixture(scope='module')
def policy(make_contract, make_policy):
    return make_policy(make_contract(('image', 'imu'), 'imu'))


@pytest.fixture
def drive(new_drive, policy):
    return new_drive(policy).start()


# Modes.


def test_controller_waits_for_both_inputs_then_warms_up_then_runs(new_drive, policy):
    drive = new_drive(policy)
    assert [drive.imu(ms) for ms in (0, 10)] == [(SAFE, WAITING)] * 2
    assert drive.image(11) is None
    assert [drive.imu(ms) for ms in (20, 30, 40, 50, 60)] == [(SAFE, WARMUP)] * 5
    values, mode = drive.imu(70)
    assert mode is RUNNING and values != SAFE


def test_state_advances_during_warm_up(new_drive, policy):
    drive = new_drive(policy)
    drive.image(0)
    states = [drive.state, *((drive.imu(ms), drive.state)[1] for ms in (0, 10, 20))]
    assert len(set(states)) == 3  # the first sample only brought the input


def test_images_command_where_they_are_the_trigger(new_drive, make_contract, make_policy):
    drive = new_drive(make_policy(make_contract(('image', 'imu'), 'image')), warmup_steps=1)
    assert drive.image(0) == (SAFE, WAITING)
    assert drive.imu(5) is None
    assert drive.image(33) == (SAFE, WARMUP)
    assert drive.image(66)[1] is RUNNING


@pytest.mark.parametrize(
    ('streams', 'channels'), [(('imu',), 3), (('image',), 1)], ids=['imu only', 'mono image only']
)
def test_policy_of_one_stream_runs_on_it_and_ignores_the_other(
    new_drive, make_contract, make_policy, streams, channels
):
    trigger = streams[0]
    drive = new_drive(make_policy(make_contract(streams, trigger, channels)))
    tell, other = (drive.imu, drive.image) if trigger == 'imu' else (drive.image, drive.imu)
    assert [tell(10 * i)[1] for i in range(7)] == [WARMUP] * 5 + [RUNNING] * 2
    before = drive.state
    assert other(65) is None
    assert drive.state == before
    tell(70)
    assert drive.controller.dt == 0.01


@pytest.mark.parametrize('trigger', ['imu', 'image'])
def test_input_older_than_its_max_age_is_stale_until_the_next_one(
    new_drive, make_contract, make_policy, trigger
):
    policy = make_policy(make_contract(('image', 'imu'), trigger))
    drive = new_drive(policy, warmup_steps=0, max_age={'image': 0.1, 'imu': 0.1})
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
def test_useless_message_is_counted_and_changes_nothing(new_drive, policy, drive, count, tell):
    untold = new_drive(policy).start()
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


# Faults.


def overflowing(policy, column, tensor, value=3e38):
    """Return `policy` made to overflow at one IMU input."""
    tensors = {name: value.copy() for name, value in policy.tensors.items()}
    tensors[tensor][0, column] = value
    return Policy(policy.contract, tensors)


@pytest.mark.filterwarnings('ignore:overflow', 'ignore:invalid value')
@pytest.mark.parametrize('tensor', ['readout.0.weight', 'mapping.0.weight'])
def test_overflow_of_the_network_is_a_fault_and_the_controller_recovers(new_drive, policy, tensor):
    # finite weights, an ordinary sample: only the product is not finite
    broken = overflowing(policy, column=-4, tensor=tensor)  # angular_velocity.z
    drive = new_drive(broken)
    drive.image(0)
    for ms in range(0, 61, 10):
        drive.imu(ms, turn=0.0)
    assert drive.imu(70, turn=2.0) == (SAFE, FAULT)
    assert drive.state == bytes(4 * 7)
    assert drive.counts['fault'] == 1

    new = new_drive(broken)
    assert drive.imu(90, turn=0.0) == new.imu(90, turn=0.0) == (SAFE, WAITING)
    for each in (drive, new):
        each.image(91)
    recovered = [(drive.imu(ms, 0.0), new.imu(ms, 0.0)) for ms in range(100, 200, 10)]
    assert all(mine == fresh for mine, fresh in recovered)
    assert recovered[-1][0][1] is RUNNING
    assert drive.counts['fault'] == 1


# Limits and settings.


def test_limits_are_those_of_the_policy(policy):
    assert policy_limits(policy) == [
        Limit('linear.x', 0.0, 2.0, 4.0, 0.1),
        Limit('angular.z', -3.0, 3.0, 20.0, -0.2),
    ]


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
