"""What to type to see the demo at work."""

from __future__ import annotations

import shlex
from pathlib import Path

from attrs import frozen

from mailroute.demo.backend import USERS, DemoUser
from mailroute.demo.ports import Ports

_TEXT = """\

mailroute takes IMAP on localhost, port {ports.imap} (STARTTLS) and port {ports.imaps} (TLS),
POP3 on port {ports.pop3} and mail to be sent on port {ports.submission} (both STARTTLS), and mail
that other servers bring on port {ports.smtp}, in front of two mail servers:

{users}

Type these in another terminal.  Each answer says which server it comes from:
a letter's From line, or its first sentence.

{commands}

The certificate signs itself and is new each time, so every client has to be
told to trust it: --cacert, -CAfile and cafile do that.  (curl -k would trust
anybody.)  The configuration is in
{configuration}
and goes away with the demo.  Ctrl-C ends it; the log follows, with a line for
each session that ends.

"""

_IMAPLIB = """\
python3 -c '
import imaplib, ssl
trusted = ssl.create_default_context(cafile="{ca}")
with imaplib.IMAP4("localhost", {port}) as mail:
    mail.starttls(trusted)
    mail.login("{user.name}", "{user.password}")
    mail.select("INBOX", readonly=True)
    for number in mail.search(None, "ALL")[1][0].split():
        print(mail.fetch(number, "(BODY.PEEK[HEADER.FIELDS (FROM SUBJECT)])")[1][0][1].decode())
'"""


@frozen
class Command:
    """A command line that reads the mail of one of the users, and what shows the server that it is from."""

    title: str
    line: str
    shows: str


def commands(folder: Path, ports: Ports) -> list[Command]:
    """Return commands that read both mailboxes, with several clients and both ways of TLS; one writes too."""
    alice, bob = USERS
    certificate = folder / "cert.pem"
    ca = shlex.quote(str(certificate))
    curl = f"curl --silent --show-error --cacert {ca}"
    typed = [f"a LOGIN {alice.name} {alice.password}", "b SELECT INBOX", "c FETCH 1 BODY[]", "d LOGOUT"]
    return [
        Command(
            "curl, with TLS",
            f"{curl} --user {alice.name}:{alice.password} 'imaps://localhost:{ports.imaps}/INBOX;MAILINDEX=1'",
            _from(alice),
        ),
        Command(
            "curl, with STARTTLS",
            f"{curl} --ssl-reqd --user {bob.name}:{bob.password} "
            f"'imap://localhost:{ports.imap}/INBOX;MAILINDEX=1'",
            _from(bob),
        ),
        Command(
            "openssl, with every command sent at once",
            f"printf '%s\\n' {' '.join(shlex.quote(each) for each in typed)} | "
            f"openssl s_client -quiet -crlf -starttls imap -CAfile {ca} -connect localhost:{ports.imap}",
            _from(alice),
        ),
        Command(
            "Python's imaplib",
            _IMAPLIB.format(ca=certificate, port=ports.imap, user=bob),
            _from(bob),
        ),
        Command(
            "curl: alice writes to bob, who lives elsewhere and reads it with POP3",
            f"printf 'From: {alice.name}\\r\\nTo: {bob.name}\\r\\nSubject: Hello\\r\\n\\r\\nHello.\\r\\n' | "
            f"{curl} --ssl-reqd --user {alice.name}:{alice.password} --mail-from {alice.name} "
            f"--mail-rcpt {bob.name} --upload-file - smtp://localhost:{ports.submission}/ &&\n"
            f"{curl} --ssl-reqd --user {bob.name}:{bob.password} pop3://localhost:{ports.pop3}/4",
            f"by {bob.backend}.example.com",
        ),
    ]


def _from(user: DemoUser) -> str:
    return f"The server {user.backend}"


def instructions(folder: Path, ports: Ports) -> str:
    """Return what the demo prints once it runs."""
    users = [f"    {user.name:<18} password {user.password:<11} lives on {user.backend}" for user in USERS]
    # The lines are not indented: they are there to be copied.
    examples = [f"# {command.title}\n{command.line}" for command in commands(folder, ports)]
    return _TEXT.format(
        ports=ports,
        users="\n".join(users),
        commands="\n\n".join(examples),
        configuration=folder / "mailroute.toml",
    )
