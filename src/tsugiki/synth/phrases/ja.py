"""Japanese.

Counting words differ by what is counted (匹, 本, 台). The questions speak of pictures of things (犬の絵), which are
counted with the general 一つ, 二つ; verbs are of what is drawn (描かれています), which suits animals and things alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tsugiki.data.detail import PHRASES
from tsugiki.synth.phrases.base import CELLS, Phrases, StepPhrases

STANDARD = PHRASES["ja"]

NUMBERS = ("なし", "一つ", "二つ", "三つ", "四つ", "五つ", "六つ", "七つ", "八つ", "九つ")
PLACES = dict(zip(CELLS, ("左上", "上", "右上", "左", "中央", "右", "左下", "下", "右下"), strict=True))
COLOURS = {
    "red": "赤",
    "orange": "オレンジ",
    "yellow": "黄色",
    "green": "緑",
    "blue": "青",
    "purple": "紫",
    "pink": "ピンク",
    "brown": "茶色",
}
_BEFORE_A_NOUN = {"赤": "赤い", "青": "青い", "黄色": "黄色い", "茶色": "茶色い"}


def join(items: Sequence[str]) -> str:
    """「犬と車」, 「犬、車、鍵」。"""
    return "と".join(items) if len(items) < 3 else "、".join(items)


def _fields(name: str, count: int) -> Mapping[str, str]:
    return {"name": name, "number": NUMBERS[count]}


def _thing(name: str, colour: str | None, count: int) -> str:
    said = f"{_BEFORE_A_NOUN.get(colour, f'{colour}の')}{name}" if colour else name
    return said if count == 1 else f"{NUMBERS[count]}の{said}"


_SIDES = {"left": "左", "right": "右", "above": "上", "below": "下"}
_MORE = {**_SIDES, "larger": "大きい", "nearer": "{c}に近い"}

# Photographs too are asked about here: no verb of drawing or being, which would differ by what is shown.
STEPWISE = StepPhrases(
    hints=(
        "枠を示しながら順に答えてください。",
        "枠を示して、一歩ずつ答えてください。",
        "順を追って、枠とともに答えてください。",
    ),
    questions={
        "where": ("{a}はどこですか？", "{a}の位置を示してください。", "{a}を見つけてください。"),
        "side": (
            "{a}は{b}から見て左、右、上、下のどれですか？",
            "{b}に対して、{a}は左、右、上、下のどちらですか？",
        ),
        "more": ("{a}と{b}では、どちらがより{more}ですか？", "{a}と{b}のうち、より{more}のはどちらですか？"),
        "most": ("どの{name}が最も{most}ですか？", "最も{most}のはどの{name}ですか？"),
        "chain": (
            "{a}と{b}のうち{which}方から見て、{c}は左、右、上、下のどれですか？",
            "{c}は、{a}と{b}のうち{which}方に対して左、右、上、下のどちらですか？",
        ),
    },
    steps={
        "at": "{name}の位置は{box}です。",
        "nth at": "{nth}の{name}の位置は{box}です。",
        "side": "{a}は{b}の{side}です。",
        "more": "{a}は{b}より{more}です。",
        "most": "{nth}の{name}が最も{most}です。",
        "none": "画像に{name}は見当たりません。",
        "answer": "答え：{name}、{box}。",
        "answer nth": "答え：{nth}の{name}、{box}。",
        "answer side": "答え：{b}の{side}、{box}。",
        "answer none": "答え：なし。",
    },
    side=_SIDES,
    direction=_SIDES,
    more=_MORE,
    most=_MORE,
    which={
        "left": "左寄りの",
        "right": "右寄りの",
        "above": "上寄りの",
        "below": "下寄りの",
        "larger": "大きい",
    },
    nth=("一つ目", "二つ目", "三つ目", "四つ目"),
)

JAPANESE = Phrases(
    language="ja",
    numbers=NUMBERS,
    colours=COLOURS,
    places=PLACES,
    at=PLACES,
    hints={
        "short": (STANDARD["short"], "一言で答えてください。", "単語で答えてください。"),
        "full": (STANDARD["full"], "文で答えてください。", "文でお願いします。"),
        "boxes": (STANDARD["boxes"], "枠を示して文で答えてください。"),
        "sentence with boxes": ("枠を示して文で答えてください。", "文で答え、枠も示してください。"),
        "boxes only": (STANDARD["boxes"], "枠だけを示してください。"),
        "names and boxes": (STANDARD["boxes"],),
        "briefly": (STANDARD["short"],),
        "yes or no": (STANDARD["short"], "はいかいいえで答えてください。", "はい、いいえのどちらですか？"),
    },
    questions={
        "naming": ("絵には何が描かれていますか？", "この絵は何ですか？", "何の絵ですか？"),
        "naming at": ("{at}には何が描かれていますか？", "{at}にあるのは何の絵ですか？"),
        "naming box": ("枠{box}の中には何が描かれていますか？", "枠{box}の中は何の絵ですか？"),
        "colour": ("{name}は何色ですか？", "{name}の色は何ですか？", "{name}は何色で描かれていますか？"),
        "count": ("{name}の絵はいくつありますか？", "{name}はいくつ描かれていますか？"),
        "count all": ("全部でいくつの物が描かれていますか？", "絵の中に物はいくつ描かれていますか？"),
        "place": ("{name}はどこに描かれていますか？", "{name}は絵のどの辺りに描かれていますか？"),
        "box": ("{name}の位置を示してください。", "{name}はどこにありますか？", "{name}を見つけてください。"),
        "presence": ("この絵に{name}は描かれていますか？", "{name}は描かれていますか？"),
        "caption": ("この絵を説明してください。", "絵には何が見えますか？", "何が描かれているか教えてください。"),
        "detect": (
            "すべての物の名前と枠を挙げてください。",
            "描かれている物を、枠とともにすべて挙げてください。",
            "何がどこにあるか、名前と枠をすべて示してください。",
        ),
        "detect class": ("{name}をすべて見つけてください。", "{name}の枠をすべて挙げてください。"),
    },
    answers={
        ("naming", "short"): "{name}",
        ("naming", "full"): "{name}です。",
        ("naming", "boxes"): "{box}にあるのは{name}です。",
        ("colour", "short"): "{colour}",
        ("colour", "full"): "{name}の色は{colour}です。",
        ("colour", "boxes"): "{box}にある{name}の色は{colour}です。",
        ("count", "short"): "{number}",
        ("count", "full"): "{name}は{number}描かれています。",
        ("count", "boxes"): "{name}は{boxes}に{number}描かれています。",
        ("place", "short"): "{place}",
        ("place", "full"): "{name}は{at}に描かれています。",
        ("place", "boxes"): "{name}は{at}の{box}に描かれています。",
        ("box", "boxes"): "{name}の位置は{boxes}です。",
        ("absent", "short"): "なし",
        ("absent", "full"): "この絵に{name}は描かれていません。",
        ("absent", "boxes"): "描かれていません。",
        ("absent", "boxes only"): "なし",
        ("yes", "short"): "はい",
        ("yes", "full"): "はい、{name}が描かれています。",
        ("yes", "boxes"): "はい、{boxes}に描かれています。",
        ("no", "short"): "いいえ",
        ("no", "full"): "いいえ、{name}は描かれていません。",
        ("no", "boxes"): "いいえ、描かれていません。",
        ("caption", "short"): "{things}",
        ("caption", "full"): "{things}が描かれています。",
        ("caption", "boxes"): "{things}が描かれています。",
        ("caption item", "boxes"): "{box}に{thing}",
        ("detect item", "boxes"): "{name}{box}",
    },
    space="",
    separator="、",
    join=join,
    fields=_fields,
    thing=_thing,
    object="物",
    stepwise=STEPWISE,
)
