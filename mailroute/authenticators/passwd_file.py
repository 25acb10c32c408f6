"""The ``passwd-file`` source: a file with users and their passwords' hashes, read again when it changes.

A line is ``name:hash``, as in Dovecot's files of that name; what may follow
behind further colons is about the account at a server, and nothing to us.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from hashlib import blake2b

from zope.interface import implementer

from mailroute.authenticators import hashes
from mailroute.authenticators.chain import IKeyDecoy
from mailroute.events import Credentials, LoginRefused, Lookup, Reason, Refusal
from mailroute.interfaces import IAuthenticateSource, IKeyholder
from mailroute.proofs import SCRAM, Proof
from mailroute.sources import CONTROL, SourceContext, UsersFile, only, secret, text
from mailroute.sources.users_file import LineReader, decoded
from mailroute.wire.scram import StoredKeys, base_name

_EXTRA = 5
"""How many fields stand between the password and Dovecot's extra fields: uid, gid, gecos, home, shell."""

SCHEMES = {Proof.SCRAM_SHA_256: "SCRAM-SHA-256", Proof.SCRAM_SHA_1: "SCRAM-SHA-1"}
"""The scheme that has the keys for each kind of exchange."""


@implementer(IKeyDecoy, IKeyholder)
class PasswdFile(UsersFile[str]):
    """Checks passwords against the hashes of a file; those that are stored keys do for SCRAM as well."""

    proofs = frozenset({Proof.PASSWORD, *SCRAM})

    _examples: Mapping[str, str]
    """A hash for each duration that checking one may have."""

    offers: frozenset[Proof]
    """What all its users can show: SCRAM only if nobody has another hash."""

    secret = hashes.SECRET
    """What decides how users look whom the file does not have; no two files of one process need another."""

    def _reader(self) -> LineReader[str]:
        return _PasswdReader(self._context)

    def _take(self, reader: LineReader[str]) -> None:
        super()._take(reader)
        assert isinstance(reader, _PasswdReader)  # noqa: S101 - see _reader
        self._examples = reader.examples
        schemes = {kind.split()[0] for kind in self._examples}
        self.offers = self.proofs - {proof for proof in SCRAM if schemes != {SCHEMES[proof]}}

    async def authenticate(self, lookup: Lookup) -> str | None:
        """Return the user's name if its password is the file's (`IAuthenticator.authenticate`)."""
        stored = self.users.get(lookup.user)
        if stored is None:
            return None
        usable = not stored.startswith(hashes.LOCKED)
        if _shown(lookup).proof in SCRAM:
            right = usable and hashes.proven(stored, _shown(lookup))
        else:
            right = await self._verify(stored if usable else self._decoy(lookup.user), lookup)
        if usable and right:
            return lookup.user
        why = hashes.why_wrong(stored, _shown(lookup)) if usable else "the account is locked"
        raise LoginRefused(Refusal(Reason.AUTHENTICATION_FAILED, f"{why} ({self.path})"))

    async def pretend(self, lookup: Lookup) -> None:
        """Check the password against somebody's hash, and forget the result (`IDecoy.pretend`)."""
        if _shown(lookup).proof is Proof.PASSWORD:
            await self._verify(self._decoy(lookup.user), lookup)

    async def keys(self, lookup: Lookup) -> StoredKeys | None:
        """Return the user's stored keys (`IKeyholder.keys`)."""
        stored = self.users.get(lookup.user)
        if stored is None:
            return None
        locked = stored.startswith(hashes.LOCKED)
        found = None if locked else hashes.stored_keys(stored, _shown(lookup).mechanism)
        return found or self.made_up(lookup)

    def made_up(self, lookup: Lookup) -> StoredKeys:
        """Return keys like those of the file's users (`IKeyDecoy.made_up`)."""
        mechanism = _shown(lookup).mechanism
        kinds = [kind for kind in self._examples if kind.split()[0] == base_name(mechanism)]
        example = self._decoy(lookup.user, kinds)
        like = None if example is None else hashes.stored_keys(example, mechanism)
        return hashes.made_up(lookup.user, like, self.secret)

    async def _verify(self, stored: str | None, lookup: Lookup) -> bool:
        if stored is None:
            return False
        return await self._context.compute(partial(hashes.verify, stored, _shown(lookup).secret))

    def _decoy(self, user: str, kinds: Collection[str] | None = None) -> str | None:
        """Return an example of one of the kinds of hashes that there are, or of these.

        For each name always one of the same kind, whoever else comes into the
        file or leaves it; a kind that comes or goes changes nobody else's.
        """
        chosen = self._examples if kinds is None else kinds
        if not chosen:
            return None
        return self._examples[
            max(chosen, key=lambda kind: hashes.drawn(kind.encode("utf-8"), user, self.secret))
        ]

    def __str__(self) -> str:
        return f"passwords are checked by {self.path}, which has {len(self)} users now"


def _shown(lookup: Lookup) -> Credentials:
    assert lookup.credentials is not None  # noqa: S101 - the chain asks with what a client has shown
    return lookup.credentials


class _PasswdReader(LineReader[str]):
    """Reads lines; ``examples`` has a hash for each duration that checking one may have."""

    def __init__(self, context: SourceContext) -> None:
        super().__init__()
        self.examples: dict[str, str] = {}
        self._context = context

    def add(self, line: bytes) -> None:
        """Add a line's user (`LineReader.add`)."""
        said = decoded(line)
        if not said or said.isspace() or said.startswith("#"):
            return
        if CONTROL.search(said):
            raise ValueError("a control character")
        name, colon, rest = said.partition(":")
        if not colon or not name:
            raise ValueError("a line is name:hash")
        name = self._context.normalise(name)
        if name in self.users:
            raise ValueError(f"{name} is listed twice")
        stored, *others = rest.split(":")
        _check_extra(":".join(others[_EXTRA:]))
        self._check(name, stored)
        self.users[name] = stored

    def _check(self, name: str, stored: str) -> None:
        if not stored:
            raise ValueError(f"{name} has no password: write * if nobody may log in")
        if stored.startswith(hashes.LOCKED):
            return
        try:
            self.examples.setdefault(hashes.check(stored), stored)
        except hashes.BadHash as error:
            raise ValueError(f"the password of {name}: {error}") from None


def _check_extra(extra: str) -> None:
    """Refuse what narrows down who may log in, and would be passed over here."""
    for field in extra.split():
        if not field.startswith("userdb_"):
            key = field.partition("=")[0]
            raise ValueError(f'the extra field "{key}" would do nothing here: only userdb_… may stand there')


@implementer(IAuthenticateSource)
class PasswdFileSource:
    """Makes a `PasswdFile` from the key ``file`` and, if it is to last, ``secret_file``."""

    name = "passwd-file"

    def authenticator(self, options: Mapping[str, object], context: object) -> PasswdFile:
        """Make the authenticator; see `IAuthenticateSource.authenticator`."""
        assert isinstance(context, SourceContext)  # noqa: S101 - only the configuration calls it
        only(options, ("file", "secret_file"))
        made = PasswdFile.of(options, context)
        if "secret_file" in options:
            # A key of blake2b has 64 bytes at most.
            made.secret = blake2b(secret(context, "secret_file", text(options, "secret_file"))).digest()
        return made
