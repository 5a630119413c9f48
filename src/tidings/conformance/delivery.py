"""From `publish` to `pull`."""

from __future__ import annotations

import asyncio
import random

import pytest

