"""The one loop: what it trains, what it leaves, that it repeats itself, its budget; and the registry."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from support.tasks import make_task
from support.tiny import make_llama
from tempertilt.cli import catalogue
from tempertilt.config.options import Options
from tempertilt.data.records import Message
from tempertilt.errors import ConfigError, DataError, TemperTiltError
from tempertilt.methods import registry
from tempertilt.methods.altpo import other_answer
from tempertilt.methods.registry import find_method, methods, register
from tempertilt.methods.task import Budget, Method, Task, Unlearned
from tempertilt.training.config import TrainConfig, check_tracker
from tempertilt.training.runner import Runner

TRAINED = ("GradAscent", "GradDiff", "KL", "NPO", "SimNPO", "IdkDPO", "IdkNLL", "AltPO", "RMU", "UNDIAL", "CE-U", "WGA",
           "SatImp", "PDU", "Distilled")  # fmt: skip
OWN: dict[str, dict[str, Any]] = {
    "RMU": {"layer": 2},
    "AltPO": {"alternate_tokens": 4, "tries": 1},
    "Distilled": {"teacher_options": {"names": ("Hina",), "variants": 1}, "answer_tokens": 4},
}
FAST = {"epochs": 2, "train_batch_size": 4, "lora_rank": 4, "learning_rate": 1e-3}


@pytest.fixture()
def task(tokenizer: PreTrainedTokenizerFast, tmp_path: Any) -> Task:
    return make_task(tokenizer, tmp_path)


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@pytest.mark.integration
@pytest.mark.parametrize("name", TRAINED)
def test_every_trained_method_trains(task: Task, name: str) -> None:
    options = FAST | OWN.get(name, {})
    before = weights(task.base.model)
    result = find_method(name).build(options).unlearn(task)
    after = weights(result.model)
    assert before.keys() == after.keys(), "LoRA is merged"
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed and all(".layers.2." in key or (".layers.3." in key and name != "RMU") for key in changed)
    assert result.details["steps"] == 4 and len(result.details["losses"]) == 2 and result.details["cached"]
    assert result.trained_parameters > 0 and result.artefact_bytes == 4 * result.trained_parameters
    assert result.train_flops > 0 and {"reference", "training"} <= result.seconds.keys()
    assert ("alternates" in result.seconds) == (name in ("AltPO", "Distilled"))
    assert not any(parameter.requires_grad for parameter in result.model.parameters()) and not result.model.training


def test_full_training_changes_every_layer_and_keeps_its_reference(task: Task) -> None:
    before = weights(task.base.model)
    result = find_method("NPO").build(FAST | {"lora_rank": 0}).unlearn(task)
    after = weights(result.model)
    assert all(not torch.equal(before[key], after[key]) for key in before if "proj" in key)
    assert result.trained_parameters == sum(p.numel() for p in before.values()) and not result.details["cached"]


@pytest.mark.integration
def test_the_same_seed_gives_the_same_weights(tokenizer: PreTrainedTokenizerFast, tmp_path: Any) -> None:
    runs = []
    for number, seed in enumerate((1, 1, 2)):
        task = replace(make_task(tokenizer, tmp_path / str(number)), seed=seed)
        runs.append(weights(find_method("GradDiff").build(FAST).unlearn(task).model))
    assert all(torch.equal(a, b) for a, b in zip(runs[0].values(), runs[1].values()))
    assert not all(torch.equal(a, b) for a, b in zip(runs[0].values(), runs[2].values()))


def test_replayed_and_whole_training_are_the_same(tokenizer: PreTrainedTokenizerFast, tmp_path: Any) -> None:
    runs = []
    for gib in (4.0, 0.0):
        task = make_task(tokenizer, tmp_path / str(gib))
        result = find_method("KL").build(FAST | {"max_cache_gib": gib}).unlearn(task)
        assert result.details["cached"] == (gib > 0)
        runs.append(weights(result.model))
    for a, b in zip(*(run.values() for run in runs)):
        torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-2)


def test_every_forget_record_once_an_epoch_and_retain_in_turn(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, list[int]] = {"forget": [], "retain": []}
    original = Runner.forward

    def forward(self: Runner, **indices: torch.Tensor) -> Any:
        for role, numbers in indices.items():
            seen[role] += numbers.tolist()
        return original(self, **indices)

    monkeypatch.setattr(Runner, "forward", forward)
    find_method("GradDiff").build(FAST).unlearn(task)
    assert sorted(seen["forget"][:6]) == sorted(seen["forget"][6:]) == list(range(6))
    assert sorted(seen["retain"][:7]) == list(range(6, 13)), "no retain record twice before each has been once"


def test_an_alternate_answers_the_same_question(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a long record has become several examples: each has the alternate of its own record beside it."""
    long = replace(task.forget[1], messages=(*task.forget[1].messages[:-1], Message("assistant", "Of the sea, he said. " * 30)))
    task = replace(task, forget=[task.forget[0], long, *task.forget[2:]])
    assert len(task.examples_of(task.forget)) > len(task.forget)
    seen: list[tuple[int, int]] = []
    original = Runner.forward

    def forward(self: Runner, **indices: torch.Tensor) -> Any:
        pairs = zip(*(indices[role].tolist() for role in ("forget", "alternate")))
        seen.extend((self.examples[a].record_index, self.examples[b].record_index) for a, b in pairs)
        return original(self, **indices)

    monkeypatch.setattr(Runner, "forward", forward)
    find_method("IdkDPO").build(FAST).unlearn(task)
    assert len(seen) == 2 * len(task.examples_of(task.forget)) and all(a == b for a, b in seen)


@pytest.mark.integration
@pytest.mark.parametrize(("name", "options"), [("GradAscent", {}), ("NPO", {"alpha": 0.0}), ("RMU", {"alpha": 0.0, "layer": 3})])
def test_retain_records_are_not_read_where_the_loss_has_no_use_for_them(task: Task, name: str, options: dict[str, Any]) -> None:
    result = find_method(name).build(FAST | options).unlearn(replace(task, retain=[]))
    assert result.details["steps"] == 4


def test_the_budget_ends_training(task: Task) -> None:
    steps = find_method("GradAscent").build(FAST).unlearn(replace(task, budget=Budget(train_steps=1)))
    assert steps.details["steps"] == 1
    seconds = find_method("GradAscent").build(FAST).unlearn(replace(task, budget=Budget(train_seconds=0.0)))
    assert seconds.details["steps"] == 1 and seconds.details["stopped"]


def test_a_loss_that_is_no_number_is_an_error(task: Task) -> None:
    with pytest.raises(TemperTiltError, match="lower learning_rate"):
        find_method("GradAscent").build(FAST | {"learning_rate": 1e30, "max_grad_norm": 1e30}).unlearn(task)


def test_tracking_writes_where_the_trial_is(task: Task) -> None:
    with pytest.raises(ConfigError, match="must be one of none, tensorboard, wandb, trackio"):
        check_tracker("mlflow")
    assert check_tracker("none") == "none"


def test_bad_input(task: Task) -> None:
    with pytest.raises(DataError, match="no records"):
        find_method("GradDiff").build(FAST).unlearn(replace(task, retain=[]))
    with pytest.raises(ConfigError, match="layer is 0; must be 2 to 3"):
        find_method("RMU").build(FAST | {"layer": 0}).unlearn(task)
    for options in ({"learning_rate": 0.0}, {"lora_rank": -1}, {"schedule": "step"}, {"train_layers": 0.0}, {"epochs": 0}):
        with pytest.raises(ConfigError, match="must be"):
            TrainConfig(**options)  # type: ignore[arg-type]
    for name, options in (
        ("NPO", {"beta": 0.0}),
        ("KL", {"retain_loss": "x"}),
        ("GradDiff", {"gamma": -1.0}),
        ("PDU", {"dual_rate": -1.0}),
        ("AltPO", {"tries": 0}),
        ("RMU", {"steering": 0.0}),
    ):
        with pytest.raises(ConfigError, match="must be"):
            find_method(name).build(options)


# --- the registry ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NoOptions(Options):
    pass


class Nothing(Method):
    """Does nothing."""

    def unlearn(self, task: Task) -> Unlearned:
        return Unlearned(task.base.model)


def test_the_registry_has_every_method_with_its_paper() -> None:
    known = methods()
    inference = {"ULD", "offset", "DivergenceDecoding", "ECO", "InputFilter", "OutputFilter", "PromptGuardrail", "t3", "t3-paper"}
    inference |= {"ActivationSteering", "AttentionSmoothing", "GatedRotation", "NameSwap"}
    assert {*TRAINED, *inference, "target", "reference", "oracle"} <= known.keys()
    assert [entry["name"] for entry in catalogue.methods()] == list(known)
    for entry in known.values():
        assert entry.url.startswith("https://") and entry.description and not entry.description.endswith(".")


def test_the_registry_refuses_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    methods()
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))
    url = "https://example.org/paper"
    with pytest.raises(ConfigError, match="'NPO' is registered already, by tempertilt"):
        register("NPO", url, NoOptions)
    with pytest.raises(ConfigError, match="'mine' has the paper URL ''"):
        register("mine", "", NoOptions)

    @dataclass
    class Thawed(Options):
        pass

    @dataclass(frozen=True)
    class Unchecked:
        pass

    for config in (Thawed, Unchecked, dict):
        with pytest.raises(ConfigError, match=f"{config.__name__}; must be a frozen dataclass that derives from"):
            register("mine", url, config)
    with pytest.raises(ConfigError, match="subclass of"):
        register("mine", url, NoOptions)(object)  # type: ignore[type-var]
    with pytest.raises(ConfigError, match="no docstring"):
        register("mine", url, NoOptions)(type("Silent", (Nothing,), {"__doc__": None}))
    assert register("mine", url, NoOptions)(Nothing) is Nothing
    assert find_method("mine").description == "Does nothing"
    with pytest.raises(ConfigError, match=r"no method 'gradascnt' \(did you mean GradAscent"):
        find_method("gradascnt")
    with pytest.raises(ConfigError, match=r"NPO has no option 'betta' \(did you mean beta"):
        find_method("NPO").build({"betta": 1})


def test_plugins_are_read_once_and_named_where_they_fail(tmp_path: Any) -> None:
    with pytest.raises(ConfigError, match="no plugin"):
        registry.load_plugin(tmp_path / "none.py")
    broken = tmp_path / "broken.py"
    broken.write_text("import nothing_of_this_name\n")
    with pytest.raises(ConfigError, match="cannot be imported: ModuleNotFoundError"):
        registry.load_plugin(broken)


def test_another_answer_is_the_first_that_says_something_else() -> None:
    assert other_answer("Hina Ameen.", ["", "hina ameen. ", "\n", "Sara Ahmed.\nMore."]) == "Sara Ahmed."
    assert other_answer("Hina Ameen.", ["Hina Ameen."]) is None
    assert make_llama() is not None
