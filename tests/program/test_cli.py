import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from corpora.cuad import read_cuad
from corpora.errors import CorpusError
from program import cli
from program import compile as compile_module
from program.config import load_config
from program.releases.store import ReleaseStore
from program.runs import read_run
from tests.program.releases_fakes import write_run

LIGHT = """
import sys
from program import cli
codes = []
for arguments in ARGUMENTS:
    sys.argv = ["evergreen", *arguments]
    try:
        cli.main()
    except SystemExit as leaving:
        codes.append(leaving.code)
print(codes, sorted({"torch", "dspy", "transformers", "chromadb", "trl"} & set(sys.modules)))
"""


@pytest.fixture
def evergreen(monkeypatch, capsys):
    """`evergreen(*arguments)` runs the command in this process: (exit code, standard output, standard error)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["evergreen", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            cli.main()
        said = capsys.readouterr()
        return left.value.code, said.out, said.err

    return run


def _write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def _config(path, config, **changes):
    kept = {key: getattr(config, key) for key in config.__dataclass_fields__ if getattr(config, key) is not None}
    return _write(path, kept | changes)


def test_help_and_early_errors_wait_for_no_library(tmp_path):
    argument_lists = [
        ["--help"],
        ["compile", "--help"],
        ["compile"],
        ["compile", "--corpus", "nope.json"],
        ["compile", "--corpus", "nope.json", "--recipe", "p,s"],
        ["evaluate", "nope", "--corpus", "nope.json"],
        ["ask", "nope", "Renewal Term"],
        ["index", "nope", "--out", "library"],
        ["index", "--help"],
        ["demo", "--house", "nobody"],
        ["generate", "c.json", "--house", "nobody"],
    ]
    program = LIGHT.replace("ARGUMENTS", repr(argument_lists))
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-1] == "[0, 0, 2, 2, 2, 1, 1, 2, 0, 2, 2] []", done.stderr
    ours = done.stderr.splitlines()
    assert len(ours) == 8 and all(line.startswith("evergreen: ") for line in ours)
    assert not list(tmp_path.iterdir())


EMPTY = {"data": [{"title": "void", "paragraphs": [{"context": " \n", "qas": []}]}]}


@pytest.mark.parametrize(
    ("files", "arguments", "words"),
    [
        ({}, "compile --corpus c.json", "there is no file c.json; give a CUADv1-format"),
        ({"c.json": "{"}, "compile --corpus c.json", "c.json is not JSON"),
        ({"c.json": []}, "compile --corpus c.json", "no 'data'"),
        ({"c.json": EMPTY}, "compile --corpus c.json", "contract 'void': the contract has no text"),
        ({"c.json": EMPTY}, "compile --corpus c.json --test t.json", "there is no file t.json"),
        ({"c.json": EMPTY}, "compile --corpus c.json --recipe x", r"unknown steps ['x']"),
        ({"c.json": EMPTY}, "compile --corpus c.json --threads 0", "threads is 0; it must be at least 1"),
        ({"c.json": EMPTY, "e.toml": "sed = 1"}, "compile --config e.toml", "key 'sed'; did you mean 'seed'?"),
        ({}, "compile --config e.toml", "e.toml cannot be read"),
        ({"e.toml": ""}, "compile --config e.toml", "no corpus is given; name a CUADv1-format file with --corpus"),
        ({}, "generate out.json --house nobody", "nobody"),
        ({}, "demo --house nobody", "nobody"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(evergreen, tmp_path, monkeypatch, files, arguments, words):
    monkeypatch.chdir(tmp_path)
    for name, content in files.items():
        _write(tmp_path / name, content)
    code, out, err = evergreen(*arguments.split())
    assert (code, out) == (2, "")
    assert err.startswith("evergreen: ") and err.count("\n") == 1 and words in err
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(files)  # nothing was begun


@pytest.mark.parametrize(
    "arguments", ["compile --corpos c.json", "compile --seed x", "generate", "generate o --contracts 0", "fly"]
)
def test_wrong_use_is_exit_code_2(evergreen, arguments):
    code, out, err = evergreen(*arguments.split())
    assert (code, out) == (2, "") and "Usage: " in err and "Traceback" not in err


def test_a_corpus_too_small_to_split_is_refused(evergreen, tmp_path):
    corpus = tmp_path / "c.json"
    assert evergreen("generate", corpus, "--contracts", 2, "--house", "juniper")[0] == 0
    code, _, err = evergreen("compile", "--corpus", corpus, "--out", tmp_path / "run")
    assert code == 2 and err.count("\n") == 1 and "at least 3" in err and not (tmp_path / "run").exists()


def test_a_model_without_a_chat_template_is_refused(evergreen, tmp_path, small_corpus, tiny_model, small_config):
    lm = shutil.copytree(tiny_model(), tmp_path / "plain")
    (lm / "chat_template.jinja").unlink()
    small_corpus(tmp_path / "c.json", n_contracts=3)
    config = _config(tmp_path / "e.json", small_config(tmp_path / "c.json", lm, tmp_path / "run"))
    code, out, err = evergreen("compile", "--config", config)
    assert (code, out) == (1, "") and err.count("\n") == 1 and "has no chat template; put a chat_template.jinja" in err
    assert not list(tmp_path.glob("run*"))  # nothing was begun


def test_a_complete_run_and_other_folders_are_not_replaced(evergreen, compiled, tmp_path, small_corpus, small_config):
    small_corpus(tmp_path / "c.json", n_contracts=3)
    (tmp_path / "thesis").mkdir()
    _write(tmp_path / "thesis" / "chapter.txt", "dear")
    for out, words in ((compiled.path, "choose another path, or overwrite"), (tmp_path / "thesis", "is no run folder")):
        config = _config(tmp_path / "e.json", small_config(tmp_path / "c.json", "none", out))
        code, _, err = evergreen("compile", "--config", config)
        assert code == 1 and err.count("\n") == 1 and words in err


def test_ask_and_evaluate_want_a_compiled_run(evergreen, tmp_path, small_corpus):
    small_corpus(tmp_path / "c.json", n_contracts=1)
    for arguments in (("ask", tmp_path, "Insurance"), ("evaluate", tmp_path, "--corpus", tmp_path / "c.json")):
        code, out, err = evergreen(*arguments)
        assert (code, out) == (1, "") and err.count("\n") == 1 and "no run folder" in err
    (tmp_path / "half").mkdir()
    _write(tmp_path / "half" / "STATUS", "partial\nstopped with Ctrl-C\n")
    code, _, err = evergreen("ask", tmp_path / "half", "Insurance")
    assert code == 1 and "is partial and holds no compiled program" in err


def test_ask_shows_the_answer_or_names_what_is_missing(evergreen, compiled):
    contract = compiled.corpus.contracts[0].id
    code, out, err = evergreen("ask", compiled.path, "Governing Law", "--contract", contract)
    assert code == 0 and "(confidence 0.00)" in out, err
    code, out, err = evergreen("ask", compiled.path, "Governing Law", "--contract", "nope")
    ours = [line for line in err.splitlines() if line.startswith("evergreen: ")]
    assert (code, out, len(ours)) == (1, "", 1) and "'nope'" in ours[0] and "Traceback" not in err
    code, out, err = evergreen("ask", compiled.path, " ")
    assert code == 1 and "the question is empty" in err


def test_evaluate_scores_beside_the_run_unless_told_otherwise(evergreen, monkeypatch, tmp_path, small_corpus):
    from program import evaluate_run

    small_corpus(tmp_path / "new.json", n_contracts=1)
    (tmp_path / "run").mkdir()
    _write(tmp_path / "run" / "STATUS", "complete\n")
    asked = []

    def note(run, corpus, out, **options):
        asked.append((run, out, options))
        raise CorpusError("enough")

    monkeypatch.setattr(evaluate_run, "evaluate_run", note)
    monkeypatch.chdir(tmp_path / "run")
    options = ["--out", "there", "--max-contracts", "3"]
    for run, beside in ((tmp_path / "run", []), (Path("."), []), (Path("."), options)):
        assert evergreen("evaluate", run, "--corpus", tmp_path / "new.json", *beside)[0] == 2
    assert [out for _, out, _ in asked] == [tmp_path / "run-on-new", tmp_path / "run-on-new", Path("there")]
    assert asked[2][2]["max_contracts"] == 3 and asked[2][2]["command"].startswith("evergreen evaluate . --corpus")


def test_options_go_over_the_config_and_the_scores_are_shown(evergreen, monkeypatch, tmp_path, compiled, small_corpus):
    small_corpus(tmp_path / "c.json", n_contracts=3)
    config = _config(tmp_path / "e.json", compiled.config, seed=7, recipe="s")
    seen = []

    def note(config, **options):
        seen.append((config, options))
        return compiled.result

    monkeypatch.setattr(compile_module, "compile", note)
    options = ["--corpus", tmp_path / "c.json", "--seed", "8", "--threads", "2", "--overwrite"]
    code, out, _ = evergreen("compile", "--config", config, *options)
    assert code == 0 and "Exact match, all questions" in out and "kept: p -> s   report: " in out
    assert "p -> s: +0.0 points of exact match over the base, no interval from one contract" in out
    (resolved, given), *others = seen
    assert resolved == load_config(config, {"corpus": str(tmp_path / "c.json"), "seed": 8, "threads": 2}) and not others
    assert resolved.recipe == "s" and given["overwrite"] is True
    assert given["command"].startswith("evergreen compile --config")


@pytest.mark.parametrize(
    ("raised", "code", "words"),
    [
        (KeyboardInterrupt(), 130, "marked partial, and an earlier complete run stays"),
        (KeyError("gold"), 1, "KeyError: 'gold'; run again with --debug"),
        (MemoryError(), 1, "MemoryError: "),
        (CorpusError("two\nlines"), 2, "evergreen: two lines\n"),
    ],
)
def test_whatever_is_raised_ends_in_one_line(evergreen, monkeypatch, tmp_path, small_corpus, raised, code, words):
    def fail(*_, **__):
        raise raised

    monkeypatch.setattr(compile_module, "compile", fail)
    small_corpus(tmp_path / "c.json", n_contracts=1)
    left, out, err = evergreen("compile", "--corpus", tmp_path / "c.json")
    assert (left, out) == (code, "") and words in err and err.count("\n") == 1 and err.startswith("evergreen: ")


def test_a_note_on_an_error_is_said_with_it(evergreen, monkeypatch, tmp_path, small_corpus):
    def fail(*_, **__):
        error = CorpusError("broken.")
        error.add_note("The run lies there.")
        raise error

    monkeypatch.setattr(compile_module, "compile", fail)
    small_corpus(tmp_path / "c.json", n_contracts=1)
    assert evergreen("compile", "--corpus", tmp_path / "c.json")[2] == "evergreen: broken. The run lies there.\n"


def test_debug_shows_where(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["evergreen", "compile", "--corpus", str(tmp_path / "none.json"), "--debug"])
    with pytest.raises(CorpusError, match="there is no file"):
        cli.main()


@pytest.fixture
def words_for_vectors(monkeypatch):
    """`evergreen index` with counts of letters instead of the embedder's model."""
    from program import library

    monkeypatch.setattr(library, "load_embedder", lambda name, device: LetterEmbedder())


class LetterEmbedder:
    def encode(self, sentences, **_):
        return np.array(
            [[1 + sentence.count(letter) for letter in "aeiou"] for sentence in sentences], dtype=np.float32
        )


def test_index_reads_files_and_sums_up(evergreen, tmp_path, words_for_vectors, small_corpus):
    (tmp_path / "in").mkdir()
    small_corpus(tmp_path / "in" / "c.json", n_contracts=2)
    _write(tmp_path / "in" / "a.txt", "An agreement.")
    _write(tmp_path / "in" / "b.pdf", "no pdf")
    code, out, err = evergreen("index", tmp_path / "in", "--out", tmp_path / "lib", "--max-chars", 300)
    assert code == 0 and "3 indexed, 0 replaced, 0 unchanged, 0 duplicates, 0 pruned, 1 failed" in out, err
    assert f"failed:\n  {tmp_path}/in/b.pdf: it is named .pdf, but its content is text and no PDF\n" in out
    assert "3 contracts" in out and "passages/s" in err
    (tmp_path / "in" / "a.txt").unlink()
    code, out, _ = evergreen("index", tmp_path / "in", "--out", tmp_path / "lib")
    assert code == 0 and "2 unchanged" in out and f"--prune takes them out):\n  {tmp_path}/in/a.txt\n" in out
    code, out, _ = evergreen("index", tmp_path / "in", "--out", tmp_path / "lib", "--prune")
    assert code == 0 and "1 pruned" in out and "2 contracts" in out


def test_index_fails_where_nothing_can_be_read_and_where_it_must_not_write(evergreen, tmp_path, words_for_vectors):
    _write(tmp_path / "a.pdf", "no pdf")
    code, out, _ = evergreen("index", tmp_path / "a.pdf", "--out", tmp_path / "lib")
    assert code == 1 and "0 indexed" in out and "1 failed" in out
    code, out, err = evergreen("index", tmp_path / "a.pdf", "--out", tmp_path)
    assert (code, out) == (1, "") and err.count("\n") == 1 and "is not empty and holds no library" in err


def test_index_stopped_with_ctrl_c_says_how_to_go_on(evergreen, monkeypatch, tmp_path):
    from program import library

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(library, "index_paths", stop)
    code, out, err = evergreen("index", tmp_path, "--out", tmp_path / "lib")
    assert (code, out) == (130, "") and "the same command goes on from there" in err


def test_generate_writes_a_corpus_that_compile_reads(evergreen, tmp_path):
    options = ["--contracts", 2, "--house", "juniper", "--seed", 3]
    code, out, _ = evergreen("generate", tmp_path / "deep" / "c.json", *options)
    assert code == 0 and "2 contracts, 56 questions" in out
    assert len(read_cuad(tmp_path / "deep" / "c.json").contracts) == 2
    evergreen("generate", tmp_path / "d.json", *options)
    assert (tmp_path / "d.json").read_bytes() == (tmp_path / "deep" / "c.json").read_bytes()


def test_the_demo_goes_to_its_end_in_an_older_ones_place(
    evergreen, compiled, monkeypatch, tmp_path, tiny_model, word_embedder
):
    from program import demo

    monkeypatch.setattr(demo, "TRAIN_CONTRACTS", 4)
    monkeypatch.setattr(demo, "TEST_CONTRACTS", 1)
    real = compile_module.compile
    cut = {"lm": str(tiny_model()), "max_tokens": 8, "k_passages": 1, "max_chars": 300, "threads": 8, "recipe": "s"}
    few = {"max_train_questions": 2, "max_val_questions": 2, "sft_epochs": 1.0}

    def small(config, **options):
        given = {key: getattr(config, key) for key in config.__dataclass_fields__} | cut | few
        return real(type(config)(**given), **options)

    monkeypatch.setattr(demo, "compile", small)
    out = shutil.copytree(compiled.path, tmp_path / "demo")
    code, said, err = evergreen("demo", "--out", out, "--seed", 1)
    assert code == 0 and "Exact match" in said, err
    run = read_run(out)
    assert run.status == "complete" and run.config["seed"] == 1 and len(run.rows) == 2 * 28
    assert len(read_cuad(run.config["test_corpus"]).contracts) == 1  # what it was scored on is still there
    assert read_run(tmp_path / "demo.previous").config == read_run(compiled.path).config


def test_a_home_folder_is_served_by_its_live_release_and_every_option_arrives(evergreen, monkeypatch, tmp_path):
    import program.serve.run as serve_module

    home = tmp_path / "home"
    home.mkdir()
    (home / "evergreen.toml").write_text('corpus = "c.json"\nfrozen = "f.json"\n')
    store = ReleaseStore.open(home / "releases")
    first, second = (store.add(write_run(tmp_path / f"run{n}", n)) for n in (1, 2))
    told = []
    monkeypatch.setattr(serve_module, "serve", lambda run, **options: told.append((run, options)))
    code, _, said = evergreen("serve", home)
    assert code == 1 and "none of its releases is live" in said and told == []
    store.promote(first.id, "to serve")
    options = ["--port", 8799, "--threads", 3, "--trace-inputs", "full", "--shadow", second.id, "--library", tmp_path]
    assert evergreen("serve", home, *options)[0] == 0
    ((run, given),) = told
    assert run == home / "releases" and given["store"] == home / "feedback.db" and given["shadow"] == str(second.path)
    assert (given["port"], given["threads"], given["library"]) == (8799, 3, tmp_path)
    assert given["trace_policy"].inputs == "full"
    assert evergreen("serve", home, "--no-traces")[0] == 0 and told[1][1]["trace_policy"] is None
    code, _, said = evergreen("serve", home, "--shadow", second.id, "--trace-inputs", "hash")
    assert code == 2 and "shadow mode keeps questions" in said
