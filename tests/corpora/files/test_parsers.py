import io
import zipfile

import docx
import pytest
from docx.oxml import OxmlElement, parse_xml
from docx.oxml.ns import nsdecls, qn
from pypdf import PdfReader, PdfWriter

from corpora.files.docx import read_docx
from corpora.files.html import read_html
from corpora.files.limits import FileError, FileLimits
from corpora.files.pdf import read_pdf


def html(text):
    return [paragraph for paragraph, _ in read_html(text.encode())[0]]


def word(document, make):
    paragraphs, notes = read_docx(make.saved(document))
    return [paragraph for paragraph, _ in paragraphs if paragraph.strip()], notes


def test_html_blocks_are_paragraphs_and_inline_is_not():
    page = "<title>t</title><h1>Supply\n  Agreement</h1><p>One <b>bold</b>word.<p>Two<br>lines"
    assert html(page + "<div>Three<div>Four</div>five</div>") == [
        "Supply Agreement",
        "One boldword.",
        "Two\nlines",
        "Three",
        "Four",
        "five",
    ]


def test_html_tables_are_rows_and_layout_tables_are_paragraphs():
    assert html("<table><tr><th>Item<th>Price</tr><tr><td><p>Nut</p></td><td>1 <i>USD</i></td></table>") == [
        "Item\tPrice",
        "Nut\t1 USD",
    ]
    assert html("<table><tr><td></td><td>&nbsp;</td><td><p>First.</p><p>Second.</p></td></tr></table>after") == [
        "First.",
        "Second.",
        "after",
    ]
    nested = "<table><tr><td>(a)</td><td>text<table><tr><td>x</td><td>y</td></tr></table>more</td></tr></table>"
    assert html(nested) == ["(a)\ttext\nx\ty\nmore"]


def test_html_leaves_out_what_is_not_seen():
    page = "a<script>no</script><style>no</style><!-- no --><div style='display: none'>no<p>no</div>"
    assert html(page + "<span hidden>no</span>b") == ["ab"]


def test_html_keeps_lines_of_preformatted_text():
    page = "<pre>EXHIBIT 10\n\n1. Term.  The term\nis  long.\n\n\n2. Price.</pre>end"
    assert html(page) == ["EXHIBIT 10", "1. Term. The term\nis long.", "2. Price.", "end"]


def test_html_encodings_are_declared_or_found():
    page = '<html><head><meta http-equiv="Content-Type" content="text/html; charset=%s"></head><p>“Näme” § 5</p>'
    for declared, real in (("iso-8859-1", "cp1252"), ("utf-8", "cp1252"), ("utf-8", "utf-8"), ("koi8-r", "utf-8")):
        paragraphs, _ = read_html((page % declared).encode(real))
        assert paragraphs == [("“Näme” § 5", None)], (declared, real)
    russian = "<p>Договор поставки</p>".encode("koi8-r")
    assert read_html(b'<meta charset="koi8-r">' + russian)[0] == [("Договор поставки", None)]
    with pytest.raises(FileError, match="'klingon', which is not known"):
        read_html(b'<meta charset="klingon">' + russian)


def test_html_that_is_too_deep_is_refused_rather_than_cut():
    assert html("<div>" * 1000 + "deep" + "</div>" * 1000) == ["deep"]
    with pytest.raises(FileError, match="cannot be parsed to its end"):
        html("<p>before" + "<div>" * 3000 + "deep" + "</div>" * 3000 + "<p>after")


def test_docx_body_and_tables_in_order_without_headers(make):
    document = docx.Document()
    document.sections[0].header.paragraphs[0].text = "CONFIDENTIAL HEADER"
    document.add_heading("Supply Agreement", 0)
    document.add_paragraph("Before\tthe table").add_run("\nand on.")
    table = document.add_table(2, 2)
    for cell, text in zip((c for row in table.rows for c in row.cells), ("Item", "Price", "Nut", "1 USD"), strict=True):
        cell.text = text
    document.add_paragraph("After.")
    assert word(document, make) == (
        ["Supply Agreement", "Before\tthe table\nand on.", "Item\tPrice", "Nut\t1 USD", "After."],
        [],
    )


def test_docx_revisions_controls_and_boxes(make):
    document = docx.Document()
    ns = nsdecls("w")
    body = document.element.body
    body.insert(0, parse_xml(
        f'<w:p {ns}><w:r><w:t>Kept </w:t></w:r><w:ins w:id="1" w:author="x"><w:r><w:t>inserted</w:t></w:r></w:ins>'
        f'<w:del w:id="2" w:author="x"><w:r><w:delText>deleted</w:delText></w:r></w:del>'
        f'<w:moveFrom w:id="3" w:author="x"><w:r><w:t>moved</w:t></w:r></w:moveFrom></w:p>'
    ))  # fmt: skip
    body.insert(
        1, parse_xml(f"<w:sdt {ns}><w:sdtContent><w:p><w:r><w:t>In a control</w:t></w:r></w:p></w:sdtContent></w:sdt>")
    )
    box = "<w:txbxContent><w:p><w:r><w:t>In a box</w:t></w:r></w:p></w:txbxContent>"
    mc = 'xmlns:mc="http://schemas.openxmlformats.org/markup-compatibility/2006"'
    body.insert(2, parse_xml(
        f"<w:p {ns} {mc}><w:r><w:t>Anchor</w:t><mc:AlternateContent><mc:Choice>{box}</mc:Choice>"
        f"<mc:Fallback>{box}</mc:Fallback></mc:AlternateContent><w:footnoteReference w:id='1'/></w:r></w:p>"
    ))  # fmt: skip
    assert word(document, make) == (
        ["Kept inserted", "In a control", "Anchor", "In a box"],
        ["1 footnotes left out"],
    )


def test_docx_numbers_are_those_that_word_shows(make):
    document = docx.Document()
    levels = "".join(
        f'<w:lvl w:ilvl="{at}"><w:start w:val="{start}"/><w:numFmt w:val="{form}"/>{style}'
        f'<w:lvlText w:val="{text}"/></w:lvl>'
        for at, (start, form, text, style) in enumerate(
            [
                (1, "upperRoman", "ARTICLE %1", '<w:pStyle w:val="Heading1"/>'),
                (1, "decimal", "%1.%2", ""),
                (3, "lowerLetter", "(%3)", ""),
            ]
        )
    )
    root = document.part.numbering_part.element
    for child in list(root):
        root.remove(child)
    ns = nsdecls("w")
    legal = levels.replace('"%1.%2"/>', '"%1.%2"/><w:isLgl/>')
    bullet = '<w:lvl w:ilvl="0"><w:numFmt w:val="bullet"/><w:lvlText w:val="o"/></w:lvl>'
    for name, inside in ((7, legal), (8, bullet)):
        root.append(parse_xml(f'<w:abstractNum {ns} w:abstractNumId="{name}">{inside}</w:abstractNum>'))
    anew = '<w:lvlOverride w:ilvl="1"><w:startOverride w:val="9"/></w:lvlOverride>'
    for name, abstract, more in ((1, 7, ""), (2, 7, anew), (3, 8, "")):
        root.append(parse_xml(f'<w:num {ns} w:numId="{name}"><w:abstractNumId w:val="{abstract}"/>{more}</w:num>'))
    style = document.styles["Heading 1"].element.get_or_add_pPr()
    style.append(parse_xml(f'<w:numPr {ns}><w:numId w:val="1"/></w:numPr>'))

    def add(text, num=None, level=0, style=None):
        paragraph = document.add_paragraph(text, style)
        if num is not None:
            number = OxmlElement("w:numPr")
            for tag, value in (("w:ilvl", level), ("w:numId", num)):
                child = OxmlElement(tag)
                child.set(qn("w:val"), str(value))
                number.append(child)
            paragraph._p.get_or_add_pPr().append(number)

    add("Term", style="Heading 1")
    add("Length", 1, 1)
    add("three years", 1, 2)
    add("four years", 1, 2)
    add("Renewal", 1, 1)
    add("again", 1, 2)
    add("plain")
    add("Price", style="Heading 1")
    add("restarted", 2, 1)
    add("goes on", 2, 1)
    add("a bullet", 3, 0)
    add("not in a list", 0, 0)
    add("Not numbered", 0, style="Heading 1")
    assert word(document, make)[0] == [
        "ARTICLE I Term", "1.1 Length", "(c) three years", "(d) four years", "1.2 Renewal", "(c) again", "plain",
        "ARTICLE II Price", "2.9 restarted", "2.10 goes on", "a bullet", "not in a list", "Not numbered",
    ]  # fmt: skip


def test_docx_that_is_no_word_file(make):
    with pytest.raises(FileError, match="no Word file"):
        read_docx(b"PK\x03\x04 nothing")


def test_pdf_paragraphs_have_pages(make):
    page = [
        "SUPPLY AGREEMENT",
        "1. Term. This agreement lasts as long as the parties",
        "want it to last.",
        "2. Price. It is low.",
    ]
    paragraphs, notes = read_pdf(make.pdf(page, ["Page two."]), FileLimits())
    assert paragraphs == [
        ("SUPPLY AGREEMENT\n1. Term. This agreement lasts as long as the parties\nwant it to last.", 1),
        ("2. Price. It is low.", 1),
        ("Page two.", 2),
    ]
    assert notes == []


def test_pdf_pages_without_text_are_named(make):
    blank = b"q Q"
    pages = (["one"], ["two"], blank, blank, blank, ["six"], blank)
    paragraphs, notes = read_pdf(make.pdf(*pages), FileLimits())
    assert [page for _, page in paragraphs] == [1, 2, 6] and notes == ["pages 3-5, 7 of 7 have no text layer"]
    assert read_pdf(make.pdf(["one"], blank), FileLimits())[1] == ["page 2 of 2 has no text layer"]
    with pytest.raises(FileError, match="^pages 1-3 of 3 have no text layer$"):
        read_pdf(make.pdf(blank, blank, blank), FileLimits())


def test_pdf_too_many_pages(make):
    with pytest.raises(FileError, match="3 pages, and 2 is the limit"):
        read_pdf(make.pdf(["a"], ["b"], ["c"]), FileLimits(max_pages=2))


@pytest.mark.parametrize("algorithm", ["RC4-40", "RC4-128", "AES-128", "AES-256"])
def test_pdf_encrypted(make, algorithm):
    for password in ("", "secret"):
        writer = PdfWriter(clone_from=PdfReader(io.BytesIO(make.pdf(["text"]))))
        writer.encrypt(password, "owner", algorithm=algorithm)
        out = io.BytesIO()
        writer.write(out)
        if password:
            with pytest.raises(FileError, match="encrypted and wants a password"):
                read_pdf(out.getvalue(), FileLimits())
        else:
            assert read_pdf(out.getvalue(), FileLimits()) == (
                [("text", 1)],
                ["encrypted, opened with the empty password"],
            )


def test_pdf_one_broken_page_is_named_and_the_others_are_read(make, monkeypatch):
    from corpora.files import pdf

    real = pdf._text

    def breaks(page):
        if "two" in real(page):
            raise KeyError("/Font")
        return real(page)

    monkeypatch.setattr(pdf, "_text", breaks)
    paragraphs, notes = read_pdf(make.pdf(["one"], ["two"], ["three"]), FileLimits())
    assert paragraphs == [("one", 1), ("three", 3)] and notes == ["page 2 of 3 cannot be read (KeyError: '/Font')"]


def test_docx_in_a_zip_of_another_kind_is_refused(make, refused):
    for inside, what in (
        ("xl/workbook.xml", "Excel"),
        ("ppt/presentation.xml", "PowerPoint"),
        ("mimetype", "OpenDocument"),
    ):
        assert what in refused("a.docx", make.zip({inside: "x"}, zipfile.ZIP_STORED))
