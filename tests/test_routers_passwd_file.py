"""The passwd-file source: Dovecot's extra fields say where accounts live."""

import pytest
from twisted.internet.defer import execute
from twisted.internet.task import Clock

from mailroute import routers
from mailroute.events import Address, Change, Client, LoginRefused, Lookup, Reason, Route, Security
from mailroute.routers import BadOption, SourceContext

PASSWORD = "{SHA512-CRYPT}$6$x$y"


def made(tmp_path, *lines, **options):
    (tmp_path / "users").write_text("".join(f"{line}\n" for line in lines))
    context = SourceContext(tmp_path, frozenset({"east", "west"}), str.lower, Clock(), execute)
    return routers.source("passwd-file").router({"file": "users", **options}, context)


def lookup(user="alice", source="192.0.2.7"):
    client = Client("s", None if source is None else Address(source, 1), None)
    return Lookup(user, "imap", client)


@pytest.mark.parametrize(
    ("extra", "route"),
    [
        ("proxy=y host=10.0.0.5", Route("east", change=Change("10.0.0.5"))),
        ("proxy host=west", Route("west")),
        ("host=10.0.0.5 port=1143", Route("east", change=Change("10.0.0.5", 1143))),
        ("host=west destuser=a.smith", Route("west", "a.smith")),
        ("host=west user=smith", Route("west", "smith")),
        ("host=west user=smith destuser=a.smith", Route("west", "a.smith")),
        ("user=smith", Route("east", "smith")),
        ("host=west pass=s3cret", Route("west", password=b"s3cret")),
        ("host=west pass=s3cret master=root", Route("west", password=b"s3cret", master="root")),
        ("host=h1 ssl=yes", Route("east", change=Change("h1", security=Security.TLS))),
        ("host=h1 starttls=any-cert", Route("east", change=Change("h1", security=Security.STARTTLS))),
        ("host=h1 ssl=no", Route("east", change=Change("h1"))),
        ("host=west forward_shard=7", Route("west", forward=(("shard", "7"),))),
        ("host=west proxy_timeout=5 userdb_quota_rule=*:bytes=1 nodelay", Route("west")),
        ("", Route("east")),
        ("userdb_mail=maildir:~/m", Route("east")),
    ],
)
def test_extra_fields_become_a_route(tmp_path, extra, route):
    """What Dovecot's proxy would do with a line is what mailroute does."""
    router = made(tmp_path, f"Alice:{PASSWORD}::::::{extra}", backend="east")
    assert router.route(lookup()) == route
    assert router.route(lookup("bob")) is None


def test_without_a_backend_only_who_has_a_host_is_known(tmp_path):
    """The other lines are of accounts that live somewhere else."""
    router = made(tmp_path, "alice:x", "bob:x::::::host=west", "", "# a comment")
    assert router.route(lookup()) is None
    assert router.route(lookup("bob")) == Route("west")


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        ("nologin=y reason=moving", Reason.CONTACT_ADMIN),
        ("nologin", Reason.CONTACT_ADMIN),
        ("user_disabled", Reason.CONTACT_ADMIN),
        ("pass_expired=yes", Reason.EXPIRED),
        ("temp", Reason.UNAVAILABLE),
    ],
)
def test_a_line_may_refuse(tmp_path, extra, reason):
    """An account may be closed, for the reasons that Dovecot has."""
    router = made(tmp_path, f"alice:x::::::{extra}", backend="east")
    with pytest.raises(LoginRefused) as caught:
        router.route(lookup())
    assert caught.value.refusal.reason is reason


@pytest.mark.parametrize(
    ("source", "allowed"),
    [
        ("192.0.2.7", True),
        ("::ffff:192.0.2.9", True),
        ("2001:db8::5", True),
        ("198.51.100.1", False),
        (None, False),
    ],
)
def test_from_where_a_user_may_come(tmp_path, source, allowed):
    """allow_nets holds here too, or a proxy in front would open what Dovecot keeps shut."""
    router = made(tmp_path, "alice:x::::::host=west allow_nets=192.0.2.0/24,2001:db8::/32")
    if allowed:
        assert router.route(lookup(source=source)) == Route("west")
        return
    with pytest.raises(LoginRefused) as caught:
        router.route(lookup(source=source))
    assert caught.value.refusal.reason is Reason.AUTHENTICATION_FAILED


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("alice", "a line is name:password:uid"),
        (":x", "a line is name:password:uid"),
        ("alice:x::::::host=west port=0", "alice: port must be from 1 to 65535, not 0"),
        ("alice:x::::::host=a/b", "alice: host must be"),
        ("alice:x::::::host=west ssl=maybe", "alice: ssl must be yes, any-cert or no"),
        ("alice:x::::::host=west allow_nets=nowhere", "does not appear to be an IPv4 or IPv6 network"),
        ("alice:\x01", "a control character"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, why):
    """Who starts mailroute is told the file, the line and the reason."""
    with pytest.raises(BadOption, match=why) as caught:
        made(tmp_path, "bob:x", line, backend="east")
    assert "users:2: " in str(caught.value)


def test_no_password_is_shown(tmp_path):
    """Neither the hash nor the password for the backend is in anything that is printed."""
    router = made(tmp_path, f"alice:{PASSWORD}::::::host=west pass=s3cret")
    assert "s3cret" not in f"{router}{router!r}{router.users!r}"
    with pytest.raises(BadOption) as caught:
        made(tmp_path, "alice:h4sh::::::host=west pass=s3cret port=0")
    assert "s3cret" not in str(caught.value)
    assert "h4sh" not in str(caught.value)
