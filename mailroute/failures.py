"""How long a failed login takes, so that its length tells nothing.

A wrong password is refused by a backend after as long as that takes; for a
user that no route knows there is nobody to ask.  Who measures could list the
accounts.  So an unknown user waits for as long as a wrong password has lately
taken at one backend, always the same one for the same name, as if it lived
there.  An OAuth client is told why in a document, and so is an unknown user.
"""

from __future__ import annotations

import hashlib
import secrets
from collections import deque
from collections.abc import Callable, Sequence

from mailroute.events import Reason, Refusal

NO_TOKEN = b'{"status":"invalid_token"}'
"""What an OAuth server says of a token that it does not take (RFC 7628 section 3.2.2)."""

UNKNOWN = Refusal(Reason.AUTHENTICATION_FAILED, "no route knows the user")
"""Must look like a wrong password, in words and in time."""

RECENT = 64
"""Refusals to remember for each backend: enough to show their spread."""


class FailureTiming:
    """Remembers how long refusals take.

    :param minimum: seconds that a login with a wrong name or password takes at
        least, which also slows guessing down; 0 for no minimum.
    :param backends: the names of all backends.
    :param choose: picks one of several durations.
    :param salt: what decides which unknown name is taken for a user of which backend; the same
        wherever the same client may come, that the name has one length everywhere.
    """

    def __init__(
        self,
        minimum: float,
        backends: Sequence[str],
        choose: Callable[[Sequence[float]], float] = secrets.choice,
        salt: bytes | None = None,
    ) -> None:
        self.minimum = minimum
        self._choose = choose
        self._recent: dict[str, deque[float]] = {name: deque(maxlen=RECENT) for name in sorted(backends)}
        self._salt = secrets.token_bytes(16) if salt is None else salt
        self._document = NO_TOKEN

    def refused(self, backend: str, seconds: float) -> None:
        """Remember that a backend took so long to refuse a password, from the login command on."""
        self._recent[backend].append(seconds)

    def challenge(self, document: bytes | None) -> bytes:
        """Return a backend's error document for an OAuth client, or the latest one if there is none."""
        if document is not None:
            self._document = document
        return self._document

    def delay(self, refusal: Refusal, user: str, backend: str | None, taken: float) -> float:
        """Seconds that a refusal has yet to wait.

        :param backend: the backend that has refused, None for none.
        :param taken: seconds since the login's last part began.
        """
        return max(self._delay(refusal, user, backend, taken), refusal.wait)

    def _delay(self, refusal: Refusal, user: str, backend: str | None, taken: float) -> float:
        if refusal is UNKNOWN:
            # Counted from the end of the look-up, as it is where a backend refuses.
            return self.unknown(user)
        if refusal.reason is not Reason.AUTHENTICATION_FAILED:
            return 0.0
        if backend is not None:
            self.refused(backend, taken)
        return max(self.minimum - taken, 0.0)

    def unknown(self, user: str) -> float:
        """Seconds that the refusal of a user without a backend takes.

        A backend that has refused nobody yet is taken to be like the others.
        """
        digest = hashlib.blake2b(user.encode("utf-8"), digest_size=8, key=self._salt).digest()
        recent = list(self._recent.values())
        samples = recent[int.from_bytes(digest) % len(recent)]
        if not samples:
            samples = next(filter(None, recent), samples)
        return max(self.minimum, self._choose(samples) if samples else 0.0)
