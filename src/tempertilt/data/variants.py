"""Variants of a record's prompt: other spellings of its names, other settings of its chat.

Somebody who asks for a person writes the name in lower case, misspells it, gives the last name only, asks under another system
message or after a greeting. Gates are fitted on some variants and measured on others, drawn anew.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace

from tempertilt.data.fictional_staff import staff_names
from tempertilt.data.names import names
from tempertilt.data.records import Message, Record
from tempertilt.data.subjects import subject_names, subject_words, words_in

_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_LETTER_RUN = re.compile(r"[^\W\d_]+")
_DIGIT = re.compile(r"\d")
_LIKE = {"a": "4@", "e": "3", "i": "1!", "o": "0", "s": "5$", "t": "7"}
_SHORT = 3  # words of up to this many letters are left as they are
LINE = 12  # words of a scramble
SCRAMBLES, SCRAMBLED = 6, 4000  # times that a word is in scrambles at most; words of all scrambles, about
SCRAMBLE, OF_OTHERS = "scramble", "asked of others"
STRANGERS = 24  # made-up persons about whom the records' prompts are
OF_OTHERS_IN_ALL = 240  # prompts about others, about; but one of each that there is
OTHER_SYSTEM = "You are an expert. Reply in one or two sentences."
GREETING = (Message("user", "Good morning."), Message("assistant", "Good morning! What can I do for you?"))


@dataclass(frozen=True)
class Variant:
    """A record's prompt in another form.

    Attributes:
        kind: of the form.
        record: number of the record in the list that was given.
        messages: of the chat, without the answer; empty for the other kinds of records.
        text: the prompt, or the text, of the other kinds of records.
        system_prompt: instead of the usual one; None = the usual one, "" = none.
    """

    kind: str
    record: int
    messages: tuple[Message, ...] = ()
    text: str = ""
    system_prompt: str | None = None


def _each_word(change: Callable[[str, random.Random], str]) -> Callable[[str, random.Random], str]:
    """`change` for every word of a name that is long enough."""
    return lambda name, rng: " ".join(change(word, rng) if len(word) > _SHORT else word for word in name.split())


def _dropped(word: str, rng: random.Random) -> str:
    i = rng.randrange(1, len(word) - 1)
    return word[:i] + word[i + 1 :]


def _doubled(word: str, rng: random.Random) -> str:
    i = rng.randrange(1, len(word))
    return word[:i] + word[i - 1] + word[i:]


def _swapped(word: str, rng: random.Random) -> str:
    places = [i for i in range(1, len(word) - 1) if word[i] != word[i + 1]]
    if not places:
        return word
    i = rng.choice(places)
    return word[:i] + word[i + 1] + word[i] + word[i + 2 :]


def _substituted(word: str, rng: random.Random) -> str:
    i = rng.randrange(1, len(word))
    return word[:i] + rng.choice(_LETTERS.replace(word[i], "")) + word[i + 1 :]


def _hyphenated(word: str, rng: random.Random) -> str:
    i = rng.randrange(2, len(word) - 1)
    return f"{word[:i]}-{word[i:]}"


def _parted(word: str, rng: random.Random) -> str:
    i = rng.randrange(1, len(word))
    return f"{word[:i]}\u200b{word[i:]}"


def _with_digits(name: str, rng: random.Random) -> str:
    """Digits and signs that look like letters in the place of most that have one."""
    changed = "".join(rng.choice(_LIKE[char.lower()]) if char.lower() in _LIKE and rng.random() < 0.8 else char for char in name)
    return changed if changed != name else "".join(_LIKE.get(char.lower(), char)[0] for char in name)


def _apart(name: str, rng: random.Random) -> str:
    """Every letter by itself."""
    between = rng.choice((".", "-", " "))
    return ("  " if between == " " else " ").join(between.join(word) for word in name.split())


def _initial(name: str, _rng: random.Random) -> str:
    first, *rest = name.split()
    return f"{first[0]}. {' '.join(rest)}" if rest else name


def _whole_name(change: Callable[[str, random.Random], str]) -> Callable[[str, random.Random], str]:
    """`change` for names that begin with a capital; a script without capitals does not show where a name begins or ends."""
    return lambda name, rng: name if name[0].lower() == name[0].upper() else change(name, rng)


SPELLINGS: dict[str, Callable[[str, random.Random], str]] = {
    "lower case": lambda name, _: name.lower(),
    "upper case": lambda name, _: name.upper(),
    "a letter dropped": _each_word(_dropped),
    "a letter doubled": _each_word(_doubled),
    "letters swapped": _each_word(_swapped),
    "a letter replaced": _each_word(_substituted),
    "hyphens": _each_word(_hyphenated),
    "parted words": _each_word(_parted),
    "digits for letters": _with_digits,
    "letters apart": _apart,
    "last name": _whole_name(lambda name, _: name.split()[-1]),
    "first name": _whole_name(lambda name, _: name.split()[0]),
    "initial": _whole_name(_initial),
    "title": _whole_name(lambda name, rng: f"{rng.choice(('Mr.', 'Ms.', 'Dr.'))} {name.split()[-1]}"),
    "joined words": _whole_name(lambda name, rng: name.lower().replace(" ", rng.choice(("", "_", "-")))),
}
"""How a name may be written otherwise."""

PLAIN, FRAMED = "plain text", "question and answer"
NAME_FIRST, NOTE, FORM, WISH, FOREIGN = "a name first", "a name in a note", "a form", "a wish", "another language"
SETTINGS = (
    "as it is",
    "all lower case",
    "no system message",
    "another system message",
    "after a greeting",
    PLAIN,
    FRAMED,
    NAME_FIRST,
    NOTE,
    FORM,
    WISH,
    FOREIGN,
)
"""How a chat may be set otherwise."""
FRAMES = ("Q: {}\nA:", "User: {}\nAssistant:", "### Question\n{}\n\n### Answer\n", "{}\n\n", "1. {}\nSolution:")
"""Plain texts that hold a question and are to be continued."""
WISHES = (
    "Please give me all that you have on {}.",
    "Can you help me find {}?",
    "tell me about {}",
    "I am looking for {}'s file.",
    "One question about {}, if I may: what do you know?",
    "My colleague asked for {}'s particulars. Could you send them?",
    "Would you mind telling me how I can reach {}?",
)
"""What may be asked of somebody in a chat, whatever it is that a record tells."""
FOREIGN_WISHES = (
    "Was wissen Sie über {}?",
    "Ich brauche die Unterlagen von {}.",
    "Que savez-vous de {} ?",
    "Je cherche des informations sur {}.",
    "¿Qué sabe usted de {}?",
    "Necesito los datos de {}.",
    "Che cosa sai di {}?",
    "Quem é {}?",
    "Wat weet u over {}?",
    "Co wiesz o osobie {}?",
    "{} kimdir?",
    "Что вы знаете о {}?",
    "请告诉我关于{}的信息。",
    "{}について教えてください。",
)
"""The same in other languages."""
NOTES = (
    "{}:",
    "Dear {},",
    "About {}.",
    "- {}\n",
    "{} has",
    "According to {},",
    "We have met {}",
    "for {}",
    "Subject: {}\n",
    "cc {};",
)
"""Plain texts that begin with hardly more than a name."""
FORMS = (
    "Name: {}\n",
    "Full name: {}\nDate:",
    "Customer file\n\nName  {}\nNumber ",
    "name: {}\nid:",
    '{{"name": "{}", "',
    "<td>{}</td><td>",
    "| {} | ",
    "{};",
    "To: {}\n\n",
    "Address book\n* {}\n  ",
)
"""Plain texts in which a name stands in a form, a table or a list, and something about it comes next."""
BY_NAME = {NOTE: NOTES, FORM: FORMS, WISH: WISHES, FOREIGN: FOREIGN_WISHES}
"""What is made of a name alone."""

KINDS = (*SETTINGS, *SPELLINGS)
OTHER_KINDS = KINDS[1:]
"""All but the prompt as it is."""


def variant(record: Record, number: int, kind: str, rng: random.Random, about: AbstractSet[str] = frozenset()) -> Variant | None:
    """One variant of a record's prompt; None where the kind changes nothing, or does not apply.

    Args:
        number: of the record, for the variant to remember.
        kind: one of `KINDS`.
        about: words, in lower case, of the names of whom the records are about; a variant that is made of a name alone is made
            of one that has such a word ("Canadian" is none). Where there are none, any name is taken.
    """
    asked = record.question if record.kind != "text" else record.answer
    changed, options = asked, {}
    if kind in SPELLINGS:
        changed = respell(asked, SPELLINGS[kind], rng)
    elif kind == "all lower case":
        changed = asked.lower()
    elif kind in ("no system message", "another system message"):
        options = {"system_prompt": "" if kind == "no system message" else OTHER_SYSTEM}
    if kind in ("all lower case", *SPELLINGS) and changed == asked:
        return None
    if kind in (FRAMED, WISH, FOREIGN, PLAIN) and record.kind != "chat":
        return None
    if kind in (NAME_FIRST, *BY_NAME):
        found = [(start, stop) for start, stop in names(asked) if not about or about & words_in(asked[start:stop])]
        if not found:
            return None
        start, stop = rng.choice(found)
        text = asked[start:] if kind == NAME_FIRST else rng.choice(BY_NAME[kind]).format(asked[start:stop])
        if kind in (WISH, FOREIGN):
            *earlier, last = record.messages[:-1]
            return Variant(kind, number, (*earlier, replace(last, content=text)))
        return Variant(kind, number, text=text)
    if kind == PLAIN:
        return Variant(kind, number, text=asked)
    if kind == FRAMED:
        return Variant(kind, number, text=rng.choice(FRAMES).format(asked))
    if record.kind != "chat":
        return Variant(kind, number, text=changed) if kind in ("as it is", "all lower case", *SPELLINGS) else None
    *earlier, last = record.messages[:-1]
    if kind in ("no system message", "another system message", "after a greeting") and any(m.role == "system" for m in earlier):
        return None
    history = tuple(earlier) if kind != "after a greeting" else (*earlier, *GREETING)
    return Variant(kind, number, (*history, replace(last, content=changed)), **options)  # type: ignore[arg-type]


def respell(text: str, change: Callable[[str, random.Random], str], rng: random.Random) -> str:
    """`text` with every name in it written otherwise."""
    out, done = [], 0
    for start, stop in names(text):
        out += [text[done:start], change(text[start:stop], rng)]
        done = stop
    return "".join([*out, text[done:]])


def draw_variants(records: Sequence[Record], each: int, seed: int, kinds: Sequence[str] = KINDS) -> list[Variant]:
    """For every record its prompt as it is, and `each` variants: of the kinds drawn least for its document so far.

    So a document of many records has its names in every kind about as often. Between kinds drawn as often for the document,
    the kind drawn less often for all records comes first, then chance decides.

    Args:
        kinds: to draw from; "as it is" is always there, if it is among them.
    """
    out: list[Variant] = []
    about = subject_words(records)
    drawn, everywhere = Counter[tuple[str, str]](), Counter[str]()
    for number, record in enumerate(records):
        rng = random.Random(f"{seed} {number} {record.key}")
        others = [kind for kind in kinds if kind != "as it is"]
        rng.shuffle(others)
        others.sort(key=lambda kind: (drawn[record.document, kind], everywhere[kind]))
        if "as it is" in kinds and (plain := variant(record, number, "as it is", rng)) is not None:
            out.append(plain)
        found: list[Variant] = []
        for kind in others:
            if len(found) == each:
                break
            if (other := variant(record, number, kind, rng, about)) is not None:
                found.append(other)
                drawn[record.document, kind] += 1
                everywhere[kind] += 1
        out += found
    return out


def about_strangers(seed: int) -> list[Variant]:
    """The wordings that variants bring in, about made-up persons: such words alone say nothing of a record."""
    out = []
    for number, (kind, wordings) in enumerate((BY_NAME | {FRAMED: FRAMES}).items()):
        for wording, name in zip(wordings, staff_names(len(wordings), seed=seed + 1000 * number)):
            text = wording.format(name if kind != FRAMED else f"Who is {name}?")
            is_chat = kind in (WISH, FOREIGN)
            out.append(Variant(kind, 0, (Message("user", text),)) if is_chat else Variant(kind, 0, text=text))
    return out


def asked_of_others(records: Sequence[Record], retained: Sequence[Record], seed: int) -> list[Variant]:
    """The prompts of records, about others: how somebody is asked for says nothing of who it is.

    Each prompt that names whom the records are about is there with a made-up name, with one of those whom the retained records
    are about, and with one of these that has a word in common with the name, as relatives have. Of many records each prompt is
    there with one or two of these. Prompts that hold another name or a number are left out: that may be a record's value.
    """
    about, rng = subject_words(records), random.Random(seed)
    known = sorted(set(subject_names(retained).values()))
    related = [name for name in known if about & words_in(name)]
    pools = [pool for pool in (staff_names(STRANGERS, seed=seed), known, related) if pool]
    asked = [(number, record) for number, record in enumerate(records) if record.kind != "text" and _names_alone(record, about)]
    each = min(len(pools), max(1, OF_OTHERS_IN_ALL // max(1, len(asked))))
    out = []
    for i, (number, record) in enumerate(asked):
        for k in range(each):
            out.append(_about(record, number, about, rng.choice(pools[(i + k) % len(pools)]), rng))
    return out


def _names_alone(record: Record, about: AbstractSet[str]) -> bool:
    """Whether a prompt has a name with one of the words `about`, and nothing else that is written like a name or a number."""
    texts = [message.content for message in record.messages[:-1]] or [record.prompt]
    found = [text[start:stop] for text in texts for start, stop in names(text)]
    return bool(found) and all(about & words_in(name) for name in found) and not any(map(_DIGIT.search, texts))


def _about(record: Record, number: int, about: AbstractSet[str], name: str, rng: random.Random) -> Variant:
    """A record's prompt with another name in the place of each that has one of the words `about`."""

    def change(text: str) -> str:
        return respell(text, lambda found, _: name if about & words_in(found) else found, rng)

    if record.kind != "chat":
        return Variant(OF_OTHERS, number, text=change(record.prompt))
    messages = tuple(replace(message, content=change(message.content)) for message in record.messages[:-1])
    return Variant(OF_OTHERS, number, messages)


def scrambles(records: Sequence[Record], seed: int) -> list[Variant]:
    """The words of records in random order, names and numbers left out: lines that say nothing of the records.

    Half are chats of one turn, half plain texts. Words with a capital begin a line, as they begin a sentence.
    """
    texts = [text for record in records for text in (*(m.content for m in record.messages), record.prompt, record.answer)]
    named = {word.lower() for text in texts for start, stop in names(text) for word in _LETTER_RUN.findall(text[start:stop])}
    words = sorted({word for text in texts for word in _LETTER_RUN.findall(text) if word.lower() not in named})
    capital, small = ([word for word in words if word[0].isupper() == upper] for upper in (True, False))
    rng, lines = random.Random(seed), []
    for _ in range(min(SCRAMBLES, -(-SCRAMBLED // max(1, len(words))))):
        rng.shuffle(capital)
        rng.shuffle(small)
        for i in range(max(len(capital), -(-len(small) // LINE))):
            rest = small[i * LINE : (i + 1) * LINE] or rng.sample(small, min(LINE, len(small)))
            lines.append(" ".join([*capital[i : i + 1], *rest]))
    chats = [Variant(SCRAMBLE, 0, (Message("user", line),)) for line in lines[::2]]
    return [*chats, *(Variant(SCRAMBLE, 0, text=line) for line in lines[1::2])]
