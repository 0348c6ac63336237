"""The review page in a headless Chromium, over the real API and a program that knows its answers."""

import csv
import io
import re
import shutil
import socket
import threading
import time
import zipfile
from types import SimpleNamespace

import dspy
import pytest
import uvicorn

from corpora.synthetic import write_corpus
from corpora.types import Contract, Quote
from program.feedback.store import FeedbackStore
from program.feedback.types import Choice, Correction, Rating, Skip
from program.serve.app import create_app
from program.serve.reviews import Reviews
from program.serve.session import Session

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = playwright.expect
expect.set_options(timeout=10_000)  # handlers of a page answer after the key or click that they are told of
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on the PATH"),
]
ARGS = (
    "--no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-component-update "
    "--disable-sync"
).split()
ODD = "😀 Agreement 𝔄\r\n\r\nThis deal 😀 is governed by the laws of 𝔘tah 🏳.\r\nThe “law of  Ohio” is not\r\nmeant.\r\n"
PAYLOAD = "<img src=x onerror=\"window.pwned=1\"><script>window.pwned=1</script>{{7*7}}"  # fmt: skip
EVIL = f"evil {PAYLOAD}"
JUNIPER = "juniper-2010-3-00000"
REVIEWED = ("Document Name", "Parties", "Governing Law", "Audit Rights", "Insurance")


class Says(dspy.Module):
    """Answers the generated contract as its labels do, and any other with fixed words."""

    def __init__(self, texts, labels, other=False):
        super().__init__()
        self.texts, self.other = texts, other
        self.gold = {(one.question.contract_id, one.question.text): one for one in labels}

    def forward(self, question, contract_id):
        text, label = self.texts[contract_id], self.gold.get((contract_id, question))
        spans = [(span.start, span.end) for span in label.spans] if label else []
        if "Document Name" in question:
            time.sleep(1)  # what is asked first comes last
        if not label and "three" in question:
            spans = [(10, 60), (40, 90), (len(text) - 300, len(text) - 250)]
        elif contract_id == "odd" and "law" in question.lower():
            spans = [(text.index("laws of 𝔘tah"), text.index(" 🏳"))]
        elif contract_id == EVIL:
            spans = [(0, len(PAYLOAD))]
        if self.other and spans:
            spans = [(spans[0][0], spans[0][1] - 2)]
        quotes = [Quote(text[a:b], contract_id, a, b) for a, b in spans]
        answer = ", ".join(quote.text for quote in quotes) if quotes else "not in this contract"
        sure = sum(map(ord, question)) % 89 / 100
        return dspy.Prediction(answer=answer, quotes=quotes, found=bool(quotes), confidence=sure)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The server: its address, texts by contract, the store, and `ask(question, contract_id)` of its session."""
    corpus = write_corpus(("juniper",), 1, seed=3)
    texts = {contract.id: contract.text for contract in corpus.contracts} | {"odd": ODD, EVIL: PAYLOAD + " of Ohio."}
    texts["big"] = (corpus.contracts[0].text * 50)[:300_000]
    contracts = {key: Contract(key, text) for key, text in texts.items()}
    store = FeedbackStore.open(tmp_path_factory.mktemp("served") / "feedback.db")
    rival = Says(texts, corpus.labels, other=True)
    session = Session(
        Says(texts, corpus.labels), contracts, store, release="runs/secret-name", sampled=lambda program, n: rival
    )
    reviews = Reviews(session, categories=REVIEWED)
    bound = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(create_app(session, reviews), log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{bound.getsockname()[1]}"
    yield SimpleNamespace(address=address, texts=texts, store=store, ask=session.ask)
    server.should_exit = True
    thread.join(10)
    reviews.close()
    session.close()
    store.close()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=ARGS)
        yield browser
        browser.close()


@pytest.fixture
def opened(browser, served):
    """`opened(contract, width)` is the page; at the end: no request left the server, nothing failed, no payload ran."""
    pages, faults, foreign, allowed = [], [], [], []

    def open_page(contract=None, width=1280, height=860):
        context = browser.new_context(viewport={"width": width, "height": height}, accept_downloads=True)
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("console", lambda said: faults.append(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on(
            "request", lambda one: None if one.url.startswith((served.address, "blob:")) else foreign.append(one.url)
        )
        page.allow = allowed.append
        pages.append(page)
        page.goto(served.address + "/")
        if contract:
            pick(page, contract)
        return page

    yield open_page
    for page in pages:
        assert page.evaluate("window.pwned === undefined")
        page.context.close()
    assert [fault for fault in faults if not any(one in fault for one in allowed)] == []
    assert foreign == []


def pick(page, contract):
    page.fill("#contract-input", contract)
    page.press("#contract-input", "Enter")
    page.wait_for_function("id => document.querySelector('#contract-name').textContent === id", arg=contract)


def ask(page, question):
    page.fill("#question", question)
    page.press("#question", "Escape")
    page.click("#ask-form .main")
    page.wait_for_selector("#ask-out .card")


def marked(page, kind):
    return "".join(page.locator(f"#text mark.{kind}").all_text_contents())


def drag(page, start, end):
    """Selects from before the first to after the last words `start` and `end`, with the mouse."""
    edges = page.evaluate(
        """([from, to]) => {
          const range = document.createRange(), walker = document.createTreeWalker(document.querySelector("#text"), 4);
          for (let node; (node = walker.nextNode()); ) {
            if (node.data.includes(from)) range.setStart(node, node.data.indexOf(from));
            if (node.data.includes(to)) range.setEnd(node, node.data.indexOf(to) + to.length);
          }
          range.startContainer.parentElement.scrollIntoView({ block: "center" });
          const boxes = range.getClientRects(), first = boxes[0], last = boxes[boxes.length - 1];
          return [first.left, first.top + first.height / 2, last.right, last.top + last.height / 2];
        }""",
        [start, end],
    )
    page.mouse.move(edges[0] + 0.2, edges[1])
    page.mouse.down()
    page.mouse.move(edges[2] - 3, edges[3])
    page.mouse.move(edges[2] - 0.2, edges[3])
    page.mouse.up()


def last(served, kind):
    """The newest event of a kind in the store."""
    return [event for event in served.store.events() if isinstance(event, kind)][-1]


def test_a_question_is_answered_and_its_quotes_are_shown_in_the_contract(opened, served):
    page = opened(JUNIPER)
    page.fill("#question", "gov law")  # words of a clause's name, in pieces
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    assert page.input_value("#question") == "Governing Law"
    page.keyboard.press("Enter")
    page.wait_for_selector("#ask-out .card")
    quote = page.locator("button.quote").text_content()
    assert "Japan" in quote and quote in served.texts[JUNIPER]
    assert marked(page, "active") == quote
    assert page.locator("#text mark.active").first.evaluate(
        "mark => { const [m, t] = [mark, mark.closest('#text')].map((n) => n.getBoundingClientRect());"
        " return m.top >= t.top && m.bottom <= t.bottom }"
    )
    assert page.text_content("#status").startswith("Found: ")
    assert page.evaluate("document.activeElement.textContent") == "Governing Law"
    ask(page, "Is there anything about dragons?")
    expect(page.locator(".tag")).to_have_text("Not in this contract")
    expect(page.locator("#text mark")).to_have_count(0)
    assert page.text_content("#text") == served.texts[JUNIPER]


def test_quotes_may_overlap_and_keys_go_from_one_to_the_next(opened, served):
    page = opened(JUNIPER)
    ask(page, "Give me three of them")
    text = served.texts[JUNIPER]
    assert marked(page, "quotes") == text[10:90] + text[-300:-250]
    assert marked(page, "active") == text[10:60]
    page.keyboard.press("j")
    assert marked(page, "active") == text[40:90]
    page.keyboard.press("j")
    assert marked(page, "active") == text[-300:-250] and "Quote 3 of 3" in page.text_content("#bar")
    page.keyboard.press("j")
    page.keyboard.press("k")
    expect(page.locator("#bar")).to_contain_text("Quote 3 of 3")
    assert page.text_content("#text") == text


def test_an_answer_is_rated_with_thumbs_stars_and_a_comment_under_a_pseudonym(opened, served):
    page = opened(JUNIPER)
    page.click("#signed")
    page.fill("#name", "Ada")
    page.keyboard.press("Enter")
    expect(page.locator("#signed")).to_have_text("Signed Ada")
    ask(page, "Governing Law")
    page.keyboard.press("m")
    page.keyboard.type("y, wrong state 😀")  # in a field, keys are letters
    page.keyboard.press("Escape")
    before = len(list(served.store.events()))
    page.evaluate("for (let i = 0; i < 3; i++) document.querySelector('.stars [data-value=\"4\"]').click()")
    page.wait_for_selector("text=Saved: 4 of 5")
    assert len(list(served.store.events())) == before + 1
    expect(page.locator(".stars")).to_have_text("★★★★☆")
    said = last(served, Rating)
    assert (said.stars, said.thumbs, said.comment) == (4, None, "y, wrong state 😀")
    assert said.by == served.store.pseudonym("Ada") and "Ada" not in said.by
    page.click("text=Wrong")
    page.wait_for_selector(".correction")
    assert (last(served, Rating).thumbs, last(served, Rating).comment) == ("down", "")


@pytest.mark.parametrize(
    ("start", "end"),
    [
        ("𝔘tah", "𝔘tah"),
        ("governed", "🏳"),
        ("is governed", "not"),  # over an end of line
        ("😀 Agreement", "not"),  # over an empty line too
        (" governed", "by "),  # white space at the ends is not meant
    ],
)
def test_a_correction_by_selection_has_the_very_characters(opened, served, start, end):
    page = opened("odd")
    ask(page, "Which law governs?")
    expect(page.locator("button.quote")).to_have_text("laws of 𝔘tah")
    drag(page, start, end)
    page.click("text=Use as the right text")
    page.click("text=Save correction")
    page.wait_for_selector("text=Your correction is saved.")
    (span,) = last(served, Correction).spans
    start, end = start.strip(), end.strip()
    first, after = ODD.index(start), ODD.index(end, ODD.index(start)) + len(end)
    assert (span.start, span.end, span.text) == (first, after, ODD[first:after])


def test_a_correction_by_words_by_absence_and_by_single_words_at_its_ends(opened, served):
    page = opened("odd")
    ask(page, "Which law governs?")
    page.keyboard.press("e")
    page.keyboard.press("Control+Enter")
    expect(page.locator(".correction .bad")).to_contain_text("or choose")
    page.fill(".correction textarea", "𝔘tah’s")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("text=Your correction is saved.")
    said = last(served, Correction)
    assert (said.found, said.answer, said.spans) == (True, "𝔘tah’s", ())
    page.keyboard.press("e")
    page.keyboard.press("Escape")  # empty field: the form
    page.keyboard.press("e")
    page.click("text=Start from its quotes")
    page.click("[aria-label='Start a word earlier']")
    page.focus("[aria-label='End a word later']")
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    page.focus("[aria-label='End a word earlier']")
    page.keyboard.press("Enter")
    assert marked(page, "spans") == "the laws of 𝔘tah 🏳."
    page.keyboard.press("Control+Enter")
    page.wait_for_function("() => !document.querySelector('.correction')")
    (span,) = last(served, Correction).spans
    assert span.text == "the laws of 𝔘tah 🏳." == ODD[span.start : span.end]
    page.keyboard.press("e")
    page.keyboard.press("Escape")
    page.click("text=Wrong")
    page.check("text=Not in this contract >> input")
    page.click("text=Save correction")
    page.wait_for_function("() => !document.querySelector('.correction')")
    assert (last(served, Correction).found, last(served, Correction).spans) == (False, ())


def test_two_answers_are_chosen_between_without_saying_whose_they_are(opened, served):
    page = opened(JUNIPER)
    page.fill("#question", "Governing Law")
    page.click("#compare")
    page.wait_for_selector(".sides")
    shown = page.inner_html("#ask-out")
    assert not re.search("secret-name|rollout|sample|confidence", shown, re.I)
    assert page.locator(".side h3").all_text_contents() == ["Left", "Right"]
    before = len(list(served.store.events()))
    page.evaluate("for (let i = 0; i < 3; i++) document.querySelector('[aria-keyshortcuts=r]').click()")
    page.wait_for_selector("text=Saved: the right one is better.")
    assert len(list(served.store.events())) == before + 1
    said = last(served, Choice)
    right = served.store.answered(said.right_id)
    assert said.chosen == "right" and page.text_content(".side.right .answer") == right.answer
    page.keyboard.press("t")
    page.wait_for_selector("text=Saved: neither is better.")
    page.allow("409")
    page.fill("#question", "Anything about dragons?")
    page.click("#compare")
    page.wait_for_selector("#alert:not([hidden])")
    assert "same" in page.text_content("#alert p") and page.locator(".sides").count() == 0


def test_the_queue_is_walked_by_keyboard_alone(opened, served):
    asked = {served.ask(f"Which law, number {n}?", "odd").id for n in range(4)}
    waiting = opened()
    before = len(list(served.store.events()))
    while waiting.evaluate("document.activeElement.textContent") != "Queue":
        waiting.keyboard.press("Tab")
    waiting.keyboard.press("Enter")
    waiting.wait_for_selector("#view-queue .card")
    n = int(re.match(r"1 of (\d+)", waiting.text_content(".place"))[1])
    assert n >= 4
    seen = []

    def at(i):
        waiting.wait_for_function("t => document.querySelector('.place')?.textContent === t", arg=f"{i} of {n}")
        waiting.wait_for_function("() => document.activeElement.matches('#view-queue h2')")
        seen.append(waiting.text_content("#view-queue h2"))

    at(1)
    waiting.keyboard.press("y")
    at(2)
    # Three times at once is once.
    waiting.evaluate("for (let i = 0; i < 3; i++) document.dispatchEvent(new KeyboardEvent('keydown', { key: 's' }))")
    at(3)
    waiting.keyboard.press("b")
    at(2)
    waiting.keyboard.press("n")
    at(3)
    assert len(list(served.store.events())) == before + 2  # going to and fro says nothing
    waiting.keyboard.press("x")
    waiting.wait_for_selector(".correction")
    where = waiting.text_content("#contract-name")
    waiting.keyboard.type('"law of ohio"' if where == "odd" else "of")  # other quotation marks, white space and case
    assert re.match(r"1 of \d+", waiting.text_content(".correction [role=status]"))
    waiting.keyboard.press("Enter")
    waiting.keyboard.press("Control+Enter")
    if n > 3:
        at(4)
    done = list(served.store.events())[before:]
    assert [type(event) for event in done] == [Rating, Skip, Rating, Correction]
    assert [done[0].thumbs, done[2].thumbs] == ["up", "down"]
    (span,) = done[3].spans
    assert span.text == served.texts[where][span.start : span.end]
    assert where != "odd" or span.text == "“law of  Ohio”"
    for _ in range(n - 3):
        waiting.keyboard.press("n")
        waiting.wait_for_timeout(50)
    waiting.wait_for_selector("text=That was the last one")
    assert asked and waiting.evaluate("document.activeElement.textContent") == "Look for more"


def test_every_control_is_reached_by_tab_and_shows_its_focus(opened):
    page = opened("odd")
    ask(page, "Which law governs?")
    page.keyboard.press("e")
    page.keyboard.type("law")
    page.keyboard.press("Enter")
    wanted = page.evaluate(
        """() => { const all = [...document.querySelectorAll("button, input, textarea, #text")]
             .filter((n) => n.getClientRects().length && !n.closest("dialog"));
           all.forEach((n, i) => { n.dataset.n = i; }); return all.filter((n) => n.type !== "radio").length; }"""
    )
    page.evaluate("document.activeElement.blur()")
    reached, faint = set(), []
    for _ in range(wanted + 15):
        page.keyboard.press("Tab")
        n, radio, ring = page.evaluate(
            "(() => { const n = document.activeElement, s = getComputedStyle(n);"
            " return [n.dataset.n ?? null, n.type === 'radio', "
            " s.outlineStyle !== 'none' && parseFloat(s.outlineWidth) >= 2] })()"
        )
        if n is not None and not radio:
            reached.add(n)
            if not ring:
                faint.append(n)
    assert (len(reached), faint) == (wanted, [])


def test_single_keys_are_listed_and_can_be_switched_off(opened, served):
    page = opened("odd")
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    assert page.is_visible("#help") and "next quote" in page.text_content("#keys")
    page.uncheck("#keys-on")
    page.keyboard.press("Escape")
    ask(page, "Which law governs?")
    before = len(list(served.store.events()))
    page.keyboard.press("y")
    page.wait_for_timeout(200)
    assert len(list(served.store.events())) == before


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_nothing_is_wider_than_the_screen_and_the_contract_is_below(opened, scheme):
    page = opened(EVIL, width=360, height=740)
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")

    def fits():
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        wide = "[...document.querySelectorAll('body *')].filter((n) => n.getBoundingClientRect().right > 361).length"
        assert page.evaluate(wide) == 0

    fits()
    ask(page, "Which law governs? " + "Supercalifragilistic" * 10)
    fits()
    assert page.evaluate("scrollY") == 0 or page.locator(".card h2").is_visible()
    assert page.locator("#contract").bounding_box()["y"] > page.locator(".card").bounding_box()["y"] + 100
    page.click("button.quote")
    assert page.locator("#text mark.active").first.evaluate("m => m.getBoundingClientRect().top < innerHeight")
    page.click("text=↑ Answer")
    page.keyboard.press("e")
    fits()
    page.fill(".correction input[type=search]", "of ohio")
    expect(page.locator(".found-at")).to_contain_text("of Ohio")
    page.keyboard.press("Enter")
    fits()
    page.click("#compare")
    page.wait_for_selector(".sides")
    fits()
    page.click("text=Full review")
    page.click("#review-start")
    page.wait_for_selector(".exports:not([hidden])")
    page.click("tbody button >> nth=0")
    fits()
    page.click("text=Queue")
    page.wait_for_selector("#queue-out button")
    fits()
    page.click("#help-open")
    fits()


def test_markup_in_contract_question_answer_and_comment_stays_text(opened, served):
    page = opened(EVIL)
    assert page.text_content("#text") == served.texts[EVIL] and page.text_content("#contract-name") == EVIL
    page.fill("#contract-input", "evil")
    page.wait_for_selector("#contract-list li")
    page.keyboard.press("Escape")
    ask(page, PAYLOAD)
    assert page.text_content(".card h2") == PAYLOAD == page.text_content(".card .answer")
    page.fill(".comment textarea", PAYLOAD)
    page.click("text=Save comment")
    page.wait_for_selector("text=Your comment too.")
    assert last(served, Rating).comment == PAYLOAD
    page.click("text=Correct it")
    page.fill(".correction input[type=search]", PAYLOAD)
    page.keyboard.press("Enter")
    page.fill(".correction textarea", PAYLOAD)
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("text=Your correction is saved.")
    assert last(served, Correction).answer == PAYLOAD
    page.click("#compare")
    page.wait_for_selector(".sides")
    page.click("#signed")
    page.fill("#name", PAYLOAD)
    page.keyboard.press("Enter")
    page.click("text=Full review")
    page.click("#review-start")
    page.wait_for_selector(".exports:not([hidden])")
    page.click("tbody button >> nth=0")
    page.click("text=Queue")
    page.wait_for_selector("#queue-out button")
    # Only what index.html has: nothing of the data became an element.
    assert page.locator("img, iframe, body script").count() == 0


def test_a_contract_is_reviewed_whole_and_exported_three_times(opened, served, tmp_path):
    page = opened(JUNIPER)
    page.click("text=Full review")
    page.click("#review-start")
    page.wait_for_selector(".exports:not([hidden])")
    assert page.locator("tbody th button").all_text_contents() == list(REVIEWED)
    n_found = page.locator("tbody tr.found").count()
    assert f"{n_found} found, {5 - n_found} not in this contract" in page.text_content(".review") and 0 < n_found < 5
    page.click("tbody button:text('Governing Law')")
    assert "Japan" in marked(page, "active")
    page.click(".filter button:text('Absent')")
    assert not page.is_visible("tr.found th")
    files = {}
    for label, suffix in (("HTML", "html"), ("Word", "docx"), ("CSV", "csv")):
        with page.expect_download() as download:
            page.click(f".exports button:text('{label}')")
        assert download.value.suggested_filename == f"{JUNIPER}.{suffix}"
        files[suffix] = tmp_path / f"review.{suffix}"
        download.value.save_as(files[suffix])
    assert b"<table>" in files["html"].read_bytes() and b"Japan" in files["html"].read_bytes()
    assert "Japan" in zipfile.ZipFile(files["docx"]).read("word/document.xml").decode()
    rows = list(csv.DictReader(io.StringIO(files["csv"].read_bytes().decode("utf-8-sig"))))
    assert [row["clause"] for row in rows if row["found"] == "no"] and "Japan" in str(rows)
    page.reload()  # the review is found again
    page.wait_for_function("() => document.querySelector('#contract-input').value")
    page.click("text=Full review")
    page.wait_for_selector(".exports:not([hidden])")


def test_a_contract_of_300_000_characters_stays_usable(opened, served):
    page = opened()
    began = time.perf_counter()
    pick(page, "big")
    ask(page, "Give me three of them")
    page.keyboard.press("k")
    assert marked(page, "active") == served.texts["big"][-300:-250]
    page.keyboard.press("e")
    page.keyboard.type("the")
    for _ in range(20):
        page.keyboard.press("ArrowDown")
    expect(page.locator(".correction [role=status]")).to_have_text("21 of 1000")
    assert time.perf_counter() - began < 15
    expect(page.locator("#contract-size")).to_have_text("300,000 characters")


def test_errors_are_told_in_words(opened, served):
    page = opened()
    page.fill("#question", "Which law?")
    page.click("#ask-form .main")
    expect(page.locator("#alert p")).to_have_text("Choose a contract first.")
    pick(page, "odd")
    page.click("#ask-form .main")
    page.wait_for_selector("#ask-out .card")
    page.allow("ERR_FAILED")
    page.route("**/api/feedback/rating", lambda route: route.abort())
    page.fill(".comment textarea", "kept")
    page.keyboard.press("Escape")
    page.keyboard.press("y")
    page.wait_for_selector("#alert:not([hidden])")
    expect(page.locator("#alert p")).to_contain_text("does not answer")
    assert page.input_value(".comment textarea") == "kept" and not page.is_visible(".saved")
    page.unroute("**/api/feedback/rating")
    page.keyboard.press("y")
    page.wait_for_selector("text=Saved as right.")
    assert not page.is_visible("#alert")
    page.allow("422")
    page.fill("#question", "x" * 100_000)
    page.click("#ask-form .main")
    page.wait_for_selector("#alert:not([hidden])")
    expect(page.locator("#alert p")).to_contain_text("question")
    page.route("**/api/ask", lambda route: route.fulfill(status=500, body="<b>no JSON</b>"))
    page.allow("500")
    page.fill("#question", "Which law?")
    page.click("#ask-form .main")
    page.wait_for_selector("text=The server failed (status 500)")


def slowly(page, part):
    """Whatever is asked of an address with `part` in it takes 0.4 s more."""
    page.evaluate(
        """(part) => { const now = window.fetch; window.fetch = async (address, ...rest) => {
             if (address.includes(part)) await new Promise((done) => setTimeout(done, 400));
             return now(address, ...rest); }; }""",
        part,
    )


def test_what_comes_late_is_not_shown_on_another_contract_or_view(opened):
    page = opened("odd")
    slowly(page, "ask")
    page.fill("#question", "Which law?")
    page.click("#ask-form .main")
    pick(page, JUNIPER)
    page.wait_for_timeout(700)
    assert page.locator(".card").count() == 0 and page.text_content("#contract-name") == JUNIPER
    pick(page, "odd")
    page.click("#ask-form .main")
    page.click("text=Full review")
    page.wait_for_timeout(700)
    assert page.locator("#text mark").count() == 0
    page.click("nav >> text=Ask")
    assert marked(page, "active") == "laws of 𝔘tah"
    slowly(page, "big")
    page.fill("#contract-input", "big")
    page.press("#contract-input", "Enter")
    pick(page, JUNIPER)
    page.wait_for_timeout(700)
    assert page.text_content("#contract-name") == JUNIPER == page.input_value("#contract-input")


def test_a_quote_that_does_not_stand_in_the_text_shown_is_not_marked_there(opened, served):
    page = opened()
    page.route("**/api/contracts/odd", lambda route: route.fulfill(json={"id": "odd", "text": "new " + ODD}))
    pick(page, "odd")
    ask(page, "Which law governs?")
    assert page.locator("#text mark").count() == 0 and page.locator("button.quote").count() == 0
    expect(page.locator(".quote-list")).to_contain_text("changed since")


def test_the_page_has_no_way_to_read_data_as_markup():
    from program.serve.app import STATIC

    sources = {path.name: path.read_text(encoding="utf-8") for path in STATIC.iterdir()}
    assert {"index.html", "app.js", "style.css"} <= set(sources)
    for name, source in sources.items():
        forbidden = (
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|srcdoc|style=|onclick=|https?://(?!www\.w3)"
        )
        assert not re.search(forbidden, source), name
