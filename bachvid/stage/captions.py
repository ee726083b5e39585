"""What a caption says about a clip: background, character and action, the first two built alike word for
word.

Eq. 3 of the paper compares mean attention over the two spans, and function words draw attention of their own,
so both spans have the same function words in the same places, the same number of words, and the same comma.
Hidden attributes are never named. The adjective of the place is decoration: it stands for nothing in the
picture.
"""

from __future__ import annotations

import random

from bachvid.method.spans import Parts
from bachvid.stage import world
from bachvid.stage.world import LOCATED_VERBS, Clip

ADJECTIVES = ("quiet", "lovely", "famous", "little", "old")

_OPENINGS = ("a", "the", "there is a", "we see a", "one")
_LINKS = ("with", "that has", "showing")
_WITHOUT_LOCATION = 0.2  # share of reworded captions of located actions that leave the location out

_ACTIONS = {
    "stands": ("stands", "stands still", "is standing"),
    "jumps": ("jumps", "jumps up and down", "is jumping"),
    "waves": ("waves", "waves a hand", "is waving"),
    "crouches": ("crouches", "crouches down", "is crouching"),
    "walks": ("walks", "goes slowly", "is walking"),
    "leaps": ("leaps across the stage", "jumps across the stage", "is leaping across the stage"),
    "spins": ("spins around", "turns around", "is spinning around"),
    "bows": ("bows", "bows politely", "is bowing"),
}
_SPOTS = {
    "left": ("on the left", "on the left side"),
    "middle": ("in the middle", "in the centre"),
    "right": ("on the right", "on the right side"),
}


def caption(clip: Clip, rng: random.Random | None = None) -> Parts:
    """The clip's caption: the canonical wording, or with an `rng` a random rewording.

    A rewording treats background and character alike, and leaves the location of a located action out now and
    then.
    """
    opening, link, swapped = "a", "with", False
    adjective = ADJECTIVES[0]
    if rng is not None:
        opening, link, swapped = rng.choice(_OPENINGS), rng.choice(_LINKS), rng.random() < 0.3
        adjective = rng.choice(ADJECTIVES)
    sky = _article(f"{clip.sky} sky")
    landmark = _article(clip.landmark)
    cloth = _article(f"{clip.accessory_colour} {clip.accessory}")
    background = _part(opening, f"{adjective} {clip.place}", link, (sky, landmark), swapped)
    character = _part(opening, f"{clip.colour} {clip.kind}", link, (cloth, "a badge"), swapped)
    return Parts(background, character, _action(clip, rng))


def corpus(rng: random.Random, captions: int) -> list[str]:
    """Prompts of random training clips in both orders, from which a text encoder learns the grammar."""
    found = []
    for _ in range(captions):
        found.append(caption(world.sample_clip(rng), rng).prompt(character_first=rng.random() < 0.5))
    return found


def all_words() -> list[str]:
    """Every word of the grammar once, sorted, without the comma and the full stop."""
    stated = [*world.PLACES, *world.SKIES, *world.LANDMARKS]
    stated += [*world.KINDS, *world.COLOURS, *world.ACCESSORIES, *world.CLOTH_COLOURS]
    phrases = [*_OPENINGS, *_LINKS, *ADJECTIVES, "sky and badge an", "on to the left right"]
    phrases += [phrase for wordings in (*_ACTIONS.values(), *_SPOTS.values()) for phrase in wordings]
    return sorted({word for phrase in phrases + stated for word in phrase.split()})


def _part(opening: str, subject: str, link: str, things: tuple[str, str], swapped: bool) -> str:
    first, second = reversed(things) if swapped else things
    lead, _, last = opening.rpartition(" ")
    start = _article(subject) if last == "a" else f"{last} {subject}"
    return " ".join([*lead.split(), start, link, first, "and", second]) + ","


def _article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _action(clip: Clip, rng: random.Random | None) -> str:
    """What the puppet does and, for located verbs and walks, where or where to; ends the sentence."""
    wordings = _ACTIONS[clip.verb]
    verb = wordings[0] if rng is None else rng.choice(wordings)
    if clip.verb == "walks":
        return f"{verb} to the {clip.where}."
    if clip.verb in LOCATED_VERBS and (rng is None or rng.random() >= _WITHOUT_LOCATION):
        spots = _SPOTS[clip.where]
        return f"{verb} {spots[0] if rng is None else rng.choice(spots)}."
    return f"{verb}."
