"""The tokens that the demo tells before anything is made."""

import threading
import time

import pytest

pytest.importorskip("gradio")

from dattn.apps.demo import grids
from dattn.apps.demo.studio import Studio


@pytest.fixture
def studio(shapes_folder, sd_folder):
    return Studio([str(shapes_folder), str(sd_folder)], device="cpu")


@pytest.fixture
def asked(studio):
    """A request of a model at a size."""
    return lambda model, *size: studio.request(
        {"model": model, **dict(zip(("frames", "height", "width"), size, strict=True))}
    )


class Busy:
    """Someone else has the device meanwhile."""

    def __init__(self, studio, model):
        self.ready, self.over = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self.work, args=(studio, model))

    def work(self, studio, model):
        with studio.model(model):
            self.ready.set()
            self.over.wait(60)

    def __enter__(self):
        self.thread.start()
        assert self.ready.wait(60)

    def __exit__(self, *_):
        self.over.set()
        self.thread.join()


@pytest.mark.parametrize("size", [(1, 32, 32), (5, 64, 32), (33, 16, 80), (9, 48, 16)])
@pytest.mark.parametrize("video", [True, False], ids=["clips", "pictures"])
def test_a_grid_is_told_from_another_size_as_the_model_counts_it(studio, asked, shapes_folder, sd_folder, video, size):
    model = str(shapes_folder if video else sd_folder)
    studio.grid(model, asked(model, 9, 32, 32))
    with Busy(studio, model):
        told = studio.grid_now(model, asked(model, *size))
    assert told == studio.grid(model, asked(model, *size))


def test_while_the_device_is_busy_nobody_waits(studio, asked, shapes_folder, sd_folder):
    model, began = str(shapes_folder), time.monotonic()
    with Busy(studio, str(sd_folder)):
        assert studio.grid_now(model, asked(model, 9, 32, 32)) is None
    assert studio.grid_now(model, asked(model, 9, 32, 32)).shape == (5, 4, 4)
    assert time.monotonic() - began < 20


def test_not_every_size_is_remembered(studio, asked, shapes_folder, monkeypatch):
    monkeypatch.setattr(grids, "MOST", 2)
    model = str(shapes_folder)
    for side in (16, 32, 48):
        studio.grid(model, asked(model, 1, side, 16))
    assert len(studio._grids._known) == 2 and studio._grids.known(model, asked(model, 1, 16, 16)) is None
