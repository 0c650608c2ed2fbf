"""Readers of the publishers' formats, one module each. A new format is a module with a ``FORMAT`` and a line here."""

from embervlm.data.formats import coco_captions, llava, vqa_v2
from embervlm.data.formats.record import Format

FORMATS: tuple[Format, ...] = (coco_captions.FORMAT, vqa_v2.FORMAT, llava.FORMAT)
