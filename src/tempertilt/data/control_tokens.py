"""Control tokens that a text spells.

A chat template writes control tokens: where a turn begins and ends. The same characters in a message or in a record are text, or
else a user could close his turn and write the system's. So texts are masked before they are put into a template, and what is
masked is tokenised as text: by a twin of the tokenizer, in which the control tokens have names that nobody can guess.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable
from typing import Any
from weakref import WeakKeyDictionary

from tempertilt.errors import DataError

_SECRET = str(secrets.randbelow(10**18))
_OPEN, _CLOSE = "\U0010fff0", "\U0010fff1"
_MASK = re.compile(f"{_OPEN}{_SECRET}\\.(\\d+){_CLOSE}")  # digits, which templates leave as they are


class ControlTokens:
    """The control tokens of a tokenizer.

    Args:
        tokenizer: of transformers.

    Attributes:
        names: the special tokens, and the added tokens that the chat template writes.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        added = list(tokenizer.added_tokens_decoder.values())
        template = str(getattr(tokenizer, "chat_template", None) or "")
        special = {*tokenizer.all_special_tokens, *(token.content for token in added if token.special)}
        written = {token.content for token in added if token.content in template}
        self.names = tuple(sorted(name for name in special | written if name and not name.isspace()))
        self._texts = (*self.names, _OPEN)
        self._any, self._special = _any_of(self._texts), _any_of({*special.intersection(self.names), _OPEN})

    def mask(self, text: str, *, special_only: bool = False) -> str:
        """The text with the control tokens masked that it spells; the text itself if it spells none."""
        pattern = self._special if special_only else self._any
        return pattern.sub(lambda match: f"{_OPEN}{_SECRET}.{self._texts.index(match[0])}{_CLOSE}", text)

    def unmask(self, text: str) -> str:
        """The text as it was before it was masked."""
        return _MASK.sub(lambda match: self._texts[int(match[1])], text)

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids of a text, parts of which may be masked.

        Raises:
            DataError: the template has cut a mask in two, or the tokenizer can't tell control tokens from text.
        """
        if _OPEN not in text:
            return list(self.tokenizer(text, add_special_tokens=add_special_tokens, verbose=False)["input_ids"])
        if _OPEN in _MASK.sub("", text):
            raise DataError("the chat template cuts through a control token that the text spells; leave it out of the text")
        renamed = _any_of(self.names).sub(lambda match: _new_name(self.names.index(match[0])), text)
        return list(_twin(self.tokenizer, self.names).encode(self.unmask(renamed), add_special_tokens=add_special_tokens).ids)


def _any_of(names: Iterable[str]) -> re.Pattern[str]:
    longest_first = sorted(names, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")  # (?!) never matches


def _new_name(number: int) -> str:
    return f"\U0010fff2{_SECRET}.{number}\U0010fff3"


_twins: WeakKeyDictionary[Any, tuple[tuple[str, ...], Any]] = WeakKeyDictionary()


def _twin(tokenizer: Any, names: tuple[str, ...]) -> Any:
    """The tokenizer with the tokens `names` renamed; made once."""
    known = _twins.get(tokenizer)
    if known is None or known[0] != names:
        known = _twins[tokenizer] = (names, _make_twin(tokenizer, names))
    return known[1]


def _make_twin(tokenizer: Any, names: tuple[str, ...]) -> Any:
    from tokenizers import Tokenizer

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise DataError(
            f"the text spells a control token, which {type(tokenizer).__name__} can't tell from text; leave it out of the text"
        )
    new = {name: _new_name(number) for number, name in enumerate(names)}
    content = json.loads(backend.to_str()) | {"truncation": None, "padding": None}
    for token in content["added_tokens"]:
        token["content"] = new.get(token["content"], token["content"])
    _rename(content["model"], new)
    twin = Tokenizer.from_str(json.dumps(content))
    assert all(twin.token_to_id(new[name]) == backend.token_to_id(name) for name in names), "a token has another id"
    return twin


def _rename(model: dict[str, Any], new: dict[str, str]) -> None:
    """Rename tokens in the vocabulary of a BPE, word, or unigram model."""
    if isinstance(model["vocab"], dict):
        model["vocab"] = {new.get(token, token): number for token, number in model["vocab"].items()}
    else:
        model["vocab"] = [[new.get(token, token), score] for token, score in model["vocab"]]
    if "merges" in model:
        pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
        model["merges"] = [pair for pair in pairs if "".join(pair) not in new]
    if model.get("unk_token") in new:
        model["unk_token"] = new[model["unk_token"]]
