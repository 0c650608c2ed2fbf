"""From real records to the exact text and the exact supervised tokens that the model is trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from embervlm.data.collate import ConversationDataset
from embervlm.data.index import IndexedSamples
from embervlm.data.loaders import Stage, load_base
from embervlm.model import EmberVLMProcessor, preset_config
from embervlm.prompts import IGNORED
from embervlm.tokens import CONTROL_IDS, IMAGE

IMAGE_TOKENS = 49


@pytest.fixture(scope="module")
def processor() -> Any:
    return EmberVLMProcessor.for_config(preset_config("ember"))


def prompt(samples: IndexedSamples, id: str, processor: Any) -> tuple[str, str]:
    """The text after the picture's places, and the supervised tokens with bars between, of the sample ``id``."""
    places = [place for place in range(len(samples)) if samples[place].id == id]
    encoded = ConversationDataset(samples, processor, augment=False, seed=0).encoded(*places)
    ids, labels = encoded.input_ids, encoded.labels
    assert ids[:IMAGE_TOKENS] == [CONTROL_IDS[IMAGE]] * IMAGE_TOKENS and CONTROL_IDS[IMAGE] not in ids[IMAGE_TOKENS:]
    assert all(label in (IGNORED, token) for token, label in zip(ids, labels, strict=True))
    decode = processor.tokenizer.decode
    supervised = "|".join(decode([label]) for label in labels if label != IGNORED)
    return decode(ids[IMAGE_TOKENS:]), supervised.replace("<|endoftext|>", "END")


@pytest.mark.parametrize(
    ("stage", "part", "id", "text", "supervised"),
    [
        (
            1,
            "validation",
            "coco_captions/11734",
            "User: Describe the picture.\nAssistant: An orange reddish rose in a vase filled with water on top of a"
            " table.<|endoftext|>",
            " An| orange| redd|ish| rose| in| a| v|ase| filled| with| water| on| top| of| a| table|.|END",
        ),
        (
            1,
            "train",
            "vqa_v2/458752000",
            "User: What is this photo taken looking through? Answer in a few words.\nAssistant: net<|endoftext|>",
            " net|END",
        ),
        (
            1,
            "validation",
            "gqa/202218557",
            "User: Do the containers to the left of the toaster look metallic and white? Answer in a few words.\n"
            "Assistant: yes<|endoftext|>",
            " yes|END",
        ),
        (
            1,
            "train",
            "cc3m/cc3m-train-0000.tar/000000000",
            "User: Describe the picture.\nAssistant: cricket player was named award category and runner - up behind"
            " person<|endoftext|>",
            " cricket| player| was| named| award| category| and| runner| -| up| behind| person|END",
        ),
    ],
)
def test_records_of_stage_1(
    shared: Path, processor: Any, stage: Stage, part: str, id: str, text: str, supervised: str
) -> None:
    samples = getattr(load_base(shared / "fixtures", stage), part)
    assert prompt(samples, id, processor) == (text, supervised)


def test_every_turn_of_a_conversation_is_supervised(shared: Path, processor: Any, tmp_path: Path) -> None:
    for name in ("000000033471", "000000052846"):
        (tmp_path / f"{name}.jpg").write_bytes(b"")
    data = load_base(shared / "fixtures/llava", 2, extra_image_roots=[tmp_path], validation_share=0, datasets=["llava"])
    assert prompt(data.train, "llava/llava_instruct_150k.json[0]", processor) == (
        "User: What are the colors of the bus in the image?\nAssistant: The bus in the image is white and red."
        "<|endoftext|>\nUser: What feature can be seen on the back of the bus?\nAssistant: The back of the bus features"
        " an advertisement.<|endoftext|>\nUser: Is the bus driving down the street or pulled off to the side?\n"
        "Assistant: The bus is driving down the street, which is crowded with people and other vehicles.<|endoftext|>",
        " The| bus| in| the| image| is| white| and| red|.|END"
        "| The| back| of| the| bus| features| an| advertisement|.|END"
        "| The| bus| is| driving| down| the| street|,| which| is| crowded| with| people| and| other| vehicles|.|END",
    )
