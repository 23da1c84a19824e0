"""The page's server, and the page in a browser where there is one."""

import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import threading
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cocolm_tf import UserError
from cocolm_tf.serving import page
from cocolm_tf.serving.client import Export
from cocolm_tf.serving.page import PageServer

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
NODE = shutil.which("node")
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
    assert not answer["truncated"]
    question = {"first": texts[0], "second": "the cat " * 60}
    assert ask(server, "POST", "/similarity", question)[1]["truncated"]


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


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "LOCALHOST:80", "127.0.0.1:8080"])
def test_browsers_leave_port_80_out(server: PageServer, host: str):
    assert ask(server, "GET", "/", Host=host)[0] == 200


@pytest.mark.parametrize("host", ["", "localhost.example.com", "example.com", "[", "localhost@a.b"])
def test_other_hosts_are_refused(server: PageServer, host: str):
    assert ask(server, "GET", "/", Host=host)[0] == 403


def test_no_other_page_may_show_this_one(server: PageServer):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    connection.request("GET", "/")
    headers = connection.getresponse().headers
    connection.close()
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    assert headers["X-Frame-Options"] == "DENY"


def test_a_question_that_is_canceled_is_not_computed(
    server: PageServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    asked, judged = [], []
    is_canceled = page._Handler._is_canceled

    def judge(handler: page._Handler) -> bool:
        judged.append(is_canceled(handler))
        return judged[-1]

    monkeypatch.setattr(page._Handler, "_is_canceled", judge)
    monkeypatch.setitem(server.answers, "/correct", lambda question: asked.append(question) or {})
    body = b'{"text": "a"}'
    head = "POST /correct HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with (
        server.computing,
        socket.create_connection(("127.0.0.1", server.server_port)) as connection,
    ):
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    deadline = time.monotonic() + 60
    while not judged and time.monotonic() < deadline:
        time.sleep(0.01)
    assert judged == [True]
    assert asked == []
    assert ask(server, "POST", "/correct", {"text": "b"}) == (200, {})
    assert asked == [{"text": "b"}]
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(NODE is None, reason="runs JavaScript")
@pytest.mark.parametrize(
    ("before", "now", "word", "expected"),
    [
        ("a cat sat", "a cat sat", "cat", "cat"),
        ("a cat sat", "a cat sat down", "sat", "sat"),
        ("a cat sat", "so a cat sat", "cat", "cat"),
        ("a cat sat", "a big cat sat", "cat", "cat"),
        ("😀 a a", "😀😀 a a a", "😀", "😀"),
        ("a cat sat", "a cart sat", "cat", None),
        ("a cat sat", "", "cat", None),
    ],
)
def test_a_word_is_found_again_after_typing(before: str, now: str, word: str, expected: str | None):
    source = Path(page.__file__).with_name("page.html").read_text()
    function = re.search(r"^function moved\(.*?^}", source, re.DOTALL | re.MULTILINE)[0]
    start = before.index(word)
    arguments = f"[...{json.dumps(before)}], [...{json.dumps(now)}], {start}, {start + len(word)}"
    code = f"{function} console.log(JSON.stringify(moved({arguments})))"
    done = subprocess.run([NODE, "-e", code], capture_output=True, text=True, check=True)
    place = json.loads(done.stdout)
    assert (place and now[slice(*place)]) == expected


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


class Browser:
    """A headless Chromium, driven by its DevTools protocol over two pipes."""

    def __init__(self, folder: Path) -> None:
        reads, self._to = os.pipe()
        self._from, writes = os.pipe()
        flags = "--headless --no-sandbox --disable-gpu --disable-background-networking"
        command = f"exec {BROWSER} {flags} --remote-debugging-pipe --user-data-dir={folder}"
        self._process = subprocess.Popen(
            ["bash", "-c", f"{command} about:blank 3<&{reads} 4>&{writes}"],
            pass_fds=(reads, writes),
            stderr=subprocess.DEVNULL,
        )
        os.close(reads)
        os.close(writes)
        self._answers, self._number = os.fdopen(self._from, "rb"), 0
        (target, *_) = self.call("Target.getTargets")["targetInfos"]
        attach = {"targetId": target["targetId"], "flatten": True}
        self._session = {"sessionId": self.call("Target.attachToTarget", **attach)["sessionId"]}

    _session: dict[str, str] = {}

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        question = {"id": self._number, "method": method, "params": parameters} | self._session
        os.write(self._to, json.dumps(question).encode() + b"\0")
        while True:
            message = b""
            while (byte := self._answers.read(1)) != b"\0":
                assert byte, "the browser has ended"
                message += byte
            answer = json.loads(message)
            if answer.get("id") == self._number:
                return answer["result"]

    def evaluate(self, expression: str) -> Any:
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def close(self) -> None:
        os.close(self._to)
        self._answers.close()
        self._process.wait()


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="drives Chromium")
def test_what_is_typed_while_an_answer_comes_is_kept(server: PageServer, tmp_path: Path):
    browser = Browser(tmp_path)
    try:
        browser.call(
            "Page.navigate", url=f"{server.address}?{urllib.parse.urlencode({'text': TEXT})}"
        )
        while not browser.evaluate("document.querySelectorAll('.options button').length"):
            time.sleep(0.05)
        word, correction = browser.evaluate(
            "(() => {const word = document.querySelector('.word');"
            "return [word.querySelector('button').textContent,"
            "word.querySelector('.options button').firstChild.textContent]})()"
        )
        corrected, undone = browser.evaluate(
            "(() => {const text = document.getElementById('text'); text.focus();"
            "text.setSelectionRange(text.value.length, text.value.length);"
            "document.execCommand('insertText', false, ' And more.');"
            "document.querySelector('.options button').click(); const corrected = text.value;"
            "document.execCommand('undo'); return [corrected, text.value]})()"
        )
        assert corrected == TEXT.replace(word, correction, 1) + " And more."
        assert undone == TEXT + " And more."
    finally:
        browser.close()
