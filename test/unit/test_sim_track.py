import numpy as np
import pytest

from lnn_ros.sim.track import LANE_HALF_WIDTH, WORLD_SIZE, Track

SEEDS = range(40)


@pytest.fixture(scope='module')
def tracks():
    return [Track(seed) for seed in SEEDS]


def beside(track, s, lateral):
    """Return the point `lateral` m to the left of the centre line at arc length `s`."""
    x, y, heading, _ = track.point(s)
    return x - lateral * np.sin(heading), y + lateral * np.cos(heading)


def colour_at(texture, x, y):
    """Look up a world point in a picture whose row 0 is at y = +12 m; rgb floats."""
    size = len(texture)
    row = int((0.5 * WORLD_SIZE - y) / WORLD_SIZE * size)
    column = int((x + 0.5 * WORLD_SIZE) / WORLD_SIZE * size)
    return texture[row, column].astype(float)


def test_same_seed_gives_the_same_track_and_another_seed_another():
    assert np.array_equal(Track(3).centre, Track(3).centre)
    assert np.array_equal(Track(3).texture(256), Track(3).texture(256))
    assert len(Track(3).centre) != len(Track(4).centre)


def test_tracks_fit_the_world_and_are_neither_too_short_nor_too_long(tracks):
    for track in tracks:
        assert np.abs(track.centre).max() + LANE_HALF_WIDTH < 0.5 * WORLD_SIZE
        assert 25.0 < track.length < 45.0


def test_samples_lie_evenly_two_centimetres_apart_and_the_loop_closes(tracks):
    for track in tracks:
        steps = np.hypot(*(np.roll(track.centre, -1, axis=0) - track.centre).T)
        assert track.spacing == pytest.approx(0.02, rel=0.01)
        assert steps == pytest.approx(track.spacing, rel=1e-3)


def test_no_bend_is_tighter_than_the_minimum_radius(tracks):
    for track in tracks:
        assert 1.0 / np.abs(track.curvature).max() > 1.29


def test_curvature_is_the_change_of_heading_and_the_loop_turns_once_round(tracks):
    for track in tracks:
        assert abs(track.curvature.sum() * track.spacing) == pytest.approx(2 * np.pi, rel=1e-3)
        chord = np.roll(track.centre, -1, axis=0) - np.roll(track.centre, 1, axis=0)
        error = np.angle(np.exp(1j * (np.arctan2(chord[:, 1], chord[:, 0]) - track.heading)))
        assert np.abs(error).max() < 1e-3


def test_every_track_bends_both_ways_and_both_directions_of_travel_occur(tracks):
    for track in tracks:
        assert np.mean(track.curvature > 0.2) > 0.09
        assert np.mean(track.curvature < -0.2) > 0.09
    anticlockwise = np.mean([track.curvature.sum() > 0 for track in tracks])
    assert 0.2 < anticlockwise < 0.8


def test_two_stretches_of_road_never_come_near_each_other(tracks):
    for track in tracks:
        points, s = track.centre[::10], np.arange(len(track.centre))[::10] * track.spacing
        way = np.abs(s[:, None] - s)
        way = np.minimum(way, track.length - way)
        apart = np.hypot(*(points[:, None] - points).transpose(2, 0, 1))
        assert apart[way > 3.0].min() > 4 * LANE_HALF_WIDTH


def test_locate_finds_arc_length_and_side_of_a_point_beside_the_road(tracks):
    rng = np.random.default_rng(0)
    for track in tracks:
        s, lateral = rng.uniform(0, track.length), rng.uniform(-0.6, 0.6)
        _, _, heading, _ = track.point(s)
        for near in (None, s + 0.5, s - 0.5):
            found = track.locate(*beside(track, s, lateral), near=near)
            assert found[0] == pytest.approx(s, abs=2e-3)
            assert found[1] == pytest.approx(lateral, abs=1e-3)
            assert found[2] == pytest.approx(heading, abs=2e-3)


def test_locate_near_a_stretch_stays_on_it_although_another_is_nearer(tracks):
    track = tracks[0]
    far = 0.5 * track.length
    x, y, _, _ = track.point(far)
    s, _, _ = track.locate(x, y, near=2.0)
    assert 0.9 < s < 3.1
    assert track.locate(x, y)[0] == pytest.approx(far, abs=1e-3)


def test_locate_and_point_go_round_the_start_without_a_seam(tracks):
    for track in tracks:
        assert track.point(-0.3) == pytest.approx(track.point(track.length - 0.3), abs=1e-6)
        s, lateral, _ = track.locate(*beside(track, -0.3, 0.2), near=0.2)
        assert s == pytest.approx(track.length - 0.3, abs=2e-3)
        assert lateral == pytest.approx(0.2, abs=1e-3)


def test_texture_shows_road_lines_and_grass_where_the_centre_line_says(tracks):
    for track in tracks[:4]:
        texture = track.texture()
        assert texture.shape == (2048, 2048, 3) and texture.dtype == np.uint8
        for s in np.arange(0.0, track.length, 0.7):
            for side in (-1, 1):
                red, green, blue = colour_at(texture, *beside(track, s, 0.425 * side))
                assert min(red, green, blue) > 150  # white
                red, green, blue = colour_at(texture, *beside(track, s, 0.2 * side))
                assert max(red, green, blue) < 150 and abs(red - green) < 15  # grey
                red, green, blue = colour_at(texture, *beside(track, s, 0.8 * side))
                assert green > red and green > blue + 20  # grass
        line = np.array(
            [colour_at(texture, *track.point(s)[:2]) for s in np.arange(0, track.length, 0.01)]
        )
        yellow = line[:, 0] - line[:, 2] > 60
        assert 0.4 < yellow.mean() < 0.6
        dashes = np.sum(np.diff(yellow.astype(int)) == 1)
        assert dashes == pytest.approx(track.length / 0.6, abs=2)


def test_texture_shades_vary_with_the_seed(tracks):
    greys = [colour_at(t.texture(512), *beside(t, 1.0, 0.2)).mean() for t in tracks[:8]]
    assert np.std(greys) > 5.0
