"""The nouns of a text by a language model that the user has: what the paper asks one for (appendix B.1)."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import torch

from bachvid.errors import UsageError
from bachvid.method.words import Ask

QUESTION = "List the nouns in the text below, separated by commas. Write nothing else.\n\n{text}"
LONGEST = 96  # tokens of an answer


def noun_model(folder: Path) -> Ask:
    """A function from a text to its nouns, asked of the causal language model in a local folder.

    Answers are greedy, so a text has the same nouns every time. UsageError if there is no such model.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer  # takes seconds, which few need

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).eval()
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise UsageError(
            f"--noun-model {folder} is no language model ({reason}). Name a local folder that holds one."
        ) from error

    @cache
    @torch.no_grad()
    def ask(text: str) -> tuple[str, ...]:
        prompt = QUESTION.format(text=text)
        if tokenizer.chat_template:
            turns = [{"role": "user", "content": prompt}]
            prompt = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        given = tokenizer(prompt, return_tensors="pt", add_special_tokens=not tokenizer.chat_template)
        ids = given.input_ids
        answer = model.generate(
            ids, attention_mask=given.attention_mask, max_new_tokens=LONGEST, do_sample=False
        )
        return nouns_in(tokenizer.decode(answer[0, ids.shape[1] :], skip_special_tokens=True))

    return ask


def nouns_in(answer: str) -> tuple[str, ...]:
    """The words of a list as language models write them: with commas, on lines, with bullets or numbers."""
    items = re.split(r"[,;\n]", answer)
    bare = (re.sub(r"^\s*(?:[-*•]|\d+[.)])?\s*|[\s.\"'*]+$", "", item).strip("\"'* ") for item in items)
    return tuple(dict.fromkeys(item for item in bare if item))
