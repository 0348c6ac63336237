"""Serving goes on while releases change: when the pointer moves, the next question is answered by what is live then.

A release that is broken is refused as everywhere (program/releases), and the one that answers goes on answering. A
candidate that waits in shadow (program/gate/shadow_now.py) is asked the same as the live release, silently, for as long
as it waits.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from program.contract_review import ContractReview
from program.failpoints import reach
from program.gate.shadow import Shadow
from program.gate.shadow_log import recorder
from program.gate.shadow_now import InShadow, read_shadow
from program.releases.reader import ReleaseReader
from program.releases.types import ReleaseError
from program.serve.session import IndexContracts, Live, Session

log = logging.getLogger(__name__)
Open = Callable[[Path], AbstractContextManager[ContractReview]]
Say = Callable[[str], None]
_REFUSALS = (ReleaseError, OSError, RuntimeError, ValueError)
# What a candidate is saying when its shadow ends is given so long before its index is closed.
_GRACE_S = 5.0


@contextmanager
def following(
    session: Session, root: Path, open_release: Open, say: Say, *, shadows: Path | None = None, every_s: float = 5.0
) -> Iterator[None]:
    """Within the block, the session answers by the release that is live in `root`, looked at every `every_s` seconds.

    `open_release` opens the program in a release's folder. The one before stays open for what it is still asked.
    `shadows` is the folder that says which release is asked silently, and that keeps both answers; None: nobody is.
    """
    stop = threading.Event()
    follower = _Follower(session, root, open_release, say, shadows)
    thread = threading.Thread(target=follower.run, args=(every_s, stop), name="following", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


class _Follower:
    """Entered and left in one thread: what a program is opened with belongs to the thread that opened it."""

    def __init__(self, session: Session, root: Path, open_release: Open, say: Say, shadows: Path | None) -> None:
        self._session, self._root, self._open, self._say, self._shadows = session, root, open_release, say, shadows
        self._program = session.live.program  # of the live release, without whoever is asked beside it
        self._opened: deque[ExitStack] = deque()
        self._beside: tuple[InShadow, ExitStack] | None = None
        self._refused: str | None = None

    def run(self, every_s: float, stop: threading.Event) -> None:
        try:
            while not stop.wait(every_s):
                for look in (self._follow, self._shadow):
                    try:
                        look()
                    except _REFUSALS as error:
                        if str(error) != self._refused:  # once, not every few seconds
                            self._refused = str(error)
                            log.warning("%s goes on answering: %s", self._session.release, error)
        finally:
            self._end_shadow()
            while self._opened:
                self._opened.pop().close()

    def _follow(self) -> None:
        found = ReleaseReader.open(self._root).servable()
        if found is None or found[0].id == self._session.release:
            return
        release, stack = found[0], ExitStack()
        program = stack.enter_context(self._open(release.path))
        reach("serve.swap.opened")
        self._program = program
        self._session.swap(Live(program, release.id, IndexContracts(program.retrieve.index)))
        reach("serve.swap.moved")
        self._end_shadow()
        self._say(f"{release.id} answers now")
        self._opened.append(stack)
        if len(self._opened) > 2:
            self._opened.popleft().close()

    def _shadow(self) -> None:
        told = None if self._shadows is None else read_shadow(self._shadows)
        wanted = told if told is not None and told.beside == self._session.release else None
        if wanted == (self._beside[0] if self._beside else None):
            return
        self._end_shadow()
        if wanted is None:
            return
        stack = ExitStack()
        candidate = stack.enter_context(self._open(ReleaseReader.open(self._root).verify(wanted.release).path))
        pairs = self._shadows / f"{wanted.release}.jsonl"
        silent = Shadow(self._program, candidate, recorder(pairs, wanted.beside), share=wanted.share)
        stack.callback(silent.drain, _GRACE_S)
        stack.callback(silent.close)
        self._beside = wanted, stack
        self._session.swap(Live(silent, self._session.release, self._session.contracts))
        self._say(f"{wanted.release} is asked the same, silently: {pairs}")

    def _end_shadow(self) -> None:
        if self._beside is None:
            return
        (told, stack), self._beside = self._beside, None
        self._session.swap(Live(self._program, self._session.release, self._session.contracts))
        stack.close()
        self._say(f"{told.release} is asked no more")
