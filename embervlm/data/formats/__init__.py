"""Readers of the publishers' formats, one module each. A new format is a module with a ``FORMAT`` and a line here."""

from embervlm.data.formats import a_okvqa, cc3m, coco_captions, gqa, jsonl, llava, llava_qa, ocr_vqa, refcoco, vqa_v2
from embervlm.data.formats.record import Format

#: What a reader recognises no other does, but for one's own data, which come last.
FORMATS: tuple[Format, ...] = (
    coco_captions.FORMAT,
    vqa_v2.FORMAT,
    a_okvqa.FORMAT,
    gqa.FORMAT,
    cc3m.FORMAT,
    refcoco.FORMAT,
    ocr_vqa.FORMAT,
    llava.FORMAT,
    llava_qa.FORMAT,
    jsonl.FORMAT,
    jsonl.CHAT_FORMAT,
)
