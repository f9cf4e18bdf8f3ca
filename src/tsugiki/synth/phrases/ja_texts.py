"""Japanese, about text on pictures: the words and sentences of `synth.ocr`."""

from __future__ import annotations

from tsugiki.data.detail import PHRASES
from tsugiki.synth.phrases.texts import Texts

_SHORT = (PHRASES["ja"]["short"], "文字だけを答えてください。")
_BOXES = (PHRASES["ja"]["boxes"],)

JAPANESE_TEXTS = Texts(
    language="ja",
    fields={
        "model": "型式",
        "serial": "製造番号",
        "lot": "ロット",
        "date": "製造日",
        "voltage": "電圧",
        "power": "出力",
        "current": "電流",
        "weight": "質量",
    },
    columns=("長さ", "価格", "在庫", "重さ", "注文"),
    item="品名",
    date="{year}年{month}月{day}日",
    questions={
        "read": (
            "枠{box}の中の文字は何ですか？",
            "枠{box}の文字を読んでください。",
            "枠{box}には何と書いてありますか？",
        ),
        "read all": ("画像の文字を読んでください。", "画像には何と書いてありますか？"),
        "field": ("{field}は何ですか？", "{field}の欄を読んでください。", "銘板の{field}を読んでください。"),
        "gauge": ("計器の値はいくつですか？", "計器を読んでください。", "針はどこを指していますか？"),
        "cell": (
            "{row}の{column}はいくつですか？",
            "{row}の行の{column}の欄には何とありますか？",
            "{row}の{column}の欄を読んでください。",
        ),
        "text box": (
            "「{text}」という文字はどこにありますか？",
            "文字「{text}」の位置を示してください。",
            "「{text}」と書かれた所を見つけてください。",
        ),
        "spotting": (
            "すべての文字と枠を挙げてください。",
            "書かれている文字を、枠とともにすべて挙げてください。",
            "どこに何と書いてあるか、文字と枠をすべて示してください。",
        ),
        "table": ("この表をMarkdownで書いてください。", "表をMarkdownの文字に直してください。"),
    },
    hints={
        "read": _SHORT,
        "field": _SHORT,
        "gauge": (PHRASES["ja"]["short"], "数値と単位を答えてください。"),
        "cell": _SHORT,
        "text box": _BOXES,
        "spotting": _BOXES,
        "table": (),
    },
)
