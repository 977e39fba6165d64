from array import array

import numpy as np
import pytest

from lnn_ros.observation import CHANNELS, ImageReader, ImuReader, ObservationError
from lnn_ros.policy import IMU_FIELDS, ImageContract, ImuContract

# One pixel of red 200, green 100, blue 50 (grey 90) in each encoding; alpha must not matter.
PIXELS = {
    'rgb8': [200, 100, 50],
    'bgr8': [50, 100, 200],
    'rgba8': [200, 100, 50, 7],
    'bgra8': [50, 100, 200, 7],
    'mono8': [90],
}
LUMA = 0.299 * 200 + 0.587 * 100 + 0.114 * 50  # ITU-R BT.601


def contract_of(width, height, channels=3, crop=(0.0, 1.0), mean=0.0, scale=1.0):
    return ImageContract(width, height, channels, *crop, mean, scale, 0.25)


def noise(height, width, channels, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def read(reader, image, encoding, padding=0):
    """Read an image (height, width, channels) whose rows end in `padding` bytes of rubbish."""
    height, width, channels = image.shape
    rows = np.full((height, width * channels + padding), 255, dtype=np.uint8)
    rows[:, : width * channels] = image.reshape(height, -1)
    return reader.read(rows.tobytes(), height, width, encoding, rows.shape[1]).copy()


def brute_force_average(image, width, height, top, bottom):
    """Average by repeating pixels until every target cell is made of whole ones; exact."""
    source_height, source_width, _ = image.shape
    fine = np.repeat(np.repeat(image.astype(float), 8 * height, 0), width, 1)
    fine = fine[round(top * 8 * height) : round(bottom * 8 * height)]
    cell = (fine.shape[0] // height, source_width)
    return fine.reshape(height, cell[0], width, cell[1], -1).mean((1, 3)).transpose(2, 0, 1)


def test_every_accepted_encoding_is_in_the_table_below():
    assert set(PIXELS) == set(CHANNELS)


@pytest.mark.parametrize('encoding', PIXELS)
def test_encoding_becomes_red_green_and_blue(encoding):
    image = np.tile(np.array(PIXELS[encoding], dtype=np.uint8), (4, 6, 1))
    seen = read(ImageReader(contract_of(3, 2)), image, encoding)
    colour = [90, 90, 90] if encoding == 'mono8' else [200, 100, 50]
    assert seen.shape == (3, 2, 3) and seen.dtype == np.float32
    np.testing.assert_allclose(seen, np.broadcast_to(np.c_[colour][:, None] / 255, (3, 2, 3)), 1e-5)


@pytest.mark.parametrize('encoding', PIXELS)
def test_encoding_becomes_luma_for_a_mono_network(encoding):
    image = np.tile(np.array(PIXELS[encoding], dtype=np.uint8), (4, 6, 1))
    seen = read(ImageReader(contract_of(3, 2, channels=1)), image, encoding)
    assert seen.shape == (1, 2, 3)
    np.testing.assert_allclose(seen, (90 if encoding == 'mono8' else LUMA) / 255, rtol=1e-5)


@pytest.mark.parametrize(
    ('source', 'target', 'crop'),
    [
        ((7, 5), (3, 2), (0.0, 1.0)),
        ((48, 64), (18, 32), (0.25, 1.0)),
        ((10, 9), (4, 4), (0.25, 0.75)),  # rows 2.5 to 7.5: two rows count half
        ((5, 7), (8, 11), (0.0, 1.0)),  # enlarged
        ((6, 8), (6, 8), (0.0, 1.0)),
        ((6, 8), (1, 1), (0.5, 1.0)),
    ],
)
def test_area_average_equals_brute_force(source, target, crop):
    image = noise(*source, 3)
    (source_height, _), (height, width) = source, target
    seen = read(ImageReader(contract_of(width, height, crop=crop)), image, 'rgb8')
    rows = crop[0] * source_height, crop[1] * source_height
    expected = brute_force_average(image, width, height, *rows) / 255
    np.testing.assert_allclose(seen, expected, atol=2e-6)


def test_mean_and_scale_normalise_the_unit_range():
    image = noise(6, 8, 3)
    plain = read(ImageReader(contract_of(4, 3)), image, 'rgb8')
    seen = read(ImageReader(contract_of(4, 3, mean=0.45, scale=0.25)), image, 'rgb8')
    np.testing.assert_allclose(seen, (plain - 0.45) / 0.25, atol=2e-6)


@pytest.mark.parametrize('encoding', CHANNELS)
def test_padding_at_the_end_of_rows_is_not_seen(encoding):
    image = noise(7, 5, CHANNELS[encoding])
    reader = ImageReader(contract_of(3, 2, crop=(0.3, 0.9)))
    plain = read(reader, image, encoding)
    assert np.array_equal(read(reader, image, encoding, padding=13), plain)


@pytest.mark.parametrize(
    'wrap',
    [bytes, bytearray, memoryview, lambda b: array('B', b), lambda b: np.frombuffer(b, 'u1')],
)
def test_any_kind_of_buffer_is_read(wrap):
    image = noise(4, 6, 3)
    seen = ImageReader(contract_of(3, 2)).read(wrap(image.tobytes()), 4, 6, 'rgb8', 18)
    np.testing.assert_allclose(seen, brute_force_average(image, 3, 2, 0, 4) / 255, atol=2e-6)


def test_reader_follows_a_change_of_format():
    formats = [(6, 8, 'rgb8'), (6, 8, 'bgr8'), (4, 4, 'mono8'), (8, 6, 'bgra8'), (6, 8, 'rgb8')]
    reader = ImageReader(contract_of(3, 2))
    for seed, (height, width, encoding) in enumerate(formats):
        image = noise(height, width, CHANNELS[encoding], seed)
        alone = read(ImageReader(contract_of(3, 2)), image, encoding)
        assert np.array_equal(read(reader, image, encoding), alone)


@pytest.mark.parametrize(
    ('length', 'height', 'width', 'encoding', 'step', 'text'),
    [
        (72, 4, 6, '16UC1', 18, "encoding '16UC1' is not supported, publish one of rgb8"),
        (72, 4, 6, '', 18, "encoding ''"),
        (71, 4, 6, 'rgb8', 18, 'needs 72 bytes, the message has 71'),
        (0, 4, 6, 'rgb8', 18, 'needs 72 bytes, the message has 0'),
        (75, 4, 6, 'rgb8', 19, 'needs 76 bytes, the message has 75'),
        (72, 4, 6, 'rgb8', 17, 'a row needs at least 18 bytes'),
        (72, 4, 6, 'rgba8', 18, 'a row needs at least 24 bytes'),
        (72, 0, 6, 'rgb8', 18, '6x0 rgb8'),
        (72, 4, 0, 'rgb8', 18, '0x4 rgb8'),
    ],
)
def test_image_that_cannot_be_read_is_refused_by_name(length, height, width, encoding, step, text):
    reader = ImageReader(contract_of(3, 2))
    with pytest.raises(ObservationError, match=text):
        reader.read(bytes(length), height, width, encoding, step)


def test_imu_fields_are_chosen_offset_and_scaled():
    fields = ('linear_acceleration.z', 'angular_velocity.x', 'linear_acceleration.y')
    reader = ImuReader(ImuContract(fields, (9.81, 0.5, 0.0), (3.0, 2.0, 0.5), 'base_link'))
    seen = reader.read((1.5, 7.0, 7.0), [7.0, -2.0, 3.81])
    assert seen.dtype == np.float32
    np.testing.assert_allclose(seen, [-2.0, 0.5, -4.0], rtol=1e-6)


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize('position', range(6))
def test_imu_sample_that_is_not_finite_is_refused_by_field(position, value):
    # only one field is used, but a sensor that gives NaN anywhere is not to be believed
    reader = ImuReader(ImuContract(('angular_velocity.z',), (0.0,), (1.0,), 'base_link'))
    numbers = [0.0] * 6
    numbers[position] = value
    with pytest.raises(ObservationError, match=IMU_FIELDS[position]):
        reader.read(numbers[:3], numbers[3:])


@pytest.mark.filterwarnings('ignore:overflow')
def test_imu_sample_too_large_for_the_network_is_refused():
    reader = ImuReader(ImuContract(IMU_FIELDS, (0.0,) * 6, (0.1,) * 6, 'base_link'))
    with pytest.raises(ObservationError, match='angular_velocity.x'):
        reader.read((1e38, 0.0, 0.0), (0.0, 0.0, 9.81))  # finite, and inf as float32 once scaled
