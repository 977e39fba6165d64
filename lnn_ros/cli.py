"""The command `lnn_ros`: every subcommand imports only what it needs."""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lnn_ros import __version__
from lnn_ros.share import share_directory


def main(arguments: list[str] | None = None) -> int:
    """Run one subcommand; return the exit code (2: wrong usage or input, in one line)."""
    parser = argparse.ArgumentParser(
        prog='lnn_ros', description='Drive robots with Liquid Time-Constant networks under ROS 2.'
    )
    parser.add_argument('--version', action='version', version=__version__)
    commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')
    for define in (
        _define_demo,
        _define_launch,
        _define_train,
        _define_evaluate,
        _define_bench,
        _define_inspect,
        _define_export,
    ):
        define(commands)
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(arguments)
    options.typed = shlex.join(['lnn_ros', *arguments])
    logging.basicConfig(format='%(message)s')
    logging.getLogger('lnn_ros').setLevel(logging.INFO)
    try:
        return int(options.run(options))
    except (ValueError, OSError, RuntimeError) as error:
        print(f'lnn_ros {options.command}: {error}', file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        print(f'lnn_ros {options.command}: {_how_to_install(error)}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _how_to_install(error: ModuleNotFoundError) -> str:
    target = {'torch': 'train', 'mujoco': 'demo', 'matplotlib': 'demo', 'tqdm': 'demo'}
    hint = f': pip install {error.name}'
    if error.name in target:
        hint += f', or `make {target[error.name]}` in a checkout'
    return f"the Python module '{error.name}' is missing{hint}"


def _launch_arguments(pairs: list[str]) -> dict[str, str]:
    """Turn `name:=value` words into a dictionary."""
    values = {}
    for pair in pairs:
        name, separator, value = pair.partition(':=')
        if not name or not separator:
            raise ValueError(f"'{pair}' is not of the form name:=value")
        values[name] = value
    return values


# demo ---------------------------------------------------------------------------------------------


def _define_demo(commands: Any) -> None:
    parser = commands.add_parser(
        'demo', help='launch simulator and controller, drive 30 s, show how it went'
    )
    parser.add_argument('--out', type=Path, default=Path('demo'), help='folder for the results')
    parser.add_argument(
        'arguments',
        nargs='*',
        metavar='NAME:=VALUE',
        help='arguments of sim.launch.xml (lnn_ros launch sim.launch.xml --show-args); the demo '
        'gives seed:=3 jitter:=0.5 drop:=0.2 duration:=30.0 real_time_factor:=0.0',
    )
    parser.set_defaults(run=_demo)


def _demo(options: argparse.Namespace) -> int:
    from lnn_ros.demo import run

    return run(options.out, _launch_arguments(options.arguments))


# launch -------------------------------------------------------------------------------------------


def _define_launch(commands: Any) -> None:
    parser = commands.add_parser('launch', help='run a launch file, also without ROS 2 launch')
    parser.add_argument('file', help='path, or the name of one of our launch files')
    parser.add_argument('--show-args', action='store_true', help='list its arguments')
    parser.add_argument('arguments', nargs='*', metavar='NAME:=VALUE')
    parser.set_defaults(run=_launch)


def _launch(options: argparse.Namespace) -> int:
    from lnn_ros import launch_xml

    # nothing that we start is heard beyond this machine unless the user says so
    os.environ.setdefault('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
    file = Path(options.file)
    if not file.exists() and file.name == options.file:
        file = share_directory() / 'launch' / options.file
    if options.show_args:
        for argument in launch_xml.arguments(file):
            default = 'required' if argument.default is None else f"default '{argument.default}'"
            print(f'{argument.name}: {argument.description} ({default})')
        return 0
    return launch_xml.launch(file, _launch_arguments(options.arguments))


# train --------------------------------------------------------------------------------------------


def _define_train(commands: Any) -> None:
    parser = commands.add_parser('train', help='train a policy as its recipe says')
    parser.add_argument('task', help='car')
    parser.add_argument('--recipe', type=Path, help='default: config/train_TASK.yaml')
    parser.add_argument('--out', type=Path, help='default: runs/TASK; resumed if it is there')
    parser.add_argument('--processes', type=int, default=os.cpu_count(), help='default: all cores')
    parser.set_defaults(run=_train)


def _train(options: argparse.Namespace) -> int:
    recipe = options.recipe or share_directory() / 'config' / f'train_{options.task}.yaml'
    if not recipe.is_file():
        known = sorted(f.stem[6:] for f in (share_directory() / 'config').glob('train_*.yaml'))
        raise ValueError(f'{recipe}: there is no such recipe; there are {", ".join(known)}')
    if options.processes < 1:
        raise ValueError(f'--processes is {options.processes}, must be at least 1')
    from lnn_ros.training.imitation import Trainer, load_recipe

    out = options.out or Path('runs') / options.task
    policy = Trainer(load_recipe(recipe), out, options.processes).run()
    print(f'the best policy is {policy}')
    return 0


# evaluate -----------------------------------------------------------------------------------------


def _define_evaluate(commands: Any) -> None:
    parser = commands.add_parser('evaluate', help='drive in closed loop on unseen tracks')
    parser.add_argument('task', choices=['car'])
    parser.add_argument('--policy', type=Path, help='default: the shipped policy of the task')
    parser.add_argument('--episodes', type=int, default=20, help='tracks per condition (20)')
    parser.add_argument('--duration', type=float, default=30.0, help='seconds per episode (30)')
    parser.add_argument('--first-seed', type=int, default=0, help='seed of the first track')
    parser.add_argument(
        '--condition', action='append', help='nominal by default; repeat it, or give `all`'
    )
    parser.add_argument('--json', type=Path, help='write the figures to this file')
    parser.set_defaults(run=_evaluate)


def _evaluate(options: argparse.Namespace) -> int:
    from tqdm import tqdm

    from lnn_ros import policy as policy_file
    from lnn_ros.results import write_results
    from lnn_ros.training.evaluation import CONDITIONS, Evaluation

    names = options.condition or ['nominal']
    names = list(CONDITIONS) if 'all' in names else names
    unknown = set(names) - set(CONDITIONS)
    if unknown:
        raise ValueError(
            f'no condition {", ".join(sorted(unknown))}; there are {", ".join(CONDITIONS)}'
        )
    if options.episodes < 1 or options.first_seed < 0:
        raise ValueError('--episodes must be at least 1, --first-seed at least 0')
    if not 0.0 < options.duration < float('inf'):
        raise ValueError(f'--duration is {options.duration} s, must be greater than 0')
    if options.json and not options.json.absolute().parent.is_dir():
        raise ValueError(f'--json: there is no folder {options.json.absolute().parent}')
    path = options.policy or share_directory() / 'policies' / f'{options.task}.safetensors'
    policy = policy_file.load(path)
    seeds = range(options.first_seed, options.first_seed + options.episodes)
    trained_on = set(policy.contract.provenance.get('tracks', ()))
    if trained_on.intersection(seeds):
        raise ValueError(f'{path} was trained on some of the tracks {seeds.start}-{seeds.stop - 1}')
    evaluation = Evaluation(policy, options.duration)
    with tqdm(total=len(names) * len(seeds), unit='episode', leave=False) as bar:
        for name in names:
            bar.set_description(name)
            evaluation.run(CONDITIONS[name], seeds, lambda *_: bar.update())
    rows = evaluation.rows()
    print(f'{"condition":18} {"metric":10} {"unit":4} {"value":>8}   95 % interval        episodes')
    for row in rows:
        print(
            f'{row["name"]:18} {row["metric"]:10} {row["unit"]:4} {row["value"]:8.4f}   '
            f'[{row["low"]:8.4f}, {row["high"]:8.4f}] {row["n"]:6d}'
        )
    if options.json:
        write_results(options.json, options.typed, seeds, rows)
    return 0


# bench --------------------------------------------------------------------------------------------


def _define_bench(commands: Any) -> None:
    parser = commands.add_parser('bench', help='measure what the documentation claims')
    benches = parser.add_subparsers(dest='bench', required=True, metavar='WHAT')
    node = benches.add_parser('node', help='CPU time and latency of a message, by executor')
    node.add_argument('--seconds', type=float, default=2.0, help='of one turn of one contender')
    node.add_argument('--repeats', type=int, default=3, help='turns of each')
    node.add_argument('--json', type=Path, help='write the figures to this file')
    node.set_defaults(run=_bench_node)
    core = benches.add_parser('core', help='a step, a callback and training, beside the peers')
    core.add_argument('--quick', action='store_true', help='two short rounds: does it run?')
    core.add_argument('--json', type=Path, help='write the figures to this file')
    core.set_defaults(run=_bench_core)
    rates = benches.add_parser('rates', help='networks at sampling rates they did not train at')
    rates.add_argument('--quick', action='store_true', help='two iterations: does it run?')
    rates.add_argument(
        '--seconds', type=float, default=60.0, help='CPU time to train a net (all its seeds)'
    )
    rates.add_argument('--processes', type=int, default=1, help='nets trained side by side')
    rates.add_argument('--json', type=Path, help='write the figures to this file')
    rates.add_argument('--plot', type=Path, help='draw error over rate into this file')
    rates.set_defaults(run=_bench_rates)


def _bench_node(options: argparse.Namespace) -> int:
    from lnn_ros.nodes.bench import measure
    from lnn_ros.results import write_results

    rows = measure(options.seconds, options.repeats)
    for row in rows:
        print(
            f'{row["name"]:45} {row["metric"]:45} {row["value"]:9.2f} '
            f'[{row["low"]:9.2f}, {row["high"]:9.2f}] {row["unit"]}'
        )
    if options.json:
        write_results(options.json, options.typed, [], rows)
    return 0


def _bench_core(options: argparse.Namespace) -> int:
    from lnn_ros.results import write_results
    from lnn_ros.training import core_bench

    rows, good = core_bench.run(core_bench.QUICK if options.quick else core_bench.Effort())
    if options.json:
        write_results(options.json, options.typed, [0], rows)
    return 0 if good else 1


def _bench_rates(options: argparse.Namespace) -> int:
    from lnn_ros.results import write_results
    from lnn_ros.training import rates, rates_report

    effort = rates.QUICK if options.quick else rates.Effort(cpu_seconds=options.seconds)
    rows = rates.run(effort, options.processes)
    print(rates_report.table(rows))
    if options.json:
        write_results(options.json, options.typed, effort.seeds, rows)
    if options.plot:
        rates_report.plot(rows, options.plot)
    return 0


# inspect ------------------------------------------------------------------------------------------


def _define_inspect(commands: Any) -> None:
    parser = commands.add_parser('inspect', help='print what a policy file says of itself')
    parser.add_argument('policy', type=Path)
    parser.set_defaults(run=_inspect)


def _inspect(options: argparse.Namespace) -> int:
    from lnn_ros import policy as policy_file

    policy = policy_file.load(options.policy)
    text = json.dumps({'parameters': policy.parameters, **asdict(policy.contract)}, indent=2)
    # lists of numbers and names on one line
    print(re.sub(r'\[[^][{}]*\]', lambda match: ' '.join(match[0].split()), text))
    return 0


# export -------------------------------------------------------------------------------------------


def _define_export(commands: Any) -> None:
    parser = commands.add_parser('export', help='write a policy as C99 for a microcontroller')
    parser.add_argument('policy', type=Path)
    parser.add_argument('--target', choices=['c'], required=True)
    parser.add_argument('--out', type=Path, required=True, help='folder for the .h and the .c')
    parser.add_argument('--name', help="prefix of files and symbols; default: the policy's task")
    parser.add_argument('--weights', choices=['float32', 'int8'], default='float32')
    parser.set_defaults(run=_export)


def _export(options: argparse.Namespace) -> int:
    from lnn_ros import policy as policy_file
    from lnn_ros.core.export import export_c

    if options.out.exists() and not options.out.is_dir():
        raise ValueError(f'--out is {options.out}, which is no folder')
    policy = policy_file.load(options.policy)
    name = options.name or policy.contract.task
    for path in export_c(policy, options.out, name, options.weights):
        print(path)
    return 0


if __name__ == '__main__':
    sys.exit(main())
