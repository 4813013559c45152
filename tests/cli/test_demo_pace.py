"""How long a visitor of the demo waits; the seconds are printed (``-s``). Slow, since a busy machine is no fault."""

import os
import re
import subprocess
import sys
import time
from contextlib import contextmanager
from urllib.request import urlopen

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


@contextmanager
def started(*words):
    """The address of a demo in a process of its own on two cores, as soon as it listens."""
    command = [sys.executable, "-c", "from dattn.apps.cli import main; main()", "demo", "--device", "cpu", *words]
    cores = {"OMP_NUM_THREADS": "2", "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **cores}) as process:
        try:
            yield next(found[0] for line in process.stdout if (found := re.search(r"http://[\d.:]+", line)))
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def address():
    with started() as found:
        yield found


def test_the_first_page_comes_at_once():
    began = time.perf_counter()
    with started() as address:
        listening = time.perf_counter()
        page = urlopen(address).read()
        seconds = time.perf_counter() - listening
    print(f"\nfirst page: {seconds:.2f} s after the demo listens, {listening - began:.1f} s after the command")
    assert b"dattn" in page and seconds < FIRST_PAGE


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
