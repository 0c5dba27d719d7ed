"""An engine behind HTTP. Requests that come at the same time share a batch.

pip install -e ".[examples,cpu]"                 # in the checkout; rtx or tensorrt in place of cpu on a GPU
Q8TRT_ENGINE=runs/NAME/engine uvicorn --app-dir examples --factory fastapi_service:create_app
curl localhost:8000/predict -H "Content-Type: application/json" -d '{"items": [["A plane.", "An air plane."]]}'
"""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field, ValidationError

from q8trt import Answer, Engine, InputError

#: Items of one request, and bytes of its body, at most: one client must not take the memory of all.
MOST, BYTES = 256, 2**20


class Items(BaseModel):
    """Texts, or pairs of texts."""

    items: list[str] | list[tuple[str, str]] = Field(min_length=1, max_length=MOST)


def create_app() -> FastAPI:
    """The service of the engine folder that the variable Q8TRT_ENGINE names; Q8TRT_DEVICE may be "cuda" or "cpu"."""

    folder = os.environ.get("Q8TRT_ENGINE") or sys.exit(
        "set Q8TRT_ENGINE to an engine folder, such as runs/NAME/engine"
    )

    @asynccontextmanager
    async def opened(app: FastAPI) -> AsyncIterator[None]:
        with Engine.load(folder, os.environ.get("Q8TRT_DEVICE")) as engine:
            app.state.engine = engine
            yield

    app = FastAPI(title="q8trt", lifespan=opened)

    @app.post("/predict")
    async def predict(request: Request) -> dict[str, Any]:
        try:
            body = Items.model_validate_json(await _body(request))
        except ValidationError as error:
            raise HTTPException(422, f"the body is not what is expected: {error.errors()[0]['msg']}") from None
        answers = await app.state.engine.apredict(body.items)
        return {"answers": [_plain(answer) for answer in answers]}

    @app.get("/health")
    async def health() -> dict[str, Any]:
        engine: Engine = app.state.engine
        task = engine.manifest.task.name
        return {"task": task, "backend": engine.backend, "device": engine.device, "truncated": engine.truncated}

    @app.exception_handler(InputError)
    async def refuse(request: Request, error: InputError) -> JSONResponse:
        return JSONResponse({"detail": str(error), "item": error.index}, status_code=422)

    return app


async def _body(request: Request) -> bytes:
    """Read the body. Raises HTTPException 413 as soon as it is too long."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > BYTES:
            raise HTTPException(413, f"the body is longer than {BYTES:,} bytes; send fewer or shorter items")
    return bytes(body)


def _plain(answer: float | Answer) -> dict[str, Any]:
    if isinstance(answer, float):
        return {"score": answer}
    return {"label": answer.label, "score": answer.score, "probabilities": answer.probabilities}
