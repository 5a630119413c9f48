"""Answers find their questions, or the time is over."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from tidings.engines.nats.answers import Answers, settle
from tidings.engines.nats.connection import Frame


def frame(number: str) -> Frame:
    return Frame(f"_INBOX.x.a.{number}", "", None, b"yes")


def ask(answers: Answers, within: float | None = None) -> tuple[str, asyncio.Future[Frame]]:
    future: asyncio.Future[Frame] = asyncio.get_running_loop().create_future()
    return answers.expect("Where.Ever", partial(settle, future), within), future


async def test_each_question_gets_its_answer() -> None:
    """An answer goes to its question alone; a second one, and one to a forgotten question, reach nobody."""
    answers = Answers()
    (one, first), (two, second) = ask(answers), ask(answers)
    answers.take(frame(two))
    answers.take(frame(two))
    assert second.result().body == b"yes"
    assert not first.done()
    answers.forget(one)
    answers.take(frame(one))
    assert not first.done()


async def test_each_question_has_its_own_time() -> None:
    """Whatever the order in which they were asked, each question is over after its own time; one that was answered is
    left alone."""
    answers = Answers()
    ended: list[float] = []

    def told(seconds: float, _: object) -> None:
        ended.append(seconds)

    asked = [(seconds, *ask(answers, seconds)) for seconds in (0.3, 3600.0, 0.02, 0.04, 0.02)]
    for seconds, _, future in asked:
        future.add_done_callback(partial(told, seconds))
    answers.take(frame(asked[3][1]))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(asked[0][2]), 10)
    assert ended == [0.04, 0.02, 0.02, 0.3]
    assert not asked[1][2].done()
    answers.fail(ConnectionError("gone"))
    assert isinstance(asked[1][2].exception(), ConnectionError)


async def test_an_unanswered_question_keeps_nothing_of_later_ones() -> None:
    """Behind one question that waits for long, what has been answered is not kept until its time is over."""
    answers = Answers()
    ask(answers, 3600.0)
    for _ in range(1000):
        number, _ = ask(answers, 3600.0)
        answers.take(frame(number))
        answers.forget(number)
    assert len(answers) == 1
    assert len(answers._limits._due) < 200
    answers.fail(ConnectionError("gone"))


async def test_who_may_not_ask_is_told() -> None:
    """A refusal reaches those who asked there, whatever the case of its subject; it says whether there was anybody."""
    answers = Answers()
    _, future = ask(answers)
    assert not answers.denied("elsewhere", PermissionError)
    assert answers.denied("where.ever", PermissionError)
    with pytest.raises(PermissionError, match=r"Where\.Ever"):
        await future
