"""What a client may send before it has logged in, beside the bounds of lines and literals."""

MAX_AHEAD = 160 * 1024
"""Bytes that a client may send behind a login that is under way.  It is not read meanwhile,
so that this is one read of the socket and what TLS had already decoded."""

MAX_COMMANDS = 128
"""Commands before login: more than any client needs, and few enough that the replies to a
client that does not read them stay small."""

MAX_BAD_WITHOUT_BOUND = 10_000
"""Stands for "any number" where the configuration switches the bound on bad commands off."""
