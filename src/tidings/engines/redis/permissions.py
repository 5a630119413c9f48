"""What a user of one namespace has to be allowed, as a line for the server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from .live import channels_of

_ASKED: Final = (
    *("ping", "info", "select", "config|get", "client|setname", "client|setinfo"),
    *("subscribe", "psubscribe", "unsubscribe", "punsubscribe", "pubsub|numsub", "fcall", "function|load"),
)
"""What connections of ours ask for themselves."""
_CALLED: Final = (
    *("publish", "time", "get", "set", "exists", "del", "unlink"),
    *("hget", "hmget", "hset", "hdel", "hgetall", "hexists", "hincrby"),
    *("zadd", "zrem", "zscore", "zcard", "zrange", "zrangebyscore", "xadd", "xdel", "xlen", "xrange", "xtrim"),
    *("sadd", "srem", "smembers", "lrem", "rpush", "llen", "lmove"),
)
"""What our functions call, which the server allows to nobody who may not call it himself."""


def rule(namespace: str, live: Sequence[str] = ()) -> str:
    """One `ACL SETUSER`. `live` are the filters of the application's channels; without any, all are allowed."""
    heard = [f"{{{namespace}}}:*", *(name for filter in live for name in channels_of(filter))] if live else ["*"]
    words = ["ACL SETUSER", namespace, "on", ">SECRET", "resetkeys", f"~{namespace}", f"~{{{namespace}}}:*"]
    words += ["resetchannels", *(f"&{channel}" for channel in heard), "-@all"]
    return " ".join([*words, *(f"+{command}" for command in (*_ASKED, *_CALLED))])
