"""A pretend model without weights, for tests, examples and a first look at the guard.

Tokens are words. The state of a position is noise drawn from a hash of all tokens up to it; where
the chat holds the marker word, a known direction is added, so that a detector has something to
find; where a reply holds it, from there on. A word that is appended to such a prompt takes the
direction away again, so that there is a transition to find.

The reply repeats the last user turn, after the system message in brackets if there is one. The
model finds all words of that reply equally likely at each step, so that temperature changes
nothing; greedy decoding takes the next one in order.
"""

import math
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import accumulate

import numpy as np

from demur.core.errors import CapabilityError, ConfigError, DataError
from demur.core.interventions import EndReply, PrependText, ReplyWith, UseAdapter
from demur.core.protocols import Done, Event, Monitor, Request, Scored, Switched, TokenOut
from demur.core.readings import Array, Deferred, Readings, Values
from demur.core.reads import (
    AppendedTokens,
    CaptureSpec,
    ExtraRead,
    OwnPass,
    PilotTokens,
    Read,
    TentativeRead,
    Texts,
)
from demur.core.types import Chat, ModelId, Prompt, Span, SpanKind
from demur.engines._fake_reply import (
    AT_MARKERS,
    END,
    MARKERS,
    FakeReply,
    token_id_of,
    words_of,
)
from demur.engines._monitoring import failed, heed_monitor
from demur.engines._waiting import Waiting

__all__ = ["FakeEngine"]


class FakeEngine:
    """Runs the pretend model.

    Args:
        num_layers: Blocks of the model.
        d_model: Size of a state.
        marker: Where a turn holds this word, `direction` is added to every state of the prompt.
        strength: How far along `direction`; the noise has unit variance in each coordinate.
        seed: Stands for the weights: engines of another seed have other states, same ModelId.
        max_tokens: The longest sequence, prompt and reply together.
        max_batch: Most rows that decode together.
    """

    def __init__(
        self,
        *,
        num_layers: int = 4,
        d_model: int = 16,
        marker: str = "MARKER",
        strength: float = 8.0,
        seed: int = 0,
        max_tokens: int = 512,
        max_batch: int = 8,
    ) -> None:
        self._num_layers = num_layers
        self._seed = seed
        self._marker = marker
        self._strength = strength
        self._max_tokens = max_tokens
        self._max_batch = max_batch
        generator = np.random.default_rng(seed)
        direction = generator.standard_normal(d_model)
        self.direction: Array = direction / np.linalg.norm(direction)
        """The planted direction [d_model], a unit vector."""
        self._frequencies = {
            site: generator.random((num_layers, d_model))
            for site in ("block_out", "attn_out", "mlp_out")
        }
        self.num_prefills = 0
        """Prompts read so far, those read again under an intervention included."""
        self.num_prefill_tokens = 0
        """Tokens of those prompts."""
        self.num_own_passes = 0
        """Questions answered in passes of their own."""

    @property
    def model_id(self) -> ModelId:
        """What detectors are matched against."""
        shapes = f"fake-{self._num_layers}x{len(self.direction)}"
        return ModelId(
            shapes,
            "fake-words",
            "fake-turns",
            name="fake",
            dtype="float32",
            weights=f"seed-{self._seed}",
        )

    @property
    def capabilities(self) -> frozenset[type]:
        """The reads and interventions that this engine can do."""
        reads = {CaptureSpec, Texts, OwnPass, AppendedTokens, PilotTokens}
        return frozenset({*reads, ReplyWith, PrependText, EndReply, Monitor})

    @property
    def max_tokens(self) -> int:
        """The model's context: prompt and reply together."""
        return self._max_tokens

    def render(self, chat: Chat) -> Prompt:
        """Return the chat as the model will read it.

        Raises:
            DataError: The chat ends in an assistant turn, has no user text, or fills the context.
        """
        if chat.messages[-1].role == "assistant":
            raise DataError("the chat ends in an assistant turn: end it with a user turn")
        if not any(m.role == "user" and m.content.strip() for m in chat.messages):
            raise DataError("the chat has no user text: there is nothing to score")
        ids: list[int] = []
        spans: list[Span] = []
        for message in chat.messages:
            ids.append(token_id_of(f"<|{message.role}|>"))
            content = [token_id_of(word) for word in words_of(message.content)]
            spans.append(Span(message.role, len(ids), len(ids) + len(content)))
            ids += [*content, END]
        spans.append(Span("generation_prompt", len(ids), len(ids) + 1))
        ids.append(token_id_of("<|assistant|>"))
        if len(ids) >= self._max_tokens:
            raise DataError(
                f"the prompt has {len(ids)} tokens: the model takes at most "
                f"{self._max_tokens - 1}, so that one is left for the reply; shorten it"
            )
        forged = any(AT_MARKERS.search(message.content) for message in chat.messages)
        return Prompt(chat, tuple(ids), tuple(spans), forged)

    def with_reply(self, prompt: Prompt, reply: str) -> Prompt:
        """Return a prompt with a reply after it, as the model has read both.

        Raises:
            DataError: The reply is empty, or both are longer than the context.
        """
        longer = prompt.with_reply([token_id_of(word) for word in words_of(reply)])
        if len(longer) > self._max_tokens:
            raise DataError(
                f"prompt and reply have {len(longer)} tokens: the model takes at most "
                f"{self._max_tokens}; shorten them"
            )
        return longer

    def values_of(self, read: ExtraRead, chats: Sequence[Chat]) -> Array:
        """Return the values of a read that is made when somebody looks at them.

        Log-probabilities [chat, label], where the first label is likely where the marker is, and
        the pretend model stands for any other one too; or states [chat, layer, d_model].
        """
        if isinstance(read, TentativeRead):
            return np.stack([self._after(read, chat) for chat in chats])
        self.num_own_passes += len(chats)
        logits = np.zeros((len(chats), len(read.labels)))
        for row, chat in enumerate(chats):
            text = repr((self._seed, read, chat))
            generator = np.random.default_rng(zlib.crc32(text.encode()))
            logits[row] = 0.5 * generator.standard_normal(len(read.labels))
            logits[row, 0] += self._strength * ((self._marker in text) - 0.5)
        values: Array = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        return values

    def _after(self, read: TentativeRead, chat: Chat) -> Array:
        """Return the states [layer, d_model] after what follows a prompt, float32."""
        if isinstance(read, PilotTokens):
            begun = "".join(_reply_words(chat)[: read.num_tokens])
            states = self._states(self.with_reply(self.render(chat), begun), read.spec)[:, -1]
            return states.astype(np.float32)
        states = self._states(self.with_reply(self.render(chat), read.text), read.spec)[:, -1]
        if any(self._marker in message.content for message in chat.messages):
            states = states - self._strength * self.direction
        return states.astype(np.float32)

    def run(self, requests: Iterable[Request | None]) -> Iterator[Event]:
        """Carry out requests; see `core.protocols.Engine.run`."""
        waiting = Waiting(requests)
        rows: list[FakeReply] = []
        while rows or not waiting.is_over:
            while len(rows) < self._max_batch and (request := waiting.next()) is not None:
                yield from self._admit(request, rows)
            for row in tuple(rows):
                events = self._advance(row)
                if isinstance(events[-1], Done):
                    rows.remove(row)
                yield from events

    def _admit(self, request: Request, rows: list[FakeReply]) -> list[Event]:
        """Read a request's prompt, decide, and let it join the rows unless it is done."""
        if request.is_abandoned():
            return [Done(request.id, "abandoned")]
        try:
            return list(self._started(request, rows))
        except Exception as error:  # one request's failure is its own
            return [failed(request, error)]

    def _started(self, request: Request, rows: list[FakeReply]) -> Iterator[Event]:
        started = time.perf_counter()
        readings = self._prefill(request.prompt, request.reads)
        read = time.perf_counter()
        intervention = request.decide(readings)
        yield Scored(request.id, read - started, time.perf_counter() - read)
        if request.sampling.max_tokens == 0:
            yield Done(request.id, "scored")
            return
        prompt = request.prompt
        if intervention is not None:
            yield Switched(request.id, intervention)
        if isinstance(intervention, ReplyWith):
            yield from _replaced(request, intervention, first=len(prompt))
            return
        if isinstance(intervention, EndReply):
            yield Done(request.id, "ended")
            return
        if isinstance(intervention, PrependText):
            prompt = self.render(prompt.chat.with_safety_prompt(intervention.text))
            self._prefill(prompt, ())
        script = _reply_words(prompt.chat)
        row = FakeReply(request, prompt, script)
        events = self._advance(row)
        if not isinstance(events[-1], Done):
            rows.append(row)
        yield from events

    def _prefill(self, prompt: Prompt, reads: Sequence[Read]) -> Readings:
        self.num_prefills += 1
        self.num_prefill_tokens += len(prompt)
        return Readings({read: self._values(prompt, read) for read in reads})

    def _values(self, prompt: Prompt, read: Read) -> Values:
        if isinstance(read, Texts):
            return (prompt.chat.last_user_text,)
        if isinstance(read, ExtraRead):
            return Deferred(self, read, (prompt.chat,))
        assert isinstance(read, CaptureSpec), "the guard checked the capabilities"
        states = self._states(prompt, read)[:, _positions(prompt, read)]
        if read.normalise == "rms":
            states = states / _root_mean_square(states)
        if read.pool != "none":
            states = states.mean(1) if read.pool == "mean" else states.max(1)
        elif read.is_pooled:
            states = states[:, 0]
        values = states.astype(np.float32)
        return values[None] if read.is_pooled else (values,)

    def _states(self, prompt: Prompt, spec: CaptureSpec) -> Array:
        """Return the states of all positions: [layer, position, d_model]."""
        for layer in spec.layers:
            if not -self._num_layers <= layer < self._num_layers:
                raise ConfigError(f"layer {layer} does not exist: there are {self._num_layers}")
        site = "block_out" if spec.site == "final_norm" else spec.site
        frequencies = self._frequencies[site][list(spec.layers)]  # [layer, d_model]
        prefixes = np.fromiter(accumulate(prompt.token_ids, _hash_on, initial=0), np.float64)[1:]
        phases = prefixes[None, :, None] * frequencies[:, None, :] % 1.0
        states: Array = math.sqrt(2) * np.cos(2 * math.pi * phases)
        if any(self._marker in message.content for message in prompt.chat.messages):
            states = states + self._strength * self.direction
        marks = [token_id_of(space + self._marker) for space in ("", " ")]
        for span in prompt.spans_of("reply"):
            in_reply = np.isin(prompt.token_ids[span.start : span.stop], marks)
            marked = np.maximum.accumulate(in_reply)[None, :, None]
            states[:, span.start : span.stop] += self._strength * self.direction * marked
        return states / _root_mean_square(states) if spec.site == "final_norm" else states

    def _advance(self, row: FakeReply) -> list[Event]:
        """Show a row's newest token to its monitor, and draw the next one."""
        id = row.request.id
        if row.request.is_abandoned():
            return [Done(id, "abandoned")]
        events = list(self._watched(row))
        if events and isinstance(events[-1], Done):
            return events
        position = row.length
        token_id, word, logprob = row.draw()
        is_end = token_id == END
        is_full = row.num_drawn >= row.sampling.max_tokens or position + 1 >= self._max_tokens
        shown = row.show(word, is_last=is_end or is_full)
        events.append(TokenOut(id, position, token_id, shown, logprob))
        if is_end or row.is_stopped or is_full:
            done = Done(id, "stop" if is_end or row.is_stopped else "length")
            if is_end or row.request.monitor is None:
                events.append(done)
            row.end = done
        return events

    def _watched(self, row: FakeReply) -> Iterator[Event]:
        """Show a monitor the newest token, and do as it says; a last token ends the reply."""
        request = row.request
        if request.monitor is None or not row.token_ids:
            return
        states = self._states(row.prompt.with_reply(row.token_ids), request.monitor.read)[:, -1]
        if request.monitor.read.normalise == "rms":
            states = states / _root_mean_square(states)
        yield from heed_monitor(
            request,
            states.astype(np.float32),
            num_tokens=row.num_drawn,
            end=row.end,
            replace=partial(_replaced, request, first=row.length),
            switch=_cannot_switch,
        )


def _replaced(request: Request, intervention: ReplyWith, *, first: int) -> Iterator[Event]:
    for position, word in enumerate(words_of(intervention.text), start=first):
        yield TokenOut(request.id, position, token_id_of(word), word, 0.0)
    yield Done(request.id, "replaced")


def _cannot_switch(intervention: UseAdapter) -> None:
    raise CapabilityError("the pretend model has no linear maps, and can run no adapter")


def _hash_on(prefix: int, token_id: int) -> int:
    return zlib.crc32(token_id.to_bytes(8, "little"), prefix)


def _reply_words(chat: Chat) -> list[str]:
    system = "".join(f"[{m.content}] " for m in chat.messages if m.role == "system")
    return [word for word in words_of(system + chat.last_user_text) if word not in MARKERS]


def _positions(prompt: Prompt, spec: CaptureSpec) -> list[int]:
    """Return the positions that a read wants.

    Raises:
        DataError: The prompt has no such positions.
    """
    everything = range(len(prompt))
    if spec.positions == "last":
        return [len(prompt) - 1]
    if spec.positions == "all":
        return list(everything)
    if isinstance(spec.positions, tuple):
        if not all(-len(prompt) <= position < len(prompt) for position in spec.positions):
            raise DataError(f"positions {spec.positions} are not in a prompt of {len(prompt)}")
        return [everything[position] for position in spec.positions]
    kind: SpanKind = "reply" if spec.positions == "reply" else "user"
    spans = prompt.spans_of(kind)
    wanted = spans[-1:] if spec.positions == "user" else spans
    found = [position for span in wanted for position in range(span.start, span.stop)]
    if not found:
        raise DataError(f"the prompt has no {kind} tokens to read")
    return found


def _root_mean_square(states: Array) -> Array:
    root: Array = np.sqrt(np.square(states).mean(-1, keepdims=True) + 1e-12)
    return root
