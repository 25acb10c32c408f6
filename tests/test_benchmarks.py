"""The benchmark's arithmetic, and what it writes."""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from xml.etree import ElementTree

import benchmarking  # noqa: F401 - what follows is found because of it
import pytest
from servers.programs import lacking

from benchmarks import __main__ as command
from benchmarks import programs, report
from benchmarks.loads import FULL, LOADS, TINY, Reading
from benchmarks.measure import Plan, Results, present
from benchmarks.metrics import METRICS
from benchmarks.peers import PEERS, Leg, NotHere, Peer
from benchmarks.peers.base import common, fill_in
from benchmarks.plot import as_svg
from benchmarks.report import Report, as_json, as_markdown
from benchmarks.targets import TARGETS, Target

SVG = "{http://www.w3.org/2000/svg}"


def results(*figures: tuple[str, Leg, str, float]) -> Results:
    """Return what a run would give that has read these figures."""
    found = Results()
    for metric, leg, peer, value in figures:
        found.add(leg, peer, Reading(metric, value, {"proxy": 1.0, "backend": 0.25, "generator": 0.5}))
    return found


def made_up(found: Results) -> Report:
    """Return a report of a run on a machine that there is not."""
    machine = {"cpu": "a processor <of ours>", "cores": 2, "kernel": "Linux 6.1", "load_before": 0.0}
    return Report(found, FULL, {"nginx": "1.2"}, {"dovecot": "it is not here"}, machine, "2026-11-21")


BOTH = results(
    ("login", Leg.PLAIN, "mailroute", 100e-6),
    ("login", Leg.PLAIN, "nginx", 200e-6),
    ("login", Leg.PLAIN, "perdition", 4000e-6),
)

# --- arithmetic ---------------------------------------------------------------


def test_a_figure_is_the_median_of_its_rounds() -> None:
    """One round that went wrong moves nothing."""
    found = results(*(("login", Leg.TLS, "nginx", value) for value in (3.0, 1000.0, 1.0)))
    assert found.median("login", Leg.TLS, "nginx") == 3.0


def test_a_figure_that_nobody_measured_is_none() -> None:
    """What was not measured is not zero."""
    assert results().median("login", Leg.PLAIN, "nginx") is None


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0"), (0.01234, "0.0123"), (1.0, "1.00"), (9.996, "10.0"), (123.4, "123"), (12345.6, "12\u202f346")],
)
def test_numbers_have_three_digits_that_count(value: float, shown: str) -> None:
    """A reader sees no digits that the measurement does not have."""
    assert report.number(value) == shown


def test_titles_say_how_many_sessions_there_were() -> None:
    """A title has the numbers of the run, and not the words for them."""
    assert report.title("idle-many", FULL) == "memory of an idle session, 8\u202f000 held"
    assert report.title("idle-cpu", TINY) == "20 idle sessions for a second, CPU"


# --- targets --------------------------------------------------------------------

HALF = Target(Leg.PLAIN, ("login", "mailroute"), ("login", "nginx"), 0.5, "at most half")


@pytest.mark.parametrize(("other", "reached"), [(200e-6, True), (199e-6, False)])
def test_a_target_is_a_bound_on_a_ratio(other: float, reached: bool) -> None:
    """The bound itself is within it, and what is above is not."""
    found = results(("login", Leg.PLAIN, "mailroute", 100e-6), ("login", Leg.PLAIN, "nginx", other))
    assert HALF.reached(found) is reached


@pytest.mark.parametrize(("two", "reached"), [(180.0, True), (179.0, False)])
def test_a_target_may_be_a_lower_bound(two: float, reached: bool) -> None:
    """More logins per second are better."""
    target = next(each for each in TARGETS if each.at_least and each.leg is Leg.PLAIN)
    found = results(("rate", Leg.PLAIN, "mailroute", 100.0), ("rate", Leg.PLAIN, "mailroute-2", two))
    assert target.reached(found) is reached


def test_a_target_may_be_a_bound_on_one_figure() -> None:
    """Two kilobytes are two kilobytes, whoever else needs more."""
    target = next(each for each in TARGETS if each.other is None)
    assert target.reached(results((target.own[0], target.leg, "mailroute", 2000.0))) is True
    assert target.reached(results((target.own[0], target.leg, "mailroute", 2001.0))) is False


def test_a_target_without_its_figures_is_neither_reached_nor_missed() -> None:
    """Whoever leaves a proxy out has not shown anything about it."""
    assert HALF.reached(results(("login", Leg.PLAIN, "mailroute", 1e-9))) is None
    assert (
        HALF.reached(results(("login", Leg.TLS, "mailroute", 1e-9), ("login", Leg.TLS, "nginx", 1.0))) is None
    )


@pytest.mark.parametrize(
    "target", TARGETS, ids=lambda target: f"{target.own}-{target.other}-{target.leg.value}"
)
def test_a_target_is_about_figures_that_a_full_run_measures(target: Target) -> None:
    """No target stays open because nobody measures what it is about."""
    for metric, peer in filter(None, (target.own, target.other)):
        assert metric in METRICS
        assert target.leg in PEERS[peer].legs


# --- what is written ------------------------------------------------------------


def test_the_tables_have_a_row_for_each_figure_and_a_column_for_each_proxy() -> None:
    """Who measured nothing has no column, and every target has its verdict."""
    text = as_markdown(made_up(BOTH))
    assert "|  | mailroute | nginx mail | Perdition |" in text
    assert "| login and logout, CPU, µs | 100 | 200 | 4\u202f000 |" in text
    assert "| login and logout, CPU | plain | at most 1.2 of nginx mail | 0.50 | reached |" in text
    assert text.count("not measured") == len(TARGETS) - 1
    assert "| login and logout, CPU | 1.00 | 0.25 | 0.50 |" in text


def test_two_workers_are_told_apart_from_those_who_share_their_cores() -> None:
    """The ratio has beside it what each login took of the proxy's time, and of that of the others."""
    found = results(
        ("rate", Leg.PLAIN, "mailroute", 500.0),
        ("rate-cpu", Leg.PLAIN, "mailroute", 1000e-6),
        ("rate", Leg.PLAIN, "mailroute-2", 750.0),
        ("rate-cpu", Leg.PLAIN, "mailroute-2", 1250e-6),
    )
    row = "| Plain on both sides: mailroute | 500 | 750 | 1 000 | 1 250 | 1 500 | 1 000 | 1.50 | 1.60 |"
    assert row in as_markdown(made_up(found)).replace("\u202f", " ")
    assert "Two workers" not in as_markdown(made_up(BOTH))


def test_the_tables_say_what_they_were_measured_with() -> None:
    """Figures without the machine and the versions say nothing, and nobody is left out in silence."""
    text = as_markdown(made_up(BOTH))
    assert "a processor <of ours>, 2 cores, Linux 6.1" in text
    assert "- nginx mail 1.2" in text
    assert "- left out: Dovecot proxy: it is not here" in text


def test_the_json_has_every_round() -> None:
    """Whoever doubts a median can look."""
    found = results(*(("login", Leg.TLS, "nginx", value) for value in (3.0, 4.0, 1.0)))
    (measurement,) = as_json(made_up(found))["measurements"]
    assert (measurement["rounds"], measurement["median"]) == ([3.0, 4.0, 1.0], 3.0)


def plot(found: Results) -> ElementTree.Element:
    return ElementTree.fromstring(as_svg(made_up(found)))  # noqa: S314 - it is our own


def test_the_plot_is_an_svg_for_light_and_dark() -> None:
    """It has a bar for each figure, one in two pieces where it is cut off, and colours for either ground."""
    root = plot(BOTH)
    bars = [float(each.get("width")) for each in root.iter(f"{SVG}rect")]
    assert root.tag == f"{SVG}svg"
    assert bars[1] == pytest.approx(2 * bars[0], abs=0.2)  # nginx costs twice what mailroute does
    assert len(bars) == 4
    assert "prefers-color-scheme: dark" in root.find(f"{SVG}style").text


def test_the_plot_needs_no_nginx() -> None:
    """Without the proxy that the others are compared with there are bars all the same."""
    found = results(("noop", Leg.TLS, "mailroute", 10e-6), ("noop", Leg.TLS, "haproxy", 20e-6))
    labels = [each.text for each in plot(found).iter(f"{SVG}text")]
    assert {"10.0 µs", "20.0 µs"} <= set(labels)


def test_the_machine_is_described_and_not_named() -> None:
    """What is published says what was measured on, and not whose it is."""
    about = report.machine()
    assert about["cores"] >= 1
    assert socket.gethostname() not in {*map(str, about.values())}
    assert str(about["kernel"]).removeprefix("Linux ").replace(".", "").isdigit()


# --- what is chosen ---------------------------------------------------------------


def test_options_choose_loads_proxies_and_legs() -> None:
    """What is chosen comes in the usual order."""
    options = command.parse(["--quick", "--only", "noop,login", "--peers", "nginx", "--legs", "tls,plain"])
    assert (options.size, options.only, options.peers) == ("quick", ["login", "noop"], ["nginx"])
    assert options.legs == ["plain", "tls"]


def test_an_unknown_choice_is_refused_with_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever mistypes a name is told the names."""
    with pytest.raises(SystemExit):
        command.parse(["--only", "logon"])
    said = capsys.readouterr().err
    assert "there is no logon" in said
    assert all(load in said for load in LOADS)


def test_nobody_takes_a_load_that_they_cannot() -> None:
    """A load that somebody is not made for is not measured, and two workers are measured by themselves."""
    plan = Plan(list(PEERS.values()), list(LOADS), list(Leg), TINY)
    assert plan.takes(PEERS["nginx"], "login", Leg.TLS)
    assert not plan.takes(PEERS["nginx"], "login", Leg.BOTH)
    assert plan.takes(PEERS["mailroute-2"], "workers", Leg.TLS)
    assert not plan.takes(PEERS["mailroute-2"], "login", Leg.TLS)


def test_a_proxy_that_is_not_here_is_left_out_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others are measured without it."""

    class Absent(Peer):
        name, title, binary = "absent", "Absent", "no-such-proxy"

        def version(self) -> str:
            return self.path()

    monkeypatch.setitem(PEERS, "absent", Absent())
    here, versions, left_out = present(["absent"])
    assert (here, versions) == ([], {})
    assert left_out["absent"].startswith("there is no no-such-proxy: ")


def test_a_run_without_mailroute_is_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the one proxy that this is about cannot be measured, nothing is."""
    monkeypatch.setattr(programs, "make", lambda: None)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert command.main(["--tiny", "--output", str(tmp_path)]) == 1
    assert "mailroute is left out: mailroute is not installed beside" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("leg", Leg, ids=lambda leg: leg.value)
@pytest.mark.parametrize("peer", PEERS.values(), ids=lambda peer: peer.name)
def test_a_configuration_has_a_value_for_each_of_its_names(peer: Peer, leg: Leg, tmp_path: Path) -> None:
    """Nothing in a template is left to be filled in, but for the comment that says how."""
    try:
        values = common(tmp_path, 1143, 143) | peer.values(leg)
    except NotHere as reason:
        lacking(str(reason), "tools/install-debian-packages libnginx-mod-mail")
    text = fill_in(peer.template, tmp_path, values).read_text()
    assert [line for line in text.splitlines() if "@" in line] == [
        "# @NAME@ is filled in by benchmarks/peers."
    ]
