"""The page that there is while the demo starts: what browsers and programs are told, and that its port is free then."""

import socket
import urllib.error
from urllib.request import Request, urlopen

import pytest

from dattn.apps.demo.welcome import MARK, Welcome

BROWSER = {"Accept": "text/html,application/xhtml+xml"}


@pytest.fixture
def welcome():
    page = Welcome("127.0.0.1")
    yield page
    page.leave()


def ask(page, path="/", **headers):
    return urlopen(Request(f"http://127.0.0.1:{page.port}{path}", headers=headers), timeout=5)


def test_browsers_see_how_far_the_start_is(welcome):
    welcome.stage = "Loading <two> models"
    answer = ask(welcome, **BROWSER)
    text = answer.read().decode()
    assert answer.headers["Cache-Control"] == "no-store" and "Loading &lt;two&gt; models" in text
    assert "dattn" in text and "<two>" not in text and "$" not in text
    answer = ask(welcome, "/stage")
    assert answer.read().decode() == "Loading <two> models" and answer.headers[MARK] and MARK in text


@pytest.mark.parametrize("path", ["/", "/config", "/gradio_api/info"])
def test_programs_are_told_to_come_again(welcome, path):
    with pytest.raises(urllib.error.HTTPError) as found:
        ask(welcome, path)
    assert found.value.code == 503 and int(found.value.headers["Retry-After"]) > 0


def test_the_next_port_is_taken_where_one_is_in_use(welcome):
    other = Welcome("127.0.0.1")
    try:
        assert other.port > welcome.port >= 7860
    finally:
        other.leave()


def test_a_port_that_was_asked_for_and_is_taken_is_told(welcome):
    with pytest.raises(OSError, match=f"port {welcome.port} is taken.*--port"):
        Welcome("127.0.0.1", welcome.port)


def test_the_port_is_free_for_the_demo_even_after_visits():
    page = Welcome("127.0.0.1")
    ask(page, **BROWSER).read()
    page.leave()
    page.leave()
    with socket.socket() as demo:
        demo.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as Gradio does
        demo.bind(("127.0.0.1", page.port))


@pytest.mark.skipif(not socket.has_ipv6, reason="needs IPv6")
def test_it_is_served_over_ipv6_too():
    try:
        page = Welcome("::1")
    except OSError as error:
        pytest.skip(f"no IPv6 here: {error}")
    try:
        assert page.address == f"http://[::1]:{page.port}"
        assert urlopen(Request(page.address, headers=BROWSER), timeout=5).status == 200
    finally:
        page.leave()
