"""What the tests of files share: small files made by hand, and one reader for a module."""

import io
import zipfile
from types import SimpleNamespace

import docx
import pytest

from corpora.files.limits import FileLimits
from corpora.files.reader import FileReader


def make_pdf(*pages, catalog=b"", extra=b""):
    """A PDF of one font and uncompressed pages; each page is a list of lines, or raw bytes of its content stream."""
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R " + catalog + b" >>",
        b"",
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    kids = []
    for page in pages:
        lines = (
            b" ".join(b"(" + line.encode("latin-1") + b") Tj 0 -14 Td" for line in page)
            if isinstance(page, list)
            else page
        )
        content = b"BT /F1 12 Tf 72 720 Td " + lines + b" ET" if isinstance(page, list) else page
        objects.append(b"<< /Length %d >>\nstream\n%s\nendstream" % (len(content), content))
        objects.append(
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Resources << /Font << /F1 3 0 R >> >> "
            b"/Contents %d 0 R >>" % len(objects)
        )
        kids.append(b"%d 0 R" % len(objects))
    objects[1] = b"<< /Type /Pages /Kids [%s] /Count %d >>" % (b" ".join(kids), len(pages))
    return assemble_pdf(objects, extra)


def assemble_pdf(objects, extra=b""):
    """Objects 1, 2, ... with a cross-reference table; object 1 is the catalog."""
    data, offsets = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        offsets.append(len(data))
        data += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    start = len(data)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    size = len(objects) + 1
    trailer = b"trailer\n<< /Size %d /Root 1 0 R %s >>\nstartxref\n%d\n%%%%EOF\n" % (size, extra, start)
    return data + b"xref\n0 %d\n0000000000 65535 f \n" % size + table + trailer


def make_zip(members, compression=zipfile.ZIP_DEFLATED):
    """A zip of {name: bytes or text}."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return out.getvalue()


def docx_bytes(document):
    out = io.BytesIO()
    document.save(out)
    return out.getvalue()


def make_docx(*paragraphs):
    document = docx.Document()
    for paragraph in paragraphs:
        document.add_paragraph(paragraph)
    return docx_bytes(document)


@pytest.fixture(scope="module")
def reader():
    with FileReader(FileLimits(seconds=10.0)) as one:
        yield one


@pytest.fixture
def read(tmp_path, reader):
    """`read(name, content)` writes the file and gives all its readings; `read_one` insists on one, without failure."""

    def all_of(name, content, reader=reader):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return list(reader.read(path))

    return all_of


@pytest.fixture
def read_one(read):
    def one(name, content):
        (reading,) = read(name, content)
        assert reading.failure is None, reading.failure
        assert all(reading.text[place.start : place.start + 1].strip() for place in reading.places)
        return reading

    return one


@pytest.fixture
def refused(read):
    def reason(name, content):
        (reading,) = read(name, content)
        assert reading.failure and not reading.text and not reading.passing
        return reading.failure

    return reason


@pytest.fixture(scope="session")
def make():
    """`make.pdf`, `make.pdf_of_objects`, `make.zip`, `make.docx` and `make.saved` (of a python-docx document)."""
    return SimpleNamespace(pdf=make_pdf, pdf_of_objects=assemble_pdf, zip=make_zip, docx=make_docx, saved=docx_bytes)
