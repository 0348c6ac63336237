"""Whether a home folder and its machine are well: every check on its own, and nothing is changed by any.

    for finding in examine(Home(Path("home"))):
        finding.level, finding.what, finding.why, finding.remedy    # "warning", "disk", "6.1 GB are free", "free some"

Not handled: whether a hosted model answers (that would be a paid call), and releases that are not live.
"""

from collections.abc import Callable
from datetime import UTC, datetime

from program.history.checks_config import check_config
from program.history.checks_home import check_clock, check_releases, check_renewals, check_stores
from program.history.checks_machine import check_index, check_machine, check_models, check_versions
from program.history.findings import Finding, well, wrong
from program.renewal.home import Home

Now = Callable[[], datetime]


def examine(home: Home, *, now: Now = lambda: datetime.now(UTC)) -> list[Finding]:
    """What every check found, in their order; a check that breaks down is an error itself and stops no other."""
    if not home.path.is_dir():
        return [wrong("home", f"there is no folder {home.path}", "give the folder that holds evergreen.toml")]
    checks: dict[str, Callable[[], list[Finding]]] = {
        "machine": lambda: check_machine(home),
        "versions": check_versions,
        "config": lambda: check_config(home),
        "models": lambda: check_models(home),
        "releases": lambda: check_releases(home),
        "index": lambda: check_index(home),
        "stores": lambda: check_stores(home),
        "renewals": lambda: check_renewals(home),
        "clock": lambda: check_clock(home, now()),
    }
    found = []
    for name, check in checks.items():
        try:
            found += check()
        except Exception as error:  # of any type: the other checks still say what they find
            why = f"it could not be checked ({type(error).__name__}: {error})"
            found.append(wrong(name, why, "mend what the message names, and examine again"))
    return found


def finding_lines(findings: list[Finding]) -> list[str]:
    """A line a finding, below it what to do where something is not well; the last line counts."""
    lines = []
    for one in findings:
        lines.append(f"{one.level:7}  {one.what}: {one.why}")
        if one.level != well("", "").level:
            lines.append(f"         -> {one.remedy}")
    counts = {level: sum(one.level == level for one in findings) for level in ("error", "warning")}
    return [*lines, f"{counts['error']} errors, {counts['warning']} warnings, {len(findings)} checks"]
