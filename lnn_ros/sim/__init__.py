"""Simulated worlds (MuJoCo, headless), their expert drivers, and when their sensors sample.

MuJoCo picks its OpenGL platform once, at its first import, and without a display only EGL works;
so the choice is made here, before any module of this package can import mujoco.
"""

import os

os.environ.setdefault('MUJOCO_GL', 'egl')
