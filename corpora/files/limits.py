"""What a file may cost, and the error that says which bound it broke."""

from dataclasses import dataclass

from corpora.errors import CorpusError


class FileError(CorpusError):
    """A file cannot be read; the message is the reason, to be shown behind the file's name."""


@dataclass(frozen=True, slots=True)
class FileLimits:
    """Bounds of one file; the defaults are far above real contracts (CUAD's longest has 0.34 million characters).

    `seconds` is both wall clock and CPU time; `memory_mb` is address space above what the idle worker has. The `zip_`
    bounds hold for one outermost file with all that is nested in it. Bytes are of the file, unpacked where it lies in
    a zip. `zip_ratio` (unpacked over packed size) is looked at for entries above 1 MB. Raises ValueError.
    """

    seconds: float = 20.0
    memory_mb: int = 512
    max_bytes: int = 100_000_000
    max_chars: int = 10_000_000
    max_paragraphs: int = 200_000
    max_pages: int = 5_000
    zip_entries: int = 20_000
    zip_bytes: int = 4_000_000_000
    zip_ratio: int = 200
    zip_depth: int = 3

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be above 0.")
