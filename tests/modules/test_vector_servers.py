"""An index whose vectors are on Chroma servers, started here as a user starts them."""

import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from modules.index_files import StoreError
from modules.retriever import PassageIndex
from tests.modules.test_retriever import WORDS, WordEmbedder, contract


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    """Addresses of two Chroma servers."""
    chroma = shutil.which("chroma", path=str(Path(sys.executable).parent))
    if chroma is None:
        pytest.skip("the command `chroma` is not installed beside this Python")
    ports, processes = [], []
    for i in range(2):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            ports.append(free.getsockname()[1])
        folder = tmp_path_factory.mktemp(f"server{i}")
        command = [chroma, "run", "--path", str(folder), "--host", "127.0.0.1", "--port", str(ports[-1])]
        processes.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
    for port in ports:
        _wait(port)
    yield [f"http://127.0.0.1:{port}" for port in ports]
    for process in processes:
        process.kill()
        process.wait()


def _wait(port):
    for _ in range(300):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    pytest.fail(f"the Chroma server on port {port} did not start within 30 s")


@pytest.mark.parametrize("n_servers", [1, 2])
def test_servers_find_what_a_folder_finds(servers, tmp_path, n_servers):
    embedder = WordEmbedder()
    contracts = [contract(name, words) for name, words in zip("abcdef", [WORDS, WORDS[:4], WORDS[2:]] * 2, strict=True)]
    local = PassageIndex.build(contracts, folder=tmp_path / "local", embedder=embedder, progress=False)
    remote = PassageIndex.build(
        contracts, folder=tmp_path / "remote", embedder=embedder, servers=servers[:n_servers], progress=False
    )
    assert not (tmp_path / "remote" / "chroma").exists()
    for query in ("audit of the books", "the price", "notice"):
        for key in (None, "c"):
            ours, theirs = (index.search(query, 9, key) for index in (local, remote))
            if key:  # over all contracts many passages are equally near
                assert [hit.passage for hit in ours] == [hit.passage for hit in theirs]
            assert [hit.score for hit in ours] == pytest.approx([hit.score for hit in theirs], abs=1e-5)
    remote.remove(["c"])
    remote.add([contract("a", WORDS[:2])], progress=False)
    remote.close()
    again = PassageIndex.open(tmp_path / "remote", embedder)
    assert again.contract_ids == ("a", "b", "d", "e", "f")
    assert len(again._store) == again.n_passages == len(set(again._store.passage_ids()))
    assert again.repair() == () and again.search("escrow", 1, "a")
    again.close()
    local.close()


def test_two_indexes_on_one_server_keep_apart(servers, tmp_path):
    embedder = WordEmbedder()
    one, two = (
        PassageIndex.build(
            [contract(name)], folder=tmp_path / name, embedder=embedder, servers=servers[:1], progress=False
        )
        for name in "ab"
    )
    assert {hit.passage.contract_id for hit in one.search("audit", 20)} == {"a"}
    assert {hit.passage.contract_id for hit in two.search("audit", 20)} == {"b"}
    one.close()
    two.close()


def test_a_server_that_does_not_answer_is_named(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(StoreError, match=f"no Chroma server answers at '{nobody}'.*chroma run"):
        PassageIndex.build([contract("a")], folder=tmp_path, embedder=WordEmbedder(), servers=[nobody], progress=False)
