"""The robot head: its two matches and their sum, the dropout of words, and that the ways to a selection agree."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from embervlm.data.collate import encode_fleet_text, hash_tasks
from embervlm.fleet import Fleet, Robot
from embervlm.model.modeling_embervlm import WORD_DROPOUT, FleetState, RobotHead
from embervlm.prompts import encode, task_pieces
from embervlm.tokens import CONTROL_IDS, ROBOT_SELECTION
from embervlm.words import hashed_words

PLACES, WORD_WIDTH, WIDTH = 64, 8, 12


@pytest.fixture
def head() -> RobotHead:
    torch.manual_seed(0)
    head = RobotHead(WIDTH, PLACES, WORD_WIDTH).eval()
    with torch.no_grad():
        head.rarity.copy_(torch.rand(PLACES) + 0.5)
    return head


def fleet_of(head: RobotHead, robots: int) -> FleetState:
    generator = torch.Generator().manual_seed(1)
    states = torch.randn(robots, WIDTH, generator=generator)
    return FleetState(states, torch.randn(robots, WORD_WIDTH, generator=generator), [], [])


@torch.no_grad()
def test_a_text_s_vector_is_its_weighted_rows(head: RobotHead) -> None:
    hashes = torch.tensor([[3, PLACES + 5, 0], [4_294_967_295, 0, 0], [0, 0, 0]])
    weights = torch.tensor([[1.0, 2.0, 0.0], [1.5, 0.0, 0.0], [0.0, 0.0, 0.0]])
    vectors = head.word_vectors(hashes, weights)
    rows = head.words.weight
    both = torch.stack([head.rarity[3], 2 * head.rarity[5]])
    both = both / both.norm()
    expected = both[0] * rows[3] + both[1] * rows[5]
    torch.testing.assert_close(vectors[0], expected, rtol=1e-5, atol=1e-6)
    # A single word has the length of its row whatever it weighs; a text without words is nothing.
    torch.testing.assert_close(vectors[1], rows[4_294_967_295 % PLACES], rtol=1e-5, atol=1e-6)
    assert not vectors[2].any()
    # A word that tells nothing is as good as not there.
    head.rarity[5] = 0
    torch.testing.assert_close(head.word_vectors(hashes, weights)[0], rows[3], rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_words_are_left_out_in_training_alone(head: RobotHead) -> None:
    hashes = torch.arange(40).repeat(500, 1)
    weights = torch.ones(500, 40)
    head.rarity.fill_(1)
    head.words.weight[:, 0] = 1  # so that a vector's first number says how many words are left
    assert torch.equal(head.word_vectors(hashes, weights), head.word_vectors(hashes, weights))
    torch.testing.assert_close(head.word_vectors(hashes, weights)[:, 0], torch.full((500,), 40**0.5))
    head.train()
    torch.manual_seed(0)
    # n of 40 words of weight 1 / sqrt(n) each add up to sqrt(n).
    left = head.word_vectors(hashes, weights)[:, 0] ** 2
    torch.testing.assert_close(left, left.round(), rtol=0, atol=1e-3)
    assert float(left.mean()) / 40 == pytest.approx(1 - WORD_DROPOUT, abs=0.01)
    assert len(set(left.round().tolist())) > 5


@torch.no_grad()
def test_the_head_adds_its_matches(head: RobotHead) -> None:
    fleet = fleet_of(head, 4)
    state, words = torch.randn(3, WIDTH), torch.randn(3, WORD_WIDTH)
    (leader, member), (leader_by_words, member_by_words) = head.parts(state, words, fleet)
    assert leader.shape == member.shape == leader_by_words.shape == member_by_words.shape == (3, 4)
    whole = head(state, words, fleet)
    assert torch.equal(whole[0], leader + leader_by_words) and torch.equal(whole[1], member + member_by_words)
    # The match by words does not read the state, nor the other one the words.
    other_state = head.parts(torch.randn(3, WIDTH), words, fleet)
    assert torch.equal(other_state[1][0], leader_by_words) and not torch.equal(other_state[0][0], leader)
    other_words = head.parts(state, torch.randn(3, WORD_WIDTH), fleet)
    assert torch.equal(other_words[0][0], leader) and not torch.equal(other_words[1][0], leader_by_words)
    # Both by hand, from queries and keys.
    robots = F.layer_norm(fleet.robot_states, (WIDTH,))
    normed = F.layer_norm(state, (WIDTH,))
    by_state = head.by_state
    expected = by_state.leader_query(normed) @ by_state.leader_key(robots).T / WIDTH**0.5
    torch.testing.assert_close(leader, expected, rtol=1e-5, atol=1e-5)
    described = torch.cat([F.layer_norm(fleet.robot_words, (WORD_WIDTH,)), robots], -1)
    by_words = head.by_words
    expected = by_words.member_query(words) @ by_words.member_key(described).T / WORD_WIDTH**0.5
    torch.testing.assert_close(member_by_words, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_robot_s_logits_do_not_depend_on_the_others(head: RobotHead) -> None:
    fleet = fleet_of(head, 5)
    state, words = torch.randn(2, WIDTH), torch.randn(2, WORD_WIDTH)
    whole = head(state, words, fleet)
    for order in ([4, 2, 0, 1, 3], [3, 1]):
        part = head(state, words, FleetState(fleet.robot_states[order], fleet.robot_words[order], [], []))
        for before, after in zip(whole, part, strict=True):
            torch.testing.assert_close(after, before[:, order], rtol=1e-5, atol=1e-6)


FLEET = Fleet([Robot("Drone", ("flying", "filming")), Robot("Boat", ("towing",)), Robot("Mole", ("digging", "pipes"))])
TASK = "Look into the pipe."


def inputs(tokenizer: Any, *tasks: str) -> dict[str, Tensor]:
    rows = [[*encode(task_pieces(task, False), tokenizer, 4).input_ids, CONTROL_IDS[ROBOT_SELECTION]] for task in tasks]
    longest = max(map(len, rows))
    return {
        "input_ids": torch.tensor([row + [50256] * (longest - len(row)) for row in rows]),
        "selection_index": torch.tensor([len(row) - 1 for row in rows]),
        **hash_tasks([hashed_words(task) for task in tasks]),
    }


@torch.no_grad()
def test_the_words_of_task_and_fleet_reach_the_selection(make_tiny: Callable[..., Any], tokenizer: Any) -> None:
    model, fleet = make_tiny(), encode_fleet_text(FLEET, tokenizer)
    given = inputs(tokenizer, TASK)
    logits = model(**given, **fleet).leader_logits
    other_task = model(**(given | hash_tasks([hashed_words("Tow it.")])), **fleet).leader_logits
    other_fleet = model(**given, **(fleet | {"fleet_weights": fleet["fleet_weights"].flip(1)})).leader_logits
    assert float((logits - other_task).abs().max()) > 1e-4 and float((logits - other_fleet).abs().max()) > 1e-4
    # Until stage 3 has counted words, they say nothing.
    model.robot_head.rarity.zero_()
    assert torch.equal(
        model(**given, **fleet).leader_logits,
        model(**(given | hash_tasks([hashed_words("Tow it.")])), **fleet).leader_logits,
    )


def test_hashed_words_that_are_missing_are_missed(
    make_tiny: Callable[..., Any], tokenizer: Any, one_line: Callable[[BaseException | str], str]
) -> None:
    model, fleet, given = make_tiny(), encode_fleet_text(FLEET, tokenizer), inputs(tokenizer, TASK)
    for name in ("fleet_lengths", "fleet_hashes", "fleet_weights"):
        with pytest.raises(ValueError, match="fleet_hashes and fleet_weights are needed together") as caught:
            model(**given, **{key: value for key, value in fleet.items() if key != name})
        one_line(caught.value)
    for name in ("task_hashes", "task_weights"):
        with pytest.raises(ValueError, match="a selection needs task_hashes and task_weights") as caught:
            model(**{key: value for key, value in given.items() if key != name}, **fleet)
        one_line(caught.value)


@torch.no_grad()
def test_a_selector_s_scores_are_the_model_s(tiny_selector: Any) -> None:
    tasks = [TASK, "Tow the boat to the other bank, please.", "Film it."]
    model, fleet = tiny_selector.model, encode_fleet_text(FLEET, tiny_selector.tokenizer)
    leaders, members = tiny_selector.score(tasks, [None] * 3, FLEET, batch_size=2)
    outputs = model(**inputs(tiny_selector.tokenizer, *tasks), **fleet)
    torch.testing.assert_close(leaders, outputs.leader_logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(members, outputs.member_logits, rtol=1e-4, atol=1e-5)
    for task, row in zip(tasks, outputs.leader_logits, strict=True):
        selection = tiny_selector.select(task, fleet=FLEET, reason=False)
        confidence = dict(zip(FLEET.names, torch.softmax(row, -1).tolist(), strict=True))
        for robot in selection.robots:
            assert robot.confidence == pytest.approx(confidence[robot.robot], abs=1e-5)
