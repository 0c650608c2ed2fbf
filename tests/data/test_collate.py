"""Long samples: a conversation is cut to the positions, a robot task is not, so that its check can refuse it."""

from __future__ import annotations

from typing import Any

from embervlm.data.collate import ConversationDataset, RobotTaskDataset
from embervlm.data.sample import RobotSample, Sample, Turn
from embervlm.fleet import Fleet
from embervlm.tokens import CONTROL_IDS, ROBOT_SELECTION


def test_a_conversation_is_cut_and_a_robot_task_keeps_its_selection(tiny_selector: Any) -> None:
    processor = tiny_selector.processor
    positions = processor.tokenizer.model_max_length
    chat = Sample("chat/1", "llava", "chat", None, (Turn("Why?", "because " * 3000),))
    cut = ConversationDataset([chat], processor, augment=False, seed=0).encoded(0)
    assert len(cut.input_ids) == len(cut.labels) == positions and cut.supervised_tokens > 0

    task = RobotSample("robots[0]", "検" * 1800, ("Drone",), ("Drone",))
    whole = RobotTaskDataset([task], processor, Fleet.default(), augment=False, seed=0)
    assert len(whole.encoded(0).input_ids) > positions
    example = whole[0]
    assert example.selection_index is not None
    assert example.encoded.input_ids[example.selection_index] == CONTROL_IDS[ROBOT_SELECTION]
