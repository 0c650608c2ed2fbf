"""Fits the robot head's match by words: logistic regression on hashed words, put into the form of a match.

It comes last, when the language model's states of the robots no longer change. First the leaders and the members of the
run's fleet, and how many go, are regressed on the words of the training tasks, to the end and with a penalty, for which
a few thousand tasks take seconds. Then keys are found (ridge regression) that give the run's robots their weights from
their states, and robots that do the same as one of them near its weights; one more key tells these from strangers, of
whom words say nothing. At last the match is weighed against the others on the validation tasks.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from embervlm.data.collate import encode_fleet_text
from embervlm.data.robot_clauses import is_clause
from embervlm.data.robot_fleets import other_robots
from embervlm.data.sample import RobotSample
from embervlm.evaluation.calibration import fit_temperature
from embervlm.evaluation.metrics import leader_shares
from embervlm.fleet import Robot
from embervlm.model.modeling_embervlm import normalised_by_kind
from embervlm.selection import RobotSelector
from embervlm.words import MOST_COUNTED, hashed_words, padded, rarity

logger = logging.getLogger(__name__)

#: Inverse strength of the penalty on the weights, as scikit-learn's ``C``.
C = 30.0
ITERATIONS = 600
#: How much more than others the run's own robots count in the fit of the keys.
OWN = 100.0
KEY_PENALTY = 0.1
#: Weights of the match by words beside the others among which validation chooses.
WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)
#: With fewer validation tasks all matches weigh the same.
MIN_TASKS = 30


def fit_words(selector: RobotSelector, train: Sequence[RobotSample], validation: Sequence[RobotSample]) -> None:
    """Fit the match by words of a selector's model, in place; without tasks of its fleet the match stays silent.

    Args:
        selector: of the run's fleet, its model otherwise trained.
        train: tasks; those of other fleets are passed over, and clauses, which have fewer words and one robot each.
        validation: tasks of the run's fleet.
    """
    match, fleet = selector.model.robot_head.by_words, selector.fleet
    own = [sample for sample in train if sample.fleet is None and not is_clause(sample)]
    for numbers in match.buffers():
        numbers.zero_()
    if not own:
        return
    texts = [sample.task for sample in own]
    match.rarity.copy_(torch.from_numpy(rarity(dict.fromkeys(texts), len(match.rarity))))
    features = _features(texts, match)
    leaders = torch.from_numpy(leader_shares(own, fleet)).float()
    members = torch.tensor([[float(name in s.selected) for name in fleet.names] for s in own])
    counts = F.one_hot(members.sum(1).long().clamp(1, MOST_COUNTED) - 1, MOST_COUNTED).float()
    weights, biases = _regressed(features, leaders, counts, members)  # (places, outputs), (outputs,)
    table, keys = _factored(weights, match.table.shape[1])  # (places, word width), (outputs, word width)
    match.table.copy_(table)
    wanted = torch.cat([keys, biases[:, None]], 1)  # (outputs, word width + 1)
    of_leaders, of_counts, of_members = torch.split(wanted, [len(fleet), MOST_COUNTED, len(fleet)])
    match.count_key.copy_(of_counts)
    others = other_robots(train, fleet)
    same = [(robot, robot.same_as) for robot in others if robot.same_as is not None and robot.same_as in fleet]
    known = [*fleet, *(robot for robot, _ in same)]
    strangers = [robot for robot in others if robot not in known]
    states = _states(selector, [*known, *strangers])
    does = [*range(len(fleet)), *(fleet.index(name) for _, name in same)]  # which of the fleet's each known one equals
    match.leader_key.copy_(_key(states[: len(known)], of_leaders[does], len(fleet)))
    match.member_key.copy_(_key(states[: len(known)], of_members[does], len(fleet)))
    is_known = torch.cat([torch.ones(len(known), 1), torch.zeros(len(strangers), 1)])
    match.known_key.copy_(_key(states, is_known, len(fleet)))
    weight = _weight(selector, validation, states[: len(fleet)])
    match.leader_key.mul_(weight)
    match.member_key.mul_(weight)
    logger.info("Words: fitted on %d tasks, weighing %.4g beside the state", len(own), weight)


def _features(texts: Sequence[str], match: Any) -> Tensor:
    """The texts' normalised hashed words, (texts, places), sparse."""
    places = len(match.rarity)
    rows, columns, values = [], [], []
    for start in range(0, len(texts), 256):
        hashes, weights = map(torch.from_numpy, padded([hashed_words(text) for text in texts[start : start + 256]]))
        shares = normalised_by_kind(hashes, weights * match.rarity[hashes % places])
        row, column = shares.nonzero(as_tuple=True)
        rows.append(row + start)
        columns.append(hashes[row, column] % places)
        values.append(shares[row, column])
    indices = torch.stack([torch.cat(rows), torch.cat(columns)])
    return torch.sparse_coo_tensor(indices, torch.cat(values), (len(texts), places), check_invariants=True).coalesce()


class _Product(torch.autograd.Function):
    """A sparse matrix times weights; its transpose is made once, not at each step back."""

    @staticmethod
    def forward(context: Any, matrix: Tensor, transpose: Tensor, weights: Tensor) -> Tensor:
        context.transpose = transpose
        return matrix @ weights

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[None, None, Tensor]:
        return None, None, context.transpose @ gradient


def _regressed(features: Tensor, leaders: Tensor, counts: Tensor, members: Tensor) -> tuple[Tensor, Tensor]:
    """The weights and biases of leading (softmax), of how many go (softmax) and of going along (sigmoids), in a row."""
    with warnings.catch_warnings():  # torch says that its sparse rows are a beta feature; the tests hold them to
        warnings.simplefilter("ignore", UserWarning)  # scikit-learn's numbers
        matrix, transpose = features.to_sparse_csr(), features.T.coalesce().to_sparse_csr()
    shares = [each.shape[1] for each in (leaders, counts, members)]
    weights = torch.zeros(features.shape[1], sum(shares), requires_grad=True)
    biases = torch.zeros(sum(shares), requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weights, biases], max_iter=ITERATIONS, history_size=10, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        logits: Tensor = _Product.apply(matrix, transpose, weights) + biases  # type: ignore[no-untyped-call]
        leading, many, going = torch.split(logits, shares, 1)
        total = F.cross_entropy(leading, leaders, reduction="sum") + F.cross_entropy(many, counts, reduction="sum")
        total = total + F.binary_cross_entropy_with_logits(going, members, reduction="sum")
        total = total + weights.square().sum() / (2 * C)
        total.backward()  # type: ignore[no-untyped-call]
        return total

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    return weights.detach(), biases.detach()


def _factored(weights: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """(places, outputs) as a table (places, width) times keys (outputs, width): exact where the width is enough.

    Else it is the nearest such product, of the largest singular values.
    """
    outputs = weights.shape[1]
    if outputs <= width:
        return F.pad(weights, (0, width - outputs)), F.pad(torch.eye(outputs), (0, width - outputs))
    values, vectors = torch.linalg.eigh(weights.T @ weights)  # ascending
    keys = vectors[:, values.argsort(descending=True)[:width]]
    return weights @ keys, keys


def _states(selector: RobotSelector, robots: Sequence[Robot]) -> Tensor:
    """The robots' normalised states, (robots, width)."""
    with torch.inference_mode():
        state = selector.model.encode_fleet(**encode_fleet_text(robots, selector.tokenizer))
        states: Tensor = selector.model.robot_head.robot_norm(state.robot_states)
    return states.clone()


def _key(states: Tensor, wanted: Tensor, own: int) -> Tensor:
    """The linear map from states and a 1, (robots, width + 1), to what is wanted, as (outputs, width + 1).

    Args:
        states: of the run's robots and others, (robots, width).
        wanted: of each, (robots, outputs).
        own: how many of them are the run's; they stand first.
    """
    x, y = F.pad(states, (0, 1), value=1.0).double(), wanted.double()
    w = torch.ones(len(x), 1, dtype=torch.float64)
    w[:own] = OWN
    # In the space of the robots, of which there are few: (X X' W + p) a = y, and the map is X' W a.
    gram = x @ (x * w).T + KEY_PENALTY * torch.eye(len(x), dtype=torch.float64)
    found = torch.linalg.solve(gram, y)
    key: Tensor = ((x * w).T @ found).T.float()
    return key


def _weight(selector: RobotSelector, validation: Sequence[RobotSample], states: Tensor) -> float:
    """How much the match by words shall weigh: that which makes the validation tasks' leaders likeliest.

    Args:
        selector: with the match as fitted.
        validation: tasks of its fleet.
        states: of its fleet's robots, normalised, (robots, width).
    """
    if len(validation) < MIN_TASKS:
        return 1.0
    match = selector.model.robot_head.by_words
    tasks, images = [s.task for s in validation], [s.image for s in validation]
    whole = torch.from_numpy(selector.score_clauses(tasks, images, ask_clauses=False)[0])
    hashes, weights = map(torch.from_numpy, padded([hashed_words(task) for task in tasks]))
    by_words, _ = match(match.vectors(hashes, weights), states)
    labels = torch.from_numpy(leader_shares(validation, selector.fleet))

    def loss(weight: float) -> float:
        logits = whole - by_words + weight * by_words
        return float(F.cross_entropy(logits.double() / fit_temperature(logits, labels), labels.double()))

    losses = [loss(weight) for weight in WEIGHTS]
    return WEIGHTS[int(np.argmin(losses))]
