"""The Redis engine: Redis from 7.0 on and Valkey, through one library of functions in the server."""

from .address import Address, Durability
from .engine import RedisEngine
from .safety import probe

__all__ = ["Address", "Durability", "RedisEngine", "probe"]
