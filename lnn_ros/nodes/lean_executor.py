"""An executor that spends its time on messages, not on finding out that there is one.

For every message, rclpy's SingleThreadedExecutor builds a wait set, a task and coroutines anew,
which costs many times what the message does. This one keeps its wait set until an entity comes or
goes, and calls plain subscription callbacks itself, before everything else. Timers, services,
clients, guard conditions, waitables and coroutines stay rclpy's: when one of them is ready, the
inherited executor makes a pass over all of them, so they behave as they always did.
"""

from __future__ import annotations

import inspect
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any, cast

from rclpy.context import Context
from rclpy.exceptions import InvalidHandle
from rclpy.executors import (
    ConditionReachedException,
    ExternalShutdownException,
    ShutdownException,
    SingleThreadedExecutor,
    TimeoutException,
    TimeoutObject,
)
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.node import Node
from rclpy.subscription import Subscription
from rclpy.utilities import timeout_sec_to_nsec
from rclpy.waitable import NumberOfEntities

# Messages between two looks at the rest: under a flood, services and timers get their turn.
BATCH = 16
# While messages come, clients, services, QoS events and actions are looked at this often: to wait
# for all of them at every message would cost more than to take it. Timers are always prompt.
LOOK_NS = 20_000_000
AT_ONCE_NS = 200_000  # a wait that is over in this time did not wait

# What is used of rclpy beyond its documented interface.
_CLASS_INTERNALS = ('_spin_once_impl', 'can_execute', 'wait_for_ready_callbacks')
_OBJECT_INTERNALS = ('_guard', '_is_shutdown', '_sigint_gc')
_MESSAGE_ONLY = Subscription.CallbackType.MessageOnly


class LeanExecutor(SingleThreadedExecutor):
    """Runs callbacks in the thread that spins; up to `BATCH` messages go before all else.

    Can be used wherever SingleThreadedExecutor is: callback groups, sim time, exceptions, entities
    that come and go work alike. While a coroutine is suspended, the inherited executor does all.

    Raises:
        RuntimeError: from the constructor, when this rclpy lacks something that is relied on.
    """

    _pending_tasks: dict[Any, Any]  # in some versions of rclpy

    def __init__(self, *, context: Context | None = None) -> None:
        # what wake() needs: it may be called as soon as the base class is initialised
        self._changed = True
        self._waiting = threading.Lock()
        self._wait_set: _KeptWaitSet | None = None
        self._own: frozenset[Subscription] = frozenset()  # served here, not by the inherited one
        self._ready: deque[Subscription] = deque()
        self._budget = 0  # messages that may still go before all else
        self._may_be_more = False
        self._rest = False  # the inherited executor has something to do
        self._in_callback = False
        super().__init__(context=context)
        missing = [name for name in _CLASS_INTERNALS if not hasattr(SingleThreadedExecutor, name)]
        missing += [name for name in _OBJECT_INTERNALS if not hasattr(self, name)]
        # In 7.1.9 (Jazzy), 9.1.4 (Kilted) and 10 (Lyrical) the tasks are the keys of a dictionary,
        # in those before the first ones of tuples in a list.
        self._has_dictionary = hasattr(self, '_pending_tasks')
        if not (self._has_dictionary or hasattr(self, '_tasks')):
            missing.append('_pending_tasks')
        if not hasattr(getattr(self, '_guard', None), '_executor_triggered'):
            missing.append('_guard._executor_triggered')
        try:
            if missing:
                raise AttributeError(f'it has no {", ".join(missing)}')
            self._wait(0)  # a trial: nothing is there yet to wait for
        except (AttributeError, TypeError) as error:
            super().shutdown()
            raise RuntimeError(f'the lean executor does not fit this rclpy: {error}') from error

    # rclpy's interface ----------------------------------------------------------------------------

    def wake(self) -> None:
        """Look at the entities anew; rclpy calls this when one was created or destroyed."""
        self._changed = True
        # What was just destroyed must not live on because we hold it, and maybe nobody spins
        # again. A thread that is waiting lets go by itself when the guard has woken it.
        if self._waiting.acquire(blocking=False):
            self._let_go()
            self._waiting.release()
        super().wake()

    def add_node(self, node: Node) -> bool:
        added: bool = super().add_node(node)
        self.wake()
        return added

    def remove_node(self, node: Node) -> None:
        super().remove_node(node)
        self.wake()

    def shutdown(self, timeout_sec: float | None = None) -> bool:
        done: bool = super().shutdown(timeout_sec)
        self.wake()
        return done

    def can_execute(self, entity: Any) -> bool:
        """Keep the inherited executor off the subscriptions that are served here."""
        return entity not in self._own and super().can_execute(entity)

    def _spin_once_impl(
        self,
        timeout_sec: float | TimeoutObject | None = None,
        wait_condition: Callable[[], bool] = lambda: False,
    ) -> None:
        """Wait for one callback and run it; all of rclpy's spin functions end here.

        Raises:
            ExternalShutdownException: the context was shut down.
            Exception: whatever the callback raised.
        """
        if isinstance(timeout_sec, TimeoutObject):
            timeout_sec = cast(float, timeout_sec.timeout)
        timeout = timeout_sec_to_nsec(timeout_sec)  # negative: for ever
        end = time.monotonic_ns() + timeout
        is_over = False
        while not (self._is_shutdown or wait_condition()):
            if self._in_callback or self._has_unfinished_task():
                # A callback that spins itself, or a suspended coroutine, blocks its callback group;
                # or create_task() was called.
                self._own = frozenset()
                self._changed = True
                self._run_inherited(timeout_sec, wait_condition)
                return
            if self._run_ready() or is_over:
                return
            left = timeout if timeout <= 0 else max(end - time.monotonic_ns(), 0)
            self._wait(left)
            is_over = left == 0

    # our own --------------------------------------------------------------------------------------

    def _has_unfinished_task(self) -> bool:
        kept = self._pending_tasks if self._has_dictionary else self._tasks
        if not kept:
            return False
        tasks = list(kept)  # a copy, as another thread may add one
        if not self._has_dictionary:
            tasks = [task for task, _, _ in tasks]
        return any(not (task.done() or task.cancelled()) for task in tasks)

    def _run_ready(self) -> bool:
        """Run one callback of those that the last wait found; False when there is none."""
        if self._changed:  # of what was found, something may have gone, or its context
            self._ready.clear()
            self._may_be_more = False
        while True:
            while self._ready:
                if self._deliver(self._ready.popleft()):
                    return True
            if not self._may_be_more:
                break
            # To take is cheaper than to wait. From all of them: a stream that never pauses would
            # keep the others waiting for as long as the budget lasts.
            self._may_be_more = False
            self._ready.extend(self._own)
        self._rest = self._rest and self._run_inherited(0.0)
        return self._rest

    def _deliver(self, subscription: Subscription) -> bool:
        """Take one message and call back; False when there was none."""
        group = subscription.callback_group
        if not group.beginning_execution(subscription):
            return False
        try:
            handle = subscription.handle
            try:
                with handle:
                    taken = handle.take_message(subscription.msg_type, subscription.raw)
            except InvalidHandle:  # it was destroyed
                self._changed = True
                return False
            if taken is None:
                return False
            if self._budget > 0:
                self._budget -= 1
                self._may_be_more = True
            self._in_callback = True
            if subscription._callback_type is _MESSAGE_ONLY:
                subscription.callback(taken[0])
            else:
                subscription.callback(*taken)
        finally:
            self._in_callback = False
            group.ending_execution(subscription)
        return True

    def _run_inherited(self, timeout_sec: float | None, *condition: Callable[[], bool]) -> bool:
        """Let the inherited executor run one callback; False when its pass is over."""
        try:
            handler, _, _ = self.wait_for_ready_callbacks(timeout_sec, None, *condition)
        except (ShutdownException, TimeoutException, ConditionReachedException):
            return False
        was_in_callback, self._in_callback = self._in_callback, True
        try:
            handler()
        finally:
            self._in_callback = was_in_callback
        error = handler.exception()
        if error is not None:
            raise error
        return True

    def _wait(self, timeout_ns: int) -> None:
        """Wait until something is ready and note what it is."""
        with self._waiting:
            if self._changed or self._wait_set is None:
                self._let_go()
                if not self._context.ok():
                    raise ExternalShutdownException()
                self._changed = False
                self._wait_set = _KeptWaitSet(
                    self._context, self.get_nodes(), (self._guard, self._sigint_gc)
                )
                self._own = frozenset(self._wait_set.plain.values())
            wait_set = self._wait_set
            ready, self._rest = wait_set.wait(timeout_ns)
            if self._changed:
                self._let_go()
        if self._is_shutdown:
            return
        if wait_set.woken and not self._context.ok():
            raise ExternalShutdownException()
        self._ready.extend(ready)
        # After a wait that lasted there is one message; to ask for a second would be in vain.
        self._budget = 0 if wait_set.waited else BATCH

    def _let_go(self) -> None:
        if self._wait_set is not None:
            self._wait_set.close()
            self._wait_set = None


class _KeptWaitSet:
    """A wait set for all entities of some nodes; keeps them from being destroyed until closed.

    Attributes:
        plain: subscriptions that can be served without the inherited executor: those whose
            callback is no coroutine; by the address of their handle.
        waited: the last wait lasted.
        woken: it was ended by a guard condition or by the time, so the context may be gone.
    """

    def __init__(self, context: Context, nodes: Iterable[Node], guards: Iterable[Any]) -> None:
        self._held = ExitStack()
        if context.handle is not None:
            self._held.enter_context(context.handle)
        nodes = list(nodes)
        self.plain = {}
        subscriptions = self._hold(s for node in nodes for s in node.subscriptions)
        for subscription in subscriptions:
            is_known = hasattr(subscription, '_callback_type')  # as in every rclpy so far
            if is_known and not inspect.iscoroutinefunction(subscription.callback):
                self.plain[subscription.handle.pointer] = subscription
        users_guards = self._hold(guard for node in nodes for guard in node.guards)
        self._guards = {guard.handle.pointer: guard for guard in users_guards}
        own_guards = self._hold(guard for guard in guards if guard is not None)
        timers = self._hold(timer for node in nodes for timer in node.timers)
        clients = self._hold(client for node in nodes for client in node.clients)
        services = self._hold(service for node in nodes for service in node.services)
        kinds = (subscriptions, users_guards + own_guards, timers, clients, services)
        count = NumberOfEntities(*map(len, kinds))
        waitables = []
        for waitable in (waitable for node in nodes for waitable in node.waitables):
            try:
                self._held.enter_context(waitable)
            except InvalidHandle:
                continue
            waitables.append(waitable)
            count += waitable.get_num_entities()
        self._events = range(count.num_events)
        self._set = wait_set = rclpy_implementation.WaitSet(
            count.num_subscriptions, count.num_guard_conditions, count.num_timers,
            count.num_clients, count.num_services, count.num_events, context.handle,
        )  # fmt: skip
        adders = (
            wait_set.add_subscription, wait_set.add_guard_condition, wait_set.add_timer,
            wait_set.add_client, wait_set.add_service,
        )  # fmt: skip
        refill = [
            [(add, entity.handle) for entity in entities]
            for add, entities in zip(adders, kinds, strict=True)
        ]
        self._prompt = sum(refill[:3], [])
        self._all = sum(refill, []) + [(w.add_to_wait_set, wait_set) for w in waitables]
        self.waited = self.woken = False
        self._flowing = False  # messages come
        self._look_ns = 0  # then, when to look at everything

    def _hold(self, entities: Iterable[Any]) -> list[Any]:
        """Return those that are not being destroyed."""
        held = []
        for entity in entities:
            try:
                self._held.enter_context(entity.handle)
            except InvalidHandle:
                continue
            held.append(entity)
        return held

    def close(self) -> None:
        self._held.close()

    def wait(self, timeout_ns: int) -> tuple[list[Subscription], bool]:
        """Wait, for ever if the time is negative; return the plain ones and if others are ready."""
        wait_set = self._set
        entities = self._all
        now_ns = time.monotonic_ns()
        if self._flowing and timeout_ns:
            left_ns = self._look_ns - now_ns
            if left_ns > 0:
                entities = self._prompt
                timeout_ns = left_ns if timeout_ns < 0 else min(timeout_ns, left_ns)
            else:
                self._look_ns = now_ns + LOOK_NS
        wait_set.clear_entities()  # a wait takes out what is not ready
        for add, entity in entities:
            add(entity)
        wait_set.wait(timeout_ns)
        self.waited = time.monotonic_ns() - now_ns > AT_ONCE_NS
        found = wait_set.get_ready_entities('subscription')
        ready = [self.plain[address] for address in found if address in self.plain]
        self._flowing = bool(ready)
        rest = len(ready) < len(found) or bool(wait_set.get_ready_entities('timer'))
        guards = wait_set.get_ready_entities('guard_condition')
        for address in guards:
            if address in self._guards:
                # the wait has used the trigger up; with this mark, rclpy triggers it again
                self._guards[address]._executor_triggered = True
                rest = True
        self.woken = bool(guards) or not ready
        if entities is self._all and not rest:
            rest = (
                bool(wait_set.get_ready_entities('service'))
                or bool(wait_set.get_ready_entities('client'))
                or any(wait_set.is_ready('event', index) for index in self._events)
            )
        return ready, rest
