"""A judge that is a local chat model."""

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING

from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.fingerprint import Fingerprint
from weightwatch.vectors.generation import generated, load_model, prompt
from weightwatch.vectors.judges.judge import Judge, Judgement
from weightwatch.vectors.judges.score import score
from weightwatch.vectors.portable import portable_name
from weightwatch.vectors.recipes.verdicts import ModelJudge

if TYPE_CHECKING:
    from weightwatch.vectors.generation import Messages
    from weightwatch.vectors.recipes.questions import Question

_BATCH = 16  # answers rated at once
_MAX_NEW_TOKENS = 32  # of a reply: the rubric asks for the number alone


class ChatModel(Judge):
    """A local chat model that gets the rubric and replies greedily with a number from 0 to 100.

    The reply is read as that of an endpoint. One without a score, one that is cut short, and an answer that is too long
    for the model's context leave the answer ``unjudged``.

    Args:
        rubric: The prompt, and the thresholds of the verdicts.
        source: A causal language model with its tokenizer: a folder, or a Hub id.

    Raises:
        WeightWatchError: The model can't be loaded, or has no chat template.
    """

    def __init__(self, rubric: ModelJudge, source: str) -> None:
        self._rubric, self.name = rubric, f"the chat model {portable_name(source)}"
        self._model, self._tokenizer = load_model(source)
        template = self._tokenizer.chat_template
        if template is None:
            raise WeightWatchError(
                f"The judge {source} has no chat template, so it can't be asked to rate answers. Pass an "
                "instruction-tuned model, or save its tokenizer with a template."
            )
        weights = self._model.state_dict()
        fingerprint = Fingerprint.of(weights, weights.__getitem__).model_dump_json()
        self.identity = f"chat, {_MAX_NEW_TOKENS} tokens, {template}, {fingerprint}"
        self._longest: int | None = getattr(self._model.config, "max_position_embeddings", None)

    def rate(self, cases: "Sequence[tuple[Question, str]]") -> Generator[dict[int, Judgement], None, None]:
        """Rate answers."""
        for first in range(0, len(cases), _BATCH):
            part = range(first, min(first + _BATCH, len(cases)))
            asked = {number: self._asked(*cases[number]) for number in part}
            read = {number: messages for number, messages in asked.items() if self._fits(messages)}
            long = Judgement("unjudged", None, f"longer than the {self._longest} tokens that the judge reads")
            found = dict.fromkeys(part, long)
            if read:
                said = generated(self._model, self._tokenizer, list(read.values()), max_new_tokens=_MAX_NEW_TOKENS)
                found.update((number, self._judgement(*reply)) for number, reply in zip(read, said, strict=True))
            yield found

    def _asked(self, question: "Question", answer: str) -> "Messages":
        return [{"role": "user", "content": self._rubric.prompt(question.text, answer)}]

    def _fits(self, messages: "Messages") -> bool:
        ids = self._tokenizer(prompt(self._tokenizer, messages), add_special_tokens=False)["input_ids"]
        return self._longest is None or len(ids) + _MAX_NEW_TOKENS <= self._longest

    def _judgement(self, reply: str, cut: bool) -> Judgement:
        found = score(reply, cut)
        return Judgement("unjudged" if found is None else self._rubric.verdict(found), found, reply)


def generates(source: str) -> bool:
    """Whether a folder or Hub id holds a causal language model, by the architecture in its config."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError):
        return False
    return any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in config.architectures or [])
