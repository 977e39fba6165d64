"""Drive robots with Liquid Time-Constant networks under ROS 2."""


def __getattr__(name: str) -> str:
    # Read on demand: nodes start without it, and a release bumps only package.xml and setup.py.
    if name != '__version__':
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    from importlib.metadata import version

    return version(__name__)
