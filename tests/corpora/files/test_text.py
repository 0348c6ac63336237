import codecs
from collections import Counter

import pytest

from corpora.files.limits import FileError, FileLimits
from corpora.files.places import compose, locate, place_of
from corpora.files.text import clean, decode, is_binary, said
from corpora.types import Contract, Place

QUOTED = "The “Term” – § 5 – is three years; “Net Sales” means all sales."


def cleaned(text):
    changed = Counter()
    return clean(text, changed), said(changed)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_marked_encodings_and_utf8_are_read_as_they_are(encoding):
    text, notes = decode(QUOTED.encode(encoding))
    assert text == QUOTED and notes == ([] if encoding.startswith("utf-8") else ["read as utf-16-le"])


def test_big_endian_and_unmarked_utf16():
    assert decode(codecs.BOM_UTF16_BE + QUOTED.encode("utf-16-be"))[0] == QUOTED
    english = "This Agreement is made as of the first day of May. " * 9
    assert decode(english.encode("utf-16-le")) == (english, ["read as utf-16-le"])
    assert decode(english.encode("utf-16-be")) == (english, ["read as utf-16-be"])


def test_windows_1252_is_told_from_other_encodings():
    assert decode(QUOTED.encode("cp1252")) == (QUOTED, ["read as cp1252"])
    russian = "Договор поставки: поставщик обязуется передать товар, а покупатель принять и оплатить его в срок. " * 9
    text, notes = decode(russian.encode("cp1251"))
    assert text == russian and notes == ["read as cp1251"]
    japanese = "本契約は、甲と乙との間で締結される。乙は、甲に対し、代金を支払うものとする。" * 9
    assert decode(japanese.encode("shift_jis"))[0] == japanese


def test_stray_bytes_in_utf8_are_counted_and_spoil_nothing_else():
    mixed = ("Für „Lieferung“ und „Zahlung“ gilt: ".encode() + b"\x93quoted\x94 ") * 2
    text, notes = decode(mixed)
    assert text == "Für „Lieferung“ und „Zahlung“ gilt: “quoted” " * 2
    assert notes == ["4 bytes that are not UTF-8 read as windows-1252"]


def test_what_cannot_be_decoded_is_counted_or_refused():
    text, notes = decode(codecs.BOM_UTF8 + b"fine " * 20 + b"\xff\xfe")
    assert text.endswith("\ufffd\ufffd") and notes == ["2 characters could not be decoded and stand as \ufffd"]
    with pytest.raises(FileError, match="40 of its 40 characters cannot be decoded as utf-8"):
        decode(codecs.BOM_UTF8 + b"\xff" * 40)


def test_control_characters_go_out_and_are_counted():
    text, notes = cleaned("a\x00b\r\nc\rd\x07\x9f\fe\ttab \ufeff\ud800.")
    assert text == "ab\nc\nd\n\ne\ttab \ufffd."
    assert notes == ["4 control characters left out", "1 half characters replaced with \ufffd"]
    assert cleaned("plain\ttext\n") == ("plain\ttext\n", [])


def test_binary_is_not_text():
    assert is_binary(bytes(range(256)) * 9) and is_binary(b"\x00" * 99)
    assert not any(
        map(is_binary, (b"", QUOTED.encode("cp1252"), b"one\x00two three four five", QUOTED.encode("utf-16")))
    )


def test_places_of_a_text_are_its_paragraphs():
    text = "\n  First\nline two\n \t\nSecond\n\n\n\nThird"
    places = locate(text, FileLimits())
    assert [text[place.start :][:5] for place in places] == ["First", "Secon", "Third"]
    assert [(place.page, place.paragraph) for place in places] == [(None, 1), (None, 2), (None, 3)]


def test_paragraphs_are_counted_by_page_and_found_again():
    text, places = compose([("One", 1), ("  Two ", 1), ("", 1), ("Three", 3)], FileLimits())
    assert text == "One\n\nTwo\n\nThree"
    assert places == (Place(0, 1, 1), Place(5, 1, 2), Place(10, 3, 1))
    contract = Contract("c", text, places)
    assert [place_of(contract, offset).paragraph for offset in (0, 2, 4, 5, 10, 14)] == [1, 1, 1, 2, 1, 1]
    assert place_of(contract, 14).page == 3
    assert place_of(contract, -1) is place_of(contract, 15) is place_of(Contract("c", "text"), 1) is None
    assert place_of(Contract("c", "  x", (Place(2, None, 1),)), 0) is None


def test_limits_name_the_number():
    with pytest.raises(FileError, match="more than 3 paragraphs"):
        locate("a\n\nb\n\nc\n\nd", FileLimits(max_paragraphs=3))
    with pytest.raises(FileError, match="more than 3 paragraphs"):
        compose([(one, None) for one in "abcd"], FileLimits(max_paragraphs=3))
    with pytest.raises(FileError, match="more than 10 characters"):
        compose([("12345", None), ("12345", None)], FileLimits(max_chars=10))
    with pytest.raises(ValueError, match="max_pages is 0"):
        FileLimits(max_pages=0)
