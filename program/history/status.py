"""The history page in ten lines, for a terminal."""

from program.history.notices import notices, recent
from program.history.types import Facts
from program.history.words import age, count, day, duration, one_line, percent, points, share

MAX_LINES = 10


def status_lines(facts: Facts) -> list[str]:
    """What is live, how good it is, what is alarming, and the rest in a line each: at most MAX_LINES."""
    lines = [_live(facts), *_alarming(facts), _renewal(facts)]
    lines += filter(None, (_skills(facts), _drift(facts), _feedback(facts), _traffic(facts), _cost(facts)))
    return [one_line(line) for line in lines[:MAX_LINES]]


def _live(facts: Facts) -> str:
    live = facts.live
    if live is None:
        return f"live: nothing ({count(len(facts.releases), 'release')} in {facts.home})"
    release = next((one for one in facts.releases if one.id == live.id), None)
    since = f" since {day(live.since)}" if live.since else ""
    known = f" ({age(live.since, facts.now)})" if age(live.since, facts.now) else ""
    if release is None or release.score is None:
        return f"live: {live.id}{since}{known}, score not known"
    n = f" on {count(release.score.n, 'question')}" if release.score.n else ""
    return f"live: {live.id}{since}{known}, exact match {percent(release.score)}{n}"


def _alarming(facts: Facts) -> list[str]:
    """Three lines at most: the first two, and how many more there are."""
    found = notices(facts)
    if not found:
        return ["alarms: none"]
    lines = [f"{'ALARM' if one.alarm else 'waits for you'}: {one_line(one.text, 140)}" for one in found[:2]]
    return [*lines, f"and {len(found) - 2} more: evergreen history"] if len(found) > 2 else lines


def _renewal(facts: Facts) -> str:
    if not facts.renewals:
        return "renewals: none yet"
    counts = {name: sum(one.outcome == name for one in facts.renewals) for name in ("promoted", "refused", "failed")}
    told = ", ".join(f"{n} {name}" for name, n in counts.items() if n) or "none promoted"
    last = facts.renewals[-1]
    gain = f", gain {points(last.gain)}" if last.gain else ""
    when = f" on {day(last.ended)}" if last.ended else ""
    ended = last.outcome or ("in shadow" if last.shadow else "not ended")
    return f"renewals: {len(facts.renewals)} ({told}); last {last.id} {ended}{when}{gain}"


def _skills(facts: Facts) -> str:
    if not facts.skills:
        return ""
    checked = next((one.skills for one in reversed(facts.renewals) if one.skills), ())
    lost = [f"{one.name} {points(one.difference)}" for one in checked if one.passed is not True]
    told = f"; not shown to be kept by the last candidate: {', '.join(lost)}" if lost else ""
    return f"skills: {len(facts.skills)} frozen{told or ('; all kept by the last candidate' if checked else '')}"


def _drift(facts: Facts) -> str:
    if not facts.drift:
        said = facts.watch.drift if facts.watch else ""
        return f"drift: {said or 'not checked yet'}"
    began = [one for one in facts.drift if one.began]
    last = f"; last alarm {day(began[-1].at)}, cause {began[-1].cause}" if began else ""
    n = f"{count(len(facts.drift), 'check')}, {count(len(began), 'alarm')}"
    return f"drift: {n}{last}; checked {day(facts.drift[-1].at)}"


def _feedback(facts: Facts) -> str:
    if not facts.feedback:
        return "feedback: none yet"
    last = facts.feedback[-1]
    thumbs = last.n_up + last.n_down
    up = f", {share(last.n_up / thumbs)} of {thumbs} thumbs up" if thumbs else ""
    return (
        f"feedback in {last.month}: {count(last.n_ratings, 'rating')}{up}, {count(last.n_corrections, 'correction')}, "
        f"{count(last.n_choices, 'choice')}"
    )


def _traffic(facts: Facts) -> str:
    if not facts.traffic:
        return "traffic: none yet"
    week = recent(facts, 7)
    n, n_errors = sum(one.n for one in week), sum(one.n_errors for one in week)
    if not n:
        return f"traffic: nothing in the last 7 days; last on {day(facts.traffic[-1].day)}"
    answered = n - n_errors
    absent = share(sum(one.n_abstained for one in week) / answered) if answered else "–"
    slow = [one.latency_s for one in week if one.latency_s is not None]
    # Of days, not of answers: the median of a week cannot be told from those of its days.
    latency = f", median {sorted(slow)[len(slow) // 2]:.2g} s on the typical day" if slow else ""
    return (
        f"traffic in 7 days: {count(n, 'question')}, {absent} not in the contract, {count(n_errors, 'error')}{latency}"
    )


def _cost(facts: Facts) -> str:
    if not facts.renewals:
        return ""
    paid = f", {count(facts.paid_calls, 'paid call')}" if facts.paid_calls else ", no paid calls"
    return f"cost of all renewals: {duration(facts.seconds)}{paid}"
