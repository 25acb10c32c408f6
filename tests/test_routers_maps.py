"""Maps of other proxies, as the table source reads them."""

import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import execute
from twisted.internet.task import Clock

from mailroute import routers
from mailroute.events import Change, Lookup, Route
from mailroute.routers import BadAnswer, BadOption, SourceContext
from mailroute.routers.maps import _perdition_words
from mailroute.testing import CLIENT


def made(folder, text, form, **options):
    (folder / "map").write_text(text)
    context = SourceContext(folder, frozenset({"east", "west"}), str.lower, Clock(), execute)
    options = {"file": "map", "format": form, "backend": "east", **options}
    return routers.source("table").router({key: value for key, value in options.items() if value}, context)


def route(router, user):
    return router.route(Lookup(user, "imap", CLIENT))


def at(host, port=None, name=None):
    return Route("east", name, change=Change(host, port))


POPMAP = """
# a comment
horms:foo.bar:110
Jain:jane@foo.bar
tom:west
tim:t@im@west
six:[2001:db8::1]:143
"""


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ("horms", at("foo.bar", 110)),
        ("jain", at("foo.bar", None, "jane")),
        ("tom", Route("west")),
        ("tim", Route("west", "t@im")),
        ("six", at("2001:db8::1", 143)),
        ("nobody", None),
    ],
)
def test_a_popmap(tmp_path, user, expected):
    """The lines of perditiondb(5): a host, a port, a name there; a backend's name is that backend."""
    assert route(made(tmp_path, POPMAP, "perdition"), user) == expected


REGEX = r"""
^[a-k]: localhost   # the first half
^user: user2@localhost:110
(.*)@(.*): $1_$2@localhost
^[[:digit:]]+$ west
^w\ x: west
'^q y': west
^long \
    west
"""


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ("bob", at("localhost")),
        ("user7", at("localhost", 110, "user2")),
        ("user@x.y.z.de", at("localhost", 110, "user2")),
        ("zoe@x.y.z.de", at("localhost", None, "zoe_x.y.z.de")),
        ("12345", Route("west")),
        ("w x", Route("west")),
        ("q y", Route("west")),
        ("long", Route("west")),
        ("zoe", None),
    ],
)
def test_a_popmap_of_expressions(tmp_path, user, expected):
    """The first expression that is found anywhere in the name counts; groups get into the name."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert route(made(tmp_path, REGEX, "perdition-regex"), user) == expected


def test_what_an_expression_makes_is_checked(tmp_path):
    """A name that makes a place that is none refuses that login alone."""
    router = made(tmp_path, "(.*)@(.*): $1@$2\n", "perdition-regex")
    assert route(router, "a@host") == at("host", None, "a")
    for user in ("a@b c", "a@", "@b", "a@b:99999", "a@-"):
        with pytest.raises(BadAnswer):
            route(router, user)


NGINX = """
# included by map $user $backend { ... }
default          west;
alice            10.0.0.1:143;
"Bob@Example.org" east;
'carol'  [2001:db8::1]:143; # six
~^d.*$           10.0.0.2:143;
~*^E(?<rest>.*)$ 10.0.0.3:143;
\\~tilde          10.0.0.4:143;
"""


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ("alice", at("10.0.0.1", 143)),
        ("bob@example.org", Route("east")),
        ("carol", at("2001:db8::1", 143)),
        ("dora", at("10.0.0.2", 143)),
        ("erna", at("10.0.0.3", 143)),
        ("~tilde", at("10.0.0.4", 143)),
        ("frank", Route("west")),
    ],
)
def test_a_map_of_nginx(tmp_path, user, expected):
    """Whole names first, then expressions in order, then the default."""
    assert route(made(tmp_path, NGINX, "nginx"), user) == expected


@pytest.mark.parametrize(
    ("form", "line", "why"),
    [
        ("perdition", "alice", r"a line is key:\[name@\]host"),
        ("perdition", "alice:", "names no host"),
        ("perdition", "alice:@host", "is no place"),
        ("perdition", "alice:host:0", "port must be"),
        ("perdition", "alice:ho st", "host must be"),
        ("perdition", "x:west\nx:west", "x is listed twice"),
        ("perdition-regex", "^a$", "a line is expression:"),
        ("perdition-regex", "(: west", "missing|unterminated"),
        ("perdition-regex", "^a: $1@west", r"\$1 is no group"),
        ("nginx", "alice east", "a line is key value;"),
        ("nginx", "alice $host;", "cannot have variables"),
        ("nginx", "include other.map;", '"include" is not known here'),
        ("nginx", "~( east;", "missing|unterminated"),
        ("nginx", "alice east;\x07", "a control character"),
    ],
)
def test_a_bad_line_is_named(tmp_path, form, line, why):
    """Who starts mailroute is told the file, the line and the reason."""
    with pytest.raises(BadOption, match=why) as caught:
        made(tmp_path, line, form)
    assert "map:" in str(caught.value)


def test_options_that_do_not_go_together(tmp_path):
    """A format that there is not is named; our own tables need no backend; a map of hosts needs one."""
    with pytest.raises(BadOption, match='did you mean "perdition"'):
        made(tmp_path, "", "perditoin")
    with pytest.raises(BadOption, match="means nothing"):
        made(tmp_path, "", "mailroute")
    with pytest.raises(BadOption, match="names no backend"):
        made(tmp_path, "alice:host", "perdition", backend=None)
    assert route(made(tmp_path, "alice:west", "perdition", backend=None), "alice") == Route("west")


@given(st.text(st.characters(codec="utf-8"), max_size=80))
def test_any_line_of_expressions_is_taken_apart(text):
    """Whatever stands there, at most two words come out."""
    assert len(list(_perdition_words(text))) <= 2
