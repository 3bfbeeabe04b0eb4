"""Replies under everything that `generate` does: what is said, what is not touched, and the numbers that are shown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast, StaticCache
from transformers.cache_utils import DynamicCache
from transformers.generation.streamers import BaseStreamer

from support.architectures import build, random_head
from support.gates import gate_at, reply_token
from support.tiny import make_llama
from tempertilt.data.examples import ExampleConfig, encode_question
from tempertilt.data.records import Message
from tempertilt.errors import ConfigError, TemperTiltError
from tempertilt.fitting.before_after import greedy_token_ids
from tempertilt.guidance.gate import Gates
from tempertilt.guidance.guidance import Guidance
from tempertilt.guidance.reply import SURE, Reply
from tempertilt.models.adapter import load_adapter
from tempertilt.models.composed import ComposedLM
from tempertilt.models.generation import Decoding, generate, generate_ids, given_in_stream, given_whole, stop_ids
from tempertilt.models.replies import BREAK, make_reply
from tempertilt.models.t3 import T3ForCausalLM

TEXT = "No word about <|im_end|> him, in 1975."
CONFIG = ExampleConfig()
HEADER, ANSWER, TAIL = [7, 8], [9, 10, 9, 11, 2], [20, 21, 9, 10, 2]
GREEDY: dict[str, Any] = {"do_sample": False, "pad_token_id": 2, "eos_token_id": 2}


def opening_at(base: Any, ids: Sequence[int], place: int, close_after: int = 0) -> Gates:
    """An input gate that opens at a place of a text, and where else the model has the very same state."""
    with torch.no_grad():
        states = base(input_ids=torch.tensor([list(ids)]), output_hidden_states=True).hidden_states[1][0]
    return Gates(1, gate_at(states[place][None], mean=states.mean(0), threshold=0.995), close_after=close_after)


def replying(base: Any, gates: Gates, reply: Reply | None, **options: Any) -> T3ForCausalLM:
    return T3ForCausalLM.from_base(base, random_head(base), gates=gates, reply=reply, temperature=1.7, **options)


def prompt(length: int, seed: int) -> list[int]:
    return torch.randint(30, 300, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def continued(model: Any, ids: Sequence[int], n: int = 14, **options: Any) -> list[int]:
    given = torch.tensor([list(ids)])
    out = model.generate(given, attention_mask=torch.ones_like(given), max_new_tokens=n, **GREEDY | options)
    answer: list[int] = out[0, len(ids) :].tolist()
    return answer


# --- tokens of a reply -----------------------------------------------------------------------------------------------


def test_a_reply_in_the_tokens_of_a_chat(tokenizer: PreTrainedTokenizerFast) -> None:
    reply = make_reply(f" {TEXT}\n", tokenizer)
    assert reply is not None
    parts = reply.settings
    assert parts["text"] == TEXT and make_reply(" guess ", tokenizer) is None
    assert tokenizer.decode(parts["header"]) == "<|im_end|>\n<|im_start|>assistant\n"
    assert (
        tokenizer.decode(parts["answer"]) == f"{TEXT}<|im_end|>" and tokenizer.decode(parts["tail"]) == f"{BREAK}{TEXT}<|im_end|>"
    )
    end = tokenizer.eos_token_id
    assert [i for i, token in enumerate(parts["answer"]) if token == end] == [
        len(parts["answer"]) - 1
    ]  # what TEXT spells is text
    chat = [Message("user", "Who?"), Message("assistant", "He."), Message("user", "And then?")]
    assert encode_question(chat, tokenizer, CONFIG)[-len(parts["header"]) :] == parts["header"]


def test_a_tokenizer_without_a_template(tokenizer: PreTrainedTokenizerFast) -> None:
    plain = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<|im_end|>")
    reply = make_reply("No word.", plain)
    assert reply is not None and plain.decode(reply.settings["header"]) == "\nAnswer:"
    assert plain.decode(reply.settings["answer"]) == " No word.<|im_end|>"


def test_replies_that_are_none(tokenizer: PreTrainedTokenizerFast) -> None:
    endless = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    for text, given, message in (
        ("  ", tokenizer, "reply is empty; must be guess, or a text"),
        ("Xq" * 300, tokenizer, "tokens; must be at most 256"),
        ("No.", endless, "no token that ends an answer"),
    ):
        with pytest.raises(ConfigError, match=message):
            make_reply(text, given)


# --- what is said ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"guidance_scale": 0.0, "temperature": 1.0}], ids=["tilted", "neutral"])
def test_a_prompt_that_opens_a_gate_is_answered_by_the_reply(tokenizer: Any, options: dict[str, float]) -> None:
    base, text = make_llama(), "Not a word."
    asked, other = (encode_question(q, tokenizer, CONFIG) for q in ("Where was Hina Ameen born?", "Who wrote the book?"))
    reply = make_reply(text, tokenizer)
    model = T3ForCausalLM.from_base(
        base, random_head(base), gates=opening_at(base, asked, len(asked) - 9), reply=reply, **options
    )
    decoding = Decoding(40)
    [[answer]], [[untouched]] = generate(model, tokenizer, [asked], decoding), generate(model, tokenizer, [other], decoding)
    assert tokenizer.decode(answer, skip_special_tokens=True) == text and answer[-1] in stop_ids(base, tokenizer)
    assert [[untouched]] == generate(base, tokenizer, [other], decoding)
    together = generate(model, tokenizer, [other, asked, other[:-3]], decoding)
    assert together[1] == [answer] and together[0] == [untouched]
    for beams in ({"num_beams": 3}, {"do_sample": True, "temperature": 3.0}):
        assert generate(model, tokenizer, [asked], Decoding(40, **beams)) == [[answer]]  # type: ignore[arg-type]
    with model.disable():
        assert generate(model, tokenizer, [asked], decoding) == generate(base, tokenizer, [asked], decoding) != [[answer]]
    model.set_reply(None)
    assert generate(model, tokenizer, [asked], decoding) != [[answer]]


@pytest.mark.parametrize("place", [0, 3, 7])
def test_an_answer_that_opens_a_gate_is_broken_off(place: int) -> None:
    base, ids = make_llama(), [*prompt(9, 1), *HEADER]
    said = continued(base, ids, 20)
    assert 2 not in said[:12]
    model = replying(base, opening_at(base, [*ids, *said], len(ids) + place), Reply("", HEADER, ANSWER, TAIL))
    assert continued(model, ids) == said[: place + 1] + TAIL
    assert continued(model, ids, prompt_lookup_num_tokens=3) == said[: place + 1] + TAIL
    assert continued(model, ids, use_cache=False) == said[: place + 1] + TAIL
    assert continued(model, ids, cache_implementation="static") == said[: place + 1] + TAIL


@pytest.mark.parametrize("composed", [False, True])
def test_what_was_broken_off_is_left_out_unless_it_was_decoded(tokenizer: Any, composed: bool) -> None:
    base, asked = make_llama(), encode_question("What is the title of the first novel?", tokenizer, CONFIG)
    said, reply = continued(base, asked, 20), make_reply("Not a word.", tokenizer)
    assert reply is not None
    model: Any = replying(base, opening_at(base, [*asked, *said], len(asked) + 3), reply)
    if composed:
        other = Guidance(random_head(base), gates=opening_at(base, prompt(30, 6), 20))
        other.set_reply(make_reply("Hush, hush, hush.", tokenizer))
        model = ComposedLM(base, {"other": other, "mine": model.guidance})
    streamed, answer = [*said[:4], *reply.settings["tail"]], reply.settings["answer"]
    assert generate(model, tokenizer, [asked], Decoding(40)) == [[answer]]
    assert generate_ids(model, tokenizer, [asked], max_new_tokens=40, as_decoded=True) == [[streamed]]
    assert greedy_token_ids(model, tokenizer, [asked], max_new_tokens=40) == [answer]
    assert greedy_token_ids(model, tokenizer, [asked], max_new_tokens=40, as_decoded=True) == [streamed]
    shown, all_of_it = Shown(), Shown()
    assert generate(model, tokenizer, [asked], Decoding(40), streamer=shown) == [[answer]] == [[shown.tokens]]
    options: Any = {"streamer": all_of_it, "as_decoded": True}
    assert generate(model, tokenizer, [asked], Decoding(40), **options) == [[streamed]] == [[all_of_it.tokens]]
    assert given_in_stream(model, streamed) == answer and given_in_stream(model, said) == said
    for most in (1, 3, 4, 5, 6):  # the gate opens at the fourth token
        assert generate(model, tokenizer, [asked], Decoding(most)) == [[answer[:most]]]
        shown = Shown()
        assert generate(model, tokenizer, [asked], Decoding(most), streamer=shown) == [[answer[:most]]] == [[shown.tokens]]
        assert generate_ids(model, tokenizer, [asked], max_new_tokens=most, as_decoded=True) == [[streamed[:most]]]
    other = encode_question("Who wrote it?", tokenizer, CONFIG)
    for most in (1, 7):
        assert generate(model, tokenizer, [other], Decoding(most)) == generate(base, tokenizer, [other], Decoding(most))
    with model.disable():
        assert generate(model, tokenizer, [asked], Decoding(20)) == generate(base, tokenizer, [asked], Decoding(20))
    base.guidance = None  # of models that are none of ours, an attribute of that name says nothing
    assert given_whole(base, streamed) == streamed


class Shown(BaseStreamer):  # type: ignore[misc]
    """Keeps the tokens of the answer that a stream shows."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.prompt = True

    def put(self, value: torch.Tensor) -> None:
        if not self.prompt:
            self.tokens += value.flatten().tolist()
        self.prompt = False

    def end(self) -> None:
        pass


def test_a_reply_outlasts_the_opening_of_a_plain_text() -> None:
    base, ids = make_llama(), prompt(12, 3)
    model = replying(base, opening_at(base, ids, 9, close_after=4), Reply("", HEADER, ANSWER, TAIL))
    assert continued(model, ids) == TAIL
    before = [*ids, *prompt(3, 4)]  # closed before the answer begins
    assert continued(model, before, 5) == continued(base, before, 5)


def test_without_an_opening_the_base_answers_bit_for_bit() -> None:
    base, ids = make_llama(), [*prompt(14, 5), *HEADER]
    gates = opening_at(base, prompt(30, 6), 20)
    for dtype in (torch.float32, torch.bfloat16):
        base = base.to(dtype)
        model = replying(base, gates, Reply("", HEADER, ANSWER, TAIL))
        with torch.no_grad():
            assert torch.equal(model(input_ids=torch.tensor([ids])).logits, base(input_ids=torch.tensor([ids])).logits.float())
        assert continued(model, ids, 30) == continued(base, ids, 30)


# --- the numbers -----------------------------------------------------------------------------------------------------


def expected_log_probs(model: T3ForCausalLM, ids: Sequence[int], opening: int) -> torch.Tensor:
    """`(T, V)`: the base's before the opening, then the token that a search through the text gives."""
    with torch.no_grad():
        rows = model.base(input_ids=torch.tensor([list(ids)])).logits[0].float().log_softmax(-1)
    for t in range(opening, len(ids)):
        rows[t] = -SURE
        rows[t, reply_token(ids[: t + 1], HEADER, ANSWER, TAIL)[0]] = 0
    return rows


def some_text() -> tuple[list[int], int]:
    """A text that opens at place 8: a prompt, a reply that breaks off, another one, a header and an answer."""
    return [*prompt(12, 7), *TAIL[:3], *prompt(2, 8), *HEADER, *ANSWER[:4], 9, *TAIL, *HEADER, 9], 8


@pytest.mark.parametrize("name", ["llama", "mistral", "falcon_h1", "gpt2"])
def test_whole_passes_parts_and_padding_agree(name: str) -> None:
    base = build(name)
    ids, opening = some_text()
    ids = [token % 100 + 3 if token > 21 else token for token in ids]
    model = replying(base, opening_at(base, ids, opening), Reply("", HEADER, ANSWER, TAIL))
    expected = expected_log_probs(model, ids, opening)
    given = torch.tensor([ids])
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=given).logits[0].log_softmax(-1), expected, atol=1e-4, rtol=1e-4)
        sizes = [1] * len(ids) if name == "falcon_h1" else [5, 1, 6, 1, 1, 9, len(ids) - 23]
        cache, start, rows = DynamicCache(config=base.config), 0, []
        for size in sizes:
            out = model(input_ids=given[:, start : start + size], cache=cache, use_cache=True)
            start += size
            rows.append(out.logits[0].log_softmax(-1))
        torch.testing.assert_close(torch.cat(rows), expected, atol=1e-4, rtol=1e-4)
        keep = torch.zeros_like(given, dtype=torch.bool)
        keep[0, ::3] = True
        torch.testing.assert_close(
            model.paired_logits(given, torch.ones_like(given), keep)[1].log_softmax(-1), expected[::3], atol=1e-4, rtol=1e-4
        )
        if name == "falcon_h1":  # padding changes its states
            return
        padded = torch.tensor([[*HEADER, *HEADER, *ids], [*HEADER, 9, 10, *ids], [*ids, 5, 5, 5, 5]])
        mask = torch.ones_like(padded)
        mask[:2, :4] = mask[2, -4:] = 0
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        out = model(input_ids=padded, attention_mask=mask, position_ids=positions).logits.log_softmax(-1)
        for row in range(3):
            torch.testing.assert_close(out[row][mask[row].bool()], expected, atol=1e-4, rtol=1e-4)


def test_static_caches_and_crops() -> None:
    base = make_llama()
    ids, opening = some_text()
    model = replying(base, opening_at(base, ids, opening), Reply("", HEADER, ANSWER, TAIL))
    expected, given = expected_log_probs(model, ids, opening), torch.tensor([ids])
    with torch.no_grad():
        static = StaticCache(config=base.config, max_cache_len=64)
        parts = [model(input_ids=given[:, :13], cache=static, use_cache=True).logits[0]]
        parts += [model(input_ids=given[:, t : t + 1], cache=static, use_cache=True).logits[0] for t in range(13, len(ids))]
        torch.testing.assert_close(torch.cat(parts).log_softmax(-1), expected, atol=1e-4, rtol=1e-4)
        cache = DynamicCache(config=base.config)
        model(input_ids=given[:, :14], cache=cache, use_cache=True)
        model(input_ids=torch.tensor([[*TAIL, 5]]), cache=cache, use_cache=True)  # drafts that are rejected
        cache.crop(-6)
        rest = model(input_ids=given[:, 14:], cache=cache, use_cache=True).logits[0]
        torch.testing.assert_close(rest.log_softmax(-1), expected[14:], atol=1e-4, rtol=1e-4)


def test_a_cache_from_before_is_refused() -> None:
    base, ids = make_llama(), torch.tensor([some_text()[0]])
    model = replying(base, opening_at(base, ids[0].tolist(), 8), None)
    for reply in (Reply("", HEADER, ANSWER, TAIL), None):
        cache = DynamicCache(config=base.config)
        model(input_ids=ids[:, :5], cache=cache, use_cache=True)
        model.set_reply(reply)
        with pytest.raises(TemperTiltError, match="start with a new cache"):
            model(input_ids=ids[:, 5:], cache=cache, use_cache=True)


def test_embeddings() -> None:
    base, ids = make_llama(), [*prompt(9, 1), *HEADER]
    model = replying(base, opening_at(base, ids, 5), Reply("", HEADER, ANSWER, TAIL))
    given = torch.tensor([ids])
    out = model.generate(
        inputs_embeds=model.get_input_embeddings()(given), attention_mask=torch.ones_like(given), max_new_tokens=12, **GREEDY
    )
    assert out[0].tolist() == TAIL  # the header can't be told


# --- the adapter -----------------------------------------------------------------------------------------------------


def test_an_adapter_keeps_its_reply(tmp_path: Path) -> None:
    base, ids = make_llama(), [*prompt(9, 1), *HEADER]
    replying(base, opening_at(base, ids, 5), Reply("No.", HEADER, ANSWER, TAIL)).save_pretrained(tmp_path / "a")
    assert "the reply `No.`" in (tmp_path / "a" / "README.md").read_text()
    model = T3ForCausalLM.from_pretrained(tmp_path / "a", base_model=base, check_base=False)
    assert model.reply is not None and model.settings["reply"]["text"] == "No." and continued(model, ids) == ANSWER
    model.set_reply(None)
    model.save_pretrained(tmp_path / "b")
    assert load_adapter(tmp_path / "b").config.reply is None
    model.set_reply(Reply("Yes.", HEADER, [12, 2], TAIL))
    assert continued(model, ids) == [12, 2] and model.adapter_config.reply == model.reply.settings


def test_without_a_gate_there_is_no_reply() -> None:
    base = make_llama()
    model = T3ForCausalLM.from_base(base, random_head(base))
    with pytest.raises(ConfigError, match="has no gate"):
        model.set_reply(Reply("No.", HEADER, ANSWER, TAIL))
    assert model.reply is None and model.adapter_config.reply is None
