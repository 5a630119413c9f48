"""The claims ledger: who wants what, since when.

One small compare-and-swap record per namespace. Starting any process of a bus declares all its groups in one write;
declarations only ever add, so that an old process restarting beside a new one takes nothing away. Narrowing and
removing are acts of a person.

From the ledger follow what is *unclaimed* (stored, and covered by no group's claim), where a new group begins, and
why a group does or does not get a message (`tidings explain`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime
from typing import Final, Literal

import msgspec

from .engine import KEEP_LEASE, Claim, Engine, Entry, Group, GroupState, Skip
from .errors import ConfigError, Conflict, EngineError, NotAllowed
from .subjects import covers, matches, overlap

Start = Literal["unclaimed", "latest", "earliest"]
"""Where a new group begins, by name; a time is the other way to say it."""

_KEY: Final = "claims"
_LAYOUT: Final = 1


class Wish(msgspec.Struct, frozen=True):
    """A group as a bus declares it."""

    name: str
    filters: tuple[str, ...]
    start: Start | datetime = "unclaimed"
    emits: tuple[str, ...] = ()
    ordered: bool = False


class Claimant(msgspec.Struct, frozen=True):
    """A group as the ledger knows it."""

    claims: tuple[Claim, ...]
    emits: tuple[str, ...] = ()
    paused: bool = False
    removed: bool = False
    """Its claims stay, so that its history does not look unclaimed; it gets nothing any more."""
    past: tuple[Claim, ...] = ()
    """Its claims of before it was removed and declared again: history, which it does not get a second time."""
    ordered: bool = False
    """Whether its messages keep their order; once declared, only a person takes it back."""
    lease: float = KEEP_LEASE
    """Seconds of its deliveries' leases."""
    anew: bool = False
    """The engine's group is still the one of before: it has to be forgotten before this one is declared."""
    app: str = ""
    """Name of the application that declared it last; empty when that is not known."""

    @property
    def ever(self) -> tuple[Claim, ...]:
        """Everything it claims or has claimed."""
        return self.claims + self.past


class Ledger(msgspec.Struct, frozen=True):
    """The record."""

    layout: int = _LAYOUT
    groups: dict[str, Claimant] = {}
    readers: dict[str, tuple[str, ...]] = {}
    """Subjects that somebody reads without a group (push): not alarmed as unclaimed."""

    def living(self) -> list[Group]:
        """The groups as the engine is told them."""
        return [
            Group(name, claimant.claims, claimant.lease, claimant.paused, claimant.ordered)
            for name, claimant in self.groups.items()
            if not claimant.removed
        ]

    def claimed(self, subject: str, position: int) -> bool:
        """Whether any group, living or removed, has ever claimed this entry."""
        return any(
            position >= claim.since and matches(claim.filter, subject)
            for claimant in self.groups.values()
            for claim in claimant.ever
        )

    @property
    def claims(self) -> list[Claim]:
        """Everything that any group, living or removed, has ever claimed; without what another claim covers."""
        every = list(dict.fromkeys(claim for claimant in self.groups.values() for claim in claimant.ever))
        wide: dict[str, int] = {}
        for claim in every:
            wide[claim.filter] = min(claim.since, wide.get(claim.filter, claim.since))
        return [
            Claim(filter, since)
            for filter, since in wide.items()
            if not any(other != filter and wide[other] <= since and covers(other, filter) for other in wide)
        ]

    def claimed_since(self, subject: str) -> int | None:
        """From which position on the subject is claimed, None for never."""
        return min((claim.since for claim in self.claims if matches(claim.filter, subject)), default=None)

    def read(self, subject: str) -> bool:
        """Whether a reader has the subject."""
        return any(matches(filter, subject) for filters in self.readers.values() for filter in filters)


class Orphan(msgspec.Struct, frozen=True):
    """A subject that was never claimed, or not from its beginning."""

    subject: str
    count: int
    """Everything that is stored on it."""
    oldest: Entry
    below: int | None
    """Position from which on it is claimed; None for never."""


class Unclaimed(msgspec.Struct, frozen=True):
    """Entries of one subject that nobody has claimed."""

    subject: str
    count: int
    first: int
    """Position of the oldest."""
    since: float
    """When the oldest was stored, seconds since 1970."""


async def load(engine: Engine) -> tuple[Ledger, int]:
    """The ledger and its revision (0: not there yet). Raises `ConfigError` for a layout this version does not know."""
    record = await engine.recall(_KEY)
    if record is None:
        return Ledger(), 0
    layout = msgspec.json.decode(record.value, type=dict).get("layout")
    if layout != _LAYOUT:
        raise ConfigError(
            f"this namespace was written by another version of Tidings (layout {layout}, this one knows {_LAYOUT}): "
            "use that version, or another namespace"
        )
    return msgspec.json.decode(record.value, type=Ledger), record.revision


async def declare(
    engine: Engine,
    wishes: Sequence[Wish],
    *,
    lease: float,
    readers: dict[str, tuple[str, ...]] | None = None,
    app: str = "",
) -> Ledger:
    """Add groups (and readers) to the ledger, in the name of the application, and make sure that the engine has all
    living groups.

    `lease` is that of the groups declared here. Where another process works for one of them it only gets longer:
    shorter than that process believes it would end under its hands.
    Safe from many processes at once; a crash in between is mended by the next declaration of anybody.
    """
    while True:
        ledger, revision = await load(engine)
        wanted = _signed(await _joined(engine, ledger, wishes, readers or {}, lease), wishes, app)
        if (wanted == ledger and revision) or await _write(engine, wanted, revision):
            return await _agree(engine, wanted)


def taken(before: Ledger, wishes: Sequence[Wish], app: str) -> dict[str, str]:
    """Which of these groups another application has declared before, and its name."""
    known = {wish.name: before.groups.get(wish.name) for wish in wishes}
    return {name: old.app for name, old in known.items() if old and not old.removed and old.app not in ("", app)}


async def change(
    engine: Engine, group: str, *, paused: bool | None = None, removed: bool = False, ordered: bool | None = None
) -> None:
    """Pause, resume, remove or order a group. Raises `ConfigError` for one the ledger does not know."""
    while True:
        ledger, revision = await load(engine)
        old = _living(ledger, group)
        now = old.paused if paused is None else paused, old.ordered if ordered is None else ordered
        new = msgspec.structs.replace(old, paused=now[0], removed=removed, ordered=now[1])
        wanted = msgspec.structs.replace(ledger, groups={**ledger.groups, group: new})
        if wanted == ledger or await _write(engine, wanted, revision):
            break
    if removed:
        await engine.forget(group)
    await _agree(engine, wanted)


async def restart(engine: Engine, group: str, *, name: str, filters: Sequence[str]) -> None:
    """Let a group go on as `name` with these filters only, behind everything it has handled. What it claimed stays its
    history: nothing of that looks unclaimed, and nothing comes a second time.

    Raises `ConfigError` for a name that is taken, `Conflict` while the group has messages, dead letters or workers.
    """
    while True:
        ledger, revision = await load(engine)
        old = _living(ledger, group)
        taken = ledger.groups.get(name)
        if name != group and taken is not None:
            raise ConfigError(f"the name {name!r} is taken, by a group that {'was' if taken.removed else 'is'} there")
        # The end of the log is read with the counts: what comes later is the new group's.
        stats = await engine.stats()
        counts = stats.groups.get(group)
        if counts is not None and (counts.pending or counts.dead or counts.pulling):
            raise Conflict(
                f"{group} has {counts.pending} message(s) to handle, {counts.dead} dead letter(s) and {counts.pulling} "
                "worker(s): let it handle them, act on the dead letters, then stop its workers"
            )
        begun = tuple(Claim(filter, stats.last + 1) for filter in filters)
        groups = {**ledger.groups, group: msgspec.structs.replace(old, removed=True)}
        anew = name == group
        groups[name] = msgspec.structs.replace(old, claims=begun, past=old.ever, removed=False, anew=anew)
        wanted = msgspec.structs.replace(ledger, groups=groups)
        if await _write(engine, wanted, revision):
            break
    if name != group:
        await engine.forget(group)
    await _agree(engine, wanted)


async def _agree(engine: Engine, ledger: Ledger) -> Ledger:
    """Make the engine agree with the ledger, as it stands when that is done: who paused or removed a group meanwhile
    has perhaps told the engine before we told it the older state."""
    while True:
        anew = {name: claimant for name, claimant in ledger.groups.items() if claimant.anew and not claimant.removed}
        for name in anew:
            await engine.forget(name)
        await engine.declare(ledger.living())
        now, revision = await load(engine)
        for name, claimant in now.groups.items():
            if claimant.removed and name in ledger.groups and not ledger.groups[name].removed:
                await engine.forget(name)
        if now.living() == ledger.living():
            if not anew:
                return now
            begun = {name: msgspec.structs.replace(now.groups[name], anew=False) for name in anew}
            now = msgspec.structs.replace(now, groups={**now.groups, **begun})
            if await _write(engine, now, revision):
                return now
            now, _ = await load(engine)
        ledger = now


def _living(ledger: Ledger, group: str) -> Claimant:
    found = ledger.groups.get(group)
    if found is None or found.removed:
        known = ", ".join(name for name, claimant in ledger.groups.items() if not claimant.removed) or "none"
        raise ConfigError(f"there is no group {group!r}; there are: {known}")
    return found


async def mend(engine: Engine) -> Ledger:
    """The ledger, after the engine was made to agree with it: groups whose declaration was cut off are declared, and
    those whose removal was cut off are removed."""
    while True:
        ledger, revision = await load(engine)
        ledger = await _agree(engine, ledger) if revision else ledger
        for name in (await engine.stats()).groups:
            claimant = ledger.groups.get(name)
            if claimant is not None and claimant.removed:
                await engine.forget(name)
        now, _ = await load(engine)
        if now == ledger:
            return ledger


async def orphans(engine: Engine, ledger: Ledger) -> list[Orphan]:
    """The subjects on which something is stored that no group has ever claimed, a reader or not."""
    first = await engine.read([">"], 0, 1)
    found = []
    for subject, count in (await engine.subjects(">")).items():
        since = ledger.claimed_since(subject)
        if since is not None and first and since <= first[0].position:
            continue
        oldest = await engine.read([subject], 0, 1)
        if oldest and (since is None or oldest[0].position < since):
            found.append(Orphan(subject, count, oldest[0], since))
    return found


async def unclaimed(engine: Engine, ledger: Ledger) -> list[Unclaimed]:
    """What is stored and nobody has ever claimed, by subject; subjects that a reader has are left out."""
    found = []
    for orphan in await orphans(engine, ledger):
        if not ledger.read(orphan.subject):
            count = orphan.count
            if orphan.below is not None:
                count = await _count_below(engine, orphan.subject, orphan.below)
            found.append(Unclaimed(orphan.subject, count, orphan.oldest.position, orphan.oldest.time))
    return found


async def explain(engine: Engine, ledger: Ledger, entry: Entry) -> dict[str, GroupState]:
    """For each group of the ledger, what it has to do with the entry, and why."""
    states = await engine.states(entry)
    answer = {}
    for name, claimant in ledger.groups.items():
        if claimant.removed:
            answer[name] = GroupState("not wanted", "the group was removed")
            continue
        state = states.get(name)
        if state is None or state.state == "not wanted":
            state = GroupState("not wanted", _why_not(ledger, name, claimant, entry))
        answer[name] = state
    return answer


def _why_not(ledger: Ledger, name: str, claimant: Claimant, entry: Entry) -> str:
    claims = [claim for claim in claimant.claims if matches(claim.filter, entry.subject)]
    if not claims:
        return f"it listens to {', '.join(c.filter for c in claimant.claims)}"
    since = min(claim.since for claim in claims)
    others = [
        other
        for other, theirs in ledger.groups.items()
        if other != name and any(c.wants(entry.subject, entry.position) for c in theirs.claims)
    ]
    had = f", because {' and '.join(others)} had claimed the subject" if others else ""
    if entry.position < since:
        return f"it began with position {since}, after this message{had}"
    return f"it was declared later{had}"


def _signed(ledger: Ledger, wishes: Sequence[Wish], app: str) -> Ledger:
    """The ledger that remembers who has declared the groups."""
    signed = {wish.name: msgspec.structs.replace(ledger.groups[wish.name], app=app) for wish in wishes if app}
    return msgspec.structs.replace(ledger, groups={**ledger.groups, **signed})


async def _joined(
    engine: Engine, ledger: Ledger, wishes: Sequence[Wish], readers: dict[str, tuple[str, ...]], lease: float
) -> Ledger:
    """The ledger with the wishes added. The log's end is read first: what is stored later belongs to the new claims."""
    groups = dict(ledger.groups)
    last: int | None = None
    for wish in wishes:
        old = groups.get(wish.name)
        if old is None or old.removed:
            old = Claimant((), past=() if old is None else old.ever)
        claims = list(old.claims)
        for filter in wish.filters:
            if any(covers(claim.filter, filter) for claim in claims):
                continue
            if last is None:
                last = (await engine.stats()).last
            claims.append(await _begin(engine, ledger, wish, filter, last))
        emits = tuple(dict.fromkeys((*old.emits, *wish.emits)))
        ordered = wish.ordered or (old.ordered and not old.removed)
        kept = old.lease if lease < old.lease and await _at_work(engine, wish.name) else lease
        groups[wish.name] = msgspec.structs.replace(
            old, claims=tuple(claims), emits=emits, removed=False, ordered=ordered, lease=kept
        )
    merged = dict(ledger.readers)
    for name, filters in readers.items():
        merged[name] = tuple(dict.fromkeys((*merged.get(name, ()), *filters)))
    return msgspec.structs.replace(ledger, groups=groups, readers=merged)


async def _at_work(engine: Engine, group: str) -> bool:
    """Whether somebody asks for messages of the group, or has some in hand."""
    counts = (await engine.stats()).groups.get(group)
    return counts is not None and bool(counts.pulling or counts.leased)


async def _begin(engine: Engine, ledger: Ledger, wish: Wish, filter: str, last: int) -> Claim:
    """Where a new claim starts, by the group's start policy; `ledger` is the one before this declaration."""
    if wish.start == "latest":
        return Claim(filter, last + 1)
    if wish.start == "earliest":
        return Claim(filter, 1)
    if isinstance(wish.start, datetime):
        return Claim(filter, await position_at(engine, filter, wish.start.timestamp(), last) or last + 1)
    older = [
        claim
        for name, claimant in ledger.groups.items()
        for claim in (claimant.ever if name != wish.name or claimant.removed else claimant.past)
        if overlap(claim.filter, filter)
    ]
    since = await _first_unclaimed(engine, filter, older)
    if since is None:
        return Claim(filter, last + 1)
    skip = tuple(Skip(claim.filter, claim.since, last) for claim in older if claim.since <= last)
    return Claim(filter, since, skip)


async def position_at(engine: Engine, filter: str, time: float, last: int) -> int | None:
    """Position of the first entry on `filter`, up to position `last`, that was stored at `time` or later.

    Halves the log with one small read at a time, some twenty for a million entries.
    """
    found, low, high = None, 0, last
    while low < high:
        middle = (low + high) // 2
        page = await engine.read([filter], middle, 1)
        if not page or page[0].position > last:
            high = middle
        elif page[0].time >= time:
            found, high = page[0].position, middle
        else:
            low = page[0].position
    return found


async def _first_unclaimed(engine: Engine, filter: str, older: list[Claim]) -> int | None:
    """Position of the first entry on `filter` that no older claim covers."""
    first = await engine.read([filter], 0, 1)
    if not first:
        return None
    entry = first[0]
    if not any(claim.since <= entry.position and matches(claim.filter, entry.subject) for claim in older):
        return entry.position
    if any(claim.since <= entry.position and covers(claim.filter, filter) for claim in older):
        return None
    found: list[int] = []
    for subject in await engine.subjects(filter):
        since = min((claim.since for claim in older if matches(claim.filter, subject)), default=None)
        oldest = await engine.read([subject], 0, 1)
        if oldest and (since is None or oldest[0].position < since):
            found.append(oldest[0].position)
    return min(found, default=None)


async def _count_below(engine: Engine, subject: str, position: int) -> int:
    count, after = 0, 0
    while page := await engine.read([subject], after, 1000):
        below = sum(entry.position < position for entry in page)
        count += below
        if below < len(page):
            break
        after = page[-1].position
    return count


async def _write(engine: Engine, ledger: Ledger, revision: int) -> bool:
    """Whether the write won; a lost answer counts as lost, and the next round finds out by reading."""
    try:
        await engine.register(_KEY, msgspec.json.encode(ledger), revision)
    except Conflict:
        await asyncio.sleep(0)
        return False
    except NotAllowed:
        raise
    except EngineError:
        now, _ = await load(engine)
        return now == ledger
    return True
