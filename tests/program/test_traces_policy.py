"""What may be kept: secrets never, personal data by the policy, and under "hash" no words at all."""

import time
from dataclasses import replace

import pytest

from program.config import ConfigError
from program.traces.policy import MAX_CHARS, TracePolicy, is_sampled, kept, salted_sha256
from program.traces.redaction import redact_secrets
from program.traces.types import Trace

SALT = "ab" * 32
AT = "2026-11-22T09:14:03.120551Z"
AWS = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
SECRETS = [
    ("key sk-proj-abcdefghij0123456789 is used", "abcdefghij0123456789"),
    ("Incorrect API key provided: sk-ant-api03-abcdefghij_klmno. See", "abcdefghij_klmno"),
    ("Authorization: Bearer abcdef", "abcdef"),
    ("headers {'Authorization': 'Basic dXNlcjpwYXNz'}", "dXNlcjpwYXNz"),
    ("sent bearer 0a1b2c3d4e5f", "0a1b2c3d4e5f"),
    ("password=hunter2 was refused", "hunter2"),
    ("PASSWORD: 'two words'", "words"),
    ('{"api_key": "0123 4567"}', "4567"),
    ('{\\"client_secret\\": \\"zzz9\\"}', "zzz9"),
    ("https://api.example.com/?access_token=qqq8&x=1", "qqq8"),
    ("aws AKIAIOSFODNN7EXAMPLE", "AKIAIOSFODNN7EXAMPLE"),
    (f"aws {AWS} used", AWS),
    ("ghp_abcdefghijklmnopqrstuvwxyz0123456789", "abcdefghijklmnop"),
    ("hf_abcdefghijklmnopqrstuvwxyz", "abcdefghijklmnop"),
    ("jwt eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.sig-nature", "nature"),
    ("postgres://ada:s3cr@t@db.example.com/x", "s3cr"),
    ("https://tok3n@github.example.com/a", "tok3n"),
    ("-----BEGIN RSA PRIVATE KEY-----\nMIIEow\nIBAAKC\n-----END RSA PRIVATE KEY-----", "IBAAKC"),
    ("-----BEGIN PRIVATE KEY-----\nMIIEow\nIBA", "MIIEow"),
]


def trace(**given):
    return Trace(**{"id": "t", "at": AT, "release": "mine", "question": "Which?", "contract_id": "one"} | given)


@pytest.mark.parametrize(("text", "secret"), SECRETS, ids=[secret for _, secret in SECRETS])
def test_secrets_are_redacted(text, secret):
    for given in (text, f"said ({text}), again", f"line\n{text}"):
        redacted = redact_secrets(given)
        assert secret not in redacted and "[SECRET]" in redacted


@pytest.mark.parametrize(
    "text",
    [
        "Is the bearer of the instruments entitled to basic confidentiality obligations?",
        "Does the token of appreciation, or a password, pass to the Distributor under 3.1(a)?",
        "see https://example.com/a@b and mail ada@example.com",
        "sha1 da39a3ee5e6b4b0d3255bfef95601890afd80709, page 12-34-56",
        "Which trade secrets, know-how and secret processes are licensed?",
    ],
)
def test_what_contracts_say_is_left_as_it_is(text):
    assert redact_secrets(text) == text


def test_the_host_behind_credentials_stays():
    assert redact_secrets("http://ada:pw@db.example.com/x") == "http://[SECRET]@db.example.com/x"


@pytest.mark.parametrize(
    "part", ["eyJ-", "-----BEGIN A-----", "a://", "sk-", "token", "Aa1/", "bearer ", 'password\\"']
)
def test_redaction_takes_no_long_time(part):
    began = time.process_time()
    redact_secrets(part * (MAX_CHARS // len(part)))
    assert time.process_time() - began < 2


def test_a_policy_is_checked():
    for given, said in (
        ({"inputs": "some"}, "full, hash"), ({"personal_data": "hide"}, "mask, drop, keep"),
        ({"sample": 1.5}, "in \\[0, 1\\]"), ({"sample": float("nan")}, "in \\[0, 1\\]"), ({"sample": True}, "share"),
        ({"max_rows": 0}, "1 or more"), ({"max_rows": 10.0}, "whole number"), ({"max_age_days": 0}, "above 0"),
        ({"max_age_days": float("inf")}, "above 0"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=said):
            TracePolicy(**given)


def test_full_keeps_the_words_and_redacts_their_secrets():
    said = trace(question="Is sk-abcdefghij0123456789 a key?", answer="password=hunter2", error="OSError: pwd: x9")
    got = kept(said, TracePolicy(), SALT)
    assert (got.question, got.answer, got.error) == (
        "Is [SECRET] a key?",
        "password=[SECRET]",
        "OSError: pwd: [SECRET]",
    )
    assert got.question_sha256 == salted_sha256(said.question, SALT) and len(got.question_sha256) == 64


def test_hash_keeps_no_word():
    said = trace(question="Which law?", answer="Ohio", error="AdapterParseError: LM said Ohio: no", spans=((1, 5),))
    got = kept(said, TracePolicy(inputs="hash"), SALT)
    assert (got.question, got.answer, got.error, got.spans) == (None, None, "AdapterParseError", ((1, 5),))
    assert got.question_sha256 == kept(said, TracePolicy(), SALT).question_sha256


def test_the_hash_is_salted():
    one, other = (kept(trace(), TracePolicy(inputs="hash"), salt).question_sha256 for salt in (SALT, "cd" * 32))
    assert one != other and one == kept(trace(), TracePolicy(inputs="hash"), SALT).question_sha256


def test_personal_data_goes_by_the_policy():
    said = trace(question="Is ada@example.com the notice address?", answer="yes", error="OSError: (212) 555-0147")
    assert kept(said, TracePolicy(), SALT).question == said.question
    masked = kept(said, TracePolicy(personal_data="mask"), SALT)
    assert (masked.question, masked.answer) == ("Is [EMAIL] the notice address?", "yes")
    assert masked.error == "OSError: [PHONE]"
    dropped = kept(said, TracePolicy(personal_data="drop"), SALT)
    assert (dropped.question, dropped.answer, dropped.error) == (None, "yes", "OSError")
    assert dropped.question_sha256 == masked.question_sha256 != ""


def test_a_long_text_is_cut_between_words():
    long = "word " * (MAX_CHARS // 5 - 1) + "sk-abcdefghij0123456789"
    got = kept(trace(answer=long), TracePolicy(), SALT).answer
    assert "sk-" not in got and got.endswith("word ...") and len(got) <= MAX_CHARS


def test_the_share_sampled_is_the_policys_and_errors_always_are():
    policy = TracePolicy(sample=0.3)
    n = sum(is_sampled(trace(id=f"t{i}"), policy) for i in range(4000))
    assert 0.27 < n / 4000 < 0.33
    never = TracePolicy(sample=0)
    assert not any(is_sampled(trace(id=f"t{i}"), never) for i in range(100))
    assert is_sampled(trace(error="OSError: x"), never) and is_sampled(trace(), TracePolicy())


def test_an_answer_and_its_shadow_are_sampled_together():
    policy = TracePolicy(sample=0.5)
    for i in range(50):
        live = trace(id=f"live{i}", answer_id=f"a{i}")
        assert is_sampled(live, policy) == is_sampled(replace(live, id=f"shadow{i}", shadow=True), policy)
