"""The index: written once and whole, opened again while its folder is unchanged, shared by processes."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embervlm.data import index as index_module
from embervlm.data.loaders import load_base
from embervlm.data.sample import DataError, Turn


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EMBERVLM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "index"


def captions(root: Path, count: int) -> Path:
    """A folder with ``count`` pictures, two captions each."""
    folder = root / "data"
    (folder / "train2017").mkdir(parents=True, exist_ok=True)
    for n in range(count):
        (folder / "train2017" / f"{n:012d}.jpg").write_bytes(b"")
    document = {
        "images": [{"id": n, "file_name": f"{n:012d}.jpg"} for n in range(count)],
        "annotations": [
            {"id": 2 * n + k, "image_id": n, "caption": f"Caption {k} of {n}."} for n in range(count) for k in (0, 1)
        ],
    }
    (folder / "captions_train2017.json").write_text(json.dumps(document))
    return folder


def written(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir())


def test_it_is_written_once_and_opened_again(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = captions(tmp_path, 10)
    first = load_base(folder, 1, validation_share=0)
    (name,) = written(cache)
    monkeypatch.setattr("embervlm.data.loaders.list_folder", lambda path: pytest.fail("listed again"))
    second = load_base(folder, 1, validation_share=0)
    assert list(second.train) == list(first.train) and second.report == first.report
    # Another seed draws other samples from the same index.
    assert list(load_base(folder, 1, seed=5, validation_share=0.3).train) != list(first.train)
    assert written(cache) == [name]


def test_every_change_of_the_folder_is_noticed(tmp_path: Path, cache: Path) -> None:
    folder = captions(tmp_path, 4)
    assert len(load_base(folder, 1, validation_share=0).train) == 8
    (folder / "train2017" / f"{3:012d}.jpg").unlink()
    assert len(load_base(folder, 1, validation_share=0).train) == 6
    assert len(written(cache)) == 1  # the stale one is gone
    captions(tmp_path, 5)
    assert len(load_base(folder, 1, validation_share=0).train) == 10
    (folder / "more").mkdir()
    (folder / "more" / "own.jsonl").write_text('{"image": "train2017/000000000001.jpg", "caption": "One more."}\n')
    assert len(load_base(folder, 1, validation_share=0).train) == 11


def test_an_error_leaves_nothing_behind(tmp_path: Path, cache: Path) -> None:
    folder = captions(tmp_path, 4)
    file = folder / "captions_train2017.json"
    file.write_text(file.read_text().replace('"id": 7', '"id": 6'))
    with pytest.raises(DataError, match=r"captions_train2017\.json: annotations\[7\]: id occurs twice"):
        load_base(folder, 1)
    assert written(cache) == []


def test_a_damaged_or_foreign_index_is_written_anew(tmp_path: Path, cache: Path) -> None:
    folder = captions(tmp_path, 4)
    load_base(folder, 1, validation_share=0)
    about = cache / written(cache)[0] / "index.json"
    about.write_text("{")
    assert len(load_base(folder, 1, validation_share=0).train) == 8
    assert len(written(cache)) == 1


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EMBERVLM_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match=r"file/index: cannot write the index there .*; set EMBERVLM_CACHE to another"):
        load_base(captions(tmp_path, 2), 1)


def test_samples_come_back_exactly_whatever_the_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = captions(tmp_path, 7)
    (folder / "talk.json").write_text(
        json.dumps(
            [
                {
                    "conversations": [
                        {"from": "human", "value": "Héllo?\nYou?"},
                        {"from": "gpt", "value": "Yes 😀."},
                        {"from": "human", "value": "Who?"},
                        {"from": "gpt", "value": "Me."},
                    ]
                }
            ]
            * 3
        )
    )
    monkeypatch.setattr(index_module, "BATCH_ROWS", 3)
    data = load_base(folder, 1, validation_share=0)
    assert [sample.id for sample in data.train] == [f"coco_captions/{n}" for n in range(14)]
    assert data.train[-1].turns == (Turn("", "Caption 1 of 6."),)
    assert [sample.id for sample in data.train[2:6:2]] == ["coco_captions/2", "coco_captions/4"]
    assert data.train.captions(5) == ["Caption 0 of 2.", "Caption 1 of 2."]
    assert data.train.lengths.tolist() == [15] * 14
    again = pickle.loads(pickle.dumps(data.train))  # noqa: S301 - made a line above
    assert list(again) == list(data.train)

    talks = load_base(folder, 2, validation_share=0).train
    assert talks[2].turns == (Turn("Héllo?\nYou?", "Yes 😀."), Turn("Who?", "Me."))
    assert talks[2].image is None and talks.captions(2) == []
    assert talks.lengths.tolist() == [len("Héllo?\nYou?Yes 😀.Who?Me.".encode())] * 3


def test_the_numbers_are_mapped_and_not_loaded(tmp_path: Path) -> None:
    folder = captions(tmp_path, 3)
    load_base(folder, 1, validation_share=0)
    names = {path.name for path in next((tmp_path / "cache" / "index").iterdir()).iterdir()}
    assert names == {
        *(f"{name}.npy" for name in ("dataset", "style", "split", "length", "group", "group_keys", "repeated")),
        "rows.arrow",
        "pictures.arrow",
        "index.json",
    }


_LOAD = (
    "import sys; from embervlm.data.loaders import load_base;"
    "print(len(load_base(sys.argv[1], 1, validation_share=0).train))"
)


def _start(folder: Path, rank: int) -> subprocess.Popen[str]:
    environment = os.environ | {"LOCAL_RANK": str(rank)}
    return subprocess.Popen(
        [sys.executable, "-c", _LOAD, str(folder)], env=environment, stdout=subprocess.PIPE, text=True
    )


def test_the_other_processes_wait_for_the_first(tmp_path: Path, cache: Path) -> None:
    folder = captions(tmp_path, 6)
    waiting = _start(folder, 1)
    try:
        time.sleep(2)
        assert waiting.poll() is None and not cache.exists()
        first = _start(folder, 0)
        assert first.communicate(timeout=60)[0] == "12\n"
        assert waiting.communicate(timeout=60)[0] == "12\n"
    finally:
        waiting.kill()
    assert len(written(cache)) == 1


def test_two_runs_at_once_both_get_a_whole_index(tmp_path: Path, cache: Path) -> None:
    folder = captions(tmp_path, 300)
    runs = [_start(folder, 0) for _ in range(3)]
    assert [run.communicate(timeout=100)[0] for run in runs] == ["600\n"] * 3
    assert not any(name.endswith(".tmp") for name in written(cache))


def test_a_copy_of_one_picture_under_coco_names_is_never_on_both_sides(tmp_path: Path) -> None:
    folder = captions(tmp_path, 40)
    (folder / "train2014").mkdir()
    questions: list[dict[str, Any]] = []
    for n in range(40):
        (folder / "train2014" / f"COCO_train2014_{n:012d}.jpg").write_bytes(b"")
        questions.append({"question_id": n, "image_id": n, "question": f"What is {n}?"})
    answers = [{"question_id": n, "image_id": n, "multiple_choice_answer": "it"} for n in range(40)]
    (folder / "q.json").write_text(json.dumps({"data_subtype": "train2014", "questions": questions}))
    (folder / "a.json").write_text(json.dumps({"annotations": answers}))
    for seed in range(5):
        data = load_base(folder, 1, seed=seed, validation_share=0.25)
        train = {sample.image.name[-16:] for sample in data.train if isinstance(sample.image, Path)}
        held_out = {sample.image.name[-16:] for sample in data.validation if isinstance(sample.image, Path)}
        assert len(held_out) == 10 and len(train) == 30 and not train & held_out
        assert np.array_equal(np.sort(data.train.rows), data.train.rows)
