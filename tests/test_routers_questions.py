"""What a program or a web server is asked in JSON."""

from mailroute.events import Credentials, Lookup
from mailroute.proofs import Proof
from mailroute.routers.questions import question
from mailroute.testing import CLIENT


def shown(credentials: Credentials, *, with_password: bool = True) -> dict[str, object]:
    """Return what a question for alice@example.org says besides where she comes from."""
    asked = question(Lookup("alice@example.org", "imap", CLIENT, credentials), with_password=with_password)
    return {key: value for key, value in asked.items() if key not in ("protocol", "client", "session", "tls")}


def test_two_names_differ_only_if_one_user_acts_for_another():
    """Who authenticates is named as the user is, unless the client wants somebody else's account."""
    own = shown(Credentials("PLAIN", b"alice", b"secret"))
    assert own == {
        "user": "alice@example.org",
        "authenticates_as": "alice@example.org",
        "password": "secret",
    }
    other = shown(Credentials("PLAIN", b"bob", b"secret", b"alice"))
    assert other == {"user": "alice@example.org", "authenticates_as": "bob", "password": "secret"}


def test_a_token_is_no_password():
    """What is no password is never called one, and nothing is sent that was not asked for."""
    token = Credentials("XOAUTH2", b"alice", b"secret", proof=Proof.TOKEN)
    assert shown(token) == {
        "user": "alice@example.org",
        "authenticates_as": "alice@example.org",
        "token": "secret",
    }
    assert shown(token, with_password=False) == {"user": "alice@example.org"}
