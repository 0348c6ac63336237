"""The child that parses: requests and replies are JSON lines on its standard input and output. Started by `reader.py`.

    {"path": "/contracts/all.zip", "members": ["2019/acme.pdf"], "limits": {"seconds": 20.0, ...}}
    {"document": {"text": "SUPPLY AGREEMENT ...", "places": [[0, 1, 1], ...], "notes": []}}
    {"end": true}

One request has one or more replies: `document`; `contract` for each of a CUADv1-format file; `zip` with the names
inside; `failed` with the reason. On Unix the process bounds its own address space and CPU time before it opens a file;
elsewhere the parent's clock is the only bound.
"""

import json
import logging
import math
import os
import sys
import tempfile
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any

from corpora.cuad import read_cuad
from corpora.errors import CorpusError
from corpora.files.archives import members, office_kind, open_archive, read_member, spooled
from corpora.files.docx import read_docx
from corpora.files.html import read_html
from corpora.files.kinds import HEAD_BYTES, is_zip, kind_of
from corpora.files.limits import FileError, FileLimits
from corpora.files.pdf import read_pdf
from corpora.files.places import compose, locate
from corpora.files.text import clean, decode, said
from corpora.types import Place

try:
    import resource
except ImportError:  # not on Windows
    resource = None

_archives: dict[tuple[Any, ...], zipfile.ZipFile] = {}


def main() -> None:
    """Answer requests until standard input ends."""
    # Whatever a parser prints must not stand between the replies.
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="ascii", newline="\n")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    idle_bytes = _address_space()
    _say(replies, {"ready": True})
    for line in sys.stdin:
        request = json.loads(line)
        limits = FileLimits(**request["limits"])
        _bound(idle_bytes, limits)
        failure = _answer(replies, request, limits)
        if failure is not None:
            _say(replies, failure)
        _say(replies, {"end": True})


def _answer(replies: IO[str], request: dict[str, Any], limits: FileLimits) -> dict[str, Any] | None:
    """Say what the file holds; what went wrong is given back, when the frames that held the memory are gone."""
    try:
        for reply in _replies(request["path"], tuple(request["members"]), limits):
            _say(replies, reply)
    except MemoryError:
        return {"failed": f"reading it takes more than {limits.memory_mb} MB of memory", "memory": True}
    except RecursionError:
        return {"failed": "it is nested too deeply"}
    except OSError as error:
        return {"failed": f"it cannot be read ({error.strerror or error})", "passing": True}
    except CorpusError as error:
        return {"failed": str(error)[:1000]}
    except Exception as error:  # a malformed file can trip a parser in any way
        return {"failed": f"it is malformed ({type(error).__name__}: {error})"[:400]}
    return None


def _replies(path: str, inside: tuple[str, ...], limits: FileLimits) -> Iterator[dict[str, Any]]:
    """What a file, or the member at the end of a chain of zips in it, holds."""
    office = None
    if inside:
        data = read_member(_archive(path, inside[:-1], limits), inside[-1], limits)
        if is_zip(data):
            office = office_kind(open_archive(spooled(data), limits), limits)
            if office is None:
                yield _listing(_archive(path, inside, limits), data[:HEAD_BYTES], inside[-1], limits)
                return
        yield from _read(data, inside[-1], office, limits)
        return
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(HEAD_BYTES)
        if is_zip(head):
            archive = _archive(path, (), limits)
            office = office_kind(archive, limits)
            if office is None:
                # A zip is read member by member, so that its own size does not count.
                yield _listing(archive, head, path, limits)
                return
        if size > limits.max_bytes:
            raise FileError(f"it has {size:,} bytes, and {limits.max_bytes:,} is the limit of a file")
        yield from _read(head + file.read(limits.max_bytes), path, office, limits)


def _read(data: bytes, name: str, office: str | None, limits: FileLimits) -> Iterator[dict[str, Any]]:
    """The contracts in these bytes, which are no plain zip; `office` is what `office_kind` says of them."""
    kind, notes = kind_of(data[:HEAD_BYTES], name, office)
    if kind == "json":
        yield from _cuad(data, name, notes, limits)
        return
    if kind in ("txt", "md"):
        text, places, more = _plain(data, limits)
    else:
        paragraphs, more = (
            read_html(data) if kind == "html" else read_docx(data) if kind == "docx" else read_pdf(data, limits)
        )
        text, places = compose(paragraphs, limits)
    if not places:
        raise FileError("; ".join(["there is no text in it", *notes, *more]))
    rows = [[place.start, place.page, place.paragraph] for place in places]
    yield {"document": {"text": text, "places": rows, "notes": notes + more}}


def _plain(data: bytes, limits: FileLimits) -> tuple[str, tuple[Place, ...], list[str]]:
    text, notes = decode(data)
    if len(text) > limits.max_chars:
        raise FileError(
            f"its text has {len(text):,} characters, and {limits.max_chars:,} is the limit for one contract"
        )
    changed: Counter[str] = Counter()
    text = clean(text, changed)
    return text, locate(text, limits), notes + said(changed)


def _cuad(data: bytes, name: str, notes: list[str], limits: FileLimits) -> Iterator[dict[str, Any]]:
    """The contracts as they are: labels count their characters."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / (PurePosixPath(name.replace("\\", "/")).name or "file.json")
        path.write_bytes(data)
        try:
            corpus = read_cuad(path)
        except CorpusError as error:
            raise FileError(str(error).replace(f"{folder}{os.sep}", "")) from error
    total, done = sum(len(contract.text) for contract in corpus.contracts), 0
    for contract in corpus.contracts:
        done += len(contract.text)
        if len(contract.text) > limits.max_chars:
            reason = f"its text has {len(contract.text):,} characters, and {limits.max_chars:,} is the limit"
            yield {"failed": reason, "title": contract.id}
        else:
            yield {"contract": {"id": contract.id, "text": contract.text, "notes": notes, "share": done / total}}
    if not corpus.contracts:
        raise FileError("there is no contract in it")


def _archive(path: str, inside: tuple[str, ...], limits: FileLimits) -> zipfile.ZipFile:
    """The zip at the end of the chain, kept open while its members are asked for."""
    stat = os.stat(path)
    keys = [(path, stat.st_size, stat.st_mtime_ns, inside[:depth]) for depth in range(len(inside) + 1)]
    for stale in [key for key in _archives if key not in keys]:
        _archives.pop(stale).close()
    for key in keys:
        if key not in _archives:
            chain = key[-1]
            # Unnamed and closed with the ZipFile: ZipFile closes only what it has opened itself.
            file: IO[bytes] | str
            file = (
                spooled(read_member(_archives[keys[len(chain) - 1]], chain[-1], limits)) if chain else open(path, "rb")
            )
            _archives[key] = open_archive(file, limits)
    return _archives[keys[-1]]


def _listing(archive: zipfile.ZipFile, head: bytes, name: str, limits: FileLimits) -> dict[str, Any]:
    _, notes = kind_of(head, name)
    good, refused = members(archive, limits)
    return {"zip": {"members": good, "refused": refused, "notes": notes}}


def _bound(idle_bytes: int, limits: FileLimits) -> None:
    """Bound address space and CPU time for the next file; SIGXCPU ends the process when the time is spent."""
    if resource is None:
        return
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = math.ceil(used.ru_utime + used.ru_stime + limits.seconds)
    for what, most in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_AS, idle_bytes + limits.memory_mb * 2**20),
        (resource.RLIMIT_CPU, seconds + 1),
    ):
        hard = resource.getrlimit(what)[1]
        resource.setrlimit(what, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def _address_space() -> int:
    """What this process has mapped before it opens a file, in bytes; a guess where /proc does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except (OSError, AttributeError):
        return 200 * 2**20


def _say(replies: IO[str], reply: dict[str, Any]) -> None:
    replies.write(json.dumps(reply) + "\n")
    replies.flush()


if __name__ == "__main__":
    main()
