"""Hundreds of random and hostile calls of the demo: errors to read, no files read, and memory that stays."""

import json
import os
import random
import sys
import uuid
from pathlib import Path

import httpx
import pytest

gradio_client = pytest.importorskip("gradio_client")
pytest.importorskip("gradio")

CALLS, FEW, GROWTH = 500, 40, 50 * 2**20
SECONDS = 120
"""That a call may take to end, stopped or not."""
TEXTS = (
    "",
    " ",
    "a red circle",
    "\x00",
    "💣" * 50,
    "x" * 10**4,
    "<script>alert(1)</script>",
    "{0.__class__}",
    "../../etc/passwd",
    "/etc/passwd",
    "file:///etc/passwd",
    "'; DROP TABLE",
    "%s%n",
    "a" * 999,
    "\u202eevil",
    "https://example.com/a.png",
)
PATTERNS = (
    "Radial(block_size=16)",
    "Radial(block_size=16, decay=1e309)",
    "Radial(decay=-1)",
    "stock",
    "Neighborhood((1, 2, 2))",
    "Neighborhood(10**9)",
    "Alike(0.3, block_size=16)",
    "Alike(2)",
    "LearnedGate('/etc/passwd')",
    "Gate('/etc/passwd')",
    "Clustered(2, 2, centroids='/etc/shadow')",
    "PerHead((Radial(), Dense()))",
    "PerHead(())",
    "Reshaped(Radial(), 0)",
    "__import__('os')",
    "open('/etc/passwd')",
    "(lambda: 1)()",
    "Dense",
    "dense()",
    "[" * 500,
    "Radial(" * 200,
    "1",
    "None",
    "Radial(block_size=16).__class__",
    "f'{1}'",
    "TokenMerge(0.5)",
    "Agent(0.5)",
    "Selected(Pooled(), TopK(0.5))",
    "radial",
)
BOXES = ("", "0 0 1 1", "0, 0, 0.5, 1", "1 1 0 0", "nan 0 1 1", "1e400 0 1 1", "../../etc", "0 0 1")
NUMBERS = (
    0,
    1,
    2,
    5,
    9,
    16,
    17,
    32,
    -1,
    0.5,
    1e18,
    10**400,
    float("nan"),
    float("inf"),
    None,
    "9",
    True,
    [1],
    {"a": 1},
)

REMOTE = {"path": "https://example.com/a.png", "meta": {"_type": "gradio.FileData"}}
CANVASES = (
    None,
    {"path": "/etc/passwd"},
    {"background": {"path": "/etc/passwd"}, "layers": [], "composite": None},
    {"background": None, "layers": [{"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}], "composite": None},
    {"background": None, "layers": [{"url": "file:///etc/passwd", "path": "x"}], "composite": None},
    {"background": None, "layers": [None] * 1000, "composite": None},
    {"background": None, "layers": [{"path": "../../../etc/shadow"}] * 9, "composite": {"path": ""}, "id": "1"},
    {"background": None, "layers": [REMOTE], "composite": None},
    {"background": REMOTE, "layers": [{"url": "https://example.com/a.png", "path": "x"}], "composite": REMOTE},
    {"layers": 3},
    [],
)
LINES = ("a\nb", "a | 2", "a | 99", "|", "a |", "a\n" * 9, "a | -1\nb", "\n")
SECRET = ("/etc/", "/root/.ssh", "/proc/self/environ")
"""Where no call may read."""


class Opened:
    """Files that this process opened in places where no visitor may make it read; an audit hook cannot be removed."""

    def __init__(self):
        self.on, self.found = False, []
        sys.addaudithook(self.hear)

    def hear(self, event, arguments):
        if self.on and event == "open" and isinstance(arguments[0], str | bytes):
            path = os.path.realpath(os.fsdecode(arguments[0]))
            if path.startswith(SECRET) and path not in ALLOWED:
                self.found.append(path)


ALLOWED = {"/etc/hosts", "/etc/resolv.conf", "/etc/nsswitch.conf", "/etc/localtime", "/etc/mime.types"}
"""What Python itself reads there."""
OPENED = Opened()


@pytest.fixture(scope="module")
def hostile(served):
    """Address of the demo, and its tiny models."""
    return served[0], [name for name in served[1].models if os.sep in name]


QUICK = "/generate", "/generate", "/edit", "/regions", "/look_inside", "/inside", "/estimate", "/map", "/frame", "/stop"
SLOW = "/long_video", "/fine_tune"


def good_calls(rng, models):
    """A call of each endpoint with arguments that are mostly good, in their order."""
    model, prompt, pattern = rng.choice(models), rng.choice(TEXTS), rng.choice(PATTERNS)
    size = [rng.choice((5, 9)), 32, 32, rng.choice((1, 2)), rng.randrange(9), rng.choice((True, False))]
    lora = rng.choice((*["none"] * 5, "LoRA of this visit"))
    regions = [*rng.choices(TEXTS, k=4), *rng.choices(BOXES, k=4)]
    data = rng.choice(("Moving Shapes", "nowhere", "/etc"))
    return {
        "/generate": [model, prompt, pattern, rng.choice((0, 0.5)), *size, lora],
        "/edit": [model, *rng.choices(TEXTS, k=2), 0.8, *size, *rng.choices((0, 1, 2.5, -1), k=8), lora],
        "/regions": [
            *(model, prompt, *regions, 0.2, *rng.choices((True, False), k=2), 1, 0, *size, lora),
            rng.choice(("as painted", "the box around it")),
            rng.choice(CANVASES),
        ],
        "/long_video": ["shapes-wan", rng.choice(LINES), *size, lora],
        "/look_inside": [model, prompt, rng.random(), rng.random(), *size, lora],
        "/inside": rng.choices(("0", "1", "all heads", "99"), k=3),
        "/fine_tune": [model, data, pattern, 1, 2, rng.choice((1e-3, 9)), prompt, *size],
        "/estimate": [model, pattern, *size[:3], rng.choice((0, 0.5, 9))],
        "/map": [rng.choice(TEXTS)],
        "/frame": [rng.randrange(9)],
        "/stop": [],
    }


def calls(models, seed):
    """Calls without end, in which up to two arguments are replaced by anything; a few have too many or too few."""
    rng = random.Random(seed)
    anything = [*TEXTS, *PATTERNS, *NUMBERS, *CANVASES]
    while True:
        name = rng.choice(SLOW if rng.random() < 0.1 else QUICK)
        given = good_calls(rng, models)[name]
        for _ in range(rng.randrange(3) if given else 0):
            given[rng.randrange(len(given))] = rng.choice(anything)
        if rng.random() < 0.05:
            given = given[:-1] if rng.random() < 0.5 else [*given, *rng.choices(anything, k=9)]
        yield name, given, rng.random() < 0.1


class Visitor:
    """Calls over raw HTTP: what a client would refuse to send reaches the server."""

    def __init__(self, address):
        self._http = httpx.Client(base_url=f"{address}gradio_api", timeout=SECONDS)
        self._numbers = {one["api_name"]: one["id"] for one in httpx.get(f"{address}config").json()["dependencies"]}
        self._session = uuid.uuid4().hex

    def call(self, name, arguments, cancel=False):
        """What the server says, as text, and whether the call succeeded."""
        body = {"data": arguments, "fn_index": self._numbers[name[1:]], "session_hash": self._session}
        said = self._http.post(
            "/queue/join" if name != "/stop" else "/run/stop",
            content=json.dumps(body), headers={"content-type": "application/json"},
        )  # fmt: skip
        if said.status_code != 200 or name == "/stop":
            return said.text, said.status_code == 200
        if cancel:
            self.call("/stop", [])
        return self._heard()

    def _heard(self):
        with self._http.stream("GET", "/queue/data", params={"session_hash": self._session}) as stream:
            for line in stream.iter_lines():
                if '"process_completed"' in line:
                    return line, json.loads(line.removeprefix("data:"))["success"]
        return "", False


def first_calls(models):
    """One good call of each kind on each model, of the largest size: what is kept from first use on is kept then."""
    for model in models:
        size = {"frames": 9, "height": 32, "width": 32, "steps": 2, "seed": 0}
        yield {"api_name": "/generate", "model": model, "prompt": "a red circle", **size}
        yield {"api_name": "/edit", "model": model, "source": "a red circle", "edit": "a blue circle", **size}
        yield {"api_name": "/regions", "model": model, "prompt": "a red circle", "box_1": "0 0 1 1", **size}
        yield {"api_name": "/look_inside", "model": model, "prompt": "a red circle", **size}
        yield {"api_name": "/inside", "step": "0", "layer": "0", "head": "all heads"}
    yield {"api_name": "/long_video", "model": "shapes-wan", "prompts": "a\nb", **size}


@pytest.mark.parametrize("count", [FEW, pytest.param(CALLS, marks=pytest.mark.slow)])
def test_random_and_hostile_calls(hostile, memory, count):
    address, models = hostile
    client, visitor, ok = gradio_client.Client(address, verbose=False), Visitor(address), 0
    for first in first_calls(models):
        client.predict(**first)
    before = memory()
    OPENED.on, OPENED.found = True, []
    for number, (name, arguments, cancel) in zip(range(count), calls(models, count), strict=False):
        told, well = visitor.call(name, arguments, cancel)
        ok += well
        assert "Traceback" not in told and "root:" not in told, (name, arguments)
        if number % 100 == 0:
            print(number, (memory() - before) >> 20, "MB more")
    OPENED.on = False
    assert not OPENED.found
    assert ok > count / 10
    assert memory() - before < GROWTH


def test_a_file_that_is_opened_is_heard_of():
    OPENED.on, OPENED.found = True, []
    Path("/etc/passwd").read_text()
    OPENED.on = False
    assert OPENED.found == ["/etc/passwd"]
