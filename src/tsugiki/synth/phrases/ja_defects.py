"""Japanese, about defects: the words and sentences of `synth.defects`."""

from __future__ import annotations

from dataclasses import replace

from tsugiki.synth.phrases.ja import JAPANESE

JAPANESE_DEFECTS = replace(
    JAPANESE,
    words={
        "scratch": "引っかき傷",
        "hole": "穴",
        "stain": "染み",
        "missing thread": "糸抜け",
        "low": "軽度",
        "medium": "中度",
        "high": "重度",
    },
    object="欠陥",
    questions={
        "type": ("どんな欠陥がありますか？", "何の欠陥ですか？", "欠陥の種類は何ですか？"),
        "type box": ("枠{box}の中にあるのはどんな欠陥ですか？", "枠{box}の欠陥の種類は何ですか？"),
        "severity": ("{name}の程度はどのくらいですか？", "{name}はどの程度のものですか？"),
        "box": ("{name}の位置を示してください。", "{name}はどこにありますか？", "{name}を見つけてください。"),
        "presence": ("この写真に{name}はありますか？", "{name}はありますか？", "{name}が見えますか？"),
        "caption": ("欠陥を説明してください。", "欠陥をすべて報告してください。", "検査の結果を教えてください。"),
    },
    answers={
        ("type", "short"): "{name}",
        ("type", "full"): "{name}です。",
        ("type", "boxes"): "{box}にあるのは{name}です。",
        ("severity", "short"): "{severity}",
        ("severity", "full"): "{name}の程度は{severity}です。",
        ("severity", "boxes"): "{box}にある{name}の程度は{severity}です。",
        ("box", "boxes"): "{name}の位置は{boxes}です。",
        ("absent", "short"): "なし",
        ("absent", "full"): "この写真に{name}はありません。",
        ("absent", "boxes"): "ありません。",
        ("absent", "boxes only"): "なし",
        ("yes", "short"): "はい",
        ("yes", "full"): "はい、{name}があります。",
        ("yes", "boxes"): "はい、{boxes}にあります。",
        ("no", "short"): "いいえ",
        ("no", "full"): "いいえ、{name}はありません。",
        ("no", "boxes"): "いいえ、ありません。",
        ("caption", "short"): "{things}",
        ("caption", "full"): "{things}があります。",
        ("caption", "boxes"): "{things}があります。",
        ("caption item", "boxes"): "{box}に{thing}",
        ("clean", "short"): "欠陥なし",
        ("clean", "full"): "欠陥はありません。",
        ("clean", "boxes"): "欠陥はありません。",
    },
)
