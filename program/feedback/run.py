"""`evergreen feedback`: what a store holds, out of it and into it."""

from collections import Counter
from pathlib import Path

from program.feedback.exchange import read_feedback, write_feedback
from program.feedback.store import FeedbackStore


def manage(
    path: Path, *, export: Path | None = None, take: Path | None = None, withdraw: str | None = None
) -> list[str]:
    """Take in `take`, withdraw what the person named `withdraw` said, write `export`, in this order; what came of it.

    Raises StoreError, and FeedbackError for a file that is none, or a name under which nothing was said.
    """
    lines = []
    with FeedbackStore.open(path) as store:
        if take is not None:
            came = read_feedback(store, take)
            lines.append(f"taken in: {came.n_new} new, {came.n_known} here already, {came.n_withdrawn} withdrawn here")
        if withdraw is not None:
            lines.append(f"withdrawn: {len(store.withdraw(withdraw).event_ids)} events")
        if export is not None:
            write_feedback(store, export)
            lines.append(f"written: {export}")
        kinds = Counter(type(event).__name__.lower() for event in store.events())
        told = ", ".join(f"{n} {kind}" for kind, n in sorted(kinds.items())) or "no feedback yet"
        people = len({event.by for event in store.events()})
        lines.append(f"{sum(1 for _ in store.answers())} answers; {told}; {people} people")
    return lines
