"""Read what a node needs out of serialized messages, in place; write a Twist as one.

rclpy builds a Python object for every field of a message; an Imu has 37 numbers, of which six are
used, and an Image's pixels are copied twice. A subscription with `raw=True` hands out the bytes as
they came instead, and a publisher sends bytes as they are.

The format is plain CDR, as every ROS 2 middleware sends it (OMG DDS-RTPS 2.5, chapter 10): four
bytes that tell the byte order, then the fields in their order, each aligned to its own size counted
from there; strings and sequences are preceded by their length.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from struct import Struct
from typing import NamedTuple

from lnn_ros.timing import NS_PER_S

Vector = tuple[float, float, float]

_ORIGIN = 4  # where the fields begin
_PLAIN_LITTLE = b'\0\1\0\0'  # what stands before them
# pairs: big-endian, little-endian
_HEADER = (Struct('>iII'), Struct('<iII'))  # std_msgs/Header: stamp, length of frame_id
_IMU = (Struct('>104x3d72x3d72x'), Struct('<104x3d72x3d72x'))  # x: orientation and covariances
_PAIR = (Struct('>II'), Struct('<II'))
_LENGTH = (Struct('>I'), Struct('<I'))
_LATEST_NS = 2**31 * NS_PER_S - 1  # in a builtin_interfaces/Time


class MessageError(ValueError):
    """The bytes are no message of this type; the text says why."""


class RawImage(NamedTuple):
    """What is used of a sensor_msgs/Image; `data` is a view of the bytes it was read from."""

    stamp_ns: int
    height: int
    width: int
    encoding: str
    step: int
    data: memoryview


def read_imu(message: bytes) -> tuple[int, Vector, Vector]:
    """Read a serialized sensor_msgs/Imu.

    Returns:
        stamp in ns, angular velocity in rad/s, linear acceleration in m/s^2, both (x, y, z).

    Raises:
        MessageError: when it is cut short or encoded otherwise.
    """
    order = _byte_order(message)
    try:
        sec, nanosec, length = _HEADER[order].unpack_from(message, _ORIGIN)
        end = _ORIGIN + 12 + length
        x, y, z, ahead, left, up = _IMU[order].unpack_from(message, end + (_ORIGIN - end) % 8)
    except struct.error as error:
        raise MessageError(f'{len(message)} bytes are too few for an Imu') from error
    return sec * NS_PER_S + nanosec, (x, y, z), (ahead, left, up)


def read_image(message: bytes) -> RawImage:
    """Read a serialized sensor_msgs/Image; its pixels are not copied.

    Raises:
        MessageError: when it is cut short or encoded otherwise.
    """
    order = _byte_order(message)
    try:
        sec, nanosec, length = _HEADER[order].unpack_from(message, _ORIGIN)
        end = _ORIGIN + 12 + length
        at = end + -end % 4
        height, width = _PAIR[order].unpack_from(message, at)
        (length,) = _LENGTH[order].unpack_from(message, at + 8)
        end = at + 12 + length
        encoding = message[at + 12 : end].rstrip(b'\0').decode('ascii')
        end += 1  # is_bigendian, which the encodings of 8 bits do not need
        at = end + -end % 4
        step, size = _PAIR[order].unpack_from(message, at)
    except struct.error as error:
        raise MessageError(f'{len(message)} bytes are too few for an Image') from error
    except UnicodeDecodeError as error:
        raise MessageError('the encoding of the Image is no name') from error
    data = memoryview(message)[at + 8 : at + 8 + size]
    if len(data) < size:
        raise MessageError(f'{len(data)} bytes of pixels are here, but {size} are announced')
    return RawImage(sec * NS_PER_S + nanosec, height, width, encoding, step, data)


def twist_writer(frame: str | None) -> Callable[[int, Iterable[float]], bytes]:
    """Return what serializes a geometry_msgs/TwistStamped; a Twist if there is no frame.

    It takes a stamp in ns, which a Twist does not carry, and six numbers: linear x, y, z in m/s,
    then angular x, y, z in rad/s. A stamp beyond what a message can hold becomes the nearest one.
    """
    if frame is None:
        pack = Struct('<4s6d').pack
        return lambda stamp_ns, numbers: pack(_PLAIN_LITTLE, *numbers)
    name = frame.encode() + b'\0'
    pack_stamped = Struct(f'<4siII{len(name)}s{-(12 + len(name)) % 8}x6d').pack

    def write(stamp_ns: int, numbers: Iterable[float]) -> bytes:
        # a clock that is out of the message's range must not keep a safe command from going out
        sec, nanosec = divmod(min(max(stamp_ns, 0), _LATEST_NS), NS_PER_S)
        return pack_stamped(_PLAIN_LITTLE, sec, nanosec, len(name), name, *numbers)

    return write


def _byte_order(message: bytes) -> int:
    """Return 1 for little-endian, 0 for big-endian."""
    if message[:1] != b'\0' or message[1:2] not in (b'\0', b'\1'):
        raise MessageError(f'the bytes begin with 0x{message[:2].hex()}, which is not plain CDR')
    return message[1]
