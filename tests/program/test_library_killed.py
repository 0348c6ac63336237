"""A run that is killed at any moment: the next one brings index and record back in step."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# One process imports everything and forks the runs: a fork that has not opened Chroma is as good as a fresh process.
FORKS = """
import hashlib, json, os, random, signal, sys, time, zlib
import numpy as np
from program.library import index_paths, open_library
from program.library_record import Record
from program import library_run
from modules import retriever

files, folder, seed, n_kills = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
# Many small writes, so that a kill falls between any two of them.
library_run._BATCH_CHARS = 4000
retriever._BATCH_PASSAGES = 8

class Slow:
    def encode(self, sentences, **_):
        time.sleep(0.001 * len(sentences))
        rows = np.ones((len(sentences), 16), dtype=np.float32) / 64
        for row, sentence in zip(rows, sentences):
            for word in sentence.split():
                row[zlib.crc32(word.encode()) % 16] += 1
        return rows

def forked(do):
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            do()
            os._exit(0)
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
    return pid

def run():
    report = index_paths([files], folder, embedder=Slow(), progress=False, prune=True)
    assert not report.failed, report.failed

def compare():
    index = open_library(folder, Slow())
    record = Record(__import__("pathlib").Path(folder), create=False)
    recorded = {row.contract_id: row.text_sha256 for row in record.sources("status = ?", "indexed")}
    held = {key: hashlib.sha256(index.contract_text(key).encode()).hexdigest() for key in index.contract_ids}
    assert held == recorded, (held.keys() ^ recorded.keys())
    passages = {hit.passage.id for key in held for hit in index.search("x", 10000, key)}
    assert set(index._store.passage_ids()) == passages
    assert len(os.listdir(folder + "/contracts")) == len(held)
    texts = {hashlib.sha256(open(os.path.join(files, name)).read().encode()).hexdigest() for name in os.listdir(files)}
    assert set(held.values()) == texts, "the library is not what the files are"
    # Chroma's own search over all finds each passage too.
    for key in list(held)[:5]:
        hit = index.search("x", 1, key)[0]
        assert hit.passage.id in {one.passage.id for one in index.search(hit.passage.text, 5)}

chance = random.Random(seed)

def change():
    for _ in range(6):
        n = chance.randrange(24)
        path = os.path.join(files, f"{n}.txt")
        if chance.random() < 0.25 and os.path.exists(path):
            os.unlink(path)
        else:
            words = chance.choices("law term price audit escrow notice".split(), k=chance.randrange(1, 900))
            text = f"{chance.random()} {' '.join(words)}." if chance.random() < 0.8 else "the same in several files"
            with open(path, "w") as file:
                file.write(text)

def wait(pid):
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)

killed = 0
full_s = None
for _ in range(30):
    change()
began = time.monotonic()
assert wait(forked(run)) == 0
full_s = time.monotonic() - began
for _ in range(n_kills):
    for _ in range(3):
        change()
    pid = forked(run)
    # Up to a whole first run: this one has less to do, so that some are killed at their very end, or not at all.
    time.sleep(chance.random() * full_s * 0.7)
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    killed += wait(pid) == -signal.SIGKILL
    if chance.random() < 0.6:
        assert wait(forked(run)) == 0, "the run after the kill failed"
        assert wait(forked(compare)) == 0, "index and record differ"
assert wait(forked(run)) == 0
assert wait(forked(compare)) == 0
print(json.dumps({"killed": killed, "full_s": full_s}))
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks the runs that it kills")
def test_killed_at_random_moments_the_next_run_mends_it(tmp_path):
    files = tmp_path / "files"
    files.mkdir()
    seed, n_kills = random.randrange(10**6), int(os.environ.get("EVERGREEN_KILLS", "4"))
    command = [sys.executable, "-c", FORKS, str(files), str(tmp_path / "library"), str(seed), str(n_kills)]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, f"seed {seed}: {done.stdout[-3000:]} {done.stderr[-3000:]}"
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["killed"] >= n_kills // 3, said
