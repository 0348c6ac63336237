"""Serving goes on while releases change: when the pointer moves, the next question is answered by what is live then.

A release that is broken is refused as everywhere (program/releases), and the one that answers goes on answering.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from program.contract_review import ContractReview
from program.releases.reader import ReleaseReader
from program.releases.types import ReleaseError
from program.serve.session import IndexContracts, Live, Session

log = logging.getLogger(__name__)
Open = Callable[[Path], AbstractContextManager[ContractReview]]
Say = Callable[[str], None]


@contextmanager
def following(session: Session, root: Path, open_release: Open, say: Say, *, every_s: float = 5.0) -> Iterator[None]:
    """Within the block, the session answers by the release that is live in `root`, looked at every `every_s` seconds.

    `open_release` opens the program in a release's folder. The one before stays open for what it is still asked.
    """
    stop = threading.Event()
    thread = threading.Thread(
        target=_follow, args=(session, root, open_release, say, every_s, stop), name="following", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _follow(session: Session, root: Path, open_release: Open, say: Say, every_s: float, stop: threading.Event) -> None:
    # Entered and left in this thread: what a program is opened with belongs to the thread that opened it.
    opened: deque[ExitStack] = deque()
    refused: str | None = None
    try:
        while not stop.wait(every_s):
            try:
                found = ReleaseReader.open(root).servable()
                if found is None or found[0].id == session.release:
                    continue
                release, stack = found[0], ExitStack()
                program = stack.enter_context(open_release(release.path))
            except (ReleaseError, OSError, RuntimeError, ValueError) as error:
                if str(error) != refused:  # once, not every few seconds
                    refused = str(error)
                    log.warning("%s goes on answering: %s", session.release, error)
                continue
            session.swap(Live(program, release.id, IndexContracts(program.retrieve.index)))
            say(f"{release.id} answers now")
            opened.append(stack)
            if len(opened) > 2:
                opened.popleft().close()
    finally:
        while opened:
            opened.pop().close()
