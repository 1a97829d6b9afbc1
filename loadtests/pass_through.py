"""The least that a Python gateway can be, for comparison: FastAPI in, aiohttp out, nothing looked at.

UPSTREAM=http://127.0.0.1:8100 uvicorn loadtests.pass_through:app --loop uvloop --http httptools
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
from fastapi import FastAPI, Request, Response


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as app.state.session:
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/v1/chat/completions")
async def chat(request: Request) -> Response:
    headers = {"content-type": "application/json"}
    url = os.environ["UPSTREAM"] + "/v1/chat/completions"
    async with app.state.session.post(url, data=await request.body(), headers=headers) as answer:
        return Response(await answer.read(), answer.status, media_type=answer.content_type)
