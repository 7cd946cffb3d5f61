"""Trains a draft head on the states of all candidates of a few replies.

Replies are drawn by the very rule that the draft is to serve, with the model's own states, which
yields a state for each candidate of each token. The linear map starts as the ridge regression of
what the model's block sees, the block as the model's own; then both are trained to give the states
(smooth L1) and the choice among the candidates (their divergence).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache

from demur.core.errors import DataError
from demur.core.readings import Array
from demur.core.reads import CaptureSpec
from demur.core.training import Progress, Run
from demur.core.types import Prompt
from demur.modeling.draft import DraftHead
from demur.modeling.load import LoadedModel
from demur.modeling.reranking import Reranking
from demur.modeling.tries import States, Try, masks_of, read_on, try_tokens

SHARE_HELD_OUT = 8
"""One of so many replies is held out, to measure on."""
RIDGE = 1e-3
"""Penalty of the linear map, as a share of what its inputs weigh."""
WARM_UP = 0.1
"""Share of the steps in which the step size grows; it falls to nothing in the others."""
CHOICE_WEIGHT = 0.1
"""Of the choice in the loss, as EAGLE's is of the vocabulary."""
MAX_NORM = 0.5
"""To which a step's gradient is clipped, as EAGLE's."""


@dataclass(frozen=True)
class Tries:
    """A reply with all candidates of each of its tokens."""

    position: int
    """Of the first token."""
    before: Tensor
    """The state before each token, [token, d_model]."""
    ids: Tensor
    """[token, candidate]."""
    states: Tensor
    """[token, candidate, d_model]."""
    block_inputs: Tensor
    """What the block saw, the same shape."""
    chosen: Tensor
    """Which of the candidates was taken, [token]."""


@dataclass(frozen=True)
class Drafted:
    """A draft head, and how well it guesses."""

    tensors: Mapping[str, Array]
    metrics: Mapping[str, float]
    curve: Sequence[float]


class DraftTraining:
    """Trains a draft head for a rule of reranking.

    Args:
        loaded: The model; it is never changed.
        read: What of a state is scored.
        weights: [d_model], with the sign in it.
        top_k: Candidates of each token.
        num_tokens: Of a reply, at most.
        epochs: Times that the replies are gone through.
        lr: The largest step size.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        read: CaptureSpec,
        weights: Array,
        *,
        top_k: int,
        num_tokens: int,
        epochs: int,
        lr: float,
    ) -> None:
        self._loaded = loaded
        self._rule = Reranking(top_k, read, torch.from_numpy(weights).to(loaded.device))
        self._num_tokens, self._epochs, self._lr = num_tokens, epochs, lr
        self._head = DraftHead(loaded, read, dtype=torch.float32)

    def run(self, prompts: Sequence[Prompt], run: Run) -> Drafted:
        """Draw replies to prompts, and train on them.

        Raises:
            DataError: Fewer than two replies have a token after which the model goes on.
        """
        replies = []
        order = np.random.default_rng(run.seed).permutation(len(prompts))
        for done, row in enumerate(order, start=1):
            replies.append(draw_tries(self._loaded, prompts[row], self._rule, self._num_tokens))
            num_tokens = sum(len(reply.ids) for reply in replies)
            run.report(Progress("draft replies", done, len(prompts), num_tokens=num_tokens))
        replies = [reply for reply in replies if len(reply.ids)]
        num_held_out = max(1, len(replies) // SHARE_HELD_OUT)
        held_out, replies = replies[:num_held_out], replies[num_held_out:]
        if not replies:
            raise DataError(
                f"{len(held_out)} of {len(prompts)} replies have a token: expected two or more "
                "to train a draft on"
            )
        self._start(replies)
        before = self._measured(held_out)
        curve = self._step_through(replies, run)
        metrics = {f"draft_{name}": value for name, value in self._measured(held_out).items()}
        metrics |= {f"draft_{name}_untrained": value for name, value in before.items()}
        tensors = {
            name: tensor.detach().cpu().numpy().astype(np.float32)
            for name, tensor in self._head.tensors().items()
        }
        return Drafted(tensors, metrics, curve)

    def _start(self, replies: Sequence[Tries]) -> None:
        """Solve the linear map: what the block saw of what is known before a token is read."""
        inputs = torch.cat([self._inputs(reply) for reply in replies])
        wanted = torch.cat([reply.block_inputs.flatten(0, 1) for reply in replies])
        solved = ridge(inputs, wanted, share=RIDGE)
        self._head.join.weight.copy_(solved.to(self._head.join.weight))

    def _inputs(self, reply: Tries) -> Tensor:
        return self._head.inputs(_spread(reply.before, reply), reply.ids.flatten())

    def _step_through(self, replies: Sequence[Tries], run: Run) -> list[float]:
        """Train for some epochs, a reply a step; return the losses."""
        parameters = [p.requires_grad_() for p in self._head.tensors().values()]
        total = self._epochs * len(replies)
        optimiser = torch.optim.AdamW(parameters, lr=self._lr, betas=(0.9, 0.95), weight_decay=0)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _share(step, total))
        scale = torch.cat([reply.states.flatten() for reply in replies]).square().mean().sqrt()
        generator = torch.Generator().manual_seed(run.seed)
        curve: list[float] = []
        num_tokens = 0
        for _ in range(self._epochs):
            for row in torch.randperm(len(replies), generator=generator).tolist():
                loss = self._loss(replies[row], scale)
                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                torch.nn.utils.clip_grad_norm_(parameters, MAX_NORM)
                optimiser.step()
                schedule.step()
                curve.append(float(loss.detach()))
                num_tokens += replies[row].ids.numel()
                run.report(Progress("draft", len(curve), total, curve[-1], num_tokens))
        for parameter in parameters:
            parameter.requires_grad_(False)
        return curve

    def _loss(self, reply: Tries, scale: Tensor) -> Tensor:
        guesses = self._guesses(reply)
        error = functional.smooth_l1_loss(guesses / scale, reply.states / scale)
        exact, guessed = reply.states @ self._rule.weights, guesses @ self._rule.weights
        spread = exact.std(1).mean().clamp_min(1e-6)
        choice = functional.kl_div(
            torch.log_softmax(guessed / spread, 1),
            torch.log_softmax(exact / spread, 1),
            reduction="batchmean",
            log_target=True,
        )
        return error + CHOICE_WEIGHT * choice

    def _guesses(self, reply: Tries) -> Tensor:
        """Return the states [token, candidate, d_model] that the head guesses."""
        num_tokens, num_candidates = reply.ids.shape
        device = self._head.device
        step = torch.arange(num_tokens).repeat_interleave(num_candidates)
        is_chosen = functional.one_hot(reply.chosen, num_candidates).flatten().bool()
        itself = torch.eye(len(step), dtype=torch.bool)

        def allowed(window: int | None) -> Tensor:
            back = step[:, None] - step
            seen = is_chosen & (back > 0)
            return (itself | (seen if window is None else seen & (back < window)))[None]

        states = self._head(
            _spread(reply.before, reply),
            reply.ids.flatten(),
            positions=(reply.position + step).to(device),
            mask=masks_of(self._head.body.config, allowed, dtype=self._head.dtype, device=device),
        )
        return states.reshape(reply.states.shape)

    @torch.no_grad()
    def _measured(self, replies: Sequence[Tries]) -> dict[str, float]:
        """Return how often the draft chooses as the model does, and how far its states are off."""
        agreed, error, weight = [], 0.0, 0.0
        for reply in replies:
            guesses = self._guesses(reply)
            exact, guessed = reply.states @ self._rule.weights, guesses @ self._rule.weights
            agreed.append((exact.argmax(1) == guessed.argmax(1)).double())
            error += float((guesses - reply.states).square().sum())
            weight += float(reply.states.square().sum())
        return {"agreement": float(torch.cat(agreed).mean()), "error": (error / weight) ** 0.5}


def draw_tries(loaded: LoadedModel, prompt: Prompt, rule: Reranking, num_tokens: int) -> Tries:
    """Draw a reply by a rule, and keep what came of every candidate.

    Args:
        loaded: The model.
        prompt: To answer.
        rule: Says which candidates there are, and which one is taken.
        num_tokens: Of the reply, at most; an end token is none of them.
    """
    parts, read, device = loaded.parts, rule.read, loaded.device
    layer = parts.deepest([read])
    below = CaptureSpec((layer - 1,)) if layer else None
    cache = DynamicCache()
    logits, last = read_on(loaded, prompt.token_ids, cache, [read])
    ids: list[Tensor] = []
    before, states, inputs, chosen = [], [], [], []
    state = torch.from_numpy(last[read][0]).to(device)
    while len(ids) < num_tokens and cache.get_seq_length() < loaded.max_tokens:
        candidates = rule.candidates(logits)

        def choose(of: States, logits: Tensor = logits, tried: list[int] = candidates) -> int:
            return rule.choice(logits, tried, torch.from_numpy(of[read][:, 0]))

        reads = [read] if below is None else [read, below]
        (tried,) = try_tokens(loaded, [Try(cache, candidates, reads, choose)])
        if candidates[tried.index] in loaded.end_token_ids:
            break
        found = {spec: torch.from_numpy(of[:, 0]).to(device) for spec, of in tried.states.items()}
        before.append(state)
        ids.append(torch.tensor(candidates, device=device))
        states.append(found[read])
        inputs.append(_embedded(loaded, ids[-1]) if below is None else found[below])
        chosen.append(tried.index)
        cache, logits, state = tried.cache, tried.logits, found[read][tried.index]
    return Tries(
        len(prompt),
        _stacked(before, (parts.d_model,)),
        torch.stack(ids) if ids else torch.zeros(0, rule.top_k, dtype=torch.long),
        _stacked(states, (rule.top_k, parts.d_model)),
        _stacked(inputs, (rule.top_k, parts.d_model)),
        torch.tensor(chosen, dtype=torch.long),
    )


def ridge(inputs: Tensor, wanted: Tensor, *, share: float) -> Tensor:
    """Return the matrix [output, input] of a ridge regression without an offset.

    Args:
        inputs: [row, input]; each column is penalised by what it weighs.
        wanted: [row, output].
        share: Of a column's sum of squares, the penalty.
    """
    x, y = inputs.double(), wanted.double()
    gram = x.T @ x
    penalty = share * gram.diagonal().clamp_min(1e-12)
    solved: Tensor = torch.linalg.solve(gram + torch.diag(penalty), x.T @ y)
    return solved.T


def _embedded(loaded: LoadedModel, ids: Tensor) -> Tensor:
    with torch.no_grad():
        embeddings: Tensor = loaded.model.get_input_embeddings()(ids).float()
    return embeddings


def _spread(before: Tensor, reply: Tries) -> Tensor:
    """Return the state [token * candidate, d_model] before each candidate."""
    return before.repeat_interleave(reply.ids.shape[1], 0)


def _stacked(found: Sequence[Tensor], shape: tuple[int, ...]) -> Tensor:
    return torch.stack(list(found)) if found else torch.zeros(0, *shape)


def _share(step: int, total: int) -> float:
    """Return the share of the largest step size: up, and down to nothing."""
    warm_up = max(1, round(WARM_UP * total))
    return min((step + 1) / warm_up, (total - step) / max(1, total - warm_up + 1))
