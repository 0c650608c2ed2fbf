"""OpenAI's form of a chat, for clients that speak nothing else: the last message is the task, its picture the scene."""

from __future__ import annotations

import json
import secrets
import time
from typing import Any

from embervlm.selection import Selection, check_task
from embervlm.serving.engine import Question
from embervlm.serving.schemas import ChatIn, ImagePart, RequestError, TextPart, decode_base64


def question_of_chat(asked: ChatIn) -> Question:
    """The question of a chat: what the user said last.

    Raises:
        RequestError, SelectionError: it cannot be answered.
    """
    users = [message for message in asked.messages if message.role == "user"]
    if not users:
        raise RequestError("messages: expected one of the user")
    content = users[-1].content
    if isinstance(content, str):
        check_task(content)
        return Question(content)
    task = "\n".join(part.text for part in content if isinstance(part, TextPart)).strip()
    pictures = [part.image_url.url for part in content if isinstance(part, ImagePart)]
    if len(pictures) > 1:
        raise RequestError(f"messages: {len(pictures)} pictures in the last message; one is looked at")
    if pictures and not pictures[0].startswith("data:"):
        raise RequestError("messages: image_url must be a data URL; the server fetches nothing")
    check_task(task)
    return Question(task, decode_base64(pictures[0]) if pictures else None)


class Completion:
    """The answer to a chat: the selection's JSON as the assistant's text.

    Args:
        asked: the request.
        tokenizer: of the model, which counts tokens.
    """

    def __init__(self, asked: ChatIn, tokenizer: Any) -> None:
        self.tokenizer, self.model = tokenizer, asked.model
        self.limit = asked.max_completion_tokens or asked.max_tokens
        self.id = f"chatcmpl-{secrets.token_hex(12)}"
        self.created = int(time.time())

    def whole(self, question: Question, selection: Selection) -> dict[str, Any]:
        """The answer in one piece."""
        content, finish = self._content(selection)
        asked, written = len(self.tokenizer.encode(question.task)), len(self.tokenizer.encode(content))
        return self._head("chat.completion") | {
            "choices": [
                {
                    "index": 0,
                    "message": {
                        "role": "assistant",
                        "content": content,
                        "reasoning_content": "\n".join(selection.reasoning),
                    },
                    "finish_reason": finish,
                }
            ],
            "usage": {"prompt_tokens": asked, "completion_tokens": written, "total_tokens": asked + written},
        }

    def chunk(self, delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        """A piece of an answer that is streamed."""
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return self._head("chat.completion.chunk") | {"choices": [choice]}

    def last_chunks(self, selection: Selection) -> list[dict[str, Any]]:
        """The pieces after the reasoning."""
        content, finish = self._content(selection)
        return [self.chunk({"content": content}), self.chunk({}, finish)]

    def _content(self, selection: Selection) -> tuple[str, str]:
        text = json.dumps(selection.to_dict(), ensure_ascii=False)
        ids = self.tokenizer.encode(text)
        if self.limit is not None and len(ids) > self.limit:
            return str(self.tokenizer.decode(ids[: self.limit])), "length"
        return text, "stop"

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}
