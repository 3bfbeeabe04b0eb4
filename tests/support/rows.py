"""Answers of tiny random models whose distributions at every step are kept, to be compared with whole passes."""

from __future__ import annotations

from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Phi3Config, Phi3ForCausalLM

from support.architectures import COMMON, VOCAB, random_head
from support.gates import random_gates
from tempertilt.models.t3 import T3ForCausalLM
from tempertilt.serving.answers import Answer, Piece
from tempertilt.serving.decoder import Decoder, Distribution
from tempertilt.serving.sampling import Sampling


class NoTexts:
    """A tokenizer of which nothing is asked but text."""

    def decode(self, ids: list[int], **_: Any) -> str:
        return "x" * len(ids)


def unlearned(base: Any, gated: bool = True) -> T3ForCausalLM:
    """With gates that open and close along a text, so that what a row has read changes its numbers."""
    d = base.get_output_embeddings().weight.shape[1]
    gates = random_gates(d, turn_ids=range(3, 12)) if gated else None
    return T3ForCausalLM.from_base(base, random_head(base), gates=gates, temperature=1.7, guidance_scale=0.8)


class Row:
    """An answer whose distribution at every step is kept."""

    def __init__(
        self, decoder: Decoder, length: int, tokens: int, seed: int, model: str = "a", score_prompt: bool = False
    ) -> None:
        prompt = torch.randint(3, VOCAB, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
        self.pieces: list[Piece] = []
        sampling = Sampling(tokens, temperature=1.0, seed=seed, logprobs=VOCAB)
        self.answer = Answer(Distribution(model), prompt, sampling, decoder, self.pieces.append, score_prompt)

    @torch.inference_mode()
    def check(self, model: Any, atol: float = 1e-4) -> None:
        """Every token's distribution is that of the whole sequence alone."""
        ids = self.answer.prompt + self.answer.tokens
        for t, piece in enumerate(self.pieces):
            end = len(self.answer.prompt) + t
            logits = model(input_ids=torch.tensor([ids[:end]]), use_cache=False).logits[0, -1]
            shown = torch.empty(VOCAB)
            for token, logprob in piece.tokens[0].top:
                shown[token] = logprob
            torch.testing.assert_close(shown, logits.float().log_softmax(-1), atol=atol, rtol=1e-3)


def long_rope(original: int = 16) -> Any:
    """Phi-3 whose rotary frequencies change beyond `original` tokens."""
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4, "long_factor": [9.0, 7.0, 5.0, 3.0]}
    torch.manual_seed(0)
    options = COMMON | {"original_max_position_embeddings": original, "rope_parameters": rope}
    return Phi3ForCausalLM(Phi3Config(**options)).eval()


def ntk() -> Any:
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**COMMON | {"max_position_embeddings": 32, "rope_parameters": rope})).eval()
