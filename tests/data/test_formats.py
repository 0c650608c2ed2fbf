"""Exact numbers and texts of the readers on real records, and what each of them leaves out and why."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from embervlm.data.files import Pictures
from embervlm.data.formats import coco_captions, llava, vqa_v2
from embervlm.data.formats.record import NO_PICTURE, Ledger, Tally, split_of
from embervlm.data.sample import DataError, Sample, Turn


def _json(path: Path, document: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))
    return path


def _picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    return path


def _read(read: Callable[..., Any], root: Path, *files: Path) -> tuple[list[Sample], Ledger]:
    ledger, pictures = Ledger(), Pictures.of(root)
    samples = [
        Sample(
            id=f"{row.dataset}/{row.id}",
            dataset=row.dataset,
            style=row.style,
            image=None if row.picture == NO_PICTURE else pictures[row.picture],
            turns=tuple(Turn(*turn) for turn in row.turns),
            split=row.split,
        )
        for row in read(files, pictures, ledger)
    ]
    return samples, ledger


def _counts(tally: Tally) -> tuple[int, int, int, int, dict[str, int]]:
    return tally.records, tally.with_answer, tally.with_image, tally.missing_images, dict(tally.rejected)


def test_coco_captions_of_the_fixture(shared: Path) -> None:
    folder = shared / "fixtures/coco_captions"
    samples, ledger = _read(coco_captions.read, folder, folder / "captions_val2017.json")
    assert _counts(ledger["coco_captions"]) == (1566, 1566, 80, 1486, {})
    assert samples[0] == Sample(
        id="coco_captions/11734",
        dataset="coco_captions",
        style="caption",
        image=(folder / "val2017/000000249025.jpg").resolve(),
        turns=(Turn("", "An orange reddish rose in a vase filled with water on top of a table."),),
        split="validation",
    )
    assert len({sample.image for sample in samples}) == 16
    samples, ledger = _read(coco_captions.read, folder, folder / "captions_train2017.json")
    assert _counts(ledger["coco_captions"]) == (400, 400, 70, 330, {})
    assert (len({sample.image for sample in samples}), {sample.split for sample in samples}) == (14, {"train"})


def test_coco_captions_left_out(tmp_path: Path) -> None:
    _picture(tmp_path / "images/a.jpg")
    file = _json(
        tmp_path / "captions.json",
        {
            "annotations": [
                {"id": 1, "image_id": "x", "caption": "  A\n cat. "},
                {"id": 2, "image_id": "x", "caption": " "},
                {"id": 3, "image_id": "x", "caption": None},
                {"id": 4, "image_id": "y", "caption": "A dog."},
                {"id": 5, "image_id": ["x"], "caption": "A dog."},
                {"image_id": "x", "caption": "A dog."},
                {"id": 7, "image_id": "z", "caption": "A dog."},
                {"id": 8, "image_id": "x", "caption": "half \ud800 a pair"},
                {"id": 9, "image_id": "x", "caption": "a" * 50_001},
            ],
            "images": [{"id": "x", "file_name": "a.jpg"}, {"id": "z", "file_name": "b.jpg"}],
        },
    )
    samples, ledger = _read(coco_captions.read, tmp_path, file)
    assert [(sample.id, sample.turns) for sample in samples] == [("coco_captions/1", (Turn("", "A cat."),))]
    assert _counts(ledger["coco_captions"]) == (
        9,
        4,
        1,
        1,
        {
            "empty caption": 3,
            "image_id is not among the file's images": 2,
            "no caption, id or image_id": 1,
            "text longer than 50,000 characters": 1,
        },
    )
    assert ledger["coco_captions"].first_missing == "b.jpg"


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"images": [], "annotations": {}}, "'annotations' must be a list, found {}"),
        ({"info": 1, "annotations": []}, "no list 'images' in the object; found annotations, info"),
        ({"images": [{"file_name": "a.jpg"}], "annotations": []}, "images[0]: expected 'id' and 'file_name'"),
        ({"images": [{"id": 1, "file_name": "a"}] * 2, "annotations": []}, "images[1]: id 1 occurs twice"),
        (
            {"images": [], "annotations": [{"id": 5, "image_id": 1, "caption": "c"}] * 2},
            "annotations[1]: id occurs twice",
        ),
        (
            {"images": [{"id": 1, "file_name": "../a.jpg"}], "annotations": [{"id": 5, "image_id": 1, "caption": "c"}]},
            "annotations[0]: picture '../a.jpg' leaves the data folder",
        ),
        (
            {"images": [{"id": 1, "file_name": "/a.jpg"}], "annotations": [{"id": 5, "image_id": 1, "caption": "c"}]},
            "annotations[0]: picture '/a.jpg' is an absolute path",
        ),
    ],
)
def test_coco_captions_refused(tmp_path: Path, document: Any, message: str) -> None:
    file = _json(tmp_path / "c.json", document)
    with pytest.raises(DataError) as error:
        _read(coco_captions.read, tmp_path, file)
    assert str(error.value).startswith(f"{file}: {message}")


def test_vqa_of_the_fixture(shared: Path) -> None:
    folder = shared / "fixtures/vqav2"
    samples, ledger = _read(vqa_v2.read, folder, *sorted(folder.glob("*.json")))
    assert _counts(ledger["vqa_v2"]) == (700, 700, 61, 639, {})
    assert ledger["vqa_v2"].first_missing == "COCO_train2014_000000000984.jpg"
    assert samples[0] == Sample(
        id="vqa_v2/25885000",
        dataset="vqa_v2",
        style="short_answer",
        image=(folder / "train2014/COCO_train2014_000000025885.jpg").resolve(),
        turns=(Turn("How many directions can you drive on the street?", "1"),),
        split="train",
    )
    assert len({sample.image for sample in samples}) == 14


def test_vqa_takes_the_majority_where_no_answer_is_chosen(shared: Path) -> None:
    folder = shared / "fixtures/vqav2/allennlp_fixture"
    samples, ledger = _read(vqa_v2.read, folder, *sorted(folder.glob("*.json")))
    assert [(sample.id, sample.turns[0]) for sample in samples] == [
        ("vqa_v2/458752000", Turn("What is this photo taken looking through?", "net")),
        ("vqa_v2/458752001", Turn("What position is this man playing?", "pitcher")),
        ("vqa_v2/458752002", Turn("What color is the players shirt?", "orange")),
    ]
    assert _counts(ledger["vqa_v2"]) == (3, 3, 3, 0, {})


def test_ok_vqa_is_told_by_its_answers(shared: Path) -> None:
    folder = shared / "fixtures/okvqa"
    samples, ledger = _read(vqa_v2.read, folder, *sorted(folder.glob("*.json")))
    assert set(ledger) == {"ok_vqa"} and samples == []
    assert _counts(ledger["ok_vqa"]) == (406, 2, 0, 2, {"question without annotation": 404})


def test_question_files_find_their_answers_by_content(tmp_path: Path, shared: Path) -> None:
    # The same ids in a second pair of files, other answers, all in one folder under names that say nothing.
    for image in (1, 2, 3):
        _picture(tmp_path / f"train2014/COCO_train2014_{image:012d}.jpg")
    one = [{"question_id": n, "image_id": n, "question": f"What is {n}?"} for n in (1, 2)]
    two = [{"question_id": n, "image_id": n, "question": f"Why {n}?"} for n in (2, 3)]
    answers = [{"question_id": n, "image_id": n, "multiple_choice_answer": f"thing {n}", "answers": []} for n in (1, 2)]
    reasons = [{"question_id": n, "answers": [{"answer": f"reason {n}", "answer_id": 1}]} for n in (2, 3)]
    files = [
        _json(tmp_path / "a.json", {"data_subtype": "train2014", "questions": two}),
        _json(tmp_path / "b.json", {"annotations": answers}),
        _json(tmp_path / "c.json", {"data_subtype": "train2014", "questions": one}),
        _json(tmp_path / "d.json", {"annotations": reasons}),
        _json(tmp_path / "e_test.json", {"questions": [{"question_id": 9, "image_id": 1, "question": "Who?"}]}),
        _json(
            tmp_path / "f.json", {"annotations": [{"question_id": 77, "answers": [{"answer": "x", "answer_id": 1}]}]}
        ),
    ]
    samples, ledger = _read(vqa_v2.read, tmp_path, *files)
    assert [sample.turns[0] for sample in samples] == [
        Turn("Why 2?", "reason 2"),
        Turn("Why 3?", "reason 3"),
        Turn("What is 1?", "thing 1"),
        Turn("What is 2?", "thing 2"),
    ]
    assert ledger["vqa_v2"].notes == [
        f"{tmp_path}/f.json: annotations passed over, no question file belongs to them",
        f"{tmp_path}/e_test.json: 1 questions passed over, no annotation file answers them",
    ]


def test_vqa_left_out(tmp_path: Path) -> None:
    _picture(tmp_path / "x/000000000001.jpg")
    questions = [
        {"question_id": 1, "image_id": "1", "question": "tie?"},
        {"question_id": 2, "image_id": 1, "question": " "},
        {"question_id": 3, "image_id": 1, "question": "no annotation?"},
        {"question_id": 4, "image_id": 1, "question": "no answer?"},
        {"question_id": 5, "image_id": 1, "question": "another picture?"},
        {"question_id": 6, "image_id": "../1", "question": "no number?"},
        {"question_id": None, "image_id": 1, "question": "no id?"},
    ]
    annotations = [
        {"question_id": 1, "multiple_choice_answer": " ", "answers": ["b", "a", "a", "b", "", None]},
        {"question_id": 2, "answers": ["a"]},
        {"question_id": 4, "answers": [{"answer": " ", "answer_id": 1}]},
        {"question_id": 5, "image_id": 2, "answers": ["a"]},
        {"question_id": 6, "answers": ["a"]},
    ]
    question_file = _json(tmp_path / "q_val.json", {"questions": questions, "data_subtype": "../../etc"})
    samples, ledger = _read(
        vqa_v2.read, tmp_path, question_file, _json(tmp_path / "a.json", {"annotations": annotations})
    )
    assert [(sample.turns[0].answer, sample.split) for sample in samples] == [("b", "validation")]
    assert _counts(ledger["vqa_v2"]) == (
        7,
        3,
        1,
        0,
        {
            "empty question": 1,
            "question without annotation": 1,
            "annotation without answer": 1,
            "question and annotation name different pictures": 1,
            "image_id is no number": 1,
            "no question or question_id": 1,
        },
    )


def test_vqa_duplicate_ids_are_refused(tmp_path: Path) -> None:
    question = {"question_id": 1, "image_id": 1, "question": "?a"}
    annotation = {"question_id": 1, "answers": ["a"]}
    once = _json(tmp_path / "a.json", {"annotations": [annotation]})
    twice = _json(tmp_path / "b.json", {"annotations": [annotation] * 2})
    questions = _json(tmp_path / "q.json", {"questions": [question] * 2})
    with pytest.raises(DataError, match=r"q\.json: questions\[1\]: question_id occurs twice"):
        _read(vqa_v2.read, tmp_path, questions, once)
    with pytest.raises(DataError, match=r"b\.json: annotations\[1\]: question_id occurs twice"):
        _read(vqa_v2.read, tmp_path, twice, questions)


def test_llava_of_the_fixture_has_all_turns(shared: Path, tmp_path: Path) -> None:
    for name in ("000000033471", "000000052846"):
        _picture(tmp_path / f"{name}.jpg")
    file = shared / "fixtures/llava/llava_instruct_150k.json"
    samples, ledger = _read(llava.read, tmp_path, file)
    assert _counts(ledger["llava"]) == (2, 2, 2, 0, {})
    assert samples[0] == Sample(
        id="llava/llava_instruct_150k.json[0]",
        dataset="llava",
        style="chat",
        image=(tmp_path / "000000033471.jpg").resolve(),
        turns=(
            Turn("What are the colors of the bus in the image?", "The bus in the image is white and red."),
            Turn("What feature can be seen on the back of the bus?", "The back of the bus features an advertisement."),
            Turn(
                "Is the bus driving down the street or pulled off to the side?",
                "The bus is driving down the street, which is crowded with people and other vehicles.",
            ),
        ),
        split="train",
    )
    assert len(samples[1].turns) == 5
    assert samples[1].turns[0].question == "Where is the cat positioned in the image?"
    _, ledger = _read(llava.read, file.parent, file)
    assert _counts(ledger["llava"]) == (2, 2, 0, 2, {})


def _chat(*values: str, roles: str = "hg", **keys: Any) -> dict[str, Any]:
    names = {"h": "human", "g": "gpt", "s": "system"}
    turns = [{"from": names[role], "value": value} for role, value in zip(roles * 9, values, strict=False)]
    return {"conversations": turns, **keys}


def test_llava_forms(tmp_path: Path) -> None:
    _picture(tmp_path / "coco/train2017/000000000001.jpg")
    records = [
        _chat("Hello,\n\nwho?", "  A text.\n"),
        _chat("<image>\nWhat?", "Cat.", image="coco/train2017/000000000001.jpg"),
        _chat("What? <image>", "Cat.", "And?", "Dog.", image="000000000001.jpg"),
        _chat("What?", "Cat.", image="000000000001.jpg"),
        _chat("What?", "Cat.", image="coco/train2017/000000000002.jpg"),
        _chat("<image>\nWhat?", "Cat."),
        _chat("<image>", "Cat.", image="000000000001.jpg"),
        _chat("In <image> what?", "Cat.", image="000000000001.jpg"),
        _chat("<image>\n<image>\nWhat?", "Cat.", image="000000000001.jpg"),
        _chat("Hi", "Ho", "<image> What?", "Cat.", image="000000000001.jpg"),
        _chat("What?", "Cat.", "And?", roles="hgh"),
        _chat("What?", "Who?", roles="hh"),
        _chat("Cat.", "What?", roles="gh"),
        _chat("Be nice.", "What?", roles="sh"),
        _chat("What?", " "),
        _chat("What?", "Cat.", image=["a.jpg", "b.jpg"]),
        {"conversations": []},
        {"conversations": ["a", "b"]},
        "no record",
    ]
    samples, ledger = _read(llava.read, tmp_path, _json(tmp_path / "mix.json", records))
    picture = (tmp_path / "coco/train2017/000000000001.jpg").resolve()
    assert [(sample.id, sample.image, sample.turns) for sample in samples] == [
        ("llava/mix.json[0]", None, (Turn("Hello,\n\nwho?", "A text."),)),
        ("llava/mix.json[1]", picture, (Turn("What?", "Cat."),)),
        ("llava/mix.json[2]", picture, (Turn("What?", "Cat."), Turn("And?", "Dog."))),
        ("llava/mix.json[3]", picture, (Turn("What?", "Cat."),)),
    ]
    assert _counts(ledger["llava"]) == (
        19,
        6,
        3,
        1,
        {
            "<image> in the text, but no picture is named": 1,
            "empty text": 2,
            "<image> elsewhere than first or last in the first question": 3,
            "the last question has no answer": 1,
            "roles do not alternate between human and gpt": 3,
            "more than one picture": 1,
            "no turns, or more than 200": 1,
            "a turn is no object": 1,
            "no list of conversations": 1,
        },
    )


def test_llava_refuses_names_that_leave_the_folder(tmp_path: Path) -> None:
    file = _json(tmp_path / "mix.json", [_chat("a", "b"), _chat("a", "b", image="../../x.jpg")])
    with pytest.raises(DataError) as error:
        _read(llava.read, tmp_path, file)
    assert str(error.value).startswith(f"{file}: record 1: picture '../../x.jpg' leaves the data folder")


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("captions_val2017", "validation"),
        ("captions_train2017", "train"),
        ("v2_OpenEnded_mscoco_test-dev2015_questions", "validation"),
        ("testdev_balanced", "validation"),
        ("llava-validation", "validation"),
        ("minival", "validation"),
        ("latest", "train"),
        ("evaluations_valley", "train"),
        ("contest_2", "train"),
    ],
)
def test_split_by_name(name: str, split: str) -> None:
    assert split_of(name) == split
