"""Japanese, about any picture with named boxes: the words and sentences of `synth.formats`.

Photographs are asked about too: no verb of drawing.
"""

from __future__ import annotations

from dataclasses import replace

from tsugiki.synth.phrases.ja import JAPANESE

JAPANESE_FORMATS = replace(
    JAPANESE,
    hints={
        **JAPANESE.hints,
        "letter": ("記号で答えてください。", "正しいものの記号を答えてください。"),
        "names and boxes": (*JAPANESE.hints["names and boxes"], "名前と枠をそれぞれ示してください。"),
    },
    questions={
        "caption": ("この画像を説明してください。", "画像には何が見えますか？", "何が写っているか教えてください。"),
        "count": ("画像に{name}はいくつ見えますか？", "{name}の数はいくつですか？"),
        "choice": ("この中で画像に見えるものはどれですか？{choices}", "画像にあるものはどれですか？{choices}"),
        "box": JAPANESE.questions["box"],
        "naming box": ("枠{box}の中にあるものは何ですか？", "枠{box}の中には何が見えますか？"),
        "detect": (
            "すべての物の名前と枠を挙げてください。",
            "見える物を、枠とともにすべて挙げてください。",
            "何がどこにあるか、名前と枠をすべて示してください。",
        ),
        "detect class": JAPANESE.questions["detect class"],
        "keypoints": (
            "枠{box}の{name}の要点はどこですか？",
            "枠{box}にある{name}の要点を見つけてください。",
            "枠{box}の{name}の要点の名前と枠を挙げてください。",
        ),
    },
    answers={
        **JAPANESE.answers,
        ("count", "short"): "{number}",
        ("caption", "full"): "{things}が見えます。",
        ("caption", "boxes"): "{things}が見えます。",
        ("detect item", "boxes"): "{name} {box}",
    },
    words={"choice": "{letter}：{name}"},
)
