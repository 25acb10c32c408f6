"""Reading the name from a ClientHello, as real TLS clients write it and as strangers do."""

from __future__ import annotations

import ssl
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailroute.wire.client_hello import MAX_HELLO, Incomplete, server_name


def hello(name: str | None, **versions: ssl.TLSVersion) -> bytes:
    """Return what OpenSSL says first."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    for key, value in versions.items():
        setattr(context, key, value)
    outgoing = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name).do_handshake()
    return outgoing.read()


def records(message: bytes, size: int) -> bytes:
    """Cut a handshake message into records of this size."""
    parts = [message[at : at + size] for at in range(0, len(message), size)]
    return b"".join(struct.pack("!BHH", 22, 0x0301, len(part)) + part for part in parts)


def extended(extension: bytes) -> bytes:
    """Return a ClientHello with this as its extensions."""
    body = bytes(34) + b"\0" + b"\0\2\x13\x01" + b"\1\0" + struct.pack("!H", len(extension)) + extension
    return records(b"\1" + len(body).to_bytes(3) + body, 16384)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("name", ["mail.example.org", "a", "x" * 63 + ".example.net"])
def test_the_name_of_a_real_client(version: ssl.TLSVersion, name: str) -> None:
    """The name that OpenSSL asks for is found, whatever the version."""
    assert server_name(hello(name, maximum_version=version)) == name.encode()


def test_a_client_that_names_nobody() -> None:
    """No name is no error."""
    assert server_name(hello(None)) is None


def test_what_comes_behind_the_hello_does_not_matter() -> None:
    """Bytes that a client sends ahead change nothing."""
    assert server_name(hello("mail.example.org") + b"\x17\3\3\0\5hello") == b"mail.example.org"


def test_a_hello_in_pieces_is_waited_for() -> None:
    """However few bytes have arrived, the answer is the right one or that more are needed."""
    data = hello("mail.example.org")
    for length in range(len(data)):
        with pytest.raises(Incomplete):
            server_name(data[:length])


@given(size=st.integers(1, 600))
def test_a_hello_in_several_records(size: int) -> None:
    """A ClientHello may be cut into records of any size."""
    message = hello("mail.example.org")[5:]
    assert server_name(records(message, size)) == b"mail.example.org"


@pytest.mark.parametrize(
    "data",
    [
        b"a LOGIN bob secret\r\n",
        b"\x80\x2e\1\0\2",  # SSL 2
        b"\x15\3\1\0\2\2\x28",  # an alert
        b"\x16\3\1\0\0",  # an empty record
        b"\x16\3\1\xff\xff",  # a record longer than any
        b"\x16\3\1\0\4\2\0\0\0",  # another message
        b"\x16\3\1\0\4\1" + (MAX_HELLO + 1).to_bytes(3),  # longer than any client's
        b"\x16\3\1\0\4\1\0\0\0",  # an empty hello
        extended(b"\0\0\0\6\0\4\1\0\1x"),  # a name of another type
        extended(b"\0\0\0\6\0\4\0\0\2x"),  # longer inside than outside
        extended(b"\0\0\0\7\0\5\0\0\1xy"),  # shorter inside than outside
        extended(b"\0\0\0\0"),  # no name in the list
        extended(b"\0\0\xff\xff"),  # an extension that is not there
        extended(b"\0"),
    ],
)
def test_what_is_no_proper_hello_names_nobody(data: bytes) -> None:
    """Whatever is no ClientHello, or a broken one, is left to OpenSSL at once: nothing is waited for."""
    assert server_name(data) is None


@given(st.binary(max_size=200), st.integers(0, 300))
def test_any_bytes_have_an_answer(junk: bytes, at: int) -> None:
    """No bytes make it fail, neither alone nor in the middle of a ClientHello."""
    data = hello("mail.example.org")
    for attempt in (junk, b"\x16\3\1" + junk, data[:at] + junk + data[at + len(junk) :]):
        try:
            found = server_name(attempt)
        except Incomplete:
            continue
        assert found is None or isinstance(found, bytes)
