"""The demo's tabs Look inside and Fine-tune over their API."""

import time
from pathlib import Path

import psutil
import pytest

gradio_client = pytest.importorskip("gradio_client")
pytest.importorskip("gradio")

from dattn.apps.demo.finetune import CLIPS, SHAPES, FinetuneTab  # noqa: E402
from dattn.apps.demo.studio import Studio  # noqa: E402
from dattn.apps.demo.visits import OWN_LORA, Stopped  # noqa: E402
from dattn.apps.media import read_video  # noqa: E402
from dattn.apps.running import Request  # noqa: E402


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
def learning(shapes_folder, wish):
    """Arguments of ``/fine_tune``, with some changed."""
    usual = {
        "model": str(shapes_folder), "data": "Moving Shapes, all white", "pattern": wish()["pattern"], "train_steps": 2,
        "rank": 2, "learning_rate": 1e-1, "prompt": "a red circle", "frames": 5, "height": 32, "width": 32, "steps": 2,
    }  # fmt: skip
    return lambda **changed: {**usual, **changed, "api_name": "/fine_tune"}


def test_a_lora_is_trained_and_used_by_its_visitor_alone(served, client, learning, wish, inside, sd_folder):
    job = client.submit(**learning(train_steps=4, steps=20))
    facts, seed, loss, picture, file = job.result(timeout=300)
    assert "Trained" in facts and seed == 0 and "<svg" in loss
    assert picture.endswith("validation.png") and file.endswith(".safetensors")
    seen = [output[3] for output in job.outputs()[:-1]]
    assert any(str(one).endswith("validation.png") for one in seen)  # while it learned
    assert seen[0] is None and None not in seen[1:]  # what is shown is not taken away
    plain, own = (client.predict(**wish(pattern="stock", lora=lora)) for lora in ("none", OWN_LORA))
    assert Path(plain[3]).read_bytes() != Path(own[3]).read_bytes()
    assert "tab Fine-tune offers, saved where this runs.\npipe.load_lora_weights" in own[7]
    assert "Fine-tune" not in plain[7] and "load_lora_weights" not in plain[7]
    assert Path(client.predict(**wish(pattern="stock"))[3]).read_bytes() == Path(plain[3]).read_bytes()
    charts = [client.predict(**inside(lora=lora))[5] for lora in ("none", OWN_LORA)]
    assert charts[0] != charts[1]
    regions = {"api_name": "/regions", "prompt_1": "a red circle", "box_1": "0 0 0.5 1", "prompt_2": "", "seed": 0}
    regions |= {"model": wish()["model"], "prompt": "a circle", "frames": 5, "height": 32, "width": 32, "steps": 1}
    clips = [client.predict(**regions, lora=lora)[3] for lora in ("none", OWN_LORA)]
    assert Path(clips[0]).read_bytes() != Path(clips[1]).read_bytes()
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


class Checked:
    """A job that is to go on for so many looks."""

    def __init__(self, looks):
        self.left = looks

    def check(self):
        self.left -= 1
        if self.left < 0:
            raise Stopped


def test_wide_clips_are_drawn_as_they_are_learnt_and_a_stop_ends_their_drawing(served, tmp_path):
    tab, wish = FinetuneTab(served[1], served[2]), Request("a", frames=3, height=16, width=48)
    made = tab._data(SHAPES, wish, tmp_path / "all", Checked(CLIPS))
    assert {read_video(clip).shape for clip in made.glob("*.mp4")} == {(3, 16, 48, 3)}
    with pytest.raises(Stopped):
        tab._data(SHAPES, wish, tmp_path / "few", Checked(2))
    assert len([*(tmp_path / "few").glob("**/*.mp4")]) == 2


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
