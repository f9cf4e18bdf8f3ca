"""Sentences of the generators, one file per language and subject; `base.py` says what a language brings."""

from tsugiki.synth.phrases.base import Phrases
from tsugiki.synth.phrases.en import ENGLISH
from tsugiki.synth.phrases.en_defects import ENGLISH_DEFECTS
from tsugiki.synth.phrases.en_formats import ENGLISH_FORMATS
from tsugiki.synth.phrases.en_texts import ENGLISH_TEXTS
from tsugiki.synth.phrases.ja import JAPANESE
from tsugiki.synth.phrases.ja_defects import JAPANESE_DEFECTS
from tsugiki.synth.phrases.ja_formats import JAPANESE_FORMATS
from tsugiki.synth.phrases.ja_texts import JAPANESE_TEXTS
from tsugiki.synth.phrases.texts import Texts

LANGUAGES: dict[str, Phrases] = {phrases.language: phrases for phrases in (ENGLISH, JAPANESE)}
DEFECTS: dict[str, Phrases] = {phrases.language: phrases for phrases in (ENGLISH_DEFECTS, JAPANESE_DEFECTS)}
TEXTS: dict[str, Texts] = {texts.language: texts for texts in (ENGLISH_TEXTS, JAPANESE_TEXTS)}
FORMATS: dict[str, Phrases] = {phrases.language: phrases for phrases in (ENGLISH_FORMATS, JAPANESE_FORMATS)}
