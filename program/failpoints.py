"""Places where a test kills the process, to see that what it leaves behind is whole.

    EVERGREEN_FAILPOINT=release.promote.moved:2 evergreen releases promote 0007 --reason "..."

The process kills itself (SIGKILL, as a power cut would: nothing is cleaned up) when it comes to that place the second
time. Without the variable `reach` does nothing. A name that is not listed raises: a test would pass for nothing.
"""

import os
import signal
import threading
from collections import Counter

VARIABLE = "EVERGREEN_FAILPOINT"

# What has been done by then.
NAMES = {
    "release.add.drafted": "an empty hidden folder stands beside the releases",
    "release.add.file": "one more file is copied or linked into it",
    "release.add.copied": "all files of the run are in it",
    "release.add.checked": "the copies are the run's files, by their hashes",
    "release.add.carded": "the cards are written",
    "release.add.told": "the manifest is written",
    "release.add.synced": "all of it is on the disk",
    "release.add.moved": "it has its name, and the root is not yet synced",
    "release.add.frozen": "it is read-only",
    "release.promote.verified": "the release is whole, nothing is written",
    "release.promote.noted": "the history says that it is to be live",
    "release.promote.beside": "the new pointer stands beside the old one",
    "release.promote.moved": "the pointer is moved, and the root is not yet synced",
    "release.promote.synced": "all of it is on the disk",
    "release.rollback.verified": "the earlier release is whole, nothing is written",
    "release.rollback.noted": "the history says that it is to be live again",
    "release.rollback.beside": "the new pointer stands beside the old one",
    "release.rollback.moved": "the pointer is moved, and the root is not yet synced",
    "release.rollback.synced": "all of it is on the disk",
    "release.repair.torn": "what a killed writer left half written in the history is cut off",
    "release.repair.undone": "the history says which promotion never came to be",
    "release.collect.noted": "the history says what is to be removed",
    "release.collect.hidden": "one more release has lost its name",
    "release.collect.removing": "it is writable again, and not yet removed",
    "release.collect.removed": "it is gone",
}
NAMES |= {
    "label.proposed": "a round's drafts are made and checked, and none of them is kept",
    "label.kept": "those that passed are in the store of the run",
    "train.indexed": "all contracts are indexed beside what serves, nothing is asked yet",
    "train.scored": "a program is scored: the one that is started from, or a later one",
    "train.tuned": "every step of the recipe has ended, and nothing is saved",
    "train.save.program": "prompts and adapters are saved",
    "train.save.retrieval": "it is written which index they retrieve from",
    "train.save.logs": "all of the candidate is in its run, which has not ended",
    "run.finish.synced": "all of the run is on the disk, and it is still called running",
    "run.finish.marked": "it is called complete, and does not stand in its place yet",
    "run.finish.moved": "it stands in its place",
    "index.swap.built": "the new index stands beside the old one, and nothing retrieves from it",
    "index.swap.taken": "the candidate retrieves from it, and what is live from the old one",
    "gate.decided": "the decision is written, and its page is not",
    "refresh.carried": "the live program stands beside itself with a new index, and is not live with it yet",
    "promote.live": "the release is live, and what it learnt is not frozen yet",
    "serve.swap.opened": "the release that went live is open beside the one that answers, program and index",
    "serve.swap.moved": "it answers, and the one before is still open",
}
_STAGE = {
    "begin": "a stage of a renewal is about to begin",
    "made": "it is done, and its result is not on the disk yet",
    "kept": "its result is on the disk",
}
STAGES = tuple("inputs plan candidate skills latency gate release shadow compared promote quarantine refresh".split())
NAMES |= {f"renew.{stage}.{point}": told for stage in STAGES for point, told in _STAGE.items()}

_reached: Counter[str] = Counter()
_lock = threading.Lock()


def reach(name: str) -> None:
    """Kill this process if EVERGREEN_FAILPOINT is `name`, or `name:n` and this is the n-th time; ValueError if unknown.

    The variable is read every time, so a forked process can be given another one.
    """
    asked = os.environ.get(VARIABLE)
    if not asked:
        return
    wanted, _, times = asked.partition(":")
    for each in (name, wanted):
        if each not in NAMES:
            raise ValueError(f"there is no failpoint {each!r}; list it in program/failpoints.py, or correct {VARIABLE}")
    if name != wanted:
        return
    with _lock:
        _reached[name] += 1
        if _reached[name] >= int(times or 1):
            os.kill(os.getpid(), signal.SIGKILL)
