"""Releases of a real run: opened, asked, and as they were afterwards."""

import logging
import shutil

import peft
import pytest

from program.evaluate_run import open_run
from program.releases import ReleaseStore, resolve, view


@pytest.fixture(scope="module")
def released(compiled, tmp_path_factory):
    """A store of two releases of one run, told apart by a line of its log; the second is live."""
    folder = tmp_path_factory.mktemp("released")
    again = shutil.copytree(compiled.path, folder / "again")
    with open(again / "compile.log", "a") as file:
        file.write("again\n")
    store = ReleaseStore.open(folder / "releases")
    one = store.add(compiled.path)
    two = store.add(again, parents=[one.id])
    for release in (one, two):
        store.promote(release.id, "better")
    return store, one, two


def test_the_live_release_answers_and_opening_it_changes_nothing(released, compiled):
    store, one, two = released
    contract = compiled.corpus.contracts[0].id
    with store.open_live() as served:
        assert (served.release.id, served.refused) == (two.id, ())
        assert contract in served.program.retrieve.index.contract_ids
        answer = served.program(question="Which law governs?", contract_id=contract)
        assert answer.passages
    for release in (one, two):
        store.verify(release.id)
    assert resolve(store.root) == two.path
    with view(two.path) as place, open_run(place) as program:
        assert program(question="Which law governs?", contract_id=contract).answer == answer.answer


def test_an_adapter_is_in_pefts_own_layout(released):
    _, one, _ = released
    for name in one.manifest["program"]["adapters"]:
        config = peft.PeftConfig.from_pretrained(one.path / "program" / "adapters" / name)
        assert config.peft_type == peft.PeftType.LORA


def test_a_corrupt_adapter_is_refused_and_the_release_before_answers(released, compiled, caplog):
    store, one, two = released
    path = next((two.path / "program").rglob("adapter_model.safetensors"))
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with caplog.at_level(logging.WARNING), store.open_live() as served:
        assert served.release.id == one.id and "adapter_model.safetensors" in served.refused[0]
        assert served.program(question="What is it?", contract_id=compiled.corpus.contracts[0].id).passages
    assert two.id in caplog.text
