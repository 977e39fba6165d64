"""The controller and the stamps: late messages, intervals, jumps, slew, replay."""

import numpy as np
import pytest

from lnn_ros.controller import Controller, Settings
from lnn_ros.core.numpy_engine import NumpyEngine
from lnn_ros.policy import Policy
from lnn_ros.safety import Mode

SAFE = (0.1, -0.2)
SLEW = 4.0  # of linear.x, per second
WAITING, WARMUP, RUNNING, STALE = Mode.WAITING, Mode.WARMUP, Mode.RUNNING, Mode.STALE


@pytest.fixture(scope='module')
def policy(make_contract, make_policy):
    return make_policy(make_contract(('image', 'imu'), 'imu'))


@pytest.fixture
def drive(new_drive, policy):
    return new_drive(policy).start()


# Intervals.


class Listening(NumpyEngine):
    """The real engine, which also keeps what it was told about time."""

    def __init__(self, policy):
        super().__init__(policy)
        self.heard = []

    def advance(self, dt):
        self.heard.append(('advance', dt))
        super().advance(dt)

    def jump(self):
        self.heard.append('jump')
        super().jump()

    def hold_image(self, pixels):
        self.heard.append('image')
        super().hold_image(pixels)

    def hold_imu(self, values):
        self.heard.append('imu')
        super().hold_imu(values)

    def hold_image_age(self, age):
        self.heard.append(('age', age))
        super().hold_image_age(age)


def test_late_image_refreshes_the_input_and_does_not_advance_the_state(new_drive, policy, drive):
    untold = new_drive(policy).start()
    for each in (drive, untold):
        each.imu(100)
    before = drive.state
    assert drive.image(70) is None
    assert drive.state == before
    assert drive.controller.dt == 0.0
    assert drive.counts['late/image'] == untold.counts.get('late/image', 0) + 1
    assert drive.imu(110) != untold.imu(110)
    assert drive.controller.dt == untold.controller.dt == 0.01


def test_engine_hears_intervals_inputs_and_ages_in_the_order_of_the_stamps(new_drive, policy):
    engine = Listening(policy)
    drive = new_drive(policy, engine)
    drive.imu(0)
    drive.imu(10)  # no frame yet: nothing to integrate
    drive.image(4)
    drive.imu(20)
    drive.image(23)
    drive.image(23)
    drive.imu(21)
    drive.imu(32.5)
    assert engine.heard == [
        *('imu', 'jump'),
        *('imu', 'jump'),
        *('image', ('age', 0.006), 'jump'),
        *('imu', ('age', 0.016), ('advance', 0.01)),
        *('image', ('age', 0.0), ('advance', 0.003)),
        *('imu', ('age', 0.0), 'jump'),
        *('imu', ('age', 0.0095), ('advance', 0.0095)),
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
def test_reset_by_a_stamp_makes_the_controller_as_good_as_new(
    new_drive, policy, drive, reason, ms, stream
):
    new = new_drive(policy)
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


# Slew.


def eager(policy):
    """Return `policy` asking for the maximum always."""
    tensors = {name: value.copy() for name, value in policy.tensors.items()}
    tensors['readout.2.bias'][:] = 10.0
    tensors['readout.2.weight'][:] = 0.0
    return Policy(policy.contract, tensors)


def test_slew_uses_the_intervals_of_the_stamps(new_drive, policy):
    drive = new_drive(eager(policy)).start()
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


def test_state_does_not_go_on_while_the_camera_is_stale(drive):
    for ms in range(70, 3000, 10):
        command = drive.imu(ms)
    assert command == (SAFE, STALE)
    assert drive.state == bytes(4 * 7)
    drive.image(3001)
    modes = [drive.imu(ms)[1] for ms in range(3010, 3080, 10)]
    assert modes == [WARMUP] * 5 + [RUNNING] * 2


def test_slew_starts_from_the_safe_command_after_it_was_sent(new_drive, policy):
    ages = {'image': 0.1, 'imu': 0.1}
    drive = new_drive(eager(policy), max_age=ages, warmup_steps=0).start()
    assert drive.imu(160)[0][0] > 0.4
    assert drive.imu(170) == (SAFE, STALE)
    drive.image(171)
    assert drive.imu(180)[0][0] == pytest.approx(SAFE[0] + SLEW * 0.01)


@pytest.mark.parametrize('stamp_ms', [10, -5000, 10_000], ids=['first', 'clock back', 'gap'])
def test_first_command_after_a_reset_is_slewed_even_without_warm_up(
    new_drive, make_contract, make_policy, stamp_ms
):
    # after a reset there is no interval that a change could be spread over
    drive = new_drive(eager(make_policy(make_contract(('imu',), 'imu'))), warmup_steps=0)
    before = SAFE
    if stamp_ms != 10:
        for ms in range(0, 101, 10):
            before, _ = drive.imu(ms)
    values, mode = drive.imu(stamp_ms)
    assert mode is RUNNING
    assert np.abs(np.subtract(values, before)).max() <= 20.0 * 0.01


def test_slew_starts_from_a_safe_command_that_went_out_during_silence(make_contract, make_policy):
    contract = make_contract(('imu',), 'imu')
    controller = Controller(make_policy(contract), Settings(max_gap=1.0, warmup_steps=0))
    start_ns = 1_000_000_000
    for k in range(200):
        controller.on_imu((0.3, 0.2, 0.1), (0.1, 0.2, 9.8), start_ns + k * 10_000_000)
    safe = controller.stop().copy()
    after = start_ns + 199 * 10_000_000 + 900_000_000
    command = controller.on_imu((0.3, 0.2, 0.1), (0.1, 0.2, 9.8), after)
    assert command.mode is Mode.RUNNING
    np.testing.assert_array_equal(command.values, safe)
    command = controller.on_imu((0.3, 0.2, 0.1), (0.1, 0.2, 9.8), after + 10_000_000)
    slew = [output.slew for output in contract.outputs]
    assert (np.abs(command.values - safe) <= np.array(slew) * 0.01 + 1e-9).all()
    assert (command.values != safe).any()


# Replay.


def test_replay_of_the_same_messages_gives_the_same_bits(new_drive, policy):
    rng = np.random.default_rng(1)
    now, messages = 0.0, []
    for _ in range(600):
        now += rng.choice([rng.exponential(8.0), 600.0, -1500.0, 0.0], p=[0.96, 0.01, 0.01, 0.02])
        ms = now - rng.choice([0.0, 25.0, 3.0], p=[0.8, 0.15, 0.05])
        messages.append((('imu', 'image')[rng.random() < 0.3], ms))

    def tell(drive):
        return [getattr(drive, stream)(ms) for stream, ms in messages], drive.state

    first, second = new_drive(policy), new_drive(policy)
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
