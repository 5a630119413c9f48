"""Runs the to-do system (the package `todo`) as it would run in production: a process for the web application, one or
more for each group of handlers, and the broker, all in one terminal and with everything stored in one folder."""

from __future__ import annotations

from .plan import Demo
from .runner import run

__all__ = ["Demo", "run"]
