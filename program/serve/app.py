"""The HTTP API over a session, and the page that uses it: JSON in, JSON out, errors as {"error": {"message": ...}}."""

from pathlib import Path
from typing import Any
from urllib.parse import quote as percent

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from corpora.cuad import CATEGORIES
from corpora.types import Quote, Span
from modules.index_files import StoreError
from program.feedback.rows import FeedbackError, UnknownError
from program.feedback.types import Answered
from program.serve.auth import FAILED, LOCAL_NAMES, Guard
from program.serve.errors import ConflictError, ServeError
from program.serve.requests import (
    ChoiceGiven,
    CorrectionGiven,
    Question,
    RatingGiven,
    ReviewAsked,
    SkipGiven,
)
from program.serve.reviews import Progress, Reviews
from program.serve.session import Session

STATIC = Path(__file__).with_name("static")
_MEDIA = {
    "html": "text/html; charset=utf-8",
    "docx": "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
    "csv": "text/csv; charset=utf-8",
}
_MAX_QUEUE = 500


def create_app(
    session: Session,
    reviews: Reviews | None = None,
    *,
    hosts: tuple[str, ...] | None = LOCAL_NAMES,
    token: str | None = None,
) -> ASGIApp:
    """The whole server as an ASGI app, behind `Guard`; `hosts` and `token` are its.

    OpenAPI at /openapi.json; no page of documentation, which would
    come from another host.
    """
    api = FastAPI(title="Evergreen", docs_url=None, redoc_url=None)
    _handle_errors(api)
    _add_reading(api, session)
    _add_asking(api, session)
    _add_feedback(api, session)
    _add_reviews(api, session, reviews or Reviews(session))
    api.mount("/static", StaticFiles(directory=STATIC, check_dir=False))
    api.get("/", include_in_schema=False)(lambda: FileResponse(STATIC / "index.html"))
    return Guard(api, hosts=hosts, token=token)


def _add_reading(api: FastAPI, session: Session) -> None:
    @api.get("/api/contracts")
    def contracts() -> list[dict[str, Any]]:
        return [{"id": key, "n_characters": len(session.contracts[key].text)} for key in sorted(session.contracts)]

    @api.get("/api/contracts/{contract_id:path}")
    def contract(contract_id: str) -> dict[str, str]:
        found = session.contract(contract_id)
        return {"id": found.id, "text": found.text}

    @api.get("/api/categories")
    def categories() -> list[dict[str, str]]:
        return [{"name": category.name, "question": category.question} for category in CATEGORIES]

    @api.get("/api/queue")
    def queue(limit: int = Query(20, ge=1, le=_MAX_QUEUE)) -> list[dict[str, Any]]:
        return [answer_json(each.answered) | {"uncertainty": each.uncertainty} for each in session.queue(limit)]


def _add_asking(api: FastAPI, session: Session) -> None:
    @api.post("/api/ask")
    def ask(asked: Question) -> dict[str, Any]:
        return answer_json(session.ask(asked.question, asked.contract_id))

    @api.post("/api/candidates")
    def candidates(asked: Question) -> dict[str, Any]:
        offer = session.candidates(asked.question, asked.contract_id)
        # Nothing that would tell which of the two is whose: no ids, no confidence.
        sides = [
            {"key": key, "answer": one.answer, "quotes": [quote_json(quote) for quote in one.quotes]}
            for key, one in (("left", offer.left), ("right", offer.right))
        ]
        left = offer.left
        about = {"question": left.question, "contract_id": left.contract_id}
        return {"id": offer.candidates.id, **about, "candidates": sides}


def _add_feedback(api: FastAPI, session: Session) -> None:
    store = session.store

    @api.post("/api/feedback/rating")
    def rating(given: RatingGiven) -> dict[str, str]:
        event = store.rate(given.answer_id, thumbs=given.thumbs, stars=given.stars, comment=given.comment, by=given.by)
        return {"id": event.id}

    @api.post("/api/feedback/correction")
    def correction(given: CorrectionGiven) -> dict[str, str]:
        spans = [Span(span.start, span.end) for span in given.spans]
        event = session.correct(
            given.answer_id, found=given.found, answer=given.answer, spans=spans, comment=given.comment, by=given.by
        )
        return {"id": event.id}

    @api.post("/api/feedback/choice")
    def choice(given: ChoiceGiven) -> dict[str, str]:
        return {"id": store.choose(given.candidates_id, given.chosen, comment=given.comment, by=given.by).id}

    @api.post("/api/feedback/skip")
    def skip(given: SkipGiven) -> dict[str, str]:
        return {"id": store.skip(given.answer_id, by=given.by).id}


def _add_reviews(api: FastAPI, session: Session, reviews: Reviews) -> None:
    @api.post("/api/reviews")
    def start(asked: ReviewAsked) -> dict[str, str]:
        return {"id": reviews.start(asked.contract_id)}

    @api.get("/api/reviews/{review_id}")
    def progress(review_id: str) -> dict[str, Any]:
        return progress_json(reviews.get(review_id))

    @api.get("/api/reviews/{review_id}/export.{fmt}")
    def export(review_id: str, fmt: str) -> Response:
        if fmt not in _MEDIA:
            raise HTTPException(404, f"There is no export as {fmt[:20]!r}; there are {', '.join(_MEDIA)}.")
        review = reviews.finished(review_id)
        contract = session.contract_of(review)
        from program.review_export import render  # python-docx and the templates are read when they are used

        name = percent(f"{review.contract_id.replace('/', '-')}.{fmt}", safe="")
        headers = {"content-disposition": f"attachment; filename*=utf-8''{name}"}
        return Response(render(review, contract, fmt), media_type=_MEDIA[fmt], headers=headers)


def answer_json(answered: Answered) -> dict[str, Any]:
    """An answer as the API says it."""
    names = ("id", "question", "contract_id", "category", "answer", "found", "confidence", "p_answered", "release")
    return {name: getattr(answered, name) for name in names} | {"quotes": [quote_json(q) for q in answered.quotes]}


def quote_json(quote: Quote) -> dict[str, Any]:
    """A quote as the API says it; offsets count code points."""
    return {"text": quote.text, "start": quote.start, "end": quote.end, "contract_id": quote.contract_id}


def progress_json(progress: Progress) -> dict[str, Any]:
    """How far a review is, as the API says it."""
    return {
        "id": progress.id, "contract_id": progress.contract_id, "done": len(progress.findings),
        "total": progress.total, "state": progress.state, "error": progress.error,
        "findings": [answer_json(answered) for answered in progress.findings.values()],
    }  # fmt: skip


def _handle_errors(api: FastAPI) -> None:
    statuses = {ConflictError: 409, UnknownError: 404, FeedbackError: 422, StoreError: 503, ServeError: 500}
    for kind, status in statuses.items():
        api.exception_handler(kind)(lambda request, error, status=status: _error(status, str(error)))

    @api.exception_handler(Exception)
    def failed(request: Request, error: Exception) -> JSONResponse:
        return _error(500, FAILED)  # it goes on to `Guard`, which logs it

    @api.exception_handler(HTTPException)
    def refused(request: Request, error: HTTPException) -> JSONResponse:
        known = {"Not Found": "There is nothing here.", "Method Not Allowed": "This cannot be done here."}
        return _error(error.status_code, known.get(str(error.detail), str(error.detail)))

    @api.exception_handler(RequestValidationError)
    def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        faults = error.errors()
        if any(fault["type"] == "json_invalid" for fault in faults):
            return _error(400, "The request is not JSON. Send an object, as application/json.")
        told = [(".".join(map(str, fault["loc"][1:])) or "the body", fault["msg"]) for fault in faults[:5]]
        return _error(422, "; ".join(f"{where}: {what}" for where, what in told))


def _error(status: int, message: str) -> JSONResponse:
    # A message may repeat what was sent, half a character too.
    clean = str(message).encode("utf-8", "replace").decode()
    return JSONResponse({"error": {"message": clean}}, status)
