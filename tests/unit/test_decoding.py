"""Sampling, streaming text, and the parts of the transformers engine that need no weights."""

import numpy as np
import pytest
import torch

from demur.core.types import Sampling
from demur.engines._text import TextStream, decoder_of
from demur.engines.transformers.sampling import draw, row_generator
from tests.tiny import byte_tokenizer


def stream(text: str, *, stop: tuple[str, ...] = ()) -> tuple[list[str], TextStream]:
    tokenizer = byte_tokenizer()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    out, pieces = TextStream(tokenizer, stop), []
    for number, token_id in enumerate(ids):
        pieces.append(out.push(token_id, is_last=number == len(ids) - 1))
        if out.is_stopped:
            break
    return pieces, out


def test_streamed_pieces_join_to_the_whole_text() -> None:
    text = "plain, naïve, 漢字 and 😀!"
    assert "".join(stream(text)[0]) == text


def test_no_piece_holds_half_a_character() -> None:
    pieces, _ = stream("😀é")
    assert [piece for piece in pieces if piece] == ["😀", "é"]


def test_a_stop_text_ends_the_reply_and_is_not_part_of_it() -> None:
    pieces, out = stream("one, two, three", stop=("two",))
    assert "".join(pieces) == "one, "
    assert out.is_stopped


def test_what_might_begin_a_stop_text_is_held_back_until_it_does_not() -> None:
    pieces, out = stream("twelve", stop=("two",))
    assert pieces[:2] == ["", ""]
    assert "".join(pieces) == "twelve"
    assert not out.is_stopped


def test_texts_are_those_of_the_tokenizers_own_method() -> None:
    class Louder(type(byte_tokenizer())):  # type: ignore[misc]
        """A tokenizer that says something else."""

        def decode(self, *args: object, **kwargs: object) -> str:
            """Return a text in capitals."""
            return str(super().decode(*args, **kwargs)).upper()

    plain = byte_tokenizer()
    ids = plain("a b, c 😀", add_special_tokens=False)["input_ids"] + [plain.eos_token_id]
    expected = plain.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert decoder_of(plain)(ids) == expected == "a b, c 😀"
    louder = byte_tokenizer()
    louder.__class__ = Louder
    assert decoder_of(louder)(ids) == "A B, C 😀"


def test_long_replies_keep_every_character() -> None:
    text = "words and 漢字, 😀 " * 40
    assert "".join(stream(text)[0]) == text


def test_greedy_takes_the_largest_logit_and_its_log_probability() -> None:
    logits = torch.tensor([0.0, 2.0, 1.0])
    drawn = draw(logits, Sampling(), row_generator(Sampling(), "a"))
    assert drawn.token_id == 1
    assert drawn.logprob == pytest.approx(2 - np.log(1 + np.exp(2) + np.exp(1)))


def test_sampled_frequencies_are_the_models_probabilities() -> None:
    logits = torch.log(torch.tensor([0.1, 0.6, 0.3]))
    sampling = Sampling(temperature=1.0)
    generator = row_generator(sampling, "a")
    drawn = [draw(logits, sampling, generator).token_id for _ in range(4000)]
    np.testing.assert_allclose(np.bincount(drawn) / 4000, [0.1, 0.6, 0.3], atol=0.03)


def test_top_p_never_draws_outside_the_nucleus() -> None:
    logits = torch.log(torch.tensor([0.1, 0.6, 0.3]))
    sampling = Sampling(temperature=1.0, top_p=0.7)
    generator = row_generator(sampling, "a")
    assert {draw(logits, sampling, generator).token_id for _ in range(300)} == {1, 2}


@pytest.mark.parametrize("least", [1e-30, 1e-46, 5e-324])
def test_the_least_temperature_and_the_least_nucleus_are_greedy(least: float) -> None:
    logits = torch.tensor([0.0, 30.0, 29.0])
    for sampling in (Sampling(temperature=least), Sampling(temperature=1.0, top_p=least)):
        generator = row_generator(sampling, "a")
        assert {draw(logits, sampling, generator).token_id for _ in range(50)} == {1}


def test_a_row_draws_by_its_seed_and_id_alone() -> None:
    logits = torch.zeros(50)
    sampling = Sampling(temperature=1.0, seed=3)

    def draws(request_id: str) -> list[int]:
        generator = row_generator(sampling, request_id)
        return [draw(logits, sampling, generator).token_id for _ in range(20)]

    assert draws("a") == draws("a") != draws("b")
