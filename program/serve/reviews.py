"""Reviews of whole contracts that run in the background, and how far each is.

Not handled: a restart. Its findings are recorded, but the review itself is forgotten and has to be started again.
"""

import logging
import threading
import uuid
from collections import OrderedDict
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from corpora.cuad import CATEGORIES
from program.feedback.rows import UnknownError
from program.feedback.types import Answered, Review
from program.serve.errors import ConflictError
from program.serve.session import Session

RUNNING, DONE, FAILED = "running", "done", "failed"
# Of the reviews that have ended, so many are remembered.
_REMEMBERED = 100
_MAX_WAITING = 20

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a review is: `findings` by the number of their category; `error` says why it failed."""

    id: str
    contract_id: str
    release: str
    total: int
    state: str = RUNNING
    error: str | None = None
    findings: dict[int, Answered] = field(default_factory=dict)


class Reviews:
    """Starts reviews of a session, one at a time, and tells how far they are."""

    def __init__(self, session: Session, *, categories: tuple[str, ...] = tuple(c.name for c in CATEGORIES)) -> None:
        self._session, self._categories = session, categories
        self._known: OrderedDict[str, Progress] = OrderedDict()
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="reviewing")

    def close(self) -> None:
        """Start nothing more; returns when what runs has ended."""
        self._pool.shutdown(cancel_futures=True)

    def start(self, contract_id: str) -> str:
        """Begin a review, or the one of this contract that runs already; its id. UnknownError, ConflictError."""
        self._session.contract(contract_id)
        with self._lock:
            running = [each for each in self._known.values() if each.state == RUNNING]
            for each in running:
                if each.contract_id == contract_id:
                    return each.id
            if len(running) >= _MAX_WAITING:
                raise ConflictError(f"{len(running)} reviews are running or waiting. Wait for one to end.")
            started = Progress(uuid.uuid4().hex, contract_id, self._session.release, len(self._categories))
            self._known[started.id] = started
            ended = [each.id for each in self._known.values() if each.state != RUNNING]
            for review_id in ended[: max(0, len(ended) - _REMEMBERED)]:
                del self._known[review_id]
        self._pool.submit(self._run, started.id, contract_id)
        return started.id

    def get(self, review_id: str) -> Progress:
        """How far a review is; UnknownError."""
        with self._lock:
            if review_id not in self._known:
                raise UnknownError(f"the server has no review {review_id[:40]!r} since it was started. Start it again.")
            known = self._known[review_id]
            return replace(known, findings=dict(sorted(known.findings.items())))

    def finished(self, review_id: str) -> Review:
        """A review that is done; ConflictError while it is not."""
        known = self.get(review_id)
        if known.state != DONE:
            raise ConflictError(
                f"the review is {known.state}, and there is nothing whole to export. Wait, or start it anew."
            )
        return Review(known.contract_id, known.release, tuple(known.findings.values()))

    def _run(self, review_id: str, contract_id: str) -> None:
        def found(number: int, answered: Answered) -> None:
            with self._lock:
                self._known[review_id].findings[number] = answered

        try:
            self._session.review(contract_id, found, categories=self._categories)
            ended = {"state": DONE}
        except CancelledError:
            ended = {"state": FAILED, "error": "The server was stopped."}
        except Exception as error:  # whatever the program raises: it is told where the review is asked for
            logger.exception("the review of %r failed", contract_id)
            ended = {"state": FAILED, "error": f"{type(error).__name__}: {error}"}
        with self._lock:
            self._known[review_id] = replace(self._known[review_id], **ended)
