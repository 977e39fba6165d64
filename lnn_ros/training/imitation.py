"""Imitation of an expert by truncated back-propagation through time over measured intervals.

Rounds: in the first the expert drives; in each later one the network of the round before drives and
the expert says what it would have done (DAgger: Ross, Gordon, Bagnell 2011). The network that is
kept is the one that drove best on validation tracks.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor
from tqdm import tqdm

from lnn_ros import __version__
from lnn_ros import policy as policy_file
from lnn_ros.liquid.policy_network import PolicyNetwork
from lnn_ros.liquid.wiring import AutoNCP, Wiring
from lnn_ros.policy import Contract
from lnn_ros.schema import PolicyError, build, require
from lnn_ros.training.dataset import Collection, collect
from lnn_ros.training.evaluation import NOMINAL, Condition, Evaluation
from lnn_ros.training.pace import paced

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Round:
    """A round of collection and training; the episodes of all rounds so far are trained on."""

    episodes: int
    student: bool
    epochs: int


@dataclass(frozen=True)
class Optimisation:
    """How the network is fitted.

    Attributes:
        batch: episodes side by side.
        chunk: messages through which gradients flow; the state runs on from chunk to chunk.
        learning_rate: of Adam at the start of a round; it falls to a tenth along a cosine. Of
            synapses a multiple of it, see `pace.paced`.
        clip: largest gradient norm.
        fine_unfolds: in the second half of a round's epochs, every other batch takes at least this
            many sub-steps per interval, so that the network does not fit its solver's error.
        output_weights: how an error of each output counts, 1 / its SI unit.
        image_noise: standard deviation of noise on normalised pixels; brightness and contrast of a
            whole episode vary by twice as much.
    """

    batch: int
    chunk: int
    learning_rate: float
    clip: float
    fine_unfolds: int
    output_weights: tuple[float, ...]
    image_noise: float

    def __post_init__(self) -> None:
        require(
            1 <= self.fine_unfolds <= 1000, f'fine_unfolds is {self.fine_unfolds}, must be 1-1000'
        )


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what is trained; see config/train_car.yaml.

    Attributes:
        seed: of initialisation and of the order of episodes.
        training_tracks, validation_tracks: first track seed of each; the evaluation uses seeds from
            0.
        validation_episodes, validation_duration: how the best network is chosen; seconds.
        tau_range: where the time constants of an LTC start out, in seconds.
        sparsity: of the AutoNCP wiring of a synaptic cell; null: everything is connected.
        contract: the policy's contract but for its provenance.
    """

    seed: int
    training_tracks: int
    validation_tracks: int
    validation_episodes: int
    validation_duration: float
    tau_range: tuple[float, float]
    sparsity: float | None
    rounds: tuple[Round, ...]
    optimisation: Optimisation
    collection: Collection
    contract: Contract


def load_recipe(path: Path) -> Recipe:
    """Read a recipe; raises PolicyError naming the entry that does not fit."""
    try:
        document = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise PolicyError(f'{path}: cannot be read ({error})') from None
    try:
        return build(Recipe, document, 'recipe')
    except PolicyError as error:
        raise PolicyError(f'{path}: {error}') from None


def _wiring(recipe: Recipe) -> Wiring | None:
    contract = recipe.contract
    if recipe.sparsity is None:
        return None
    if contract.cell != 'ltc_synaptic':
        raise PolicyError(
            f"sparsity is of a wiring, which the cell '{contract.cell}' does not have"
        )
    sizes = contract.cell_inputs, contract.units, contract.motor_neurons
    try:
        return AutoNCP(*sizes, recipe.sparsity, recipe.seed)
    except ValueError as error:
        raise PolicyError(f'no wiring of sparsity {recipe.sparsity}: {error}') from None


@dataclass(frozen=True)
class Batch:
    """Episodes side by side; see `dataset.collect_episode` for what is in them."""

    images: Sequence[Tensor]
    dt: Tensor  # (rows, batch)
    image: Tensor  # (rows, batch)
    age: Tensor  # (rows, batch)
    imu: Tensor  # (rows, batch, fields)
    target: Tensor  # (rows, batch, outputs), raw network units


class Trainer:
    """Trains one recipe in one folder, where it can be interrupted and taken up again.

    Args:
        recipe: what to train.
        folder: keeps episodes, checkpoint.pt and the policies.
        processes: how many collect episodes side by side.
    """

    def __init__(self, recipe: Recipe, folder: Path, processes: int) -> None:
        self.recipe, self.folder, self.processes = recipe, folder, processes
        torch.manual_seed(recipe.seed)
        self.network = PolicyNetwork(recipe.contract, recipe.tau_range, _wiring(recipe))
        folder.mkdir(parents=True, exist_ok=True)
        kept = folder / 'recipe.txt'
        if kept.exists() and kept.read_text() != repr(recipe):
            raise PolicyError(
                f'{folder} holds a training of another recipe; name another folder or remove it'
            )
        kept.write_text(repr(recipe))
        outputs = recipe.contract.outputs
        self._middle = torch.tensor([(o.max + o.min) / 2 for o in outputs])
        self._half = torch.tensor([(o.max - o.min) / 2 for o in outputs])
        self._weight = torch.tensor(recipe.optimisation.output_weights) * self._half
        self._solver = self.network.cell.solver
        self._checkpoint = folder / 'checkpoint.pt'
        self.best: dict[str, Any] = {}
        self.seconds = 0.0
        self._tracks: list[int] = []  # seeds of the tracks trained on so far

    def run(self) -> Path:
        """Train all rounds, or what is left of them; return the best policy's file."""
        first, episodes = self._resume(), []
        for number, spec in enumerate(self.recipe.rounds):
            begun = time.monotonic()
            driver = self.folder / f'round_{number}.safetensors'
            if not driver.exists():
                policy_file.save(self.network.to_policy(), driver)
            start = self.recipe.training_tracks + 1000 * number
            seeds = list(range(start, start + spec.episodes))
            self._tracks += seeds
            collected = collect(
                driver,
                self.recipe.collection,
                seeds,
                spec.student,
                self.folder / f'episodes_{number}',
                self.processes,
            )
            title = f'round {number + 1}/{len(self.recipe.rounds)}: '
            bar = tqdm(collected, title + 'drive', total=spec.episodes, unit='episode')
            episodes += sorted(bar)
            if number < first:
                continue
            self._fit(episodes, spec.epochs, title + 'train', number)
            self.seconds += time.monotonic() - begun
            self._validate(number)
            self._save(number + 1)
        return self.folder / f'{self.recipe.contract.task}.safetensors'

    def _fit(self, paths: list[Path], epochs: int, title: str, number: int) -> None:
        options = self.recipe.optimisation
        episodes = [np.load(path) for path in paths]
        episodes = [{name: data[name] for name in data.files} for data in episodes]
        optimiser = torch.optim.Adam(paced(self.network.named_parameters()))
        rng = np.random.default_rng((self.recipe.seed, number))
        bar = tqdm(range(epochs), title, unit='epoch')
        unfolds = max(self._solver.unfolds, options.fine_unfolds)
        fine = dataclasses.replace(self._solver, unfolds=unfolds)
        batches = 0
        for epoch in bar:
            falling = 0.55 + 0.45 * math.cos(math.pi * epoch / epochs)
            for own in optimiser.param_groups:
                own['lr'] = options.learning_rate * falling * own['pace']
            losses = []
            order = rng.permutation(len(episodes))
            for group in np.array_split(order, max(round(len(order) / options.batch), 1)):
                batch = self._batch([episodes[i] for i in group], rng)
                is_fine = 2 * epoch >= epochs and batches % 2 == 1
                self.network.cell.solver = fine if is_fine else self._solver
                losses.append(self._learn(batch, optimiser))
                batches += 1
            bar.set_postfix(loss=f'{np.mean(losses):.4f}')
        self.network.cell.solver = self._solver

    def _batch(self, episodes: list[dict[str, Any]], rng: np.random.Generator) -> Batch:
        """Stack episodes, each seen through a camera of its own brightness and contrast."""

        def stack(name: str) -> Tensor:
            return torch.from_numpy(np.stack([e[name] for e in episodes], axis=1))

        noise = 2.0 * self.recipe.optimisation.image_noise
        images = []
        for episode in episodes:
            contrast, brightness = 1.0 + rng.normal(0.0, noise), rng.normal(0.0, noise)
            images.append(torch.from_numpy(episode['images']).float() * contrast + brightness)
        target = (stack('target') - self._middle) / self._half
        return Batch(images, stack('dt'), stack('image'), stack('age'), stack('imu'), target)

    def _learn(self, batch: Batch, optimiser: torch.optim.Optimizer) -> float:
        """One pass over a batch, a step of the optimiser per chunk; return the mean loss."""
        options, contract = self.recipe.optimisation, self.recipe.contract
        rows, size = batch.dt.shape
        h = torch.zeros(size, contract.units)
        total = 0.0
        starts = range(0, rows - 1, options.chunk)
        for start in starts:
            stop = min(start + options.chunk, rows - 1)
            inputs = self._inputs(batch, start, stop + 1)
            raw, h = self.network(inputs, batch.dt[start + 1 : stop + 1], h.detach())
            error = (raw - batch.target[start + 1 : stop + 1]) * self._weight
            loss = torch.nn.functional.huber_loss(error, torch.zeros_like(error))
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), options.clip)
            optimiser.step()
            total += loss.item()
        return total / len(starts)

    def _inputs(self, batch: Batch, start: int, stop: int) -> Tensor:
        """Return the cell's inputs (stop - start, batch, inputs) after each of these messages."""
        image_contract = self.recipe.contract.image
        assert image_contract is not None
        index = batch.image[start:stop]
        # frames that any of these messages holds, of all episodes in one go through the encoder
        first = [int(i) for i in index[0]]
        last = [int(i) + 1 for i in index[-1]]
        frames = torch.cat(
            [images[a:b] for images, a, b in zip(batch.images, first, last, strict=True)]
        )
        frames = frames + self.recipe.optimisation.image_noise * torch.randn_like(frames)
        features = self.network.encode(frames)
        counts = torch.tensor([b - a for a, b in zip(first, last, strict=True)])
        offset = torch.cumsum(counts, 0) - counts - torch.tensor(first)
        age = batch.age[start:stop, :, None] / image_contract.age_scale
        return torch.cat((features[index + offset], age, batch.imu[start:stop]), dim=-1)

    def _validate(self, number: int) -> None:
        """Drive the validation tracks and keep the network if it is the best so far."""
        recipe = self.recipe
        contract = recipe.contract
        scores = {}
        policy = self.network.to_policy(contract)
        evaluation = Evaluation(policy, recipe.validation_duration)
        first = recipe.validation_tracks
        for condition in (NOMINAL, Condition('slow', 10.0, jitter=0.5, drop=0.3)):
            evaluation.run(condition, range(first, first + recipe.validation_episodes))
            scores[condition.name] = evaluation.summary(condition.name)
            log.info('round %d, %s: %s', number + 1, condition.name, scores[condition.name])
        evaluation.close()
        success = sum(score['success'] for score in scores.values())
        error = sum(score['error'] for score in scores.values())
        if self.best and (self.best['success'], -self.best['error']) >= (success, -error):
            return
        self.best = {'round': number + 1, 'success': success, 'error': error, 'scores': scores}
        provenance = {
            'lnn_ros': __version__,
            'torch': torch.__version__,
            'python': platform.python_version(),
            'tracks': self._tracks,
            'round': number + 1,
            'training_seconds': round(self.seconds),
            'validation': scores,
            'recipe': {k: v for k, v in dataclasses.asdict(recipe).items() if k != 'contract'},
        }
        contract = dataclasses.replace(contract, provenance=provenance)
        policy_file.save(
            self.network.to_policy(contract), self.folder / f'{contract.task}.safetensors'
        )

    def _save(self, rounds_done: int) -> None:
        state = {
            'rounds_done': rounds_done,
            'network': self.network.state_dict(),
            'best': self.best,
            'seconds': self.seconds,
            'random': torch.get_rng_state(),
        }
        partial = self._checkpoint.with_suffix('.part')
        torch.save(state, partial)
        partial.replace(self._checkpoint)

    def _resume(self) -> int:
        if not self._checkpoint.exists():
            return 0
        state = torch.load(self._checkpoint, weights_only=True)
        self.network.load_state_dict(state['network'])
        self.best, self.seconds = state['best'], state['seconds']
        torch.set_rng_state(state['random'])
        return int(state['rounds_done'])
