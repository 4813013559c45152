"""How the demo serves: visitors that do not meet, the queue and its end, files that go with their visit."""

import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

gradio_client = pytest.importorskip("gradio_client")
pytest.importorskip("gradio")

from dattn.apps.demo.app import build  # noqa: E402
from dattn.apps.demo.serving import Job  # noqa: E402
from dattn.apps.demo.studio import Studio  # noqa: E402
from dattn.apps.demo.visits import MOST_RUNS, MOST_VISITS, Stopped, Visits  # noqa: E402
from dattn.apps.loading import Loaded, load  # noqa: E402
from dattn.apps.running import Request, checked, run  # noqa: E402


def test_two_visitors_do_not_see_each_other(served, wish):
    one, other = (gradio_client.Client(served[0], verbose=False) for _ in range(2))
    jobs = [client.submit(**wish(seed=seed)) for seed, client in ((10, one), (20, other))]
    galleries = [job.result(timeout=120)[-1] for job in jobs]
    assert [[entry["caption"].split()[-1] for entry in gallery] for gallery in galleries] == [["10"], ["20"]]


def test_a_run_stops_within_a_step_and_leaves_the_model_as_it_was(served, client, wish):
    studio = served[1]
    before = client.predict(**wish())[0]
    job = client.submit(**wish(steps=200))
    deadline = time.time() + 60
    while not job.status().progress_data and time.time() < deadline:
        time.sleep(0.05)
    other = gradio_client.Client(served[0], verbose=False)
    other.predict(api_name="/stop")  # another visitor's wish is not ours
    time.sleep(0.3)
    assert not job.done()
    began = time.time()
    client.predict(api_name="/stop")
    with pytest.raises(gradio_client.exceptions.AppError, match="Stopped"):
        job.result(timeout=30)
    assert time.time() - began < 10
    assert client.predict(**wish())[0].count("badge") == before.count("badge")
    assert all("_dattn" not in name for x in studio._loaded.values() for name in vars(x.denoisers[0]))


def test_a_model_that_is_there_does_not_wait_for_one_that_is_loaded(shapes_folder, sd_folder, monkeypatch):
    from dattn.apps.demo import studio as module

    studio = module.Studio([str(shapes_folder), str(sd_folder)], device="cpu")
    began, go = threading.Event(), threading.Event()
    there = studio.loaded(str(shapes_folder))

    def slow(*_, **__):
        began.set()
        assert go.wait(60)
        return "slow"

    monkeypatch.setattr(module, "load", slow)
    with ThreadPoolExecutor() as threads:
        slowly = threads.submit(studio.loaded, str(sd_folder))
        assert began.wait(60)
        assert threads.submit(studio.loaded, str(shapes_folder)).result(10) is there
        go.set()
        assert slowly.result(60) == "slow"


@pytest.mark.parametrize("part", ["transformer", "text_encoder"])
def test_no_pickle_is_read(shapes_folder, tmp_path, part):
    folder = tmp_path / "pickled"
    shutil.copytree(shapes_folder, folder)
    (file,) = (folder / part).glob("*.safetensors")
    weights = {"transformer": "diffusion_pytorch_model.bin", "text_encoder": "pytorch_model.bin"}
    torch.save(load_file(file), folder / part / weights[part])
    file.unlink()
    assert load(str(folder), "cpu").name == "pickled"
    with pytest.raises(ValueError, match="cannot be loaded .*safetensors"):
        Studio([str(folder)], device="cpu").loaded(str(folder))


@pytest.fixture
def long_run(visitor, wish):
    """A run of another visitor's that takes long; it is ended after the test."""
    other = visitor()
    job = other.submit(**wish(steps=200))
    deadline = time.time() + 60
    while not job.status().progress_data and time.time() < deadline:
        time.sleep(0.05)
    yield job
    other.predict(api_name="/stop")
    with pytest.raises(gradio_client.exceptions.AppError, match="Stopped"):
        job.result(timeout=30)


def test_a_stop_ends_what_waits_in_the_queue_at_once(long_run, client, visitor, wish):
    patient = visitor().submit(**wish())  # by the end of the test its turn comes
    jobs = [client.submit(**wish(steps=200)) for _ in range(2)]
    time.sleep(0.5)
    client.predict(api_name="/stop")
    for job in jobs:
        with pytest.raises(gradio_client.exceptions.AppError, match="Stopped"):
            job.result(timeout=5)
    assert not long_run.done() and not patient.done()  # of others


def test_a_full_queue_says_so_and_keeps_what_is_in_it(served, long_run, client, visitor, wish, monkeypatch):
    queue = served[3]._queue
    monkeypatch.setattr(queue, "max_size", 1)
    patient = visitor().submit(**wish())
    deadline = time.time() + 30
    while not len(queue) and time.time() < deadline:
        time.sleep(0.05)
    with pytest.raises(Exception, match="[Qq]ueue is full"):
        client.predict(**wish())
    assert not long_run.done() and not patient.done()


def test_an_estimate_does_not_wait_for_the_device(long_run, client, shapes_folder):
    began = time.time()
    for side in (32, 64):  # the second was made by nobody
        assert "Tokens" in client.predict(str(shapes_folder), "Dense()", 9, side, side, api_name="/estimate")
    assert time.time() - began < 5 and not long_run.done()


def test_where_the_queue_is_unknown_a_stopped_call_ends_at_its_turn(client, visitor, wish, monkeypatch):
    monkeypatch.setattr("gradio.queueing.Queue.remove_from_queue", None)
    other = visitor()
    first = other.submit(**wish(steps=50))
    while not first.status().progress_data:
        time.sleep(0.05)
    job = client.submit(**wish())
    time.sleep(0.5)
    client.predict(api_name="/stop")
    with pytest.raises(gradio_client.exceptions.AppError, match="Stopped"):
        job.result(timeout=60)
    assert first.result(timeout=60)


@pytest.mark.parametrize("model", ["shapes_folder", "sd_folder"])
def test_a_run_ends_within_a_step(request, served, model):
    """The check of the last layer of the first step ends it; after it, that of layers of the decoder would."""
    name, looks, steps = str(request.getfixturevalue(model)), [], []
    wish = served[1].request({"model": name, "frames": 5, "height": 32, "width": 32, "steps": 1})
    served[1].grid(name, wish)

    def check():
        looks.append(0)
        if len(looks) == left:
            raise Stopped

    def make():
        with served[1].at_work(name, wish, check) as loaded:
            run(loaded, wish, "stock", on_step=lambda *_: steps.append(len(looks)))

    left = 0
    make()
    assert 3 < steps[0] < len(looks)
    (left,) = steps
    looks.clear()
    with pytest.raises(Stopped):
        make()
    assert steps == [left]


def test_layers_that_are_left_out_are_no_layers():
    """Decoders without attention in the middle have None in its place, as that of shapes-sd."""
    layers, looks = torch.nn.ModuleList([torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)]), []
    layers.insert(1, None)
    pipe = SimpleNamespace(components={"vae": torch.nn.Sequential(layers), "scheduler": None})
    with checked(pipe, lambda: looks.append(0)):
        layers[0](torch.zeros(2)), layers[2](torch.zeros(2))
    layers[0](torch.zeros(2))
    assert len(looks) == 2


class OnAnotherDevice:
    """A pipeline of 3 steps that is on no CPU; the numbers of steps that it was called for."""

    device, num_timesteps = torch.device("meta"), 3

    def __init__(self):
        self.calls = []

    def set_progress_bar_config(self, **options):
        pass

    def __call__(self, prompt, num_inference_steps, generator, output_type, callback_on_step_end):
        self.calls.append(num_inference_steps)
        for step in range(num_inference_steps):
            callback_on_step_end(self, step, None, {})
        return SimpleNamespace(images=[np.zeros((8, 8, 3))])


def test_a_stop_ends_the_first_call_on_a_gpu_too():
    loaded, told = Loaded(OnAnotherDevice(), "", None, None), []
    run(loaded, Request("a", steps=3), "stock", on_step=lambda *done: told.append(done))
    assert loaded.pipe.calls == [2, 3] and told == [(0, 3), (0, 3), (1, 3), (2, 3), (3, 3)]

    def stop(done, of):
        raise Stopped

    loaded = Loaded(OnAnotherDevice(), "", None, None)
    with pytest.raises(Stopped):
        run(loaded, Request("a", steps=3), "stock", on_step=stop)
    assert loaded.pipe.calls == [2]


def test_too_many_tokens_are_refused(served, client, wish, monkeypatch):
    monkeypatch.setattr(served[1], "limits", replace(served[1].limits, tokens=40))
    with pytest.raises(gradio_client.exceptions.AppError, match="80 tokens: 40 are the most here; ask for fewer"):
        client.predict(**wish())
    assert "Speed-up" in client.predict(**wish(height=16))[0]


def test_a_deadline_ends_a_run():
    visits = Visits()
    with pytest.raises(ValueError, match="Not done after 0 s, the most here"):
        Job(visits.of("someone"), time.monotonic(), 0, None).check()
    visits.close()


def test_one_at_a_time_on_a_device(served, wish, monkeypatch):
    from dattn.apps.demo import studio as module

    running, most, lock, run = 0, 0, threading.Lock(), module.run

    def counted(*args, **kwargs):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        try:
            return run(*args, **kwargs)
        finally:
            with lock:
                running -= 1

    monkeypatch.setattr(module, "run", counted)
    clients = [gradio_client.Client(served[0], verbose=False) for _ in range(3)]
    for job in [client.submit(**wish()) for client in clients]:
        job.result(timeout=120)
    assert most == 1


def test_files_of_a_visit_go_with_it():
    visits = Visits()
    visit = visits.of("someone")
    for number in range(MOST_RUNS + 2):
        place = visit.place()
        (place / "clip.mp4").write_text("")
        visit.keep(place / "clip.mp4", "Radial()", "a very long prompt " * 9, number)
    assert len(visit.runs) == MOST_RUNS
    assert visit.runs[0][1] == f"Radial() · a very long prompt a very long prompt … · seed {MOST_RUNS + 1}"
    assert len(list(visit.folder.iterdir())) == MOST_RUNS
    folder = visit.folder
    visits.leave("someone")
    assert not folder.exists() and visit.stopped > time.monotonic() and visits.known("someone") is None
    with pytest.raises(Stopped):
        visit.place()
    assert not folder.exists() and visits.of("someone") is not visit
    assert visits.of(None) is not visits.of(None)  # programs without a session do not share one
    visits.close()


def test_of_very_many_visits_the_oldest_go_but_none_whose_call_runs():
    visits = Visits()
    first, second = visits.of("first"), visits.of("second")
    with first.at_work():
        for number in range(MOST_VISITS - 1):
            visits.of(str(number))
    assert visits.known("second") is None and not second.folder.exists()
    assert visits.known("first") is first and first.folder.exists() and visits.known("0") is not None
    visits.close()


def test_calls_without_a_session_push_no_reader_out():
    visits = Visits()
    readers = [visits.of(str(number)) for number in range(MOST_VISITS - 1)]
    last = visits.of(None)
    for _ in range(3):
        before, last = last, visits.of(None)
        assert last.folder.exists() and not before.folder.exists()
    assert all(reader.folder.exists() for reader in readers)
    visits.of("one more")
    assert not last.folder.exists() and readers[0].folder.exists()
    visits.of("and another")
    assert not readers[0].folder.exists()
    visits.close()


def test_a_wish_to_stop_makes_no_room_for_itself():
    visits = Visits()
    first = visits.of("first")
    for number in range(5 * MOST_VISITS):
        visits.stop(str(number))
    assert visits.known("first") is first and visits.known("0") is None and len(visits._stops) == MOST_VISITS
    before = time.monotonic()
    visits.stop("second")  # whose first call waits
    assert visits.of("second").stopped >= before
    visits.close()


class Progress:
    """Notes what a visitor reads."""

    def __init__(self):
        self.read = []

    def __call__(self, share, desc):
        self.read.append(desc)


@pytest.fixture
def told(monkeypatch):
    """Tells a job of something after so many seconds; what a visitor reads."""
    now, progress, visits = [100.0], Progress(), Visits()
    monkeypatch.setattr("dattn.apps.demo.serving.time", SimpleNamespace(monotonic=lambda: now[0]))
    job = Job(visits.of("someone"), 100.0, 10_000, progress)

    def tell(seconds, *what):
        now[0] += seconds
        job.tell(*what)
        return progress.read[-1]

    yield tell
    visits.close()


def test_the_time_left_goes_by_the_pace_of_what_runs(told):
    assert told(10, "encoding", 5, 10) == "encoding: step 5 of 10, 10 s left"
    assert told(10, "encoding", 10, 10) == "encoding: step 10 of 10, 0 s left"
    assert told(1, "steps", 0, 100) == "steps: step 0 of 100"
    assert told(2, "steps", 1, 100) == "steps: step 1 of 100, 297 s left"
    assert told(2, "steps", 2, 100) == "steps: step 2 of 100, 245 s left"


def test_the_time_left_counts_the_parts_that_follow(told):
    assert told(10, "stock", 1, 2, 0, 2) == "stock: step 1 of 2, 30 s left"
    told(10, "stock", 2, 2, 0, 2)
    assert told(2, "Radial()", 1, 2, 1, 2) == "Radial(): step 1 of 2, 2 s left"


def test_a_visit_that_runs_is_no_old_one():
    visits = Visits()
    visit = visits.of("someone")
    visit.seen = 0.0
    Job(visit, time.monotonic(), 9, None).check()
    assert visit.seen > 0
    visits.close()


def test_a_page_that_is_lost_may_come_back():
    visits = Visits()
    back, gone = visits.of("back"), visits.of("gone")
    for name in ("back", "gone"):
        visits.lose(name, grace=0.2)
    visits.known("back")
    deadline = time.monotonic() + 10
    while gone.folder.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert visits.known("gone") is None and gone.stopped > time.monotonic()
    assert visits.known("back") is back and back.folder.exists()
    visits.lose("never seen")
    visits.close()


@pytest.mark.parametrize("words, missing, remedy", [((), "gradio", "dattn[demo]"), (("--mcp",), "mcp", "gradio[mcp]")])
def test_the_command_says_at_once_what_to_install(dattn_command, monkeypatch, words, missing, remedy):
    monkeypatch.setattr("dattn.apps.demo.find_spec", lambda name: None if name == missing else object())
    monkeypatch.setattr("dattn.apps.demo.Welcome", None)  # nothing was served
    outcome = dattn_command("demo", *words)
    assert outcome.code == 2 and f"{missing} is not installed" in outcome.err and remedy in outcome.err


def test_mcp_tools_are_called_as_the_endpoints_are(served):
    demo = build(*served[1:3])
    public = [one for one in demo.fns.values() if one.api_name and one.api_visibility == "public"]
    assert {"generate", "edit", "regions", "estimate", "stop"} <= {one.api_name for one in public}
    assert all(one.fn.__name__ == one.api_name for one in public)
