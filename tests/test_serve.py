"""The example server over a real socket: what it answers, and what it refuses."""

import http.client
import json
import runpy
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import uvicorn

from bayeslora_pyro.tasks import load_base_model

from .cli_files import bert, fitted, load_run

__all__ = ["bert", "fitted"]

SERVE = runpy.run_path(str(Path(__file__).resolve().parents[1] / "examples" / "serve.py"))
TEXTS = ["the film is great day 3", "the plot is awful", "the music is dull day 7"]


@pytest.fixture(scope="module")
def port(fitted: Path) -> Iterator[int]:
    app = SERVE["make_app"](*SERVE["load"](fitted / "run", 4))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        deadline = time.monotonic() + 30
        while not server.started and time.monotonic() < deadline:
            time.sleep(0.05)
        yield listening.getsockname()[1]
        server.should_exit = True
        thread.join(30)


def ask(port: int, body: Any, path: str = "/predict", method: str = "POST", **head: str) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    try:
        connection.request(method, path, data, {"Content-Type": "application/json", **head})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def test_answers_are_the_predictions_of_the_posterior(port: int, fitted: Path, bert: Path) -> None:
    status, answer = ask(port, {"texts": TEXTS})
    assert status == 200
    _, tokenizer = load_base_model(str(bert), task_type="classification", num_labels=2)
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    wanted = load_run(fitted / "run", bert).predict([dict(batch)], num_draws=4)
    for item, row in enumerate(answer["predictions"]):
        probs = torch.tensor([row["probs"][name] for name in ("neg", "pos")], dtype=torch.float64)
        torch.testing.assert_close(probs, wanted.probs[item], rtol=1e-5, atol=1e-6)
        assert row["label"] == max(row["probs"], key=row["probs"].get)
        for name in ("entropy", "aleatoric", "epistemic"):
            assert row[name] == pytest.approx(max(0.0, getattr(wanted, name)[item].item()), abs=1e-6)
        assert row["entropy"] == pytest.approx(row["aleatoric"] + row["epistemic"], abs=1e-5)


def test_health_tells_what_is_served(port: int) -> None:
    assert ask(port, b"", "/health", "GET") == (
        200,
        {"method": "bayesian-lora", "classes": ["neg", "pos"], "num_draws": 4},
    )


def test_many_may_ask_at_once(port: int) -> None:
    alone = ask(port, {"texts": TEXTS})
    answers: list[Any] = []
    threads = [threading.Thread(target=lambda: answers.append(ask(port, {"texts": TEXTS}))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert answers == [alone] * 8


REFUSED: dict[str, tuple[Any, int, str]] = {
    "no JSON": (b"{", 422, "JSON decode error"),
    "no object": ([1], 422, "valid dictionary or object"),
    "no texts": ({}, 422, "texts: Field required"),
    "an unknown field": ({"texts": TEXTS, "num_draws": 10**9}, 422, "num_draws: Extra inputs"),
    "a text": ({"texts": "great"}, 422, "texts: Input should be a valid list"),
    "a number": ({"texts": [3]}, 422, "texts.0: Input should be a valid string"),
    "nothing": ({"texts": []}, 422, "texts: List should have at least 1 item"),
    "blank": ({"texts": ["  "]}, 422, "texts.0: String should have at least 1 character"),
    "too many": ({"texts": ["great"] * 33}, 422, "texts: List should have at most 32 items"),
    "too long": ({"texts": ["x" * 4_001]}, 422, "texts.0: String should have at most 4000 characters"),
    "too large": (b" " * 300_000, 413, "more than 262144 bytes: send fewer or shorter texts"),
    "deep": (b'{"texts": ' + b"[" * 100_000, 400, "error parsing the body"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_requests_are_refused_in_a_sentence(case: str, port: int) -> None:
    body, code, message = REFUSED[case]
    status, answer = ask(port, body)
    assert status == code
    assert message in answer["error"]
    assert ask(port, {"texts": TEXTS[:1]})[0] == 200  # and the next one is served


def test_a_body_without_a_length_is_cut_off(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        head = "POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        connection.sendall(head.encode())
        piece = f"{10_000:x}\r\n{' ' * 10_000}\r\n".encode()
        try:
            for _ in range(30):
                connection.sendall(piece)
        except (BrokenPipeError, ConnectionResetError):
            pass
        assert b" 413 " in connection.recv(4096)


@pytest.mark.parametrize(("method", "path", "code"), [("GET", "/predict", 405), ("GET", "/docs", 404)])
def test_other_places_are_not_there(method: str, path: str, code: int, port: int) -> None:
    status, answer = ask(port, b"", path, method)
    assert (status, list(answer)) == (code, ["error"])
