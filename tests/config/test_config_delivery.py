"""What the configuration may say where mail is delivered, and what means nothing there."""

from __future__ import annotations

import pytest
from twisted.internet import reactor

from mailroute import config

BACKEND = {
    "imap": "tcp:10.0.0.1:143",
    "lmtp": "tcp:10.0.0.1:24",
    "smtp": "tcp:10.0.0.1:25",
    "submission": "tcp:10.0.0.1:587",
    "security": "none",
}


def build(protocol: str, backend: dict[str, object] | None = None, **keys: object) -> config.Settings:
    listener = {"protocol": protocol, "endpoint": "tcp:2424", "security": "none", **keys}
    return config.build(
        reactor,
        listen=[listener],
        backend={"east": BACKEND | (backend or {})},
        route=[{"source": "default", "backend": "east"}],
    )


@pytest.mark.parametrize(
    ("protocol", "keys", "key"),
    [
        ("imap", {"split": True}, "split"),
        ("imap", {"host_name": "mx.example"}, "host_name"),
        ("submission", {"split": True}, "split"),
        ("lmtp", {"split": True}, "split"),
        ("lmtp", {"authenticate": "memory:alice:wonderland"}, "authenticate"),
        ("smtp", {"cleartext_login": True}, "cleartext_login"),
        ("smtp", {"mechanisms": []}, "mechanisms"),
        ("lmtp", {"capabilities": ["BINARYMIME"]}, "capabilities"),
    ],
)
def test_keys_that_mean_nothing_are_refused(protocol, keys, key):
    """A key that would do nothing is an error, which names it and says what to do."""
    with pytest.raises(config.ConfigError) as error:
        build(protocol, **keys)
    [problem] = error.value.problems
    assert problem.key == f"listen[1].{key}"
    assert problem.message.endswith(": remove it")


def test_what_will_be_done_is_told():
    """The sentences say where mail is taken, and what becomes of recipients on several backends."""
    told = config.describe(build("lmtp"))[0]
    assert told == (
        "Takes mail by lmtp on tcp:2424: without TLS; a message goes to all its recipients' backends."
    )
    assert "asked for again" in config.describe(build("smtp"))[0]
    assert "all its recipients" in config.describe(build("smtp", split=True))[0]


def test_nobody_logs_in():
    """A backend's way of logging in is no danger to a listener where nobody does."""
    assert build("lmtp", {"login": "none"}).listeners[0].protocol.name == "lmtp"


def test_where_users_submit_mail_mailroute_has_a_name_too():
    """A listener whose protocol tells it may say what mailroute calls itself, though nothing is delivered."""
    settings = build("submission", host_name="mail.example")
    assert settings.listeners[0].host_name == "mail.example"
