"""The backend's side of IMAP, as transcripts."""

from __future__ import annotations

import pytest
from attrs import evolve
from logins import Case
from transcripts import b64, refusal, started

from mailroute.dialogs.common.text import MIN_ECHO
from mailroute.dialogs.imap import IMAP
from mailroute.dialogs.imap.login import MAX_UNTAGGED
from mailroute.dialogs.imap.seam import Hello, Welcome
from mailroute.events import Credentials, LoggedIn, Method, Ready, Reason, StartTLS
from mailroute.proofs import Proof, proof_of
from mailroute.testing import CLIENT, Conversation

BOB = Credentials("LOGIN", b"bob", b"secret")
ORDER = Case(BOB, "bob")
GREETING = b"* OK [CAPABILITY IMAP4rev1 SASL-IR AUTH=PLAIN] hello\r\n"


def talk(order: Case = ORDER) -> Conversation:
    return started(order.login(IMAP))


def greeted(capabilities: bytes, order: Case = ORDER) -> Conversation:
    conversation = talk(order)
    conversation.hears(b"* OK [CAPABILITY " + capabilities + b"] hello\r\n")
    return conversation


def test_plain_with_an_initial_response():
    """With SASL-IR one command logs in; the OK's words and capabilities come out."""
    conversation = talk()
    conversation.hears(GREETING)
    assert conversation.said() == b"M1 AUTHENTICATE PLAIN " + b64(b"\0bob\0secret") + b"\r\n"
    conversation.hears(b"M1 OK [CAPABILITY IMAP4rev1 IDLE] Logged in\r\n* 3 EXISTS\r\n")
    assert conversation.event() == LoggedIn(Welcome((), b"Logged in", b"IMAP4rev1 IDLE"), b"* 3 EXISTS\r\n")


@pytest.mark.parametrize("plus", [b"+ \r\n", b"+\r\n", b"+ go ahead\r\n"])
def test_plain_without_an_initial_response(plus):
    """Without SASL-IR the message waits for the ``+``, with or without a space behind it."""
    conversation = greeted(b"IMAP4rev1 AUTH=PLAIN")
    assert conversation.said() == b"M1 AUTHENTICATE PLAIN\r\n"
    conversation.hears(plus)
    assert conversation.said() == b64(b"\0bob\0secret") + b"\r\n"


def test_a_long_message_is_no_initial_response():
    """A message that would make the command line too long waits for the ``+``."""
    order = evolve(ORDER, credentials=Credentials("PLAIN", b"bob", b"x" * 4000))
    assert greeted(b"IMAP4rev1 SASL-IR AUTH=PLAIN", order).said() == b"M1 AUTHENTICATE PLAIN\r\n"


def test_login_mechanism():
    """A backend that offers only AUTH=LOGIN gets name and password one after the other."""
    conversation = greeted(b"IMAP4rev1 AUTH=LOGIN LOGINDISABLED")
    assert conversation.said() == b"M1 AUTHENTICATE LOGIN\r\n"
    conversation.hears(b"+ VXNlcm5hbWU6\r\n")
    assert conversation.said() == b64(b"bob") + b"\r\n"
    conversation.hears(b"+ UGFzc3dvcmQ6\r\n")
    assert conversation.said() == b64(b"secret") + b"\r\n"


@pytest.mark.parametrize(
    ("capabilities", "password", "chunks"),
    [
        (b"", b"secret", [b'M1 LOGIN "bob" "secret"\r\n']),
        (b"", b'a"b\\c', [b'M1 LOGIN "bob" "a\\"b\\\\c"\r\n']),
        (b"", b"", [b'M1 LOGIN "bob" ""\r\n']),
        (b"", b"p\xc3\xa4", [b'M1 LOGIN "bob" {3}\r\n', b"p\xc3\xa4\r\n"]),
        (b" LITERAL+", b"a\r\nb LOGOUT", [b'M1 LOGIN "bob" {11+}\r\na\r\nb LOGOUT\r\n']),
        (b" LITERAL-", b"\xff", [b'M1 LOGIN "bob" {1+}\r\n\xff\r\n']),
        (b" LITERAL-", b"\xff" * 4097, [b'M1 LOGIN "bob" {4097}\r\n', b"\xff" * 4097 + b"\r\n"]),
    ],
)
def test_login_command(capabilities, password, chunks):
    """LOGIN uses quoted strings where every byte may stand in one, else literals: nothing becomes syntax."""
    order = evolve(ORDER, credentials=Credentials("LOGIN", b"bob", password))
    conversation = greeted(b"IMAP4rev1" + capabilities, order)
    for number, chunk in enumerate(chunks):
        if number:
            conversation.hears(b"+ go\r\n")
        assert conversation.said() == chunk
    conversation.hears(b"M1 OK [CAPABILITY IMAP4rev1] yes\r\n")
    assert isinstance(conversation.event(), LoggedIn)


def test_two_synchronising_literals():
    """Name and password each wait for their own go-ahead."""
    order = evolve(ORDER, user="bäb", credentials=Credentials("LOGIN", b"x", b"\xff"))
    conversation = greeted(b"IMAP4rev1", order)
    assert conversation.said() == b"M1 LOGIN {4}\r\n"
    conversation.hears(b"+ \r\n")
    assert conversation.said() == "bäb {1}\r\n".encode()
    conversation.hears(b"+ \r\n")
    assert conversation.said() == b"\xff\r\n"


def test_the_users_name_at_the_backend_is_used():
    """The route's name for the user replaces the one that the client sent."""
    conversation = greeted(b"IMAP4rev1 SASL-IR AUTH=PLAIN", evolve(ORDER, user="bob2"))
    assert conversation.said() == b"M1 AUTHENTICATE PLAIN " + b64(b"\0bob2\0secret") + b"\r\n"


def test_authorization_identity_is_replayed():
    """A client that opens another's account does so at the backend, which decides."""
    order = evolve(ORDER, user="alice", credentials=Credentials("PLAIN", b"bob", b"secret", b"alice"))
    assert (
        greeted(b"IMAP4rev1 SASL-IR AUTH=PLAIN", order).said().endswith(b64(b"alice\0bob\0secret") + b"\r\n")
    )
    assert refusal(greeted(b"IMAP4rev1", order)).reason is Reason.MISCONFIGURED


def test_master_login():
    """A master user logs in for the user, by PLAIN with both names."""
    order = evolve(ORDER, method=Method.MASTER, master=Credentials("PLAIN", b"root", b"m4ster"))
    conversation = greeted(b"IMAP4rev1 SASL-IR AUTH=PLAIN", order)
    assert conversation.said() == b"M1 AUTHENTICATE PLAIN " + b64(b"bob\0root\0m4ster") + b"\r\n"
    conversation.hears(b"M1 NO [AUTHENTICATIONFAILED] m4ster is wrong\r\n")
    refused = refusal(conversation)
    assert refused.reason is Reason.MISCONFIGURED
    assert refused.reply is None
    assert "m4ster" not in refused.detail


@pytest.mark.parametrize("capabilities", [b"IMAP4rev1", b"IMAP4rev1 AUTH=LOGIN"])
def test_master_login_needs_plain(capabilities):
    """Without AUTH=PLAIN a master login is a misconfiguration."""
    order = evolve(ORDER, method=Method.MASTER, master=Credentials("PLAIN", b"root", b"m4ster"))
    assert refusal(greeted(capabilities, order)).reason is Reason.MISCONFIGURED


@pytest.mark.parametrize(
    ("offered", "said"),
    [
        (b" SASL-IR AUTH=PLAIN", b"AUTHENTICATE PLAIN " + b64(b"\0bob*root\0m4ster")),
        (b" AUTH=LOGIN", b"AUTHENTICATE LOGIN"),
        (b"", b"LOGIN bob*root m4ster"),
    ],
)
def test_master_login_under_one_name(offered, said):
    """Where the backend takes both names as one, any way will do for a password; it is the master's."""
    master = Credentials("PLAIN", b"root", b"m4ster")
    order = evolve(ORDER, method=Method.MASTER, master=master, master_separator="*")
    conversation = greeted(b"IMAP4rev1" + offered, order)
    assert conversation.said().replace(b'"', b"") == b"M1 " + said + b"\r\n"
    if offered == b" AUTH=LOGIN":
        conversation.hears(b"+ VXNlcm5hbWU6\r\n")
        assert conversation.said() == b64(b"bob*root") + b"\r\n"
        conversation.hears(b"+ UGFzc3dvcmQ6\r\n")
        assert conversation.said() == b64(b"m4ster") + b"\r\n"
    conversation.hears(b"M1 NO [AUTHENTICATIONFAILED] m4ster is wrong\r\n")
    refused = refusal(conversation)
    assert (refused.reason, refused.reply) == (Reason.MISCONFIGURED, None)
    assert "m4ster" not in refused.detail


def test_master_login_under_one_name_is_one_users():
    """A name that has the separator in it could be another user's."""
    master = Credentials("PLAIN", b"root", b"m4ster")
    order = evolve(ORDER, user="eve*x", method=Method.MASTER, master=master, master_separator="*")
    refused = refusal(greeted(b"IMAP4rev1 AUTH=PLAIN", order))
    assert refused.reason is Reason.MISCONFIGURED
    assert "separator" in refused.detail


@pytest.mark.parametrize("mechanism", ["XOAUTH2", "OAUTHBEARER"])
def test_tokens_are_passed_on(mechanism):
    """A token goes to the backend by the client's own mechanism, byte for byte."""
    credentials = Credentials(mechanism, b"bob", b"whatever\1it\1was", proof=Proof.TOKEN)
    conversation = greeted(
        b"IMAP4rev1 SASL-IR AUTH=" + mechanism.encode(), evolve(ORDER, credentials=credentials)
    )
    assert (
        conversation.said()
        == b"M1 AUTHENTICATE " + mechanism.encode() + b" " + b64(b"whatever\1it\1was") + b"\r\n"
    )


def test_a_token_needs_its_mechanism():
    """A token is never sent by another mechanism."""
    credentials = Credentials("XOAUTH2", b"bob", b"t", proof=Proof.TOKEN)
    conversation = greeted(b"IMAP4rev1 AUTH=PLAIN AUTH=OAUTHBEARER", evolve(ORDER, credentials=credentials))
    assert conversation.said() == b""
    assert refusal(conversation).reason is Reason.MISCONFIGURED


@pytest.mark.parametrize(("mechanism", "answer"), [("XOAUTH2", b"\r\n"), ("OAUTHBEARER", b"AQ==\r\n")])
def test_an_oauth_error_comes_back(mechanism, answer):
    """An OAuth server's error document is acknowledged, and goes to the client with the refusal."""
    credentials = Credentials(mechanism, b"bob", b"t", proof=Proof.TOKEN)
    conversation = greeted(
        b"IMAP4rev1 SASL-IR AUTH=" + mechanism.encode(), evolve(ORDER, credentials=credentials)
    )
    conversation.said()
    conversation.hears(b"+ " + b64(b'{"status":"401"}') + b"\r\n")
    assert conversation.said() == answer
    conversation.hears(b"M1 NO nope\r\n")
    refused = refusal(conversation)
    assert refused.challenge == b'{"status":"401"}'
    assert refused.reason is Reason.AUTHENTICATION_FAILED


def test_capabilities_are_asked_for_when_the_greeting_has_none():
    """A greeting without capabilities is followed by CAPABILITY."""
    conversation = talk()
    conversation.hears(b"* OK hello\r\n")
    assert conversation.said() == b"M1 CAPABILITY\r\n"
    conversation.hears(b"* CAPABILITY IMAP4rev1 SASL-IR AUTH=PLAIN\r\nM1 OK done\r\n")
    assert conversation.said().startswith(b"M2 AUTHENTICATE PLAIN ")


def test_capabilities_after_login_are_asked_for_when_the_ok_has_none():
    """An OK without capabilities is followed by CAPABILITY: the list from before login does not hold."""
    conversation = talk()
    conversation.hears(GREETING)
    conversation.hears(b"M1 OK Logged in\r\n")
    assert conversation.said().endswith(b"M2 CAPABILITY\r\n")
    conversation.hears(b"* CAPABILITY IMAP4rev1 IDLE\r\n* OK [ALERT] Full\r\nM2 OK done\r\nrest")
    assert conversation.event() == LoggedIn(
        Welcome((b"* OK [ALERT] Full",), b"Logged in", b"IMAP4rev1 IDLE"), b"rest"
    )


def test_untagged_capabilities_before_the_ok_count():
    """Capabilities that come untagged during the login are those after it."""
    conversation = talk()
    conversation.hears(GREETING)
    conversation.hears(b"* CAPABILITY IMAP4rev1 IDLE\r\nM1 OK Logged in\r\n")
    assert conversation.event() == LoggedIn(Welcome((), b"Logged in", b"IMAP4rev1 IDLE"))


def test_other_untagged_lines_are_passed_on():
    """What the backend says during the login reaches the client; what it said before does not."""
    conversation = talk()
    conversation.hears(GREETING + b"* OK before\r\n")
    conversation.hears(b"* OK [ALERT] Full\r\nM1 OK [CAPABILITY IMAP4rev1] Hi\r\n")
    assert b"* OK [ALERT] Full" in conversation.event().welcome.untagged


def test_referrals_are_never_passed_on():
    """A REFERRAL would lead clients past the proxy: it is taken off an OK, and a NO becomes UNAVAILABLE."""
    conversation = talk()
    conversation.hears(GREETING)
    conversation.hears(b"M1 OK [REFERRAL imap://x/] Hi\r\n* x\r\n")
    conversation.hears(b"* CAPABILITY IMAP4rev1\r\nM2 OK\r\n")
    assert conversation.event().welcome.text == b"Hi"
    conversation = talk()
    conversation.hears(GREETING + b"M1 NO [REFERRAL imap://x/] Go there\r\n")
    refused = refusal(conversation)
    assert (refused.reason, refused.reply) == (Reason.UNAVAILABLE, None)


# --- TLS ---


def secured(capabilities: bytes = b"IMAP4rev1 SASL-IR AUTH=PLAIN") -> Conversation:
    conversation = talk(evolve(ORDER, starttls=True))
    conversation.hears(b"* OK [CAPABILITY IMAP4rev1 STARTTLS ID AUTH=PLAIN SASL-IR] hello\r\n")
    assert conversation.said() == b"M1 STARTTLS\r\n"
    conversation.hears(b"M1 OK go\r\n")
    assert conversation.event() == StartTLS()
    conversation.take(conversation.half.secured())
    assert conversation.said() == b"M2 CAPABILITY\r\n"
    conversation.hears(b"* CAPABILITY " + capabilities + b"\r\nM2 OK done\r\n")
    return conversation


def test_capabilities_are_asked_for_anew_after_starttls():
    """What the backend listed in the clear counts for nothing after TLS."""
    assert secured(b"IMAP4rev1 AUTH=LOGIN").said() == b"M3 AUTHENTICATE LOGIN\r\n"


@pytest.mark.parametrize("answer", [b"M1 NO no\r\n", b"M1 BAD what\r\n"])
def test_stripped_starttls_is_refused(answer):
    """Without STARTTLS nothing is sent: no credentials in the clear."""
    conversation = talk(evolve(ORDER, starttls=True))
    conversation.hears(GREETING)
    conversation.said()
    conversation.hears(answer)
    assert conversation.said() == b""
    assert refusal(conversation).reason is Reason.MISCONFIGURED


def test_bytes_behind_the_starttls_answer_are_an_injection():
    """A backend's bytes in the clear behind its OK are never taken for protected ones."""
    conversation = talk(evolve(ORDER, starttls=True))
    conversation.hears(GREETING)
    conversation.hears(b"M1 OK go\r\n* CAPABILITY IMAP4rev1\r\n")
    assert refusal(conversation).reason is Reason.MISCONFIGURED


def test_responses_before_the_starttls_answer_are_forgotten():
    """What is injected before the OK has no effect after it."""
    conversation = talk(evolve(ORDER, starttls=True))
    conversation.hears(GREETING)
    conversation.hears(b"* CAPABILITY IMAP4rev1 LOGINDISABLED\r\n* OK [ALERT] pwned\r\nM1 OK go\r\n")
    assert conversation.event() == StartTLS()
    conversation.take(conversation.half.secured())
    conversation.hears(b"* CAPABILITY IMAP4rev1\r\nM2 OK\r\nM3 OK [CAPABILITY IMAP4rev1] Hi\r\n")
    assert conversation.event().welcome.untagged == ()


@pytest.mark.parametrize("starttls", [True, False])
def test_preauth_where_a_login_was_expected_is_refused(starttls):
    """PREAUTH would let somebody in unchecked, or without TLS."""
    conversation = talk(evolve(ORDER, starttls=starttls))
    conversation.hears(b"* PREAUTH [CAPABILITY IMAP4rev1] welcome\r\n")
    assert conversation.said() == b""
    assert refusal(conversation).reason is Reason.MISCONFIGURED


def test_preauth_before_tls_is_refused_even_without_a_login():
    """A backend that needs no login must not skip TLS either."""
    conversation = talk(evolve(ORDER, method=Method.NONE, starttls=True))
    conversation.hears(b"* PREAUTH [CAPABILITY IMAP4rev1] welcome\r\n")
    assert refusal(conversation).reason is Reason.MISCONFIGURED


def test_no_login_after_preauth():
    """With ``none`` a PREAUTH greeting is enough."""
    conversation = talk(evolve(ORDER, method=Method.NONE))
    conversation.hears(b"* PREAUTH [CAPABILITY IMAP4rev1 IDLE] welcome\r\n")
    assert conversation.said() == b""
    assert conversation.event() == LoggedIn(Welcome((), b"Logged in.", b"IMAP4rev1 IDLE"))


def test_no_login_after_the_identity():
    """With ``none`` a backend that has been told who is calling is asked what it can do for them."""
    conversation = talk(evolve(ORDER, method=Method.NONE))
    conversation.hears(b"* OK [CAPABILITY IMAP4rev1 STARTTLS] welcome\r\n")
    assert conversation.said() == b"M1 CAPABILITY\r\n"
    conversation.hears(b"* CAPABILITY IMAP4rev1 IDLE\r\nM1 OK\r\n")
    assert conversation.event() == LoggedIn(Welcome((), b"Logged in.", b"IMAP4rev1 IDLE"))


# --- identity ---

TOLD = (
    b'M1 ID ("x-session-id" "session-1" "x-originating-ip" "192.0.2.7" "x-originating-port" "40000" '
    b'"x-connected-ip" "192.0.2.1" "x-connected-port" "143" "x-proxy-ttl" "6" '
    b'"x-client-transport" "insecure")\r\n'
)


def test_the_client_is_announced_before_the_login():
    """ID carries the client's address once, before the login; its answer does not matter."""
    for answer in (b"* ID NIL\r\nM1 OK\r\n", b"M1 BAD no\r\n", b"M1 NO no\r\n"):
        conversation = greeted(b"IMAP4rev1 ID SASL-IR AUTH=PLAIN", evolve(ORDER, tell_client=True))
        assert conversation.said() == TOLD + b"M2 AUTHENTICATE PLAIN " + b64(b"\0bob\0secret") + b"\r\n"
        conversation.hears(answer)
        assert conversation.said() == b""
        conversation.hears(b"M2 OK [CAPABILITY IMAP4rev1] Hi\r\n")
        assert conversation.event() == LoggedIn(Welcome((), b"Hi", b"IMAP4rev1"))


def announced(capabilities: bytes = b"SASL-IR AUTH=PLAIN", **changes: object) -> Conversation:
    conversation = greeted(b"IMAP4rev1 ID " + capabilities, evolve(ORDER, tell_client=True, **changes))
    assert conversation.said().startswith(TOLD)
    return conversation


def test_identity_and_login_travel_together():
    """The identity costs no round trip: the login goes out behind it in the same segment."""
    login = evolve(ORDER, tell_client=True).login(IMAP)
    (event,) = login.receive(b"* OK [CAPABILITY IMAP4rev1 ID SASL-IR AUTH=PLAIN] hello\r\n")
    assert event.data.count(b"\r\n") == 2


def test_what_the_backend_says_to_the_identity_stays_with_us():
    """What answers the ID, untagged lines and capabilities included, is not taken for the login's answer."""
    conversation = announced()
    assert conversation.half.doing() == "waiting for the answer to ID"
    conversation.hears(b"* ID NIL\r\n* CAPABILITY IMAP4rev1 OLD\r\n* OK before\r\nM1 OK\r\n")
    assert conversation.half.doing() == "waiting for the answer to the login"
    conversation.hears(b"* OK [ALERT] Full\r\nM2 OK Hi\r\n")
    assert conversation.said() == b"M3 CAPABILITY\r\n"
    conversation.hears(b"* CAPABILITY IMAP4rev1 NEW\r\nM3 OK\r\n")
    assert conversation.event().welcome == Welcome((b"* OK [ALERT] Full",), b"Hi", b"IMAP4rev1 NEW")


def test_a_login_that_is_refused_behind_the_identity():
    """The answer to the login counts, whatever that to the ID was."""
    conversation = announced()
    conversation.hears(b"M1 OK\r\nM2 NO [AUTHENTICATIONFAILED] x\r\n")
    assert refusal(conversation).reason is Reason.AUTHENTICATION_FAILED


def test_a_message_that_waits_for_its_go_ahead_waits_behind_the_identity():
    """Without SASL-IR only the command goes along with the ID; the secret follows the go-ahead."""
    conversation = announced(b"AUTH=PLAIN")
    conversation.hears(b"M1 OK\r\n")
    assert conversation.said() == b""
    conversation.hears(b"+ \r\n")
    assert conversation.said() == b64(b"\0bob\0secret") + b"\r\n"


@pytest.mark.parametrize("answer", [b"M2 OK [CAPABILITY IMAP4rev1] Hi\r\n", b"+ go\r\n", b"M3 OK\r\n"])
def test_answers_in_another_order_break_the_protocol(answer):
    """Nothing but the answer to the ID comes before the answer to the ID."""
    conversation = announced()
    conversation.hears(answer)
    assert refusal(conversation).reason is Reason.UNAVAILABLE


def test_with_no_login_the_end_of_the_identity_is_awaited():
    """With ``none`` the client does not see the answer to the ID, PREAUTH or not."""
    for greeting in (b"OK", b"PREAUTH"):
        conversation = talk(evolve(ORDER, tell_client=True, method=Method.NONE))
        conversation.hears(b"* " + greeting + b" [CAPABILITY IMAP4rev1 ID] hello\r\n")
        assert conversation.said().endswith(b")\r\nM2 CAPABILITY\r\n")
        conversation.hears(b"* ID NIL\r\nM1 OK\r\n* CAPABILITY IMAP4rev1 IDLE\r\nM2 OK\r\n")
        assert conversation.event() == LoggedIn(Welcome((), b"Logged in.", b"IMAP4rev1 IDLE"))


def test_the_client_is_announced_inside_tls_only():
    """With STARTTLS the identity goes out after it."""
    conversation = talk(evolve(ORDER, starttls=True, tell_client=True))
    conversation.hears(b"* OK [CAPABILITY IMAP4rev1 ID STARTTLS] hello\r\n")
    assert conversation.said() == b"M1 STARTTLS\r\n"


def test_no_id_where_it_is_not_offered():
    """A backend without ID is not told."""
    conversation = greeted(b"IMAP4rev1 SASL-IR AUTH=PLAIN", evolve(ORDER, tell_client=True))
    assert conversation.said().startswith(b"M1 AUTHENTICATE PLAIN ")


def test_a_clients_pairs_cannot_speak_for_us():
    """The client's own ID goes along, except what begins with ``x-``, and nothing in it becomes syntax."""
    hello = Hello(
        (
            (b"name", b'Mail "x"'),
            (b"X-Originating-IP", b"203.0.113.9"),
            (b"vendor", b"a\r\nM2 LOGOUT"),
        )
    )
    conversation = greeted(b"IMAP4rev1 ID", evolve(ORDER, tell_client=True, seam=hello))
    told, end, _ = conversation.said().partition(b"\r\n")
    assert told + end == TOLD.replace(b")\r\n", b' "name" "Mail \\"x\\"")\r\n')


def test_sni_and_tls_are_told():
    """The backend learns the client's TLS and the name it asked for."""
    client = evolve(CLIENT, tls="TLSv1.3", server_name='mail"x.example')
    said = greeted(b"IMAP4rev1 ID", evolve(ORDER, tell_client=True, client=client)).said()
    assert b'"x-client-transport" "TLS" "x-connected-name" "mail\\"x.example")' in said


def test_without_a_login_the_name_goes_along():
    """A backend that needs no login learns from ID who is calling."""
    order = evolve(ORDER, tell_client=True, method=Method.NONE)
    assert b'"x-forward-user" "bob"' in greeted(b"IMAP4rev1 ID", order).said()


@pytest.mark.parametrize(("ttl", "said"), [(b"5", b"4"), (b"900", b"6"), (b"x", b"6")])
def test_the_ttl_counts_down(ttl, said):
    """A proxy's TTL goes on one lower; a client cannot raise it."""
    order = evolve(ORDER, tell_client=True, seam=Hello(((b"x-proxy-ttl", ttl),)))
    assert b'"x-proxy-ttl" "' + said + b'"' in greeted(b"IMAP4rev1 ID", order).said()


def test_a_loop_is_refused():
    """A connection that has been through too many proxies ends here."""
    order = evolve(ORDER, tell_client=True, seam=Hello(((b"X-Proxy-TTL", b"1"),)))
    refused = refusal(greeted(b"IMAP4rev1 ID", order))
    assert refused.reason is Reason.MISCONFIGURED
    assert "loop" in refused.detail


# --- waiting for an order ---


def waiting(order: Case = ORDER) -> Conversation:
    """A login that nobody has asked for anything yet."""
    conversation = Conversation(order.unopened(IMAP))
    conversation.take(conversation.half.start())
    return conversation


def ready(order: Case = ORDER, capabilities: bytes = b"IMAP4rev1 ID SASL-IR AUTH=PLAIN") -> Conversation:
    conversation = waiting(order)
    conversation.hears(b"* OK [CAPABILITY " + capabilities + b"] hello\r\n")
    assert conversation.event() == Ready()
    return conversation


def test_without_an_order_a_login_gets_ready_and_waits():
    """What needs no account is done before there is one, and nothing beyond it."""
    conversation = waiting()
    conversation.hears(b"* OK hello\r\n")
    assert conversation.said() == b"M1 CAPABILITY\r\n"
    assert conversation.events == []
    conversation.hears(b"* CAPABILITY IMAP4rev1 SASL-IR AUTH=PLAIN\r\nM1 OK\r\n")
    assert conversation.said() == b""
    assert conversation.event() == Ready()
    assert conversation.half.doing() == "ready for a login"


def test_a_login_is_ready_inside_tls_only():
    """With STARTTLS it is ready once TLS is on, and has what the backend lists there."""
    conversation = waiting(evolve(ORDER, starttls=True))
    conversation.hears(b"* OK [CAPABILITY IMAP4rev1 STARTTLS] hello\r\n")
    conversation.hears(b"M1 OK go\r\n")
    assert conversation.event() == StartTLS()
    conversation.take(conversation.half.secured())
    assert conversation.events == []
    conversation.hears(b"* CAPABILITY IMAP4rev1 AUTH=LOGIN\r\nM2 OK\r\n")
    assert conversation.event() == Ready()
    conversation.said()
    conversation.take(conversation.half.open(ORDER.order))
    assert conversation.said() == b"M3 AUTHENTICATE LOGIN\r\n"


def test_an_order_for_a_login_that_is_ready():
    """The order's identity and login go out at once, in one segment."""
    conversation = ready(evolve(ORDER, tell_client=True))
    (event,) = conversation.half.open(ORDER.order)
    assert event.data == TOLD + b"M2 AUTHENTICATE PLAIN " + b64(b"\0bob\0secret") + b"\r\n"
    conversation.hears(b"M1 OK\r\nM2 OK [CAPABILITY IMAP4rev1] Hi\r\n")
    assert conversation.event() == LoggedIn(Welcome((), b"Hi", b"IMAP4rev1"))


def test_an_order_that_comes_while_a_login_gets_ready():
    """A login whose order comes in time goes on at once, and never says that it is ready."""
    conversation = waiting()
    conversation.hears(b"* OK hello\r\n")
    conversation.said()
    assert conversation.half.open(ORDER.order) == []
    conversation.hears(b"* CAPABILITY IMAP4rev1 SASL-IR AUTH=PLAIN\r\nM1 OK\r\n")
    assert conversation.said() == b"M2 AUTHENTICATE PLAIN " + b64(b"\0bob\0secret") + b"\r\n"
    assert conversation.events == []


def test_preauth_without_an_order():
    """With ``none`` a backend that lets everybody in waits for the first one."""
    conversation = waiting(evolve(ORDER, method=Method.NONE))
    conversation.hears(b"* PREAUTH [CAPABILITY IMAP4rev1 IDLE] welcome\r\n")
    assert conversation.event() == Ready()
    conversation.take(conversation.half.open(ORDER.order))
    assert conversation.event() == LoggedIn(Welcome((), b"Logged in.", b"IMAP4rev1 IDLE"))


def test_a_backend_that_ends_while_it_is_waited_for():
    """A BYE to nobody in particular ends the login, with what the backend said in the log."""
    conversation = ready()
    conversation.hears(b"* BYE Idle too long\r\n")
    ended = refusal(conversation)
    assert ended.reason is Reason.UNAVAILABLE
    assert "Idle too long" in ended.detail


def test_what_is_said_to_nobody_is_kept_from_the_client():
    """Untagged lines before the order are not part of the answer to the login; a new list counts."""
    conversation = ready()
    conversation.hears(b"* OK still here\r\n* CAPABILITY IMAP4rev1 AUTH=LOGIN\r\n")
    assert conversation.events == []
    conversation.take(conversation.half.open(ORDER.order))
    assert conversation.said() == b"M1 AUTHENTICATE LOGIN\r\n"
    conversation.hears(b"+ \r\n+ \r\nM1 OK [CAPABILITY IMAP4rev1] Hi\r\n")
    assert conversation.event().welcome == Welcome((), b"Hi", b"IMAP4rev1")


@pytest.mark.parametrize(
    "data",
    [
        b"* OK still here\r\n" * (MAX_UNTAGGED + 1),
        b"* CAPABILITY IMAP4rev1\r\n" * (MAX_UNTAGGED + 1),
        b"* PREAUTH what\r\n",
        b"+ \r\n",
        b"M1 OK\r\n",
        b"x" * 9000,
    ],
)
def test_a_backend_that_talks_to_nobody_is_unavailable(data):
    """While there is no order, chatter is bounded, and answers to nothing end the login."""
    conversation = ready()
    conversation.hears(data)
    assert refusal(conversation).reason is Reason.UNAVAILABLE
    assert conversation.half.receive(b"* OK\r\n") == []


# --- failures ---


@pytest.mark.parametrize(
    ("answer", "reason", "reply"),
    [
        (b"NO wrong", Reason.AUTHENTICATION_FAILED, None),
        (b"NO [AUTHENTICATIONFAILED] bob does not exist", Reason.AUTHENTICATION_FAILED, None),
        (b"NO [LIMIT] Too many", Reason.LIMIT, b"[LIMIT] Too many"),
        (b"no [Limit] Too many", Reason.LIMIT, b"[Limit] Too many"),
        (b"NO [UNAVAILABLE] Later", Reason.UNAVAILABLE, b"[UNAVAILABLE] Later"),
        (b"NO [EXPIRED] Old", Reason.EXPIRED, b"[EXPIRED] Old"),
        (b"NO [CONTACTADMIN] Hm", Reason.CONTACT_ADMIN, b"[CONTACTADMIN] Hm"),
        (b"NO [AUTHORIZATIONFAILED] No", Reason.AUTHORIZATION_FAILED, b"[AUTHORIZATIONFAILED] No"),
        (b"NO [ALERT] Use the web", Reason.AUTHENTICATION_FAILED, b"[ALERT] Use the web"),
        (b"NO [PRIVACYREQUIRED] TLS!", Reason.MISCONFIGURED, None),
        (b"BAD what?", Reason.UNAVAILABLE, None),
    ],
)
def test_each_refusal_gets_its_reason(answer, reason, reply):
    """The backend's answer becomes a reason, and its own words only where they say more than ours."""
    conversation = talk()
    conversation.hears(GREETING + b"M1 " + answer + b"\r\n")
    refused = refusal(conversation)
    assert (refused.reason, refused.reply) == (reason, reply)


@pytest.mark.parametrize("password", [b"S3cret-word", b'S3cr"et\\pw', b"p\xc3\xa4ss w\xc3\xb6rd", b'ab"'])
@pytest.mark.parametrize("user", ["bob", "bo", "b"])
@pytest.mark.parametrize("capabilities", [b"SASL-IR AUTH=PLAIN", b"AUTH=PLAIN", b"AUTH=LOGIN", b"LITERAL+"])
@pytest.mark.parametrize(
    "answer", [b"M1 NO [ALERT] %s no\r\n", b"M1 BAD unknown: %s\r\n", b"* BYE %s\r\nM1 BAD\r\n"]
)
def test_secrets_that_a_backend_repeats_are_taken_out(password, user, capabilities, answer):
    """A backend that repeats what it was sent, whole or cut, brings no secret into the log or elsewhere."""
    order = evolve(ORDER, user=user, credentials=Credentials("LOGIN", b"bob", password))
    message = b64(b"\0" + user.encode() + b"\0" + password)
    quoted = password.replace(b"\\", b"\\\\").replace(b'"', b'\\"')
    sent = [password, quoted, b64(password)]
    if b"PLAIN" in capabilities:
        # A piece shorter than MIN_ECHO would be taken for chance.
        sent += [message, *(cut for cut in (message[:-9], message[5:]) if len(cut) >= MIN_ECHO)]
    for form in sent:
        for echo in (form, b'"' + form + b'"', b'LOGIN "bob" "' + form + b'"', b"AUTHENTICATE PLAIN " + form):
            conversation = greeted(b"IMAP4rev1 " + capabilities, order)
            conversation.hears(b"+ \r\n+ \r\n" if capabilities == b"AUTH=LOGIN" else b"")
            conversation.hears(answer % echo)
            refused = refusal(conversation)
            shown = refused.detail.encode() + (refused.reply or b"") + conversation.half.doing().encode()
            assert form not in shown


def test_what_a_backend_echoes_does_not_change_what_it_means():
    """A password that is a word of the protocol does not spoil the reading of the answer."""
    order = evolve(ORDER, credentials=Credentials("LOGIN", b"bob", b"NO"))
    conversation = greeted(b"IMAP4rev1 SASL-IR AUTH=PLAIN", order)
    conversation.hears(b"M1 NO [LIMIT] NO more\r\n")
    refused = refusal(conversation)
    assert (refused.reason, refused.reply) == (Reason.LIMIT, b"[LIMIT] (secret) more")


def test_a_bye_before_the_answer_is_swallowed():
    """A BYE in front of the tagged NO does not make a wrong password a server that is down."""
    conversation = talk()
    conversation.hears(GREETING + b"* BYE bye\r\n")
    assert conversation.events == []
    assert "it said BYE bye" in conversation.half.doing()
    conversation.hears(b"M1 NO [AUTHENTICATIONFAILED] x\r\n")
    assert refusal(conversation).reason is Reason.AUTHENTICATION_FAILED


def test_control_characters_of_a_backend_stay_there():
    """Capabilities that are no atoms are dropped, and control characters in the OK's text replaced."""
    conversation = talk()
    conversation.hears(GREETING)
    conversation.hears(b"* CAPABILITY IMAP4rev1 ] OK \x07 IDLE\r\nM1 OK \x1b[2J hi\r\n")
    assert conversation.event().welcome == Welcome((), b"?[2J hi", b"IMAP4rev1 OK IDLE")


def test_untagged_floods_are_bounded_in_bytes():
    """Long untagged lines before the tagged OK are bounded together, too."""
    conversation = talk()
    conversation.hears(GREETING + (b"* OK " + b"x" * 8000 + b"\r\n") * 3)
    assert refusal(conversation).reason is Reason.UNAVAILABLE


def test_no_event_shows_a_secret():
    """What a login hands on does not show passwords in its repr."""
    login = ORDER.login(IMAP)
    events = login.receive(b"* OK [CAPABILITY IMAP4rev1] hello\r\n")
    assert events
    assert "secret" not in repr(events)


@pytest.mark.parametrize(
    "data",
    [
        b"* BYE busy\r\n",
        b"220 smtp.example ESMTP\r\n",
        b"+OK pop3\r\n",
        b"* NO hm\r\n",
        b"* CAPABILITY IMAP4rev1\r\n",
        b"\r\n",
        b"M1 OK\r\n",
        b"x" * 9000,
        GREETING + b"M2 OK other tag\r\n",
        GREETING + b"M1 PREAUTH what\r\n",
        GREETING + b"* PREAUTH what\r\n",
        GREETING + b"+ more?\r\n",
        GREETING + b"* LIST {5}\r\nabcde\r\n",
        GREETING + b"* OK \0\r\n",
        GREETING + b"* OK x\r\n" * (MAX_UNTAGGED + 1),
        GREETING + b"M1 OK yes\r\nM2 NO no\r\n",
        GREETING + b"M1 OK yes\r\nM2 OK no list\r\n",
    ],
)
def test_a_backend_that_breaks_the_protocol_is_unavailable(data):
    """Whatever else a backend says ends the attempt, and the client may try later."""
    conversation = talk()
    conversation.hears(data)
    assert refusal(conversation).reason is Reason.UNAVAILABLE
    assert b"\0" not in conversation.said()


def test_an_ok_without_the_credentials_is_refused():
    """A backend that says OK before it has the password has not checked it: nobody gets in unchecked."""
    conversation = greeted(b"IMAP4rev1 AUTH=PLAIN")
    conversation.hears(b"M1 OK [CAPABILITY IMAP4rev1] come in\r\n")
    assert refusal(conversation).reason is Reason.UNAVAILABLE


def test_no_way_to_log_in():
    """A backend that takes no password says so in the log."""
    assert "LOGIN is disabled" in refusal(greeted(b"IMAP4rev1 LOGINDISABLED")).detail


def test_after_the_end_nothing_more_is_said():
    """Bytes behind the end change nothing."""
    conversation = talk()
    conversation.hears(b"* BYE\r\n")
    conversation.events.clear()
    conversation.hears(GREETING)
    assert conversation.said() == b""
    assert conversation.events == []


@pytest.mark.parametrize("mechanism", ["EXTERNAL", "SCRAM-SHA-256", "SCRAM-SHA-1-PLUS"])
def test_what_cannot_be_replayed_is_not_tried(mechanism):
    """A certificate or a proof is of this connection alone: without a master user there is no way in."""
    shown = Credentials(mechanism, b"bob", b"transcript", proof=proof_of(mechanism))
    order = evolve(ORDER, credentials=shown)
    conversation = greeted(b"IMAP4rev1 SASL-IR AUTH=PLAIN AUTH=EXTERNAL AUTH=SCRAM-SHA-256", order)
    refused = refusal(conversation)
    assert refused.reason is Reason.MISCONFIGURED
    assert "cannot be shown to a backend" in refused.detail
    assert b"transcript" not in conversation.said()
    master = evolve(order, method=Method.MASTER, master=Credentials("PLAIN", b"root", b"m4ster"))
    said = greeted(b"IMAP4rev1 SASL-IR AUTH=PLAIN", master).said()
    assert said == b"M1 AUTHENTICATE PLAIN " + b64(b"bob\0root\0m4ster") + b"\r\n"
