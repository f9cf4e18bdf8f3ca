"""The composite: its public face, its processor, and conversations."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig

import tsugiki
from tsugiki.data.detail import instruct
from tsugiki.errors import InputError, PromptError, UnknownNameError
from tsugiki.testing import TinyTower, tiny_images, tiny_llm, tiny_model, tiny_tokenizer
from tsugiki.types import IMAGE, TEXT, Message

PICTURES = tiny_images(3)


def conversation(text: str, *pictures: object) -> list[dict]:  # type: ignore[type-arg]
    parts = [{"type": "image", "image": p} for p in pictures]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def test_print_says_what_hooks_where_and_what_is_promised() -> None:
    text = str(tiny_model("cross_attention", every=2))
    assert "before layer 0, before layer 2" in text and "arXiv:2204.14198" in text
    assert "exact (untouched), prefix exact: yes" in text and "LLM         0 trainable" in text


def test_unknown_names_say_the_nearest() -> None:
    llm, tokenizer, tower = tiny_llm(), tiny_tokenizer(), TinyTower()
    with pytest.raises(UnknownNameError, match="Did you mean 'projector'"):
        tsugiki.attach(llm, "projektor", vision=tower, tokenizer=tokenizer)
    with pytest.raises(UnknownNameError, match="Did you mean 'input_size'"):
        tsugiki.attach(llm, "projector", vision=tower, tokenizer=tokenizer, inputsize=3)
    with pytest.raises(InputError, match="no vision tower"):
        tsugiki.attach(llm, "projector", tokenizer=tokenizer)
    with pytest.raises(InputError, match="no tokenizer"):
        tsugiki.attach(llm, "projector", vision=tower)
    with pytest.raises(UnknownNameError, match="'cross_attention'"):
        tsugiki.attach(tiny_model(), "cross_atention")
    with pytest.raises(InputError, match="already"):
        tsugiki.attach(tiny_model(), "projector")
    with pytest.raises(InputError, match="does not divide"):
        tiny_model("cross_attention", heads=3)


def test_the_placeholder_is_reserved_or_unused_or_beyond() -> None:
    tokenizer = tiny_tokenizer()
    assert tsugiki.build.placeholder(tokenizer, 272) == len(tokenizer) == 259
    assert tsugiki.build.placeholder(tokenizer, 259) == 259
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|reserved_special_token_0|>"]})
    assert tsugiki.build.placeholder(tokenizer, 272) == 259 < len(tokenizer)


def test_a_placeholder_beyond_the_vocabulary_generates_as_one_inside() -> None:
    inside, beyond = tiny_model(), tiny_model()
    beyond.config.placeholder_id = 5000
    out = [m.chat("name it", images=PICTURES[:1], max_new_tokens=6, do_sample=False) for m in (inside, beyond)]
    assert out[0] == out[1]


def test_attaching_leaves_the_kernel_choice_of_the_llm_alone() -> None:
    llm = tiny_llm()
    before = llm.config._attn_implementation
    tsugiki.attach(llm, "projector", vision=TinyTower(), tokenizer=tiny_tokenizer())
    assert llm.config._attn_implementation == before == "sdpa"


def test_an_llm_carries_one_model_at_a_time() -> None:
    llm, tokenizer = tiny_llm("llama"), tiny_tokenizer()
    first = tsugiki.attach(llm, "projector", vision=TinyTower(), tokenizer=tokenizer)
    with pytest.raises(InputError, match=r"carries the grafts of another model.*detach\(\)"):
        tsugiki.attach(llm, "cross_attention", vision=TinyTower(), tokenizer=tokenizer)
    first.chat("Still there?", max_new_tokens=2)
    bare = first.detach()
    assert not bare.lm_head._forward_pre_hooks
    second = tsugiki.attach(bare, "cross_attention", vision=TinyTower(), tokenizer=tokenizer)
    assert second.chat("And now?", images=tiny_images(1), max_new_tokens=2) is not None


def test_question_and_picture_both_change_the_logits() -> None:
    model = tiny_model()

    def logits(text: str, picture: object) -> torch.Tensor:
        inputs = model.processor.apply_chat_template(conversation(text, picture), add_generation_prompt=True)
        with torch.no_grad():
            return model(**inputs).logits[:, -1]

    base = logits("what is it?", PICTURES[0])
    assert not torch.allclose(base, logits("where is it?", PICTURES[0]))
    assert not torch.allclose(base, logits("what is it?", PICTURES[1]))
    assert torch.equal(base, logits("what is it?", PICTURES[0]))


def test_chat_about_text_is_the_bare_llms() -> None:
    model = tiny_model()
    answer = model.chat("hello", detail="short", max_new_tokens=8, do_sample=False)
    tokenizer = tiny_tokenizer()
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hello"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with model.detached() as llm:
        out = llm.generate(**ids, max_new_tokens=8, do_sample=False)
    assert answer == tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def test_chat_with_pictures_turns_and_details() -> None:
    model = tiny_model()
    short = model.chat("what?", images=PICTURES[:1], detail="short", max_new_tokens=4, do_sample=False)
    full = model.chat("what?", images=PICTURES[:1], detail="full", max_new_tokens=4, do_sample=False)
    assert isinstance(short, str) and isinstance(full, str)
    history = (Message.of("user", "what?", (PICTURES[0],)), Message.of("assistant", "a thing"))
    later = model.chat("and this?", images=PICTURES[1:], history=history, max_new_tokens=4, do_sample=False)
    assert isinstance(later, str)
    with pytest.raises(UnknownNameError, match="Did you mean 'short'"):
        model.chat("what?", images=PICTURES[:1], detail="shrot")
    with pytest.raises(PromptError, match="longer|tokens"):
        model.chat("x" * 600, images=PICTURES[:1])


def test_details_are_asked_for_in_the_questions_language() -> None:
    assert instruct("What is it?", "short").startswith("What is it? ")
    assert instruct("これは何ですか。", "short") == "これは何ですか。" + instruct("猫", "short").removeprefix("猫")


@pytest.mark.parametrize("question", ["what is it?", "これは何ですか？"])
def test_streaming_gives_the_same_answer(question: str) -> None:
    model = tiny_model()
    whole = model.chat(question, images=PICTURES[:1], max_new_tokens=12, do_sample=False)
    pieces = list(model.chat(question, images=PICTURES[:1], max_new_tokens=12, do_sample=False, stream=True))
    assert "".join(pieces).strip() == whole


def test_a_failure_while_streaming_reaches_the_reader() -> None:
    with pytest.raises(ValueError, match="max_new_tokens"):
        list(tiny_model().chat("what?", images=PICTURES[:1], max_new_tokens=-1, stream=True))


def test_sampling_and_batches() -> None:
    model = tiny_model()
    processor = model.processor
    model.tokenizer.padding_side = "left"
    batch = processor.apply_chat_template(
        [conversation("one", PICTURES[0]), conversation("and two more", *PICTURES[1:])], add_generation_prompt=True
    )
    torch.manual_seed(0)
    out = model.generate(**batch, max_new_tokens=5, do_sample=True, num_return_sequences=2)
    assert out.shape[0] == 4
    torch.manual_seed(0)
    assert torch.equal(out, model.generate(**batch, max_new_tokens=5, do_sample=True, num_return_sequences=2))


def test_a_given_generation_config_keeps_the_placeholder_suppressed() -> None:
    model = tiny_model()
    inputs = model.processor.apply_chat_template(conversation("one", PICTURES[0]), add_generation_prompt=True)
    plain = model.generate(**inputs, max_new_tokens=5, do_sample=False)
    config = GenerationConfig(max_new_tokens=5, do_sample=False, suppress_tokens=[int(plain[0, -5])])
    out = model.generate(**inputs, generation_config=config)
    assert out[0, -5] != plain[0, -5] and config.suppress_tokens == [int(plain[0, -5])]


def test_typed_placeholders_stay_text() -> None:
    model = tiny_model()
    text = "<image> <|image_pad|> how many?"
    inputs = model.processor.apply_chat_template(conversation(text, PICTURES[0]), add_generation_prompt=True)
    assert int((inputs["token_kind"] == IMAGE).sum()) == model.tokens_per_image
    typed = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    kept = inputs["input_ids"][inputs["token_kind"] == TEXT].tolist()
    assert any(kept[i : i + len(typed)] == typed for i in range(len(kept)))
    alone = model.processor.apply_chat_template(conversation(text), add_generation_prompt=True)
    assert set(alone) == {"input_ids", "attention_mask"}


def test_processor_call_as_in_transformers() -> None:
    model = tiny_model()
    plain = model.processor(text="hello")
    assert torch.equal(plain["input_ids"], model.tokenizer("hello", return_tensors="pt")["input_ids"])
    seen = model.processor(text="see <image> and <image>", images=PICTURES[:2])
    assert seen["pixel_values"].shape[0] == 2 and int((seen["token_kind"] == IMAGE).sum()) == 2 * model.tokens_per_image
    with pytest.raises(PromptError, match="1 <image> placeholders for 2 pictures"):
        model.processor(text="see <image>", images=PICTURES[:2])
    with pytest.raises(PromptError, match="by address"):
        model.processor.apply_chat_template(conversation("what?", "https://example.org/a.png"))


def test_image_features_as_servers_ask_for_them() -> None:
    model = tiny_model()
    pixels = torch.stack([model.frontend.transform(p) for p in PICTURES])
    features = model.get_image_features(pixels).pooler_output
    assert len(features) == 3 and features[0].shape == (model.tokens_per_image, 32)


def test_auto_classes_and_store(tmp_path: Path) -> None:
    model = tiny_model()
    answer = model.chat("what?", images=PICTURES[:1], max_new_tokens=5, do_sample=False)
    model.save(tmp_path / "graft")
    parts = {"base": tiny_llm(), "tokenizer": tiny_tokenizer(), "vision": TinyTower()}
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "graft", **parts)
    assert again.chat("what?", images=PICTURES[:1], max_new_tokens=5, do_sample=False) == answer
    model.language_model.save_pretrained(tmp_path / "base")
    model.tokenizer.save_pretrained(tmp_path / "base")
    processor = AutoProcessor.from_pretrained(tmp_path / "graft", base=str(tmp_path / "base"))
    wanted = model.processor.apply_chat_template(conversation("猫?", PICTURES[1]))
    got = processor.apply_chat_template(conversation("猫?", PICTURES[1]))
    assert all(torch.equal(wanted[k], got[k]) for k in wanted)


def test_frozen_parts_stay_in_eval_mode_and_without_gradient() -> None:
    model = tiny_model("cross_attention").train()
    assert not any(m.training for m in model.language_model.modules())
    assert not any(m.training for m in model.frontend.tower.modules())
    assert all(m.training for m in model.grafts[0].modules())
    model.freeze_llm(False)
    assert model.train().language_model.training and model.guarantee == "bounded" and not model.prefix_exact


def test_a_copy_runs_its_own_parts() -> None:
    model = tiny_model("cross_attention")
    inputs = model.processor.encode([Message.of("user", "name it", tuple(PICTURES[:1]))])
    twin = copy.deepcopy(model)
    with torch.no_grad():
        before = model(**inputs).logits
        for block in model.grafts[0].blocks:
            block.gate.fill_(1.0)
        assert torch.equal(twin(**inputs).logits, before) and not torch.equal(model(**inputs).logits, before)


def test_image_positions_without_their_pictures_are_refused() -> None:
    tags = tiny_model("cross_attention")
    inputs = tags.processor.encode([Message.of("user", "name it", tuple(PICTURES[:1]))])
    del inputs["pixel_values"]
    with pytest.raises(PromptError, match="no image came"):
        tags(**inputs)
    model = tiny_model()
    inputs = model.processor.encode([Message.of("user", "compare", tuple(PICTURES[:2]))])
    inputs["pixel_values"] = inputs["pixel_values"][:1]
    with pytest.raises(PromptError, match="image number 2"):
        model(**inputs)


def test_chat_leaves_the_length_to_a_given_generation_config(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = tiny_model(), []
    own = model.language_model.generate
    monkeypatch.setattr(model.language_model, "generate", lambda *a, **k: seen.append(k) or own(*a, **k))
    model.chat("hello", generation_config=GenerationConfig(max_new_tokens=2))
    assert "max_new_tokens" not in seen[0]


def test_a_saved_processor_cuts_pictures_as_the_model_does(tmp_path: Path) -> None:
    model = tiny_model()
    model.frontend.tower.view_size = 30  # as where patches do not divide the input size
    model.save(tmp_path / "graft")
    saved = type(model.processor).from_pretrained(tmp_path / "graft", tokenizer=tiny_tokenizer())
    assert torch.equal(saved.transform(PICTURES[0]), model.processor.transform(PICTURES[0]))
