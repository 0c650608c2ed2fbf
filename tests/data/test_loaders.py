"""Stages 1 and 2 from a folder: totals, the split by picture, caps, and what is said about data that cannot be used."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from embervlm.data.loaders import Caps, LoadedData, SourceReport, load_base
from embervlm.data.sample import DataError, Sample, image_key


def _json(path: Path, document: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))
    return path


def _pictures(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"")


def _captions(
    root: Path, name: str, split_folder: str, ids: list[int], pattern: str = "{:012d}.jpg", each: int = 1
) -> None:
    """A caption file about the pictures ``ids``, which are put beside it; caption ids are 100 * picture + number."""
    _pictures(root / split_folder, *(pattern.format(n) for n in ids))
    _json(
        root / name,
        {
            "images": [{"id": n, "file_name": pattern.format(n)} for n in ids],
            "annotations": [
                {"id": 100 * n + k, "image_id": n, "caption": f"Caption {k} of {n}."} for n in ids for k in range(each)
            ],
        },
    )


def _questions(root: Path, subtype: str, ids: list[int]) -> None:
    _pictures(root / subtype, *(f"COCO_{subtype}_{n:012d}.jpg" for n in ids))
    records = [{"question_id": n, "image_id": n, "question": f"What is in {n}?"} for n in ids]
    answers = [{"question_id": n, "image_id": n, "multiple_choice_answer": f"{n}", "answers": []} for n in ids]
    _json(root / f"{subtype}_questions.json", {"data_subtype": subtype, "questions": records})
    _json(root / f"{subtype}_annotations.json", {"annotations": answers})


def _ids(samples: Sequence[Sample]) -> list[str]:
    return [sample.id for sample in samples]


def _rows(data: LoadedData) -> dict[str, SourceReport]:
    for row in data.report:
        left_out = sum(row.rejected.values()) + row.missing_images + row.duplicates + row.held_out + row.over_cap
        assert row.records == left_out + row.train + row.validation
        assert row.train == sum(sample.dataset == row.dataset for sample in data.train)
        assert row.validation == sum(sample.dataset == row.dataset for sample in data.validation)
    return {row.dataset: row for row in data.report}


def _keys(samples: Sequence[Sample]) -> set[str]:
    return {
        image_key(sample.image.name) if isinstance(sample.image, Path) else str(sample.image)
        for sample in samples
        if sample.image is not None
    }


def test_the_fixtures_as_a_whole(
    shared: Path, caplog: pytest.LogCaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBERVLM_CACHE", str(tmp_path))  # what is passed over is said when the index is written
    with caplog.at_level(logging.INFO, "embervlm.data.loaders"):
        data = load_base(shared / "fixtures", 1)
    rows = _rows(data)
    seen = {
        name: (
            len(row.files),
            row.records,
            row.with_answer,
            row.with_image,
            row.missing_images,
            row.train,
            row.validation,
        )
        for name, row in rows.items()
    }
    # 61 of the 700 questions and the 3 of the second pair have their own folder's pictures, 7 are about OK-VQA's. The
    # two questions of GQA's third file are about a picture of its validation files.
    assert seen == {
        "coco_captions": (2, 1966, 1966, 150, 1816, 70, 80),
        "ok_vqa": (4, 406, 2, 0, 2, 0, 0),
        "vqa_v2": (4, 703, 703, 71, 632, 71, 0),
        "a_okvqa": (2, 2, 2, 0, 2, 0, 0),
        "gqa": (3, 802, 802, 17, 785, 0, 15),
        "cc3m": (3, 1040, 1040, 40, 1000, 39, 1),
        "refcoco": (1, 100, 86, 0, 86, 0, 0),
    }
    assert rows["ok_vqa"].rejected == {"question without annotation": 404}
    assert (rows["gqa"].held_out, rows["refcoco"].rejected) == (2, {"no box": 14})
    assert not _keys(data.train) & _keys(data.validation)
    assert len(set(_ids([*data.train, *data.validation]))) == 276
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings[0] == (
        "coco_captions: 1,966 records in 2 files, 150 with image found; 1,816 records left out:"
        " 1,816 image not found (first: 000000084533.jpg)"
    )
    assert len(warnings) == 7
    passed_over = [record.getMessage() for record in caplog.records if "not recognised" in record.getMessage()]
    assert passed_over == [
        "not recognised, passed over: coco_captions/image_licence_ids.json, llava/caps_boxes_coco2014_val_80.jsonl,"
        " llava/qa90_questions.jsonl, photos/photos.json"
    ]
    talks = load_base(shared / "fixtures", 2)
    assert {name: (row.records, row.train, row.validation) for name, row in _rows(talks).items()} == {
        "llava": (22, 19, 1),
        "llava_qa": (90, 0, 0),
    }


def test_data_sets_are_chosen_by_name(shared: Path) -> None:
    data = load_base(shared / "fixtures", 1, datasets=["cc3m", "vqa_v2"], validation_share=0)
    assert {name: row.train for name, row in _rows(data).items()} == {"vqa_v2": 71, "cc3m": 40}
    with pytest.raises(DataError, match=r"data set 'vqa' is not known; there are: coco_captions, vqa_v2, ok_vqa, "):
        load_base(shared / "fixtures", 1, datasets=["vqa"])
    with pytest.raises(DataError, match=r"none of the data sets llava is for stage 1; there are: coco_captions, "):
        load_base(shared / "fixtures", 1, datasets=["llava"])


def test_some_of_gqas_many_training_files_are_drawn(tmp_path: Path) -> None:
    _pictures(tmp_path / "images", "n1.jpg", "2.jpg")

    def questions(number: int) -> dict[str, Any]:
        return {f"{number}": {"imageId": "n1", "question": f"Is it {number}?", "answer": "no"}}

    for number in range(10):
        _json(tmp_path / f"train_all_questions/train_all_questions_{number}.json", questions(number))
    _json(tmp_path / "val_all_questions.json", {"99": {"imageId": "2", "question": "Is it?", "answer": "yes"}})
    drawn = [load_base(tmp_path, 1, seed=seed) for seed in (0, 0, 1)]
    assert [(len(data.train), _ids(data.validation)) for data in drawn] == [(5, ["gqa/99"])] * 3
    assert _ids(drawn[0].train) == _ids(drawn[1].train) != _ids(drawn[2].train)
    everything = load_base(tmp_path, 1, caps=Caps(files=None))
    assert len(everything.train) == 10


def test_publishers_validation_files_are_validation_only(tmp_path: Path) -> None:
    # Pictures 1 and 2 are in the captions' validation file; the questions' training file asks about them too.
    _captions(tmp_path / "coco", "captions_val2017.json", "val2017", [1, 2], each=5)
    _captions(tmp_path / "coco", "captions_train2017.json", "train2017", [3, 4, 5], each=5)
    _questions(tmp_path / "vqa", "train2014", [1, 2, 3, 4])
    data = load_base(tmp_path, 1, validation_share=0)
    rows = _rows(data)
    assert (rows["coco_captions"].train, rows["coco_captions"].validation) == (15, 10)
    assert (rows["vqa_v2"].train, rows["vqa_v2"].validation, rows["vqa_v2"].held_out) == (2, 0, 2)
    assert _keys(data.validation) == {"coco/000000000001", "coco/000000000002"}
    assert _keys(data.train) == {f"coco/00000000000{n}" for n in (3, 4, 5)}


def test_split_by_picture_where_there_is_no_validation_file(tmp_path: Path) -> None:
    _captions(tmp_path / "coco", "captions_train2017.json", "train2017", list(range(1, 41)), each=5)
    _questions(tmp_path / "vqa", "train2014", list(range(21, 61)))
    data = load_base(tmp_path, 1, seed=3, validation_share=0.1)
    rows = _rows(data)
    assert len(_keys(data.validation)) == 6 and not _keys(data.train) & _keys(data.validation)
    assert len(_keys(data.train)) == 54
    assert sum(row.held_out for row in rows.values()) == 0  # both sets' records move with their picture
    assert len(data.train) + len(data.validation) == 240
    again = load_base(tmp_path, 1, seed=3, validation_share=0.1)
    assert (list(again.train), list(again.validation)) == (list(data.train), list(data.validation))
    assert _keys(load_base(tmp_path, 1, seed=4, validation_share=0.1).validation) != _keys(data.validation)


def test_training_pictures_drawn_for_validation_leave_every_data_set(tmp_path: Path) -> None:
    _captions(tmp_path / "coco", "captions_val2017.json", "val2017", [99])
    _captions(tmp_path / "coco", "captions_train2017.json", "train2017", [1, 2, 3, 4])
    _questions(tmp_path / "vqa", "train2014", [1, 2, 3, 4])
    data = load_base(tmp_path, 1, validation_share=0.5)
    rows = _rows(data)
    # Two of the questions' pictures are drawn; their captions are no validation records of COCO's, and do not train.
    assert (rows["vqa_v2"].train, rows["vqa_v2"].validation) == (2, 2)
    assert (rows["coco_captions"].train, rows["coco_captions"].validation, rows["coco_captions"].held_out) == (2, 1, 2)
    assert not _keys(data.train) & _keys(data.validation)


def test_records_of_two_files_count_once(tmp_path: Path) -> None:
    # COCO 2014 and 2017 hold the same captions under the same ids; 2014's validation file keeps its own.
    old = "COCO_{}2014_{{:012d}}.jpg"
    _captions(tmp_path, "captions_train2014.json", "train2014", [1, 2], old.format("train"))
    _captions(tmp_path, "captions_val2014.json", "val2014", [3, 4], old.format("val"))
    _captions(tmp_path, "captions_train2017.json", "train2017", [1, 2, 3])
    _captions(tmp_path, "captions_val2017.json", "val2017", [4])
    data = load_base(tmp_path, 1)
    assert sorted(_ids(data.train)) == ["coco_captions/100", "coco_captions/200"]
    assert sorted(_ids(data.validation)) == ["coco_captions/300", "coco_captions/400"]
    assert _rows(data)["coco_captions"].duplicates == 4


def test_caps_are_uniform_seeded_draws(tmp_path: Path) -> None:
    _captions(tmp_path / "coco", "captions_train2017.json", "train2017", list(range(1, 301)))
    _captions(tmp_path / "coco", "captions_val2017.json", "val2017", list(range(301, 351)))
    _questions(tmp_path / "vqa", "train2014", list(range(401, 451)))
    caps = Caps(per_dataset=100, total=120, validation=20)
    data = load_base(tmp_path, 1, seed=7, validation_share=0, caps=caps)
    rows = _rows(data)
    assert (len(data.train), len(data.validation)) == (120, 20)
    assert rows["coco_captions"].over_cap == 350 - rows["coco_captions"].train - 20
    numbers = [int(sample.id.split("/")[1]) for sample in data.train if sample.dataset == "coco_captions"]
    assert numbers == sorted(numbers) and min(numbers) < 3_000 and max(numbers) > 27_000
    again = load_base(tmp_path, 1, seed=7, validation_share=0, caps=caps)
    assert list(again.train) == list(data.train)
    assert list(load_base(tmp_path, 1, seed=8, validation_share=0, caps=caps).train) != list(data.train)
    assert (Caps.of_stage(1), Caps.of_stage(2)) == (Caps(150_000, 1_000_000, 2_000, 5), Caps(None, None, 2_000, 5))


def test_conversations_with_pictures_elsewhere(tmp_path: Path, shared: Path) -> None:
    pictures = tmp_path / "images/train2017"
    _pictures(pictures, "000000033471.jpg", "000000052846.jpg")
    llava = shared / "fixtures/llava"
    data = load_base(llava, 2, extra_image_roots=[tmp_path], validation_share=0.5)
    assert sorted(len(sample.turns) for sample in [*data.train, *data.validation]) == [3, 5]
    assert (len(data.train), len(data.validation)) == (1, 1)
    assert {sample.image.parent for sample in [*data.train, *data.validation] if sample.image} == {pictures.resolve()}
    one_file = load_base(llava / "llava_instruct_150k.json", 2, extra_image_roots=[tmp_path], validation_share=0)
    assert (len(one_file.train), len(one_file.validation)) == (2, 0)


def test_text_only_conversations_are_split_by_their_text(tmp_path: Path) -> None:
    def talk(n: int) -> dict[str, Any]:
        return {"conversations": [{"from": "human", "value": f"Say {n}."}, {"from": "gpt", "value": f"{n}"}]}

    _json(tmp_path / "mix.json", [talk(n % 10) for n in range(40)])
    data = load_base(tmp_path, 2, validation_share=0.2)
    assert (len(data.train), len(data.validation)) == (32, 8)
    assert not {sample.turns for sample in data.train} & {sample.turns for sample in data.validation}


def test_folders_without_usable_data(tmp_path: Path, shared: Path) -> None:
    with pytest.raises(DataError, match=r"x: no such folder; expected one with COCO captions, VQA v2 or OK-VQA, "):
        load_base(tmp_path / "x", 1)
    with pytest.raises(DataError, match=r"gqa: no data set for stage 2 among 3 files; looked for LLaVA-Instruct \("):
        load_base(shared / "fixtures/gqa", 2)
    with pytest.raises(DataError, match="no data set for stage 2 among 0 files; looked for LLaVA-Instruct"):
        load_base(tmp_path, 2)
    with pytest.raises(DataError) as error:
        load_base(shared / "fixtures/llava", 2, datasets=["llava"])
    assert str(error.value).endswith(
        "llava: no usable record for stage 2: llava: 2 records, left out: 2 image not found (first: 000000033471.jpg)"
    )
    _questions(tmp_path, "test2015", [1])
    (tmp_path / "test2015_annotations.json").unlink()
    with pytest.raises(
        DataError, match="0 records, left out: 1 questions passed over, no annotation file answers them"
    ):
        load_base(tmp_path, 1)
    _captions(tmp_path / "val", "captions_val2017.json", "val2017", [1])
    with pytest.raises(DataError, match="nothing to train on in stage 1: all 1 samples are validation"):
        load_base(tmp_path / "val", 1)


def test_damaged_files_are_refused_with_their_place(tmp_path: Path) -> None:
    _captions(tmp_path, "captions_train2017.json", "train2017", [1, 2, 3])
    file = tmp_path / "captions_train2017.json"
    text = file.read_text()
    file.write_text(text[:-20])
    with pytest.raises(DataError, match=r"captions_train2017\.json: line 1 column \d+: not valid JSON"):
        load_base(tmp_path, 1)
    file.write_text("{" + text)
    with pytest.raises(DataError, match=r"captions_train2017\.json: line 1 column 2: not valid JSON"):
        load_base(file, 1)


def test_links_out_of_the_folder_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = tmp_path / "root"
    _captions(root, "captions_train2017.json", "train2017", [1, 2])
    _pictures(tmp_path / "elsewhere", "000000000003.jpg")
    (root / "more").symlink_to(tmp_path / "elsewhere")
    load_base(root, 1)
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == [
        f"{root.resolve()}: 1 links that leave the folder are not followed (first: {root.resolve() / 'more'});"
        " name their targets' folder itself"
    ]
