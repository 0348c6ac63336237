"""What one run of `evergreen index` did, and how it is told."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class IndexReport:
    """The sources (`path`, `path!member`, `path#title`) of one run by what became of them; pairs hold a reason behind.

    `indexed` are new, `replaced` have another text than before; `duplicates` name the contract that has the same text;
    `missing` are in the library and no longer in the files, and stay (`pruned` did not). `notes` say what was assumed,
    replaced or left out in what was read. `failed` holds earlier failures of unchanged files too. `n_contracts` and
    `n_passages` are in the library now, `embedded_passages` were made in `seconds`.
    """

    folder: Path
    indexed: tuple[str, ...]
    replaced: tuple[str, ...]
    unchanged: tuple[str, ...]
    duplicates: tuple[tuple[str, str], ...]
    missing: tuple[str, ...]
    pruned: tuple[str, ...]
    failed: tuple[tuple[str, str], ...]
    notes: tuple[tuple[str, str], ...]
    n_contracts: int
    n_passages: int
    embedded_passages: int
    seconds: float

    @property
    def exit_code(self) -> int:
        """0, or 1 if nothing at all could be read."""
        return 0 if self.indexed or self.replaced or self.unchanged or self.duplicates else 1


def report_lines(report: IndexReport) -> Iterator[str]:
    """The closing summary: first what needs looking at, one line each, then the counts."""
    if report.notes:
        yield "read, with remarks:"
        yield from (f"  {source}: {note}" for source, note in report.notes)
    if report.duplicates:
        yield "the same text as a contract that is indexed:"
        yield from (f"  {source}: {contract_id}" for source, contract_id in report.duplicates)
    if report.missing:
        yield "in the library, but no longer in the files (--prune takes them out):"
        yield from (f"  {source}" for source in report.missing)
    if report.failed:
        yield "failed:"
        yield from (f"  {source}: {reason}" for source, reason in report.failed)
    counts = ", ".join(
        f"{len(getattr(report, name)):,} {label}"
        for name, label in (
            ("indexed", "indexed"),
            ("replaced", "replaced"),
            ("unchanged", "unchanged"),
            ("duplicates", "duplicates"),
            ("pruned", "pruned"),
            ("failed", "failed"),
        )
    )
    yield counts
    rate = report.embedded_passages / report.seconds if report.seconds else 0.0
    yield (
        f"{report.folder}: {report.n_contracts:,} contracts, {report.n_passages:,} passages; "
        f"{report.embedded_passages:,} embedded in {report.seconds:.0f} s ({rate:.0f} passages/s)"
    )
