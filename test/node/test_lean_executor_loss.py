"""The lean executor loses no message that rclpy's own keeps."""

import subprocess
import sys
import time

import pytest

rclpy = pytest.importorskip('rclpy')

from rclpy.qos import QoSProfile, ReliabilityPolicy  # noqa: E402
from sensor_msgs.msg import Imu  # noqa: E402

SENSOR = QoSProfile(depth=50, reliability=ReliabilityPolicy.BEST_EFFORT)
MESSAGES = 3000
KINDS = {
    'LeanExecutor': 'lnn_ros.nodes.lean_executor',
    'SingleThreadedExecutor': 'rclpy.executors',
}
CODE = (
    'import sys, rclpy, importlib\n'
    'from rclpy.qos import QoSProfile, ReliabilityPolicy\n'
    'from sensor_msgs.msg import Imu\n'
    'rclpy.init()\n'
    'node = rclpy.create_node(sys.argv[1].lower())\n'
    'module = importlib.import_module(sys.argv[2])\n'
    'got = []\n'
    'qos = QoSProfile(depth=50, reliability=ReliabilityPolicy.BEST_EFFORT)\n'
    'node.create_subscription(Imu, "flow", lambda m: got.append(m.header.stamp.sec), qos)\n'
    'executor = getattr(module, sys.argv[1])()\n'
    'executor.add_node(node)\n'
    'while not got or got[-1] >= 0: executor.spin_once(timeout_sec=1.0)\n'
    'print(len(got) - 1)\n'
)


def received(publisher, connected):
    """Send at 1 kHz to both executors at once, in processes of their own; return their counts."""
    processes = [
        subprocess.Popen([sys.executable, '-c', CODE, *kind], stdout=subprocess.PIPE, text=True)
        for kind in KINDS.items()
    ]
    try:
        connected(publisher, len(KINDS))
        message = Imu()
        begun = time.monotonic()
        for number in range(MESSAGES):
            time.sleep(max(begun + number * 1e-3 - time.monotonic(), 0.0))
            message.header.stamp.sec = number
            publisher.publish(message)
        message.header.stamp.sec = -1
        for _ in range(50):  # the end, and again in case that it is lost
            time.sleep(0.02)
            publisher.publish(message)
        return [int(process.communicate(timeout=10.0)[0]) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_at_1_khz_and_depth_50_it_keeps_what_the_stock_executor_keeps(other, connected):
    publisher = other.create_publisher(Imu, 'flow', SENSOR)
    counts = []
    for _ in range(3):  # whom a busy machine stalls for 50 ms, it makes lose messages
        counts.append(received(publisher, connected))
        lean, stock = counts[-1]
        if lean >= min(stock, MESSAGES - 10):
            return
    pytest.fail(f'received by the lean executor and by the stock one: {counts}')
