"""The words that decide a mask: pytest tests/test_words.py"""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel, T5Tokenizer

from bachvid.errors import UsageError
from bachvid.method.spans import Parts, find_spans
from bachvid.method.words import FUNCTION_WORDS, choose_words, content_words, occurrences, unmarked
from bachvid.nouns import noun_model, nouns_in

PARTS = Parts("a quiet harbour with a blue sky,", "an old fisherman with a hat,", "waves his hat.")


def test_marks_come_off_and_are_kept() -> None:
    text, marks = unmarked("an old [fisherman] with a [bucket hat] and [] one [")
    assert text == "an old fisherman with a bucket hat and [] one ["
    assert marks == ("fisherman", "bucket hat")


def test_sources_come_in_their_order() -> None:
    def ask(text: str) -> list[str]:
        return ["harbour", "fisherman", "moon"]

    given: dict = {"marked": (["sky"], ["hat"]), "listed": ("harbour", "old"), "ask": ask}
    expected = [("marked", ("sky",), ("hat",)), ("listed", ("harbour",), ("old",))]
    expected += [("model", ("harbour",), ("fisherman",))]
    for source in ("marked", "listed", "ask"):
        found = choose_words(PARTS.background, PARTS.character, **given)
        assert (found.source, found.background, found.character) == expected.pop(0)
        del given[source]
    found = choose_words(PARTS.background, PARTS.character)
    assert (found.source, found.background) == ("content", ("quiet", "harbour", "blue", "sky"))


@pytest.mark.parametrize(("background", "character"), [("with the", "a fox"), ("a wood", "he, she and they")])
def test_a_part_without_a_noun_is_told(background: str, character: str) -> None:
    with pytest.raises(ValueError, match=r"look for \(content words\)\. Mark one in both parts: an old"):
        choose_words(background, character)


def test_a_mark_may_be_a_part_of_a_word_and_counts_in_its_own_part() -> None:
    found = choose_words("조용한 항구에서", "a hat shop's fisherman", marked=(["항구"], ["fisher", "shop"]))
    assert (found.background, found.character) == (("항구",), ("fisher", "shop"))
    parts = Parts("a hat shop,", "a man with a hat", "waves")
    places = parts.places(parts.words("all", (["shop"], ["hat"])))
    assert places == {"background": [(6, 10)], "character": [(25, 28)]}, "the shop's hat was not marked"
    assert list(occurrences("a fox in foxgloves", ["fox"], in_words=True)) == [(2, 5)]


def test_a_token_that_begins_before_its_word_is_one_of_its_tokens() -> None:
    parts = Parts("港口", "老渔夫", "挥手")
    offsets = [(0, 2), (3, 6), (7, 9)]  # a token for every part
    spans = find_spans(offsets, parts.ranges(), 9, parts.places(parts.words("all", (["港口"], ["渔夫"]))))
    assert [span.tolist() for span in spans] == [[0], [1]]


def test_naming_words_of_one_part_only_is_told() -> None:
    with pytest.raises(ValueError, match=r"The character 'an old fisherman .* Mark one there too"):
        choose_words(PARTS.background, PARTS.character, marked=(["harbour"], []))
    with pytest.raises(ValueError, match=r"The background .* Add one to --nouns"):
        choose_words(PARTS.background, PARTS.character, listed=("hat",))


@given(text=st.text("aA the-fox'é ,.[]9_", max_size=40))
def test_content_words_stand_in_the_text(text: str) -> None:
    words = content_words(text)
    assert len(words) == len(set(words))
    assert all(word.lower() not in FUNCTION_WORDS and list(occurrences(text, [word])) for word in words)


def test_occurrences_are_whole_words() -> None:
    text = "a hat, that Hat and a what; hat-stand"
    assert [text[a:b] for a, b in occurrences(text, ["hat"])] == ["hat", "Hat", "hat"]
    assert list(occurrences("a (b) c", ["(b)"])) == [(2, 5)]
    assert list(occurrences("a hat", ["", " "])) == []


@pytest.mark.parametrize("phrase", ["红狐狸", "帽子", "fox"])
def test_scripts_without_spaces_have_no_word_ends(phrase: str) -> None:
    text = "一只红狐狸戴着帽子和fox玩"
    assert [text[a:b] for a, b in occurrences(text, [phrase])] == [phrase]


@pytest.mark.parametrize("character_first", [False, True])
def test_spans_hold_the_chosen_words_of_their_own_part(character_first: bool) -> None:
    prompt = PARTS.prompt(character_first)
    offsets = [(n, n + 1) for n in range(len(prompt))]  # a token for every letter
    words = PARTS.words("nouns", (["blue sky"], ["hat"]))
    spans = find_spans(offsets, PARTS.ranges(character_first), 99, PARTS.places(words, character_first))
    shown = ["".join(prompt[n] for n in span) for span in spans]
    assert shown == ["blue sky", "hat"], "the hat that is waved belongs to the action"
    assert PARTS.words("all") is None and PARTS.places(None) == {}


@pytest.mark.parametrize(
    "answer",
    [
        "harbour, sky, old man.",
        "- harbour\n- sky\n- old man",
        "1. harbour\n2) sky\n3. **old man**",
        "harbour;sky;old man",
    ],
)
def test_lists_are_read_as_language_models_write_them(answer: str) -> None:
    assert nouns_in(answer) == ("harbour", "sky", "old man")


def test_a_language_model_is_asked(tmp_path: Path) -> None:
    """A random one, whose answers name nothing that is in the text."""
    tiny.train_tokenizer(tmp_path / "spm")
    T5Tokenizer.from_pretrained(tmp_path / "spm", extra_ids=0).save_pretrained(tmp_path)
    config = GPT2Config(vocab_size=85, n_embd=16, n_layer=1, n_head=2, n_positions=256)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    ask = noun_model(tmp_path)
    assert ask(PARTS.background) == ask(PARTS.background)
    with pytest.raises(ValueError, match=r"has no noun to look for \(model words\)"):
        choose_words("a zyx", "a qwv", ask=ask)


def test_a_folder_without_a_language_model_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is no language model .* Name a local folder"):
        noun_model(tmp_path)
