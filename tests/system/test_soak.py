"""The soak's checker can be trusted: each planted defect turns it red, and the faults alone do not."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import pytest

from soak.brokers import Embedded
from soak.checker import Verdict, check
from soak.defects import DEFECTS
from soak.system import running
from soak.truth import Dead, Effect, Logged, Operation, Truth

ROOT = Path(__file__).resolve().parents[2]


class Planted(NamedTuple):
    """A short run: a crash point, a defect that it brings to light, and the part of the verdict that has to tell."""

    defect: str
    point: str
    part: str = ""


DEFECTIVE = [
    Planted("ack_before_commit", "before_commit@20", "lost"),
    Planted("inbox_apart", "before_commit@20", "lost"),
    Planted("no_inbox", "after_commit@20", "doubled"),
    Planted("marked_before_sending", "before_sending@3", "lost"),
    Planted("staged_nowhere", "", "lost"),
    Planted("no_sweep", "before_sending@3", "lost"),
    Planted("new_id_on_retry", "answer_lost@10", "doubled"),
    Planted("acknowledged_unsent", "", "lost"),
    Planted("ack_on_decode_error", "", "lost"),
    Planted("ack_on_handler_error", "", "lost"),
    Planted("rollback_ignored", "", "lost"),
    Planted("ack_on_cancel", "terminated", "lost"),
    Planted("no_retry", "", "other"),
    Planted("dead_letter_after_ack", "after_dead_letter", "lost"),
    Planted("rewritten_bytes", "", "other"),
    Planted("dropped_headers", "", "other"),
    Planted("unordered_key", "", "reordered"),
    Planted("child_left_behind", "", "other"),
]
SOUND = [Planted("", point) for point in dict.fromkeys(["", *(planted.point for planted in DEFECTIVE)])]
PUBLISHING = ("answer_lost@10", "new_id_on_retry", "acknowledged_unsent")
"""What is armed in the publisher; everything else in the worker."""
Judged: TypeAlias = Callable[[Planted], Verdict]


async def short_run(folder: Path, planted: Planted) -> Verdict:
    """Some dozens of operations, one of each kind among them, with one crash at the point."""
    defect, point, _ = planted
    hurry = {"SOAK_HURRY": "1", "TIDINGS_LEASE": "1500ms", "TIDINGS_GRACE": "200ms"}
    crash = {"SOAK_CRASH": point} if point else {}
    broken = {"SOAK_DEFECT": defect} if defect else {}
    async with running(folder, Embedded(folder), **hurry) as system:
        publishing = {**(crash if point in PUBLISHING else {}), **(broken if defect in PUBLISHING else {})}
        handling = {**({} if point in PUBLISHING else crash), **({} if defect in PUBLISHING else broken)}
        publisher = system.add_publisher(400, 1, 60, **publishing)
        system.add_worker(**handling)
        await asyncio.wait_for(publisher.ended(), 40)
        # What a defect keeps from being drained is waited for no longer than the slowest of what is well takes.
        await system.drained(25 if not defect else 8)
        await system.stop()
        assert (folder / "crashed").exists() == bool(point), "the crash point was never reached"
        assert not [line for line in system.strange if "ended with" in line], "a defect that could not be armed"
        return check(await system.truth())


@pytest.fixture(scope="module")
def judged(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Judged]:
    """The verdicts on the short runs that were selected, made two at a time: a run mostly waits."""
    tests = [item for item in request.session.items if isinstance(item, pytest.Function) and hasattr(item, "callspec")]
    given = [item.callspec.params.get("planted") for item in tests]
    wanted = [planted for planted in given if isinstance(planted, Planted)]
    pool = ThreadPoolExecutor(2)
    try:
        runs = {
            planted: pool.submit(asyncio.run, short_run(tmp_path_factory.mktemp("soak") / "run", planted))
            for planted in wanted
        }
        yield lambda planted: runs[planted].result()
    finally:
        pool.shutdown(cancel_futures=True)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("planted", SOUND, ids=lambda planted: planted.point or "no crash")
def test_a_crash_alone_changes_nothing(judged: Judged, planted: Planted) -> None:
    """At each crash point the framework as it is loses, doubles and changes nothing: a red run is then the defect's."""
    verdict = judged(planted)
    assert (verdict.word, verdict.lost, verdict.doubled, verdict.other) == ("pass", (), (), ())
    assert verdict.acknowledged >= 60


@pytest.mark.timeout(120)
@pytest.mark.parametrize("planted", DEFECTIVE, ids=lambda planted: planted.defect)
def test_a_planted_defect_is_seen(judged: Judged, planted: Planted) -> None:
    """The checker says fail, and says what."""
    verdict = judged(planted)
    assert verdict.word == "fail"
    assert getattr(verdict, planted.part)


def test_every_defect_is_planted() -> None:
    """None of the defects that were written is forgotten here."""
    assert sorted(planted.defect for planted in DEFECTIVE) == sorted(DEFECTS)


def sound(**changes: Any) -> Truth:
    """One operation, done as it should be; with what is changed."""
    placed = Operation("a", "k", 1, "plain", "sha", acknowledged=True)
    log = (Logged("events.soak.placed", "a", "sha", {}), Logged("events.soak.applied", "a", "other", {}))
    effects = (Effect("apply", "a", "k", 1), Effect("follow", "a", "k", 1))
    given: dict[str, Any] = {"operations": (placed,), "log": log, "dead": (), "effects": effects}
    return Truth(**{**given, "stages": ("apply", "follow"), **changes})


def test_a_sound_run_passes_unless_too_little_was_seen() -> None:
    """Nothing wrong is a pass; nothing wrong in a run that is too small is unknown, and something wrong is a fail."""
    assert check(sound()).word == "pass"
    assert check(sound(), missing=("12 kills, 100 are needed",)).word == "unknown"
    assert check(sound(log=()), missing=("12 kills, 100 are needed",)).word == "fail"


def test_the_order_of_a_key_is_checked_in_ordered_groups() -> None:
    """A number after a higher one of its key is reordered; between keys there is no order."""
    mixed = [Effect("ordered", "x", key, number) for key, number in (("k", 1), ("j", 5), ("k", 3), ("k", 2), ("j", 6))]
    verdict = check(sound(effects=(*sound().effects, *mixed)))
    assert verdict.reordered == ("x: number 2 of its key came after 3",)
    assert verdict.ordered == 5


def test_what_was_never_published_is_a_phantom() -> None:
    """An effect, or what follows from an effect that was rolled back, is told even if nothing is lost or doubled."""
    stranger = check(sound(effects=(*sound().effects, Effect("follow", "b", "k", 2))))
    assert (stranger.lost, stranger.other) == ((), ("phantom: 'b' was never published",))
    rolled_back = check(sound(effects=(), dead=(Dead("apply", "a", "sha", {}, "handler_error", 3),)))
    assert "phantom: a has what follows from an effect that is not there" in rolled_back.other


def test_done_and_dead_is_a_double() -> None:
    """An operation that was handled and is a dead letter of the same group was settled twice."""
    assert check(sound(dead=(Dead("apply", "a", "sha", {}, "handler_error", 3),))).doubled


def test_the_last_line() -> None:
    """Kills, acknowledged, lost, doubled, reordered, and the word that decides the exit status."""
    assert check(sound()).line(1234) == "1,234 kills, 1 acknowledged, 0 lost, 0 doubled, 0 reordered: pass"


async def test_too_few_kills_and_messages_are_unknown(tmp_path: Path) -> None:
    """A real soak of some seconds ends with status 2 and says what it lacks, not with a pass."""
    run = await asyncio.create_subprocess_exec(
        *(sys.executable, ROOT / "scripts" / "checks.py", "soak", "--minutes", "0.05", "--seed", "7", "--rate", "50"),
        *("--keep", tmp_path / "run"),
        stdout=asyncio.subprocess.PIPE,
    )
    said = (await run.communicate())[0].decode().splitlines()
    assert run.returncode == 2, said
    assert said[0].startswith("seed 7, ")
    assert said[-1].endswith("0 lost, 0 doubled, 0 reordered: unknown")
    assert any("are needed in 0.05 minutes" in line for line in said)
