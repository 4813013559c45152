"""What the demo takes from visitors over the network."""

import io

import httpx
import pytest
from PIL import Image, UnidentifiedImageError

gradio_client = pytest.importorskip("gradio_client")
pytest.importorskip("gradio")

from dattn.apps.demo import app, defaults, uploads  # noqa: E402, after the check for gradio
from dattn.apps.demo.painting import MOST_LAYERS  # noqa: E402
from dattn.apps.demo.welcome import Welcome  # noqa: E402


def picture(kind, size=(8, 8)):
    file = io.BytesIO()
    Image.new("RGB", size, "red").save(file, kind)
    return file.getvalue()


@pytest.fixture
def send(served):
    """Send a file; the answer."""
    address = f"{served[0]}gradio_api/upload"
    return lambda content, name="layer.png": httpx.post(address, files={"files": (name, content)}, timeout=60)


@pytest.mark.parametrize("kind", uploads.PICTURES)
def test_pictures_are_taken(send, kind):
    assert send(picture(kind)).status_code == 200


@pytest.mark.parametrize("name", ["x.exe", "layer.png"])
@pytest.mark.parametrize(
    "content",
    [
        b"MZ\x90\x00",
        b"",
        picture("GIF"),
        picture("BMP"),
        b"%!PS-Adobe",
        b"RIFF\n\0\0\0WAVEfmt ",
        b"RIFF\0\0\0\0AVI LIST",
    ],
)
def test_other_files_are_refused_whatever_their_name(send, content, name):
    answer = send(content, name)
    assert answer.status_code == 415 and "only PNG, JPEG, WEBP pictures are taken" in answer.text


def test_one_bad_file_among_good_ones_is_refused(served):
    files = [("files", ("a.png", picture("PNG"))), ("files", ("b.png", b"MZ"))]
    assert httpx.post(f"{served[0]}gradio_api/upload", files=files).status_code == 415


def test_very_large_calls_are_refused(served, send):
    assert send(picture("PNG") + bytes(uploads.LARGEST)).status_code == 413
    address = f"{served[0]}gradio_api/queue/join"
    assert httpx.post(address, content=b" " * (uploads.LARGEST + 1), timeout=60).status_code == 413


def test_a_form_that_is_none_is_no_error_of_ours(served):
    kind = {"content-type": "multipart/form-data"}
    assert httpx.post(f"{served[0]}gradio_api/upload", content=b"x", headers=kind).status_code == 400


def test_the_command_opens_pictures_of_these_kinds_alone(shapes_folder, monkeypatch):
    gif, known = io.BytesIO(picture("GIF")), [*Image.ID]
    monkeypatch.setattr(app, "launch", lambda *_: None)
    options = defaults()
    options.model, options.device = [str(shapes_folder)], "cpu"
    try:
        app.serve(options, Welcome(options.host))
        assert sorted(Image.ID) == sorted(uploads.PICTURES)
        for kind in uploads.PICTURES:
            Image.open(io.BytesIO(picture(kind))).load()
        with pytest.raises(UnidentifiedImageError):
            Image.open(gif)
    finally:
        Image.ID[:] = known


@pytest.mark.parametrize("place", ["background", "layers", "composite"])
def test_what_is_at_an_address_is_not_fetched(client, sd_folder, monkeypatch, place):
    asked = []

    async def get(url):
        asked.append(url)
        raise OSError

    monkeypatch.setattr("gradio.processing_utils.async_ssrf_protected_get", get)
    file = gradio_client.handle_file("https://example.com/a.png")
    canvas = {"background": None, "layers": [], "composite": None} | {place: [file] if place == "layers" else file}
    with pytest.raises(gradio_client.exceptions.AppError, match="Addresses are not opened here: upload the picture"):
        client.predict(model=str(sd_folder), prompt="two things", canvas=canvas, api_name="/regions")
    assert not asked


@pytest.fixture
def paint(served):
    """Send a layer of the canvas as its script does; the answer, and what the server keeps."""
    address = f"{served[0]}gradio_api/component_server"
    config = httpx.get(f"{served[0]}config").json()
    number = next(one["id"] for one in config["components"] if one["props"].get("elem_id") == "regions-canvas")

    def send(index, name="a"):
        told = {"type": "layer", "index": index, "id": name, "component_id": number, "fn_name": "accept_blobs"}
        files = {"file": ("layer.png", picture("PNG"))}
        answer = httpx.post(address, data={**told, "session_hash": "painter"}, files=files, timeout=60)
        return answer.status_code, served[3].blocks[number].blob_storage

    return send


def test_a_canvas_takes_few_layers(paint):
    for index in (0, MOST_LAYERS - 1):
        code, kept = paint(str(index))
        assert code == 200 and len(kept["a"].layers) == index + 1
    for index in (MOST_LAYERS, 10**9, -1, "x"):
        code, kept = paint(str(index), "b")
        assert code == 400 and "b" not in kept


def test_canvases_that_no_run_takes_are_forgotten(paint, monkeypatch):
    monkeypatch.setattr(uploads, "MOST_VISITS", 2)
    for name in "abcd":
        code, kept = paint("0", name)
    assert code == 200 and [*kept] == ["c", "d"]
