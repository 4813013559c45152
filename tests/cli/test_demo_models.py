"""Models of the demo: the page comes before they are loaded, and those that nobody uses are let go."""

import gc
import weakref

import pytest

pytest.importorskip("gradio")

from dattn.apps.demo import parser
from dattn.apps.demo import studio as module
from dattn.apps.demo.app import build
from dattn.apps.demo.studio import GPU_MODELS, Studio
from dattn.apps.demo.visits import Visits
from dattn.apps.loading import glance


@pytest.fixture
def studio(shapes_folder, sd_folder):
    """Makes one of the tiny models that keeps so many of them."""
    return lambda kept=None: Studio([str(shapes_folder), str(sd_folder)], device="cpu", kept=kept)


def test_the_page_is_built_before_a_model_is_loaded(studio, monkeypatch):
    monkeypatch.setattr(module, "load", lambda *_: pytest.fail("a model is loaded"))
    visits = Visits()
    assert build(studio(), visits).fns
    visits.close()


def test_a_glance_tells_what_the_loaded_model_does(studio, shapes_folder, sd_folder, plain_folder):
    own = studio()
    for folder in (shapes_folder, sd_folder):
        loaded = own.loaded(str(folder))
        assert glance(str(folder)) == (loaded.native, loaded.makes_video)
    assert glance(str(plain_folder)) == (None, True) and own.wishes(str(shapes_folder)).frames == 5


def test_a_glance_at_no_pipeline_says_why(tmp_path):
    (tmp_path / "model_index.json").write_text('{"_class_name": "NoPipeline"}')
    with pytest.raises(ValueError, match="cannot be looked at .*NoPipeline"):
        glance(str(tmp_path))


def test_a_model_that_nobody_uses_makes_room(studio):
    own = studio(kept=1)
    video, picture = own.models[:2]
    with own.model(video) as loaded:
        gone = weakref.ref(loaded.pipe.transformer)
        own.loaded(picture)
        assert own._shelf.names == [video, picture]  # one is at work
    del loaded
    assert own.loaded(picture) is own.loaded(picture) and gone() is not None
    with own.model("shapes-sd"):
        gc.collect()
        assert own._shelf.names == ["shapes-sd"] and gone() is None
    assert own.loaded(video).pipe.transformer is not None


def test_the_one_unused_for_longest_goes_first(studio):
    own = studio(kept=2)
    video, picture = own.models[:2]
    for name in (video, picture, video, "shapes-sd"):
        own.loaded(name)
    assert own._shelf.names == [video, "shapes-sd"]


def test_a_model_that_made_an_edit_is_let_go_too(studio, sd_folder):
    """What a visitor keeps of a run, such as maps of words, holds no model."""
    from dattn.apps.demo.edits import edited, maps_of

    own, name = studio(kept=1), str(sd_folder)
    wish = own.request({"model": name, "prompt": "a red circle", "frames": 1, "height": 32, "width": 32, "steps": 1})
    with own.model(name) as loaded:
        made = edited(loaded, wish, "a blue circle", [], maps_of(["blue"], 0), lambda *_, **__: None)
        gone = weakref.ref(loaded.pipe.unet)
    del loaded
    own.loaded(own.models[0])
    assert gone() is None and made.maps["blue"].shape[0] == 2


@pytest.mark.parametrize(("device", "kept", "most"), [("cpu", None, None), ("meta", None, GPU_MODELS), ("meta", 5, 5)])
def test_how_many_stay_goes_by_the_device(shapes_folder, device, kept, most):
    assert Studio([str(shapes_folder)], device=device, kept=kept)._shelf._most == most
    assert parser().parse_args(["--keep", "3"]).keep == 3 and parser().parse_args([]).keep is None
