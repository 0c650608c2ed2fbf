"""Writes synthetic data sets in the publishers' own file formats and sizes, for the measurements of ``data.py``.

Fields, their order, spacing and text lengths follow the official files, so that a record takes as many bytes and as
much parsing as a real one; the texts themselves are drawn from word lists. Everything is a function of seed and scale
alone and is streamed to disk. Picture files are tiny, since an index needs their names only. Pillow and numpy are
imported when a picture is made, so that the file names can be had without their memory.
"""

from __future__ import annotations

import io
import json
import os
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

CAPTIONS = "coco/annotations/captions_train2017.json"
VQA_QUESTIONS = "vqa_v2/v2_OpenEnded_mscoco_{}2014_questions.json"
VQA_ANNOTATIONS = "vqa_v2/v2_mscoco_{}2014_annotations.json"
GQA = "gqa/train_balanced_questions.json"
LLAVA = "llava/llava_instruct_150k.json"

#: Different picture files; all others are hard links to one of them, of which a file system allows some ten thousand.
_PICTURE_FILES = 256
_MAX_COCO_ID = 581_929
_MAX_GENOME_ID = 2_417_997


def _words(text: str, separator: str = " ") -> list[str]:
    return text.split(separator)


_NOUNS = _words(
    "man woman child dog cat horse bicycle car bus train truck boat bench bird sheep cow elephant bear zebra giraffe "
    "backpack umbrella handbag tie suitcase frisbee snowboard kite skateboard surfboard bottle glass cup fork knife "
    "spoon bowl banana apple sandwich orange carrot pizza donut cake chair couch plant bed table toilet television "
    "laptop mouse keyboard telephone microwave oven toaster sink refrigerator book clock vase scissors window door "
    "fence building street sidewalk tree field beach river mountain bridge tower sign lamp shelf carpet curtain mirror "
    "pillow blanket towel counter cabinet helmet jacket shirt jeans hat shoes glove basket box plate napkin candle"
)
_ADJECTIVES = _words(
    "small large red blue green white black brown yellow old young wooden metallic plastic wet dirty clean tall short "
    "colorful striped round empty open closed parked shiny bright dark grassy sandy snowy crowded quiet modern rusty"
)
_VERBS = _words(
    "sitting standing walking running riding holding eating looking playing lying waiting jumping leaning flying "
    "driving crossing carrying watching resting posing reaching smiling working cooking sleeping talking"
)
_PLACES = _words(
    "on|next to|in front of|behind|near|under|beside|above|across from|on top of|to the left of|to the right of",
    "|",
)
_RELATIONS = _words("wearing|holding|on|near|behind|to the left of|to the right of|hanging above|sitting on|in", "|")
_ATTRIBUTES = _words("color material shape size hposition vposition pose weather")
_OPENINGS = _words(
    "In the image,|The scene shows that|It appears that|In the background,|Additionally,|To the left,|Overall,|"
    "In the center of the picture,|Furthermore,|Closer to the camera,|As a result,|It is also possible that",
    "|",
)
_QUESTION_TYPES = _words(
    "what is the|how many|is the|what color is the|are there|what|is this a|where is the|why|none of the above",
    "|",
)


@dataclass(frozen=True, slots=True)
class Counts:
    """How many records and pictures the files have; the defaults are the official numbers."""

    captions: int = 591_753
    captioned_images: int = 118_287
    vqa_train: int = 443_757
    vqa_train_images: int = 82_783
    vqa_val: int = 214_354
    vqa_val_images: int = 40_504
    gqa: int = 943_000
    gqa_images: int = 72_140
    llava: int = 157_712
    llava_images: int = 81_479

    @classmethod
    def scaled(cls, scale: float) -> Counts:
        """The official numbers times ``scale``, at least one of each.

        Raises:
            ValueError: ``scale`` is not above 0 and at most 1.
        """
        if not 0 < scale <= 1:
            raise ValueError(f"scale {scale}: expected a number above 0 and at most 1")
        return cls(*(max(1, round(getattr(cls(), name) * scale)) for name in cls.__dataclass_fields__))


@dataclass(frozen=True, slots=True)
class Pictures:
    """The picture ids of each set; COCO's 2014 and 2017 sets name the same photographs."""

    train2017: list[int]
    train2014: list[int]
    val2014: list[int]
    llava: list[int]
    gqa: list[str]

    @classmethod
    def draw(cls, counts: Counts, seed: int) -> Pictures:
        """Draw them: ``train2017`` is ``train2014`` and most of ``val2014``, as in the official sets."""
        rng = random.Random(f"{seed}/pictures")
        coco = rng.sample(range(9, _MAX_COCO_ID + 1), counts.vqa_train_images + counts.vqa_val_images)
        train2014, val2014 = coco[: counts.vqa_train_images], coco[counts.vqa_train_images :]
        train2017 = coco[: counts.captioned_images]
        genome = [
            f"n{number}" if rng.random() < 0.02 else str(number)
            for number in rng.sample(range(1, _MAX_GENOME_ID), counts.gqa_images)
        ]
        llava = rng.sample(train2017, min(counts.llava_images, len(train2017)))
        for ids in (train2017, train2014, val2014):
            rng.shuffle(ids)
        return cls(train2017, train2014, val2014, llava, genome)

    def names(self) -> Iterator[str]:
        """Their files, relative to the data folder."""
        yield from (f"coco/train2017/{number:012}.jpg" for number in self.train2017)
        yield from (f"coco/train2014/COCO_train2014_{number:012}.jpg" for number in self.train2014)
        yield from (f"coco/val2014/COCO_val2014_{number:012}.jpg" for number in self.val2014)
        yield from (f"gqa/images/{name}.jpg" for name in self.gqa)


def write_all(out: Path, *, scale: float = 1.0, seed: int = 0) -> dict[str, int]:
    """Write all data sets with their pictures below ``out``.

    Returns:
        bytes of each annotation file, and under ``pictures`` the number of picture files.

    Raises:
        FileExistsError: ``out`` holds something already.
        ValueError: a scale out of range.
    """
    counts = Counts.scaled(scale)
    if out.exists() and any(out.iterdir()):
        raise FileExistsError(f"{out}: expected an empty folder or none; delete it or name another")
    pictures = Pictures.draw(counts, seed)
    files = {
        CAPTIONS: _captions(counts.captions, pictures.train2017, seed),
        GQA: _gqa(counts.gqa, pictures.gqa, seed),
        LLAVA: _llava(counts.llava, pictures.llava, seed),
    }
    for part, count, ids in (
        ("train", counts.vqa_train, pictures.train2014),
        ("val", counts.vqa_val, pictures.val2014),
    ):
        files[VQA_QUESTIONS.format(part)] = _vqa_questions(part, count, ids, seed)
        files[VQA_ANNOTATIONS.format(part)] = _vqa_annotations(part, count, ids, seed)
    sizes = {}
    for name, blocks in files.items():
        path = out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="ascii", buffering=1 << 20) as file:
            file.writelines(blocks)
        sizes[name] = path.stat().st_size
    sizes["pictures"] = link_pictures(out, pictures.names(), seed)
    return sizes


def link_pictures(out: Path, names: Iterable[str], seed: int) -> int:
    """Make a tiny JPEG of each name: the first few hundred are files of their own, the others links to them."""
    made: list[Path] = []
    folders: set[Path] = set()
    count = 0
    for number, name in enumerate(names):
        path = out / name
        if path.parent not in folders:
            path.parent.mkdir(parents=True, exist_ok=True)
            folders.add(path.parent)
        if number < _PICTURE_FILES:
            path.write_bytes(_tiny_jpeg(seed + number))
            made.append(path)
        else:
            os.link(made[number % _PICTURE_FILES], path)
        count += 1
    return count


def _tiny_jpeg(seed: int) -> bytes:
    import numpy as np
    from PIL import Image

    colours = np.random.default_rng(seed).integers(0, 256, (2, 2, 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(colours).resize((16, 12)).save(data, "JPEG")
    return data.getvalue()


def photo_like_jpeg(seed: int, size: tuple[int, int] = (640, 480)) -> bytes:
    """A JPEG that takes as long to decode as a photograph: noise at all scales, its strength falling with frequency."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(seed)
    width, height = size
    canvas = np.full((height, width, 3), 128.0, dtype=np.float32)
    cells = 4
    while cells < width:
        noise = rng.integers(0, 256, (max(1, cells * height // width), cells, 3), dtype=np.uint8)
        layer = Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)
        canvas += (np.asarray(layer, dtype=np.float32) - 128) * (2.4 / cells**0.55)
        cells *= 2
    data = io.BytesIO()
    Image.fromarray(canvas.clip(0, 255).astype(np.uint8)).save(data, "JPEG", quality=90)
    return data.getvalue()


def write_photo_captions(out: Path, *, photos: int, seed: int = 0) -> dict[str, float]:
    """Write COCO captions, five a picture, about ``photos`` pictures of 640x480 pixels.

    Returns:
        the number of captions and the pictures' mean size in bytes.
    """
    ids = random.Random(f"{seed}/photos").sample(range(9, _MAX_COCO_ID + 1), photos)
    path = out / CAPTIONS
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="ascii") as file:
        file.writelines(_captions(5 * photos, ids, seed))
    folder = out / "coco/train2017"
    folder.mkdir()
    total = 0
    for number, image in enumerate(ids):
        total += (folder / f"{image:012}.jpg").write_bytes(photo_like_jpeg(seed + number))
    return {"captions": 5 * photos, "mean_bytes": total / photos}


def write_text_only(file: TextIO, *, count: int, seed: int = 0) -> None:
    """Write ``count`` conversations without pictures, in LLaVA's format, each of one short turn."""
    rng = random.Random(f"{seed}/text")

    def records() -> Iterator[str]:
        for number in range(count):
            messages = [
                {"from": "human", "value": _question(rng)},
                {"from": "gpt", "value": _sentence(rng)},
            ]
            yield json.dumps({"id": f"{number:09}", "conversations": messages})

    file.writelines(_list("[", records(), "]"))


def caption(rng: random.Random) -> str:
    """A caption as long as COCO's."""
    return _caption(rng).strip()


def conversation(rng: random.Random) -> list[tuple[str, str]]:
    """The turns of a conversation as long as LLaVA's: questions and answers."""
    messages = [message["value"] for message in json.loads(_llava_record(rng, [0], 0))["conversations"]]
    messages[0] = messages[0].replace("<image>", "").strip()
    return list(zip(messages[::2], messages[1::2], strict=True))


def _list(opening: str, records: Iterable[str], closing: str, separator: str = ", ") -> Iterator[str]:
    between = opening
    for record in records:
        yield between
        yield record
        between = separator
    yield closing


def _thing(rng: random.Random) -> str:
    noun = _pick(rng, _NOUNS)
    return f"{_pick(rng, _ADJECTIVES)} {noun}" if rng.random() < 0.4 else noun


def _pick(rng: random.Random, words: list[str]) -> str:
    return words[int(rng.random() * len(words))]


def _caption(rng: random.Random) -> str:
    text = f"A {_thing(rng)} {_pick(rng, _VERBS)} {_pick(rng, _PLACES)} a {_thing(rng)}"
    if rng.random() < 0.66:
        text += f" {_pick(rng, _PLACES)} a {_thing(rng)}"
    draw = rng.random()
    return text + (".\n" if draw < 0.02 else " ." if draw < 0.04 else "" if draw < 0.1 else ".")


def _question(rng: random.Random) -> str:
    kind = int(rng.random() * 6)
    if kind == 0:
        return f"What color is the {_thing(rng)} that can be seen?"
    if kind == 1:
        return f"How many {_pick(rng, _NOUNS)}s are {_pick(rng, _PLACES)} the {_thing(rng)}?"
    if kind == 2:
        return f"Is the {_thing(rng)} {_pick(rng, _VERBS)}?"
    if kind == 3:
        return f"What is the {_pick(rng, _NOUNS)} {_pick(rng, _VERBS)}?"
    if kind == 4:
        return f"Is there a {_thing(rng)} {_pick(rng, _PLACES)} the {_pick(rng, _NOUNS)}?"
    return f"Where is the {_thing(rng)} in this?"


def _sentence(rng: random.Random) -> str:
    """Of a conversation's answer, some 90 characters; a few hold what JSON writes with an escape."""
    start = f"{_pick(rng, _OPENINGS)} " if rng.random() < 0.6 else ""
    text = (
        f"{start}{'the' if start else 'The'} {_thing(rng)} is {_pick(rng, _VERBS)} {_pick(rng, _PLACES)} "
        f"the {_thing(rng)}, {_pick(rng, _PLACES)} a {_thing(rng)}"
    )
    draw = rng.random()
    if draw < 0.003:
        return text + ' with the words "caf\u00e9" on it.'
    return text + (" and other objects that can be seen." if draw < 0.3 else ".")


def _sentences(rng: random.Random, least: int, most: int) -> str:
    return " ".join(_sentence(rng) for _ in range(rng.randint(least, most)))


def _captions(count: int, images: list[int], seed: int) -> Iterator[str]:
    rng = random.Random(f"{seed}/captions")
    head = {
        "info": {
            "description": "Synthetic captions in the format of COCO 2017",
            "url": "http://cocodataset.org",
            "version": "1.0",
            "year": 2017,
            "contributor": "nobody",
            "date_created": "2017/09/01",
        },
        "licenses": [
            {"url": f"http://creativecommons.org/licenses/{number}/", "id": number, "name": f"Licence {number}"}
            for number in range(1, 9)
        ],
    }
    yield json.dumps(head)[:-1]
    yield from _list(', "images": [', (_coco_image(rng, number) for number in images), "]")

    def captions() -> Iterator[str]:
        # Five to a picture and never two in a row, as in the official file.
        order = [images[place % len(images)] for place in range(count)]
        rng.shuffle(order)
        for number, image in enumerate(order):
            yield json.dumps({"image_id": image, "id": number + 37, "caption": _caption(rng)})

    yield from _list(', "annotations": [', captions(), "]}")


def _coco_image(rng: random.Random, number: int) -> str:
    height, width = (480, 640) if rng.random() < 0.7 else (640, 427)
    digits = rng.getrandbits(40)
    return json.dumps(
        {
            "license": 1 + digits % 8,
            "file_name": f"{number:012}.jpg",
            "coco_url": f"http://images.cocodataset.org/train2017/{number:012}.jpg",
            "height": height,
            "width": width,
            "date_captured": f"2013-11-{14 + digits % 11} {digits % 24:02}:{digits % 60:02}:{digits % 59:02}",
            "flickr_url": f"http://farm{1 + digits % 9}.staticflickr.com/{digits % 9000 + 1000}/{digits:010}"
            f"_{digits & 0xFFFFFFFF:010x}_z.jpg",
            "id": number,
        }
    )


def _vqa_ids(part: str, count: int, images: list[int], seed: int) -> Iterator[tuple[int, int]]:
    """Each question's picture and id, in the order of both files: a picture's questions stand together."""
    rng = random.Random(f"{seed}/vqa/{part}/ids")
    each = Counter(images[place % len(images)] if place < len(images) else rng.choice(images) for place in range(count))
    for image in images:
        for number in range(each[image]):
            yield image, image * 1000 + number


def _vqa_head(part: str) -> dict[str, Any]:
    return {
        "info": {
            "description": "Synthetic questions in the format of VQA v2.0.",
            "url": "http://visualqa.org",
            "version": "2.0",
            "year": 2017,
            "contributor": "nobody",
            "date_created": "2017-04-26 17:07:13",
        },
        "license": {
            "url": "http://creativecommons.org/licenses/by/4.0/",
            "name": "Creative Commons Attribution 4.0 International License",
        },
        "data_subtype": f"{part}2014",
    }


def _vqa_questions(part: str, count: int, images: list[int], seed: int) -> Iterator[str]:
    rng = random.Random(f"{seed}/vqa/{part}/questions")
    head = _vqa_head(part)
    head = {
        "info": head["info"],
        "task_type": "Open-Ended",
        "data_type": "mscoco",
        "license": head["license"],
        "data_subtype": head["data_subtype"],
    }
    yield json.dumps(head)[:-1]
    yield from _list(
        ', "questions": [',
        (
            json.dumps({"image_id": image, "question": _question(rng), "question_id": number})
            for image, number in _vqa_ids(part, count, images, seed)
        ),
        "]}",
    )


def _vqa_annotations(part: str, count: int, images: list[int], seed: int) -> Iterator[str]:
    rng = random.Random(f"{seed}/vqa/{part}/annotations")
    yield json.dumps(_vqa_head(part))[:-1]
    yield from _list(
        ', "annotations": [',
        (_vqa_annotation(rng, image, number) for image, number in _vqa_ids(part, count, images, seed)),
        '], "data_type": "mscoco"}',
    )


def _vqa_annotation(rng: random.Random, image: int, number: int) -> str:
    draw = rng.random()
    if draw < 0.38:
        kind, likely = "yes/no", "yes" if rng.random() < 0.5 else "no"
        others = ["yes", "no"]
    elif draw < 0.5:
        kind, likely = "number", str(int(1 / (rng.random() + 0.02)))
        others = ["1", "2", "3", "10"]
    else:
        kind, likely = "other", _thing(rng)
        others = [_pick(rng, _NOUNS), _pick(rng, _ADJECTIVES), f"{likely}s", "not sure"]
    given = [likely if rng.random() < 0.7 else _pick(rng, others) for _ in range(10)]
    common = Counter(given).most_common(1)[0][0]
    answers = [
        {
            "answer": answer,
            "answer_confidence": "yes" if (sure := rng.random()) < 0.75 else "maybe" if sure < 0.95 else "no",
            "answer_id": place,
        }
        for place, answer in enumerate(given, start=1)
    ]
    # Both orders of the fields occur in the official files.
    first, last = ("question_type", "answer_type") if rng.random() < 0.54 else ("answer_type", "question_type")
    kinds = {"question_type": _pick(rng, _QUESTION_TYPES), "answer_type": kind}
    return json.dumps(
        {
            first: kinds[first],
            "multiple_choice_answer": common,
            "answers": answers,
            "image_id": image,
            last: kinds[last],
            "question_id": number,
        }
    )


def _gqa(count: int, images: list[str], seed: int) -> Iterator[str]:
    rng = random.Random(f"{seed}/gqa")
    # 7,919 has no factor in common with 10**8, so that no id occurs twice.
    keys = (f"{(place * 7_919 + 2_930_152) % 10**8:08}" for place in range(count))
    yield from _list("{", (f'"{key}": {_gqa_question(rng, key, images)}' for key in keys), "}")


def _gqa_question(rng: random.Random, key: str, images: list[str]) -> str:
    noun, other, attribute = _pick(rng, _NOUNS), _pick(rng, _NOUNS), _pick(rng, _ATTRIBUTES)
    value, relation = _pick(rng, _ADJECTIVES), _pick(rng, _RELATIONS)
    one, two = str(1 + rng.getrandbits(22)), str(1 + rng.getrandbits(22))
    semantic: list[dict[str, Any]] = [{"operation": "select", "dependencies": [], "argument": f"{noun} ({one})"}]
    draw = rng.random()
    if draw < 0.35:
        semantic += [
            {"operation": "relate", "dependencies": [0], "argument": f"_,{relation},s ({two})"},
            {"operation": "query", "dependencies": [1], "argument": "name"},
        ]
        question, answer = f"What is the {value} {noun} {relation}?", other
        full, kinds = f"The {noun} is {relation} the {other}.", ("relO", "rel", "query")
        group: str | None = "thing"
    elif draw < 0.65:
        if draw < 0.4:
            semantic.append({"operation": "filter hposition", "dependencies": [0], "argument": "left"})
        semantic.append({"operation": "query", "dependencies": [len(semantic) - 1], "argument": attribute})
        question, answer = f"What is the {attribute} of the {noun} on the left of the picture?", value
        full, kinds, group = f"The {noun} is {value}.", ("directOf", "attr", "query"), attribute
    else:
        semantic += [
            {"operation": "relate", "dependencies": [0], "argument": f"{other},{relation},s ({two})"},
            {"operation": f"verify {attribute}", "dependencies": [1], "argument": value},
        ]
        if draw < 0.75:
            semantic.append({"operation": "verify material", "dependencies": [1], "argument": "metal "})
            semantic.append({"operation": "and", "dependencies": [2, 3], "argument": ""})
        answer = "yes" if rng.random() < 0.5 else "no"
        question = f"Does the {other} {relation} the {noun} look {value}?"
        full = f"{answer.capitalize()}, the {other} is {value}."
        kinds, group = ("verifyAttrs", "attr", "logical" if draw < 0.75 else "verify"), None
    entailed = [f"{rng.getrandbits(26):08}" for _ in range(min(24, int(rng.expovariate(1 / 2.6))))]
    return json.dumps(
        {
            "semantic": semantic,
            "entailed": entailed,
            "equivalent": [key] if rng.random() < 0.9 else [key, entailed[0] if entailed else key],
            "question": question,
            "imageId": _pick(rng, images),
            "isBalanced": True,
            "groups": {"global": group, "local": f"{10 + len(noun)}-{noun}_{relation},s"},
            "answer": answer,
            "semanticStr": "->".join(
                f"{step['operation']}: {step['argument']}" + (f" {step['dependencies']}" if place else "")
                for place, step in enumerate(semantic)
            ),
            "annotations": {
                "answer": {"0": two} if draw < 0.35 else {},
                "question": {"3": one},
                "fullAnswer": {"1": one, "6": two} if draw < 0.35 else {"1": one},
            },
            "types": {"detailed": kinds[0], "semantic": kinds[1], "structural": kinds[2]},
            "fullAnswer": full,
        }
    )


def _llava(count: int, images: list[int], seed: int) -> Iterator[str]:
    rng = random.Random(f"{seed}/llava")
    yield from _list("[\n  ", (_llava_record(rng, images, place) for place in range(count)), "\n]", ",\n  ")


def _llava_record(rng: random.Random, images: list[int], place: int) -> str:
    image = images[place] if place < len(images) else images[int(rng.random() * len(images))]
    draw = rng.random()
    if draw < 0.36:
        turns = [(_question(rng), _sentence(rng)) for _ in range(rng.randint(3, 8))]
    elif draw < 0.51:
        turns = [
            ("Can you describe the image in detail?", _sentences(rng, 5, 8) + "\n\n" + _sentences(rng, 5, 8)),
        ]
    else:
        turns = [(f"{_question(rng)[:-1]}, and why could that be?", _sentences(rng, 10, 16))]
    messages = [
        {"from": sender, "value": text} for turn in turns for sender, text in zip(("human", "gpt"), turn, strict=True)
    ]
    first = messages[0]
    first["value"] = f"<image>\n{first['value']}" if rng.random() < 0.5 else f"{first['value']}\n<image>"
    record = {"id": f"{image:012}", "image": f"{image:012}.jpg", "conversations": messages}
    return json.dumps(record, indent=2).replace("\n", "\n  ")
