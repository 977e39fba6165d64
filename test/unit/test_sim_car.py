import math
import os
import subprocess
import sys

import numpy as np
import pytest

from lnn_ros.sim import car, expert
from lnn_ros.sim.track import WORLD_SIZE

MS = 1_000_000


@pytest.fixture(scope='module')
def world():
    """Share one renderer among the tests: each resets the world, which costs milliseconds."""
    world = car.CarWorld(0, image_width=320, image_height=240)
    yield world
    world.close()


def drive(world, linear_x, angular_z, seconds):
    """Hold a command; return one truth and one IMU reading (n, 6) per 10 ms."""
    world.command(linear_x, angular_z)
    truths, readings = [], []
    for _ in range(round(seconds * 100)):
        world.advance_to(world.time_ns + 10 * MS)
        truths.append(world.truth())
        readings.append(np.concatenate(world.imu()))
    return truths, np.array(readings)


def follow(world, pilot, seconds):
    """Let the expert drive at 30 Hz or so; return one truth per command."""
    truths = []
    for _ in range(round(seconds / 0.033)):
        world.advance_to(world.time_ns + 33 * MS)
        world.command(*pilot(world))
        truths.append(world.truth())
    return truths


# The clock.


def test_clock_starts_at_one_second_and_restarts_at_reset(world):
    world.reset(0)
    assert world.time_ns == 1_000_000_000
    world.advance_to(1_250_000_000)
    assert world.time_ns == 1_250_000_000
    world.reset(0)
    assert world.time_ns == 1_000_000_000


def test_time_in_the_past_or_between_physics_steps_is_refused(world):
    world.reset(0)
    with pytest.raises(ValueError, match='before the simulated time'):
        world.advance_to(world.time_ns - MS)
    with pytest.raises(ValueError, match='not on a physics step'):
        world.advance_to(world.time_ns + 1)
    assert world.time_ns == 1_000_000_000


# How the car moves.


def test_car_starts_at_rest_on_the_centre_line_along_the_road(world):
    for seed in range(5):
        world.reset(seed)
        world.advance_to(world.time_ns + 500 * MS)
        truth = world.truth()
        assert math.hypot(truth.lateral, truth.heading_error) < 1e-3
        assert min(truth.s, world.track.length - truth.s) < 1e-3
        assert abs(truth.speed) < 1e-3 and abs(truth.progress) < 1e-3
        assert truth.in_lane


def test_car_can_be_put_beside_and_across_the_road(world):
    world.reset(2, s=4.0, lateral=0.3, heading_error=-0.5)
    truth = world.truth()
    assert truth.s == pytest.approx(4.0, abs=1e-3)
    assert truth.lateral == pytest.approx(0.3, abs=1e-3)
    assert truth.heading_error == pytest.approx(-0.5, abs=2e-3)
    assert truth.progress == pytest.approx(0.0, abs=1e-3)
    world.reset(2, lateral=0.33)
    assert not world.truth().in_lane  # 0.33 + 0.13 > 0.45
    world.reset(2, lateral=0.3)
    assert world.truth().in_lane
    world.reset(2, lateral=0.3, heading_error=0.5)
    assert not world.truth().in_lane  # a front wheel is out: 0.3 + 0.13 cos + 0.15 sin > 0.45


@pytest.mark.parametrize(
    ('linear_x', 'angular_z'), [(1.5, 0.8), (1.5, -0.8), (2.5, 0.6), (0.6, 0.5), (-1.0, 0.5)]
)
def test_car_moves_with_the_commanded_twist_and_positive_turns_left(world, linear_x, angular_z):
    world.reset(1)
    truths, readings = drive(world, linear_x, angular_z, 2.0)
    assert truths[-1].speed == pytest.approx(linear_x, rel=0.05)
    turned = math.remainder(truths[-1].yaw - truths[-51].yaw, 2 * math.pi) / 0.5
    assert turned == pytest.approx(angular_z, rel=0.05)
    gyro, accel = readings[-50:, :3].mean(axis=0), readings[-50:, 3:].mean(axis=0)
    assert gyro[2] == pytest.approx(angular_z, abs=0.05)
    assert accel[1] == pytest.approx(linear_x * angular_z, abs=0.2)  # towards the inside


def test_forward_goes_where_the_car_points(world):
    world.reset(3)
    start = world.truth()
    end = drive(world, 1.0, 0.0, 1.5)[0][-1]
    direction = math.atan2(end.y - start.y, end.x - start.x)
    assert math.remainder(direction - start.yaw, 2 * math.pi) == pytest.approx(0.0, abs=0.01)


def test_speed_and_steering_lag_like_a_motor_and_a_servo(world):
    world.reset(1)
    truths, _ = drive(world, 1.5, 0.8, 2.0)
    share = 1.0 - math.exp(-1.0)
    speed_time = 0.01 * (1 + np.argmax([t.speed > share * truths[-1].speed for t in truths]))
    servo_time = 0.01 * (1 + np.argmax([t.steering > share * truths[-1].steering for t in truths]))
    assert 0.15 <= speed_time <= 0.30
    assert 0.05 <= servo_time <= 0.10


def test_steering_and_speed_are_limited(world):
    world.reset(1)
    truth = drive(world, 1.0, 50.0, 1.0)[0][-1]
    assert truth.steering == pytest.approx(car.MAX_STEERING, abs=0.03)
    world.reset(1)
    assert drive(world, 100.0, 0.0, 2.0)[0][-1].speed == pytest.approx(car.MAX_SPEED, rel=0.05)


def test_steering_stays_when_the_commanded_speed_is_nearly_zero(world):
    world.reset(1)
    turning = drive(world, 1.0, 0.8, 1.0)[0][-1]
    stopped = drive(world, 0.0, -5.0, 1.0)[0][-1]
    assert stopped.steering == pytest.approx(turning.steering, abs=0.01)
    assert abs(stopped.speed) < 0.02


@pytest.mark.parametrize('bad', [(math.nan, 0.0), (1.0, math.inf)])
def test_a_command_that_is_not_finite_is_refused_and_the_last_one_holds(world, bad):
    world.reset(1)
    world.command(1.0, 0.0)
    with pytest.raises(ValueError, match='not finite'):
        world.command(*bad)
    world.advance_to(world.time_ns + 1500 * MS)
    assert world.truth().speed == pytest.approx(1.0, rel=0.05)


def test_progress_counts_laps_and_goes_negative_backwards(world):
    world.reset(5, s=1.0)
    truths = follow(world, expert.PurePursuit(), 1.2 * world.track.length / 1.7)
    progress = np.array([t.progress for t in truths])
    assert progress[-1] > 1.1 * world.track.length
    assert 0.0 <= np.diff(progress).min() and np.diff(progress).max() < 0.1
    world.reset(5)
    world.command(-1.0, 0.0)
    world.advance_to(world.time_ns + 1000 * MS)
    assert -1.0 < world.truth().progress < -0.6


# The IMU.


def test_accelerometer_at_rest_reads_plus_g_upwards_and_the_gyro_nothing(world):
    world.reset(7)
    _, readings = drive(world, 0.0, 0.0, 1.0)
    rates, force = readings[:, :3].mean(axis=0), readings[:, 3:].mean(axis=0)
    assert rates == pytest.approx(np.zeros(3), abs=4 * car.GYRO_BIAS)
    assert force == pytest.approx([0.0, 0.0, 9.81], abs=4 * car.ACCEL_BIAS)


def test_imu_averages_so_that_its_sum_is_the_gain_in_speed(world):
    world.reset(7)
    bias = drive(world, 0.0, 0.0, 2.0)[1][:, 3].mean()
    truths, readings = drive(world, 2.0, 0.0, 0.5)
    assert (readings[:, 3] - bias).sum() * 0.01 == pytest.approx(truths[-1].speed, rel=0.02)
    assert readings[:, 3].max() > 3.0


def test_imu_noise_and_bias_have_the_published_deviations(world):
    world.reset(7)
    readings = np.array([np.concatenate(world.imu()) for _ in range(4000)])
    expected = np.repeat([car.GYRO_NOISE, car.ACCEL_NOISE], 3)
    assert readings.std(axis=0) == pytest.approx(expected, rel=0.06)
    biases = []
    for seed in range(60):
        world.reset(seed)
        mean = np.mean([np.concatenate(world.imu()) for _ in range(50)], axis=0)
        biases.append(mean - [0, 0, 0, 0, 0, 9.81])
    spread = np.reshape(biases, (60, 2, 3)).std(axis=(0, 2))
    assert spread == pytest.approx([car.GYRO_BIAS, car.ACCEL_BIAS], rel=0.2)


# The pictures.


def project(world, x, y):
    """Return (column, row) of a point on the ground in the front camera; None behind it."""
    truth, info = world.truth(), world.camera_info()
    dx, dy = x - truth.x, y - truth.y
    ahead = dx * math.cos(truth.yaw) + dy * math.sin(truth.yaw) - 0.16
    left = dy * math.cos(truth.yaw) - dx * math.sin(truth.yaw)
    pitch, height = math.asin(0.3518), 0.22
    depth = ahead * math.cos(pitch) + height * math.sin(pitch)
    if depth < 0.05:
        return None
    down = height * math.cos(pitch) - ahead * math.sin(pitch)
    return info.cx - info.fx * left / depth, info.cy + info.fy * down / depth


def ground_colours(world, picture, lateral):
    """Return the rgb (n, 3) seen `lateral` m left of the centre line, 0.4 to 1.6 m ahead."""
    colours = []
    for ahead in np.arange(0.4, 1.6, 0.05):
        x, y, heading, _ = world.track.point(world.truth().s + ahead)
        pixel = project(world, x - lateral * math.sin(heading), y + lateral * math.cos(heading))
        column, row = np.round(pixel).astype(int) if pixel else (-1, -1)
        if 0 <= column < world.image_width and 0 <= row < world.image_height:
            colours.append(picture[row, column])
    return np.array(colours, float).reshape(-1, 3)


def test_the_camera_sees_the_road_where_the_track_says_it_is(world):
    # Fails for a texture that is flipped or transposed, a mirrored picture, a wrong pitch.
    for seed in range(6):
        for s in (0.0, 9.0, 18.0):
            world.reset(seed, s=s, lateral=0.1, heading_error=0.15)
            picture = world.image()
            edges = np.vstack([ground_colours(world, picture, side) for side in (-0.425, 0.425)])
            lanes = np.vstack([ground_colours(world, picture, side) for side in (-0.2, 0.2)])
            grass = np.vstack([ground_colours(world, picture, side) for side in (-0.9, 0.9)])
            assert len(edges) > 10 and len(lanes) > 30 and len(grass) > 5
            assert np.mean(edges.min(axis=1) > 130) > 0.9
            assert np.mean(np.ptp(lanes, axis=1) < 25) > 0.9
            assert lanes.max(axis=1).mean() < edges.min(axis=1).mean() - 50
            assert np.mean(grass[:, 1] > grass[:, 2] + 30) > 0.9


def test_the_horizon_lies_a_quarter_from_the_top(world):
    world.reset(0)
    picture = world.image().astype(int)
    assert picture.shape == (240, 320, 3)
    blue = (picture[:, :, 2] > picture[:, :, 1]).mean(axis=1)
    assert blue[:56].min() > 0.99
    assert blue[64:100].max() < 0.5


def test_reset_uploads_the_new_track_and_repeats_the_old_picture(world):
    world.reset(0)
    first = world.image()
    world.reset(1)
    second = world.image()
    world.reset(0)
    assert np.abs(first.astype(int) - second).mean() > 5.0
    assert np.array_equal(world.image(), first)


def test_top_view_shows_the_red_car_at_its_place(world):
    size = 800
    world.reset(3, s=6.0)
    picture, truth = world.top_view(size).astype(int), world.truth()
    red = (picture[:, :, 0] > 120) & (picture[:, :, 1:].max(axis=2) < 60)
    rows, columns = np.nonzero(red)
    # 6 cm: the camera is 30 m up and the car is not flat.
    assert columns.mean() / size * WORLD_SIZE - 12.0 == pytest.approx(truth.x, abs=0.06)
    assert 12.0 - rows.mean() / size * WORLD_SIZE == pytest.approx(truth.y, abs=0.06)
    assert world.image().shape == (240, 320, 3)


def test_camera_info_is_a_right_angle_across():
    info = car.CarWorld(0).camera_info()
    assert 2 * math.degrees(math.atan(32 / info.fx)) == pytest.approx(90.0, abs=0.1)
    assert info == pytest.approx((32.0, 32.0, 31.5, 23.5), abs=0.01)


# Repeating.


def test_same_seed_and_commands_repeat_bit_for_bit(world):
    def episode():
        world.reset(11)
        pilot, log = expert.PurePursuit(), []
        for _ in range(60):
            world.advance_to(world.time_ns + 33 * MS)
            world.command(*pilot(world))
            log.append((world.truth(), *(array.tobytes() for array in world.imu())))
        return log, world.image()

    first, second = episode(), episode()
    assert first[0] == second[0]
    assert np.array_equal(first[1], second[1])


def test_looking_does_not_disturb_the_physics(world):
    ends = []
    for look in (False, True):
        world.reset(11)
        world.command(1.5, 0.5)
        for _ in range(20):
            world.advance_to(world.time_ns + 50 * MS)
            if look:
                world.image()
                world.truth()
        ends.append((world.truth(), world.imu()[1].tobytes()))
    assert ends[0] == ends[1]


# The expert.


def test_expert_keeps_the_lane_at_speed_on_many_tracks(world):
    for seed in range(20, 28):
        world.reset(seed)
        truths = follow(world, expert.PurePursuit(), 15.0)
        assert all(t.in_lane for t in truths)
        assert np.mean([abs(t.lateral) for t in truths]) < 0.05
        assert truths[-1].progress / 15.0 > 1.35


@pytest.mark.parametrize('lateral', [-0.3, 0.3])
@pytest.mark.parametrize('heading_error', [-0.5, 0.0, 0.5])
def test_expert_recovers_from_beside_and_across_the_lane(world, lateral, heading_error):
    for seed in range(3):
        world.reset(seed, s=3.0, lateral=lateral, heading_error=heading_error)
        truths = follow(world, expert.PurePursuit(), 3.0)
        assert max(abs(t.lateral) for t in truths) < 0.4
        assert all(abs(t.lateral) < 0.05 for t in truths[-20:])


# Machines without EGL.


def failure(environment):
    """Render in a fresh process with these variables set; return its error message."""
    code = 'from lnn_ros.sim.car import CarWorld; CarWorld(0).image()'
    path = os.pathsep.join(filter(None, sys.path))
    environment = {**os.environ, 'PYTHONPATH': path, 'MUJOCO_GL': 'egl', **environment}
    run = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, env=environment, timeout=60
    )
    assert run.returncode == 1
    errors = [line for line in run.stderr.splitlines() if line.startswith('RuntimeError')]
    assert len(errors) == 1, run.stderr
    return errors[0]


def test_without_the_egl_library_the_error_names_the_packages(tmp_path):
    for name in ('libEGL.so', 'libEGL.so.1'):
        (tmp_path / name).write_text('shadows the library')
    error = failure({'LD_LIBRARY_PATH': str(tmp_path)})
    assert 'libegl1 libgl1-mesa-dri libopengl0' in error


def test_without_an_egl_driver_the_error_names_the_packages(tmp_path):
    error = failure({'__EGL_VENDOR_LIBRARY_DIRS': str(tmp_path)})
    assert 'libegl1 libgl1-mesa-dri libopengl0' in error
