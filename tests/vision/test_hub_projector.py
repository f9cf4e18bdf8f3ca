"""The hub in a projector's place: rows of every form against its table as a loop, one pass for all pictures, and under
every graft the same rules as any front-end: text untouched, rows that do not see each other, saving and loading."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tests.grafts._requests import wake
from tests.grafts.test_contract import SMALL as GRAFTS
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import BertConfig, BertModel, Blip2QFormerConfig, Blip2QFormerModel, PreTrainedTokenizerFast

import tsugiki
from tsugiki import grafts
from tsugiki.data.said import Said, tensors
from tsugiki.errors import AssetError, InputError, UnknownNameError
from tsugiki.evals.proof import verify
from tsugiki.processor import TsugikiProcessor
from tsugiki.testing import FAMILIES, TinyTower, tiny_images, tiny_llm, tiny_model, tiny_tokenizer
from tsugiki.types import DEMO, DEMO_FORMS, IMAGE, DemoPart, Message, Part, Sample, TextPart
from tsugiki.vision.config import FrontEndConfig
from tsugiki.vision.frontend import FrontEnd
from tsugiki.vision.hub import HubConfig
from tsugiki.vision.hub_projector import HubProjector, HubSettings, Texts

HUB: dict[str, Any] = {"layers": 2, "width": 16, "heads": 2, "hidden": 24, "queries": 4}
PICTURES = tiny_images(6)
V, D = 12, 20


def hub_model(graft: str = "projector", family: str = "llama", **options: Any) -> Any:
    hub = {**HUB, **options.pop("hub", {})}
    return tiny_model(graft, family, projector="hub", hub=hub, **GRAFTS.get(graft, {}), **options)


def demo(i: int, form: str = DEMO_FORMS[0], text: str | None = None) -> DemoPart:
    return DemoPart(PICTURES[i], f"what?\nthing {i}" if text is None else text, form)


def asked(*parts: Part, picture: int = 0, question: str = "what is it?", answer: str = "this", id: str = "0") -> Sample:
    turn = Message("user", (*parts, *Message.of("user", question, (PICTURES[picture],)).parts))
    return Sample(id=id, messages=(turn, Message.of("assistant", answer)))


def logits(model: Any, samples: list[Sample], **options: Any) -> Tensor:
    with torch.no_grad():
        return model(**model.encode_samples(samples, **options).inputs()).logits


def batch(published: bool = False) -> tuple[HubProjector, Tensor, Tensor, Tensor, Tensor]:
    """One picture of each form, with texts of different lengths."""
    sizes = HubConfig(**HUB, form="published" if published else "light", vocabulary=40)
    projector = HubProjector(sizes, V, D).double()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in projector.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=generator, dtype=torch.float64))
    features = torch.randn(6, 9, V, generator=generator, dtype=torch.float64)
    ids, forms = tensors([Said(0, (5, 6, 7)), Said(0), *(Said(k, tuple(range(3, 3 + k))) for k in range(1, 5))])
    table = torch.randn(60, D, generator=generator, dtype=torch.float64)
    return projector, features, ids, forms, table


@pytest.mark.parametrize("published", [False, True])
def test_every_form_is_its_line_of_the_table(published: bool) -> None:
    projector, features, ids, forms, table = batch(published)
    texts = Texts.of(ids, forms, lambda i: table[i], published=published)
    tokens, mask = projector(features, texts.ids, texts.forms, texts.words)
    assert mask is not None
    hub, s = projector.hub, projector.separator[None]
    for row, form in enumerate(forms.tolist()):
        own = ids[row][ids[row] >= 0]
        said = own if published else table[own]
        read = hub(features[row : row + 1], said[None] if len(own) else None)
        alone = hub(features[row : row + 1]).visual[0]
        wanted = {
            0: [read.visual[0]],
            1: [read.text[0] if read.text is not None else None, s],
            2: [read.visual[0], s],
            3: [alone, table[own], s],
            4: [read.visual[0], read.text[0] if read.text is not None else None, s],
        }[form]
        torch.testing.assert_close(tokens[row][mask[row]], torch.cat(wanted), rtol=1e-9, atol=1e-9)
        assert not mask[row][int(mask[row].sum()) :].any()
    assert [int(n) for n in mask.sum(1)] == [
        Said(f, tuple(i[i >= 0])).tokens(4) for f, i in zip(forms.tolist(), ids, strict=True)
    ]


def test_without_words_the_tokens_are_the_pictures_alone() -> None:
    projector, features, ids, _, table = batch()
    tokens, mask = projector(features)
    assert mask is None and torch.equal(tokens, projector.content(features)) and tokens.shape == (6, 4, D)
    silent = Texts.of(torch.full_like(ids, -1), None, lambda i: table[i], published=False)
    same, kept = projector(features, silent.ids, silent.forms, silent.words)
    assert kept.all()
    torch.testing.assert_close(same, tokens, rtol=1e-9, atol=1e-9)


def test_a_light_hubs_demonstration_starts_as_its_text_and_a_line_break() -> None:
    model = hub_model()
    embed = model.decoder.embed
    sample = asked(demo(1, text="a bird"), demo(2, text="写真"))
    inputs = model.encode_samples([sample]).inputs()
    rows = model.frontend(
        pixel_values=inputs["pixel_values"], texts=model._texts(inputs["image_text"], inputs["image_form"])
    ).each
    for row, text in zip(rows, ("a bird\n", "写真\n"), strict=False):
        assert torch.equal(row, embed(torch.tensor(tiny_tokenizer()(text, add_special_tokens=False)["input_ids"])))


# -- under an LLM ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_text_is_bit_equal_after_training(family: str) -> None:
    model = hub_model(family=family)
    wake(model)
    inputs = tiny_tokenizer()(["hello there"], return_tensors="pt")
    inputs.pop("token_type_ids", None)
    with torch.no_grad():
        seen = model(**inputs).logits
        with model.detached() as llm:
            assert torch.equal(seen, llm(**inputs).logits)
    assert model.guarantee == "exact"


@pytest.mark.parametrize("graft", grafts.available())
def test_a_sample_is_the_same_alone_in_a_batch_and_from_a_cache(graft: str) -> None:
    model = hub_model(graft)
    wake(model)
    samples = [
        asked(),
        asked(demo(1), demo(2, text="longer than the others"), picture=3, question="and this one?", id="1"),
        asked(demo(1, "both"), demo(4, "uni_modal"), picture=5, question="", id="2"),
        asked(demo(2, "textual_guided_visual"), id="3"),
        Sample(id="4", messages=(Message.of("user", "no picture"), Message.of("assistant", "none"))),
    ]
    together = model.encode_samples(samples)
    logits_ = logits(model, samples)
    for row, sample in enumerate(samples):
        real = together.attention_mask[row].bool()
        torch.testing.assert_close(logits_[row][real], logits(model, [sample])[0], rtol=2e-4, atol=1e-4)
    left = model.encode_samples(samples, padding_side="left")
    with torch.no_grad():
        other = model(**left.inputs()).logits
    for row in range(len(samples)):
        a, b = logits_[row][together.attention_mask[row].bool()], other[row][left.attention_mask[row].bool()]
        torch.testing.assert_close(a, b, rtol=2e-4, atol=1e-4)


@pytest.mark.parametrize("graft", ["projector", "cross_attention", "wings"])
def test_reading_in_parts_and_generating_are_as_the_whole(graft: str) -> None:
    model = hub_model(graft)
    wake(model)
    inputs = model.encode_samples([asked(demo(1), picture=3)], add_generation_prompt=True).inputs()
    visual = model.frontend(
        pixel_values=inputs["pixel_values"], texts=model._texts(inputs["image_text"], inputs["image_form"])
    )
    with torch.no_grad():
        whole, cache, parts, length = model(**inputs).logits, None, [], inputs["input_ids"].shape[1]
        for start, end in ((0, 20), (20, 34), (34, length)):
            piece = {k: inputs[k][:, start:end] for k in ("input_ids", "token_kind", "image_index")}
            mask = inputs["attention_mask"][:, :end]
            out = model(**piece, attention_mask=mask, visual=visual, cache=cache, use_cache=True)
            cache = out.cache
            parts.append(out.logits)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=2e-4, atol=1e-4)
    greedy = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert greedy[0, length] == whole[0, -1].argmax() or int(whole[0, -1].argmax()) == model.placeholder_id
    beams = model.generate(**inputs, max_new_tokens=3, num_beams=3, do_sample=False)
    assert beams.shape[1] <= length + 3 and torch.equal(beams[:, :length], inputs["input_ids"])


def test_demonstrations_are_a_kind_of_their_own_and_show_no_picture_token() -> None:
    model = hub_model()
    sample = asked(demo(1), demo(2, "both"))
    found = model.encode_samples([sample])
    kinds, index = found.token_kind[0], found.image_index[0]
    length = len("what?\nthing 1")
    assert [int((kinds[index == i] == DEMO).sum()) for i in range(3)] == [length + 1, 4 + length + 1, 0]
    assert (kinds[index == 2] == IMAGE).all() and int((index == 2).sum()) == 4
    assert found.image_form.tolist() == [1, 4, 0]
    tags = hub_model("cross_attention").encode_samples([sample])
    assert tags.image_form.tolist() == [1, 4, 0] and [int((tags.image_index == i).sum()) for i in range(3)] == [1, 1, 1]


def test_permuted_demonstrations_leave_the_questions_own_tokens() -> None:
    model = hub_model()
    wake(model)
    demos = [demo(1), demo(2, text="a longer text"), demo(3, "both")]

    def own(parts: list[DemoPart]) -> Tensor:
        inputs = model.encode_samples([asked(*parts)]).inputs()
        texts = model._texts(inputs["image_text"], inputs["image_form"])
        return model.frontend(pixel_values=inputs["pixel_values"], texts=texts).each[-1]

    assert torch.equal(own(demos), own([demos[2], demos[0], demos[1]]))
    torch.testing.assert_close(own(demos), own([]), rtol=1e-5, atol=1e-6)


def test_a_demonstrations_picture_is_felt_through_its_text_alone() -> None:
    model = hub_model()
    wake(model)
    inputs = model.encode_samples([asked(demo(1), demo(2))], labels=True).inputs()
    features = model.frontend.encode(inputs.pop("pixel_values")).float().requires_grad_()
    model(**inputs, vision_features=features).loss.backward()
    assert features.grad is not None and bool((features.grad.abs().sum((1, 2)) > 0).all())
    shut = model.frontend.projector.hub.gate
    assert shut is not None
    with torch.no_grad():
        shut.zero_()  # E(text) alone: what is left of the picture is nothing
    features.grad = None
    model(**inputs, vision_features=features).loss.backward()
    assert features.grad[:2].abs().sum() == 0 and features.grad[2].abs().sum() > 0 and shut.grad.abs() > 0


def test_the_question_guides_its_pictures_tokens_and_later_turns_do_not() -> None:
    model = hub_model()
    wake(model)

    def tokens(sample: Sample) -> Tensor:
        inputs = model.encode_samples([sample]).inputs()
        texts = model._texts(inputs["image_text"], inputs["image_form"])
        return model.frontend(pixel_values=inputs["pixel_values"], texts=texts).tokens

    one = asked()
    later = replace(one, messages=(*one.messages, Message.of("user", "sure?"), Message.of("assistant", "yes")))
    assert torch.equal(tokens(one), tokens(later))
    assert not torch.allclose(tokens(one), tokens(asked(question="where is it?")), atol=1e-4)
    free = hub_model(hub={"guided": False})
    wake(free)
    model = free
    torch.testing.assert_close(tokens(one), tokens(asked(question="where is it?")))


def test_proof_holds_and_the_graft_comes_back(tmp_path: Path) -> None:
    llm = tiny_llm()
    llm.save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    from transformers import AutoModelForCausalLM

    llm = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    tower = TinyTower()
    model = tsugiki.attach(llm, "mmict", vision=tower, tokenizer=tiny_tokenizer(), hub={**HUB, "demos": "both"})
    wake(model)
    assert verify(model).holds
    sample = asked(demo(1, "both"), picture=2)
    before = logits(model, [sample])
    model.save(tmp_path / "graft")
    card = (tmp_path / "graft" / "README.md").read_text(encoding="utf-8")
    assert "A hub of" in card and "2312.06363" in card and "as both" in card
    saved = json.loads((tmp_path / "graft" / "config.json").read_text())["frontend"]
    assert saved["projector"] == "hub" and saved["hub"]["queries"] == 4 and saved["hub"]["demos"] == "both"
    again = tsugiki.load(tmp_path / "graft", vision=tower)
    assert torch.equal(logits(again, [sample]), before)
    alone = TsugikiProcessor.from_pretrained(tmp_path / "graft", tokenizer=tiny_tokenizer())
    one, other = (p.collator(labels=False)([sample]) for p in (alone, again.processor))
    assert all(torch.equal(v, other.inputs()[k]) for k, v in one.inputs().items())
    chatted = again.chat("what is it?", [PICTURES[0]], max_new_tokens=2, do_sample=False)
    assert isinstance(chatted, str)


def test_a_processor_called_on_texts_gives_the_hub_its_words() -> None:
    model = hub_model()
    inputs = model.processor(images=PICTURES[:1], text="<image>what is it?")
    assert inputs["image_text"].shape == (1, len("what is it?")) and inputs["image_form"].tolist() == [0]
    with torch.no_grad():
        model(**inputs)


# -- the published form ------------------------------------------------------------------------------------------------


def bert(folder: Path) -> Path:
    """A tiny BERT with its tokenizer."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "what", "is", "it", "thing", "?", *map(str, range(9))]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    from tokenizers.processors import TemplateProcessing

    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    torch.manual_seed(5)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    BertModel(BertConfig(vocab_size=50, max_position_embeddings=20, **sizes)).save_pretrained(folder)
    return folder


def qformer(folder: Path) -> Path:
    """A tiny BLIP-2 checkpoint's Q-Former."""
    folder.mkdir()
    torch.manual_seed(6)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    config = Blip2QFormerConfig(**sizes, vocab_size=50, max_position_embeddings=20, encoder_hidden_size=24)
    state = {f"qformer.{k}": v for k, v in Blip2QFormerModel(config).state_dict().items()}
    save_file({**state, "query_tokens": torch.randn(1, 4, 16)}, folder / "model.safetensors")
    values = {"qformer_config": {**sizes, "vocab_size": 50, "max_position_embeddings": 20}, "num_query_tokens": 4}
    (folder / "config.json").write_text(json.dumps(values))
    return folder


def test_a_published_hub_starts_from_a_checkpoint_and_reads_its_own_words(tmp_path: Path) -> None:
    words, weights = str(bert(tmp_path / "bert")), str(qformer(tmp_path / "blip2"))
    hub = {"form": "published", "weights": weights, "words": words}
    model = tiny_model("mmict", hub=hub)
    own = model.frontend.projector.hub
    assert torch.equal(own.words.weight, BertModel.from_pretrained(words).embeddings.word_embeddings.weight)
    assert own.config.queries == 4 and own.config.layers == 2 and own.gate is None
    found = model.encode_samples([asked(demo(1, text="what is it 3"), demo(2, "uni_modal", "写真"), question="what?")])
    assert found.image_text[0, :6].tolist() == [2, 4, 5, 6, 12, 3] and found.image_text[2, :4].tolist() == [2, 4, 8, 3]
    assert (found.image_text[1] >= 0).sum() == 6  # the LLM's own bytes
    with torch.no_grad():
        model(**found.inputs())
    model.save(tmp_path / "graft")
    settings = json.loads((tmp_path / "graft" / "config.json").read_text())["frontend"]["hub"]
    (tmp_path / "blip2" / "model.safetensors").unlink()  # a saved graft needs the words, no longer the checkpoint
    built = FrontEnd.build(FrontEndConfig(tower="t", projector="hub", hub=settings), 32, tower=TinyTower())
    assert built.projector.hub.config == own.config


# -- what is wrong is said ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"hub": {"querys": 3}}, UnknownNameError, "Did you mean 'queries'"),
        ({"hub": {"demos": "picture"}}, UnknownNameError, "form of demonstrations"),
        ({"hub": {"form": "heavy"}}, UnknownNameError, "light"),
        ({"hub": {"weights": "somewhere"}}, InputError, "form: published"),
        ({"hub": {"form": "published", "words": "nowhere/to/be"}}, AssetError, "nowhere/to/be"),
        ({"positions": "learned"}, InputError, "positions='learned' with projector='hub'"),
        ({"hidden": 8}, InputError, "hidden=8"),
        ({"places": 2}, InputError, "places=2"),
        ({"views": "global+2x2"}, InputError, "one tower with one view"),
        ({"projector": "mlp", "hub": {"queries": 3}}, InputError, "settings of a hub"),
        ({"projector": "hab"}, UnknownNameError, "hub"),
    ],
)
def test_wrong_settings(options: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error) as caught:
        tiny_model("projector", **{"projector": "hub", **options}).processor  # noqa: B018
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_texts_of_other_pictures_are_refused() -> None:
    model = hub_model()
    inputs = model.encode_samples([asked()]).inputs()
    inputs["image_text"] = inputs["image_text"].repeat(2, 1)
    with pytest.raises(InputError, match="texts of 2 pictures"):
        model(**inputs)


def test_settings_are_plain_values_and_come_back() -> None:
    given = HubSettings.of({"form": "published", "queries": 8, "demos": "both"})
    assert HubSettings.of(given.to_dict()) == given and given.sizes.layers == 12
    config = FrontEndConfig(tower="t", projector="hub", hub={"queries": 8})
    assert FrontEndConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert "hub" not in FrontEndConfig(tower="t").to_dict()


def test_words_of_a_message_without_text() -> None:
    model = hub_model()
    turn = Message("user", (TextPart(""), *Message.of("user", "", (PICTURES[0],)).parts))
    found = model.encode_samples([Sample(id="0", messages=(turn,))])
    assert (found.image_text == -1).all()
