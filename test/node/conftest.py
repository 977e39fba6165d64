"""What the tests of nodes share: one rclpy per module, on this machine only."""

import os
import time

import pytest

DEADLINE = 10.0  # s; what is waited for takes milliseconds


@pytest.fixture(scope='module')
def ros():
    rclpy = pytest.importorskip('rclpy')
    os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'
    os.environ.setdefault('ROS_DOMAIN_ID', str(1 + os.getpid() % 100))
    rclpy.init()
    yield
    rclpy.try_shutdown()


@pytest.fixture
def node(ros):
    from rclpy.node import Node

    node = Node(f'subject_{time.monotonic_ns()}')
    yield node
    node.destroy_node()


@pytest.fixture
def other(ros):
    """Return a node that sends; nobody spins it."""
    from rclpy.node import Node

    node = Node(f'sender_{time.monotonic_ns()}')
    yield node
    node.destroy_node()


@pytest.fixture
def spin_until():
    def spin_until(executor, condition):
        end = time.monotonic() + DEADLINE
        while not condition():
            assert time.monotonic() < end, 'in vain'
            executor.spin_once(timeout_sec=0.05)

    return spin_until


@pytest.fixture
def connected():
    def connected(publisher, subscriptions=1):
        end = time.monotonic() + DEADLINE
        while publisher.get_subscription_count() < subscriptions:
            assert time.monotonic() < end, 'no discovery'
            time.sleep(0.01)

    return connected
