"""A trained model as ``lmms-eval`` asks it: questions about a picture, answered or scored, in the words of training."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from lmms_eval.api.model import lmms
from PIL import Image
from torch import Tensor

from embervlm.folders import model_folder
from embervlm.model.weights import load_model, load_processor
from embervlm.prompts import chat_pieces, encode
from embervlm.tokens import encode_text

logger = logging.getLogger(__name__)

#: Tokens of an answer where the task does not say how many.
MAX_NEW_TOKENS = 128
#: Tokens of the prompt beside question and picture, with room to spare.
_WORDING = 16


class EmberVLM(lmms):  # type: ignore[misc]
    """The model of one of our folders, answering one request at a time.

    Args:
        pretrained: a model's folder, a name on the hub, or ``spark``.
        device: as torch names it.
        batch_size: accepted as the harness gives it; answers are written one by one whatever it says.

    Raises:
        WeightsError: the folder is missing or damaged.
        ValueError: an argument that is not known.
    """

    is_simple = True

    def __init__(
        self, pretrained: str = "spark", device: str = "cpu", batch_size: int | str = 1, **others: Any
    ) -> None:
        super().__init__()
        # The harness passes it whether given or not.
        others.pop("max_batch_size", None)
        if others:
            raise ValueError(f"--model_args {next(iter(others))}: not known; there are: pretrained, device, batch_size")
        folder = model_folder(pretrained)
        self._device = torch.device(device)
        self._model = load_model(folder).to(self._device).eval()
        self.processor = load_processor(folder)
        self._positions = int(self._model.config.text_config.n_positions)
        self._said: set[str] = set()

    @property
    def device(self) -> torch.device:
        """Where the model is; the harness gathers there."""
        return self._device

    @property
    def model(self) -> Any:
        """The model itself."""
        return self._model

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """An answer to each request, written until its end or one of the request's stop strings."""
        answers = []
        for context, wanted, doc_to_visual, doc_id, task, split in (request.args for request in requests):
            stops, most, choice = _generation(wanted)
            picture = self._picture(doc_to_visual(self.task_dict[task][split][doc_id]), task)
            room = self._positions - most
            if room < 2 * _WORDING + self.processor.image_tokens:
                raise ValueError(f"{task}: max_new_tokens {most}: the model has {self._positions} positions in all")
            input_ids = self._prompt(context, picture is not None, room)
            with torch.inference_mode():
                written = self._model.generate(
                    input_ids=input_ids,
                    attention_mask=torch.ones_like(input_ids),
                    max_new_tokens=most,
                    **({} if picture is None else {"pixel_values": picture}),
                    **choice,
                )
            answer = self.processor.tokenizer.decode(written[0, input_ids.shape[1] :], skip_special_tokens=True).strip()
            for stop in stops:
                answer = answer.partition(stop)[0]
            answers.append(answer)
            self.cache_hook.add_partial("generate_until", (context, wanted), answer)
        return answers

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """How little each continuation fits, and whether the model would have written it.

        The first is the mean negative log-probability of its tokens, and not their log-probability, since the harness
        takes the choice with the smallest.
        """
        scores = []
        for context, target, doc_to_visual, doc_id, task, split in (request.args for request in requests):
            document = self.task_dict[task][split][doc_id]
            continuation = str(target(document) if callable(target) else target)
            picture = self._picture(doc_to_visual(document), task)
            answer = encode_text(self.processor.tokenizer, f" {continuation.strip()}")
            prompt = self._prompt(context, picture is not None, self._positions - len(answer))
            answer_ids = torch.tensor([answer], device=self._device)  # (1, tokens)
            with torch.inference_mode():
                logits = self._model(
                    input_ids=torch.cat([prompt, answer_ids], 1),
                    **({} if picture is None else {"pixel_values": picture}),
                ).logits[:, prompt.shape[1] - 1 : -1]  # (1, tokens, vocabulary): each place predicts the next token
            loss = torch.nn.functional.cross_entropy(logits[0].float(), answer_ids[0])
            scores.append((float(loss), bool((logits.argmax(-1) == answer_ids).all())))
        return scores

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Not offered.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("embervlm answers single questions; choose tasks of one round")

    def _prompt(self, question: str, has_picture: bool, room: int) -> Tensor:
        """(1, tokens): the question as training words it; of one that is too long the end is kept."""
        picture_tokens = self.processor.image_tokens if has_picture else 0
        ids = encode_text(self.processor.tokenizer, question)
        most = room - picture_tokens - _WORDING
        if len(ids) > most:
            self._say_once(f"a question of {len(ids)} tokens is cut to its last {max(most, 1)}")
            question = self.processor.tokenizer.decode(ids[-max(most, 1) :])
        encoded = encode(chat_pieces([(question, None)], has_picture), self.processor.tokenizer, picture_tokens)
        return torch.tensor([encoded.input_ids], device=self._device)

    def _picture(self, visuals: Sequence[Any] | None, task: str) -> Tensor | None:
        """(1, 3, size, size): a request's first picture; None where it has none."""
        given = list(visuals or ())
        if not given:
            return None
        if not isinstance(given[0], Image.Image):
            raise ValueError(f"{task}: asks about {type(given[0]).__name__}; embervlm looks at pictures only")
        if len(given) > 1:
            self._say_once(f"{task}: asks about {len(given)} pictures; embervlm looks at the first")
        pixels = self.processor.image_processor.pixels(given[0].convert("RGB"))
        return torch.from_numpy(pixels)[None].to(self._device)

    def _say_once(self, message: str) -> None:
        kind = message.partition(":")[0]
        if kind not in self._said:
            self._said.add(kind)
            logger.warning("%s (said once)", message)


def _generation(wanted: dict[str, Any]) -> tuple[list[str], int, dict[str, Any]]:
    """Stop strings, tokens at most, and how the next token is chosen, of a request's settings."""
    until = wanted.get("until") or []
    stops = [until] if isinstance(until, str) else [str(stop) for stop in until]
    temperature = float(wanted.get("temperature") or 0)
    choice: dict[str, Any] = {"do_sample": temperature > 0, "num_beams": int(wanted.get("num_beams") or 1)}
    if temperature > 0:
        choice |= {"temperature": temperature, "top_p": float(wanted.get("top_p") or 1)}
    return [stop for stop in stops if stop], int(wanted.get("max_new_tokens") or MAX_NEW_TOKENS), choice
