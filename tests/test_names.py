"""User names come into one form, once."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailroute.names import CONTROL, MAX_USER_NAME, BadUserName, UserNames
from mailroute.sources import context

DOMAINS = st.sampled_from(["", "example.org", "Example.ORG", "BÜCHER.example", "xn--BCHER-kva.example"])
KINDS = st.builds(UserNames, lowercase_local_part=st.booleans(), default_domain=DOMAINS)
NAMES = st.text() | st.text(alphabet="aB@.İΣß")


@pytest.mark.parametrize(
    ("names", "written", "one_form"),
    [
        (UserNames(), "Alice@Example.ORG", "Alice@example.org"),
        (UserNames(), "Alice", "Alice"),
        (UserNames(lowercase_local_part=True), "Alice@Example.ORG", "alice@example.org"),
        (UserNames(lowercase_local_part=True), "Alice", "alice"),
        (UserNames(default_domain="Example.org"), "Alice", "Alice@example.org"),
        (UserNames(default_domain="example.org"), "Alice@Other.org", "Alice@other.org"),
        (UserNames(default_domain="example.org"), "alice@", "alice@"),
        (UserNames(), "Odd@Name@Example.ORG", "Odd@Name@example.org"),
        (UserNames(), "a@XN--BCHER-KVA.example", "a@xn--bcher-kva.example"),
        (UserNames(), "a@BÜCHER.example", "a@bücher.example"),
    ],
)
def test_one_form(names: UserNames, written: str, one_form: str) -> None:
    """The domain's case never matters, the local part's only if told so, and a default domain fills a gap."""
    assert names.normalise(written) == one_form
    assert names.from_wire(written.encode()) == one_form


@given(KINDS, NAMES)
def test_normalising_twice_changes_nothing(names: UserNames, name: str) -> None:
    """A name that is in its one form stays as it is, so it may come from a table, a checker or a client."""
    assert names.normalise(names.normalise(name)) == names.normalise(name)


def test_lower_case_is_settled_for_every_character() -> None:
    """Python's lower case of a lower case is itself, whatever the character: what the one form rests on."""
    characters = map(chr, range(sys.maxunicode + 1))
    assert not [character for character in characters if character.lower().lower() != character.lower()]


@given(KINDS, st.binary())
def test_any_bytes_give_a_clean_name_or_a_refusal(names: UserNames, raw: bytes) -> None:
    """Whatever a client sends, what passes has no control character and is not empty."""
    try:
        name = names.from_wire(raw)
    except BadUserName:
        return
    assert name
    assert not CONTROL.search(name)


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"", "empty"),
        (b"caf\xe9", "UTF-8"),
        (b"\xed\xa0\x80", "UTF-8"),
        (b"a" * (MAX_USER_NAME + 1), "longer than 512 bytes"),
        ("é".encode() * 257, "longer than 512 bytes"),
        *((f"a{character}b".encode(), "control") for character in "\0\t\r\n\x1f\x7f\x80\x85\x9f\u2028\u2029"),
    ],
)
def test_what_is_no_name(raw: bytes, why: str) -> None:
    """A name that could break a line, a log or a memory is refused, and the refusal does not repeat it."""
    with pytest.raises(BadUserName, match=why) as refused:
        UserNames().from_wire(raw)
    assert not raw or raw.decode("latin-1") not in str(refused.value)


def test_the_longest_name_passes() -> None:
    """Exactly the longest name is still taken."""
    assert UserNames().from_wire(b"a" * MAX_USER_NAME) == "a" * MAX_USER_NAME


@pytest.mark.parametrize("domain", ["@example.org", "a@b", "ex ample", "a\nb", "a\u2028b"])
def test_a_default_domain_is_a_domain(domain: str) -> None:
    """What could not stand behind an @ is refused when the configuration is read, not at the first login."""
    with pytest.raises(ValueError, match="must be a domain"):
        UserNames(default_domain=domain)


def test_the_routers_mean_the_same_control_characters() -> None:
    """The routers' room may not import this one: what both call a control character is the same."""
    assert context.CONTROL.pattern == CONTROL.pattern
