import csv
import io
from html.parser import HTMLParser

import pytest
from docx import Document
from docx.enum.text import WD_COLOR_INDEX

from corpora.cuad import question_text
from corpora.types import Contract, Place, Quote
from program.feedback.rows import FeedbackError
from program.feedback.types import Answered, Review
from program.review_export import FORMATS, ExportError, render

PAYLOAD = '<script>alert(1)</script><img src=x onerror="x">{{7*7}}'
FIRST = "AGREEMENT 😀\r\n\r\nBetween Ashgrove & Co. and O'Hara.\r\n\r\n"
TEXT = (
    f"{FIRST}This Agreement \x0c\x00is governed by the laws of the State of Ohio.\r\n\r\n{PAYLOAD}\r\n" + "word " * 200
)
CONTRACT = Contract('acme <b>"2019"</b>', TEXT, (Place(0, 1, 1), Place(len(FIRST), 2, 1)))


def answered(number, category, *stretches, answer=None, question=None, **changes):
    quotes = tuple(Quote(words, CONTRACT.id, TEXT.index(words), TEXT.index(words) + len(words)) for words in stretches)
    given = {
        "id": f"a{number}", "asked_id": f"q{number}", "question": question or question_text(category),
        "contract_id": CONTRACT.id, "category": category, "contract_sha256": "", "at": "2026-11-22T09:14:03.120551Z",
        "answer": answer or "; ".join(stretches) or "not in this contract", "found": bool(stretches), "quotes": quotes,
        "confidence": 0.825, "p_answered": None, "release": "runs/mine",
    }  # fmt: skip
    return Answered(**(given | changes))


@pytest.fixture
def review():
    """A found one, two that overlap, one in a question's own words, and one absent."""
    return Review(
        CONTRACT.id,
        "runs/mine",
        (
            answered(1, "Parties", "Ashgrove & Co.", "O'Hara"),
            answered(2, "Governing Law", "governed by the laws of the State of Ohio", answer="=Ohio"),
            answered(3, "Exclusivity", "the State of Ohio.", "laws of the State", confidence=None),
            answered(4, None, PAYLOAD, question=f"What of {PAYLOAD}?"),
            answered(5, "Insurance"),
        ),
    )


class Page(HTMLParser):
    """Elements, and the text of the contract with what stands inside `mark`s."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.ids, self.links, self.text, self.marked, self.open = [], [], [], "", [], []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.tags.append(tag)
        self.ids += [given["id"]] if "id" in given else []
        self.links += [given["href"]] if "href" in given else []
        self.open += [(tag, given.get("class"))] if tag not in ("meta", "br") else []
        self.marked += [""] if tag == "mark" else []

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        if ("div", "contract") in self.open and "sup" not in [tag for tag, _ in self.open]:
            self.text += data
            if self.open[-1][0] == "mark":
                self.marked[-1] += data


def test_html_has_the_whole_text_with_overlapping_quotes_marked_and_linked_both_ways(review):
    html = render(review, CONTRACT, "html").decode()
    page = Page(html)
    assert page.text == TEXT.replace("\r\n", "\n").replace("\x00", "").replace("\x0c", "")
    assert page.marked == [
        "Ashgrove & Co.", "O'Hara", "governed by the ", "laws of ", "the State", " of Ohio", ".", PAYLOAD,
    ]  # fmt: skip
    assert len(page.ids) == len(set(page.ids)) and {link.removeprefix("#") for link in page.links} <= set(page.ids)
    assert {"quote-1-1", "quote-1-2", "quote-2-1", "quote-3-1", "quote-3-2", "quote-4-1"} <= set(page.ids)
    assert set(page.tags).isdisjoint({"script", "img", "link", "b"}) and "{{7*7}}" in html
    assert "page 2, paragraph 1" in html and "82.5" in html and "4 of 5 clauses found" in " ".join(html.split())


def test_word_has_a_table_of_findings_and_highlighted_quotes_in_context(review):
    document = Document(io.BytesIO(render(review, CONTRACT, "docx")))
    cells = [[cell.text for cell in row.cells] for row in document.tables[0].rows]
    assert cells[0] == ["Clause", "Finding", "Confidence"] and len(cells) == 6
    assert cells[2] == ["2. Governing Law", "=Ohio", "82%"] and cells[3][2] == "–"
    assert cells[5][:2] == ["5. Insurance", "not in this contract"]
    lines = {
        "".join(run.text for run in one.runs if run.font.highlight_color == WD_COLOR_INDEX.YELLOW): one.text
        for one in document.paragraphs
    }
    assert set(lines) - {""} == {quote.text for one in review.answers for quote in one.quotes}
    law = lines["governed by the laws of the State of Ohio"]
    assert law.startswith("This Agreement is governed by") and "Ohio.  [page 2, paragraph 1, characters" in law
    assert lines[PAYLOAD].count("…") == 1  # the words after it go on; nothing of the paragraph before it is there
    assert document.core_properties.author == "Evergreen"


def test_word_takes_ids_and_texts_that_its_format_would_refuse():
    contract = Contract("x" * 300 + "\x01", "a\x0b\ufffeb \ud800c")
    one = answered(1, "Parties", contract_id=contract.id, answer="\x00yes", found=True)
    review = Review(contract.id, "r\x02", (one,))
    document = Document(io.BytesIO(render(review, contract, "docx")))
    assert document.tables[0].rows[1].cells[1].text == "yes" and len(document.core_properties.title) == 255
    assert "ab c" in render(review, contract, "html").decode()
    assert render(review, contract, "csv")


def test_csv_is_safe_from_formulas_and_keeps_offsets(review):
    data = render(review, CONTRACT, "csv")
    assert data.startswith(b"\xef\xbb\xbf")
    rows = list(csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline="")))
    assert [row["clause"] for row in rows] == [
        "Parties", "Parties", "Governing Law", "Exclusivity", "Exclusivity", f"What of {PAYLOAD}?", "Insurance",
    ]  # fmt: skip
    assert rows[2]["answer"] == "'=Ohio" and (rows[2]["page"], rows[2]["paragraph"]) == ("2", "1")
    for row in rows[:-1]:
        assert TEXT[int(row["start"]) : int(row["end"])] == row["quote"]
    assert (rows[-1]["found"], rows[-1]["answer"], rows[-1]["quote"], rows[-1]["confidence"]) == ("no", "", "", "0.825")
    assert rows[3]["confidence"] == "" and rows[0]["release"] == "runs/mine"


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize(
    "quote", [Quote("Ashgrove", CONTRACT.id, 3, 11), Quote("AGREE", "other", 0, 5), Quote("", CONTRACT.id, 4, 4)]
)
def test_a_quote_that_does_not_stand_where_it_says_is_refused(review, fmt, quote):
    wrong = Review(review.contract_id, review.release, (answered(1, "Parties", quotes=(quote,)),))
    with pytest.raises(ExportError, match="review it again"):
        render(wrong, CONTRACT, fmt)


def test_another_contract_or_format_is_refused_as_what_the_server_tells_in_words(review):
    with pytest.raises(ExportError, match="the text is 'other'"):
        render(review, Contract("other", TEXT), "html")
    with pytest.raises(ExportError, match="html, docx, csv"):
        render(review, CONTRACT, "pdf")
    assert issubclass(ExportError, FeedbackError)


@pytest.mark.parametrize("fmt", FORMATS)
def test_a_review_without_answers_and_an_empty_contract_are_files_too(fmt):
    assert render(Review("empty", "", ()), Contract("empty", ""), fmt)
