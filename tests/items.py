"""A small shop for tests of the database: an order becomes a row, and says so."""

from __future__ import annotations

from sqlalchemy import UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

import tidings


class New(tidings.Event, subject="events.new"):
    number: int


class Saved(tidings.Event, subject="events.saved"):
    number: int
    id: int


class Base(DeclarativeBase):
    pass


class Item(Base):
    __tablename__ = "app_items"
    __table_args__ = (UniqueConstraint("number"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    number: Mapped[int]
    seen: Mapped[int | None]


class Counter(Base):
    __tablename__ = "app_counters"
    id: Mapped[int] = mapped_column(primary_key=True)
    value: Mapped[int]
