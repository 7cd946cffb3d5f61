"""What the steering trainer finds: directions, layers, strengths and gates."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from demur.core.errors import ConfigError, DataError
from demur.core.examples import Example
from demur.core.interventions import AddVectors
from demur.core.protocols import Request, TokenOut
from demur.core.readings import Array
from demur.core.training import Outcome, Run
from demur.core.types import Chat, Prompt, Sampling
from demur.engines.transformers import TransformersEngine
from demur.modeling.chat import ChatRenderer
from demur.trainers._anchors import pick_anchors
from demur.trainers._directions import Direction, directions, first_component
from demur.trainers._null_space import gates
from demur.trainers._segments import Segment, chosen, num_refusal_words, segments, spoken
from demur.trainers.steering import Steering
from demur.workflows.train import train
from tests.interventions import stored
from tests.model_folder import labelled_prompts, save_model
from tests.tiny import tiny

KINDS: tuple[Direction, ...] = ("difference", "pca", "head")
D_MODEL = 12
UNSAFE = ("Burn the old mill", "Break this lock", "Poison his well")
SAFE = ("Paint the old mill", "Clean this lock", "Fill his well")


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_model(tmp_path_factory.mktemp("model")))


def planted(num_pairs: int = 80, *, seed: int = 0) -> tuple[Array, Array, Array]:
    """Return unsafe and safe states [pair, layer, d_model], and what tells them apart."""
    generator = np.random.default_rng(seed)
    direction = generator.normal(size=(2, D_MODEL))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    common = generator.normal(size=(num_pairs, 2, D_MODEL))
    noise = generator.normal(size=(2, num_pairs, 2, D_MODEL))
    return common + noise[0] / 3 + 3 * direction, common + noise[1] / 3, direction


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_direction_points_from_safe_to_unsafe(kind: Direction) -> None:
    unsafe, safe, direction = planted()
    found = directions(unsafe, safe, kind=kind, c=0.1)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1)
    assert np.vecdot(found, direction).min() > 0.9
    np.testing.assert_allclose(directions(safe, unsafe, kind=kind, c=0.1), -found, atol=1e-3)


def test_the_difference_is_that_of_the_means() -> None:
    unsafe, safe, _ = planted()
    difference = unsafe.mean(0) - safe.mean(0)
    expected = difference / np.sqrt((difference**2).sum(1))[:, None]
    np.testing.assert_allclose(directions(unsafe, safe, kind="difference", c=1), expected)


def test_the_component_is_that_of_states_about_the_middle_of_their_pair() -> None:
    unsafe, safe, _ = planted()
    found = directions(unsafe, safe, kind="pca", c=1)
    for layer in range(2):
        middle = (unsafe + safe)[:, layer] / 2
        about = np.concatenate([unsafe[:, layer] - middle, safe[:, layer] - middle])
        (expected,) = PCA(1).fit(about).components_
        assert abs(found[layer] @ expected) == pytest.approx(1, abs=1e-9)


def test_the_head_is_the_slope_of_a_logistic_regression() -> None:
    unsafe, safe, _ = planted()
    unsafe = unsafe * np.arange(1, D_MODEL + 1)  # coordinates of unlike size
    safe = safe * np.arange(1, D_MODEL + 1)
    found = directions(unsafe, safe, kind="head", c=0.1)
    for layer in range(2):
        states = np.concatenate([unsafe[:, layer], safe[:, layer]])
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000, tol=1e-6))
        model.fit(states, np.arange(len(states)) < len(unsafe))
        origin = np.zeros((1, D_MODEL))
        slope = model.decision_function(np.eye(D_MODEL)) - model.decision_function(origin)
        np.testing.assert_allclose(found[layer], slope / np.linalg.norm(slope), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_coordinate_that_never_changes_is_no_part_of_a_direction(kind: Direction) -> None:
    unsafe, safe, _ = planted()
    unsafe[..., 3] = safe[..., 3] = 7.0
    found = directions(unsafe, safe, kind=kind, c=1)
    np.testing.assert_allclose(found[:, 3], 0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_states_that_are_alike_have_no_direction(kind: Direction) -> None:
    states = np.ones((4, 2, D_MODEL))
    with pytest.raises(DataError, match="the same states"):
        directions(states, states, kind=kind, c=1)


def test_states_that_are_not_finite_have_no_direction() -> None:
    unsafe, safe, _ = planted()
    safe[0, 0, 0] = np.nan
    with pytest.raises(DataError, match="finite"):
        directions(unsafe, safe, kind="difference", c=1)


def test_what_vectors_have_in_common_points_their_way() -> None:
    vectors = np.array([[1.0, 0.1, 0], [1, -0.1, 0], [0.9, 0, 0.05]])
    np.testing.assert_allclose(first_component(vectors), [1, 0, 0], atol=0.05)
    np.testing.assert_allclose(first_component(-vectors), [-1, 0, 0], atol=0.05)


def example(text: str, label: str, group: str, language: str = "en") -> Example:
    return Example(
        f"{group}-{label}",
        Chat.from_text(text),
        label=label,  # type: ignore[arg-type]  # one of both labels
        group=group,
        language=language,
    )


def many() -> list[Example]:
    """Return unsafe and safe prompts of two shapes each, with twins in one group."""
    found = []
    for number in range(40):
        tail = "so " * (number % 7)
        for label in ("unsafe", "safe"):
            found += [
                example(f"Write {tail}it {number} {label}", label, f"write {number}"),
                example(f"Why is {tail}it {number} {label}?", label, f"why {number}"),
                example(f"Pourquoi {tail}{number} {label}?", label, f"fr {number}", "fr"),
            ]
    return found


def renderer() -> ChatRenderer:
    return ChatRenderer(tiny().tokenizer, name="tiny")


def texts_of(prompts: Sequence[Prompt]) -> list[str]:
    return [prompt.chat.last_user_text for prompt in prompts]


def test_the_two_of_a_pair_are_alike_in_shape() -> None:
    anchors = pick_anchors(many(), renderer(), count=16, seed=0)
    assert len(anchors) == 16
    for unsafe, safe in zip(texts_of(anchors.unsafe), texts_of(anchors.safe), strict=True):
        assert unsafe.endswith(("unsafe", "unsafe?"))
        assert not safe.endswith(("unsafe", "unsafe?"))
        assert unsafe.split()[0] == safe.split()[0]
    assert anchors.length_gap() < 0.15


def test_no_group_stands_on_both_sides() -> None:
    examples = many()
    groups = {example.chat.last_user_text: example.group for example in examples}
    anchors = pick_anchors(examples, renderer(), count=60, seed=0)
    used = [groups[text] for text in texts_of([*anchors.unsafe, *anchors.safe])]
    assert len(used) == len(set(used)) > 60


def test_the_seed_picks_the_anchors() -> None:
    first, again, other = (
        pick_anchors(many(), renderer(), count=16, seed=seed) for seed in (3, 3, 4)
    )
    assert first == again
    assert first != other


def test_anchors_of_one_label_are_refused() -> None:
    unsafe = [example(f"Burn {n}", "unsafe", str(n)) for n in range(9)]
    with pytest.raises(DataError, match="two of each"):
        pick_anchors([*unsafe, example("Hello", "safe", "x")], renderer(), count=4, seed=0)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3"])
def test_a_direction_speaks_the_tokens_of_its_logits(architecture: str) -> None:
    model = tiny(architecture)
    direction = np.random.default_rng(0).normal(size=model.parts.d_model)
    unit = torch.from_numpy(direction / np.sqrt(np.square(direction).mean())).float()
    with torch.inference_mode():
        logits = model.model.get_output_embeddings().weight @ model.parts.final_norm(unit)
    expected = [model.tokenizer.decode([i]) for i in logits.argsort(descending=True)[:5].tolist()]
    assert spoken(model, direction, count=5) == expected
    assert spoken(model, 1000 * direction, count=5) == expected


def test_every_layer_is_in_one_segment() -> None:
    found = segments(tiny(), np.random.default_rng(0).normal(size=(4, tiny().parts.d_model)))
    assert [of.layers for of in found] == [(0, 1), (2,), (3,)]


def test_words_of_refusal_are_known_in_any_case() -> None:
    assert num_refusal_words([" cannot", "Sorry", "REFUSE", " 拒绝", "canning", " to", ""]) == 4


@pytest.mark.parametrize(
    ("words", "name"), [((1, 4, 5), "latter"), ((9, 2, 0), "former"), ((3, 3, 3), "middle")]
)
def test_the_segment_with_most_words_of_refusal_is_steered(
    words: tuple[int, int, int], name: str
) -> None:
    names = ("former", "middle", "latter")
    found = [Segment(n, (i,), words[i]) for i, n in enumerate(names)]
    assert chosen(tuple(found)).name == name


def benign_and_unsafe(seed: int) -> tuple[Array, Array]:
    """Return states [state, layer, d_model] within five dimensions, and others that leave them."""
    fixed, generator = np.random.default_rng(0), np.random.default_rng(seed)
    span, outside = fixed.normal(size=(5, D_MODEL)), fixed.normal(size=D_MODEL)
    weights = generator.normal(size=(2, 50, 2, 5)) + np.array([4, 0, 0, 0, 0])
    return weights[0] @ span, weights[1] @ span + outside


NO_VECTORS = np.zeros((2, D_MODEL))


def test_gates_let_benign_states_be_and_open_for_unsafe_ones() -> None:
    found = gates(*benign_and_unsafe(1), NO_VECTORS, preserve=0.9999)
    benign, unsafe = benign_and_unsafe(2)
    np.testing.assert_allclose(np.vecdot(benign, found), 0, atol=1e-9)
    np.testing.assert_allclose(np.vecdot(unsafe, found), 1, atol=1e-9)


def test_a_gate_that_preserves_little_moves_benign_states() -> None:
    benign, unsafe = benign_and_unsafe(1)
    amounts = [
        float(np.abs(np.vecdot(benign, gates(benign, unsafe, NO_VECTORS, preserve=share))).mean())
        for share in (0.3, 0.999999)
    ]
    assert amounts[0] > 0.1
    assert amounts[1] < 1e-9


def test_a_token_of_a_huge_state_is_no_more_than_another() -> None:
    benign, unsafe = benign_and_unsafe(1)
    huge = benign.copy()
    huge[0] *= 1e4
    np.testing.assert_allclose(
        gates(huge, unsafe, NO_VECTORS, preserve=0.9),
        gates(benign, unsafe, NO_VECTORS, preserve=0.9),
        rtol=1e-6,
    )


def test_a_gate_makes_up_for_the_vectors_before_it() -> None:
    benign, unsafe = benign_and_unsafe(1)
    vectors = np.random.default_rng(0).normal(size=(2, D_MODEL))
    vectors *= np.sign(np.vecdot(vectors, unsafe.mean(0)))[:, None]
    found = gates(benign, unsafe, vectors, preserve=0.9999)
    state = unsafe.mean(0)
    moved = state[1] + (found[0] @ state[0]) * vectors[0]
    assert found[0] @ state[0] == pytest.approx(1)
    assert found[1] @ moved == pytest.approx(1)


def test_benign_states_that_fill_the_space_leave_no_gate() -> None:
    states = np.random.default_rng(0).normal(size=(99, 1, D_MODEL))
    with pytest.raises(DataError, match="preserve less"):
        gates(states, states + 1, np.zeros((1, D_MODEL)), preserve=1.0)


def few() -> list[Example]:
    """Return three unsafe and three safe prompts, which all become anchors."""
    return [
        example(text, label, text)
        for label, texts in (("unsafe", UNSAFE), ("safe", SAFE))
        for text in texts
    ]


def trained_on_few(trainer: Steering, model_folder: str) -> Outcome:
    return trainer.train(few(), Run(model_folder, "float32"))


def test_a_vector_is_its_share_of_a_states_norm(model_folder: str) -> None:
    trainer = Steering(coefficient=0.6, layers=(-1, 1), num_anchors=3)
    outcome = trained_on_few(trainer, model_folder)
    model, engine = tiny(), TransformersEngine(tiny())
    states = []
    for text in (*UNSAFE, *SAFE):
        ids = torch.tensor([engine.render(Chat.from_text(text)).token_ids])
        kept: list[torch.Tensor] = []
        with model.parts.blocks[3].register_forward_hook(
            lambda _m, _i, o, kept=kept: kept.append(o if isinstance(o, torch.Tensor) else o[0])
        ):
            hidden = model.model(ids, output_hidden_states=True).hidden_states
        states.append(torch.stack([kept[0][0, -1], hidden[2][0, -1]]).numpy())
    found = np.array(states)  # [prompt, layer, d_model]
    difference = found[:3].mean(0) - found[3:].mean(0)
    unit = difference / np.linalg.norm(difference, axis=1, keepdims=True)
    norms = np.linalg.norm(found, axis=2).mean(0)
    np.testing.assert_allclose(
        outcome.tensors["vectors"], unit * 0.6 * norms[:, None] / 2, rtol=1e-3, atol=1e-6
    )
    assert outcome.fields["layers"] == [3, 1]
    assert outcome.metrics["pairs"] == 3


def test_layers_are_chosen_where_none_are_given(model_folder: str) -> None:
    fields = trained_on_few(Steering(), model_folder).fields
    words = fields["refusal_words"]
    best = max(words.values())
    expected = {"former": [0, 1], "middle": [2], "latter": [3]}
    assert fields["layers"] in [expected[name] for name, count in words.items() if count == best]


@pytest.mark.parametrize("preserve", [0.0, 1.0])
def test_preserved_states_stay_and_others_move(
    model_folder: str, tmp_path: Path, preserve: float
) -> None:
    trainer = Steering(
        coefficient=5.0, layers=(1, 2), from_position="last", num_anchors=3,
        preserve=preserve, num_reply_tokens=0,
    )  # fmt: skip
    train(trainer, few(), Run(model_folder, "float32"), tmp_path / "vectors")
    tensors = trained_on_few(trainer, model_folder).tensors
    gate = tensors.get("gates")
    intervention = AddVectors(
        (1, 2),
        stored(tmp_path, "vectors", torch.from_numpy(tensors["vectors"])),
        gates=None if gate is None else stored(tmp_path, "gates", torch.from_numpy(gate)),
    )
    moved = {text: moves(text, intervention) for text in (*UNSAFE, *SAFE)}
    assert min(moved[text] for text in UNSAFE) > 0.01
    assert (max(moved[text] for text in SAFE) < 1e-4) == (preserve > 0)


def moves(text: str, intervention: AddVectors) -> float:
    """Return by how much an intervention changes the first token's log-probability."""
    engine = TransformersEngine(tiny())
    logprobs = []
    for of in (None, intervention):
        request = Request(
            "0",
            engine.render(Chat.from_text(text)),
            Sampling(max_tokens=1),
            decide=lambda _, of=of: of,  # type: ignore[misc]  # bound now
        )
        logprobs += [e.logprob for e in engine.run([request]) if isinstance(e, TokenOut)]
    return abs(logprobs[1] - logprobs[0])


def test_the_models_own_replies_are_preserved_too(model_folder: str) -> None:
    rows = [
        Example(str(row["id"]), Chat.from_text(str(row["text"])), label=row["label"])  # type: ignore[arg-type]
        for row in labelled_prompts(24)
    ]
    run = Run(model_folder, "float32")
    gates_of = [
        Steering(layers=(1,), preserve=0.8, num_reply_tokens=number)
        .train(rows, run)
        .tensors["gates"]
        for number in (0, 6)
    ]
    assert not np.allclose(gates_of[0], gates_of[1])


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"direction": "sideways"}, "direction"),
        ({"from_position": "first"}, "from_position"),
        ({"coefficient": 0.0}, "coefficient"),
        ({"num_anchors": 1}, "num_anchors"),
        ({"preserve": 1.5}, "preserve"),
        ({"num_reply_tokens": -1}, "num_reply_tokens"),
        ({"c": 0.0}, "c is"),
        ({"layers": (1, 1)}, "layers"),
    ],
)
def test_what_is_out_of_range_is_refused(fields: dict[str, object], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        Steering(**fields)  # type: ignore[arg-type]  # what a command line would give


def test_a_layer_that_does_not_exist_is_refused(model_folder: str) -> None:
    with pytest.raises(ConfigError, match="layer 9 does not exist"):
        trained_on_few(Steering(layers=(9,)), model_folder)
