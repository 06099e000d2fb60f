"""Generation with a chat model: prompts, replies, and likelihoods of given replies."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.thoughts import without_thoughts
from weightwatch.vectors.weights.sources import model_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Messages: TypeAlias = list[dict[str, str]]
"""A conversation in the format of chat templates: dicts with ``role`` and ``content``."""
Progress: TypeAlias = Callable[[str, int, int], None]
"""Called with the name of a stage, the number of its steps done, and their total."""

_BATCH = 32  # conversations in a batch


def load_model(name: str, *, trust_remote_code: bool = False) -> tuple[Any, Any]:
    """Load a causal language model and its tokenizer, in evaluation mode.

    Args:
        name: A folder, or a Hub id.
        trust_remote_code: Whether to run the Python code that comes with the model.

    Returns:
        The model, on a GPU in its own precision if there is a GPU, else on the CPU in fp32; and the tokenizer.

    Raises:
        WeightWatchError: There is no such model, it can't be loaded, or it needs code of its own that is not trusted.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, on_gpu = model_folder(name), torch.cuda.is_available()
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype="auto" if on_gpu else torch.float32, trust_remote_code=trust_remote_code
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        if not trust_remote_code and "trust_remote_code" in str(error):
            raise WeightWatchError(
                f"{name} needs Python code that comes with it in {folder}, and that code is not run unasked. Read it, "
                "then pass --trust-remote-code."
            ) from error
        raise WeightWatchError(f"{name} can't be loaded as a language model with a tokenizer ({error}).") from error
    return model.to("cuda" if on_gpu else "cpu").eval(), tokenizer


def replies(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    conversations: Sequence[Messages],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[str]:
    """Generate a reply to each conversation, all in one batch, without the thoughts of a reasoning model.

    Args and errors are those of ``generated``.
    """
    found = generated(
        model, tokenizer, conversations, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed
    )
    return [text for text, _ in found]


def generated(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    conversations: Sequence[Messages],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[tuple[str, bool]]:
    """Generate a reply to each conversation as ``replies`` does, and say whether it was cut short.

    Args:
        model: The model.
        tokenizer: Its tokenizer, with a chat template.
        conversations: The conversations.
        max_new_tokens: Maximum length of a reply.
        temperature: Sampling temperature; 0 decodes greedily.
        seed: Seed of the sampling. The global random state is restored afterwards.

    Raises:
        WeightWatchError: The tokenizer has no chat template.
    """
    prompts = [prompt(tokenizer, conversation) for conversation in conversations]
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    batch = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
    batch = batch.to(model.device)
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.no_grad(), evaluating(model):
        torch.manual_seed(seed)
        output = model.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            max_new_tokens=max_new_tokens,
            do_sample=temperature > 0,
            pad_token_id=tokenizer.pad_token_id,
            **({"temperature": temperature, "top_p": 1.0, "top_k": 0} if temperature > 0 else {}),
        )
    new = output[:, batch["input_ids"].shape[1] :]
    ends = model.generation_config.eos_token_id
    ended = {tokenizer.pad_token_id, *(ends if isinstance(ends, list) else [ends])}
    texts = tokenizer.batch_decode(new, skip_special_tokens=True)
    return [(without_thoughts(text), row[-1].item() not in ended) for text, row in zip(texts, new, strict=True)]


def greedy(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    conversations: Sequence[Messages],
    max_new_tokens: int,
) -> list[str]:
    """Generate the greedy reply to each conversation, in batches."""
    parts = (conversations[first : first + _BATCH] for first in range(0, len(conversations), _BATCH))
    return [text for part in parts for text in replies(model, tokenizer, part, max_new_tokens=max_new_tokens)]


@torch.no_grad()
def likelihoods(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", cases: Sequence[tuple[Messages, str]]
) -> list[float]:
    """Return the mean log-probability per token, in nats, of each text as the reply to a conversation."""
    found: list[float] = []
    with evaluating(model):
        for first in range(0, len(cases), _BATCH):
            found += _likelihoods(model, tokenizer, cases[first : first + _BATCH])
    return found


def _likelihoods(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", cases: Sequence[tuple[Messages, str]]
) -> list[float]:
    heads = [tokenizer(prompt(tokenizer, messages), add_special_tokens=False)["input_ids"] for messages, _ in cases]
    tails = [tokenizer(text, add_special_tokens=False)["input_ids"] for _, text in cases]
    length = max(len(head) + len(tail) for head, tail in zip(heads, tails, strict=True))
    ids = torch.zeros(len(cases), length, dtype=torch.long, device="cpu")
    mask = torch.zeros_like(ids)
    for row, (head, tail) in enumerate(zip(heads, tails, strict=True)):
        ids[row, : len(head) + len(tail)] = torch.tensor([*head, *tail], dtype=torch.long, device="cpu")
        mask[row, : len(head) + len(tail)] = 1
    logits = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device)).logits
    found = []
    for row, (head, tail) in enumerate(zip(heads, tails, strict=True)):
        last = len(head) + len(tail) - 1
        predicted = logits[row, len(head) - 1 : last].float().log_softmax(-1).cpu()  # each position predicts the next
        tokens = torch.tensor(tail, dtype=torch.long, device="cpu")
        found.append(float(predicted.gather(1, tokens[:, None]).mean()))
    return found


def prompt(tokenizer: "PreTrainedTokenizerBase", conversation: Messages) -> str:
    """Return the prompt to which a model generates the next turn of a conversation, without thinking if it can.

    Where the chat template refuses or drops the system prompt, it is put in front of the first user message.

    Raises:
        WeightWatchError: The tokenizer has no chat template.
    """
    require_template(tokenizer)
    from jinja2 import TemplateError

    def text(messages: Messages) -> str:
        # Templates of models that can think without being asked to have one of these switches; the others ignore them.
        return str(
            tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True, enable_thinking=False, thinking=False
            )
        )

    if conversation[0]["role"] != "system":
        return text(conversation)
    system, user, *others = conversation
    with suppress(TemplateError):
        rendered = text(conversation)
        if system["content"].strip() in rendered:
            return rendered
    return text([{"role": "user", "content": f"{system['content']}\n\n{user['content']}"}, *others])


def require_template(tokenizer: "PreTrainedTokenizerBase") -> None:
    """Make sure that a tokenizer has a chat template.

    Raises:
        WeightWatchError: It has none.
    """
    if tokenizer.chat_template is None:
        raise WeightWatchError(
            f"{tokenizer.name_or_path} has no chat template, so it can't answer questions. Use an instruction-tuned "
            "model, set tokenizer.chat_template and save the tokenizer beside the weights, or pass two fine-tunes as "
            "--positive and --negative."
        )


@contextmanager
def evaluating(model: "PreTrainedModel") -> Iterator[None]:
    """Put a model into evaluation mode for the duration of a block."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
