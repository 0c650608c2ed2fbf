"""Several selections in step: each writes its own text in its own thread, and what they read is run as one batch.

``RobotSelector.select`` takes a place in it as its reader. Texts join and leave at any step, whatever their fleets.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from embervlm.model.modeling_embervlm import FleetState
from embervlm.runtime.base import Floats

#: Texts that read more tokens at once than this are not padded together with texts that read one or two.
_FEW = 8


@dataclass(eq=False)
class _Request:
    """What one text waits for: the state after ``ids``, or, without ids, the logits after ``state``."""

    slot: int
    ids: Sequence[int] = ()
    position: int = 0
    features: Tensor | None = None
    state: Tensor | None = None
    result: Tensor | None = None
    error: BaseException | None = None
    done: threading.Event = field(default_factory=threading.Event)


class Lockstep:
    """A batch of at most ``slots`` texts that advances whenever each of them waits for something.

    The thread that asks last does the work for all. A text that is slow to ask holds the others up, so whatever takes
    long, such as decoding a picture, belongs before :meth:`join`.

    Keys and values lie in one buffer a layer, (slots, heads, places, head width), each text's from place 0 on without
    gaps. A row that does not take part in a step computes something that nobody reads, behind its own end.
    """

    def __init__(self, model: Any, slots: int) -> None:
        self.model = model
        self._lock = threading.Lock()
        self._free = list(range(slots))
        self._lengths = [0] * slots
        self._active: set[int] = set()
        self._waiting: dict[int, _Request] = {}
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        #: Steps run, and texts that took part in them: how full the batches were.
        self.steps = self.rows = 0

    @torch.inference_mode()
    def join(self, fleet: FleetState) -> SlotReader:
        """A place in the batch behind ``fleet``; give it back with :meth:`SlotReader.leave`.

        Raises:
            RuntimeError: all places are taken.
        """
        with self._lock:
            if not self._free:
                raise RuntimeError(f"all {len(self._lengths)} places of the batch are taken")
            slot = min(self._free)
            self._make_room(fleet.tokens, fleet)
            for layer, (keys, values) in enumerate(zip(fleet.keys, fleet.values, strict=True)):
                self._keys[layer][slot, :, : fleet.tokens] = keys[0]
                self._values[layer][slot, :, : fleet.tokens] = values[0]
            self._free.remove(slot)
            self._lengths[slot] = fleet.tokens
            self._active.add(slot)
        return SlotReader(self, slot)

    def leave(self, slot: int) -> None:
        """Give a place back; the others go on without it."""
        with self._lock:
            self._active.discard(slot)
            self._lengths[slot] = 0
            self._free.append(slot)
            if not self._active:
                # One huge fleet must not be paid for ever after.
                self._keys, self._values = [], []
            self._run_if_all_wait()

    def ask(self, request: _Request) -> Tensor:
        """Wait for one request's result.

        Raises:
            whatever the step that it was part of raised.
        """
        with self._lock:
            self._waiting[request.slot] = request
            self._run_if_all_wait()
        request.done.wait()
        if request.error is not None:
            raise request.error
        assert request.result is not None
        return request.result

    def _run_if_all_wait(self) -> None:
        if not self._waiting or len(self._waiting) < len(self._active):
            return
        requests = [self._waiting[slot] for slot in sorted(self._waiting)]
        # Texts ask for logits and read what they picked by turns. Those that read wait for those that still pick, so
        # that all take the same turn: two half batches cost nearly twice as much.
        picking = [request for request in requests if not request.ids]
        requests = picking or requests
        for request in requests:
            del self._waiting[request.slot]
        self.steps += 1
        self.rows += len(requests)
        with torch.inference_mode():
            self._guarded(picking, self._logits)
            self._guarded([request for request in requests if 0 < len(request.ids) <= _FEW], self._read)
            run: list[_Request] = []
            for request in requests:
                if len(request.ids) > _FEW:
                    # Rows between two that read much would compute as much for nothing.
                    if run and request.slot > run[-1].slot + 1:
                        self._guarded(run, self._read)
                        run = []
                    run.append(request)
            self._guarded(run, self._read)

    def _guarded(self, requests: list[_Request], work: Any) -> None:
        if not requests:
            return
        try:
            work(requests)
        except BaseException as error:
            for request in requests:
                request.error = error
        for request in requests:
            request.done.set()

    def _logits(self, requests: list[_Request]) -> None:
        states = torch.cat([request.state for request in requests if request.state is not None])
        logits = self.model.language_model.lm_head(states).float()  # (requests, vocabulary)
        for request, row in zip(requests, logits, strict=True):
            request.result = row

    def _read(self, requests: list[_Request]) -> None:
        first, last = requests[0].slot, requests[-1].slot + 1
        longest = max(len(request.ids) for request in requests)
        self._make_room(max(self._lengths) + longest)
        ids = torch.zeros(last - first, longest, dtype=torch.long)
        positions = torch.zeros_like(ids)
        within = torch.arange(longest)
        limit = int(self.model.config.text_config.n_positions) - 1
        for request in requests:
            ids[request.slot - first, : len(request.ids)] = torch.tensor(list(request.ids))
            positions[request.slot - first] = (within + request.position).clamp(max=limit)
        seen = [request.features for request in requests if request.features is not None]
        features = torch.stack(seen) if seen else None
        lengths = torch.tensor(self._lengths[first:last])
        total = max(self._lengths[request.slot] for request in requests) + longest
        ends = (lengths[:, None] + within)[:, None, :, None]  # (rows, 1, tokens, 1)
        mask = torch.zeros(last - first, 1, longest, total).masked_fill_(torch.arange(total) > ends, float("-inf"))
        outputs = self.model.language_model.transformer(
            inputs_embeds=self.model.embed(ids, features),
            past_key_values=_Rows(self, first, last, lengths, total),
            attention_mask=mask,
            position_ids=positions,
            use_cache=True,
        )
        for request in requests:
            row, tokens = request.slot - first, len(request.ids)
            request.result = outputs.last_hidden_state[row, tokens - 1][None]
            self._lengths[request.slot] += tokens

    def _make_room(self, places: int, fleet: FleetState | None = None) -> None:
        """Make the buffers hold at least so many places; the first fleet says how wide they are."""
        if not self._keys and fleet is not None:
            shape = (len(self._lengths), fleet.keys[0].shape[1], 0, fleet.keys[0].shape[3])
            self._keys = [torch.zeros(shape, dtype=keys.dtype) for keys in fleet.keys]
            self._values = [torch.zeros(shape, dtype=values.dtype) for values in fleet.values]
        if not self._keys or self._keys[0].shape[2] >= places:
            return
        # Zeros and not whatever memory holds: what is masked is still multiplied by 0.
        more = 256 * (places // 256 + 1) - self._keys[0].shape[2]
        for buffers in (self._keys, self._values):
            buffers[:] = [torch.nn.functional.pad(buffer, (0, 0, 0, more)) for buffer in buffers]


class _Rows:
    """Neighbouring rows of the buffers, as transformers' models use a cache."""

    is_compileable = False

    def __init__(self, batch: Lockstep, first: int, last: int, lengths: Tensor, total: int) -> None:
        self._batch, self._first, self._last, self._lengths, self._total = batch, first, last, lengths, total

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """How many places the longest of the rows has: where new tokens stand is said by their positions."""
        return 0

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Put each row's new keys and values, (rows, heads, tokens, head width), behind its end; return all of them."""
        places = self._lengths[:, None] + torch.arange(keys.shape[2])  # (rows, tokens)
        rows = torch.arange(self._first, self._last)[:, None]
        kept = []
        for buffer, new in ((self._batch._keys[layer_idx], keys), (self._batch._values[layer_idx], values)):
            buffer[rows, :, places] = new.transpose(1, 2)
            kept.append(buffer[self._first : self._last, :, : self._total])
        return kept[0], kept[1]


class SlotReader:
    """One text's place in a :class:`Lockstep`: a reader."""

    def __init__(self, batch: Lockstep, slot: int) -> None:
        self._batch, self._slot = batch, slot

    def read(self, ids: Sequence[int], position: int, features: Tensor | None = None) -> Tensor:
        """As :meth:`Reader.read`, together with the other texts of the batch."""
        return self._batch.ask(_Request(self._slot, list(ids), position, features))

    def logits(self, state: Tensor) -> Floats:
        """As :meth:`Reader.logits`, together with the other texts of the batch."""
        logits: Floats = self._batch.ask(_Request(self._slot, state=state)).numpy()
        return logits

    def leave(self) -> None:
        """Give the place back."""
        self._batch.leave(self._slot)
