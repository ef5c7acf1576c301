"""Many answers about a video become one caption, by these rules.

1. An answer is cleaned: its first paragraph on one line, without an opening phrase ("the image shows"), without a last
   sentence that breaks off. An empty answer and a refusal ("I cannot") are no answers.
2. Of a prompt's answers about several frames the most frequent one stays, of equals the earliest; or, with
   ``keep: all``, all that differ, in the order of time.
3. In the file's order each becomes the sentence that its prompt says. One whose words the caption has already is
   left out, and so is one that would make the caption too long; only the first is shortened instead.
4. Where the caption lacks the words of the class label, ``with_label`` adds it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from .prompts import MergeRules, Prompt, Prompts

# Words that say nothing about a video.
_SMALL_WORDS = frozenset(
    re.findall(
        r"\w+",
        "a an and are as at be been being by for from has have he her his in into is it its of on one or she some "
        "someone somebody something that the their there they this to was were what where which who with",
    )
)
_STEM = 4  # letters that two forms of a word share: playing and plays, dancing and dances


def merge(answers: Mapping[str, Sequence[str]], prompts: Prompts, label: str | None) -> str | None:
    """The caption from each prompt's raw answers in the order of time; None where no answer is usable."""
    rules, caption = prompts.rules, ""
    for prompt in prompts.in_order:
        cleaned = [clean(answer, rules) for answer in answers.get(prompt.name, ())]
        kept = _keep([answer for answer in cleaned if answer], prompt, rules)
        if not kept or (caption and stems(kept) <= stems(caption)):
            continue
        sentence = _sentence(prompt.write.format(answer=_inside(kept, prompt.write)))
        if not caption:
            caption = _shortened(sentence, rules.max_words)
        elif len(f"{caption} {sentence}".split()) <= rules.max_words:
            caption = f"{caption} {sentence}"
    if caption and label and rules.with_label and not stems(label) <= stems(caption):
        caption = _sentence(rules.with_label.format(label=label, caption=caption))
    return caption or None


def clean(answer: str, rules: MergeRules) -> str:
    """One answer without what models put around it; empty if it says nothing."""
    paragraphs = [line.strip() for line in answer.strip().splitlines() if line.strip()]
    text = " ".join(paragraphs[0].split()).strip("\"' ") if paragraphs else ""
    text = text.lstrip(" .,:;!?-*#")
    text = re.sub(r"^(answer|assistant|caption|description)\s*:\s*", "", text, flags=re.IGNORECASE)
    for opening in sorted(rules.openings, key=len, reverse=True):
        if re.match(rf"{re.escape(opening)}\b", text, flags=re.IGNORECASE):
            text = text[len(opening) :].lstrip(" ,:")
            break
    # The limit on new tokens breaks a long answer off in the middle of a sentence.
    if text and text[-1] not in ".!?" and (whole := re.match(r".*[.!?](?=\s)", text)):
        text = whole.group()
    plain = _plain(text)
    if not plain or any(plain == _plain(r) or plain.startswith(f"{_plain(r)} ") for r in rules.refusals):
        return ""
    return text


def stems(text: str) -> set[str]:
    """The content words of a text, cut to what forms of one word share."""
    words = re.findall(r"\w+", text.lower())
    return {word[:_STEM] for word in words if word not in _SMALL_WORDS}


def _keep(answers: list[str], prompt: Prompt, rules: MergeRules) -> str:
    first: dict[str, str] = {}
    for answer in answers:
        first.setdefault(_plain(answer), answer)
    if not first:
        return ""
    if prompt.keep == "vote":
        # most_common keeps the order of first appearance among equals.
        return first[Counter(_plain(answer) for answer in answers).most_common(1)[0][0]]
    *others, last = [answer if number == 0 else _lowered(answer) for number, answer in enumerate(first.values())]
    return rules.then.join([*(answer.rstrip(".!? ") for answer in others), last])


def _inside(answer: str, write: str) -> str:
    """An answer as part of a sentence: no full stop in the middle, no capital from having been a sentence."""
    head, _, tail = write.partition("{answer}")
    if tail.strip():
        answer = answer.rstrip(".!? ")
    return _lowered(answer) if head.strip() else answer


def _lowered(answer: str) -> str:
    """Without the capital of a sentence's beginning; of abbreviations it stays."""
    second = answer[1:2]
    return answer[0].lower() + answer[1:] if second.islower() or second == " " else answer


def _sentence(text: str) -> str:
    text = text.strip()
    return text[0].upper() + text[1:] + ("" if text[-1] in ".!?" else ".")


def _shortened(sentence: str, max_words: int) -> str:
    words = sentence.split()
    if len(words) <= max_words:
        return sentence
    short = " ".join(words[:max_words])
    whole = re.match(r".*[.!?](?=\s)", short)
    return whole.group() if whole else short.rstrip(",;: ") + "."


def _plain(text: str) -> str:
    words = re.findall(r"[\w']+", text.lower())
    return " ".join(words[1:] if words[:1] and words[0] in ("a", "an", "the") and len(words) > 1 else words)
