"""From message fields to the arrays that the network takes, and how old each of them is.

Nothing here knows ROS: a message arrives as its buffer and its numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lnn_ros.policy import IMU_FIELDS, ImageContract, ImuContract

CHANNELS = {'rgb8': 3, 'bgr8': 3, 'mono8': 1, 'rgba8': 4, 'bgra8': 4}
"""Accepted sensor_msgs/Image encodings and their bytes per pixel."""

_RGB_OF = {  # (rgb, source channels): how each source channel counts in red, green and blue
    'rgb8': np.eye(3),
    'bgr8': np.eye(3)[:, ::-1],
    'mono8': np.ones((3, 1)),
    'rgba8': np.eye(3, 4),
    'bgra8': np.eye(3)[:, [2, 1, 0]] @ np.eye(3, 4),
}
_LUMA = np.array([[0.299, 0.587, 0.114]])  # ITU-R BT.601


class ObservationError(ValueError):
    """A message whose content cannot be used; says what, which value and which rule."""


def area_weights(source: int, start: float, stop: float, target: int) -> NDArray[np.float32]:
    """Return the (target, source) matrix that averages cells [start, stop) into `target` cells.

    Each target cell is the mean of the area that it covers, partly covered cells counted by their
    share, so no detail is skipped and none aliases.
    """
    edges = np.linspace(start, stop, target + 1)
    cells = np.arange(source)
    overlap = np.minimum(edges[1:, None], cells + 1) - np.maximum(edges[:-1, None], cells)
    weights = np.clip(overlap, 0.0, None)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


class ImageReader:
    """Crops, averages down and normalises image buffers as a policy's contract says.

    The weights for one source format are made when that format is first seen and kept.
    """

    def __init__(self, contract: ImageContract) -> None:
        self._contract = contract
        self._format: tuple[int, int, str] | None = None
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
        if height < 1 or width < 1 or step < width * channels:
            raise ObservationError(
                f'{width}x{height} {encoding} with step {step}: sizes must be positive and a row '
                f'needs at least {width * channels} bytes'
            )
        buffer = np.frombuffer(data, np.uint8)  # type: ignore[call-overload]
        if buffer.size < step * height:
            raise ObservationError(
                f'{width}x{height} {encoding} with step {step} needs {step * height} bytes, '
                f'the message has {buffer.size}'
            )
        if self._format != (height, width, encoding):
            self._prepare(height, width, encoding)
        rows = buffer[: step * height].reshape(height, step)[self._rows, : width * channels]
        np.copyto(self._cropped, rows)
        contract = self._contract
        np.matmul(self._down, self._cropped, out=self._squashed)
        columns = self._squashed.reshape(contract.height, width, channels)
        small = np.matmul(self._across, columns)  # (height, target width, source channels)
        np.matmul(self._mix, small.reshape(-1, channels).T, out=self._flat)
        self._flat -= np.float32(contract.mean)
        self._flat *= np.float32(1.0 / contract.scale)
        return self._pixels

    def _prepare(self, height: int, width: int, encoding: str) -> None:
        contract, channels = self._contract, CHANNELS[encoding]
        top, bottom = contract.crop_top * height, contract.crop_bottom * height
        self._rows = slice(math.floor(top), math.ceil(bottom))
        first = self._rows.start
        self._down = area_weights(
            self._rows.stop - first, top - first, bottom - first, contract.height
        )
        self._across = area_weights(width, 0.0, width, contract.width)
        mix = _RGB_OF[encoding] if contract.channels == 3 else _LUMA @ _RGB_OF[encoding]
        self._mix = (mix / 255.0).astype(np.float32)
        self._cropped = np.empty((self._rows.stop - first, width * channels), dtype=np.float32)
        self._squashed = np.empty((contract.height, width * channels), dtype=np.float32)
        self._flat = self._pixels.reshape(contract.channels, -1)
        self._format = (height, width, encoding)


class ImuReader:
    """Selects and scales the numbers of an IMU sample as a policy's contract says."""

    def __init__(self, contract: ImuContract) -> None:
        self._columns = [IMU_FIELDS.index(field) for field in contract.fields]
        self._offset = np.array(contract.offset)
        self._scale = np.array(contract.scale)
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
        raw = np.array((*angular_velocity, *linear_acceleration))
        if not np.isfinite(raw).all():
            bad = {f: float(v) for f, v in zip(IMU_FIELDS, raw, strict=True) if not np.isfinite(v)}
            raise ObservationError(f'{bad} is not finite, the sample is ignored')
        np.divide(
            raw[self._columns] - self._offset, self._scale, out=self._values, casting='same_kind'
        )
        if not np.isfinite(self._values).all():  # a finite float64 beyond float32
            raise ObservationError(
                f'{dict(zip(IMU_FIELDS, raw.tolist(), strict=True))} is too large, '
                'the sample is ignored'
            )
        return self._values
