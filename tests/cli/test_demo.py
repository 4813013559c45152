"""The demo over its API, as programs and browsers use it: results, bad and hostile input, visitors that do not meet."""

import json
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image, ImageColor, ImageDraw

gradio_client = pytest.importorskip("gradio_client")
pytest.importorskip("gradio")

from dattn.apps.demo import defaults, knobs, limits, parser  # noqa: E402, after the check for gradio
from dattn.apps.demo.app import build, launch  # noqa: E402
from dattn.apps.demo.painting import COLORS  # noqa: E402
from dattn.apps.demo.serving import Job  # noqa: E402
from dattn.apps.demo.studio import Studio  # noqa: E402
from dattn.apps.demo.visits import MOST_RUNS, MOST_VISITS, OWN_LORA, Stopped, Visits  # noqa: E402
from dattn.registry import pattern_from_string  # noqa: E402

PATTERN = "Radial(block_size=16, sink=False)"


@pytest.fixture(scope="module")
def served(shapes_folder, sd_folder):
    """Address, studio and visits of a demo with tiny models."""
    options = defaults()
    studio, visits = Studio([str(shapes_folder), str(sd_folder)], device="cpu"), Visits()
    demo = build(studio, visits)
    _, address, _ = launch(demo, options, prevent_thread_lock=True, quiet=True)
    yield address, studio, visits
    demo.close()
    visits.close()


@pytest.fixture
def client(served):
    return gradio_client.Client(served[0], verbose=False)


@pytest.fixture
def wish(shapes_folder):
    """Arguments of ``/generate``, with some changed."""
    usual = {
        "model": str(shapes_folder), "prompt": "a red circle", "pattern": PATTERN, "dense": 0.0, "frames": 9,
        "height": 32, "width": 32, "steps": 2, "seed": 3, "another": False,
    }  # fmt: skip
    return lambda **changed: {**usual, **changed, "api_name": "/generate"}


def test_both_clips_and_all_that_is_shown_beside_them(client, wish):
    facts, seed, stock, own, pictures, mask, report, code, gallery = client.predict(**wish())
    assert seed == 3 and "Speed-up" in facts and "PSNR" in facts and pictures is None
    assert stock.endswith(".mp4") and own.endswith(".mp4") and mask and "Radial" in report
    assert f"dattn.apply(pipe, '{PATTERN}', dense_steps=0.0)" in code and "manual_seed(3)" in code
    compile(code, "snippet", "exec")
    assert len(gallery) == 1 and "seed 3" in gallery[0]["caption"]
    assert len(client.predict(**wish(pattern="stock"))[-1]) == 2


def test_the_script_makes_the_same_clip(client, wish, shapes_folder, tmp_path, monkeypatch):
    from dattn.apps.media import read_video

    own, code = (client.predict(**wish(dense=0.5))[i] for i in (3, 7))
    monkeypatch.chdir(tmp_path)
    folder = str(shapes_folder)
    assert folder in code
    exec(code, {})
    mine, theirs = read_video(tmp_path / "clip.mp4").astype(int), read_video(own).astype(int)
    assert mine.shape == theirs.shape  # both are compressed, by two writers
    assert np.corrcoef(mine.ravel(), theirs.ravel())[0, 1] > 0.97


def test_pictures_are_compared_under_a_slider(client, wish, sd_folder):
    _, seed, stock, own, pictures, *_ = client.predict(**wish(model=str(sd_folder), pattern="Neighborhood(3)"))
    assert seed == 3 and stock is None and own is None and len(pictures) == 2


def test_another_seed_is_shown(client, wish):
    assert client.predict(**wish(another=True))[1] != 3


def test_an_estimate_before_anything_is_made(client, shapes_folder):
    told = client.predict(str(shapes_folder), PATTERN, 9, 32, 32, api_name="/estimate")
    assert "Tokens" in told and "%" in told
    dense = client.predict(str(shapes_folder), "Dense()", 9, 32, 32, api_name="/estimate")
    assert "100%" in dense


BAD = [
    ({"prompt": "  "}, "say what to show"),
    ({"prompt": "x" * 5000}, "1000 are the most"),
    ({"pattern": "Nowhere()"}, "unknown pattern"),
    ({"pattern": "Radial(block_size=17)"}, "block_size"),
    ({"pattern": "__import__('os').system('true')"}, "reads? files|read files|no pattern|write it as in code"),
    ({"pattern": "LearnedGate('/etc/passwd')"}, "read files are not served"),
    ({"pattern": "Selected(Gate('gate.safetensors'))"}, "read files are not served"),
    ({"pattern": "Clustered(2, 2, centroids='/etc/passwd')"}, "read files are not served"),
    ({"pattern": "/etc/passwd.json"}, "write it as in code"),
    ({"pattern": "(" * 900}, "write it as in code"),
    ({"pattern": "Nowhere() #.json"}, "unknown pattern"),
    ({"model": "/etc"}, "not in the list of choices"),
    ({"frames": 10**9}, "greater than maximum"),
    ({"height": 4096, "width": 4096}, "are the most here; ask for less"),
    ({"height": 33}, "multiples of"),
    ({"height": -16}, "whole number from"),
    ({"steps": 10**6}, "greater than maximum"),
    ({"steps": 1.5}, "whole number from 1 to 200"),
    ({"seed": -1}, "whole number from 0"),
    ({"dense": 0.95}, "greater than maximum"),
]


@pytest.mark.parametrize(("changed", "says"), BAD, ids=[json.dumps(changed)[:40] for changed, _ in BAD])
def test_what_is_wrong_is_said_and_the_app_goes_on(client, wish, changed, says):
    with pytest.raises(gradio_client.exceptions.AppError, match=says) as caught:
        client.predict(**wish(**changed))
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize("value", [None, "3", True, 2.5, float("nan"), float("inf"), 0, 11, [1], {}])
def test_numbers_are_checked_whatever_comes(value):
    with pytest.raises(ValueError, match="Steps .*: give a whole number from 1 to 10"):
        limits.whole(value, "Steps", 1, 10)
    assert limits.whole(3.0, "Steps", 1, 10) == 3


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


def test_a_stop_ends_what_waits_in_the_queue(served, client, wish):
    other = gradio_client.Client(served[0], verbose=False)
    first = other.submit(**wish(steps=30))
    while not first.status().progress_data:
        time.sleep(0.05)
    job = client.submit(**wish(steps=200))
    time.sleep(0.5)
    client.predict(api_name="/stop")
    with pytest.raises(gradio_client.exceptions.AppError, match="Stopped"):
        job.result(timeout=60)
    assert first.result(timeout=60) and client.predict(**wish())


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


@pytest.mark.parametrize("offer", knobs.OFFERS, ids=lambda offer: offer.title)
def test_every_position_of_the_sliders_is_a_pattern(offer):
    for end in ("low", "value", "high"):
        text = offer.written({knob.name: getattr(knob, end) for knob in offer.knobs})
        assert limits.attention(text) == text and pattern_from_string(text)


def test_files_of_a_visit_go_with_it():
    visits = Visits()
    visit = visits.of("someone")
    for number in range(MOST_RUNS + 2):
        place = visit.place()
        (place / "clip.mp4").write_text("")
        visit.keep(place / "clip.mp4", str(number))
    assert len(visit.runs) == MOST_RUNS and visit.runs[0][1] == str(MOST_RUNS + 1)
    assert len(list(visit.folder.iterdir())) == MOST_RUNS
    folder = visit.folder
    visits.leave("someone")
    assert not folder.exists() and visit.stopped > time.monotonic() and visits.known("someone") is None
    with pytest.raises(Stopped):
        visit.place()
    assert not folder.exists() and visits.of("someone") is not visit
    assert visits.of(None) is not visits.of(None)  # programs without a session do not share one
    visits.close()


def test_a_small_file_that_holds_a_huge_picture_is_refused(client, regional, tmp_path):
    Image.new("1", (2**13, 2**13)).save(tmp_path / "bomb.png")
    file = gradio_client.handle_file(str(tmp_path / "bomb.png"))
    with pytest.raises(gradio_client.exceptions.AppError, match="decompression bomb"):
        client.predict(**regional(canvas={"background": None, "layers": [file], "composite": file}))


def test_of_very_many_visits_the_oldest_go():
    visits = Visits()
    first = visits.of("first")
    for number in range(MOST_VISITS):
        visits.of(str(number))
    assert visits.known("first") is None and not first.folder.exists() and visits.known("0") is not None
    visits.close()


def test_the_script_is_python_whatever_the_pattern(studio_of):
    for text in ('Selected(Pooled(), TopK(0.3, across="head"))', "Radial(\n  decay=0.5)"):
        compile(studio_of(limits.attention(text)), "script", "exec")


@pytest.fixture
def studio_of(served, shapes_folder):
    """The script of a pattern on the tiny model."""
    from dattn.apps.demo.snippet import snippet

    request = served[1].request({"model": str(shapes_folder), "frames": 9, "height": 32, "width": 32, "steps": 2})
    with served[1].model(str(shapes_folder)) as loaded:
        yield lambda attention: snippet(loaded, request, attention, 0.0)


def test_the_command_without_gradio_says_what_to_install(dattn_command, monkeypatch):
    import builtins

    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.partition(".")[0] == "gradio":
            raise ModuleNotFoundError("No module named 'gradio'", name="gradio")
        return real(name, *args, **kwargs)

    import sys

    for name in [name for name in sys.modules if name.startswith("dattn.apps.demo.") or name.startswith("gradio")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without)
    outcome = dattn_command("demo")
    assert outcome.code == 2 and 'pip install "dattn[demo]"' in outcome.err


@pytest.fixture
def change(sd_folder):
    """Arguments of ``/edit``, with some changed."""
    usual = {
        "model": str(sd_folder), "source": "a red circle", "edit": "a blue circle", "keep": 0.8, "frames": 1,
        "height": 32, "width": 32, "steps": 2, "seed": 3, "another": False,
    }  # fmt: skip
    return lambda **changed: {**usual, **changed, "api_name": "/edit"}


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def test_an_edit_is_shown_beside_its_source(client, change):
    _, seed, left, right, pictures, word, *seen = client.predict(**change())
    assert seed == 3 and left is None and right is None
    source, other = map(pixels, pictures)
    assert source.shape == other.shape and abs(source - other).max() > 0
    assert word["value"] == "circle" and [name for name, _ in word["choices"]] == ["a", "circle"]
    assert abs(pixels(seen[2][1]) - other).max() > 0  # the map is over it
    again = client.predict("a", api_name="/map")
    assert abs(pixels(again[2][0]) - other).max() == 0 and again[2][1] != seen[2][1]


def test_words_may_be_stronger_and_an_edit_that_changes_nothing_is_the_source(client, change):
    same = client.predict(**change(edit="a red circle"))[4]
    assert abs(pixels(same[0]) - pixels(same[1])).max() <= 1
    strong = client.predict(**change(edit="a red circle", strength_2=5.0))[4]
    assert abs(pixels(strong[0]) - pixels(strong[1])).max() > 1


def test_edits_of_other_lengths_and_of_videos(client, change, shapes_folder):
    assert client.predict(**change(edit="a big red circle"))[5]["value"] == "circle"
    clips = client.predict(**change(model=str(shapes_folder), frames=9))
    assert clips[2].endswith(".mp4") and clips[3].endswith(".mp4") and clips[4] is None


@pytest.mark.parametrize(
    ("changed", "says"),
    [({"edit": " "}, "Edit: say what to show"), ({"keep": 2}, "maximum"), ({"strength_1": 99}, "maximum")],
)
def test_what_is_wrong_with_an_edit_is_said(client, change, changed, says):
    with pytest.raises(gradio_client.exceptions.AppError, match=says):
        client.predict(**change(**changed))


def test_there_is_a_map_only_after_an_edit(client, change):
    with pytest.raises(gradio_client.exceptions.AppError, match="make an edit first|not in the list of choices"):
        client.predict("circle", api_name="/map")


@pytest.fixture
def long():
    """Arguments of ``/long_video``, with some changed."""
    usual = {
        "model": "shapes-wan", "prompts": "a red circle moving right\na red circle moving up", "hold": 0, "frames": 9,
        "height": 32, "width": 32, "steps": 1, "seed": 3, "another": False,
    }  # fmt: skip
    return lambda **changed: {**usual, **changed, "api_name": "/long_video"}


def test_a_video_of_several_prompts_and_its_timeline(client, long):
    from dattn.apps.media import read_video

    facts, seed, clip, line = client.predict(**long())
    assert seed == 3 and "Frames" in facts and line.count('class="bar"') == 2 and "moving up" in line
    assert len(read_video(clip)) > 9
    assert len(read_video(client.predict(**long(prompts="a\nb\nc", hold=2))[2])) > len(read_video(clip))


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"prompts": ""}, "0 lines; write 1 to 6"),
        ({"prompts": "x\n" * 7}, "7 lines; write 1 to 6"),
        ({"height": 512, "width": 512, "frames": 65}, "are the most here"),
        ({"model": "shapes-flux"}, "not in the list of choices"),
    ],
)
def test_what_is_wrong_with_a_long_video_is_said(client, long, changed, says):
    with pytest.raises(gradio_client.exceptions.AppError, match=says):
        client.predict(**long(**changed))


@pytest.fixture
def regional(sd_folder):
    """Arguments of ``/regions``, with some changed."""
    usual = {
        "model": str(sd_folder), "prompt": "two things", "prompt_1": "a red circle", "box_1": "0, 0, 0.5, 1",
        "prompt_2": "a blue circle", "box_2": "0.5 0 1 1", "height": 32, "width": 32, "steps": 2, "seed": 3,
    }  # fmt: skip
    return lambda **changed: {**usual, **changed, "api_name": "/regions"}


def test_regions_are_boxes_and_drawn_around(client, regional):
    _, seed, left, right, pictures = client.predict(**regional())
    plain, made = map(pixels, pictures)
    assert seed == 3 and left is None and right is None and plain.shape == made.shape == (256, 256, 3)
    orange, blue = (ImageColor.getrgb(color) for color in [*COLORS.values()][:2])
    for x, color in ((0, orange), (127, orange), (128, blue), (255, blue)):
        assert tuple(made[100, x]) == color
    assert abs(made[32:96, 32:96] - plain[32:96, 32:96]).max() > 0


def test_paint_counts_more_than_a_box(client, regional, tmp_path):
    color = ImageColor.getrgb(COLORS["orange"])
    layer = Image.new("RGBA", (64, 64))
    ImageDraw.Draw(layer).rectangle((0, 32, 63, 63), fill=(*color, 255))
    layer.save(tmp_path / "layer.png")
    file = gradio_client.handle_file(str(tmp_path / "layer.png"))
    canvas = {"background": None, "layers": [file], "composite": file}
    made = pixels(client.predict(**regional(canvas=canvas, prompt_2="", soft=2))[4][1])
    assert tuple(made[128, 100]) == tuple(made[255, 200]) == color and tuple(made[60, 0]) != color


def test_regions_of_a_video(client, regional, shapes_folder):
    files = client.predict(**regional(model=str(shapes_folder), frames=9, isolate=True, avoid=True, window=0.5))
    assert files[2].endswith(".mp4") and files[3].endswith(".mp4") and files[4] is None


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"prompt_1": "", "prompt_2": " "}, "No region has a prompt"),
        ({"box_1": ""}, "Region 1: paint it in orange"),
        ({"box_1": "0 0 2 1"}, "fractions of the picture"),
        ({"box_1": "a b"}, "write left, top, right, bottom"),
        ({"box_1": "0 0 0.0001 1"}, "thinner than a pixel"),
        ({"box_1": "nan 0 1 1"}, "fractions of the picture"),
        ({"soft": 99}, "maximum"),
    ],
)
def test_what_is_wrong_with_regions_is_said(client, regional, changed, says):
    with pytest.raises(gradio_client.exceptions.AppError, match=says):
        client.predict(**regional(**changed))


@pytest.fixture
def inside(shapes_folder):
    """Arguments of ``/look_inside``, with some changed."""
    usual = {
        "model": str(shapes_folder), "prompt": "a red circle", "across": 0.5, "down": 0.5, "frames": 9, "height": 32,
        "width": 32, "steps": 2, "seed": 3,
    }  # fmt: skip
    return lambda **changed: {**usual, **changed, "api_name": "/look_inside"}


def test_a_look_inside_is_kept_for_other_layers_and_heads(client, inside):
    facts, seed, step, _, head, charts, figures = client.predict(**inside())
    assert seed == 3 and "Layers" in facts and charts.count("<figure") == 5 and "Traceback" not in charts
    assert step["value"] == "1" and head["value"] == "all heads" and [one for one, _ in step["choices"]] == ["0", "1"]
    assert all(0 < share <= 1 for heads in figures["keys for 95%"].values() for share in heads)
    for points in figures["recall"].values():
        assert all(0 <= density <= 1.001 and 0 <= kept <= 1.001 for density, kept in points)
    other, numbers = client.predict(step="0", layer="0", head="0", api_name="/inside")
    assert other != charts and numbers["heads"] == figures["heads"]


def test_pictures_have_no_time(client, inside, sd_folder):
    charts = client.predict(**inside(model=str(sd_folder)))[5]
    assert charts.count("<figure") == 4 and "Time." not in charts


def test_there_is_nothing_to_look_at_before_a_look(client, inside):
    with pytest.raises(gradio_client.exceptions.AppError, match="press Look first"):
        client.predict(step="0", layer="0", head="all heads", api_name="/inside")
    client.predict(**inside(steps=1))
    with pytest.raises(gradio_client.exceptions.AppError, match="not in the list of choices|choose one of"):
        client.predict(step="0", layer="99", head="all heads", api_name="/inside")


@pytest.fixture
def learning(shapes_folder):
    """Arguments of ``/fine_tune``, with some changed."""
    usual = {
        "model": str(shapes_folder), "data": "Moving Shapes, all white", "pattern": PATTERN, "train_steps": 2,
        "rank": 2, "learning_rate": 1e-1, "prompt": "a red circle", "frames": 5, "height": 32, "width": 32, "steps": 2,
    }  # fmt: skip
    return lambda **changed: {**usual, **changed, "api_name": "/fine_tune"}


def test_a_lora_is_trained_and_used_by_its_visitor_alone(served, client, learning, wish, sd_folder):
    job = client.submit(**learning())
    facts, seed, loss, picture, file = job.result(timeout=300)
    assert "Trained" in facts and seed == 0 and "<svg" in loss
    assert picture.endswith("validation.png") and file.endswith(".safetensors")
    plain, own = (client.predict(**wish(pattern="stock", lora=lora)) for lora in ("none", OWN_LORA))
    assert Path(plain[3]).read_bytes() != Path(own[3]).read_bytes()
    assert "load_lora_weights" in own[7] and "load_lora_weights" not in plain[7]
    assert Path(client.predict(**wish(pattern="stock"))[3]).read_bytes() == Path(plain[3]).read_bytes()
    with pytest.raises(gradio_client.exceptions.AppError, match="yours is for"):
        client.predict(**wish(model=str(sd_folder), pattern="stock", lora=OWN_LORA))
    with pytest.raises(gradio_client.exceptions.AppError, match="not trained one yet"):
        gradio_client.Client(served[0], verbose=False).predict(**wish(lora=OWN_LORA))


def test_training_stops_and_its_process_is_gone(served, client, learning):
    job = client.submit(**learning(train_steps=2000))
    while not job.outputs():
        time.sleep(0.1)
    children = psutil.Process().children()
    client.predict(api_name="/stop")
    with pytest.raises(gradio_client.exceptions.AppError, match="Stopped"):
        job.result(timeout=30)
    assert children and not any("train_lora" in " ".join(one.cmdline()) for one in psutil.Process().children())


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"data": "/etc"}, "not in the list of choices"),
        ({"pattern": "LearnedGate('/etc/passwd')"}, "read files are not served"),
        ({"learning_rate": 5}, "Learning rate .*from 1e-06 to 0.1"),
        ({"rank": 1.5}, "Rank .*whole number"),
        ({"prompt": " "}, "say what to show"),
    ],
)
def test_what_is_wrong_with_training_is_said(client, learning, changed, says):
    with pytest.raises(gradio_client.exceptions.AppError, match=says):
        client.predict(**learning(**changed))


def test_only_folders_of_the_command_line_can_be_trained_on(shapes_folder, tmp_path):
    studio = Studio([str(shapes_folder)], device="cpu", data=[str(tmp_path)])
    assert studio.data == {tmp_path.name: tmp_path}
    with pytest.raises(ValueError, match="--data .*: no such folder"):
        Studio([str(shapes_folder)], device="cpu", data=[str(tmp_path / "nowhere")])
    (tmp_path / "a" / "clips").mkdir(parents=True)
    (tmp_path / "clips").mkdir()
    with pytest.raises(ValueError, match="visitors choose folders by their last name"):
        Studio([str(shapes_folder)], device="cpu", data=[str(tmp_path / "clips"), str(tmp_path / "a" / "clips")])


def test_mcp_tools_are_called_as_the_endpoints_are(served, monkeypatch):
    _, studio, visits = served
    demo = build(studio, visits)
    public = [one for one in demo.fns.values() if one.api_name and one.api_visibility == "public"]
    assert {"generate", "edit", "regions", "estimate", "stop"} <= {one.api_name for one in public}
    assert all(one.fn.__name__ == one.api_name for one in public)
    monkeypatch.setattr("dattn.apps.demo.app.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"mcp is not installed; pip install \"gradio\[mcp\]\""):
        launch(demo, parser().parse_args(["--mcp"]))
