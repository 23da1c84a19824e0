"""The page's server, and the page in a browser where there is one."""

import http.client
import json
import re
import shutil
import subprocess
import threading
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cocolm_tf import UserError
from cocolm_tf.serving.client import Export
from cocolm_tf.serving.page import PageServer

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
TEXT = "The cat sat \U0001f600 on it."


@pytest.fixture(scope="module")
def server(export: Export) -> Iterator[PageServer]:
    with PageServer(export, port=0) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(
    server: PageServer, method: str, path: str, content: Any = None, **headers: str
) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    body = content if isinstance(content, bytes) else json.dumps(content)
    headers = {"Content-Type": "application/json"} | {
        name.replace("_", "-"): value for name, value in headers.items()
    }
    connection.request(method, path, None if method == "GET" else body, headers)
    response = connection.getresponse()
    content = response.read()
    connection.close()
    if response.headers["Content-Type"] == "application/json":
        return response.status, json.loads(content)
    return response.status, content.decode()


def test_the_page_asks_nobody_else(server: PageServer):
    status, page = ask(server, "GET", "/?text=anything")
    assert status == 200
    assert "<title>" in page
    assert not re.search(r"https?://|src=|@import|url\(", page)


def test_words_and_their_corrections(server: PageServer, export: Export):
    status, answer = ask(server, "POST", "/correct", {"text": TEXT})
    assert status == 200
    expected = export("correct", texts=[TEXT])
    assert len(answer["words"]) == expected["num_words"][0]
    for index, word in enumerate(answer["words"]):
        assert TEXT[word["start"] : word["end"]] == expected["words"][0, index].decode()
        assert word["probability"] == pytest.approx(float(expected["probabilities"][0, index]))
        assert word["corrections"][0][0] == expected["corrections"][0, index, 0].decode()
    assert not answer["truncated"]


def test_similarity(server: PageServer, export: Export):
    texts = ["The cat sat.", "On the mat"]
    status, answer = ask(server, "POST", "/similarity", {"first": texts[0], "second": texts[1]})
    assert status == 200
    one, other = export("embed", texts=texts)["embeddings"]
    assert answer["cosine"] == pytest.approx(float(np.dot(one, other)), abs=1e-5)


@pytest.mark.parametrize(
    ("method", "path", "content", "headers", "status"),
    [
        ("GET", "/etc/passwd", None, {}, 404),
        ("GET", "/", None, {"Host": "example.com:80"}, 403),
        ("POST", "/correct", {"text": "a"}, {"Host": "example.com:80"}, 403),
        ("POST", "/correct", {"text": "a"}, {"Content_Type": "text/plain"}, 403),
        ("POST", "/translate", {"text": "a"}, {}, 404),
        ("POST", "/correct", b"{", {}, 400),
        ("POST", "/correct", {}, {}, 400),
        ("POST", "/correct", {"text": 5}, {}, 400),
        ("POST", "/correct", [], {}, 400),
        ("POST", "/correct", b"x", {"Content_Length": "99999999"}, 413),
    ],
    ids=str,
)
def test_a_wrong_question_is_refused(
    server: PageServer, method: str, path: str, content: Any, headers: dict[str, str], status: int
):
    found, answer = ask(server, method, path, content, **headers)
    assert found == status
    assert answer["error"]
    # And the next one is answered.
    assert ask(server, "POST", "/correct", {"text": "\ud800 a"})[0] == 200


def test_a_port_that_is_taken(server: PageServer, export: Export):
    with pytest.raises(UserError, match=f"--port={server.server_port}"):
        PageServer(export, server.server_port)


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="drives Chromium")
def test_a_browser_shows_the_marks(server: PageServer, tmp_path: Path, export: Export):
    query = urllib.parse.urlencode({"text": TEXT, "first": "a cat", "second": "a cat"})
    done = subprocess.run(
        [
            BROWSER,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-background-networking",
            f"--user-data-dir={tmp_path}",
            "--virtual-time-budget=20000",
            "--dump-dom",
            f"{server.address}?{query}",
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    found = export("correct", texts=[TEXT])
    suspicious = int((found["probabilities"] >= 0.5).sum())
    assert done.stdout.count('class="word"') == suspicious > 0
    assert f"{suspicious} suspicious word" in done.stdout
    assert "Cosine similarity: 1.000" in done.stdout
    marked = re.search(r'<div id="marked".*?</div>', done.stdout, re.DOTALL)[0]
    assert "\U0001f600" in marked
    for option in found["corrections"][0][found["probabilities"][0] >= 0.5][:, 0]:
        assert option.decode() in marked
