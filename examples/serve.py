"""Predictions with their uncertainty over HTTP: a small server for a run of `bayeslora fit`.

    pip install 'bayeslora-pyro[serve]'
    python examples/serve.py runs/sentiment --port 8000
    curl localhost:8000/predict -H 'Content-Type: application/json' -d '{"texts": ["A film to remember."]}'

It answers with the probabilities, averaged over the draws, and how uncertain they are, in nats: `aleatoric`, which more
data would not take away, and `epistemic`, which it would. It listens on this machine alone, unless told otherwise, and
asks for no password: put a proxy in front of it.
"""

from __future__ import annotations

import argparse
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from starlette.exceptions import HTTPException

from bayeslora_pyro.cli.loaded import LoadedRun
from bayeslora_pyro.cli.plans import Plan
from bayeslora_pyro.cli.runs import read_record

MAX_ITEMS, MAX_CHARACTERS, MAX_BYTES, MAX_WAITING = 32, 4_000, 256 * 1024, 16

Answer = dict[str, Any]
Predict = Callable[[list[str]], list[Answer]]


class Texts(BaseModel):
    """What is asked."""

    model_config = ConfigDict(extra="forbid")
    texts: Annotated[
        list[
            Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=MAX_CHARACTERS)]
        ],
        Field(min_length=1, max_length=MAX_ITEMS),
    ]


class BodyLimit:
    """Refuses a body that is too large before it is read whole, whatever its head says.

    Args:
        app: The application behind it.
        most: The largest number of bytes.
    """

    def __init__(self, app: Any, most: int) -> None:
        self.app, self.most = app, most

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Passes a request on, or answers it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
            if len(body) > self.most:
                error = f"the body has more than {self.most} bytes: send fewer or shorter texts"
                await JSONResponse({"error": error}, 413, {"Connection": "close"})(scope, receive, send)
                return
        read = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Any:
            return read.pop() if read else await receive()

        await self.app(scope, replay, send)


def make_app(predict: Predict, about: Answer) -> FastAPI:
    """Makes the application.

    Args:
        predict: From texts to answers.
        about: What `/health` tells of the model.
    """
    app = FastAPI(title="bayeslora", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(BodyLimit, most=MAX_BYTES)
    one_by_one, waiting = threading.Lock(), threading.Semaphore(MAX_WAITING)

    @app.exception_handler(RequestValidationError)
    async def explain(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if part != "body") or "the body"
        return JSONResponse({"error": f"{place}: {first['msg']}"}, 422)

    @app.exception_handler(HTTPException)
    async def refuse(_: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": error.detail}, error.status_code)

    @app.get("/health")
    def health() -> Answer:
        return about

    @app.post("/predict")
    def answer(asked: Texts) -> Answer:
        if not waiting.acquire(blocking=False):
            raise HTTPException(503, f"{MAX_WAITING} requests are waiting already: try again later")
        try:
            with one_by_one:  # factors are bound to the one language model for the time of a pass
                return {"predictions": predict(asked.texts)}
        finally:
            waiting.release()

    return app


def load(folder: Path, num_draws: int | None) -> tuple[Predict, Answer]:
    """Loads a run about classes; returns what predicts, and what is to be said of it.

    Args:
        folder: The folder that `bayeslora fit` wrote.
        num_draws: The number of draws; None for the method's own.
    """
    run = LoadedRun(Plan(folder, {"device": None}, read_record(folder)))
    data, count = run.record["data"], num_draws or run.record["num_draws"]
    if data["kind"] != "classification":
        raise SystemExit(f"{folder} is about {data['kind']}: this example serves classes")
    posterior, language = run.posterior, run.language

    def predict(texts: list[str]) -> list[Answer]:
        batch = language.tokenizer(
            texts, truncation=True, max_length=language.max_length, padding=True, return_tensors="pt"
        )
        prediction = posterior.predict([dict(batch)], num_draws=count)
        columns = {name: getattr(prediction, name) for name in ("entropy", "aleatoric", "epistemic")}
        return [
            {
                "label": data["classes"][int(probs.argmax())],
                "probs": dict(zip(data["classes"], probs.tolist(), strict=True)),
                **{name: max(0.0, float(values[item])) for name, values in columns.items()},
            }
            for item, probs in enumerate(prediction.probs)
        ]

    return predict, {
        "method": run.record["options"]["method"],
        "classes": data["classes"],
        "num_draws": count,
    }


def main() -> None:
    """Loads a run and serves it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", type=Path, help="the folder that bayeslora fit wrote")
    parser.add_argument("--host", default="127.0.0.1", help="where to listen (default: this machine alone)")
    parser.add_argument("--port", type=int, default=8000, help="the port (default: 8000)")
    parser.add_argument("--num-draws", type=int, default=None, help="the number of draws")
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    app = make_app(*load(options.run, options.num_draws))
    uvicorn.run(app, host=options.host, port=options.port, timeout_keep_alive=5, log_level="warning")


if __name__ == "__main__":
    main()
