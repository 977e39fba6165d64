"""The expert that the networks imitate: pure pursuit on the simulator's own knowledge."""

import numpy as np

from lnn_ros.sim.car import WHEELBASE, CarWorld


class PurePursuit:
    """Steers along the arc through a point on the centre line ahead (Coulter 1992).

    max_speed: m/s. max_lateral_acceleration: m/s2, limits the speed in the bends ahead.
    lookahead_time: s; the point lies that far ahead, within 0.5-0.8 m.
    braking: m/s2 with which it slows down for a bend.
    """

    def __init__(
        self,
        max_speed: float = 1.8,
        max_lateral_acceleration: float = 2.0,
        lookahead_time: float = 0.4,
        braking: float = 1.5,
    ) -> None:
        self.max_speed = max_speed
        self.max_lateral_acceleration = max_lateral_acceleration
        self.lookahead_time = lookahead_time
        self.braking = braking

    def __call__(self, world: CarWorld) -> tuple[float, float]:
        """Return the twist (linear_x m/s, angular_z rad/s) that follows the centre line."""
        truth, track = world.truth(), world.track
        # The no-slip point, which drives where the car points, is the rear axle's middle.
        rear_x = truth.x - 0.5 * WHEELBASE * np.cos(truth.yaw)
        rear_y = truth.y - 0.5 * WHEELBASE * np.sin(truth.yaw)
        lookahead = float(np.clip(self.lookahead_time * truth.speed, 0.5, 0.8))
        target_x, target_y, _, _ = track.point(truth.s + lookahead - 0.5 * WHEELBASE)
        dx, dy = target_x - rear_x, target_y - rear_y
        left = dy * np.cos(truth.yaw) - dx * np.sin(truth.yaw)
        curvature = 2.0 * left / (dx * dx + dy * dy)

        first = int(truth.s / track.spacing)
        ahead = np.arange(int(2.0 / track.spacing))
        bends = np.abs(track.curvature.take(first + ahead, mode='wrap'))
        limits = self.max_lateral_acceleration / np.maximum(bends, 1e-3)
        limits += 2.0 * self.braking * track.spacing * ahead
        limit = min(limits.min(), self.max_lateral_acceleration / max(abs(curvature), 1e-3))
        speed = min(self.max_speed, float(np.sqrt(limit)))
        return speed, float(speed * curvature)
