"""Reading serialized messages in place, beside rclpy's own reading."""

import random
import struct

import pytest

pytest.importorskip('rclpy')

from geometry_msgs.msg import Twist, TwistStamped  # noqa: E402
from rclpy.serialization import deserialize_message, serialize_message  # noqa: E402
from sensor_msgs.msg import Image, Imu  # noqa: E402

from lnn_ros.nodes.cdr import MessageError, read_image, read_imu, twist_writer  # noqa: E402


def random_imu(random_):
    message = Imu()
    message.header.stamp.sec = random_.randrange(-(2**31), 2**31)
    message.header.stamp.nanosec = random_.randrange(10**9)
    message.header.frame_id = 'x' * random_.randrange(40)
    for vector in (message.angular_velocity, message.linear_acceleration):
        vector.x, vector.y, vector.z = (random_.gauss(0.0, 1e3) for _ in range(3))
    message.orientation.w = random_.random()
    message.linear_acceleration_covariance[8] = random_.random()
    return message


def fields(message):
    stamp = message.header.stamp
    rate, force = message.angular_velocity, message.linear_acceleration
    return (
        stamp.sec * 10**9 + stamp.nanosec,
        (rate.x, rate.y, rate.z),
        (force.x, force.y, force.z),
    )


def big_endian(message):
    """Serialize an Imu by hand, most significant byte first."""
    stamp, frame = message.header.stamp, message.header.frame_id.encode() + b'\0'
    data = struct.pack(f'>iII{len(frame)}s', stamp.sec, stamp.nanosec, len(frame), frame)
    data += bytes(-len(data) % 8)
    for vector, covariance in (
        (message.orientation, message.orientation_covariance),
        (message.angular_velocity, message.angular_velocity_covariance),
        (message.linear_acceleration, message.linear_acceleration_covariance),
    ):
        names = 'xyzw' if hasattr(vector, 'w') else 'xyz'
        values = [getattr(vector, name) for name in names]
        data += struct.pack(f'>{len(values) + 9}d', *values, *covariance)
    return b'\0\0\0\0' + data


def test_imu_read_in_place_equals_the_typed_one_in_both_byte_orders():
    random_ = random.Random(1)
    for _ in range(500):
        message = random_imu(random_)
        data = serialize_message(message)
        assert read_imu(data) == fields(message)
        assert read_imu(big_endian(message)) == fields(message)
        assert deserialize_message(big_endian(message), Imu) == message


def test_image_read_in_place_equals_the_typed_one_and_is_not_copied():
    random_ = random.Random(2)
    for _ in range(200):
        width, height = random_.randrange(1, 40), random_.randrange(1, 30)
        message = Image(height=height, width=width, step=3 * width, encoding='rgb8')
        message.header.frame_id = 'x' * random_.randrange(9)
        message.header.stamp.sec = random_.randrange(2**31)
        message.data = random_.randbytes(3 * width * height)
        data = serialize_message(message)
        image = read_image(data)
        assert image[:5] == (message.header.stamp.sec * 10**9, height, width, 'rgb8', 3 * width)
        assert image.data == memoryview(message.data)
        assert image.data.obj is data


@pytest.mark.parametrize(('kind', 'read'), [(Imu, read_imu), (Image, read_image)])
def test_hostile_bytes_are_refused_or_read_but_never_crash(kind, read):
    random_ = random.Random(3)
    whole = random_imu(random_) if kind is Imu else Image(encoding='rgb8', data=bytes(30))
    whole = serialize_message(whole)
    for length in range(len(whole)):
        with pytest.raises(MessageError):
            read(whole[:length])
    for encapsulation in (b'\0\2', b'\0\3', b'\0\7', b'\1\1', b'\xff\xff'):
        with pytest.raises(MessageError, match='not plain CDR'):
            read(encapsulation + whole[2:])
    for _ in range(20000):
        data = bytearray(whole)
        for _ in range(random_.randrange(1, 6)):
            data[random_.randrange(len(data))] = random_.choice((0, 1, 127, 128, 255))
        try:
            read(bytes(data))
        except MessageError:
            pass


@pytest.mark.parametrize('frame', [None, 'base_link', 'größe', *('x' * n for n in range(9))])
def test_written_twist_is_read_by_rclpy_as_the_typed_one(frame):
    random_ = random.Random(2)
    write = twist_writer(frame)
    for _ in range(50):
        stamp_ns, numbers = (
            random_.randrange(2**31 * 10**9),
            [random_.gauss(0, 9) for _ in range(6)],
        )
        expected = TwistStamped()
        expected.header.frame_id = frame or ''
        expected.header.stamp.sec, expected.header.stamp.nanosec = divmod(stamp_ns, 10**9)
        for vector, three in (('linear', numbers[:3]), ('angular', numbers[3:])):
            for axis, number in zip('xyz', three, strict=True):
                setattr(getattr(expected.twist, vector), axis, number)
        message = expected.twist if frame is None else expected
        data = write(stamp_ns, numbers)
        assert deserialize_message(data, Twist if frame is None else TwistStamped) == message
        assert len(data) == len(serialize_message(message))  # what it pads with is anything


@pytest.mark.parametrize(
    'stamp_ns, sec', [(2**31 * 10**9 + 5, 2**31 - 1), (-5, 0), (2**80, 2**31 - 1)]
)
def test_stamp_that_no_message_can_hold_does_not_keep_the_command_back(stamp_ns, sec):
    data = twist_writer('base_link')(stamp_ns, (0.5, 0.0, 0.0, 0.0, 0.0, 0.0))
    message = deserialize_message(data, TwistStamped)
    assert (message.header.stamp.sec, message.twist.linear.x) == (sec, 0.5)
