"""`POST /rerank` as Jina's, Cohere's and vLLM's clients send it: which document answers the query best.

To a reward model the query is what a user says and each document an answer to it, so a document is ranked
as a response. `relevance_score` is the normalised reward: higher is better, 0 is the average answer of the
reference policy, 1 a standard deviation above it. It has no bounds: a reward is not what these services
promise, a relevance between 0 and 1.
"""

from __future__ import annotations

import uuid
from typing import Any

import msgspec

from rm_server.errors import InvalidRequestError
from rm_server.judge import Judgement
from rm_server.protocol import Conversation


class Document(msgspec.Struct):
    """Cohere's and Jina's other form of a document."""

    text: str


class RerankRequest(msgspec.Struct):
    """The fields that these services share; others, of which they have many, are ignored."""

    query: str
    documents: list[str | Document]
    model: str | None = None
    top_n: int | None = None
    return_documents: bool | None = None

    def texts(self) -> list[str]:
        """The documents' texts. Raises InvalidRequestError."""
        if not self.documents:
            raise InvalidRequestError("documents must not be empty", param="documents")
        return [document if isinstance(document, str) else document.text for document in self.documents]

    def check(self) -> None:
        """Raises InvalidRequestError."""
        if self.top_n is not None and self.top_n < 0:
            raise InvalidRequestError("top_n must not be negative", param="top_n")

    def conversations(self) -> list[Conversation]:
        """What is to be judged, in the order of the documents. Raises InvalidRequestError."""
        question = {"role": "user", "content": self.query}
        return [[question, {"role": "assistant", "content": text}] for text in self.texts()]


def rerank_answer(
    request: RerankRequest, model: str, judgement: Judgement, *, with_documents: bool
) -> dict[str, Any]:
    """Best first, equal ones in the order that they came in. It has the fields of Jina's answer, of Cohere's
    (`id`, `meta`) and of vLLM's. A document whose reward is not finite is left out."""
    texts = request.texts()
    scored = [(index, score) for index, score in enumerate(judgement.scores) if score is not None]
    ranked = sorted(scored, key=lambda found: -found[1])[: request.top_n or None]
    results: list[dict[str, Any]] = [{"index": index, "relevance_score": score} for index, score in ranked]
    if with_documents:
        for result in results:
            result["document"] = {"text": texts[result["index"]]}
    tokens = judgement.tokens
    return {
        "id": f"rerank-{uuid.uuid4().hex}",
        "object": "list",
        "model": model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        "results": results,
        "meta": {"api_version": {"version": "2"}},
    }
