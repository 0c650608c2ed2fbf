"""The order of training samples: a permutation by length, the same for any number of workers and processes.

Run as a script by torchrun, this file is one of two processes that write down what they draw.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerate import skip_first_batches
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader

from embervlm.data.collate import ConversationDataset
from embervlm.data.order import BUCKET, WINDOW, EpochSampler, epoch_order, text_lengths
from embervlm.data.sample import Sample, Turn
from embervlm.model import EmberVLMProcessor
from embervlm.model.weights import load_model
from embervlm.tokens import END_OF_TEXT_ID
from embervlm.training.arguments import RunSettings
from embervlm.training.engine import training_arguments
from embervlm.training.stage1_align import Stage1Trainer

LENGTHS = np.random.default_rng(5).integers(4, 800, 10_007).astype(np.int32)
GROUP = 32

#: Texts of many lengths: 21 of them, so that no batch size of these tests divides them.
TEXTS = [Sample(f"text/{n}", "texts", "chat", None, (Turn(f"Number {n}?", "so " * (n * 7 % 40)),)) for n in range(21)]
MICRO_BATCH = 4
STEPS_AN_EPOCH = 6
SAVED_AT = 8  # in the second epoch, after two of its six steps


class Recording(Stage1Trainer):
    """Writes down which texts each batch of training holds, and in which epoch."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.drawn: list[list[Any]] = []
        ids = [self.train_dataset.encoded(place).input_ids for place in range(len(TEXTS))]
        self.places = {_without_padding(row): place for place, row in enumerate(ids)}

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        places = [self.places[_without_padding(row)] for row in inputs["input_ids"].tolist()]
        self.drawn.append([self.train_dataset.epoch, places])
        return super().compute_loss(model, inputs, *args, **kwargs)


def _without_padding(ids: list[int]) -> tuple[int, ...]:
    while ids[-1] == END_OF_TEXT_ID:
        ids = ids[:-1]
    return tuple(ids)


def draw(folder: Path, output: Path, batch_size: int, num_workers: int, resume: bool = False) -> list[list[Any]]:
    """Train two epochs of ``TEXTS`` with the tiny model in ``folder``, and say what was drawn."""
    settings = RunSettings(
        output, batch_size=batch_size, num_workers=num_workers, stage1_epochs=2, save_steps=SAVED_AT, seed=3
    )
    model = load_model(folder)
    dataset = ConversationDataset(TEXTS, EmberVLMProcessor.for_config(model.config), augment=True, seed=3)
    processor = EmberVLMProcessor.for_config(model.config)
    trainer = Recording(model, training_arguments(settings, 1, output), dataset, processing_class=processor)
    trainer.train(resume_from_checkpoint=str(output / f"checkpoint-{SAVED_AT}") if resume else None)
    return trainer.drawn


def _spread(order: np.ndarray, group: int) -> int:
    """Bytes of a whole epoch when each group is padded to its longest."""
    whole = len(order) - len(order) % group
    return int((LENGTHS[order[:whole]].reshape(-1, group).max(1) * group).sum())


def test_the_order_is_a_permutation_and_a_function_of_seed_and_epoch() -> None:
    order = epoch_order(LENGTHS, seed=1, epoch=2, group=GROUP)
    assert sorted(order.tolist()) == list(range(10_007))
    assert (epoch_order(LENGTHS, seed=1, epoch=2, group=GROUP) == order).all()
    for other in (
        epoch_order(LENGTHS, seed=1, epoch=3, group=GROUP),
        epoch_order(LENGTHS, seed=2, epoch=2, group=GROUP),
        epoch_order(LENGTHS, seed=2, epoch=1, group=GROUP),
    ):
        # As far apart as two random orders: about one place of ten thousand agrees.
        assert (order != other).mean() > 0.99
    lengths = np.array([720, 80, 400, 80, 720, 400, 80, 400, 720, 80], dtype=np.int32)
    assert epoch_order(lengths, seed=0, epoch=0, group=3).tolist() == [6, 3, 9, 4, 0, 8, 2, 7, 5, 1]
    assert epoch_order(10, seed=0, epoch=0, group=3).tolist() == [4, 6, 2, 7, 3, 5, 9, 0, 8, 1]


def test_groups_hold_similar_lengths_and_what_fills_none_comes_last() -> None:
    order = epoch_order(LENGTHS, seed=1, epoch=0, group=GROUP)
    grouped = LENGTHS[order[: 10_007 - 10_007 % GROUP]].reshape(-1, GROUP)
    for start in range(0, len(grouped), WINDOW):
        window = grouped[start : start + WINDOW] // BUCKET
        window = window[np.lexsort((window.max(1), window.min(1)))]
        assert (window[:-1].max(1) <= window[1:].min(1)).all()
    shuffled = epoch_order(10_007, seed=1, epoch=0, group=GROUP)
    assert order[-(10_007 % GROUP) :].tolist() == shuffled[-(10_007 % GROUP) :].tolist()
    # Padded to the longest of 32, uniform lengths take 93% more; those of a group 15%.
    assert (LENGTHS.sum(), _spread(shuffled, GROUP), _spread(order, GROUP)) == (4_018_662, 7_771_104, 4_633_056)
    # The groups themselves do not go from short to long.
    assert abs(np.corrcoef(np.arange(len(grouped)), grouped.mean(1))[0, 1]) < 0.2


def test_equal_lengths_meet_others_in_every_epoch() -> None:
    lengths = np.full(640, 100, dtype=np.int32)
    epochs = [epoch_order(lengths, seed=0, epoch=epoch, group=64).reshape(-1, 64) for epoch in range(2)]
    together = max(len(set(a.tolist()) & set(b.tolist())) for a in epochs[0] for b in epochs[1])
    assert together < 20


def test_lengths_are_bytes_of_text_and_indexed_samples_bring_theirs(tiny_selector: Any) -> None:
    samples = [
        Sample("a", "set", "chat", None, (Turn("Was?", "Grün."), Turn("検", ""))),
        Sample("b", "set", "caption", None, (Turn("", "A cat."),)),
    ]
    assert text_lengths(samples).tolist() == [4 + 6 + 3, 6]
    dataset = ConversationDataset(samples, tiny_selector.processor, augment=True, seed=0)
    assert (dataset.lengths.tolist(), dataset.lengths.dtype) == ([13, 6], np.int32)

    class Indexed(list[Sample]):
        lengths = np.array([7, 8], dtype=np.int32)

    indexed = Indexed(samples)
    assert ConversationDataset(indexed, tiny_selector.processor, augment=True, seed=0).lengths is indexed.lengths


def test_the_last_group_is_filled_up_with_the_first() -> None:
    sampler = EpochSampler(LENGTHS[:21], seed=0, group=4)
    order = epoch_order(LENGTHS[:21], seed=0, epoch=0, group=4).tolist()
    assert len(sampler) == 24 and list(sampler) == order + order[:3]
    sampler.set_epoch(1)
    again = epoch_order(LENGTHS[:21], seed=0, epoch=1, group=4).tolist()
    assert list(sampler) == list(sampler) == again + again[:3]
    few = list(EpochSampler(3, seed=0, group=8))
    assert len(few) == 8 and few[:3] * 2 == few[:6] and few[6:] == few[:2] and sorted(few[:3]) == [0, 1, 2]
    assert list(EpochSampler(0, seed=0, group=8)) == []


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_two_processes_split_each_micro_batch_of_one(workers: int) -> None:
    def loader(batch_size: int, processes: int, index: int) -> Any:
        sampler = EpochSampler(LENGTHS[:203], seed=0, group=16)
        plain = DataLoader(
            range(203),  # type: ignore[arg-type]
            batch_size=batch_size,
            sampler=sampler,
            num_workers=workers,
            collate_fn=list,
        )
        return prepare_data_loader(plain, num_processes=processes, process_index=index, put_on_device=False)

    alone = list(loader(16, 1, 0))
    first, second = list(loader(8, 2, 0)), list(loader(8, 2, 1))
    assert len(alone) == len(first) == len(second) == len(loader(8, 2, 0)) == 13
    assert [a + b for a, b in zip(first, second, strict=True)] == alone
    assert list(skip_first_batches(loader(8, 2, 1), 5)) == second[5:]


@pytest.fixture(scope="module")
def alone(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[Any]]]:
    """One process without workers: its folder with checkpoints, and what it drew."""
    output = tmp_path_factory.mktemp("alone")
    return output, draw(tiny_folder, output, MICRO_BATCH, 0)


def test_the_trainer_draws_in_the_order(alone: tuple[Path, list[list[Any]]]) -> None:
    expected = []
    for epoch in range(2):
        order = epoch_order(text_lengths(TEXTS), seed=3, epoch=epoch, group=MICRO_BATCH).tolist()
        order += order[:3]
        expected += [[epoch, order[start : start + MICRO_BATCH]] for start in range(0, 24, MICRO_BATCH)]
    assert alone[1] == expected and len(expected) == 2 * STEPS_AN_EPOCH


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_do_not_change_what_is_drawn(
    workers: int, alone: tuple[Path, list[list[Any]]], tiny_folder: Path, tmp_path: Path
) -> None:
    assert draw(tiny_folder, tmp_path, MICRO_BATCH, workers) == alone[1]


def test_a_resumed_run_goes_on_with_the_very_next_samples(
    alone: tuple[Path, list[list[Any]]], tiny_folder: Path
) -> None:
    assert draw(tiny_folder, alone[0], MICRO_BATCH, 0, resume=True) == alone[1][SAVED_AT:]


def test_two_processes_draw_and_resume_as_one_does(
    alone: tuple[Path, list[list[Any]]], tiny_folder: Path, tmp_path: Path
) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    done = subprocess.run([*launcher, __file__, str(tiny_folder), str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    for part, expected in (("whole", alone[1]), ("resumed", alone[1][SAVED_AT:])):
        first, second = ranks[0][part], ranks[1][part]
        assert [[epoch, mine + other] for (epoch, mine), (_, other) in zip(first, second, strict=True)] == expected
        assert [epoch for epoch, _ in second] == [epoch for epoch, _ in expected]


if __name__ == "__main__":
    model_folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    found = {
        "whole": draw(model_folder, out / "run", MICRO_BATCH // 2, 0),
        "resumed": draw(model_folder, out / "run", MICRO_BATCH // 2, 0, resume=True),
    }
    (out / f"rank{os.environ['RANK']}.json").write_text(json.dumps(found))
