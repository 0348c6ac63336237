"""Secrets in a text: API keys, tokens, passwords, private keys and addresses with credentials, by their shapes.

More is taken than is secret: what stands behind "password:" goes, whatever it is. Not handled: a password in prose
("the password is ..."), and tokens of unknown makers that nothing in the text names.
"""

import re

SECRET = "[SECRET]"
_NAMES = (
    r"pass(?:word|wd|phrase)|pwd|secret|credentials?|private[ _-]?key|account[ _-]?key|access[ _-]?key"
    r"|api[ _-]?key|token"
)
_PATTERNS = (
    # To the end of the text where the end was cut off.
    re.compile(r"-----BEGIN [^\n-]{1,60}-----.*?(?:-----END [^\n-]{1,60}-----|\Z)", re.DOTALL),
    re.compile(r"(?P<keep>\b[a-z][a-z0-9+.-]{1,20}://)[^\s/?#]*(?=@)", re.IGNORECASE),
    re.compile(r"(?P<keep>\bauthorization[\"']?\s*[:=]\s*)[\"']?(?:(?:bearer|basic|token)\s+)?\S+", re.IGNORECASE),
    # With a digit, or too long for a word: contracts speak of bearer instruments and of basic obligations.
    re.compile(r"(?P<keep>\b(?:bearer|basic)\s+)(?:(?=\S*\d)[\w.~+/-]{8,}|[\w.~+/-]{24,})=*", re.IGNORECASE),
    re.compile(rf"(?P<keep>(?:{_NAMES})[\w-]{{0,20}}\\?[\"']?\s*[:=]\s*)(?:\"[^\"]*\"|'[^']*'|\S+)", re.IGNORECASE),
    re.compile(
        r"\b(?:sk-[\w-]{16,}|[spr]k_(?:live|test)_\w{10,}|gh[pousr]_\w{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}"
        r"|(?:hf|gsk|npm|dop_v1|shpat)_\w{20,}|pypi-[\w-]{20,}|xox[a-z]-[\w-]{10,}|AIza[\w-]{30,}|ya29\.[\w-]{20,}"
        r"|(?:AKIA|ASIA|AROA|AIDA)[A-Z0-9]{16}|eyJ[\w-]{8,}\.[\w-]{8,}(?:\.[\w-]*)?)"
    ),
    # A secret key of AWS has no prefix: 40 characters of base64 with all three kinds among them.
    re.compile(r"(?<![\w/+=])(?=[a-z0-9/+]*[A-Z])(?=[A-Z0-9/+]*[a-z])(?=[A-Za-z/+]*\d)[A-Za-z0-9/+]{40}(?![\w/+=])"),
)


def redact_secrets(text: str) -> str:
    """The text with "[SECRET]" in place of each secret; the name, or the scheme of an address, before it stays."""
    for pattern in _PATTERNS:
        text = pattern.sub(lambda match: (match.groupdict().get("keep") or "") + SECRET, text)
    return text
