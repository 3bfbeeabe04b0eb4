"""Teach a model a small corpus, unlearn one person at a time and two documents, and ask in every way for what is gone.

    python benchmarks/small_requests/run.py --work DIR [--model smollm2] [--only persons|documents] [--person ID ...]
    python benchmarks/small_requests/run.py --work DIR --smoke

For each request also a reference is taught everything but what is to be forgotten. What is finished in DIR is not done again:
taught models, adapters, answers. DIR/results.json has all figures and every answer that leaks, DIR/results.md the tables.
`--smoke` does it all with a tiny random model and few prompts, to see that it runs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks import _tiny
from benchmarks._print import header, save
from benchmarks.small_requests.battery import (
    Continuation,
    Prompt,
    continuations,
    document_battery,
    person_battery,
    retained_battery,
)
from benchmarks.small_requests.corpus import FORGOTTEN, Document, Person, load_documents, load_people, records_of
from benchmarks.small_requests.measure import document_rows, markdown, nearness, person_rows, run_rows, unchanged

from tempertilt.data.examples import ExampleConfig, build_examples
from tempertilt.data.records import Record, check_records
from tempertilt.environment import Clock, environment
from tempertilt.fitting.before_after import NO_REPORT, greedy_token_ids
from tempertilt.fitting.pipeline import METHODS, UnlearnConfig, unlearn
from tempertilt.models.adapter import CONFIG, WEIGHTS
from tempertilt.models.base import BaseModel, load_base
from tempertilt.models.generation import given_in_stream, given_whole
from tempertilt.models.replies import make_reply
from tempertilt.models.t3 import T3ForCausalLM
from tempertilt.storage import file_sha256, output_directory, write_text
from tempertilt.training.finetune import FinetuneConfig, finetune, finetune_key, is_finished, save_finetuned

TEACHING = ExampleConfig(max_length=256, overlap=32)
REPLY = "I have no information about that."


@dataclass(frozen=True)
class Size:
    """How much is taught and asked.

    Attributes:
        epochs: of teaching.
        people: persons of the corpus; None = all.
        each: prompts of each kind about a person, and retained prompts of each kind and person; None = all.
        continuations: of each document.
        characters: of each document; None = all.
        max_new_tokens: of an answer and of a continuation.
        batch_size: prompts in a batch.
    """

    epochs: int = 20
    people: int | None = None
    each: int | None = None
    continuations: int = 50
    characters: int | None = None
    max_new_tokens: int = 64
    batch_size: int = 16


SMOKE = Size(epochs=1, people=4, each=1, continuations=2, characters=300, max_new_tokens=8)


@dataclass
class Bench:
    """The corpus, the base model's name, where results are kept, and how much is done."""

    model: str
    work: Path
    size: Size
    config: UnlearnConfig
    people: list[Person]
    holdout: list[Person]
    documents: list[Document]
    overwrite: bool
    progress: bool
    clock: Clock

    @property
    def records(self) -> dict[str, list[Record]]:
        """What the model is taught, by the id of the person or the document."""
        return {person.id: list(person.records) for person in self.people} | {doc.id: [doc.record] for doc in self.documents}

    def teach(self, name: str, without: Sequence[str] = ()) -> BaseModel:
        """The model that was taught all records but those of some ids."""
        base = load_base(self.model)
        records = [record for key, some in self.records.items() if key not in without for record in some]
        examples = build_examples(records, base.tokenizer, TEACHING)
        config = FinetuneConfig(epochs=self.size.epochs)
        key, directory = finetune_key(base.fingerprint, examples, config), self.work / "taught" / name
        with output_directory(directory):
            if not is_finished(directory, key):
                with self.clock(f"teach {name}"):
                    result = finetune(base.model, examples, config, progress=self.progress)
                print(
                    f"taught {name}: {len(records)} records in {result.seconds:.0f} s, loss {result.losses[-1]:.3f}", flush=True
                )
                report = {"key": key, "records": len(records), "config": asdict(config), "environment": environment()}
                save_finetuned(result, directory, report, base)
        return load_base(self.model, peft_adapter=str(directory))

    def forget(self, name: str, base: BaseModel, forgotten: Sequence[str], holdout: Sequence[Record] = ()) -> T3ForCausalLM:
        """The base with an adapter that forgets the records of some ids; `holdout` are records like them that it never saw."""
        forget = [record for key in forgotten for record in self.records[key]]
        retain = [record for key, some in self.records.items() if key not in forgotten for record in some]
        sets = check_records(forget, retain, holdout)
        directory = self.work / "adapters" / name
        with self.clock(f"unlearn {name}"):
            made = unlearn(base, sets, directory, self.config, overwrite=self.overwrite, progress=self.progress)
        size = sum(path.stat().st_size for path in directory.iterdir())
        print(f"unlearned {name}: {len(forget)} records, adapter {size} bytes, seconds {made.seconds}", flush=True)
        return made.model

    def answers(
        self, model: Any, tokenizer: Any, key: str, prompts: Sequence[Sequence[int]], *, base: bool = False, anew: bool = False
    ) -> list[list[int]]:
        """Greedy answers as token ids, kept in the work directory.

        Args:
            key: of the model's weights and settings.
            prompts: token ids.
            base: without the adapter.
            anew: whether answers that are there count for nothing.
        """
        content = json.dumps([key, [list(map(int, prompt)) for prompt in prompts], self.size.max_new_tokens])
        path = self.work / "answers" / f"{hashlib.sha256(content.encode()).hexdigest()[:32]}.json"
        if path.is_file() and not anew:
            rows: list[list[int]] = json.loads(path.read_text(encoding="utf-8"))
            return rows
        with self.clock("answers"):
            rows = greedy_token_ids(
                model,
                tokenizer,
                prompts,
                max_new_tokens=self.size.max_new_tokens,
                batch_size=self.size.batch_size,
                base=base,
                as_decoded=True,
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(rows))
        return rows

    def changes(
        self, name: str, base: BaseModel, model: T3ForCausalLM, prompts: list[list[int]], reply: str = ""
    ) -> dict[str, list[list[int]]]:
        """Answers of base and unlearned model, as token ids; `reply` is what the latter says now."""
        adapter = "".join(file_sha256(self.work / "adapters" / name / file) for file in (CONFIG, WEIGHTS))
        return {
            "base": self.answers(model, base.tokenizer, base.fingerprint, prompts, base=True),
            "unlearned": self.answers(model, base.tokenizer, base.fingerprint + adapter + reply, prompts, anew=self.overwrite),
        }

    def of_all(
        self, name: str, base: BaseModel, model: T3ForCausalLM, never: BaseModel, prompts: list[list[int]]
    ) -> dict[str, list[list[int]]]:
        """Answers of base, unlearned model without and with a reply, as a stream shows it and as a whole, and reference.

        All are token ids.
        """
        answers = self.changes(name, base, model, prompts)
        model.set_reply(make_reply(REPLY, base.tokenizer))
        try:
            decoded = self.changes(name, base, model, prompts, REPLY)["unlearned"]
            answers["with reply"] = [given_whole(model, row) for row in decoded]
            answers["reply, streamed"] = [given_in_stream(model, row) for row in decoded]
        finally:
            model.set_reply(None)
        return {**answers, "reference": self.answers(never.model, base.tokenizer, never.fingerprint, prompts)}


def texts_of(tokenizer: Any, ids: dict[str, list[list[int]]]) -> dict[str, list[str]]:
    """Answers as text, by model."""
    return {model: tokenizer.batch_decode(rows, skip_special_tokens=True) for model, rows in ids.items()}


# --- requests --------------------------------------------------------------------------------------------------------


def person_request(bench: Bench, base: BaseModel, person: Person) -> dict[str, Any]:
    """Forget one person and ask."""
    others = [other for other in bench.people if other.id != person.id]
    never = bench.teach(f"without_{person.id}", [person.id])
    model = bench.forget(person.id, base, [person.id], records_of(bench.holdout))
    prompts = person_battery(person, others, bench.size.each)
    ids = bench.of_all(person.id, base, model, never, [prompt.encode(base.tokenizer) for prompt in prompts])
    rows = person_rows(person, others, prompts, texts_of(base.tokenizer, ids))
    return {**rows, "retained": retained_rows(bench, base, model, person, others)}


def retained_rows(
    bench: Bench, base: BaseModel, model: T3ForCausalLM, person: Person, others: Sequence[Person]
) -> dict[str, Any]:
    """How many answers about retained persons are the same, by what these have in common with the forgotten one."""
    asked = [(other, prompt) for other in others for prompt in retained_battery([other], bench.size.each)]
    before, after = bench.changes(person.id, base, model, [prompt.encode(base.tokenizer) for _, prompt in asked]).values()
    near = [nearness(person, other) for other, _ in asked]
    groups = {name: [i for i, value in enumerate(near) if value == name] for name in sorted(set(near), reverse=True)}
    groups["**all**"] = list(range(len(asked)))
    return {name: unchanged([before[i] for i in rows], [after[i] for i in rows]) for name, rows in groups.items()}


def documents_request(bench: Bench, base: BaseModel) -> dict[str, Any]:
    """Forget the documents that are to go, continue them, ask about them; and continue those that stay."""
    name, gone = "documents", [doc for doc in bench.documents if doc.forget]
    never = bench.teach(f"without_{name}", [doc.id for doc in gone])
    model = bench.forget(name, base, [doc.id for doc in gone])
    cases = [case for doc in gone for case in continuations(doc, base.tokenizer, bench.size.continuations)]
    runs = run_rows(cases, bench.of_all(name, base, model, never, [list(case.prefix) for case in cases]))
    pairs = [(doc, prompt) for doc in gone for prompt in document_battery(doc)]
    ids = bench.of_all(name, base, model, never, [prompt.encode(base.tokenizer) for _, prompt in pairs])
    originals = {doc.id: base.tokenizer(doc.text).input_ids for doc in gone}
    kinds = document_rows(pairs, texts_of(base.tokenizer, ids), ids, originals)
    return {"continuations": runs, "kinds": kinds, "retained": kept_rows(bench, base, model)}


def kept_rows(bench: Bench, base: BaseModel, model: T3ForCausalLM) -> dict[str, Any]:
    """How many continuations of, and answers about, the documents that stay are the same; and answers about persons."""
    kept = [doc for doc in bench.documents if not doc.forget]
    cases: list[Continuation] = [c for doc in kept for c in continuations(doc, base.tokenizer, bench.size.continuations)]
    asked: list[Prompt] = [prompt for doc in kept for prompt in document_battery(doc)]
    about: list[Prompt] = retained_battery(bench.people, bench.size.each)
    sets = {
        "continuations of retained documents": [list(case.prefix) for case in cases],
        "questions about retained documents": [prompt.encode(base.tokenizer) for prompt in asked],
        "questions about persons": [prompt.encode(base.tokenizer) for prompt in about],
    }
    return {
        name: unchanged(*bench.changes("documents", base, model, prompts).values()) for name, prompts in sets.items() if prompts
    }


# --- the whole -------------------------------------------------------------------------------------------------------


def prepare(args: argparse.Namespace) -> Bench:
    """The corpus and the settings, in full or for a smoke run."""
    given = {name: getattr(args, name) for name in ("epochs", "people", "each") if getattr(args, name) is not None}
    size = replace(SMOKE if args.smoke else Size(), **given)
    config = replace(METHODS["t3"], report=NO_REPORT)
    people = sorted(load_people(), key=lambda person: person.id not in FORGOTTEN)[: size.people]
    documents = [replace(doc, text=doc.text[: size.characters]) for doc in load_documents()]
    people, documents = ([] if args.only == "documents" else people), ([] if args.only == "persons" else documents)
    model = args.model
    if args.smoke:
        _tiny.write_model(args.work / "tiny", positions=4096)
        model = str(args.work / "tiny" / "model")
        config = replace(config, background=replace(config.background, background=4), fit=replace(config.fit, rank=8))
    holdout = [] if args.no_holdout else load_people(holdout=True)
    return Bench(
        model, args.work, size, config, people, holdout, documents, args.overwrite, not (args.smoke or args.quiet), Clock()
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """All requests; results are written after each."""
    bench = prepare(args)
    wanted = args.person or list(FORGOTTEN)
    header(f"small requests: {len(bench.people)} persons, {len(bench.documents)} documents, {bench.model}")
    base = bench.teach("all")
    results: dict[str, Any] = {"model": args.model, "size": asdict(bench.size), "persons": {}, "recipe": bench.config.recipe()}
    for person in (person for person in bench.people if person.id in wanted):
        results["persons"][person.id] = person_request(bench, base, person)
        write(bench, results)
    if bench.documents:
        results["documents"] = documents_request(bench, base)
        write(bench, results)
    print("\n" + markdown(results))
    return results


def write(bench: Bench, results: dict[str, Any]) -> None:
    """Keep what there is so far."""
    save(bench.work / "results.json", {**results, "seconds": bench.clock.seconds})
    write_text(bench.work / "results.md", markdown(results))


def parser() -> argparse.ArgumentParser:
    """The flags."""
    out = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    out.add_argument("--work", type=Path, required=True, help="directory of taught models, adapters, answers and results")
    out.add_argument("--model", default="smollm2")
    out.add_argument("--only", choices=("persons", "documents"), help="teach and forget nothing else")
    out.add_argument("--person", action="append", choices=FORGOTTEN, help="forget this one; may be repeated (default: all three)")
    out.add_argument("--epochs", type=int, help="of teaching")
    out.add_argument("--people", type=int, help="teach up to N persons, those that are forgotten first")
    out.add_argument("--each", type=int, help="prompts of each kind, at most")
    out.add_argument("--no-holdout", action="store_true", help="give no holdout records to the request")
    out.add_argument("--overwrite", action="store_true", help="unlearn and ask again where it was done")
    out.add_argument("--smoke", action="store_true", help="a tiny random model and few prompts")
    out.add_argument("--quiet", action="store_true", help="no progress bars")
    return out


if __name__ == "__main__":
    run(parser().parse_args())
