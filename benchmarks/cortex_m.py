"""Run exported policies on an emulated Cortex-M4F and report what they take.

    apt-get install gcc-arm-none-eabi libnewlib-arm-none-eabi qemu-system-arm
    python benchmarks/cortex_m.py [POLICY.safetensors ...]

Without an argument: the shipped car policy, with and without its camera, and an NCP of 32 units
with random weights (pip install lnn_ros[train]). Instructions are counted by QEMU, which executes
one per virtual nanosecond under -icount; a Cortex-M4 takes one to two cycles for most. Exits with 1
when results differ from the engine's or a size is over its limit.
"""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from lnn_ros import policy as policy_file
from lnn_ros.core.export import WEIGHTS, export_c
from lnn_ros.core.numpy_engine import NumpyEngine
from lnn_ros.liquid.policy_network import PolicyNetwork
from lnn_ros.liquid.wiring import AutoNCP
from lnn_ros.observation import ImuReader
from lnn_ros.policy import IMU_FIELDS, Contract, ImuContract, OutputContract, Policy

HERE = Path(__file__).parent
CAR = HERE.parent / 'policies' / 'car.safetensors'
CPU = ['-mcpu=cortex-m4', '-mthumb', '-mfpu=fpv4-sp-d16', '-mfloat-abi=hard']
MESSAGES, IMAGE_EVERY = 20, 10
NS_PER_TICK = 40  # SysTick runs at the board's 25 MHz
TOLERANCE = {'float32': 1e-5, 'int8': 0.25}  # of the commands, in their units
FLASH_AND_RAM = 256 * 1024  # bytes, together; an IMU-only policy has to do with 32 kB

SEEING = {  # tensors whose columns are the inputs, where there is no mapping
    'ltc_neural': ('cell.gate_input', 'cell.drive'),
    'liquid': ('cell.tau.weight', 'cell.hidden.weight'),
}


def ncp() -> Policy:
    """Return an NCP of 32 units, as wired and initialised by the library: nobody trained it."""
    torch.manual_seed(0)
    limits = (OutputContract('linear.x', 'm/s', 0.0, 2.0, 4.0, 0.0),)
    limits += (OutputContract('angular.z', 'rad/s', -3.0, 3.0, 20.0, 0.0),)
    contract = Contract(
        cell='ltc_synaptic',
        units=32,
        motor_neurons=2,
        solver='exact',
        max_step=0.05,
        unfolds=1,
        hold='linear',
        image=None,
        imu=ImuContract(IMU_FIELDS, (0.0,) * 6, (1.0,) * 6, 'base_link'),
        encoder=None,
        mapping=(),
        readout=(),
        outputs=limits,
        trigger='imu',
        dt_range=(0.001, 0.1),
        task='benchmark',
        provenance={},
    )
    return PolicyNetwork(contract, wiring=AutoNCP(6, 32, 2)).to_policy()


def without_camera(policy: Policy) -> Policy:
    """Return an IMU-only policy of the same sizes; weights of the dropped inputs are left out."""
    contract = replace(policy.contract, image=None, encoder=None)
    imu, motors = contract.inputs, contract.motor_neurons
    tensors = {n: t for n, t in policy.tensors.items() if not n.startswith('encoder.')}
    seeing = ('mapping.0.weight',) if contract.mapping else SEEING.get(contract.cell)
    if seeing is None:
        raise SystemExit(f'{contract.cell} has synapses from the camera: give it a mapping')
    for name in seeing:
        tensors[name] = np.ascontiguousarray(tensors[name][:, -imu:])
    first = tensors['readout.0.weight']
    tensors['readout.0.weight'] = np.concatenate((first[:, :motors], first[:, -imu:]), axis=1)
    return Policy(contract, tensors)


def write_messages(policy: Policy, folder: Path) -> list[list[float]]:
    """Write the messages as C tables; return what the engine commands after each."""
    rng, contract, engine = np.random.default_rng(0), policy.contract, NumpyEngine(policy)
    assert contract.imu is not None
    dt = rng.uniform(0.002, 0.04, MESSAGES).astype(np.float32)
    imu = rng.normal(size=(MESSAGES, 6)).astype(np.float32)
    age = rng.uniform(0.0, 0.1, MESSAGES).astype(np.float32)
    reader = ImuReader(contract.imu)
    tables = [('float', 'dt', dt), ('float', 'imu', imu)]
    if contract.image:
        image = contract.image
        shape = (MESSAGES // IMAGE_EVERY, image.height, image.width, image.channels)
        frames = rng.integers(0, 256, shape, dtype=np.uint8)
        tables.append(('unsigned char', 'image', frames.reshape(len(frames), -1)))
        tables.append(('float', 'age', age))
    text = f'#define MESSAGES {MESSAGES}\n#define IMAGE_EVERY {IMAGE_EVERY}\n'
    for kind, name, values in tables:
        sizes = ''.join(f'[{n}]' for n in values.shape)
        body = json.dumps(values.tolist()).replace('[', '{').replace(']', '}')
        text += f'static const {kind} message_{name}{sizes} = {body};\n'
    for name in ('outputs', 'features'):
        text += f'#define ROBOT_{name.upper()} robot_{name.upper()}\n'
    (folder / 'messages.h').write_text(text)

    low, high = (np.array([getattr(o, e) for o in contract.outputs]) for e in ('min', 'max'))
    commands = []
    for k in range(MESSAGES):
        if contract.image:
            if k % IMAGE_EVERY == 0:
                pixels = frames[k // IMAGE_EVERY].transpose(2, 0, 1) / 255.0
                seen = (pixels - contract.image.mean) / contract.image.scale
                engine.hold_image(np.ascontiguousarray(seen, np.float32))
            engine.hold_image_age(float(age[k]))
        engine.hold_imu(reader.read(imu[k, :3].tolist(), imu[k, 3:].tolist()))
        engine.advance(float(dt[k]))
        commands.append(np.clip(engine.command(), low, high).tolist())
    return commands


def run(policy: Policy, weights: str, title: str) -> bool:
    """Build, run and print one line; return whether everything is within its limits."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        expected = write_messages(policy, folder)
        _, source = export_c(policy, folder, 'robot', weights)
        compile_ = ['arm-none-eabi-gcc', *CPU, '-std=c99', '-O2', '-Wall', '-Wextra', '-Werror']
        compile_ += ['-ffunction-sections', f'-I{folder}']
        strict = [*compile_, '-pedantic', '-c', source, '-o', folder / 'robot.o']
        subprocess.run(strict, check=True)
        script = ['-nostartfiles', '-T', HERE / 'cortex_m.ld', '-Wl,--no-warn-rwx-segments']
        parts = [HERE / 'cortex_m.c', folder / 'robot.o', '-o', folder / 'image.elf']
        subprocess.run([*compile_, '-Wno-pedantic', *script, *parts], check=True)
        sized = subprocess.run(
            ['arm-none-eabi-size', folder / 'robot.o'], check=True, capture_output=True, text=True
        )
        flash = sum(int(word) for word in sized.stdout.splitlines()[1].split()[:2])
        machine = ['-M', 'mps2-an386', '-nographic', '-icount', 'shift=0', '-kernel']
        machine += [folder / 'image.elf', '-semihosting-config', 'enable=on,target=native']
        done = subprocess.run(
            ['qemu-system-arm', *machine], capture_output=True, text=True, timeout=120
        )
    lines = (done.stdout + done.stderr).split('\n')
    rows = [line.split() for line in lines if line.strip()]
    figures = next((row for row in rows if row[0] == 'figures'), None)
    if figures is None:
        raise SystemExit(f'the emulated board printed:\n{done.stdout}{done.stderr}')
    commands = [
        [struct.unpack('>f', bytes.fromhex(word))[0] for word in row]
        for row in rows
        if row[0] != 'figures'
    ]
    error = float(np.abs(np.array(commands) - expected).max())
    stack, ram, image, imu, advance, command = (int(word, 16) for word in figures[1:])
    per_image = image * NS_PER_TICK * IMAGE_EVERY // MESSAGES
    per_step = (imu + advance + command) * NS_PER_TICK // MESSAGES
    limit = FLASH_AND_RAM if policy.contract.image else 32 * 1024
    is_good = error <= TOLERANCE[weights] and flash + ram + stack <= limit
    print(
        f'{title:10} {weights:8} {flash:8} {ram:6} {stack:6} {per_step:9} {per_image:10} '
        f'{error:10.2g}  {"ok" if is_good else "TOO MUCH"}'
    )
    return is_good


def main() -> int:
    """Print the table; return 1 when something is over its limit."""
    paths = [Path(argument) for argument in sys.argv[1:]]
    policies = {path.stem: policy_file.load(path) for path in paths or [CAR]}
    if not paths:
        policies['NCP'] = ncp()
    print('policy     weights  flash, B RAM, B stack, B instr/step instr/image max error')
    good = True
    for title, policy in policies.items():
        for weights in WEIGHTS:
            good &= run(policy, weights, title)
            if policy.contract.image:
                good &= run(without_camera(policy), weights, 'IMU only')
    return 0 if good else 1


if __name__ == '__main__':
    sys.exit(main())
