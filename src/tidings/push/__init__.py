"""Push: completion events to browsers, by server-sent events that resume.

    engine.read ──> Hub (one a process: what was read last is kept) ──> a stream a browser

The id of each event is its place in the log, so a browser that reconnects (with the `Last-Event-ID` it sends by itself)
is given what it missed, from any web process. One process reads the log once, however many browsers it has. A browser
has no queue of its own, only a position: one that is slow reads from the log what is no longer kept here, and one that
reads nothing is dropped (`wires`, `windows`). A stream ends by itself after some minutes, so that who may see it is
asked again; the browser comes back and misses nothing.

    …/             the stream; also at the endpoint's own address, as of `add_route("/push", bus.push(…))`
    …/tidings.js   the module for pages: one stream for all tabs of a browser
    …/outcome      what has become of a message: `?id=…&position=…`

Format of the stream: `event:` is the subject, `id:` the place, `data:` one line of JSON
`{"id", "subject", "time", "position", "correlation", "causation", "data"}`. Three more events: `ready` opens each
stream and says whether it was `resumed`; `reset` says that something may have been missed: reload what is shown;
`outcome` says that a group has failed on a message that one of the events should have come of.
"""

from __future__ import annotations

from .app import Push, User, Visible

__all__ = ["Push", "User", "Visible"]
