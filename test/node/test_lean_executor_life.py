"""How the lean executor deals with entities that come and go, starts and ends."""

import subprocess
import sys
import threading
import time

import pytest

rclpy = pytest.importorskip('rclpy')

from rclpy.callback_groups import MutuallyExclusiveCallbackGroup  # noqa: E402
from rclpy.executors import (  # noqa: E402
    Executor,
    ExternalShutdownException,
    SingleThreadedExecutor,
)
from rclpy.impl.implementation_singleton import rclpy_implementation  # noqa: E402
from rclpy.node import Node  # noqa: E402
from rclpy.parameter import Parameter  # noqa: E402
from rclpy.qos import QoSProfile, ReliabilityPolicy  # noqa: E402
from sensor_msgs.msg import Imu  # noqa: E402
from std_srvs.srv import Trigger  # noqa: E402

from lnn_ros.nodes.lean_executor import LeanExecutor  # noqa: E402
from lnn_ros.nodes.parameters import declare  # noqa: E402
from lnn_ros.nodes.running import EXECUTOR, open_executor  # noqa: E402

SENSOR = QoSProfile(depth=50, reliability=ReliabilityPolicy.BEST_EFFORT)
RELIABLE = QoSProfile(depth=1000, reliability=ReliabilityPolicy.RELIABLE)
DEADLINE = 10.0  # s; what is waited for takes milliseconds


pytestmark = pytest.mark.usefixtures('ros')


@pytest.fixture
def executor(node):
    with LeanExecutor() as executor:
        executor.add_node(node)
        yield executor


def numbered(number):
    message = Imu()
    message.header.stamp.sec = number
    return message


# entities that come and go ------------------------------------------------------------------------


def test_a_subscription_made_in_another_thread_wakes_a_waiting_executor(
    node, other, executor, spin_until, connected
):
    got = []
    publisher = other.create_publisher(Imu, 'late', RELIABLE)

    def add():
        node.create_subscription(Imu, 'late', got.append, RELIABLE)
        connected(publisher)
        publisher.publish(Imu())

    executor.spin_once(timeout_sec=0.0)
    thread = threading.Thread(target=add)
    thread.start()
    executor.spin_once(timeout_sec=DEADLINE)
    thread.join()
    spin_until(executor, lambda: got)


def test_a_destroyed_subscription_calls_back_no_more_and_is_gone_at_once(
    node, other, executor, spin_until, connected
):
    got = []
    subscription = node.create_subscription(Imu, 'imu', got.append, RELIABLE)
    publisher = other.create_publisher(Imu, 'imu', RELIABLE)
    connected(publisher)
    for number in range(10):
        publisher.publish(numbered(number))
    spin_until(executor, lambda: got)
    node.destroy_subscription(subscription)
    end = time.monotonic() + DEADLINE
    while publisher.get_subscription_count():  # although the executor held it, and does not spin
        assert time.monotonic() < end
        time.sleep(0.01)
    executor.spin_once(timeout_sec=0.1)
    assert len(got) == 1


def test_a_subscription_may_destroy_itself_in_its_callback(
    node, other, executor, spin_until, connected
):
    got = []

    def callback(message):
        got.append(message)
        node.destroy_subscription(subscription)

    subscription = node.create_subscription(Imu, 'imu', callback, RELIABLE)
    publisher = other.create_publisher(Imu, 'imu', RELIABLE)
    connected(publisher)
    for number in range(10):
        publisher.publish(numbered(number))
    spin_until(executor, lambda: got)
    executor.spin_once(timeout_sec=0.1)
    assert len(got) == 1


def test_a_removed_node_is_not_served(node, other, executor, spin_until):
    ticks = []
    node.create_timer(0.01, lambda: ticks.append(1))
    spin_until(executor, lambda: ticks)
    executor.remove_node(node)
    before = len(ticks)
    for _ in range(3):
        executor.spin_once(timeout_sec=0.05)
    assert len(ticks) == before


def test_a_node_that_its_own_callback_removes_is_served_no_more(
    node, other, executor, spin_until, connected
):
    got = []

    def callback(message):
        got.append(message)
        executor.remove_node(node)

    node.create_subscription(Imu, 'imu', callback, RELIABLE)
    publisher = other.create_publisher(Imu, 'imu', RELIABLE)
    connected(publisher)
    for number in range(10):
        publisher.publish(numbered(number))
    spin_until(executor, lambda: got)
    for _ in range(3):
        executor.spin_once(timeout_sec=0.05)
    assert len(got) == 1


# waiting and ending -------------------------------------------------------------------------------


def test_a_timeout_is_kept_and_costs_no_cpu(executor):
    executor.spin_once(timeout_sec=0.0)
    begun, cpu = time.monotonic(), time.thread_time()
    executor.spin_once(timeout_sec=0.3)
    assert 0.29 < time.monotonic() - begun < 1.0
    assert time.thread_time() - cpu < 0.1


def test_a_timeout_is_kept_in_a_callback_that_spins_itself(
    node, other, executor, spin_until, connected
):
    client = node.create_client(Trigger, 'nobody', callback_group=MutuallyExclusiveCallbackGroup())
    took = []

    def callback(message):
        begun = time.monotonic()
        future = client.call_async(Trigger.Request())
        executor.spin_until_future_complete(future, timeout_sec=0.2)
        executor.spin_once(timeout_sec=0.1)
        took.append(time.monotonic() - begun)

    node.create_subscription(Imu, 'imu', callback, RELIABLE)
    publisher = other.create_publisher(Imu, 'imu', RELIABLE)
    connected(publisher)
    for number in range(3):
        publisher.publish(numbered(number))
    spin_until(executor, lambda: len(took) == 3)  # the others came while the first one spun
    assert all(0.2 < seconds < 2.0 for seconds in took)


def test_no_callback_comes_after_the_end_of_the_context(other, spin_until, connected):
    context, got = rclpy.Context(), []
    context.init()
    node = Node('subject', context=context)

    def callback(message):
        got.append(message)
        context.shutdown()

    node.create_subscription(Imu, 'imu', callback, RELIABLE)
    publisher = other.create_publisher(Imu, 'imu', RELIABLE)
    connected(publisher)
    for number in range(5):
        publisher.publish(numbered(number))
    with LeanExecutor(context=context) as executor:
        executor.add_node(node)
        with pytest.raises(ExternalShutdownException):
            spin_until(executor, lambda: len(got) > 1)
    assert len(got) == 1


def test_shutdown_from_another_thread_ends_spin(node):
    executor = LeanExecutor()
    executor.add_node(node)
    thread = threading.Thread(target=executor.spin)
    thread.start()
    time.sleep(0.1)
    executor.shutdown()
    thread.join(DEADLINE)
    assert not thread.is_alive()


def test_the_end_of_the_context_is_raised():
    context = rclpy.Context()
    context.init()
    subject = Node('ending', context=context)
    with LeanExecutor(context=context) as executor:
        executor.add_node(subject)
        threading.Timer(0.1, context.try_shutdown).start()
        with pytest.raises(ExternalShutdownException):
            executor.spin_once(timeout_sec=DEADLINE)


@pytest.mark.parametrize('flow', [False, True])
def test_sigterm_ends_a_node_promptly(flow, other, connected):
    code = (
        'import rclpy, time\n'
        'from sensor_msgs.msg import Imu\n'
        'from lnn_ros.nodes.running import EXECUTOR, run\n'
        'from lnn_ros.nodes.parameters import declare\n'
        'def make():\n'
        '    node = rclpy.create_node("stopped")\n'
        '    declare(node, [EXECUTOR])\n'
        '    node.create_subscription(Imu, "stop_flow", lambda m: None, 10)\n'
        '    return node\n'
        'def live(node, executor, stop):\n'
        '    print(type(executor).__name__, flush=True)\n'
        '    while not stop: executor.spin_once(timeout_sec=0.1)\n'
        '    return 7\n'
        'run(make, live, None)\n'
    )
    process = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == 'LeanExecutor\n'
        publisher = other.create_publisher(Imu, 'stop_flow', 10)
        connected(publisher)
        end = time.monotonic() + 0.5
        while flow and time.monotonic() < end:
            publisher.publish(Imu())
            time.sleep(0.001)
        process.terminate()
        begun = time.monotonic()
        assert process.wait(DEADLINE) == 7
        assert time.monotonic() - begun < 3.0
    finally:
        process.kill()


@pytest.mark.parametrize(
    ('value', 'kind'), [('lean', LeanExecutor), ('single_threaded', SingleThreadedExecutor)]
)
def test_the_parameter_names_the_executor(value, kind):
    subject = Node('named', parameter_overrides=[Parameter('executor', value=value)])
    declare(subject, [EXECUTOR])
    with open_executor(subject) as executor:
        assert type(executor) is kind
    subject.destroy_node()


def test_an_unknown_executor_is_refused(node):
    node.declare_parameter('executor', 'fast')
    with pytest.raises(ValueError, match="'fast'"):
        open_executor(node)


@pytest.mark.parametrize(
    'name', ['_spin_once_impl', 'can_execute', '_pending_tasks', 'add_subscription']
)
def test_where_rclpy_differs_the_stock_executor_serves_and_a_line_says_so(
    name, node, monkeypatch, capfd
):
    declare(node, [EXECUTOR])
    if name == 'add_subscription':
        monkeypatch.setattr(rclpy_implementation, 'WaitSet', lambda *_: object())
    elif hasattr(SingleThreadedExecutor, name):
        owner = SingleThreadedExecutor if name in vars(SingleThreadedExecutor) else Executor
        monkeypatch.delattr(owner, name)
    else:
        init = SingleThreadedExecutor.__init__

        def lacking(self, **options):
            init(self, **options)
            vars(self).pop(name if hasattr(self, name) else '_tasks')

        monkeypatch.setattr(SingleThreadedExecutor, '__init__', lacking)
    executor = open_executor(node)
    assert type(executor) is SingleThreadedExecutor
    monkeypatch.undo()
    executor.shutdown()
    assert capfd.readouterr().err.count(name) == 1
