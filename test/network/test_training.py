import dataclasses
import json
import math
import os

import numpy as np
import pytest
import torch
import yaml

from lnn_ros import __version__
from lnn_ros import policy as policy_file
from lnn_ros.controller import Controller
from lnn_ros.core import open_engine
from lnn_ros.liquid.policy_network import PolicyNetwork
from lnn_ros.liquid.wiring import AutoNCP
from lnn_ros.results import write_results
from lnn_ros.schema import PolicyError, build
from lnn_ros.share import share_directory
from lnn_ros.sim.car import CarWorld
from lnn_ros.sim.episode import LaneScore
from lnn_ros.training.dataset import Recorder, collect_episode
from lnn_ros.training.evaluation import (
    CONDITIONS,
    NOMINAL,
    Evaluation,
    bootstrap,
    wilson,
)
from lnn_ros.training.imitation import Recipe, Trainer, load_recipe

torch.set_num_threads(1)  # a second one only costs, at these sizes

SHIPPED_RECIPE = share_directory() / 'config' / 'train_car.yaml'


def tiny_document():
    """Return the shipped recipe, made small enough to be run in seconds."""
    document = yaml.safe_load(SHIPPED_RECIPE.read_text())
    document['validation_episodes'], document['validation_duration'] = 1, 0.5
    document['rounds'] = [
        {'episodes': 2, 'student': False, 'epochs': 2},
        {'episodes': 1, 'student': True, 'epochs': 1},
    ]
    document['collection']['rows'] = 60
    document['optimisation'].update(batch=2, chunk=25)
    document['contract'].update(units=6, motor_neurons=6, mapping=[5], readout=[5])
    return document


@pytest.fixture(scope='module')
def recipe():
    return build(Recipe, tiny_document(), 'recipe')


class Interrupted(Exception):
    pass


class WatchedTrainer(Trainer):
    """The trainer, which notes the rounds that it fits and can be killed at the end of one."""

    def __init__(self, recipe, folder, dies_in=None):
        super().__init__(recipe, folder, processes=1)
        self.fitted, self.dies_in = [], dies_in

    def _fit(self, paths, epochs, title, number):
        self.fitted.append((number, len(paths)))
        super()._fit(paths, epochs, title, number)

    def _validate(self, number):
        if number == self.dies_in:
            raise Interrupted
        super()._validate(number)


@pytest.fixture(scope='module')
def trained(recipe, tmp_path_factory):
    """Train once without a break; return the folder and the policy's file."""
    folder = tmp_path_factory.mktemp('whole')
    return folder, WatchedTrainer(recipe, folder).run()


@pytest.fixture(scope='module')
def interrupted(recipe, tmp_path_factory):
    """Train again, killed in the second round; return the folder and the fitted rounds."""
    folder = tmp_path_factory.mktemp('interrupted')
    trainer = WatchedTrainer(recipe, folder, dies_in=1)
    with pytest.raises(Interrupted):
        trainer.run()
    return folder, trainer.fitted


def same_tensors(a, b):
    a, b = policy_file.load(a).tensors, policy_file.load(b).tensors
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


# Training, end to end.


def test_training_makes_a_policy_file_that_runs_and_says_how_it_was_made(recipe, trained):
    folder, path = trained
    assert path == folder / 'car.safetensors'
    policy = policy_file.load(path)
    open_engine(policy).advance(0.01)
    assert dataclasses.replace(policy.contract, provenance={}) == recipe.contract
    made = policy.contract.provenance
    document = tiny_document()
    del document['contract']
    assert made['recipe'] == document
    assert made['lnn_ros'] == __version__ and made['torch'] == torch.__version__
    assert made['tracks'] == {1: [10_000, 10_001], 2: [10_000, 10_001, 11_000]}[made['round']]
    assert set(made['validation']) == {'nominal', 'slow'}


def test_training_moves_every_parameter(recipe, trained):
    folder, _ = trained
    before = policy_file.load(folder / 'round_0.safetensors').tensors
    after = policy_file.load(folder / 'round_1.safetensors').tensors
    assert [name for name in before if np.array_equal(before[name], after[name])] == []


def test_each_round_drives_tracks_of_its_own(trained):
    folder, _ = trained
    episodes = sorted(path.relative_to(folder).as_posix() for path in folder.glob('*/*'))
    assert episodes == [
        'episodes_0/10000.npz',
        'episodes_0/10001.npz',
        'episodes_1/11000.npz',
    ]


def test_training_with_the_same_seed_gives_the_same_tensors(trained, interrupted):
    assert same_tensors(trained[0] / 'round_0.safetensors', interrupted[0] / 'round_0.safetensors')
    assert same_tensors(trained[0] / 'round_1.safetensors', interrupted[0] / 'round_1.safetensors')


def test_interrupted_training_goes_on_without_redoing_what_was_finished(
    recipe, trained, interrupted
):
    folder, fitted = interrupted
    assert fitted == [(0, 2), (1, 3)]
    episodes = {path: path.stat().st_mtime_ns for path in folder.glob('*/*.npz')}
    trainer = WatchedTrainer(recipe, folder)
    path = trainer.run()
    assert trainer.fitted == [(1, 3)]
    assert {path: path.stat().st_mtime_ns for path in folder.glob('*/*.npz')} == episodes
    assert same_tensors(path, trained[1])
    whole, resumed = (
        torch.load(at / 'checkpoint.pt', weights_only=True) for at in (trained[0], folder)
    )
    assert whole['rounds_done'] == resumed['rounds_done'] == 2
    for name, value in whole['network'].items():
        assert torch.equal(value, resumed['network'][name])

    finished = WatchedTrainer(recipe, folder)
    assert finished.run() == path
    assert finished.fitted == []
    for name, value in finished.network.state_dict().items():
        assert torch.equal(value, trainer.network.state_dict()[name])


def test_folder_of_another_recipe_is_refused(recipe, trained):
    folder, path = trained
    before = path.read_bytes()
    other = dataclasses.replace(recipe, seed=recipe.seed + 1)
    with pytest.raises(PolicyError, match=f'{folder} holds a training of another recipe'):
        Trainer(other, folder, processes=1)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ('change', 'text'),
    [
        ({'seed': 1.5}, 'recipe.seed must be of type int'),
        ({'surprise': 1}, 'recipe: missing or unknown entries: surprise'),
        ({'rounds': [{'episodes': 1}]}, r'recipe.rounds\[0\]: missing or unknown entries'),
        ({'tau_range': [0.02]}, 'recipe.tau_range must have 2 entries'),
    ],
)
def test_recipe_that_does_not_fit_is_refused_by_file_and_entry(tmp_path, change, text):
    path = tmp_path / 'recipe.yaml'
    path.write_text(yaml.safe_dump({**tiny_document(), **change}))
    with pytest.raises(PolicyError, match=f'{path}: {text}'):
        load_recipe(path)


@pytest.mark.parametrize('content', ['a: [1', '- just\n- a list\n'])
def test_recipe_that_is_no_recipe_is_refused_by_file(tmp_path, content):
    path = tmp_path / 'recipe.yaml'
    path.write_text(content)
    with pytest.raises(PolicyError, match=f'{path}: '):
        load_recipe(path)
    with pytest.raises(PolicyError, match='cannot be read'):
        load_recipe(tmp_path / 'none.yaml')


def test_synaptic_policy_is_trained_on_its_wiring_and_runs(tmp_path):
    document = tiny_document() | {'sparsity': 0.5}
    document['rounds'] = [{'episodes': 1, 'student': False, 'epochs': 1}]
    document['contract'].update(cell='ltc_synaptic', units=10, motor_neurons=3)
    policy = policy_file.load(Trainer(build(Recipe, document, 'recipe'), tmp_path, 1).run())
    wiring = AutoNCP(5, 10, 3, sparsity=0.5, seed=0)
    for kind in ('synapses', 'sensory'):
        assert (policy.tensors[f'cell.{kind}.adjacency'] == getattr(wiring, kind)).all()
    engine = open_engine(policy)
    engine.advance(0.01)
    assert np.isfinite(engine.command()).all()


def test_sparsity_of_a_cell_without_a_wiring_is_refused(tmp_path):
    document = tiny_document() | {'sparsity': 0.5}
    with pytest.raises(PolicyError, match="sparsity is of a wiring, .* 'ltc_neural'"):
        Trainer(build(Recipe, document, 'recipe'), tmp_path, 1)
    Trainer(build(Recipe, tiny_document(), 'recipe'), tmp_path, 1)
    document['contract'].update(cell='ltc_synaptic', units=6)
    with pytest.raises(PolicyError, match='no wiring of sparsity 0.5: .*'):
        Trainer(build(Recipe, document, 'recipe'), tmp_path / 'other', 1)


def test_every_other_batch_of_the_second_half_takes_finer_sub_steps(recipe, trained, tmp_path):
    class Noting(Trainer):
        def _learn(self, batch, optimiser):
            taken.append(self.network.cell.solver.unfolds)
            return super()._learn(batch, optimiser)

    taken = []
    trainer = Noting(recipe, tmp_path, 1)
    episodes = sorted((trained[0] / 'episodes_0').iterdir())
    trainer._fit(episodes * 2, 4, 'train', 0)  # two batches an epoch
    assert taken == [1, 1, 1, 1, 1, 3, 1, 3]
    assert trainer.network.cell.solver.unfolds == 1


# What is trained on.


def test_network_over_the_recorded_rows_asks_for_what_the_controller_asked_for(
    make_contract, make_policy
):
    policy = make_policy(make_contract(('image', 'imu'), 'imu'))
    rng = np.random.default_rng(0)
    recorder = Recorder(open_engine(policy))
    controller = Controller(policy, engine=recorder)
    now, first, asked = 10**9, 0, []
    controller.on_imu((0.0, 0.0, 0.5), (0.0, 0.0, 9.81), now)
    assert not recorder.end_of_message()  # no frame yet
    for i in range(200):
        now += int(rng.integers(1_000_000, 60_000_000))
        if i % 4 == 0:  # a frame, now and then behind the IMU
            frame = np.full((6, 8, 3), rng.choice([0, 255]), dtype=np.uint8)
            controller.on_image(frame, 6, 8, 'rgb8', 24, now - (i % 8) * 5_000_000)
        else:
            controller.on_imu(rng.normal(size=3), rng.normal(size=3), now)
        assert recorder.end_of_message()
        first = first or controller.interval.newest_ns
        asked.append(recorder.command().copy())
    assert controller.counts['late/image'] > 5
    dt, image, age, imu = (np.array(column) for column in zip(*recorder.rows, strict=True))
    assert len(dt) == 200
    assert math.fsum(dt) == pytest.approx((controller.interval.newest_ns - first) * 1e-9, abs=1e-12)
    assert dt[0] == 0.0 and (dt >= 0.0).all()

    network = PolicyNetwork.from_policy(policy)
    with torch.no_grad():
        features = network.encode(torch.from_numpy(np.stack(recorder.images)).float())[image]
        ages = torch.tensor(age / policy.contract.image.age_scale)[:, None]
        inputs = torch.cat((features, ages, torch.from_numpy(imu)), dim=-1).float()[:, None]
        raw, h = network(inputs, torch.tensor(dt[1:, None]).float(), torch.zeros(1, 7))
    low, high = np.array([[o.min, o.max] for o in policy.contract.outputs]).T
    wanted = (low + high) / 2 + raw[:, 0].numpy() * (high - low) / 2
    # frames are kept as float16, which costs three digits
    np.testing.assert_allclose(wanted, asked[1:], atol=5e-3)
    np.testing.assert_allclose(h[0].numpy(), controller.engine.state, atol=2e-3)
    assert np.std(wanted, axis=0).min() > 0.05


@pytest.fixture(scope='module')
def world():
    world = CarWorld(0)
    yield world
    world.close()


@pytest.mark.parametrize('student', [False, True])
def test_episode_is_as_long_as_asked_and_the_same_every_time(recipe, trained, world, student):
    policy = policy_file.load(trained[1])
    episode = collect_episode(world, policy, recipe.collection, 10_005, student)
    rows = recipe.collection.rows
    assert {name: value.shape[1:] for name, value in episode.items()} == {
        'images': (3, 18, 32),
        'dt': (),
        'image': (),
        'age': (),
        'imu': (6,),
        'target': (2,),
    }
    assert {len(value) for name, value in episode.items() if name != 'images'} == {rows}
    assert episode['dt'][0] == 0.0 and 0.0 < episode['dt'].max() < 0.5
    assert (np.diff(episode['image']) >= 0).all()
    assert episode['image'].max() == len(episode['images']) - 1
    assert episode['age'].min() >= 0.0
    # the expert drives on its track, forwards
    assert episode['target'][-1, 0] > 0.5
    again = collect_episode(world, policy, recipe.collection, 10_005, student)
    assert all(np.array_equal(episode[name], again[name]) for name in episode)


def test_age_of_the_held_frame_grows_by_the_intervals(recipe, trained, world):
    policy = policy_file.load(trained[1])
    episode = collect_episode(world, policy, recipe.collection, 10_006, False)
    same_frame = np.diff(episode['image']) == 0
    grown = np.diff(episode['age'].astype(float))[same_frame]
    np.testing.assert_allclose(grown, episode['dt'][1:][same_frame], atol=1e-6)


# Figures.


@pytest.mark.parametrize(
    ('successes', 'n', 'low', 'high'),
    [  # method 3 of table I in Newcombe, Statistics in Medicine 17 (1998) 857
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (20, 20, 1.0 - 0.1611, 1.0),
    ],
)
def test_wilson_interval_equals_published_values(successes, n, low, high):
    assert wilson(successes, n) == pytest.approx((low, high), abs=5e-5)


def test_bootstrap_interval_equals_known_values():
    assert bootstrap([2.5] * 7) == (2.5, 2.5, 2.5)
    # two values: their mean is either one with probability 1/4 each, beyond 2.5 % both ways
    assert bootstrap([0.0, 1.0]) == (0.5, 0.0, 1.0)
    # many values: the normal interval of the mean
    sample = np.random.default_rng(1).exponential(3.0, 400)
    mean, low, high = bootstrap(sample)
    half = 1.96 * sample.std() / math.sqrt(400)
    assert mean == sample.mean()
    assert (mean - low, high - mean) == pytest.approx((half, half), rel=0.08)


@pytest.mark.parametrize(
    ('change', 'success'),
    [
        ({}, True),
        ({'leaves': 1}, False),
        ({'duration': 9.7}, False),  # the drive was broken off
        ({'duration': 9.9}, True),
        ({'progress': 9.0}, False),  # slower than 1 m/s
    ],
)
def test_success_is_staying_in_the_lane_to_the_end_and_not_crawling(recipe, change, success):
    policy = PolicyNetwork(recipe.contract).to_policy()
    score = LaneScore(**{'leaves': 0, 'progress': 15.0, 'duration': 10.0, **change})
    assert Evaluation(policy, duration=10.0, min_speed=1.0).succeeded(score) is success


def test_evaluation_of_the_shipped_policy_gives_a_row_per_figure(tmp_path):
    policy = policy_file.load(share_directory() / 'policies' / 'car.safetensors')
    evaluation = Evaluation(policy, duration=2.0, min_speed=0.2)
    seen = []
    evaluation.run(NOMINAL, [3, 4], lambda seed, score: seen.append((seed, score.leaves)))
    assert seen == [(3, 0), (4, 0)]
    rows = {row['metric']: row for row in evaluation.rows()}
    assert rows['success']['value'] == 1.0
    assert (rows['success']['low'], rows['success']['high']) == wilson(2, 2)
    for row in rows.values():
        assert set(row) == {'name', 'metric', 'value', 'low', 'high', 'n', 'unit'}
        assert row['name'] == 'nominal' and row['n'] == 2
        assert row['low'] <= row['value'] <= row['high']
    assert {metric: row['unit'] for metric, row in rows.items()} == {
        'success': '1',
        'progress': 'm',
        'error': 'm',
    }

    path = tmp_path / 'results.json'
    write_results(path, 'lnn_ros evaluate', range(3, 5), evaluation.rows())
    document = json.loads(path.read_text())
    assert set(document) == {'command', 'version', 'date', 'machine', 'seeds', 'rows'}
    assert document['command'] == 'lnn_ros evaluate'
    assert document['version'] == __version__
    assert document['seeds'] == [3, 4]
    assert document['rows'] == evaluation.rows()
    assert os.uname().machine in document['machine']
    assert document['date'].startswith('20') and document['date'].endswith('+00:00')


def test_conditions_that_other_tools_name_exist():
    names = {'nominal', 'rate_x0.25', 'rate_x4', 'jitter', 'drop_50', 'latency'}
    assert names <= set(CONDITIONS)
    assert all(condition.name == name for name, condition in CONDITIONS.items())
    nominal, quarter = CONDITIONS['nominal'].streams(), CONDITIONS['rate_x0.25'].streams()
    for stream in nominal:
        assert quarter[stream].rate == 0.25 * nominal[stream].rate
