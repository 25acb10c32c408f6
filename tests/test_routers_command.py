"""The command source: a program that is kept running answers JSON lines with JSON lines."""

import json
import os
import signal
import sys
from pathlib import Path

import pytest
import pytest_twisted
from asking import HOSTILE_NAMES, explained
from live import patient
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.threads import deferToThread
from twisted.logger import capturedLogs

from mailroute import routers
from mailroute.events import Credentials, LoginRefused, Lookup, Reason, Route
from mailroute.routers import BadOption, SourceContext
from mailroute.routers.command import MAX_IGNORED, MAX_LINE
from mailroute.routers.stderr import MAX_LINES
from mailroute.sources.echo import LEFT_OUT
from mailroute.testing import CLIENT

HEAD = f"""#!{sys.executable} -u
import json, os, sys, time
print("began", os.getpid(), file=sys.stderr)
for line in sys.stdin:
    asked = json.loads(line)
    user = asked["user"]
    answer = {{"id": asked["id"]}}
"""

USUAL = """
    if user == "nobody": pass
    elif user == "die": os._exit(3)
    elif user == "rubbish": print("no JSON"); continue
    elif user == "array": print("[" * 100000); continue
    elif user == "unasked": answer["id"] = 10 ** 9
    elif user == "long": print("x" * 70000); continue
    elif user == "hang": continue
    elif user == "bad": answer["backend"] = "north"
    elif user == "no": answer["refuse"] = "has not paid"
    elif user == "echo": answer |= {"backend": "east", "name": line.strip().replace(chr(34), "'")}
    elif "password" in asked: answer |= {"backend": "east", "proven": asked["password"] == "grün"}
    else: answer |= {"backend": "east", "name": f"{user} there", "forward_of": "one"}
    print(json.dumps(answer))
"""


def context(folder: Path):
    return SourceContext(
        folder, frozenset({"east"}), str.lower, reactor, deferToThread, label="route[1] (command)"
    )


class Setting:
    """A router with a program of the test's own."""

    def __init__(self, folder: Path, body: str = USUAL, **options):
        self.path = folder / "where.py"
        self.path.write_text(HEAD + body)
        self.path.chmod(0o755)
        options = {"command": ["./where.py"], **options}
        self.router = routers.source("command").router(options, context(folder))
        self.router.startService()

    async def ask(self, user, **more):
        """Return the answer, or why there is none."""
        return await explained(self.router, Lookup(user, "imap", CLIENT, **more))


@pytest.fixture
def make(tmp_path):
    settings = []

    def made(*args, **options):
        settings.append(Setting(tmp_path, *args, **options))
        return settings[-1]

    yield made
    for setting in settings:
        stopping = setting.router.stopService()
        if stopping is not None:
            pytest_twisted.blockon(stopping)


@pytest_twisted.ensureDeferred
async def test_it_answers_with_a_route(make):
    """An answer's fields are a route's; without any the user is unknown; it may refuse, and be wrong."""
    setting = make()
    assert await setting.ask("alice") == Route("east", "alice there", forward=(("of", "one"),))
    assert await setting.ask("nobody") is None
    assert await setting.ask("no") is Reason.CONTACT_ADMIN
    assert await setting.ask("bad") == "there is no backend 'north'"


@pytest_twisted.ensureDeferred
async def test_what_it_is_told(make):
    """It gets who, how and from where; no name breaks the line."""
    setting = make()
    route = await setting.ask("echo")
    assert json.loads(route.name.replace("'", '"')) == {
        "id": 1,
        "user": "echo",
        "protocol": "imap",
        "client": "192.0.2.7",
        "session": "session-1",
        "tls": None,
    }
    for user in HOSTILE_NAMES:
        assert await setting.ask(user[:500]) == Route("east", f"{user[:500]} there", forward=(("of", "one"),))


@pytest_twisted.ensureDeferred
async def test_one_program_for_many_questions(make):
    """It is started once, when there is a question, and answers hundreds at a time."""
    with capturedLogs() as logs:
        setting = make()
        routes = await gatherResults(
            [setting.router.route(Lookup(f"u{n}", "imap", CLIENT)) for n in range(300)]
        )
        assert [route.name for route in routes] == [f"u{n} there" for n in range(300)]
        await patient(lambda: any("began" in str(event.get("said")) for event in logs))
    assert sum("began" in str(event.get("said")) for event in logs) == 1


@pytest.mark.parametrize("what", ["die", "rubbish", "array", "unasked", "long"])
@pytest_twisted.ensureDeferred
async def test_a_program_that_fails_is_started_again(make, what):
    """Its end, or a line that is no answer, fails those who wait; the next question finds a new one."""
    setting = make()
    assert await setting.ask(what) is Reason.UNAVAILABLE
    assert (await setting.ask("alice")).backend == "east"


@pytest_twisted.ensureDeferred
async def test_a_program_that_hangs(make):
    """Who asks is told to come later in time; others get their answers meanwhile."""
    setting = make(timeout=0.3, breaker_failures=0)
    while await setting.ask("alice") is Reason.UNAVAILABLE:
        pass  # the program takes longer than that to begin, on a busy machine
    hanging = Deferred.fromCoroutine(setting.ask("hang"))
    while (route := await setting.ask("bob")) is Reason.UNAVAILABLE:
        pass
    assert route.backend == "east"
    assert await hanging is Reason.UNAVAILABLE


@pytest_twisted.ensureDeferred
async def test_a_program_that_reads_nothing_is_started_again(make):
    """What it does not read does not pile up for ever."""
    setting = make("    time.sleep(1000)\n", timeout=0.05, breaker_failures=0)
    await gatherResults([Deferred.fromCoroutine(setting.ask(f"u{n}")) for n in range(MAX_IGNORED)])
    await patient(lambda: not setting.router._program.running)


@pytest_twisted.ensureDeferred
async def test_it_may_check_passwords(make):
    """Only what it calls proven is; the password is not among its arguments, nor in the log."""
    with capturedLogs() as logs:
        setting = make(send_password=True)
        for secret, proven in (("grün", True), ("s3cret", False)):
            shown = Credentials("PLAIN", b"bob", secret.encode())
            assert (await setting.ask("bob", credentials=shown)).proven is proven
        shown = Credentials("PLAIN", b"bob", b"\xff")
        assert await setting.ask("bob", credentials=shown) is Reason.AUTHENTICATION_FAILED
        pid = setting.router._program.transport.pid
        assert b"s3cret" not in Path(f"/proc/{pid}/cmdline").read_bytes()
    assert "s3cret" not in repr(logs)
    assert setting.router.proves


@pytest_twisted.ensureDeferred
async def test_without_leave_it_gets_no_password(make):
    """Unless the operator says so, no password leaves mailroute, and none can be called right."""
    setting = make()
    route = await setting.ask("echo", credentials=Credentials("PLAIN", b"bob", b"s3cret"))
    assert "s3cret" not in route.name
    assert not setting.router.proves


@pytest_twisted.ensureDeferred
async def test_what_it_says_is_logged(make):
    """Its standard error gets into the log, each line by itself, bounded, and without control characters."""
    body = '    print("\\x1b[31mred", "y" * 5000, file=sys.stderr)\n    print(json.dumps(answer))\n'
    with capturedLogs() as logs:
        setting = make(body)
        assert await setting.ask("alice") is None
        await patient(lambda: any("red" in str(event.get("said")) for event in logs))
    (said,) = [event["said"] for event in logs if "red" in str(event.get("said"))]
    assert said.startswith("\\x1b[31mred yyy")
    assert len(said) < 1100


@pytest_twisted.ensureDeferred
async def test_what_it_says_of_a_password_is_not_logged(make):
    """A line that repeats a password which it is asked about, as typed or as it was told, is left out."""
    body = """
    print("line:", line, file=sys.stderr)
    print(json.dumps(answer | {"proven": False, "backend": "east"}), flush=True)
    print("after:", asked["password"], "end" * 10000, "\\nlast", file=sys.stderr)
"""
    with capturedLogs() as logs:
        setting = make(body, send_password=True)
        for secret in ("s3cret", 'gr\u00fcn "quoted"'):
            shown = Credentials("PLAIN", b"bob", secret.encode())
            assert not (await setting.ask("bob", credentials=shown)).proven
        await patient(lambda: sum(event.get("said") == "last" for event in logs) == 2)
    said = [event["said"] for event in logs if "said" in event]
    assert said.count(LEFT_OUT) == 4
    assert not any(word in repr(logs) for word in ("s3cret", "quoted", "gr\u00fcn", "u00fc"))


@pytest_twisted.ensureDeferred
async def test_what_it_says_is_bounded(make):
    """One that writes on and on is cut short, and how much that was is told when it ends."""
    body = """
    print("more\\n" * 5000, file=sys.stderr)
    os._exit(0)
"""
    with capturedLogs() as logs:
        setting = make(body)
        await setting.ask("alice")
        await patient(lambda: any("number" in event for event in logs))
    said = [event["said"] for event in logs if "said" in event]
    assert said.count("more") <= 5 * MAX_LINES
    left = sum(event["number"] for event in logs if "number" in event)
    assert said.count("more") + left >= 5000


@pytest_twisted.ensureDeferred
async def test_its_last_words_are_heard(make):
    """What it says right before its end is logged, with or without the end of a line."""
    with capturedLogs() as logs:
        await make('    print("I give up", end="", file=sys.stderr, flush=True); os._exit(1)\n').ask("alice")
        await patient(lambda: any(event.get("said") == "I give up" for event in logs))


@pytest_twisted.ensureDeferred
async def test_its_environment_is_what_it_needs(make, monkeypatch):
    """It gets what programs look for, and what the operator gives it; keys of others stay here."""
    monkeypatch.setenv("CLOUD_SECRET_KEY", "s3cret")
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    monkeypatch.setenv("TZ", "Europe/Vienna")
    body = '    print(json.dumps(answer | {"backend": "east", "name": json.dumps(dict(os.environ))}))\n'
    route = await make(body, environment={"SHARDS": "2", "TZ": "UTC"}).ask("alice")
    got = json.loads(route.name)
    assert got["SHARDS"] == "2"
    assert got["TZ"] == "UTC"
    assert got["LC_ALL"] == "C.UTF-8"
    assert got["PATH"] == os.environ["PATH"]
    assert set(got) <= {"SHARDS", "TZ", "LC_ALL", "LC_CTYPE", "PATH", "HOME", "LANG", "LANGUAGE", "TMPDIR"}


@pytest.mark.parametrize("stubborn", [False, True])
@pytest_twisted.ensureDeferred
async def test_it_ends_with_mailroute(make, monkeypatch, stubborn):
    """When mailroute stops the program's input ends; one that stays is killed."""
    monkeypatch.setattr("mailroute.routers.command.LAST_WORDS", 0.1)
    body = "    print(json.dumps(answer))\n"
    if stubborn:
        body += "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(1000)\n"
    setting = make(body)
    await setting.ask("alice")
    pid = setting.router._program.transport.pid
    await setting.router.stopService()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.parametrize("ends", ["with mailroute", "by itself"])
@pytest_twisted.ensureDeferred
async def test_what_it_leaves_behind_is_not_waited_for(make, monkeypatch, ends):
    """Another program that it has begun may hold its output for ever, and neither an end nor a new one up."""
    monkeypatch.setattr("mailroute.routers.command.LAST_WORDS", 0.1)
    body = """
    import subprocess
    held = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
    print(json.dumps(answer | {"backend": "east", "name": f"{held.pid}"}), flush=True)
    if user == "die": os._exit(0)
"""
    setting = make(body)
    first = await setting.ask("die" if ends == "by itself" else "alice")
    pids = [int(first.name)]
    try:
        if ends == "by itself":
            await patient(lambda: not setting.router._program.usable)
            pids.append(int((await setting.ask("bob")).name))
        await setting.router.stopService()
        await patient(lambda: not setting.router._running)
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)


@pytest_twisted.ensureDeferred
async def test_a_program_that_cannot_be_started(make):
    """A file that is no program fails the questions, and says so in the log."""
    setting = make()
    setting.path.write_text("#!/nowhere/at/all\n")
    assert await setting.ask("alice") is Reason.UNAVAILABLE


@pytest_twisted.ensureDeferred
async def test_a_machine_that_can_start_none_now(make, monkeypatch):
    """Where there is no descriptor or process left for it, the next question tries again."""
    setting = make()

    def spawn(*_args, **_options):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    with monkeypatch.context() as patched:
        patched.setattr(reactor, "spawnProcess", spawn)
        assert await setting.ask("alice") is Reason.UNAVAILABLE
    assert (await setting.ask("alice")).backend == "east"


@pytest.mark.parametrize(
    ("user", "how"),
    [
        ("die", "the program has ended before its answer: it exited with status 3; the log has its words"),
        (
            "rubbish",
            "the program wrote what is no answer; have it write an object with the id on a line, and no more",
        ),
    ],
)
@pytest_twisted.ensureDeferred
async def test_why_there_is_no_answer_is_told(make, user, how):
    """Whoever asks where an account lives reads how the program has failed."""
    setting = make()
    with pytest.raises(LoginRefused) as caught:
        await setting.router.route(Lookup(user, "imap", CLIENT))
    assert caught.value.refusal.detail == f"route[1] (command) cannot be asked: {how}"


def test_a_program_in_a_folder_that_is_shut(monkeypatch):
    """A folder that mailroute's user may not look into is told as that."""

    def shut(path, **_):
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "is_file", shut)
        with pytest.raises(BadOption, match=r"cannot look at .*/where\.py: Permission denied"):
            routers.source("command").router({"command": ["./where.py"]}, context(Path("/shut")))


def test_a_program_without_the_right_to_be_run(make, tmp_path):
    """One that has just been written is told apart from one that is not there, with what to do."""
    (tmp_path / "new.py").write_text(HEAD)
    with pytest.raises(BadOption, match=r"new\.py cannot be run by mailroute's user: chmod \+x it"):
        make(command=["./new.py"])


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"command": ["./missing"]}, "there is no program .*/missing: name one with its whole path"),
        ({"environment": {"A=B": "x"}}, "'A=B' is no variable's name"),
        ({"environment": {"A": "s3cret\0"}}, "the value of A has a zero byte"),
        ({"command": []}, "is empty: there has to be something"),
        ({"command": "./where"}, 'must be a list, not "./where"'),
        ({"environment": []}, "must be a table, not a list"),
        ({"command": "where.py"}, 'must be a list, not "where.py"'),
        ({"comand": ["x"]}, 'did you mean "command"'),
    ],
)
def test_wrong_keys_are_named(make, options, why):
    """The operator is told what is wrong before anything runs."""
    with pytest.raises(BadOption, match=why):
        make(**options)


def test_a_line_is_bounded():
    """The bound is above what any answer with all its fields takes."""
    assert MAX_LINE > 8 * 1024
