"""What the transcripts of all protocols have in common: how they begin, and what is read off their events."""

from __future__ import annotations

import base64

from mailroute.events import Attempt, Credentials, Reason, Refusal, Refused
from mailroute.interfaces import ILogin
from mailroute.testing import Conversation

XOAUTH2 = b"user=bob\1auth=Bearer t0ken\1\1"
OAUTHBEARER = b"n,a=bob,\1auth=Bearer t0ken\1\1"


def b64(message: bytes) -> bytes:
    return base64.b64encode(message)


def told(conversation: Conversation, line: bytes) -> bytes:
    """Return what is said to a line."""
    conversation.hears(line + b"\r\n")
    return conversation.said()


# --- the client's side ------------------------------------------------------


def greeted(conversation: Conversation, hello: bytes) -> Conversation:
    """Have the client greeted and say who it is, and forget what has been said to it."""
    conversation.take(conversation.half.greet())
    conversation.hears(hello)
    conversation.said()
    return conversation


def attempt(conversation: Conversation) -> Credentials:
    """Return what the client has asked to log in with."""
    event = conversation.event()
    assert isinstance(event, Attempt), event
    return event.credentials


def refuse(
    conversation: Conversation, reason: Reason = Reason.AUTHENTICATION_FAILED, **words: object
) -> bytes:
    """Refuse the login, and return what is said to the client."""
    conversation.take(conversation.half.reject(Refusal(reason, "a test", **words)))
    return conversation.said()


# --- the backend's side -----------------------------------------------------


def started(login: ILogin) -> Conversation:
    """Return a conversation with a login that has begun."""
    conversation = Conversation(login)
    conversation.take(conversation.half.start())
    return conversation


def refusal(conversation: Conversation) -> Refusal:
    """Return how the login has failed."""
    event = conversation.event()
    assert isinstance(event, Refused), event
    return event.refusal
