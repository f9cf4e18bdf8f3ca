"""Sentences of the generators, one file per language; `base.py` says what a language brings."""

from tsugiki.synth.phrases.base import Phrases
from tsugiki.synth.phrases.en import ENGLISH
from tsugiki.synth.phrases.ja import JAPANESE

LANGUAGES: dict[str, Phrases] = {phrases.language: phrases for phrases in (ENGLISH, JAPANESE)}
