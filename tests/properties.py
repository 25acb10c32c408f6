"""Tests of what holds for any bytes and any segments, on both halves of a protocol, to be made for each."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from logins import Case
from streams import TERMS, check_backend, check_client, cut, pieces, play_backend, play_client

from mailroute.events import DialogTerms
from mailroute.interfaces import IMailProtocol


def properties(
    protocol: IMailProtocol,
    orders: list[Case],
    *,
    client: st.SearchStrategy[bytes],
    server: st.SearchStrategy[bytes],
    command: bytes,
    most: int,
) -> type:
    """Return a class of tests for a protocol.

    :param client: lines that clients send, to find more than chance would.
    :param server: lines that backends send.
    :param command: one of a client's that would be answered, were the connection not over.
    :param most: bytes that a login may keep.
    """

    class Properties:
        @given(pieces(client).map(b"".join), st.integers(1, 30))
        def test_any_split_of_a_clients_stream_gives_the_same(self, data, size):
            """However a client's bytes are cut, the same is said, the same happens and the same is left."""
            whole = play_client(protocol.dialog(TERMS), [data])
            assert play_client(protocol.dialog(TERMS), cut(data, size)) == whole

        @given(
            st.sampled_from([order for order in orders if not order.starttls]),
            pieces(server).map(b"".join),
            st.integers(1, 30),
        )
        def test_any_split_of_a_backends_stream_gives_the_same(self, order, data, size):
            """However a backend's bytes are cut, the same is said and the same comes of it."""
            whole = play_backend(order.login(protocol), [data])
            assert play_backend(order.login(protocol), cut(data, size)) == whole

        @given(
            st.sampled_from([TERMS, DialogTerms(tls_offered=True, login_allowed=False)]),
            pieces(client),
        )
        def test_any_bytes_from_a_client(self, terms, data):
            """No bytes of a client raise, and what is kept of them is bounded."""
            check_client(protocol.dialog(terms), data, command)

        @given(st.sampled_from(orders), pieces(server), st.integers(0, 20))
        def test_any_bytes_from_a_backend(self, order, data, opened):
            """No bytes of a backend raise; whenever the order comes, it is ready once at most, and ends."""
            check_backend(protocol, order, data, opened, lambda login: len(login._reader) <= most)

    return Properties
