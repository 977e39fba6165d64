"""The simulated car: a 1:10 Ackermann car with a camera and an IMU on a random road.

Geometry and masses are in assets/car.xml. `base_link` is the point midway between the axles.
"""

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lnn_ros.sim.track import LANE_HALF_WIDTH, Track

_NO_EGL = (
    'MuJoCo cannot draw without a display because the EGL library or its driver is missing: '
    'sudo apt-get install libegl1 libgl1-mesa-dri libopengl0'
)
try:
    import mujoco
except AttributeError as error:  # PyOpenGL looks up functions of the library it did not find
    raise RuntimeError(_NO_EGL) from error

STEP_NS = 1_000_000  # the physics step
START_NS = 1_000_000_000  # the clock at reset: stamp 0 means 'unset' in ROS

WHEELBASE = 0.30  # m
TRACK_WIDTH = 0.22  # m between left and right wheels
WHEEL_RADIUS = 0.05  # m
CAR_HALF_WIDTH = 0.13  # m, outer side of the tyres
MAX_STEERING = 0.5  # rad, of the middle between the front wheels: turning radius 0.55 m
MAX_SPEED = 3.0  # m/s
_STEERABLE_SPEED = 0.05  # m/s; below it a turn rate says nothing about the steering angle

# A calibrated consumer MEMS unit at 100 Hz (MPU-6050 data sheet: 0.05 deg/s and 4 mg rms noise;
# turn-on bias as left over after averaging at rest). Standard deviations per sample and axis.
GYRO_NOISE = 0.001  # rad/s
ACCEL_NOISE = 0.04  # m/s2
GYRO_BIAS = 0.005  # rad/s
ACCEL_BIAS = 0.05  # m/s2


class CarTruth(NamedTuple):
    """What the simulator knows of `base_link`; SI units, left and anticlockwise positive."""

    x: float  # m
    y: float  # m
    yaw: float  # rad, [-pi, pi]
    speed: float  # m/s, forward
    steering: float  # rad, mean of the front wheels
    s: float  # m, arc length of the nearest centre-line point
    progress: float  # m along the centre line since reset; negative when driven backwards
    lateral: float  # m from the centre line
    heading_error: float  # rad, yaw minus heading of the centre line
    in_lane: bool  # no wheel outside the lane


class CameraInfo(NamedTuple):
    """Pinhole intrinsics in pixels, the centre of the top left pixel being (0, 0)."""

    fx: float
    fy: float
    cx: float
    cy: float


class CarWorld:
    """A car on a track, from standstill; the clock moves only in `advance_to`.

    Same process, same seed, same calls: bit-identical states, IMU samples and images.
    """

    def __init__(self, seed: int = 0, image_width: int = 64, image_height: int = 48) -> None:
        self.image_width = image_width
        self.image_height = image_height
        self._model = mujoco.MjModel.from_xml_path(str(Path(__file__).parent / 'assets/car.xml'))
        self._data = mujoco.MjData(self._model)
        self._canvas: _Canvas | None = None
        self._q_steer = [
            int(self._model.joint(name).qposadr[0]) for name in ('steer_left', 'steer_right')
        ]
        self.reset(seed)

    def reset(
        self, seed: int, s: float = 0.0, lateral: float = 0.0, heading_error: float = 0.0
    ) -> None:
        """Build the track of `seed`, put the car on it at rest, restart the clock, redraw biases.

        The car stands at arc length `s` m, `lateral` m left of the centre line, turned left from
        it by `heading_error` rad.
        """
        self.track = Track(seed)
        self._texture_is_old = True
        self._rng = np.random.default_rng([seed, 2])
        self._bias = np.repeat([GYRO_BIAS, ACCEL_BIAS], 3) * self._rng.standard_normal(6)

        x, y, heading, _ = self.track.point(s)
        yaw = heading + heading_error
        mujoco.mj_resetData(self._model, self._data)
        self._data.qpos[0] = x - lateral * math.sin(heading)
        self._data.qpos[1] = y + lateral * math.cos(heading)
        self._data.qpos[3:7] = [math.cos(0.5 * yaw), 0.0, 0.0, math.sin(0.5 * yaw)]
        self._steering = 0.0
        self.command(0.0, 0.0)
        mujoco.mj_step(self._model, self._data, 300)  # settle on the tyres

        self._time_ns = START_NS
        self._s = self._start_s = self.track.locate(x, y, near=s % self.track.length)[0]
        self._laps = 0
        self._imu_sum = np.zeros(6)
        self._imu_count = 0
        self._imu_mean = self._data.sensordata.copy()

    @property
    def time_ns(self) -> int:
        """Simulated time in ns; starts at 1 s."""
        return self._time_ns

    def advance_to(self, time_ns: int) -> None:
        """Step the physics to `time_ns`.

        Raises ValueError if it lies in the past or not on a physics step of 1 ms.
        """
        steps, rest = divmod(time_ns - self._time_ns, STEP_NS)
        if steps < 0:
            raise ValueError(
                f'time {time_ns} ns lies before the simulated time {self._time_ns} ns: '
                'physics runs forward only, reset() starts again'
            )
        if rest:
            raise ValueError(
                f'time {time_ns} ns is not on a physics step: use multiples of {STEP_NS} ns'
            )
        model, data = self._model, self._data
        readings, total = data.sensordata, self._imu_sum
        for tick in range(self._time_ns // STEP_NS + 1, time_ns // STEP_NS + 1):
            mujoco.mj_step(model, data)
            total += readings
            if tick % 100 == 0:  # often enough for the search near the last arc length
                self._locate()
        self._imu_count += steps
        self._time_ns = time_ns

    def command(self, linear_x: float, angular_z: float) -> None:
        """Set the wanted twist of base_link (REP-103): m/s forward, rad/s to the left.

        The steering is limited to 0.5 rad, the speed to 3 m/s. A car cannot turn on the spot:
        below 0.05 m/s the steering stays. Raises ValueError if either number is not finite.
        """
        if not (math.isfinite(linear_x) and math.isfinite(angular_z)):
            raise ValueError(
                f'command ({linear_x} m/s, {angular_z} rad/s) is not finite: '
                'the last command still holds, send finite numbers'
            )
        if abs(linear_x) >= _STEERABLE_SPEED:
            steering = math.atan(WHEELBASE * angular_z / linear_x)
            self._steering = min(max(steering, -MAX_STEERING), MAX_STEERING)
        speed = min(max(linear_x, -MAX_SPEED), MAX_SPEED)

        # Each wheel rolls on its own circle about the centre of rotation, which lies on the line
        # of the rear axle (Ackermann).
        curvature = math.tan(self._steering) / WHEELBASE
        rates = {}
        angles = {}
        for axle, x in (('front', WHEELBASE), ('rear', 0.0)):
            for side, y in (('left', 0.5 * TRACK_WIDTH), ('right', -0.5 * TRACK_WIDTH)):
                ahead, aside = 1.0 - curvature * y, curvature * x
                rates[f'{axle}_{side}'] = speed * math.hypot(ahead, aside) / WHEEL_RADIUS
                angles[f'{axle}_{side}'] = math.atan2(aside, ahead)
        # In the order of the actuators in car.xml.
        self._data.ctrl[:] = [angles['front_left'], angles['front_right'], *rates.values()]

    def image(self) -> np.ndarray:
        """Render the front camera now: uint8 (image_height, image_width, 3) rgb.

        Raises RuntimeError if the EGL library or its driver is missing.
        """
        return self._render('front', self.image_width, self.image_height)

    def top_view(self, size: int) -> np.ndarray:
        """Render the whole world from above: uint8 (size, size, 3) rgb, +y up, +x right."""
        return self._render('top', size, size)

    def chase_view(self, width: int, height: int) -> np.ndarray:
        """Render the car from behind and above, for people: uint8 (height, width, 3) rgb."""
        return self._render('chase', width, height)

    def camera_info(self) -> CameraInfo:
        """Return the intrinsics of `image`, as sensor_msgs/CameraInfo wants them."""
        fovy = math.radians(float(self._model.camera('front').fovy[0]))
        focal = 0.5 * self.image_height / math.tan(0.5 * fovy)
        return CameraInfo(focal, focal, 0.5 * (self.image_width - 1), 0.5 * (self.image_height - 1))

    def imu(self) -> tuple[np.ndarray, np.ndarray]:
        """Read the IMU: angular velocity rad/s (3,), specific force m/s2 (3,), in base_link axes.

        Both are means over the physics steps since the last call, plus white noise and the
        episode's constant bias (MuJoCo itself adds none). At rest the force reads +9.81 on z.
        """
        if self._imu_count:
            self._imu_mean = self._imu_sum / self._imu_count
            self._imu_sum[:] = 0.0
            self._imu_count = 0
        noise = np.repeat([GYRO_NOISE, ACCEL_NOISE], 3) * self._rng.standard_normal(6)
        reading = self._imu_mean + self._bias + noise
        return reading[:3], reading[3:]

    def truth(self) -> CarTruth:
        """Return the exact state of the car and where it is on the track."""
        x, y = float(self._data.qpos[0]), float(self._data.qpos[1])
        w, qx, qy, qz = self._data.qpos[3:7].tolist()
        yaw = math.atan2(2.0 * (w * qz + qx * qy), 1.0 - 2.0 * (qy * qy + qz * qz))
        vx, vy = self._data.qvel[:2].tolist()
        lateral, heading = self._locate()
        heading_error = math.remainder(yaw - heading, 2.0 * math.pi)
        # a car that stands askew reaches further out with a wheel than its half width
        outermost = abs(lateral) + (
            CAR_HALF_WIDTH * abs(math.cos(heading_error))
            + 0.5 * WHEELBASE * abs(math.sin(heading_error))
        )
        return CarTruth(
            x=x,
            y=y,
            yaw=yaw,
            speed=vx * math.cos(yaw) + vy * math.sin(yaw),
            steering=float(self._data.qpos[self._q_steer].mean()),
            s=self._s,
            progress=self._s - self._start_s + self._laps * self.track.length,
            lateral=lateral,
            heading_error=heading_error,
            in_lane=outermost <= LANE_HALF_WIDTH,
        )

    def close(self) -> None:
        """Free the renderer; the next picture makes a new one."""
        if self._canvas is not None:
            self._canvas.close()
            self._canvas = None

    def _locate(self) -> tuple[float, float]:
        """Follow the car along the track; return (lateral m, centre-line heading rad)."""
        s, lateral, heading = self.track.locate(
            self._data.qpos[0], self._data.qpos[1], near=self._s
        )
        self._laps += round((self._s - s) / self.track.length)  # +1 over the start, -1 back
        self._s = s
        return lateral, heading

    def _render(self, camera: str, width: int, height: int) -> np.ndarray:
        if self._canvas is None:
            self._canvas = _Canvas(self._model, self.image_width, self.image_height)
        if self._texture_is_old:
            texture = self._model.texture('track')
            picture = self.track.texture(int(texture.width[0]))
            texture.data[:] = picture.reshape(texture.data.shape)
            self._model.material('meadow').rgba[:3] = picture[0].mean(axis=0) / 255.0
            self._canvas.upload(texture.id)
            self._texture_is_old = False
        return self._canvas.draw(self._data, camera, width, height)


class _Canvas:
    """An off-screen OpenGL buffer; making one takes about a second, drawing into it 2 ms."""

    def __init__(self, model: mujoco.MjModel, width: int, height: int) -> None:
        self._model = model
        self._size = (width, height)
        try:
            self._gl = mujoco.GLContext(width, height)
        except (ImportError, AttributeError) as error:  # no device; no EGL extensions at all
            raise RuntimeError(_NO_EGL) from error
        self._gl.make_current()
        self._scene = mujoco.MjvScene(model, maxgeom=200)
        self._option = mujoco.MjvOption()
        model.vis.global_.offwidth, model.vis.global_.offheight = width, height
        self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)

    def upload(self, texture_id: int) -> None:
        self._gl.make_current()
        mujoco.mjr_uploadTexture(self._model, self._context, texture_id)

    def draw(self, data: mujoco.MjData, camera: str, width: int, height: int) -> np.ndarray:
        self._gl.make_current()
        if self._size != (width, height):
            mujoco.mjr_resizeOffscreen(width, height, self._context)
            self._size = (width, height)
        # mj_step leaves the poses of the step before in `data`.
        mujoco.mj_kinematics(self._model, data)
        mujoco.mj_camlight(self._model, data)
        view = mujoco.MjvCamera()
        view.type = mujoco.mjtCamera.mjCAMERA_FIXED
        view.fixedcamid = self._model.camera(camera).id
        mujoco.mjv_updateScene(
            self._model, data, self._option, None, view, mujoco.mjtCatBit.mjCAT_ALL, self._scene
        )
        viewport = mujoco.MjrRect(0, 0, width, height)
        mujoco.mjr_render(viewport, self._scene, self._context)
        picture = np.empty((height, width, 3), np.uint8)
        mujoco.mjr_readPixels(picture, None, viewport, self._context)
        return picture[::-1].copy()  # OpenGL's first row is the lowest

    def close(self) -> None:
        self._context.free()
        self._gl.free()
