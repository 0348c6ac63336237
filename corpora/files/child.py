"""The worker process as its parent holds it: start, ask, and end it when it overstays, dies or says too much."""

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from corpora.errors import CorpusError
from corpora.files.limits import FileLimits

_START_SECONDS = 120.0
_ROOT = Path(__file__).resolve().parents[2]


class Worker:
    """One worker process, of no more use once `alive` is False. Raises CorpusError if it does not start."""

    def __init__(self, scratch: str, limits: FileLimits) -> None:
        """`scratch` is a folder for temporary files, the caller's to remove; `limits` bound every file."""
        self.limits, self.n_files, self.alive = limits, 0, True
        # A character is six bytes at most ("\\u00e4"), a place some twenty; the rest is for names in zips.
        self._max_line = 6 * limits.max_chars + 64 * limits.max_paragraphs + 2**24
        self._said = tempfile.TemporaryFile(dir=scratch)
        paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        self._process = subprocess.Popen(
            # -P: a docx.py or json.py in the folder one happens to stand in must not be imported.
            [sys.executable, "-P", "-m", "corpora.files.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "TMPDIR": scratch, "TEMP": scratch},
            # Ctrl-C is for the parent, which then ends the child.
            start_new_session=True,
        )
        # select() does not know pipes on Windows; a full queue holds the worker back.
        self._lines: queue.Queue[bytes] = queue.Queue(maxsize=2)
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()
        first = self._next(_START_SECONDS)
        if first is None or "ready" not in first:
            self.kill()
            self._said.seek(0)
            tail = self._said.read()[-2000:].decode("utf-8", errors="replace").strip().splitlines()
            raise CorpusError(
                f"the process that reads files cannot be started ({tail[-1] if tail else 'it said nothing'}). Install "
                "evergreen with its dependencies again."
            )

    def ask(self, path: Path, members: tuple[str, ...]) -> Iterator[dict[str, Any]]:
        """The replies to one request, without the last, {"end": true}; {"failed": reason} where the worker is lost."""
        self.n_files += 1
        request = {"path": str(path), "members": members, "limits": asdict(self.limits)}
        left = self.limits.seconds
        whole = False
        try:
            self._send(request)
            while True:
                # Time in which the caller does something else with the last reply is not the file's.
                began = time.monotonic()
                reply = self._next(left)
                left -= time.monotonic() - began
                if reply is None:
                    yield {"failed": self._lost(left)}
                    return
                if "end" in reply:
                    whole = True
                    return
                yield reply
                if "memory" in reply:
                    # What is left of its heap is in pieces: the next file gets a fresh process.
                    return
        finally:
            if not whole:
                self.kill()

    def kill(self) -> None:
        """End the process, whatever it is doing."""
        self.alive = False
        self._process.kill()
        self._process.wait()
        while self._thread.is_alive():
            try:
                self._lines.get(timeout=0.02)
            except queue.Empty:
                pass
        self._process.stdout.close()
        try:
            self._process.stdin.close()
        except OSError:  # an unread request
            pass

    def _send(self, request: dict[str, Any]) -> None:
        try:
            self._process.stdin.write(json.dumps(request).encode("ascii") + b"\n")
            self._process.stdin.flush()
        except OSError:
            pass  # it is gone: the next reply says so

    def _listen(self) -> None:
        while line := self._process.stdout.readline(self._max_line):
            self._lines.put(line)
        self._lines.put(b"")

    def _next(self, seconds: float) -> dict[str, Any] | None:
        """The next reply; None where none comes in time, or what comes is none."""
        try:
            line = self._lines.get(timeout=max(0.0, seconds))
            reply = json.loads(line)
        except (queue.Empty, ValueError):
            return None
        return reply if isinstance(reply, dict) and line.endswith(b"\n") else None

    def _lost(self, left: float) -> str:
        limits = self.limits
        if left <= 0:
            return f"reading it takes more than {limits.seconds:g} s"
        try:
            code = self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            return "the answer of the process that reads it is too long"
        if code == -getattr(signal, "SIGXCPU", 0):
            return f"reading it takes more than {limits.seconds:g} s"
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return f"the process that reads it was lost over it ({name}), within {limits.memory_mb} MB of memory"
