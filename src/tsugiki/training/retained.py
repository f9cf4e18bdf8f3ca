"""What the text has lost while a stage trains: measured on held-out texts against the base, and drawn back to it.

Shapes: B rows, T positions, L label positions. Losses in nats.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tsugiki import identity
from tsugiki.errors import DataError, RecipeError, StoreError
from tsugiki.evals import stats
from tsugiki.evals._reference import load_bare
from tsugiki.evals._sides import bare_rows, right_padded
from tsugiki.evals.text_items import passages
from tsugiki.mixing.linear import average
from tsugiki.training import parts
from tsugiki.training.limits import Retention
from tsugiki.training.processes import Processes
from tsugiki.types import Score

BATCH = 4
SEED = 10_007
"""Of the choice of articles: others than `evals.retention` begins with."""
PREFIX = "language_model."


def check(
    model: Any, limits: Retention, *, trains: bool, sharded: bool, where: str, trained_before: bool = False
) -> None:
    """Whether a stage can be watched.

    Args:
        trains: the stage trains weights of the LLM's own.
        sharded: the model is in pieces.
        trained_before: an earlier stage trains them.

    Raises:
        RecipeError: the LLM does not train, is in pieces, or has no source files where they are needed.
        DataError: a file with fewer than two texts.
        AssetError: the asset `wiki` is not fetched, and no file is given.
    """
    if not trains or sharded:
        raise RecipeError(
            "retention is measured while the LLM's own weights train, "
            + ("and here it is in pieces" if sharded else "and here they do not: text requests stay exact"),
            expected="parallel: ddp" if sharded else "a rate for llm, and `llm: trainable` or `last_k`",
            fix="Change it, or remove `retention`.",
            where=where,
        )
    needed = limits.pull or trained_before or model.config.llm_trained
    if needed and identity.find_source(model.language_model, model.base_identity) is None:
        raise RecipeError(
            f"the base {model.base_identity.get('name')} has no source files here",
            expected="the LLM's safetensors, to "
            + ("pull towards" if limits.pull else "measure against, since it was trained before"),
            fix="Load it from a folder or hub id, or remove the setting.",
            where=where,
        )
    texts(limits)


def texts(limits: Retention) -> list[str]:
    """The texts that are read; the file's first `n`.

    Raises:
        DataError: a file that can't be read, or with fewer than two.
        AssetError: the asset `wiki` is not fetched.
    """
    if limits.texts is None:
        return passages(limits.n, seed=SEED)
    try:
        content = limits.texts.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"can't be read ({error})", expected="text in UTF-8", where=str(limits.texts)) from error
    found = [" ".join(part.split()) for part in content.split("\n\n") if part.strip()][: limits.n]
    if len(found) < 2:
        raise DataError(
            f"{len(found)} texts", expected="two or more, with blank lines between", where=str(limits.texts)
        )
    return found


class Watch:
    """Measures a model's text loss, and knows the base's.

    Args:
        base: nats of each text under the base.
        pulled: beta, where the LLM was drawn back already.
    """

    def __init__(
        self, limits: Retention, rows: Sequence[list[int]], base: Sequence[float], pulled: float | None = None
    ) -> None:
        self.limits, self.rows, self.base, self.pulled = limits, list(rows), list(base), pulled
        self.stopped = False

    @classmethod
    def begin(cls, model: Any, limits: Retention) -> Watch:
        """Before the first step: the base's losses, from the LLM itself while it is the base, else from its source."""
        rows = bare_rows(model, texts(limits))
        if not model.config.llm_trained:
            with model.detached() as llm:
                return cls(limits, rows, nats(llm, rows, model))
        folder = identity.find_source(model.language_model, model.base_identity)
        base = load_bare(str(folder), model.language_model)  # gone after this line: it is held twice for a moment
        return cls(limits, rows, nats(base, rows, model))

    @classmethod
    def of(cls, model: Any, limits: Retention, state: Mapping[str, Any]) -> Watch:
        """As it was in a checkpoint."""
        watch = cls(limits, bare_rows(model, texts(limits)), state["base"], state["pulled"])
        if state.get("texts", watch.key) != watch.key:
            raise DataError(
                "other texts than this run began with",
                expected="the same ones: their loss under the base is known already",
                fix="Put them back, or start another run.",
                where=str(limits.texts or "wiki"),
            )
        watch.stopped = bool(state["stopped"])
        return watch

    @property
    def state(self) -> dict[str, Any]:
        """For a checkpoint, as JSON values."""
        return {"base": self.base, "pulled": self.pulled, "stopped": self.stopped, "texts": self.key}

    @property
    def key(self) -> str:
        """Of the texts that are read."""
        return identity.hash_json(self.rows)

    def measure(self, model: Any) -> Score:
        """Loss a token, paired with the base's."""
        counts = [len(row) - 1 for row in self.rows]
        own = nats(model, self.rows, model)
        values, base = ([v / n for v, n in zip(x, counts, strict=True)] for x in (own, self.base))
        return stats.score("wiki", "loss", values, base, weights=counts)

    def holds(self, score: Score, share: float = 1.0) -> bool:
        """Whether a rise is shown to be within a share of the budget."""
        return worst(score) <= share * self.limits.budget

    def look(
        self, model: Any, trained: Mapping[str, Any], folder: Path, here: Processes, say: Callable[[str], None]
    ) -> dict[str, Any]:
        """Measure; beyond the budget, pull once where that is asked for, else set `stopped`.

        Args:
            trained: the parts that train.
            folder: where theta is kept while beta is looked for.

        Returns:
            For the log: `loss`, `base`, `rise` and its upper end `worst`, `held`, `stopped`; after a pull `beta` and
            `worst_before`.
        """
        score, found = self.measure(model), {}
        if here.told(float(not self.holds(score))):
            if self.limits.pull and self.pulled is None:
                found = {"worst_before": worst(score)}
                score = self._pull(model, trained, folder / ".theta.safetensors", here)
                found["beta"] = cast(float, self.pulled)
            else:
                self.stopped = True
        told(score, self, say)
        lost = {"loss": score.value, "base": score.base, "rise": score.difference, "worst": worst(score)}
        return {**lost, "held": self.holds(score), "stopped": self.stopped, **found}

    def _pull(self, model: Any, trained: Mapping[str, Any], file: Path, here: Processes) -> Score:
        """Blend the LLM with its base by the largest beta that keeps to the budget's `room`.

        beta is bisected in [0, 1]; 0 is the base, which always holds. theta waits in a file: killed meanwhile, a run
        continues from the checkpoint before it and finds the same beta.
        """
        here.tell(lambda: _keep(model, trained, file))
        low, high = 0.0, 1.0
        try:
            for _ in range(self.limits.bisections):
                middle = (low + high) / 2
                blend(model, file, middle)
                if here.told(float(self.holds(self.measure(model), self.limits.room))):
                    low = middle
                else:
                    high = middle
            blend(model, file, low)
        finally:
            here.tell(lambda: file.unlink(missing_ok=True))
        self.pulled = low
        return self.measure(model)


def _keep(model: Any, trained: Mapping[str, Any], file: Path) -> None:
    """Write the LLM's trained weights.

    Raises:
        StoreError: the disk is full.
    """
    own = {part: rate for part, rate in trained.items() if parts.trains_llm([part])}
    tensors = {name: p.detach().cpu().contiguous() for name, p in parts.trained_tensors(model, own).items()}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, file)
    except (OSError, SafetensorError) as error:
        raise StoreError(
            f"the LLM's weights can't be written ({error})",
            expected="room on the disk",
            fix="Free some space, then run the same again: it continues from the last checkpoint.",
            where=str(file),
        ) from error


def worst(score: Score) -> float:
    """The upper end of the rise's interval."""
    return float(score.difference_high if score.difference_high is not None else score.difference or 0.0)


@torch.no_grad()
def nats(llm: Any, rows: Sequence[list[int]], model: Any) -> list[float]:
    """Sum of the loss over each row's tokens; of an LLM or a composite, in eval mode."""
    modes = [(module, module.training) for module in llm.modules()]
    llm.eval()
    found: list[float] = []
    try:
        for start in range(0, len(rows), BATCH):
            part = rows[start : start + BATCH]
            ids, mask = right_padded(part, model.tokenizer.pad_token_id or 0, model.device)
            with torch.autocast(ids.device.type, enabled=False):  # as the base was measured, before the first step
                logits = llm(input_ids=ids, attention_mask=mask, use_cache=False).logits
            for row, own in zip(part, logits, strict=True):
                scores = own[: len(row) - 1].float().log_softmax(-1)
                target = torch.tensor(row[1:], device=scores.device)[:, None]
                found.append(-float(scores.gather(1, target).double().sum()))
    finally:
        for module, mode in modes:
            module.training = mode
    return found


@torch.no_grad()
def blend(model: Any, trained: Path, beta: float) -> None:
    """Set the LLM's trained weights to beta theta + (1 - beta) theta_base, one tensor at a time.

    Args:
        trained: holds theta under the composite's names; what is not in it is not touched.
        beta: 0 gives the base's bits, 1 theta's.
    """
    folder = identity.find_source(model.language_model, model.base_identity)
    assert folder is not None  # `check` has looked
    own = dict(model.named_parameters())
    with safe_open(trained, framework="pt") as theta:
        known = set(theta.keys())
        for name, base in _stored(model.language_model, folder):
            if f"{PREFIX}{name}" in known and f"{PREFIX}{name}" in own:
                target = own[f"{PREFIX}{name}"]
                pair = [theta.get_tensor(f"{PREFIX}{name}"), base.to(target.dtype)]
                target.copy_(average(pair, [beta, 1 - beta], name))


def _stored(llm: Any, folder: Path) -> Iterator[tuple[str, Tensor]]:
    """The base's tensors by their names in memory.

    Raises:
        RecipeError: they have other names or forms in the files.
    """
    found = identity.stored_tensors(llm, folder)
    if found is None:
        raise RecipeError(
            "the LLM's weights have other names or forms in its files than in memory",
            expected="an unquantised LLM, as it is stored",
            fix="Remove `pull`.",
            where="retention.pull",
        )
    return found


def told(score: Score, watch: Watch, say: Callable[[str], None]) -> None:
    """One line for people."""
    pulled = f", beta {watch.pulled:.3f}" if watch.pulled is not None else ""
    say(
        f"text loss {score.value:.4f}, base {score.base:.4f}, rise {score.difference:+.4f} up to "
        f"{worst(score):+.4f} (budget {watch.limits.budget:g}){pulled}"
    )
