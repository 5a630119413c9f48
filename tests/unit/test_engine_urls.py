"""Engine URLs: what they say, and the sentence for those that say nothing."""

from __future__ import annotations

import pytest

from tidings.engines import parse
from tidings.errors import ConfigError


@pytest.mark.parametrize(("option", "replicas"), [("", None), ("?replicas=1", 1), ("?replicas=3", 3)])
def test_copies_are_chosen_in_the_url(option: str, replicas: int | None) -> None:
    """`?replicas=` says in how many copies a new namespace is kept; without it the engine decides."""
    place = parse(f"nats://u:p@one,two:4223/shop{option}")
    assert place.replicas == replicas
    assert (place.servers, place.namespace) == (("nats://one", "nats://two:4223"), "shop")
    assert (place.user, place.password) == ("u", "p")


@pytest.mark.parametrize("option", ["?replicas=2", "?replicas=", "?replica=3", "?replicas=3&tls=1", "?x"])
def test_unknown_options_are_refused(option: str) -> None:
    """An option that is not known, or has no value that can be, is named, with what can be written."""
    with pytest.raises(ConfigError, match=r"\?replicas=1"):
        parse(f"nats://one/shop{option}")


@pytest.mark.parametrize("url", ["nats:/localhost", "nats:localhost", "tls:/one/shop"])
def test_a_slash_that_is_missing_is_told(url: str) -> None:
    """It names no host that somebody could mean."""
    with pytest.raises(ConfigError, match=r"has no (nats|tls):// in front of its host"):
        parse(url)
