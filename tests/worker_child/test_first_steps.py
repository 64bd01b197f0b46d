import asyncio
import contextvars
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
import uvloop

from worker_child import first_steps

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="outside")


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop])
def loop(request: pytest.FixtureRequest) -> Iterator[asyncio.AbstractEventLoop]:
    loop = request.param()
    yield loop
    loop.close()


def in_a_callback(loop: asyncio.AbstractEventLoop, make: Callable[[], Any]) -> Any:
    """What `make` returns when the loop calls it, and nobody's task is current."""

    async def called() -> Any:
        result: asyncio.Future[Any] = loop.create_future()

        def call() -> None:
            try:
                result.set_result(make())
            except RuntimeError as error:
                result.set_exception(error)

        loop.call_soon(call)
        return await result

    return loop.run_until_complete(called())


def begun(loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
    made = in_a_callback(loop, lambda: first_steps.task(loop, coroutine))
    assert isinstance(made, asyncio.Task)
    return made


def test_the_first_step_is_made_before_anything_else(loop: asyncio.AbstractEventLoop) -> None:
    steps: list[str] = []

    async def work() -> None:
        steps.append("first")
        await asyncio.sleep(0)
        steps.append("second")

    def make() -> "asyncio.Task[None]":
        made = first_steps.task(loop, work())
        steps.append("made")
        return made

    task = in_a_callback(loop, make)
    loop.run_until_complete(task)
    assert steps == ["first", "made", "second"]


def test_a_task_that_never_waits_is_done_when_it_is_made(loop: asyncio.AbstractEventLoop) -> None:
    async def work() -> None:
        assert asyncio.get_running_loop() is loop

    assert in_a_callback(loop, lambda: first_steps.task(loop, work()).done())
    assert "call_soon" not in vars(loop)


def test_it_is_one_task_before_and_after_it_waits(loop: asyncio.AbstractEventLoop) -> None:
    seen: list[Any] = []

    async def work() -> None:
        assert asyncio.current_task() in asyncio.all_tasks()
        seen.append(asyncio.current_task())
        await asyncio.sleep(0)
        seen.append(asyncio.current_task())

    task = begun(loop, work())
    loop.run_until_complete(task)
    assert seen == [task, task]


def test_its_context_is_its_own(loop: asyncio.AbstractEventLoop) -> None:
    seen: list[str] = []

    async def work() -> None:
        seen.append(variable.get())
        variable.set("inside")
        await asyncio.sleep(0)
        seen.append(variable.get())

    def make() -> Any:
        made = first_steps.task(loop, work())
        seen.append(variable.get())
        return made

    loop.run_until_complete(in_a_callback(loop, make))
    assert seen == ["outside", "outside", "inside"]


def test_timeouts_and_groups_of_tasks_begin_in_the_first_step(loop: asyncio.AbstractEventLoop) -> None:
    ends: list[type[BaseException]] = []

    async def work() -> None:
        try:
            async with asyncio.timeout(0.001):
                await asyncio.Event().wait()
        except TimeoutError as end:
            ends.append(type(end))
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(fail())
                await asyncio.Event().wait()
        except ExceptionGroup as end:
            ends.append(type(end))

    async def fail() -> None:
        raise ValueError("no")

    loop.run_until_complete(begun(loop, work()))
    assert ends == [TimeoutError, ExceptionGroup]


def test_it_can_be_cancelled_after_its_first_step(loop: asyncio.AbstractEventLoop) -> None:
    async def work() -> None:
        await asyncio.Event().wait()

    task = begun(loop, work())
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        loop.run_until_complete(task)


def test_what_fails_in_its_first_step_is_its_exception(loop: asyncio.AbstractEventLoop) -> None:
    async def work() -> None:
        raise ValueError("no")

    assert str(begun(loop, work()).exception()) == "no"
    assert "call_soon" not in vars(loop)


def test_code_that_awaits_nothing_needs_no_task(loop: asyncio.AbstractEventLoop) -> None:
    seen: list[Any] = []

    async def work() -> None:
        seen.extend((asyncio.get_running_loop(), asyncio.current_task(), variable.get()))
        variable.set("inside")

    in_a_callback(loop, lambda: first_steps.only(work()))
    assert [*seen, variable.get()] == [loop, None, "outside", "outside"]


def test_code_that_awaits_after_all_is_not_run_so(loop: asyncio.AbstractEventLoop) -> None:
    with pytest.raises(RuntimeError, match="waits for something"):
        in_a_callback(loop, lambda: first_steps.only(asyncio.sleep(0)))
