from glob import glob
from runpy import run_path

from setuptools import Extension, find_packages, setup

package_name = 'lnn_ros'

# Real ROS 2 from PyPI, for machines without one (x86-64, CPython 3.10-3.13); pinned to versions
# that were tried together. Not in install_requires: a sourced ROS 2 must never be overlaid.
ros = [
    'ros-jazzy-rclpy==7.1.6',
    'ros-jazzy-rmw-fastrtps-cpp==8.4.3',
    'ros-jazzy-diagnostic-msgs==5.3.6',
    'ros-jazzy-geometry-msgs==5.3.6',
    'ros-jazzy-lifecycle-msgs==2.0.3',
    'ros-jazzy-rosgraph-msgs==2.0.3',
    'ros-jazzy-sensor-msgs==5.3.6',
    'ros-jazzy-std-msgs==5.3.6',
    'ros-jazzy-std-srvs==5.3.6',
]
sim = ['matplotlib', 'mujoco>=3.3.7', 'tqdm']
train = [*sim, 'torch>=2.7']
test = ['pytest']
dev = [*test, 'mypy', 'ncps==1.0.1', 'ruff']  # ncps: the bridge to it is tested against it

# Without a C compiler the package installs all the same, and numpy does the work.
core = f'{package_name}/core'
build = run_path(f'{core}/build.py')
compiled = [
    Extension(
        f'{package_name}.core.{name}',
        [f'{core}/{source}' for source in build['MODULE']],
        define_macros=list(macros),
        depends=[f'{core}/{included}' for included in build['INCLUDED']],
        include_dirs=[core],
        extra_compile_args=list(build['FLAGS']),
        libraries=['m'],
        optional=True,
    )
    for name, macros in build['PRECISIONS'].items()
]

setup(
    name=package_name,
    version='0.1.0',  # and in package.xml: catkin_prepare_release bumps both
    description='Drive robots with Liquid Time-Constant networks under ROS 2',
    license='Apache-2.0',
    maintainer='lnn_ros maintainers',
    maintainer_email='maintainers@users.noreply.example',
    python_requires='>=3.10',
    ext_modules=compiled,
    packages=find_packages(include=[package_name, f'{package_name}.*']),
    package_data={
        f'{package_name}.sim': ['assets/*.xml'],
        f'{package_name}.core': ['*.[ch]', '*.in'],  # export writes parts of them out
    },
    data_files=[
        ('share/ament_index/resource_index/packages', [f'resource/{package_name}']),
        (f'share/{package_name}', ['package.xml']),
        (f'share/{package_name}/launch', glob('launch/*.launch.xml')),
        (f'share/{package_name}/config', glob('config/*.yaml') + ['config/fastdds.xml']),
        (f'share/{package_name}/policies', glob('policies/*.safetensors')),
        # launch and `ros2 run` look for executables here and nowhere else; pip would put
        # console scripts into bin/, so the nodes are files that colcon and pip both install.
        (f'lib/{package_name}', glob('resource/*_node')),
    ],
    install_requires=['numpy', 'pyyaml', 'safetensors'],
    # colcon test runs pytest only if the extra `test` names it.
    extras_require={'ros': ros, 'sim': sim, 'train': train, 'test': test, 'dev': dev},
    entry_points={'console_scripts': ['lnn_ros = lnn_ros.cli:main']},
    zip_safe=False,
)
