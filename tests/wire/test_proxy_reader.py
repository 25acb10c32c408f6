"""Reading a PROXY header: what the specification has, what proxies write, and what strangers might."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailroute.wire.proxy_header import SIGNATURE, version_1, version_2
from mailroute.wire.proxy_reader import (
    MAX_BODY,
    MAX_LINE,
    BadHeader,
    Incomplete,
    ProxyHeader,
    read_header,
)

V4 = (("192.0.2.7", 40000), ("198.51.100.1", 143))
V6 = (("2001:db8::7", 40000), ("2001:db8::1", 143))
OWN = ProxyHeader(relayed=False)

ADDRESSES = bytes([192, 0, 2, 7, 198, 51, 100, 1]) + struct.pack("!HH", 40000, 143)
ADDRESSES_6 = bytes.fromhex("20010db8") + bytes(11) + b"\7" + bytes.fromhex("20010db8") + bytes(11) + b"\1"
ADDRESSES_6 += struct.pack("!HH", 40000, 143)


def binary(command: int, family: int, body: bytes = b"", length: int | None = None) -> bytes:
    """Return a header of version 2."""
    return SIGNATURE + struct.pack("!BBH", command, family, len(body) if length is None else length) + body


def tlv(kind: int, value: bytes) -> bytes:
    return struct.pack("!BH", kind, len(value)) + value


@pytest.mark.parametrize(
    ("data", "header"),
    [
        (b"PROXY TCP4 192.0.2.7 198.51.100.1 40000 143\r\n", ProxyHeader(True, *V4)),
        (b"PROXY TCP6 2001:db8::7 2001:DB8:0:0:0:0:0:1 40000 143\r\n", ProxyHeader(True, *V6)),
        (
            b"PROXY TCP4 255.255.255.255 192.0.2.0 0 65535\r\n",
            ProxyHeader(True, ("255.255.255.255", 0), ("192.0.2.0", 65535)),
        ),
        (b"PROXY UNKNOWN\r\n", OWN),
        (b"PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535\r\n", OWN),
        (b"PROXY UNKNOWN " + b"x" * (MAX_LINE - 16) + b"\r\n", OWN),
        (b"PROXY UNKNOWN \xff\0\r \xe9\r\n", OWN),
        (binary(0x21, 0x11, ADDRESSES), ProxyHeader(True, *V4)),
        (binary(0x21, 0x21, ADDRESSES_6), ProxyHeader(True, *V6)),
        (binary(0x21, 0x11, ADDRESSES + tlv(4, b"") + tlv(2, b"x.example")), ProxyHeader(True, *V4)),
        (binary(0x21, 0x11, ADDRESSES + tlv(0xEA, bytes(MAX_BODY - 15))), ProxyHeader(True, *V4)),
        (binary(0x21, 0x31, b"/run/client".ljust(108, b"\0") + bytes(108)), ProxyHeader(relayed=True)),
        (binary(0x21, 0x00), OWN),
        (binary(0x21, 0x00, tlv(4, b"padding")), OWN),
        (binary(0x21, 0x12, ADDRESSES), OWN),
        (binary(0x21, 0x22, ADDRESSES_6 + tlv(4, b"padding")), OWN),
        (binary(0x21, 0x32, bytes(216)), OWN),
        (binary(0x20, 0x00), OWN),
        (binary(0x20, 0x11, ADDRESSES), OWN),
        (binary(0x20, 0xFF, b"whatever this is"), OWN),
    ],
)
def test_a_header_in_any_pieces(data: bytes, header: ProxyHeader) -> None:
    """Each kind of header is read, and what follows left alone; behind a part of one, more is waited for."""
    for length in range(len(data)):
        with pytest.raises(Incomplete):
            read_header(data[:length])
    assert read_header(data) == (header, len(data))
    assert read_header(bytearray(data + b"\r\na LOGIN")) == (header, len(data))


@pytest.mark.parametrize(
    "data",
    [
        b"a LOGIN bob secret\r\n",
        b"\x16\3\1\2\0\1\0",  # TLS
        b"proxy TCP4 192.0.2.7 198.51.100.1 40000 143\r\n",
        b"PROXY\tTCP4",
        b"PROXYTCP4",
        b"PROXY TCP4 192.0.2.7 198.51.100.1 40000 143\n",
        b"PROXY\r\n",
        b"PROXY \r\n",
        b"PROXY TCP4\r\n",
        b"PROXY TCP5 192.0.2.7 198.51.100.1 40000 143\r\n",
        b"PROXY UDP4 192.0.2.7 198.51.100.1 40000 143\r\n",
        b"PROXY UNKNOWNS\r\n",
        b"PROXY UNKNOWN\xff\r\n",
        b"PROXY TCP4 192.0.2.7 198.51.100.1 40000\r\n",
        b"PROXY TCP4 192.0.2.7 198.51.100.1 40000 143 \r\n",
        b"PROXY TCP4 192.0.2.7  198.51.100.1 40000 143\r\n",
        b"PROXY TCP4 192.0.2.7 198.51.100.1 40000 143\r\r\n",
        b"PROXY TCP4 192.0.2.7 mail.example.org 40000 143\r\n",
        b"PROXY TCP4 192.0.2.07 198.51.100.1 40000 143\r\n",
        b"PROXY TCP4 2001:db8::7 2001:db8::1 40000 143\r\n",
        b"PROXY TCP6 192.0.2.7 198.51.100.1 40000 143\r\n",
        b"PROXY TCP6 fe80::1%eth0 fe80::2 40000 143\r\n",
        b"PROXY TCP4 192.0.2.7 198.51.100.1 40000 65536\r\n",
        b"PROXY TCP4 192.0.2.7 198.51.100.1 40000 -1\r\n",
        b"PROXY TCP4 192.0.2.7 198.51.100.1 +4 143\r\n",
        b"PROXY TCP4 192.0.2.7 198.51.100.1 04 143\r\n",
        b"PROXY TCP4 192.0.2.7 198.51.100.1 4_0 143\r\n",
        "PROXY TCP4 192.0.2.7 198.51.100.1 ٤ 143\r\n".encode(),
        b"PROXY TCP4 192.0.2.7\0 198.51.100.1 40000 143\r\n",
        b"PROXY UNKNOWN " + b"x" * (MAX_LINE - 14),
        b"\r\n\r\n\0\r\nQUIX",
        b"\r\na LOGIN",
        binary(0x11, 0x11, ADDRESSES),
        binary(0x22, 0x11, ADDRESSES),
        binary(0x21, 0x13, ADDRESSES),
        binary(0x21, 0x33, bytes(216)),
        binary(0x21, 0x41, ADDRESSES),
        binary(0x21, 0x12, ADDRESSES[:-1]),
        binary(0x21, 0x11, ADDRESSES[:-1]),
        binary(0x21, 0x21, ADDRESSES),
        binary(0x21, 0x31, bytes(215)),
        binary(0x21, 0x11, length=MAX_BODY + 1),
        binary(0x20, 0x00, length=65535),
        binary(0x21, 0x11, ADDRESSES + b"\4"),
        binary(0x21, 0x11, ADDRESSES + b"\4\0"),
        binary(0x21, 0x11, ADDRESSES + b"\4\0\2x"),
        binary(0x21, 0x11, ADDRESSES + tlv(3, b"\0\0\0\0")),
        binary(0x21, 0x11, ADDRESSES + tlv(3, b"")),
    ],
)
def test_what_is_no_header_is_refused(data: bytes) -> None:
    """Each thing that the specification does not allow is refused, and the reason has none of its bytes."""
    with pytest.raises(BadHeader) as refused:
        read_header(data)
    reason = str(refused.value)
    assert reason.isprintable()
    assert "192.0.2" not in reason
    assert "bob" not in reason


@pytest.mark.parametrize(
    "data",
    [
        b"a",
        b"PROXi",
        b"\r\n\r\n\0\r\nQUIT!",
        binary(0x31, 0)[:13],
        binary(0x21, 0x13)[:14],
        binary(0x21, 0x11, length=MAX_BODY + 1),
        b"PROXY TCP4\n",
    ],
)
def test_nothing_is_waited_for_behind_the_first_wrong_byte(data: bytes) -> None:
    """What can be no header any more is refused before more has come, and not a byte sooner."""
    with pytest.raises(BadHeader):
        read_header(data)
    with pytest.raises(Incomplete):
        read_header(data[:-1])


def crc32c(data: bytes) -> int:
    """Return CRC-32C bit by bit, as its definition has it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 * (crc & 1))
    return crc ^ 0xFFFFFFFF


def checked(before: bytes = b"", behind: bytes = b"", change: int = 0, times: int = 1) -> bytes:
    """Return a header with a checksum among its values."""
    body = ADDRESSES + before + tlv(3, bytes(4)) * times + behind
    header = binary(0x21, 0x11, body)
    at = 16 + len(ADDRESSES + before) + 3
    return header[:at] + struct.pack("!I", crc32c(header) ^ change) + header[at + 4 :]


def test_the_checksum_is_that_of_the_specification() -> None:
    """The tests' own CRC-32C gives the check value that is published for it (RFC 3720 appendix B.4)."""
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA


@pytest.mark.parametrize("before", [b"", tlv(2, b"x.example")])
@pytest.mark.parametrize("behind", [b"", tlv(5, b"an id")])
def test_a_checksum_is_compared(before: bytes, behind: bytes) -> None:
    """A header with the right checksum is read, and one with a bit changed is not."""
    header = checked(before, behind)
    assert read_header(header) == (ProxyHeader(True, *V4), len(header))
    for wrong in (checked(before, behind, change=1), header[:20] + b"\1" + header[21:]):
        with pytest.raises(BadHeader, match="checksum"):
            read_header(wrong)


def test_one_checksum_is_enough() -> None:
    """A header cannot have itself gone through again and again."""
    with pytest.raises(BadHeader, match="twice"):
        read_header(checked(times=2))


ENDS = st.one_of(
    *(
        st.tuples(st.tuples(addresses.map(str), ports), st.tuples(addresses.map(str), ports))
        for addresses, ports in (
            (st.ip_addresses(v=4), st.integers(0, 65535)),
            (st.ip_addresses(v=6), st.integers(0, 65535)),
        )
    )
)


@given(ENDS, st.binary(max_size=50))
def test_what_mailroute_writes_it_reads(ends: tuple[tuple[str, int], tuple[str, int]], rest: bytes) -> None:
    """Both versions bring both ends over, whatever follows."""
    for header in (
        version_1(*ends),
        version_2(*ends, unique_id="s-1", server_name="mail.example", tls="TLSv1.3"),
    ):
        assert len(header) <= max(MAX_LINE, 200)
        assert read_header(header + rest) == (ProxyHeader(True, *ends), len(header))


def outcome(data: bytes) -> object:
    """Return what comes of these bytes."""
    try:
        return read_header(data)
    except Incomplete:
        return Incomplete
    except BadHeader as bad:
        return str(bad)


BEGINNINGS = st.sampled_from(
    [
        b"",
        b"PROXY ",
        b"PROXY TCP4 ",
        b"PROXY TCP6 ::1 ",
        b"PROXY UNKNOWN",
        SIGNATURE,
        binary(0x21, 0x11, ADDRESSES, 300),
        binary(0x21, 0x21, b"", 40),
        binary(0x20, 0)[:14],
    ]
)


@given(BEGINNINGS, st.binary(max_size=400))
def test_any_bytes_have_an_answer_however_they_are_split(beginning: bytes, junk: bytes) -> None:
    """No bytes make it fail, and once there is an answer more bytes change nothing.

    Until then, no more is ever to be kept than the longest header has.
    """
    data = beginning + junk
    whole = outcome(data)
    decided = False
    for length in range(len(data)):
        part = outcome(data[:length])
        if part is not Incomplete:
            decided = True
            assert part == whole
        else:
            assert not decided
            assert length < 16 + MAX_BODY
    assert decided or whole is Incomplete or outcome(data[:-1]) is Incomplete or not data
