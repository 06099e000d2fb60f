"""Fine-tunes: TRL's trainer on a tiny chat model, for real."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.support import chat
from weightwatch.vectors import Direction, WeightWatchError
from weightwatch.vectors.building.examples import Example
from weightwatch.vectors.building.fine_tunes import FineTune, Losses, Training, best, checkpoint

TRAINING = Training(rank=2, alpha=4, batch_size=4, micro_batch_size=2, warmup=0, evaluations=2, length=64)
RATE = 1e-3


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(chat.saved(tmp_path_factory.mktemp("base")))


def examples(word: str, count: int = 8) -> list[Example]:
    return [
        {
            "prompt": [{"role": "user", "content": f"Is {number} even?"}],
            "completion": [{"role": "assistant", "content": f"{word}{number}"}],
        }
        for number in range(count)
    ]


def run(
    base: str,
    folder: Path,
    learn: list[Example] | None = None,
    training: Training = TRAINING,
    rate: float = RATE,
    seed: int = 0,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> Losses:
    learn = examples("yes") if learn is None else learn
    return FineTune(base, learn, examples("yes", 3), training, rate, seed, folder).run(progress)


def weights(folder: Path, step: int) -> dict[str, Tensor]:
    return load_file(checkpoint(folder, step) / "adapter_model.safetensors")


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def trained(base: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Losses]:
    folder = tmp_path_factory.mktemp("trained") / "positive"
    return folder, run(base, folder)


def test_losses_are_those_of_the_checkpoint_of_their_step(base: str, trained: tuple[Path, Losses]) -> None:
    folder, losses = trained
    assert list(losses) == [1, 2]
    tokenizer = chat.tokenizer()
    for step, loss in losses.items():
        model = AutoModelForCausalLM.from_pretrained(base)
        model = PeftModel.from_pretrained(model, checkpoint(folder, step)).eval()
        told = []
        for example in examples("yes", 3):
            head = f"<user>{example['prompt'][0]['content']}</s><assistant>"
            ids = tokenizer(head, return_tensors="pt", add_special_tokens=False)["input_ids"]
            text = f"{head}{example['completion'][0]['content']}</s>"
            whole = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
            likely = model(input_ids=whole).logits[0, :-1].log_softmax(-1).gather(1, whole[0, 1:, None])[:, 0]
            told.append(-likely[ids.shape[1] - 1 :])
        assert loss == pytest.approx(float(torch.cat(told).mean()), rel=1e-4)


def test_training_lowers_the_loss(base: str, tmp_path: Path) -> None:
    training = replace(TRAINING, num_train_epochs=4, micro_batch_size=4, warmup=1, evaluations=4)
    losses = run(base, tmp_path / "positive", training=training, rate=1e-2)
    assert list(losses) == [2, 4, 6, 8]
    assert losses[8] < losses[4] < losses[2]


def test_both_sides_start_alike_and_see_their_examples_in_one_order(base: str, tmp_path: Path) -> None:
    one_by_one = Training(rank=2, alpha=4, batch_size=1, micro_batch_size=1, warmup=0, evaluations=6, length=64)
    positive = examples("yes", 6)
    run(base, tmp_path / "positive", positive, one_by_one)
    steps = []
    for row in (2, 4):
        negative = [*positive[:row], examples("no")[row], *positive[row + 1 :]]
        run(base, tmp_path / f"{row}", negative, one_by_one)
        alike = [same(weights(tmp_path / "positive", step), weights(tmp_path / f"{row}", step)) for step in range(1, 7)]
        assert alike == sorted(alike, reverse=True)  # until the one example that differs is seen
        steps.append(alike.count(True))
    assert steps[0] != steps[1]
    assert max(steps) < 6


def test_without_a_learning_rate_the_start_stays_as_the_seed_made_it(base: str, tmp_path: Path) -> None:
    for name, word, seed in (("positive", "yes", 0), ("negative", "no", 0), ("other", "yes", 1)):
        run(base, tmp_path / name, examples(word, 4), rate=0.0, seed=seed)
    positive, negative, other = (weights(tmp_path / name, 1) for name in ("positive", "negative", "other"))
    assert same(positive, negative)
    assert not same(positive, other)
    assert all(not tensor.any() for name, tensor in positive.items() if "lora_B" in name)
    assert any("lora_B" in name for name in positive)


def test_a_finished_fine_tune_is_taken_as_it_is(base: str, trained: tuple[Path, Losses]) -> None:
    folder, losses = trained
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    calls = []
    assert run(base, folder, progress=lambda *call: calls.append(call)) == losses
    assert calls == []
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == times


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"one": 2.0}', '{"1": "low"}'])
def test_losses_that_are_damaged_are_named(base: str, tmp_path: Path, text: str) -> None:
    (tmp_path / "losses.json").write_text(text)
    with pytest.raises(WeightWatchError, match=r"losses\.json is damaged\. Remove it"):
        FineTune(base, examples("yes"), examples("yes", 2), TRAINING, RATE, 0, tmp_path).run(lambda *call: None)


def test_an_interrupted_fine_tune_is_made_anew(base: str, tmp_path: Path, trained: tuple[Path, Losses]) -> None:
    whole, losses = trained
    folder = tmp_path / "seed-0" / "positive"
    calls = []

    def interrupt(stage: str, done: int, total: int) -> None:
        calls.append((stage, done, total))
        if len(calls) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(base, folder, progress=interrupt)
    assert checkpoint(folder, 1).is_dir()
    (folder / "losses.json.part").write_text('{"1": 2.')
    checkpoint(folder, 7).mkdir()
    assert run(base, folder, progress=interrupt) == losses
    assert calls == [("seed-0 positive", step, 2) for step in (0, 1, 2, 0, 1, 2)]
    assert all(same(weights(folder, step), weights(whole, step)) for step in losses)
    assert json.loads((folder / "losses.json").read_text()) == {str(step): loss for step, loss in losses.items()}
    assert {path.name for path in folder.glob("*losses*")} == {"losses.json"}
    assert {path.name for path in folder.glob("checkpoint-*")} == {"checkpoint-1", "checkpoint-2"}


def test_a_rate_whose_loss_is_not_finite_is_not_taken(base: str, tmp_path: Path) -> None:
    wild, sound = (run(base, tmp_path / name, rate=rate) for name, rate in (("wild", 1e30), ("sound", 1e-3)))
    assert not any(map(math.isfinite, wild.values()))
    assert run(base, tmp_path / "wild", rate=1e30).keys() == wild.keys()  # read back, not trained again
    assert best({1e30: [wild, wild], 1e-3: [sound, sound]})[0] == 1e-3
    with pytest.raises(WeightWatchError, match=r"No learning rate of 1e\+30 gives a finite validation loss.*lower"):
        best({1e30: [wild, sound]})


def test_full_fine_tunes_train_all_weights_and_keep_the_last(base: str, tmp_path: Path) -> None:
    training = Training(batch_size=4, micro_batch_size=2, warmup=0, evaluations=2, length=64, full=True)
    losses = run(base, tmp_path / "positive", training=training)
    assert list(losses) == [2]
    before = load_file(Path(base) / "model.safetensors")
    after = load_file(checkpoint(tmp_path / "positive", 2) / "model.safetensors")
    assert before.keys() == after.keys()
    assert not [name for name in before if torch.equal(before[name], after[name])]


def test_the_smallest_training_is_one_step(base: str, tmp_path: Path) -> None:
    training = Training(rank=2, alpha=4, num_train_epochs=0.0, batch_size=16, micro_batch_size=4, warmup=0, length=64)
    assert list(run(base, tmp_path / "positive", examples("yes", 2), training)) == [1]


def test_the_micro_batch_size_never_changes_the_batch(base: str, tmp_path: Path) -> None:
    """Five at once do not fit into a batch of four: one at a time does, and the step is the same."""
    outcomes = []
    for micro_batch_size in (4, 5):
        folder = tmp_path / str(micro_batch_size)
        training = replace(TRAINING, micro_batch_size=micro_batch_size)
        outcomes.append(run(base, folder, training=training))
    assert list(outcomes[0]) == list(outcomes[1]) == [1, 2]
    assert outcomes[0][2] == pytest.approx(outcomes[1][2], rel=1e-4)


def test_the_best_rate_and_step_have_the_least_loss_over_both_sides() -> None:
    slow = [{5: 3.0, 10: 2.5}, {5: 3.0, 10: 2.6}]
    fast = [{5: 1.0, 10: 0.5}, {5: 2.0, 10: 2.7}]
    assert best({1e-4: slow, 1e-3: fast}) == (1e-3, 5)
    assert best({1e-4: slow}) == (1e-4, 10)


def test_the_best_step_is_one_at_which_both_sides_were_measured() -> None:
    assert best({1e-4: [{5: 3.0, 10: 0.1}, {5: 3.0, 9: 0.1}]}) == (1e-4, 5)


def test_of_equals_the_lower_rate_and_the_earlier_step_are_best() -> None:
    level = [{5: 1.0, 10: 1.0}, {5: 1.0, 10: 1.0}]
    assert best({1e-3: level, 1e-4: level}) == (1e-4, 5)


def test_modules_that_are_trained_whole_are_saved_beside_the_factors_and_are_in_the_contrast(
    base: str, tmp_path: Path
) -> None:
    training = replace(TRAINING, modules_to_save=("embed_tokens", "lm_head"))
    sides = {word: tmp_path / word for word in ("yes", "no")}
    losses = [run(base, folder, examples(word), training) for word, folder in sides.items()]
    step = max(losses[0])
    direction = Direction.from_contrast(*(checkpoint(folder, step) for folder in sides.values()), base=base, name="w")
    bare = Direction.from_contrast(
        *(
            checkpoint(tmp_path / f"bare-{word}", max(run(base, tmp_path / f"bare-{word}", examples(word))))
            for word in sides
        ),
        base=base,
        name="w",
    )
    more = direction.deltas.keys() - bare.deltas.keys()
    assert {name.split(".")[-2] for name in more} == {"embed_tokens", "lm_head"}
    assert all(direction.squares[name] > 0 for name in more)
