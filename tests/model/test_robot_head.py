"""The robot head: its three matches and their sum, words weighed by kind, and that the ways to a selection agree."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from embervlm.data.collate import encode_fleet_text, task_rows
from embervlm.fleet import Fleet, Robot
from embervlm.model import EmberVLMConfig
from embervlm.model.modeling_embervlm import LEAST_KNOWN, FleetState, RobotHead
from embervlm.model.weights import load_model
from embervlm.prompts import encode, encode_task, task_pieces
from embervlm.selection import RobotSelector
from embervlm.tokens import CONTROL_IDS, ROBOT_SELECTION
from embervlm.words import MOST_COUNTED, hashed_words, padded

PLACES, WORD_WIDTH, WIDTH, MEANING_WIDTH = 64, 8, 12, 32
CONFIG = EmberVLMConfig(
    text_config={"n_embd": WIDTH, "n_head": 2, "n_layer": 1},
    text_encoder_width=MEANING_WIDTH,
    text_encoder_layers=2,
    text_encoder_taught=True,
    word_places=PLACES,
    word_width=WORD_WIDTH,
)


@pytest.fixture
def head() -> RobotHead:
    torch.manual_seed(0)
    head = RobotHead(CONFIG).eval()
    match = head.by_words
    match.rarity.copy_(torch.rand(PLACES) + 0.5)
    for numbers in (match.table, match.leader_key, match.member_key):
        numbers.normal_()
    match.known_key[:, -1] = 1.0
    return head


def fleet_of(robots: int) -> FleetState:
    lots = torch.Generator().manual_seed(1)
    states, meanings = (torch.randn(robots, width, generator=lots) for width in (WIDTH, MEANING_WIDTH))
    return FleetState(states, meanings, [], [])


@torch.no_grad()
def test_a_text_s_vector_is_its_rows_weighed_by_kind(head: RobotHead) -> None:
    match = head.by_words
    # Two words and one part of a word; one word; one part; nothing.
    hashes = torch.tensor([[4, PLACES + 6, 3], [4_294_967_294, 0, 0], [5, 0, 0], [0, 0, 0]])
    weights = torch.tensor([[1.0, 2.0, 7.0], [1.5, 0.0, 0.0], [0.1, 0.0, 0.0], [0.0, 0.0, 0.0]])
    vectors = match.vectors(hashes, weights)
    words = torch.stack([match.rarity[4], 2 * match.rarity[6]])
    words = words / words.norm()
    # Each kind has half of the square of the length, however many there are of it and whatever they weigh.
    half = 0.5**0.5
    expected = half * (words[0] * match.table[4] + words[1] * match.table[6] + match.table[3])
    torch.testing.assert_close(vectors[0], expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(vectors[1], half * match.table[4_294_967_294 % PLACES], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(vectors[2], half * match.table[5], rtol=1e-5, atol=1e-6)
    assert not vectors[3].any()
    # A word that tells nothing is as good as not there.
    match.rarity[6] = 0
    expected = half * (match.table[4] + match.table[3])
    torch.testing.assert_close(match.vectors(hashes, weights)[0], expected, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_the_head_adds_its_matches(head: RobotHead) -> None:
    fleet = fleet_of(4)
    state, meanings, words = (torch.randn(3, width) for width in (WIDTH, MEANING_WIDTH, WORD_WIDTH))
    leader, member = head.match_state(state, fleet)
    leader_by_meaning, member_by_meaning = head.match_meaning(meanings, fleet)
    leader_by_words, member_by_words = head.match_words(words, fleet)
    whole = head(state, meanings, words, fleet)
    torch.testing.assert_close(whole[0], leader + leader_by_meaning + leader_by_words)
    torch.testing.assert_close(whole[1], member + member_by_meaning + member_by_words)
    assert whole[0].shape == leader.shape == leader_by_meaning.shape == leader_by_words.shape == (3, 4)
    # Each by hand, from queries and keys.
    by_meaning = head.by_meaning
    expected = by_meaning.leader_query(meanings) @ by_meaning.leader_key(fleet.robot_meanings).T / MEANING_WIDTH**0.5
    torch.testing.assert_close(leader_by_meaning, expected, rtol=1e-5, atol=1e-5)
    robots = F.layer_norm(fleet.robot_states, (WIDTH,))
    normed = F.layer_norm(state, (WIDTH,))
    by_state = head.by_state
    expected = by_state.leader_query(normed) @ by_state.leader_key(robots).T / WIDTH**0.5
    torch.testing.assert_close(leader, expected, rtol=1e-5, atol=1e-5)
    key = head.by_words.member_key
    described = robots @ key[:, :-1].T + key[:, -1]  # (4, word width + 1)
    expected = words @ described[:, :-1].T + described[:, -1]
    torch.testing.assert_close(member_by_words, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_words_say_nothing_of_strangers(head: RobotHead) -> None:
    fleet, words, match = fleet_of(3), torch.randn(2, WORD_WIDTH), head.by_words
    everybody = head.match_words(words, fleet)
    # As like as 2, as the least, and half way from there to 1.
    robots = F.layer_norm(fleet.robot_states, (WIDTH,))
    half = (1 + LEAST_KNOWN) / 2
    match.known_key[0, :-1] = torch.linalg.pinv(robots) @ torch.tensor([2.0, LEAST_KNOWN, half])
    match.known_key[0, -1] = 0
    for some, all_known in zip(head.match_words(words, fleet), everybody, strict=True):
        torch.testing.assert_close(some, all_known * torch.tensor([1.0, 0.0, 0.5]), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_words_say_nothing_until_they_are_fitted() -> None:
    torch.manual_seed(0)
    head, fleet, state = RobotHead(CONFIG).eval(), fleet_of(3), torch.randn(2, WIDTH)
    words = head.by_words.vectors(torch.tensor([[4, 3], [6, 1]]), torch.ones(2, 2))
    meanings = torch.randn(2, MEANING_WIDTH)
    others = zip(head.match_state(state, fleet), head.match_meaning(meanings, fleet), strict=True)
    for whole, (by_state, by_meaning) in zip(head(state, meanings, words, fleet), others, strict=True):
        assert torch.equal(whole, by_state + by_meaning)


@torch.no_grad()
def test_meanings_say_nothing_until_they_are_taught(head: RobotHead) -> None:
    head.config = copy.copy(CONFIG)
    fleet, meanings = fleet_of(3), torch.randn(2, MEANING_WIDTH)
    for taught in (True, False):
        head.config.text_encoder_taught = taught
        assert [bool(each.any()) for each in head.match_meaning(meanings, fleet)] == [taught] * 2
        read = head.meanings(torch.randn(2, 5, WIDTH), torch.tensor([5, 3]))
        assert read.shape == (2, MEANING_WIDTH) and bool(read.any()) == taught


@torch.no_grad()
def test_a_robot_s_logits_do_not_depend_on_the_others(head: RobotHead) -> None:
    fleet = fleet_of(5)
    given = [torch.randn(2, width) for width in (WIDTH, MEANING_WIDTH, WORD_WIDTH)]
    whole = head(*given, fleet)
    for order in ([4, 2, 0, 1, 3], [3, 1]):
        part = head(*given, FleetState(fleet.robot_states[order], fleet.robot_meanings[order], [], []))
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
        **task_rows([encode_task(task, tokenizer) for task in tasks]),
    }


def test_a_selection_s_tasks_that_are_missing_are_missed(
    make_tiny: Callable[..., Any], tokenizer: Any, one_line: Callable[[BaseException | str], str]
) -> None:
    given = inputs(tokenizer, TASK)
    del given["task_lengths"]
    with pytest.raises(ValueError, match="selection_index needs task_input_ids and task_lengths") as caught:
        make_tiny()(**given, **encode_fleet_text(FLEET, tokenizer))
    one_line(caught.value)


def test_a_fleet_s_lengths_that_are_missing_are_missed(
    make_tiny: Callable[..., Any], tokenizer: Any, one_line: Callable[[BaseException | str], str]
) -> None:
    model, fleet, given = make_tiny(), encode_fleet_text(FLEET, tokenizer), inputs(tokenizer, TASK)
    with pytest.raises(ValueError, match="fleet_input_ids and fleet_lengths are needed together") as caught:
        model(**given, fleet_input_ids=fleet["fleet_input_ids"])
    one_line(caught.value)


@torch.no_grad()
def test_a_selector_s_scores_are_the_model_s_and_those_of_words(tiny_selector: Any) -> None:
    tasks = [TASK, "Tow the boat to the other bank, please.", "Film it."]
    model, fleet = tiny_selector.model, encode_fleet_text(FLEET, tiny_selector.tokenizer)
    scores = tiny_selector.score_clauses(tasks, [None] * 3, FLEET, batch_size=2)
    by_clause = scores.by_clause
    leaders, members = map(torch.from_numpy, scores[:2])
    outputs = model(**inputs(tiny_selector.tokenizer, *tasks), **fleet)
    hashes, weights = map(torch.from_numpy, padded([hashed_words(task) for task in tasks]))
    match = model.robot_head.by_words
    vectors = match.vectors(hashes, weights)
    words = model.robot_head.match_words(vectors, model.encode_fleet(**fleet))
    torch.testing.assert_close(torch.from_numpy(scores.counts), match.counts(vectors), rtol=1e-4, atol=1e-5)
    assert scores.counts.shape == (3, MOST_COUNTED) and float(scores.counts.std()) > 1e-2
    torch.testing.assert_close(leaders, outputs.leader_logits + words[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(members, outputs.member_logits + words[1], rtol=1e-4, atol=1e-5)
    assert float(words[0].std()) > 1e-3
    # A task of one clause is its clause; those of two are asked about each.
    assert [each.shape for each in by_clause] == [(1, 3), (1, 3), (1, 3)]
    assert torch.equal(torch.from_numpy(by_clause[0][0]), members[0])
    for task, row in zip(tasks, leaders, strict=True):
        selection = tiny_selector.select(task, fleet=FLEET, reason=False)
        confidence = dict(zip(FLEET.names, torch.softmax(row, -1).tolist(), strict=True))
        for robot in selection.robots:
            assert robot.confidence == pytest.approx(confidence[robot.robot], abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_in_half_precision_answer_too(dtype: torch.dtype, tiny_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_folder, tmp_path / "half")
    load_model(tiny_folder).to(dtype).save_pretrained(tmp_path / "half")
    (tmp_path / "half" / "manifest.json").unlink()
    selector = RobotSelector.from_pretrained(tmp_path / "half")
    assert selector.model.dtype == dtype
    picture = Image.new("RGB", (40, 30), (200, 40, 40))
    selection = selector.select("Film the roof of the hall, then fetch the ladder from the shed.", picture)
    assert sum(robot.confidence for robot in selection.robots) == pytest.approx(1)


def test_clauses_are_scored_as_tasks_are(tiny_selector: Any) -> None:
    parts = ["Film the roof of the hall", "then fetch the ladder from the shed", "tow the boat to the quay"]
    task = f"{parts[0]}, {parts[1]}, {parts[2]}."
    alone = tiny_selector.score([*parts[:2], f"{parts[2]}."], [None] * 3, FLEET)[1]
    (by_clause,) = tiny_selector.score_clauses([task], [None], FLEET).by_clause
    np.testing.assert_allclose(by_clause, alone, rtol=1e-4, atol=1e-5)
