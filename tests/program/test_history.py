"""The history page and the status: everything a home folder tells, whatever of it is missing, damaged or hostile."""

import json
import re
import shutil
from dataclasses import asdict, replace
from datetime import timedelta
from html.parser import HTMLParser

import pytest
from typer.testing import CliRunner

from program.history.facts import gather
from program.history.notices import notices
from program.history.page import render, write_history
from program.history.plots import score_history_plot
from program.history.status import MAX_LINES, status_lines
from program.history.types import Damage, DriftCheck, ReleaseFact, RenewalFact, Score, TrafficDay, Watch
from program.renewal.home import Home
from program.runs import write_json
from tests.program.history_fakes import NOW, YEAR, make_home

PAYLOAD = "</title></svg><script>alert('x')</script><img src=x onerror=alert(1)>\x1b[2J"


@pytest.fixture(scope="module")
def year(tmp_path_factory):
    return make_home(tmp_path_factory.mktemp("year") / "acme", days=120, a_day=4)


@pytest.fixture(scope="module")
def facts(year):
    return gather(year, now=lambda: NOW)


@pytest.fixture
def copied(year, tmp_path):
    """A copy that a test may damage."""
    return Home(shutil.copytree(year.path, tmp_path / "acme"))


def plain(facts):
    """The same without what plots are drawn of, which takes its time."""
    renewals = tuple(replace(one, seconds={}, skills=()) for one in facts.renewals)
    return replace(facts, renewals=renewals, releases=(), drift=(), feedback=(), traffic=())


class Page(HTMLParser):
    """Tags and links of a page, its text, and what is open at its end."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.ids, self.labels, self.open = [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        told = dict(attrs)
        self.tags.append((tag, told))
        self.links += [told[key] for key in ("href", "src") if key in told]
        self.ids += [told["id"]] if "id" in told else []
        if tag not in ("meta", "br", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_a_year_is_told_whole(facts):
    assert facts.damaged == () and json.loads(json.dumps(asdict(facts), allow_nan=False))["home"] == "acme"
    releases = {release.id[:4]: release for release in facts.releases}
    assert facts.live.id == releases["0007"].id and facts.live.by == "renewal"
    assert facts.live.since == releases["0007"].went_live[-1] and facts.live.since[:10] == "2031-05-13"
    assert releases["0007"].score == Score(0.846, 0.816, 0.874, 336) and releases["0007"].before.mean == 0.815
    assert releases["0007"].parents == (releases["0005"].id,)
    assert [bool(release.went_live) for release in facts.releases] == [True, True, False, True, True, False, True]
    assert [release.outcome for release in facts.releases] == [row[0] for row in YEAR if row[1] is not None]
    assert [release.test_sha256 for release in facts.releases] == ["aa"] * 4 + ["bb"] * 3
    assert [one.outcome for one in facts.renewals] == [row[0] for row in YEAR]
    refused = facts.renewals[2]
    assert [(one.name, one.passed) for one in refused.skills] == [("house juniper", False), ("payment terms", True)]
    assert refused.page == "renewals/0003/gate.html" and refused.gain.mean == pytest.approx(-0.008)
    assert facts.paid_calls == 3 * (40 + 80) and facts.seconds == pytest.approx(
        sum(346.11 + 90 * n for n in range(1, 10))
    )
    assert [skill.name for skill in facts.skills] == ["house juniper", "payment terms"] and facts.skills[0].n == 28
    assert [(one.cause, one.at[:10]) for one in facts.drift if one.began] == [("questions", "2031-03-23")]
    assert sum(one.alarm for one in facts.drift) == 3
    assert (facts.feedback[0].month, facts.feedback[0].n_ratings, facts.feedback[0].stars) == ("2030-09", 6, 4.0)
    assert facts.feedback[0].n_up + facts.feedback[0].n_down == 6 and facts.feedback[0].n_choices == 1
    assert len(facts.traffic) == 120 and sum(day.n_errors for day in facts.traffic) > 0
    last = facts.traffic[-1]
    assert (last.day, last.n, last.n_ungrounded) == ("2031-06-02", 4, 0) and 0.6 < last.latency_s < 0.9
    assert facts.check_hours == 24 and facts.watch.drift == "nothing moved" and facts.newest[:10] == "2031-06-02"


def test_nothing_is_alarming_after_a_good_year(facts):
    assert notices(facts) == []
    assert status_lines(facts)[:2] == [
        f"live: {facts.live.id} since 13 May 2031 (20 days), exact match 84.6% [81.6, 87.4] on 336 questions",
        "alarms: none",
    ]


def test_an_empty_home_is_told_in_empty_parts_and_nothing_is_made_in_it(tmp_path):
    told = gather(Home(tmp_path), now=lambda: NOW)
    assert list(tmp_path.iterdir()) == []
    assert (told.live, told.releases, told.renewals, told.traffic, told.feedback, told.damaged) == (None, *[()] * 5)
    lines = status_lines(told)
    assert lines[0].startswith("live: nothing") and "alarms: none" in lines and len(lines) <= MAX_LINES
    page = write_history(told, tmp_path).read_text()
    assert "Nothing is live yet." in page and "<svg" not in page and not Page(page).open[1:]


def test_damaged_parts_are_told_by_name_and_hide_no_others(copied, facts):
    broken = facts.releases[1].id
    harm = {
        "feedback.db": "no store", "renewals/0002/outcome.json": "{", "renewals/0004/decision.json": '{"verdict": 1}',
        f"drift/{facts.drift[0].release}/reports.jsonl": '{"at": 1}\n', f"releases/{broken}/manifest.json": "[]",
        "evergreen.toml": 'corpse = "x"', "watch.json": "[1]", "releases/LIVE": "nothing\n",
        "renewals/0001/stages/gate.json": '{"seconds": "long"}', "renewals/0009/calls/paid_calls": "many",
    }  # fmt: skip
    skill = next(copied.skills.glob("house*/skill.json"))
    harm[skill.relative_to(copied.path).as_posix()] = skill.read_text().replace("0.75", "0.95")
    for name, content in harm.items():
        path = copied.path / name
        path.parent.chmod(0o755)
        path.unlink()
        path.write_text(content)
    told = gather(copied, now=lambda: NOW)
    parts = {name.replace("/gate.json", "").replace("/paid_calls", "").replace("/manifest.json", "") for name in harm}
    assert {one.part for one in told.damaged} == parts and all(one.why for one in told.damaged)
    assert len(told.releases) == 6 and len(told.renewals) == 9 and len(told.skills) == 1
    assert told.traffic == facts.traffic and told.renewals[2] == facts.renewals[2]
    assert told.renewals[3].outcome == "promoted" and told.renewals[3].gain is None
    assert [one.release for one in told.drift] == [one.release for one in facts.drift if one.release == facts.live.id]
    assert len(status_lines(told)) == MAX_LINES and status_lines(told)[1].startswith("ALARM: ")
    page = render(plain(told), copied.path, copied.path / "history.html")
    assert all(name in page for name in parts) and "Nothing is alarming" not in page


def test_a_live_release_that_is_broken_is_an_alarm_and_keeps_its_place(copied, facts):
    manifest = copied.releases / facts.live.id / "manifest.json"
    manifest.parent.chmod(0o755)
    manifest.unlink()
    told = gather(copied, now=lambda: NOW)
    assert told.live == facts.live and "score not known" in status_lines(told)[0]
    assert any("gone or broken" in notice.text for notice in notices(told))


def test_what_others_wrote_is_text_on_the_page_and_on_the_terminal(facts, year):
    evil = replace(
        facts,
        home=PAYLOAD,
        live=replace(facts.live, id=PAYLOAD),
        releases=tuple(replace(one, recipe=PAYLOAD, parents=(PAYLOAD,), outcome=PAYLOAD) for one in facts.releases),
        skills=tuple(replace(one, name=PAYLOAD, release=PAYLOAD) for one in facts.skills),
        renewals=tuple(
            replace(
                one,
                why=PAYLOAD * 9,
                reasons=(PAYLOAD,),
                recipe=PAYLOAD,
                outcome=PAYLOAD,
                seconds={PAYLOAD: 900.0, "skills": 60.0},
                skills=tuple(replace(check, name=PAYLOAD) for check in one.skills),
            )
            for one in facts.renewals
        ),
        drift=tuple(
            replace(one, cause=PAYLOAD, plan=(PAYLOAD,), signals=(PAYLOAD,), suspect=(), moved=(PAYLOAD,), began=True)
            for one in facts.drift
        ),
        watch=Watch(facts.watch.looked, PAYLOAD, PAYLOAD),
        damaged=(Damage(PAYLOAD, PAYLOAD),),
    )
    page = Page(render(evil, year.path, year.path / "history.html"))
    assert not [told for tag, told in page.tags if tag in ("script", "img") or any(k.startswith("on") for k in told)]
    assert page.open == []
    assert all(line.isprintable() for line in status_lines(evil)) and len(status_lines(evil)) <= MAX_LINES


def test_the_page_needs_no_network_and_can_be_read_by_keyboard_and_screen_reader(facts, year):
    text = render(facts, year.path, year.path / "history.html")
    page = Page(text)
    outside = [link for link in page.links if not link.startswith(("#", "renewals/"))]
    assert outside == [] and "url(http" not in text and "@import" not in text
    assert len(page.ids) == len(set(page.ids)) and {link[1:] for link in page.links if link[0] == "#"} <= set(page.ids)
    figures = [told for tag, told in page.tags if tag == "svg"]
    assert len(figures) == 6 and all(told["role"] == "img" and told["aria-label"] for told in figures)
    scrolled = [told for tag, told in page.tags if told.get("class") == "scroll"]
    assert scrolled and all(told["tabindex"] == "0" and told["aria-label"] for told in scrolled)
    assert all("scope" in told for tag, told in page.tags if tag == "th")


def test_links_lead_from_wherever_the_page_stands_to_the_gates(facts, year, tmp_path):
    for out in (None, tmp_path / "new" / "my page.html"):
        made = write_history(plain(facts), year.path, out)
        links = [link for link in Page(made.read_text()).links if "gate" in link]
        assert len(links) == 7 and all((made.parent / link).is_file() for link in links)
        made.unlink()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"now": "2031-05-30T00:00:00+00:00"}, "the clock says 30 May 2031"),
        ({"live": None}, "no release is live"),
        ({"watch": Watch("2031-05-29T00:00:00+00:00")}, "nobody watches"),
        ({"renewals": (RenewalFact("0010", "failed", "out of memory"),)}, "0010 failed: out of memory"),
        ({"traffic": (TrafficDay("2031-06-01", n=100, n_errors=6),)}, "6.0% of the questions"),
        ({"traffic": (TrafficDay("2031-05-06", n=100, n_quotes=9, n_ungrounded=1),)}, "1 quote of the last 30 days"),
    ],
)
def test_each_alarm_is_raised_alone(facts, change, words):
    found = notices(replace(facts, **change))
    assert [words in notice.text and notice.alarm for notice in found] == [True]


def test_drift_alarms_while_it_is_of_the_live_release(facts):
    now = DriftCheck("2031-06-01T00:00:00+00:00", facts.live.id, 60, 14, "", True, True, "corpus", ("re-index",))
    (found,) = notices(replace(facts, drift=(*facts.drift, now)))
    assert found.alarm and found.text == "drift since 1 Jun 2031, cause: corpus; plan: re-index"
    assert notices(replace(facts, drift=(*facts.drift, replace(now, release="0001-00000000")))) == []


def test_what_waits_for_a_person_is_no_alarm(facts):
    for renewal in (RenewalFact("0010", "undecided", "label 108 more"), RenewalFact("0010")):
        (found,) = notices(replace(facts, renewals=(*facts.renewals, renewal)))
        assert not found.alarm and "0010" in found.text


def test_a_clock_in_the_past_gives_no_negative_ages_and_still_a_page(year):
    told = gather(year, now=lambda: NOW - timedelta(days=60))
    assert "days)" not in status_lines(told)[0] and "one is wrong" in status_lines(told)[1]
    assert not re.search(r"−\d+ day|-\d+ day", render(plain(told), year.path, year.path / "history.html"))


def test_hollow_dots_are_of_releases_that_never_went_live():
    def plot(went_live):
        release = ReleaseFact("0001-00000000", "2031", score=Score(0.5, None, None), went_live=went_live)
        return score_history_plot([release], None, "t")

    assert "var(--ground)" in plot(()) and "var(--ground)" not in plot(("2031",))


def test_the_commands_say_where_the_page_is_and_refuse_no_folder(year, monkeypatch, tmp_path):
    import typer

    from program.history.commands import doctor, history, status

    app = typer.Typer()
    for command in (status, history, doctor):
        app.command()(command)
    run = CliRunner().invoke
    assert run(app, ["status", str(year.path)]).stdout.startswith("live: 0007-")
    told = run(app, ["history", str(year.path), "--out", str(tmp_path / "page.html")])
    assert told.exit_code == 0 and (tmp_path / "page.html").is_file() and not (year.path / "history.html").exists()
    assert "no folder" in str(run(app, ["status", str(tmp_path / "nowhere")]).exception)
    assert run(app, ["doctor", str(tmp_path / "nowhere")]).exit_code == 1


def test_a_candidate_in_shadow_waits_for_nobody_s_help(copied):
    folder = copied.renewals / "0010"
    (folder / "stages").mkdir(parents=True)
    write_json(folder / "stages" / "shadow.json", {"made": {"release": "0009-ab"}, "seconds": 0.0})
    facts = gather(copied, now=lambda: NOW)
    assert facts.renewals[-1].shadow == "0009-ab"
    assert any("0009-ab is asked silently" in one.text and not one.alarm for one in notices(facts))
    assert any("last 0010 in shadow" in line for line in status_lines(facts))
    write_json(folder / "stages" / "compared.json", {"made": {}, "seconds": 0.0})
    assert gather(copied, now=lambda: NOW).renewals[-1].shadow is None
