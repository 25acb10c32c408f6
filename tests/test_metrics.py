"""Metrics of a mailroute in one process: what is told, and that it moves as what it is about."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
import twistd
from live import Live, Talk, let_in, live, patient
from metrics import GET, Page, taken_apart
from readme import TEXT, code, section, tables
from twisted.application.service import MultiService
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, UNIXClientEndpoint, connectProtocol
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import capturedLogs, eventAsText

from mailroute import config, service
from mailroute.authenticators.asked import AskedAuthenticator
from mailroute.computing import Computing
from mailroute.events import LoginRefused, Lookup, Reason, Refusal, Route
from mailroute.listening import StartError
from mailroute.metrics import web
from mailroute.metrics.figures import Figures, Process
from mailroute.metrics.service import MetricsService
from mailroute.metrics.tally import Tally
from mailroute.routers import Forgiving
from mailroute.routers.guard import GuardedRouter
from mailroute.sources import SlowOptions, SourceContext, read_options

METRICS = {"address": "127.0.0.1:0"}
SOURCE = "route[1] (slow)"


class Source:
    """A source that answers when the test says so."""

    def __init__(self, label: str = SOURCE, **options: Any) -> None:
        self.questions: list[tuple[Lookup, Deferred[Any]]] = []
        context = SourceContext(Path(), frozenset({"east"}), str, reactor, lambda call: call(), label=label)
        options = {"cache_ttl": 60, "negative_ttl": 10, "stale_if_error": 600, **options}
        read = read_options(SlowOptions, options, context)
        self.guard = GuardedRouter(self._ask, read, context, by_password=True)

    async def _ask(self, lookup: Lookup) -> Any:
        waiting: Deferred[Any] = Deferred()
        self.questions.append((lookup, waiting))
        return await waiting

    async def answers(self, answer: Any) -> None:
        await patient(lambda: bool(self.questions))
        _, waiting = self.questions.pop(0)
        (waiting.errback if isinstance(answer, Exception) else waiting.callback)(answer)


def server(mailroute: Live) -> MetricsService:
    return next(child for child in mailroute.running if isinstance(child, MetricsService))


async def dial(mailroute: Live) -> Talk:
    port = server(mailroute)._port.getHost().port
    return await connectProtocol(TCP4ClientEndpoint(reactor, "127.0.0.1", port), Talk())


async def page(mailroute: Live) -> Page:
    talk = await dial(mailroute)
    talk.say(GET)
    answer = taken_apart(await talk.end())
    assert answer.status == 200
    return Page.of(answer.body)


@contextlib.asynccontextmanager
async def told(source: Source, **tables: Any) -> AsyncIterator[Live]:
    async with live([source.guard], metrics=METRICS, **tables) as mailroute:
        yield mailroute


async def login(mailroute: Live, user: str, password: str) -> Talk:
    client = await mailroute.greeted()
    client.say(f"a LOGIN {user} {password}\r\n".encode())
    return client


def of_source(found: Page, name: str, **labels: str) -> float:
    return found.value(f"mailroute_source_{name}", source=SOURCE, worker="1", **labels)


def questions(found: Page) -> dict[str, float]:
    return {
        outcome: of_source(found, "questions_total", outcome=outcome)
        for outcome in ("asked", "cached", "shared", "not_asked")
    }


@pytest_twisted.ensureDeferred
async def test_questions_are_counted_by_what_became_of_them() -> None:
    """Asked, shared, and from the cache: as logins are made, the counters move."""
    source = Source()
    async with told(source) as mailroute:
        before = await page(mailroute)
        assert questions(before) == {"asked": 0, "cached": 0, "shared": 0, "not_asked": 0}
        await login(mailroute, "bob", "hush")
        await patient(lambda: bool(source.questions))
        await login(mailroute, "bob", "hush")
        await patient(lambda: source.guard.counts.joined == 1)
        during = await page(mailroute)
        assert questions(during) == {"asked": 1, "cached": 0, "shared": 1, "not_asked": 0}
        assert of_source(during, "questions_under_way") == 1
        assert of_source(during, "answer_seconds_count") == 0
        await source.answers(Route("east"))
        for _ in range(2):
            await let_in(await mailroute.east.next())
        await login(mailroute, "bob", "hush")
        await let_in(await mailroute.east.next())
        after = await page(mailroute)
        assert questions(after) == {"asked": 1, "cached": 1, "shared": 1, "not_asked": 0}
        assert of_source(after, "questions_under_way") == 0
        assert of_source(after, "cache_entries", answer="route") == 1
        assert of_source(after, "cache_entries", answer="other") == 0


@pytest_twisted.ensureDeferred
async def test_failures_are_counted_and_the_breaker_is_shown() -> None:
    """What was asked in vain is counted by why; a source that is left alone is to be seen."""
    source = Source(breaker_failures=2, timeout=0.05, breaker_pause=600)
    async with told(source) as mailroute:
        client = await login(mailroute, "bob", "hush")
        await source.answers(ConnectionError("the password is hush"))
        await client.until(b"a NO")
        found = await page(mailroute)
        assert of_source(found, "failures_total", reason="error") == 1
        assert of_source(found, "failures_total", reason="timeout") == 0
        assert of_source(found, "breaker_open") == 0
        client.say(b"b LOGIN carol hush\r\n")
        await client.until(b"b NO")
        client.say(b"c LOGIN dave hush\r\n")
        await client.until(b"c NO")
        found = await page(mailroute)
        assert of_source(found, "failures_total", reason="error") == 1
        assert of_source(found, "failures_total", reason="timeout") == 1
        assert of_source(found, "breaker_open") == 1
        assert questions(found) == {"asked": 2, "cached": 0, "shared": 0, "not_asked": 1}
        assert of_source(found, "stale_answers_total") == 0


@pytest_twisted.ensureDeferred
async def test_durations_are_a_histogram() -> None:
    """The buckets add up, and the sum is that of the questions that were asked."""
    source = Source(timeout=0.05)
    async with told(source) as mailroute:
        client = await login(mailroute, "bob", "hush")
        await client.until(b"a NO")
        found = await page(mailroute)
        assert of_source(found, "answer_seconds_count") == 1
        assert 0.05 <= of_source(found, "answer_seconds_sum") < 5
        assert of_source(found, "answer_seconds_bucket", le="0.025") == 0
        assert of_source(found, "answer_seconds_bucket", le="+Inf") == 1


@pytest_twisted.ensureDeferred
async def test_nobody_who_asks_is_named() -> None:
    """No user, password, client or session is on the page: all labels are the operator's own words."""
    source = Source()
    async with told(source) as mailroute:
        client = await login(mailroute, "secretive-bob", "opensesame")
        await source.answers(
            LoginRefused(Refusal(Reason.AUTHENTICATION_FAILED, "secretive-bob has opensesame"))
        )
        await client.until(b"a NO")
        client.say(b"b LOGIN secretive-carol opensesame\r\n")
        await source.answers(ValueError("opensesame"))
        await client.until(b"b NO")
        found = await page(mailroute)
        assert of_source(found, "cache_entries", answer="other") == 1
        assert "secretive" not in found.text
        assert "sesame" not in found.text
        assert found.labels("source") == {SOURCE}
        assert found.labels("listener") == {"imap tcp:0:interface=127.0.0.1"}


@pytest_twisted.ensureDeferred
async def test_clients_are_counted_by_listener() -> None:
    """Who is connected counts, joined or not, and no longer once it has left."""
    async with told(Source()) as mailroute:
        labels = {"listener": "imap tcp:0:interface=127.0.0.1", "worker": "1"}
        clients = [await mailroute.greeted() for _ in range(3)]
        found = await page(mailroute)
        assert found.value("mailroute_listener_connections", **labels) == 3
        for client in clients[1:]:
            client.transport.abortConnection()
        await patient(lambda: len(mailroute.factory.sessions) == 1)
        found = await page(mailroute)
        assert found.value("mailroute_listener_connections", **labels) == 1
        assert found.value("mailroute_listener_accepted_total", **labels) == 3
        assert found.value("mailroute_connections_limit") == 10000
        assert found.value("mailroute_worker_up", worker="1") == 1


@pytest_twisted.ensureDeferred
async def test_a_joined_session_is_a_connection() -> None:
    """A session that is joined to its backend goes on counting until it ends."""
    async with live({"bob": Route("east")}, metrics=METRICS) as mailroute:
        labels = {"listener": "imap tcp:0:interface=127.0.0.1", "worker": "1"}
        client, _ = await mailroute.logged_in()
        assert (await page(mailroute)).value("mailroute_listener_connections", **labels) == 1
        client.transport.loseConnection()
        await patient(lambda: not mailroute.factory.sessions)
        assert (await page(mailroute)).value("mailroute_listener_connections", **labels) == 0


@pytest_twisted.ensureDeferred
async def test_sessions_and_failed_logins_are_counted() -> None:
    """What a session leaves in the log is counted by listener: its end, its bytes, each failed login."""
    listener = "imap tcp:0:interface=127.0.0.1"
    async with live({"bob": Route("east")}, metrics=METRICS) as mailroute:
        before = await page(mailroute)
        reasons = {reason.value for reason in Reason}
        assert before.labels("why") == reasons
        refused = dict.fromkeys(reasons, 0.0)
        client, backend = await mailroute.logged_in()
        client.say(b"b NOOP\r\n")
        await backend.until(b"b NOOP\r\n")
        client.transport.loseConnection()
        await patient(lambda: not mailroute.factory.sessions)
        stranger = await login(mailroute, "nobody", "hush")
        await stranger.until(b"a NO")
        found = await page(mailroute)
        refused["authentication failed"] = 1
        labels = {"listener": listener, "worker": "1"}
        assert {
            why: found.value("mailroute_logins_refused_total", why=why, **labels) for why in reasons
        } == refused
        assert found.value("mailroute_sessions_total", **labels) == 1
        assert found.value("mailroute_session_bytes_total", direction="in", **labels) == len(b"b NOOP\r\n")
        assert found.value("mailroute_session_bytes_total", direction="out", **labels) == len(
            b"a OK [CAPABILITY IMAP4rev1] Hi\r\n"
        )


def test_only_what_is_known_beforehand_is_counted() -> None:
    """Neither another's session nor a failure's line is counted, and no text from a line becomes a label."""
    tally = Tally(["imap tcp:143"])

    def counted() -> dict[tuple[str, ...], float]:
        samples = [sample for family in tally.collect() for sample in family.samples]
        return {(each.name, *each.labels.values()): each.value for each in samples if each.value}

    session = {"log_namespace": "mailroute.session", "listener": "imap tcp:143"}
    message = {"log_namespace": "mailroute.delivery"}
    for event in (
        {**session, "log_namespace": "elsewhere", "duration": 1.0},
        {**session, "listener": "imap tcp:144", "duration": 1.0, "bytes_in": 1, "bytes_out": 1},
        {**session, "session_id": "a", "state": "asking"},
        {**message, "failure": "a"},
    ):
        tally(event)
    assert counted() == {}
    tally({**session, "duration": 1.0, "bytes_in": 3, "bytes_out": 4})
    for outcome in "delivered", "delivered in part", "refused", "the client closed the connection":
        tally({**message, "outcome": outcome})
    assert counted() == {
        ("mailroute_sessions_total", "imap tcp:143"): 1,
        ("mailroute_session_bytes_total", "imap tcp:143", "in"): 3,
        ("mailroute_session_bytes_total", "imap tcp:143", "out"): 4,
        **{
            ("mailroute_messages_total", outcome): 1
            for outcome in ("delivered", "partial", "refused", "unfinished")
        },
    }


@pytest_twisted.ensureDeferred
async def test_no_limit_is_no_sample() -> None:
    """Where any number of clients may connect, no limit is told: 0 would look like one."""
    async with told(Source(), limits={"connections": 0}) as mailroute:
        assert "mailroute_connections_limit" not in (await page(mailroute)).names()


@pytest_twisted.ensureDeferred
async def test_the_process_is_told_in_the_words_of_all_exporters() -> None:
    """Memory, time and descriptors have the names that dashboards look for; nothing else is in the way."""
    async with told(Source()) as mailroute:
        found = await page(mailroute)
        assert found.value("process_resident_memory_bytes") > 1e6
        assert 0 < found.value("process_open_fds") < found.value("process_max_fds")
        assert {"mailroute_build_info", "python_info", "process_cpu_seconds_total"} <= found.names()
        assert {name.split("_")[0] for name in found.names()} == {"mailroute", "process", "python"}


@pytest_twisted.ensureDeferred
async def test_process_figures_come_from_a_thread() -> None:
    """To count thousands of descriptors holds up no session."""
    waiting = Process(Computing(reactor, 1)).collect()
    assert not waiting.called
    assert await waiting


@pytest_twisted.ensureDeferred
async def test_a_process_that_sees_only_processes_tells_its_figures(tmp_path: Path) -> None:
    """The unit for systemd (ProcSubset=pid) hides the rest of /proc, and none of these needs it."""
    thread = Computing(reactor, 1)
    (tmp_path / "self").symlink_to("/proc/self")
    here, there = [await Process(thread, proc).collect() for proc in ("/proc", str(tmp_path))]
    assert {family.name for family in there} == {family.name for family in here} != set()
    [began, same] = [
        next(sample.value for family in found for sample in family.samples if "start_time" in sample.name)
        for found in (here, there)
    ]
    assert began == pytest.approx(same, abs=2)
    assert await Process(thread, "/nowhere").collect() == []


def test_sources_of_authenticators_are_told_too() -> None:
    """A source counts wherever it is: in a chain of routes, in one that forgives, in an authenticator."""
    context = SourceContext(Path(), frozenset(), str, reactor, lambda call: call(), label="authenticate[1]")
    sources = [Source(label) for label in ("one", "two", "three")]
    root = MultiService()
    for child in (
        sources[0].guard,
        Forgiving("two", sources[1].guard),
        AskedAuthenticator(sources[2].guard, context),
    ):
        child.setServiceParent(root)
    families = {family.name: family for family in Figures(root).collect()}
    found = {sample.labels["source"] for sample in families["mailroute_source_questions"].samples}
    assert found == {"one", "two", "three"}


@pytest_twisted.ensureDeferred
async def test_a_source_of_an_authenticator_has_the_name_of_its_block(tmp_path: Path) -> None:
    """The label is what the log calls the block."""
    (tmp_path / "users.db").touch()
    blocks = {"source": "sql", "database": "sqlite:users.db", "query": "select hash as password from users"}
    settings = config.build(
        reactor,
        folder=tmp_path,
        listen=[{"protocol": "imap", "endpoint": "tcp:0:interface=127.0.0.1", "security": "none"}],
        backend={"east": {"imap": "tcp:127.0.0.1:1", "security": "none"}},
        authenticate=[blocks],
        route=[{**blocks, "on_error": "next"}, {"source": "default", "backend": "east"}],
    )
    running = service(settings, reactor)
    labels = {
        sample.labels["source"]
        for family in Figures(running).collect()
        for sample in family.samples
        if "source" in sample.labels
    }
    assert labels == {"authenticate[1] (sql)", "route[1] (sql)"}


@pytest_twisted.ensureDeferred
async def test_listeners_of_one_name_have_one_sample() -> None:
    """Prometheus refuses a page on which a sample stands twice."""
    listener = {"protocol": "imap", "endpoint": "tcp:0:interface=127.0.0.1", "security": "none"}
    settings = config.build(
        reactor,
        listen=[listener, listener],
        backend={"east": {"imap": "tcp:127.0.0.1:1", "security": "none"}},
        route=[{"source": "default", "backend": "east"}],
    )
    families = {family.name: family for family in Figures(service(settings, reactor)).collect()}
    assert len(families["mailroute_listener_connections"].samples) == 1


@pytest_twisted.ensureDeferred
async def test_without_the_table_nothing_is_measured() -> None:
    """Who does not ask for metrics does not pay for them: nothing is timed, and no port is open."""
    source = Source()
    async with live([source.guard]) as mailroute:
        assert source.guard.durations is None
        assert not [child for child in mailroute.running if isinstance(child, MetricsService)]


@pytest_twisted.ensureDeferred
async def test_the_readme_has_every_metric() -> None:
    """The names and kinds of the README's tables are those of the page, and the other way round."""
    rows = [row for table in tables(section(TEXT, "Metrics")) for row in table]
    said = {code(row[0]): row[1] for row in rows}
    async with told(Source()) as mailroute:
        kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", (await page(mailroute)).text, re.MULTILINE))
    assert said.pop("process_…") == ""
    assert said == {name: kind for name, kind in kinds.items() if not name.startswith("process_")}


def test_who_wants_no_metrics_needs_no_library() -> None:
    """All that runs without them can be imported where the library is not installed."""
    names = "cli", "tap", "service", "workers.parent", "workers.worker", "demo"
    script = "import sys; sys.modules['prometheus_client'] = None\n" + "".join(
        f"import mailroute.{name}\n" for name in names
    )
    subprocess.run([sys.executable, "-c", script], check=True, env=twistd.environment())


# --- the service ----------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_it_can_be_stopped_and_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a stop nobody is connected or let in; after another start there is a page again."""
    monkeypatch.setattr(web, "MAX_TIME", 600)
    async with told(Source()) as mailroute:
        idle = await dial(mailroute)
        metrics = server(mailroute)
        await patient(lambda: bool(metrics._pages.channels))
        port = metrics._port.getHost().port
        await metrics.stopService()
        await idle.end()
        with pytest.raises(Exception, match="refused"):
            await connectProtocol(TCP4ClientEndpoint(reactor, "127.0.0.1", port), Talk())
        metrics.startService()
        assert (await page(mailroute)).value("mailroute_worker_up", worker="1") == 1


@pytest_twisted.ensureDeferred
async def test_a_unix_socket_serves_whoever_may_open_it(tmp_path: Path) -> None:
    """A path is a socket for its owner and group."""
    path = tmp_path / "a:b=c"
    async with live([Source().guard], metrics={"address": str(path)}):
        assert path.stat().st_mode & 0o777 == 0o660
        talk = await connectProtocol(UNIXClientEndpoint(reactor, str(path)), Talk())
        talk.say(GET)
        assert taken_apart(await talk.end()).status == 200
    assert not path.exists()


@pytest_twisted.ensureDeferred
async def test_a_busy_port_is_named_with_its_remedy() -> None:
    """Without the page that it was told to serve mailroute does not start, and says what to change."""
    async with told(Source()) as mailroute:
        taken = server(mailroute)._port.getHost().port
        with pytest.raises(
            StartError, match=rf"metrics 127.0.0.1:{taken}: .*, or change the address in \[metrics\]"
        ):
            async with live([Source().guard], metrics={"address": f"127.0.0.1:{taken}"}):
                pass


@pytest.mark.parametrize(
    ("address", "warned"), [("127.0.0.1:9317", False), ("[::1]:9317", False), ("192.0.2.1:9317", True)]
)
def test_who_lets_strangers_in_is_told(address: str, warned: bool) -> None:
    """An address that other machines can reach is taken, with a warning in the log."""
    memory = MemoryReactorClock()
    block = config.Metrics(address=address)
    page = MetricsService(block, config.Limits(), dict, memory)
    with capturedLogs() as captured:
        page.startService()
    said = "\n".join(map(eventAsText, captured))
    assert ("no authentication: use an address of the loopback interface" in said) is warned
    assert f"listening: metrics {address}" in said
