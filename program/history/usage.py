"""What people asked and said, counted: traffic by day from the traces, feedback by month."""

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean, median

from program.feedback.store import FeedbackStore
from program.feedback.types import Choice, Correction, Event, Rating, Skip
from program.history.types import FeedbackMonth, TrafficDay
from program.traces.store import TraceStore
from program.traces.types import Trace


def read_traffic(traces: Path) -> tuple[tuple[TrafficDay, ...], str | None]:
    """Days with traffic, the first first, and when the newest trace is of; nothing where there is no file."""
    if not traces.is_file():
        return (), None
    with TraceStore.open(traces) as store:
        seen = list(store.between())
    return traffic_of(seen), max((trace.at for trace in seen), default=None)


def read_feedback(feedback: Path) -> tuple[tuple[FeedbackMonth, ...], str | None]:
    """Months with feedback, the first first, and when the newest was given; nothing where there is no file."""
    if not feedback.is_file():
        return (), None
    with FeedbackStore.open(feedback) as store:
        said = list(store.events())
    return feedback_of(said), max((event.at for event in said), default=None)


def traffic_of(traces: Iterable[Trace]) -> tuple[TrafficDay, ...]:
    """Counts by day (UTC)."""
    by_day: dict[str, list[Trace]] = defaultdict(list)
    for trace in traces:
        by_day[trace.at[:10]].append(trace)
    return tuple(_day(day, of_day) for day, of_day in sorted(by_day.items()))


def feedback_of(events: Iterable[Event]) -> tuple[FeedbackMonth, ...]:
    """Counts by calendar month (UTC)."""
    by_month: dict[str, list[Event]] = defaultdict(list)
    for event in events:
        by_month[event.at[:7]].append(event)
    return tuple(_month(month, of_month) for month, of_month in sorted(by_month.items()))


def _day(day: str, traces: list[Trace]) -> TrafficDay:
    shown = [trace for trace in traces if not trace.shadow]
    answered = [trace for trace in shown if trace.error is None]
    latencies = [trace.latency_s for trace in answered if trace.latency_s is not None]
    checked = [trace for trace in answered if trace.n_ungrounded is not None]
    return TrafficDay(
        day,
        n=len(shown),
        n_errors=len(shown) - len(answered),
        n_abstained=sum(trace.found is False for trace in answered),
        latency_s=median(latencies) if latencies else None,
        n_quotes=sum(trace.n_quotes for trace in checked),
        n_ungrounded=sum(trace.n_ungrounded or 0 for trace in checked),
        n_shadow=len(traces) - len(shown),
    )


def _month(month: str, events: list[Event]) -> FeedbackMonth:
    ratings = [event for event in events if isinstance(event, Rating)]
    stars = [rating.stars for rating in ratings if rating.stars is not None]
    n_of = {kind: sum(isinstance(event, kind) for event in events) for kind in (Correction, Choice, Skip)}
    return FeedbackMonth(
        month,
        n_ratings=len(ratings),
        n_up=sum(rating.thumbs == "up" for rating in ratings),
        n_down=sum(rating.thumbs == "down" for rating in ratings),
        n_stars=len(stars),
        stars=fmean(stars) if stars else None,
        n_corrections=n_of[Correction],
        n_choices=n_of[Choice],
        n_skips=n_of[Skip],
    )
