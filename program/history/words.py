"""Numbers and times of the facts in words, for the page and the terminal alike."""

from datetime import datetime

from program.history.types import Score


def percent(score: Score | None) -> str:
    """ "82.4% [80.1, 84.8]"; "–" where nothing was measured, no brackets where no spread is known."""
    if score is None:
        return "–"
    return " ".join(filter(None, (share(score.mean), interval(score))))


def interval(score: Score | None) -> str:
    """ "[80.1, 84.8]" of a score in percent, or ""."""
    if score is None or score.low is None or score.high is None:
        return ""
    return f"[{100 * score.low:.1f}, {100 * score.high:.1f}]"


def points(score: Score | None) -> str:
    """ "+1.3 [−0.4, +3.0]", a difference in percentage points; "–" where nothing was measured."""
    if score is None:
        return "–"
    return " ".join(filter(None, (signed(score.mean), signed_interval(score))))


def signed_interval(score: Score | None) -> str:
    """ "[−0.4, +3.0]" of a difference, or ""."""
    if score is None or score.low is None or score.high is None:
        return ""
    return f"[{signed(score.low)}, {signed(score.high)}]"


def signed(value: float) -> str:
    """ "−0.4", percentage points of a share."""
    return f"{100 * value:+.1f}".replace("-", "−")


def share(value: float | None) -> str:
    """ "12.5%", or "–"."""
    return "–" if value is None else f"{100 * value:.1f}%"


def count(n: int, noun: str) -> str:
    """ "1 quote", "1,204 quotes"."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def day(at: str | None) -> str:
    """ "4 May 2031" of a time, "–" for none."""
    if at is None:
        return "–"
    time = datetime.fromisoformat(at)
    return f"{time.day} {time:%b %Y}"


def age(at: str | None, now: str) -> str:
    """ "212 days", "today"; "" for no time, or one after now: the clock is told of elsewhere."""
    if at is None or at > now:
        return ""
    days = (datetime.fromisoformat(now) - datetime.fromisoformat(at)).days
    return "today" if days == 0 else count(days, "day")


def duration(seconds: float) -> str:
    """ "48 s", "12 min", "3 h 20 min"."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def one_line(text: str, chars: int = 160) -> str:
    """The text on one line without control characters (a terminal would obey them), cut to `chars`."""
    clean = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return clean if len(clean) <= chars else f"{clean[: chars - 1].rstrip()}…"
