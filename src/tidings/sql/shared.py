"""One transaction for many messages: each has a session of its own, and all their new objects are inserted together.

A handler that only adds objects never gets to the database itself: they are noted, and the transaction's own session
inserts them with those of all others, in a few statements. That is most of the speed of a hand-written bulk insert.
Anything else that a handler asks of its session makes it an ordinary one, on the transaction's connection.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any, Final, TypeAlias

from sqlalchemy import Connection, event, inspect
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import Session

from tidings.errors import ConfigError
from tidings.unit import Interleaved, Meet, Member

from .savepoint import Names, Savepoint
from .store import Store
from .transaction import Transaction, guard
from .trouble import is_transient
from .unit import SqlUnit

Rows: TypeAlias = "tuple[SessionMember, list[object]]"
"""What a member has added."""

_MEMBER: Final = "_tidings_member"
_NOTED: Final = {"add": "_add", "add_all": "_add_all", "flush": "_flush"}
_FEW: Final = 4
"""Messages of which each is tried by itself when their rows are refused."""
_SOME: Final = 2
"""Refused ones that are looked for among many."""


class SqlShared(SqlUnit):
    """`Shared` for SQLAlchemy. Cancelling any call is safe: the transaction is rolled back on leaving it."""

    def __init__(
        self,
        transaction: Transaction,
        store: Store,
        make: Callable[[], AsyncSession | Session],
        annotation: type,
    ) -> None:
        super().__init__(transaction, store, None)
        self._make = make
        self._annotation = annotation
        self._core: Any = None
        self._savepoint: Savepoint | None = None
        self._untouched = False
        """Whether nothing has happened since the savepoint."""
        self._ready: list[Rows] = []
        """Added by members that have joined or meet, not yet in the transaction's own session."""
        self.refused: list[tuple[Member, Exception]] = []
        self.refusals = 0
        self._flushing = False
        self._own: Session
        self.busy = False
        self.interleaved = False
        self.broken = False

    async def open(self) -> None:
        """Once, before anything else."""
        guarded = await self._transaction.hand_out(self._annotation)
        if issubclass(self._annotation, AsyncConnection | Connection):
            self._core = guarded
        await self._transaction.with_session(self._listen)

    def member(self, meet: Meet | None) -> Member:
        """Begin the next one; see `Shared.member`."""
        if self._core is not None:
            return CoreMember(self._core, self._transaction)
        return SessionMember(self, self._make(), self._transaction, meet)

    def left(self, member: SessionMember, objects: list[object]) -> None:
        """A member leaves these to be inserted."""
        if objects:
            self._ready.append((member, objects))

    def refuse(self) -> Interleaved:
        """Note that a member reads what it must not see."""
        self.interleaved = True
        return Interleaved()

    async def mark(self) -> None:
        """Set a savepoint; see `Shared.mark`."""
        self.refused = []
        self._savepoint = await self._transaction.with_session(lambda session: Savepoint(session, self.connection))
        self._untouched = True

    async def keep(self) -> None:
        """Leave what was done since `mark`; see `Shared.keep`."""
        point = self._savepoint
        assert point is not None, "keep() belongs to a mark()"
        await self._transaction.with_session(lambda _: point.keep())
        self._savepoint = None

    async def undo(self) -> None:
        """Take back what was done since `mark`; see `Shared.undo`."""
        point, self._savepoint, self._ready = self._savepoint, None, []
        assert point is not None, "undo() belongs to a mark()"
        await self._transaction.with_session(lambda _: point.undo())

    async def flush(self, met: Sequence[Member]) -> None:
        """Insert everything; see `Shared.flush`."""
        members = [member for member in met if isinstance(member, SessionMember)]
        if len(members) == 1 and not self._savepoint:
            await members[0].flush_alone()
            return
        for member in members:
            member.hand_over()
        if self._ready:
            await self._transaction.with_session(self._flush)

    async def commit(self) -> None:
        """Insert what is left and commit."""
        if self._ready:
            await self._transaction.with_session(self._flush)
        await super().commit()

    def _listen(self, session: Session) -> None:
        self._own = session
        self.connection = session.connection()
        Names(self.connection)
        event.listen(session, "do_orm_execute", self._stray)
        event.listen(self.connection, "before_cursor_execute", self._before)
        event.listen(self.connection, "after_cursor_execute", self._after)

    def _flush(self, session: Session) -> None:
        ready, self._ready = self._ready, []
        self._flushing = True
        try:
            if self._savepoint:
                self._insert_good(session, ready)
            else:
                _insert(session, ready)
        except BaseException:
            self.broken = True
            raise
        finally:
            self._flushing = False

    def _insert_good(self, session: Session, ready: list[Rows]) -> None:
        """All but those that the database refuses."""
        if self._untouched and self._savepoint:
            error = self._savepoint.first(lambda: _insert(session, ready))
        else:
            error = self._refusal_of(session, ready)
        if error is not None:
            self._find_refused(session, ready, error)

    def _find_refused(self, session: Session, ready: list[Rows], error: Exception) -> None:
        """Some of these are refused. One or two are looked for; where there are more, or few are left, each is tried by
        itself, which is less."""
        for _ in range(_SOME):
            if len(ready) <= _FEW:
                break
            rest = self._refused_one(session, ready)
            more = self._refusal_of(session, rest) if rest else None
            if more is None:
                return
            ready, error = rest, more
        if len(ready) == 1:
            self._refuse_rows(ready[0][0], error)
        else:
            self._insert_singly(session, ready)

    def _refused_one(self, session: Session, ready: list[Rows]) -> list[Rows]:
        """Find one by halves, and insert the halves that are good before it. Returns what was not tried: what stands
        behind, of which nothing is known."""
        rest: list[Rows] = []
        error: Exception | None = None
        while len(ready) > 1:
            middle = len(ready) // 2
            error = self._refusal_of(session, ready[:middle])
            if error is None:
                ready = ready[middle:]
            else:
                ready, rest = ready[:middle], ready[middle:] + rest
        if error is not None or (error := self._refusal_of(session, ready)) is not None:
            self._refuse_rows(ready[0][0], error)
        return rest

    def _insert_singly(self, session: Session, ready: list[Rows]) -> None:
        for rows in ready:
            if (error := self._refusal_of(session, [rows])) is not None:
                self._refuse_rows(rows[0], error)

    @staticmethod
    def _refusal_of(session: Session, ready: list[Rows]) -> Exception | None:
        """Insert them, or say why the database takes none of them."""
        try:
            with session.begin_nested():
                _insert(session, ready)
        except Exception as error:
            if is_transient(error):
                raise
            return error
        return None

    def _refuse_rows(self, member: SessionMember, error: Exception) -> None:
        self.refusals += 1
        if member.joined:
            self.refused.append((member, error))
        else:
            member.refusal = error

    def _before(self, *_: Any) -> None:
        """Whoever reads is to see what those before it have left."""
        if self._ready and not self._flushing:
            self._flush(self._own)
        self._untouched = False
        self.busy = True

    def _after(self, *_: Any) -> None:
        self.busy = False

    def _stray(self, state: Any) -> None:
        """An object that was inserted with those of others loads something, outside of a flush."""
        if not self._flushing:
            raise self.refuse()


def _insert(session: Session, ready: Sequence[Rows]) -> None:
    for _, objects in ready:
        session.add_all(objects)
    session.flush()
    for member, _ in ready:
        member.written = True


class CoreMember:
    """A handler that takes the connection itself: nothing is left to others."""

    pure = False
    blind = False

    def __init__(self, connection: Any, transaction: Transaction) -> None:
        self.connection = connection
        self._transaction = transaction

    async def run(self, function: Callable[..., Any], *args: Any) -> Any:
        return await self._transaction.run(function, *args)

    async def join(self) -> None:
        pass


class SessionMember:
    """A handler that takes a session. Until it is asked for more than `add`, `add_all` and `flush`, the session is a
    stand-in (`_stand_in`) that only notes.

    A group has many of them: with its end each lets go of its session, and nothing of it waits for the garbage
    collector."""

    def __init__(
        self, shared: SqlShared, session: AsyncSession | Session, transaction: Transaction, meet: Meet | None
    ) -> None:
        self.connection: Any = session
        self._shared = shared
        self._transaction = transaction
        self._class: type[Any] = type(session)
        self._meet = meet if isinstance(session, AsyncSession) else None
        self._added: list[object] = []
        self._real = False
        self._met = False
        self.written = False
        """Whether rows of it are in the transaction."""
        self.joined = False
        self.refusal: Exception | None = None
        """What the database has said of its rows."""
        vars(session)[_MEMBER] = self
        object.__setattr__(session, "__class__", _stand_in(self._class))  # type: ignore[arg-type]

    @property
    def pure(self) -> bool:
        return not (self._real or self.written)

    @property
    def blind(self) -> bool:
        return not self._real

    async def run(self, function: Callable[..., Any], *args: Any) -> Any:
        return await self._transaction.run(function, *args)

    async def join(self) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.joined = True
        if self._real:
            await self._transaction.with_session(self._end)
        else:
            self._hand_over()
        self.connection = self._meet = None

    def noted(self, name: str) -> Any:
        """What the stand-in has under this name, or None; raises `ConfigError` when the handler has ended."""
        if self.joined:
            raise ConfigError(
                "the session of a handler is over with it: a task that it leaves behind needs a session of its own"
            )
        if name not in _NOTED or (name == "flush" and self._meet is None):
            return None
        return getattr(self, _NOTED[name])

    def hand_over(self) -> None:
        """What it has added is flushed with that of others."""
        self._met = True
        self._hand_over()

    async def flush_alone(self) -> None:
        """Nobody else waits for the flush: it is an ordinary one, and the session an ordinary one from now on."""
        if self._met:
            self.hand_over()
            await self._shared.flush(())
            return
        self.become_real()
        await self._transaction.with_session(self._flush_own)

    def become_real(self) -> None:
        """From now on an ordinary session; raises `Interleaved` if it has shared a flush."""
        if self._met:
            raise self._shared.refuse()
        object.__setattr__(self.connection, "__class__", self._class)
        del vars(self.connection)[_MEMBER]
        self._real = True
        session = self._sync
        session.bind = self._shared.connection
        session.join_transaction_mode = "rollback_only"
        session.twophase = False
        if not session.in_transaction():
            session.begin()
        guard(session)
        session.add_all(self._added)

    @property
    def _sync(self) -> Session:
        session: AsyncSession | Session = self.connection
        return session.sync_session if isinstance(session, AsyncSession) else session

    def _flush_own(self, _: Session, objects: Sequence[Any] | None = None) -> None:
        self._sync.flush(objects)

    def _end(self, _: Session) -> None:
        session = self._sync
        session.flush()
        type(session).close(session)

    def _add(self, instance: object, _warn: bool = True) -> None:
        if self._is_new(instance):
            self._added.append(instance)
        else:
            self.become_real()
            self.connection.add(instance)

    def _add_all(self, instances: Iterable[object]) -> None:
        for instance in instances:
            self.connection.add(instance)

    @staticmethod
    def _is_new(instance: object) -> bool:
        state = inspect(instance, raiseerr=False)
        return state is not None and bool(getattr(state, "transient", False))

    async def _flush(self, objects: Sequence[Any] | None = None) -> None:
        if objects is not None:
            self.become_real()
            await self._transaction.with_session(self._flush_own, objects)
        elif self._added:
            assert self._meet is not None
            await self._meet(self)
            if self.refusal is not None:
                raise self.refusal

    def _hand_over(self) -> None:
        self._shared.left(self, self._added)
        self._added = []


@cache
def _stand_in(real: Any) -> type:
    """A subclass whose instances become ordinary ones at the first thing they cannot only note."""

    def get(self: Any, name: str) -> Any:
        member: SessionMember = object.__getattribute__(self, "__dict__")[_MEMBER]
        noted = member.noted(name)
        if noted is not None:
            return noted
        member.become_real()
        return getattr(self, name)

    def put(self: Any, name: str, value: Any) -> None:
        object.__getattribute__(self, "__dict__")[_MEMBER].become_real()
        setattr(self, name, value)

    def contains(self: Any, instance: object) -> bool:
        object.__getattribute__(self, "__dict__")[_MEMBER].become_real()
        return instance in self

    def every(self: Any) -> Any:
        object.__getattribute__(self, "__dict__")[_MEMBER].become_real()
        return iter(self)

    methods = {"__getattribute__": get, "__setattr__": put, "__contains__": contains, "__iter__": every}
    return type(real.__name__, (real,), {"__slots__": (), "__module__": real.__module__, **methods})
