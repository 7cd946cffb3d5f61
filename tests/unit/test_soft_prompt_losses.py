"""DRO's logits and losses against closed forms and scikit-learn, and who judges what they tell."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import expit, log_expit
from sklearn.decomposition import PCA

from demur.core.errors import DataError
from demur.core.readings import Array
from demur.trainers._behaviour import Behaviour
from demur.trainers._judging import Moves, require_better_than_chance, require_no_attack
from demur.trainers._measuring import Measured, soft_labels
from tests.tiny import D_MODEL


@pytest.fixture
def drawn() -> tuple[Array, Array, Array]:
    """Return states [60, 32] of unlike spread, soft labels and labels."""
    rng = np.random.default_rng(0)
    states = rng.normal(size=(60, D_MODEL)) * np.geomspace(9, 0.1, D_MODEL) + rng.normal(
        size=D_MODEL
    )
    soft = expit(states[:, 0] / 9 + rng.normal(size=60))
    return states, soft, (states[:, 1] > states[:, 1].mean()).astype(float)


def behaviour_of(states: Array, soft: Array, harmless: Array) -> Behaviour:
    return Behaviour.fit(states, soft, harmless, num_components=4, like=torch.zeros(1).double())


def test_the_coordinates_are_those_of_whitened_components(
    drawn: tuple[Array, Array, Array],
) -> None:
    states = drawn[0]
    behaviour = behaviour_of(*drawn)
    expected = PCA(4, whiten=True, svd_solver="full").fit_transform(states)
    found = behaviour.coordinates(torch.tensor(states))
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-9)


def test_a_logit_minimises_the_cross_entropy_of_soft_labels(
    drawn: tuple[Array, Array, Array],
) -> None:
    states, soft, _ = drawn
    behaviour = behaviour_of(*drawn)
    z = behaviour.coordinates(torch.tensor(states)).numpy()

    def loss(parts: Array) -> float:
        logits = z @ parts[:-1] + parts[-1]
        entropy = -(soft * log_expit(logits) + (1 - soft) * log_expit(-logits)).sum()
        return float(entropy + 0.5 * parts[:-1] @ parts[:-1])

    best = minimize(loss, np.zeros(5), options={"gtol": 1e-9}).x
    np.testing.assert_allclose(behaviour.logits["compliance"].numpy(), best, atol=1e-4)


def test_the_losses_are_those_of_the_paper(drawn: tuple[Array, Array, Array]) -> None:
    states, _, harmless = drawn
    behaviour = behaviour_of(*drawn)
    moved = states + np.random.default_rng(1).normal(size=states.shape)
    found = behaviour.losses(torch.tensor(moved), torch.tensor(states), torch.tensor(harmless))

    # A full orthonormal basis, as the paper has it: the components first, then any others.
    components = behaviour.components.numpy()
    basis = np.linalg.qr(np.concatenate([components.T, np.eye(D_MODEL)[:, 4:]], 1))[0].T
    basis[:4] = components
    z, z0 = ((x - behaviour.mean.numpy()) @ basis.T for x in (moved, states))
    spread = np.sqrt((z0[:, 4:] ** 2).mean())
    np.testing.assert_allclose(behaviour.rest_scale, spread, rtol=1e-9)
    for name, values in (("compliance", found.compliance), ("harmlessness", found.harmlessness)):
        weights = behaviour.logits[name].numpy()[:4] / behaviour.scales.numpy()
        shift = z[:, :4] @ weights - z0[:, :4] @ weights
        expected = -(harmless * log_expit(shift) + (1 - harmless) * log_expit(-shift))
        np.testing.assert_allclose(values.numpy(), expected, rtol=1e-8)
    rest = (((z - z0)[:, 4:] / spread) ** 2).mean(1)
    np.testing.assert_allclose(found.rest.numpy(), rest, rtol=1e-8)
    total = found.total(harmlessness_weight=0.01, rest_weight=0.001)
    parts = found.compliance + 0.01 * found.harmlessness + 0.001 * found.rest
    torch.testing.assert_close(total, parts)


def test_soft_labels_have_a_spread_whatever_the_model_does() -> None:
    hardly_refuses = np.array([8.0, 8.5, 9.0, 9.5])
    labels = soft_labels(hardly_refuses)
    np.testing.assert_allclose(labels, expit((hardly_refuses - 8.75) / hardly_refuses.std()))
    with pytest.raises(DataError, match="the same for all 4 prompts"):
        soft_labels(np.ones(4))


def measured(states: Array, soft: Array, harmless: Array) -> Measured:
    return Measured(states.astype(np.float32), soft, harmless)


def test_logits_that_tell_nothing_are_refused(drawn: tuple[Array, Array, Array]) -> None:
    states, soft, harmless = drawn
    behaviour = behaviour_of(*drawn)
    found = require_better_than_chance(behaviour, measured(*drawn))
    assert found["auroc_compliance"] > 0.7
    assert found["auroc_harmlessness"] > 0.9
    with pytest.raises(DataError, match="harmlessness is told with an AUROC of"):
        require_better_than_chance(behaviour, measured(states, soft, 1 - harmless))
    with pytest.raises(DataError, match="compliance is told with an AUROC of"):
        require_better_than_chance(behaviour, measured(states, 1 - soft, harmless))
    with pytest.raises(DataError, match="the same compliance"):
        require_better_than_chance(behaviour, measured(states, np.ones(60), harmless))


def test_what_moves_by_chance_is_no_attack() -> None:
    rng = np.random.default_rng(0)
    moves = Moves(np.zeros(80), rng.normal(size=80), np.ones(80), rng.random(80) < 0.5)
    require_no_attack(moves)
