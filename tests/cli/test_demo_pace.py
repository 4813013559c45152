"""How long a visitor of the demo waits; the seconds are printed (``-s``). Slow, since a busy machine is no fault."""

import time
from urllib.request import Request, urlopen

import pytest

gradio_client = pytest.importorskip("gradio_client")
pytest.importorskip("gradio")

from dattn.apps.loading import DEFAULT, Native, shipped  # noqa: E402, after the check for gradio

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(DEFAULT not in [path.name for path in shipped()], reason="needs the demo models of a clone"),
]
FIRST_PAGE, GENERATION = 3.0, 30.0
"""Seconds; of both clips, by stock attention and under a pattern, on two cores."""


@pytest.fixture(scope="module")
def address(demo_process):
    with demo_process() as (_, told):
        yield next(told)


def test_the_first_page_comes_at_once(demo_process):
    began = time.perf_counter()
    with demo_process() as (address, told):
        page = urlopen(Request(address, headers={"Accept": "text/html"})).read()
        first = time.perf_counter() - began
        assert next(told) == address  # at the same place
        demo = urlopen(address).read()
        print(f"\nfirst page: {first:.2f} s after the command, the demo: {time.perf_counter() - began:.1f} s")
    assert b"Loading" in page and b"gradio" in demo and first < FIRST_PAGE


def test_a_clip_of_the_demo_model_is_soon_made(address):
    client, native = gradio_client.Client(address, verbose=False), Native()
    began = time.perf_counter()
    facts = client.predict(
        DEFAULT, native.prompt, native.pattern, 0.25, native.frames, native.height, native.width, native.steps,
        api_name="/generate",
    )[0]  # fmt: skip
    seconds = time.perf_counter() - began
    print(
        f"\nstock and {native.pattern}, {native.frames} frames, {native.steps} steps: {seconds:.1f} s together; {facts}"
    )
    assert seconds < GENERATION
