"""Who may speak to the server: no foreign host, no page of another site, nobody without the token."""

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from program.config import ConfigError
from program.serve.auth import Guard, is_loopback
from program.serve.run import checked_token

TOKEN = "0123456789abcdef"


async def echo(request: Request) -> PlainTextResponse:
    return PlainTextResponse(f"{request.url.path} {request.url.query} {len(await request.body())}")


APP = Starlette(routes=[Route("/{path:path}", echo, methods=["GET", "POST"])])


def client(url="http://127.0.0.1:8765", **given):
    return TestClient(Guard(APP, **given), url, follow_redirects=False)


@pytest.mark.parametrize("host", ["127.0.0.1:8765", "localhost:1", "LOCALHOST", "[::1]:8765", "127.0.0.1"])
def test_names_of_this_machine_are_let_in(host):
    assert client().get("/", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example:8765",
        "127.0.0.1.evil.example",
        "localhost.evil.example:80",
        "",
        "::1",
        "127.0.0.1:80:80",
        "10.0.0.5",
    ],
)
def test_foreign_hosts_are_refused(host):
    for method in ("GET", "POST"):
        response = client().request(method, "/", headers={"host": host})
        assert response.status_code == 403 and "is not this server" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"}, {"origin": "null"}, {"origin": "http://127.0.0.1:9999"},
        {"origin": "http://127.0.0.1:8765.evil.example"}, {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"}, {"origin": "http://127.0.0.1:8765", "sec-fetch-site": "cross-site"},
    ],
)  # fmt: skip
def test_pages_of_other_sites_may_not_write(headers):
    response = client().post("/", headers=headers)
    assert response.status_code == 403 and "may not write" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    "headers", [{}, {"origin": "http://127.0.0.1:8765", "sec-fetch-site": "same-origin"}, {"sec-fetch-site": "none"}]
)
def test_the_servers_own_page_and_other_programs_may(headers):
    assert client().post("/", headers=headers).status_code == 200


def test_headers_stand_on_all_answers_refusals_too():
    for response in (
        client().get("/"),
        client().get("/", headers={"host": "evil.example"}),
        client(token=TOKEN).get("/"),
    ):
        assert response.headers["content-security-policy"].startswith("default-src 'self';")
        assert "unsafe" not in response.headers["content-security-policy"]
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["referrer-policy"] == "no-referrer"


def test_nobody_gets_in_without_the_token():
    guarded = client(token=TOKEN)
    for path, headers in (
        ("/", {}), ("/static/app.js", {}), (f"/?token={TOKEN}x", {}), (f"/?token={TOKEN[:-1]}", {}), ("/?token=", {}),
        ("/", {"authorization": "Bearer wrong"}), ("/", {"authorization": f"Basic {TOKEN}"}),
        ("/", {"cookie": f"evergreen_8765={TOKEN}"}), ("/", {"cookie": "evergreen_8765="}), ("/", {"cookie": "\x01"}),
    ):  # fmt: skip
        response = guarded.get(path, headers=headers)
        assert response.status_code == 401 and "token" in response.json()["error"]["message"]
    assert guarded.post(f"/?token={TOKEN}").status_code == 401  # of an address, only to open the page
    assert guarded.get("/", headers={"authorization": f"bearer {TOKEN}"}).status_code == 200


def test_the_token_in_an_address_becomes_a_cookie_once():
    guarded = client(token=TOKEN)
    response = guarded.get(f"/a/b?x=1&token={TOKEN}&y=2")
    assert response.status_code == 303 and response.headers["location"] == "/a/b?x=1&y=2"
    cookie = response.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=Strict" in cookie and TOKEN not in cookie
    assert guarded.get(response.headers["location"]).text == "/a/b x=1&y=2 0"
    assert guarded.post("/").status_code == 200
    assert guarded.post("/", headers={"origin": "http://evil.example"}).status_code == 403


def test_no_address_sends_elsewhere():
    for path in ("//evil.example/", "/\\evil.example/"):
        place = client(token=TOKEN).get(f"http://127.0.0.1:8765{path}?token={TOKEN}").headers["location"]
        assert place.startswith("/") and place[1] not in "/\\"


def test_an_address_that_others_reach_needs_a_token():
    with pytest.raises(ValueError, match="needs a token"):
        Guard(APP, hosts=None)
    assert client("http://legal.example", hosts=None, token=TOKEN).get("/").status_code == 401
    for host in ("0.0.0.0", "::", "192.168.1.5", "legal.example"):
        with pytest.raises(ConfigError, match="no token"):
            checked_token(host, None)
        assert checked_token(host, TOKEN) == TOKEN
    with pytest.raises(ConfigError, match="15 characters"):
        checked_token("127.0.0.1", TOKEN[:15])
    assert checked_token("127.0.0.1", None) is None


def test_loopback_addresses_are_known():
    assert all(map(is_loopback, ("127.0.0.1", "localhost", "::1", "[::1]", "127.9.9.9")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "localhost.evil.example", "")))


def test_tokens_are_compared_in_constant_time(monkeypatch):
    compared = []
    monkeypatch.setattr("hmac.compare_digest", lambda a, b: compared.append((a, b)) or a == b)
    client(token=TOKEN).get("/", headers={"authorization": "Bearer wrong"})
    assert (b"wrong", TOKEN.encode()) in compared


def test_a_failure_is_told_as_json():
    async def fail(scope, receive, send):
        raise OSError("secret")

    response = TestClient(Guard(fail), "http://127.0.0.1").get("/")
    assert response.status_code == 500 and "secret" not in response.text and "terminal" in response.text
