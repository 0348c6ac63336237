"""A run served: its program is opened, on its own contracts or on a library's, and listens at an address."""

import errno
import os
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

import dspy
import uvicorn

from modules.embedder import load_embedder
from modules.retriever import PassageIndex, StoreError
from program.compile import build_adapter
from program.config import ConfigError
from program.contract_review import ContractReview
from program.evaluate_run import load_compiled, open_run, read_compiled
from program.feedback.store import FeedbackStore
from program.gate.shadow import Shadow
from program.gate.shadow_log import recorder
from program.library import open_library
from program.releases.reader import ReleaseReader
from program.releases.view import resolve
from program.run_retrieval import read_retrieval
from program.serve.app import create_app
from program.serve.auth import LOCAL_NAMES, MIN_TOKEN_CHARS, is_loopback
from program.serve.errors import ServeError
from program.serve.following import following
from program.serve.reviews import Reviews
from program.serve.session import IndexContracts, Session
from program.traces.policy import TracePolicy
from program.traces.store import TraceStore

TOKEN_VARIABLE = "EVERGREEN_TOKEN"
FILE_NAME = "feedback.db"
TRACES_NAME = "traces.db"
# Who waits for an answer when the server is stopped waits no longer.
_GRACE_S = 5

Say = Callable[[str], None]


def serve(
    run: Path | str,
    *,
    host: str = "127.0.0.1",
    port: int = 8765,
    token: str | None = None,
    store: Path | str | None = None,
    library: Path | str | None = None,
    rival: Path | str | None = None,
    shadow: Path | str | None = None,
    threads: int = 8,
    seed: int = 0,
    traces: Path | str | None = None,
    trace_policy: TracePolicy | None = TracePolicy(),  # noqa: B008  it is frozen
    say: Say | None = None,
) -> None:
    """Serve a run's program and the page to review with, until Ctrl-C; of a folder of releases, whatever is live.

    `store` is where feedback is kept (`feedback.db` beside the run's folder if not told), `library` a library whose
    contracts are asked in the place of the run's own, `rival` another run whose answers are laid beside, blind,
    `shadow` one that is asked the same, silently: both answers go to shadow/NAME.jsonl beside the feedback. Without
    one, of a folder of releases, the candidate that waits there is asked so (program/gate/shadow_now.py), unless
    `trace_policy` keeps no words, since both answers would be kept. Answers leave traces in `traces` (`traces.db`
    beside the feedback if not told) as `trace_policy` says, none where it is None. An address that others reach needs
    a `token` (or EVERGREEN_TOKEN) of 16 characters or more: ConfigError without.
    Raises RunError for a run that is not complete, StoreError for a store or library that cannot be opened, and
    ServeError where the port is taken.
    """
    say = say or (lambda line: print(line, file=sys.stderr))
    follow = Path(run) if ReleaseReader.is_root(Path(run)) else None
    run = resolve(run)
    token = checked_token(host, token or os.environ.get(TOKEN_VARIABLE) or None)
    read_compiled(run)
    with ExitStack() as stack:
        listening = stack.enter_context(listen(host, port))
        opened = stack.enter_context(FeedbackStore.open(store or run.absolute().parent / FILE_NAME))
        traced = None
        if trace_policy is not None:
            place = traces or opened.log.path.with_name(TRACES_NAME)
            traced = stack.enter_context(TraceStore.open(place, trace_policy))
        program = stack.enter_context(open_program(run, library))
        other = stack.enter_context(open_program(Path(rival), library)) if rival is not None else None
        contracts = IndexContracts(program.retrieve.index)
        shadows = opened.log.path.with_name("shadow")
        if shadow is not None:
            candidate = stack.enter_context(open_program(Path(shadow), library))
            pairs = shadows / f"{release_of(Path(shadow))}.jsonl"
            program = stack.enter_context(Shadow(program, candidate, recorder(pairs, release_of(run))))
            say(f"{release_of(Path(shadow))} is asked the same, silently: {pairs}")
        session = Session(
            program, contracts, opened, release=release_of(run), rival=other,
            rival_release=release_of(Path(rival)) if rival is not None else "", threads=threads, seed=seed,
            traces=traced,
        )  # fmt: skip
        if follow is not None:
            # A shadow that was asked for by hand is the one; and its answers are kept in full, or there is none.
            silent = shadows if shadow is None and _keeps_words(trace_policy) else None
            opening = partial(open_program, library=library)
            stack.enter_context(following(session, follow, opening, say, shadows=silent))
        stack.callback(session.close)
        reviews = Reviews(session)
        stack.callback(reviews.close)
        app = create_app(session, reviews, hosts=LOCAL_NAMES if is_loopback(host) else None, token=token)
        # No log of requests: the token stands in the address that is opened first.
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, timeout_graceful_shutdown=_GRACE_S, server_header=False
        )
        name = f"[{host}]" if ":" in host else host
        with_token = " (open it with ?token=... once)" if token else ""
        kept = f", traces in {traced.path}" if traced is not None else ""
        say(f"{len(session.contracts)} contracts, feedback in {opened.log.path}{kept}")
        say(f"http://{name}:{listening.getsockname()[1]}/{with_token}    Ctrl-C stops")
        # Uvicorn ends on Ctrl-C and then raises it again, but not in a process that was started to ignore it.
        with suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listening])
        lost = f", but {traced.lost} traces are lost" if traced is not None and traced.lost else ""
        say(f"stopped; what was answered and said is kept{lost}")


def _keeps_words(policy: TracePolicy | None) -> bool:
    """Whether questions and answers may be written down."""
    return policy is not None and policy.inputs == "full" and policy.personal_data == "keep"


def checked_token(host: str, token: str | None) -> str | None:
    """The token as it is; ConfigError where it is too short, or missing at an address that others reach."""
    if token is not None and len(token) < MIN_TOKEN_CHARS:
        raise ConfigError(f"the token has {len(token)} characters; give one of {MIN_TOKEN_CHARS} or more")
    if token is None and not is_loopback(host):
        raise ConfigError(
            f"{host} is reached by others, and there is no token. Give one of {MIN_TOKEN_CHARS} characters or more by "
            f"--token or {TOKEN_VARIABLE}, or serve on 127.0.0.1"
        )
    return token


@contextmanager
def listen(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that listens at the address, port 0 for any that is free; ServeError where it cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        made = socket.create_server((host.strip("[]"), port), family=family, backlog=128)
    except (OSError, OverflowError) as error:
        taken = getattr(error, "errno", None) == errno.EADDRINUSE
        why = "is in use by another process" if taken else f"cannot be listened at ({error})"
        raise ServeError(f"{host}:{port} {why}. Stop that one, or give another --host or --port.") from error
    try:
        yield made
    finally:
        made.close()


@contextmanager
def open_program(run: Path, library: Path | str | None = None) -> Iterator[ContractReview]:
    """A run's program, on its own index or on a library's; RunError, StoreError."""
    if library is None:
        with open_run(run) as program:
            yield program
        return
    config, _ = read_compiled(run)
    retrieval = read_retrieval(run)
    index = _open_for(library, run, retrieval.embedder)
    try:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
            program = load_compiled(run, index, retrieval.settings, config, Path(scratch))
            with dspy.context(adapter=build_adapter()):
                yield program
    finally:
        index.close()


def _open_for(library: Path | str, run: Path, embedder: Path | None) -> PassageIndex:
    """The library's index; StoreError where the run has tuned an embedder that the library is not indexed by."""
    if embedder is None:
        return open_library(library)
    try:
        return open_library(library, load_embedder(str(embedder)))
    except StoreError as error:
        raise StoreError(f"{error} Or let it retrieve as the run does: `evergreen adopt {library} {run}`.") from error


def release_of(run: Path) -> str:
    """What a run is called in what is recorded: its folder's name."""
    return run.absolute().name
