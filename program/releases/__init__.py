"""Releases: compiled programs that are never changed again, and the one of them that is live.

store = ReleaseStore.open("releases")
release = store.add("runs/mine")                         # 0007-3fa9c1d2
store.promote(release.id, "better on 3 of 4 skills", decision="2031-05-04")
with store.open_live() as served:                        # verified; a broken one is refused, and the one before served
    served.program(question="Which law governs?", contract_id="ACME_SUPPLY_AGREEMENT")
store.rollback("two reviewers saw invented quotes")
"""

from program.releases.store import ReleaseStore
from program.releases.types import Event, Release, ReleaseError, Served
from program.releases.view import resolve, view

__all__ = ["Event", "Release", "ReleaseError", "ReleaseStore", "Served", "resolve", "view"]
