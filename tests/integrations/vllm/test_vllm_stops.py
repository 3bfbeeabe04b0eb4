"""What ends an answer in vLLM: every token that a generation configuration names."""

from __future__ import annotations

import json
from pathlib import Path

from support.vllm_engines import greedy, needs_vllm, run_engines
from support.vllm_models import NEW, prompts, unlearned

pytestmark = needs_vllm


def test_an_answer_ends_at_each_of_the_tokens(tmp_path: Path) -> None:
    model, llm = unlearned("llama", "mean", True, tmp_path)
    asked = prompts(8, 40)
    whole = greedy(model, asked, NEW)
    stops = {whole[0][3], whole[1][7]}
    (tmp_path / "ends").mkdir()
    (tmp_path / "ends" / "generation_config.json").write_text(json.dumps({"eos_token_id": sorted(stops)}))
    llm["generation_config"] = str(tmp_path / "ends")
    sampling = {"temperature": 0, "max_tokens": NEW, "detokenize": False}
    [result] = run_engines(tmp_path, [{"llm": llm, "rounds": [{"prompts": asked, "sampling": sampling}]}])
    assert "error" not in result, result["error"]
    for answer, output in zip(whole, result["rounds"][0]):
        place = next((i for i, token in enumerate(answer) if token in stops | {2}), NEW)
        assert output["tokens"][0] == answer[: place + 1]
