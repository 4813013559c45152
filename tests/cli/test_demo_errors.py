"""What becomes of errors in the demo: a sentence for the visitor, a traceback for the log, and free memory."""

import logging
import time
import weakref

import pytest
import torch

gradio_client = pytest.importorskip("gradio_client")
gr = pytest.importorskip("gradio")

from dattn.apps.demo import serving  # noqa: E402, after the check for gradio
from dattn.apps.demo.visits import Stopped  # noqa: E402

BALLAST = 20 * 2**20
OUT = (
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 8 GiB"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 80 bytes"),
)


@pytest.mark.parametrize("error", OUT, ids=lambda error: type(error).__name__)
def test_out_of_memory_says_what_to_ask_for(error):
    def fail():
        raise error

    with pytest.raises(gr.Error, match="fewer frames or a smaller size"):
        serving.served(fail)()


@pytest.mark.parametrize("kind", [KeyError, StopIteration, AssertionError, RuntimeError, OSError])
def test_what_nobody_thought_of_is_a_sentence_and_its_traceback_is_logged(kind, caplog):
    def fail():
        raise kind("/secret/place")

    with caplog.at_level(logging.ERROR), pytest.raises(gr.Error, match="try others") as caught:
        serving.served(fail)()
    assert kind.__name__ in str(caught.value) and "secret" not in str(caught.value)
    assert "in fail" in caplog.text and "/secret/place" in caplog.text


def test_an_error_of_gradio_is_shown_as_it_is():
    def fail():
        raise gr.Error("as it is")

    with pytest.raises(gr.Error, match="as it is"):
        serving.served(fail)()


@pytest.mark.parametrize("error", [Stopped(), OUT[1]], ids=["stopped", "out of memory"])
def test_the_tensors_of_a_run_that_ended_early_are_free(error):
    seen = []

    def fail():
        tensor = torch.empty(8)
        seen.append(weakref.ref(tensor))
        raise error

    with pytest.raises(gr.Error) as caught:
        serving.served(fail)()
    assert caught.value is not None and seen[0]() is None


def test_stopped_runs_leave_no_memory_behind(served, client, wish, memory, monkeypatch):
    from dattn.apps.demo import studio as module

    run = module.run

    def heavy(*args, **kwargs):
        ballast = torch.ones(BALLAST // 4)
        return run(*args, **kwargs), ballast

    monkeypatch.setattr(module, "run", heavy)
    for number in range(20):
        job = client.submit(**wish(steps=200))
        deadline = time.time() + 60
        while not job.status().progress_data and time.time() < deadline:
            time.sleep(0.02)
        client.predict(api_name="/stop")
        with pytest.raises(gradio_client.exceptions.AppError, match="Stopped"):
            job.result(timeout=30)
        if number == 2:
            before = memory()
    assert memory() - before < 3 * BALLAST
