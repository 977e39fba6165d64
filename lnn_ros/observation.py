"""From message fields to the arrays that the network takes.

Nothing here knows ROS: a message arrives as its buffer and its numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lnn_ros.core import open_resampler
from lnn_ros.core.view import Resampler, Spans, View
from lnn_ros.policy import IMU_FIELDS, ImageContract, ImuContract

CHANNELS = {'rgb8': 3, 'bgr8': 3, 'mono8': 1, 'rgba8': 4, 'bgra8': 4}
"""Accepted sensor_msgs/Image encodings and their bytes per pixel."""

LONGEST_SIDE = 8192  # pixels; a line of a million would stall the robot while weights are made

_RGB_OF = {  # (rgb, source channels): how each source channel counts in red, green and blue
    'rgb8': np.eye(3),
    'bgr8': np.eye(3)[:, ::-1],
    'mono8': np.ones((3, 1)),
    'rgba8': np.eye(3, 4),
    'bgra8': np.eye(3)[:, [2, 1, 0]] @ np.eye(3, 4),
}
_MOST = float(np.finfo(np.float32).max)
_LUMA = np.array([[0.299, 0.587, 0.114]])  # ITU-R BT.601


class ObservationError(ValueError):
    """A message whose content cannot be used; says what, which value and which rule."""


class ImageReader:
    """Crops, averages down and normalises image buffers as a policy's contract says.

    What one source format takes is made when that format is first seen and kept.
    """

    def __init__(self, contract: ImageContract) -> None:
        self._contract = contract
        self._format: tuple[int, int, str] | None = None
        self._resampler: Resampler
        self._pixels = np.empty(
            (contract.channels, contract.height, contract.width), dtype=np.float32
        )

    def read(
        self, data: object, height: int, width: int, encoding: str, step: int
    ) -> NDArray[np.float32]:
        """Return the network's view of an image: (channels, height, width) float32, normalised.

        Args:
            data: buffer of at least `step * height` bytes (bytes, array.array, ndarray ...).
            height, width: of the source, in pixels.
            encoding: one of `CHANNELS`.
            step: bytes from one row to the next; rows may be padded.

        Returns:
            an array that the next call overwrites.

        Raises:
            ObservationError: for another encoding, or sizes that do not fit together.
        """
        channels = CHANNELS.get(encoding)
        if channels is None:
            raise ObservationError(
                f"encoding '{encoding}' is not supported, publish one of {', '.join(CHANNELS)}"
            )
        if not (1 <= height <= LONGEST_SIDE and 1 <= width <= LONGEST_SIDE):
            raise ObservationError(f'{width}x{height}: sides must be 1 to {LONGEST_SIDE} pixels')
        if step < width * channels:
            raise ObservationError(
                f'step {step}: a row of {width} {encoding} pixels has {width * channels} bytes'
            )
        buffer = np.frombuffer(data, np.uint8)  # type: ignore[call-overload]
        if buffer.size < step * height:
            raise ObservationError(
                f'{width}x{height} {encoding} with step {step} needs {step * height} bytes, '
                f'the message has {buffer.size}'
            )
        if self._format != (height, width, encoding):
            self._prepare(height, width, encoding)
        self._resampler.see(buffer, step, self._pixels)
        return self._pixels

    def _prepare(self, height: int, width: int, encoding: str) -> None:
        contract = self._contract
        mix = _RGB_OF[encoding] if contract.channels == 3 else _LUMA @ _RGB_OF[encoding]
        top, bottom = contract.crop_top * height, contract.crop_bottom * height
        view = View(
            rows=Spans.area(height, top, bottom, contract.height),
            columns=Spans.area(width, 0.0, width, contract.width),
            source_width=width,
            mix=mix / 255.0,
            mean=contract.mean,
            scale=contract.scale,
        )
        self._resampler = open_resampler(view)
        self._format = (height, width, encoding)


class ImuReader:
    """Selects and scales the numbers of an IMU sample as a policy's contract says."""

    def __init__(self, contract: ImuContract) -> None:
        self._numbers = list(
            zip(
                map(IMU_FIELDS.index, contract.fields), contract.offset, contract.scale, strict=True
            )
        )
        self._values = np.empty(len(contract.fields), dtype=np.float32)

    def read(
        self, angular_velocity: Sequence[float], linear_acceleration: Sequence[float]
    ) -> NDArray[np.float32]:
        """Return (fields,) float32: (value - offset) / scale.

        Args:
            angular_velocity: (x, y, z) in rad/s, body axes as in REP 103.
            linear_acceleration: (x, y, z) in m/s^2, +9.81 on z at rest as in REP 145.

        Returns:
            an array that the next call overwrites.

        Raises:
            ObservationError: when any of the six numbers is not finite, or too large once scaled.
        """
        # plain Python: for six numbers numpy takes five times as long
        raw = (*angular_velocity, *linear_acceleration)
        scaled = [(raw[column] - offset) / scale for column, offset, scale in self._numbers]
        if not all(map(math.isfinite, raw)):
            named = zip(IMU_FIELDS, map(float, raw), strict=True)
            bad = {field: value for field, value in named if not math.isfinite(value)}
            raise ObservationError(f'{bad} is not finite, the sample is ignored')
        if max(map(abs, scaled)) > _MOST:  # a finite float64 beyond float32
            large = {
                IMU_FIELDS[column]: float(raw[column])
                for (column, _, _), value in zip(self._numbers, scaled, strict=True)
                if abs(value) > _MOST
            }
            raise ObservationError(f'{large} is too large, the sample is ignored')
        self._values[:] = scaled
        return self._values
