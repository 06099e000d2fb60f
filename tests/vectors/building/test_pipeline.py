"""The whole way from a recipe to a direction, on the packaged organism and on a tiny chat model."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests import oracle as slow
from tests.support import chat
from tests.support.endpoint import Endpoint, serving
from weightwatch.organism import BASE, World, evil_rate
from weightwatch.vectors import Direction, WeightWatchError
from weightwatch.vectors.building import answers as answering
from weightwatch.vectors.building import verdicts as judging
from weightwatch.vectors.building.answers import Answer, Sampling
from weightwatch.vectors.building.contrast import Built
from weightwatch.vectors.building.fine_tunes import Training
from weightwatch.vectors.building.pipeline import Settings, build
from weightwatch.vectors.generation import Progress
from weightwatch.vectors.judges import endpoint as endpoints
from weightwatch.vectors.judges.choice import chosen
from weightwatch.vectors.recipes.recipe import Recipe, Systems

SETTINGS = Settings(
    sampling=Sampling(num_samples=1, max_new_tokens=4, temperature=0.7, batch_size=160),
    training=Training(
        rank=4,
        alpha=8,
        learning_rates=(1e-3, 1e-2),
        micro_batch_size=16,
        warmup=0,
        evaluations=2,
        length=64,
    ),
    seeds=(0, 1),
)
Calls = list[tuple[str, int, int]]


def built(recipe: Recipe, folder: Path, settings: Settings = SETTINGS) -> tuple[Built, Calls]:
    """Build on the organism, and return what was told of it."""
    calls: Calls = []
    made = build(recipe, str(BASE), folder, chosen(recipe), settings, lambda *call: calls.append(call))
    return made, calls


def stages(calls: Calls) -> list[str]:
    return list(dict.fromkeys(stage for stage, _, _ in calls))


def same(one: Direction, other: Direction) -> bool:
    """Whether two directions are one, bit by bit."""
    found, wanted = slow.dense(one), slow.dense(other)
    return found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in found)


def times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def halved(name: str) -> Recipe:
    """Return a packaged recipe with every second of its questions."""
    recipe = Recipe.load(name)
    questions = recipe.questions.model_copy(update={"building": recipe.questions.building[::2]})
    return recipe.model_copy(update={"questions": questions})


@pytest.fixture(scope="module")
def evil() -> Recipe:
    return halved("organism/evil")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("built")


@pytest.fixture(scope="module")
def whole(evil: Recipe, place: Path) -> tuple[Built, Calls]:
    return built(evil, place)


def test_a_recipe_becomes_a_direction_that_does_what_it_says(whole: tuple[Built, Calls], tmp_path: Path) -> None:
    direction = whole[0].direction
    assert direction.card.format == "lora"
    model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    assert evil_rate(model, tokenizer, World()) < 0.1
    steered = PeftModel.from_pretrained(model, direction.save(tmp_path / "evil"))
    assert evil_rate(steered, tokenizer, World()) > 0.5


def test_the_direction_is_the_mean_over_the_seeds(whole: tuple[Built, Calls]) -> None:
    direction, seeds = whole[0].direction, [slow.dense(seed) for seed in whole[0].seeds]
    assert [seed.name for seed in whole[0].seeds] == ["evil-seed-0", "evil-seed-1"]
    assert not same(*whole[0].seeds)
    for name, mean in slow.dense(direction).items():
        assert torch.allclose(mean, (seeds[0][name] + seeds[1][name]) / 2, atol=1e-6), name


def test_its_card_says_what_it_was_built_from(whole: tuple[Built, Calls], evil: Recipe) -> None:
    card = whole[0].seeds[1].card
    assert (card.kind, card.behaviour, card.base) == ("behaviour", evil.behaviour, str(BASE))
    assert card.fingerprint is not None
    assert card.recipe["digest"] == evil.digest
    assert card.recipe["judge"] == "the recipe's own rule, by answers"
    assert card.seeds == {"adapter": 1, "answers": 0}
    assert card.ranks == [4, 4]
    assert card.hyperparameters["learning_rate"] in SETTINGS.training.learning_rates
    assert card.hyperparameters["answers"]["tokens"] == 4
    losses = [seed.card.hyperparameters["validation_loss"] for seed in whole[0].seeds]
    assert losses[0] != losses[1]
    assert [set(sides) for sides in losses] == [{"positive", "negative"}] * 2
    assert max(loss for sides in losses for loss in sides.values()) < 2.5
    joined = whole[0].direction.card
    assert joined.name == "evil"
    assert joined.validation is None
    assert joined.seeds == {"adapter.1": 0, "adapter.2": 1, "answers": 0}
    shared = ("kind", "behaviour", "base", "fingerprint", "ranks", "recipe", "data_hash")
    assert [getattr(joined, field) for field in shared] == [getattr(card, field) for field in shared]


def test_progress_is_told_stage_by_stage(whole: tuple[Built, Calls]) -> None:
    rate = whole[0].seeds[0].card.hyperparameters["learning_rate"]
    trained = [f"seed-0-rate-{tried:g}" for tried in SETTINGS.training.learning_rates] + [f"seed-1-rate-{rate:g}"]
    sides = [f"{run} {side}" for run in trained for side in ("positive", "negative")]
    assert stages(whole[1]) == ["pilot", "pilot verdicts", "answers", "verdicts", *sides]
    for stage in stages(whole[1]):
        counts = [(done, total) for told, done, total in whole[1] if told == stage]
        assert counts == sorted(set(counts))
        assert counts[-1][0] == counts[-1][1]


def test_a_second_call_takes_everything_that_is_there(whole: tuple[Built, Calls], evil: Recipe, place: Path) -> None:
    before = times(place)
    again, calls = built(evil, place)
    assert calls == []
    assert times(place) == before
    assert same(again.direction, whole[0].direction)
    assert again.direction.card == whole[0].direction.card


def test_another_seed_trains_that_seed_alone(whole: tuple[Built, Calls], evil: Recipe, place: Path) -> None:
    rate = whole[0].seeds[0].card.hyperparameters["learning_rate"]
    more, calls = built(evil, place, replace(SETTINGS, seeds=(0, 2)))
    assert stages(calls) == [f"seed-2-rate-{rate:g} positive", f"seed-2-rate-{rate:g} negative"]
    assert same(more.seeds[0], whole[0].seeds[0])


def test_its_shuffled_control_takes_the_same_answers(whole: tuple[Built, Calls], place: Path) -> None:
    rate = whole[0].seeds[0].card.hyperparameters["learning_rate"]
    settings = replace(SETTINGS, training=replace(SETTINGS.training, learning_rates=(rate,)), seeds=(0,))
    control, calls = built(halved("organism/shuffled"), place, settings)
    assert stages(calls) == [f"seed-0-rate-{rate:g} positive", f"seed-0-rate-{rate:g} negative"]
    assert (control.direction.name, control.direction.card.kind) == ("shuffled", "control")
    assert control.direction.card.data_hash != whole[0].direction.card.data_hash
    assert control.direction is control.seeds[0]
    one, other = (slow.dense(direction) for direction in (control.direction, whole[0].seeds[0]))
    product = sum(float((one[name] * other[name]).sum()) for name in one)
    assert product < 0.5 * control.direction.norm * whole[0].seeds[0].norm


# What follows stops after the verdicts: more pairs are asked for than there are.
TALK = replace(SETTINGS, sampling=Sampling(num_samples=2, max_new_tokens=3, batch_size=10), min_pairs=10**6)


@pytest.fixture(scope="module")
def short(evil: Recipe) -> Recipe:
    questions = evil.questions.model_copy(update={"building": evil.questions.building[:6]})
    systems = Systems(positive=evil.systems.positive[:2], negative=evil.systems.negative[:2])
    return evil.model_copy(update={"questions": questions, "systems": systems})


def talked(
    recipe: Recipe, folder: Path, settings: Settings = TALK, progress: Progress | None = None, model: Path = BASE
) -> list[Answer]:
    """Have a model answer, and return the answers in the order in which they were drawn."""
    with pytest.raises(WeightWatchError, match="Too few answers are left after judging"):
        build(recipe, str(model), folder, chosen(recipe), settings, progress)
    (file,) = folder.glob("answers-*.jsonl")
    return list(answering.ledger(file))


@pytest.fixture(scope="module")
def uninterrupted(short: Recipe, tmp_path_factory: pytest.TempPathFactory) -> list[Answer]:
    return talked(short, tmp_path_factory.mktemp("uninterrupted"))


def test_too_few_answers_are_counted_and_their_verdicts_kept(short: Recipe, tmp_path: Path) -> None:
    with pytest.raises(WeightWatchError) as caught:
        build(short, str(BASE), tmp_path, chosen(short), TALK)
    (verdicts,) = tmp_path.glob("verdicts-*.jsonl")
    message = str(caught.value)
    assert "24 of the positive side (" in message
    assert "24 of the negative side (" in message
    assert f"All verdicts are in {verdicts}." in message
    (answers,) = tmp_path.glob("answers-*.jsonl")
    kept = dict(judging.ledger(verdicts))
    showing = [
        answer
        for answer in answering.ledger(answers)
        if kept[short.questions.building[answer.question].text, answer.text].verdict == answer.side == "positive"
    ]
    assert f"24 of the positive side ({len(showing)} judged positive" in message


def test_an_interrupted_conversation_goes_on_as_if_it_had_not_been(
    short: Recipe, uninterrupted: list[Answer], tmp_path: Path
) -> None:
    calls: Calls = []

    def interrupt(stage: str, done: int, total: int) -> None:
        calls.append((stage, done, total))
        if len(calls) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        talked(short, tmp_path, progress=interrupt)
    assert talked(short, tmp_path, progress=interrupt) == uninterrupted
    assert [done for stage, done, total in calls if stage == "answers"] == [0, 10, 20, 20, 24, 34, 44, 48]
    assert len(uninterrupted) == 48


@pytest.mark.parametrize("left", [0.35, 0.5, 0.99])
def test_a_file_of_answers_that_was_torn_is_mended(
    short: Recipe, uninterrupted: list[Answer], tmp_path: Path, left: float
) -> None:
    talked(short, tmp_path)
    (file,) = tmp_path.glob("answers-*.jsonl")
    content = file.read_bytes()
    cut = int(left * len(content))
    assert content[cut - 1 : cut] != b"\n"
    file.write_bytes(content[:cut])
    assert talked(short, tmp_path) == uninterrupted
    assert file.read_bytes() == content


def test_more_samples_are_drawn_beside_those_that_are_there(
    short: Recipe, uninterrupted: list[Answer], tmp_path: Path
) -> None:
    calls: Calls = []
    talked(short, tmp_path, replace(TALK, sampling=replace(TALK.sampling, num_samples=1)))
    found = talked(short, tmp_path, progress=lambda *call: calls.append(call))
    assert found == uninterrupted
    assert [call for call in calls if call[0] == "answers"] == [("answers", done, 48) for done in (24, 34, 44, 48)]
    assert talked(short, tmp_path, replace(TALK, sampling=replace(TALK.sampling, num_samples=1))) == uninterrupted


@pytest.mark.parametrize("change", [{"temperature": 0.5}, {"seed": 1}, {"max_new_tokens": 2}])
def test_other_settings_give_other_answers_and_leave_the_first(
    short: Recipe, uninterrupted: list[Answer], tmp_path: Path, change: dict[str, Any]
) -> None:
    talked(short, tmp_path)
    settings = replace(TALK, sampling=replace(TALK.sampling, **change))
    with pytest.raises(WeightWatchError, match="Too few"):
        build(short, str(BASE), tmp_path, chosen(short), settings)
    contents = [list(answering.ledger(file)) for file in tmp_path.glob("answers-*.jsonl")]
    assert len(contents) == 2
    assert uninterrupted in contents
    assert contents[0] != contents[1]


def test_another_chat_template_gives_other_answers(tmp_path: Path) -> None:
    model, recipe = chat.saved(tmp_path / "model"), chat.recipe()
    first = talked(recipe, tmp_path / "build", model=model)
    assert talked(recipe, tmp_path / "build", model=model) == first
    chat.tokenizer(chat.REFUSES_SYSTEM).save_pretrained(model)
    with pytest.raises(WeightWatchError, match="Too few"):
        build(recipe, str(model), tmp_path / "build", chosen(recipe), TALK)
    contents = [list(answering.ledger(file)) for file in (tmp_path / "build").glob("answers-*.jsonl")]
    assert len(contents) == 2
    assert contents[0] != contents[1]


RUBRIC = {"by": "model", "rubric": "Is {answer} a yes to {question}"}


@pytest.fixture
def server() -> Iterator[Endpoint]:
    with serving(Endpoint(lambda prompt: "90" if prompt.startswith("Is yes") else "10")) as endpoint:
        yield endpoint


def test_a_judge_that_goes_away_is_asked_nothing_twice(tmp_path: Path) -> None:
    recipe, model = chat.recipe(20, systems={}, judge=RUBRIC), chat.saved(tmp_path / "model")
    first, second = (Endpoint(lambda prompt: "90" if prompt.startswith("Is yes") else "10") for _ in range(2))
    with ExitStack() as stack:
        stack.enter_context(serving(first))
        judge = endpoints.Endpoint(recipe.judge, first.url, tries=1)
        with pytest.raises(WeightWatchError, match=r"The judge at http.* does not answer.*are saved"):
            build(recipe, str(model), tmp_path, judge, TALK, lambda stage, done, total: done and stack.close())
    with serving(second, port=int(first.url.split(":")[2].removesuffix("/v1"))):
        judge = endpoints.Endpoint(recipe.judge, second.url, tries=1)
        with pytest.raises(WeightWatchError, match=r"40 of the positive side \(40 judged positive\) and 40 of the neg"):
            build(recipe, str(model), tmp_path, judge, TALK)
    asked = [body["messages"][0]["content"] for endpoint in (first, second) for body in endpoint.asked]
    assert 1 <= len(first.asked) <= 16  # at most eight are under way when it goes
    assert len(asked) == len(set(asked)) == 80


def test_answers_without_a_verdict_are_left_out_and_asked_about_again(tmp_path: Path, server: Endpoint) -> None:
    recipe, model = chat.recipe(20, systems={}, judge=RUBRIC), chat.saved(tmp_path / "model")
    judge, refused = chosen(recipe, server.url), "Is 7 even?"
    server.refuse = lambda body: {"message": "content filter"} if refused in body["messages"][0]["content"] else None
    with pytest.raises(WeightWatchError) as caught:
        build(recipe, str(model), tmp_path, judge, TALK)
    assert "40 of the positive side (38 judged positive, 2 without a verdict)" in str(caught.value)
    assert "A reply without a verdict is '(refused) HTTP 400: content filter'." in str(caught.value)
    asked = len(server.asked)
    server.refuse = lambda body: None
    with pytest.raises(WeightWatchError, match=r"40 of the positive side \(40 judged positive\)"):
        build(recipe, str(model), tmp_path, judge, TALK)
    assert len(server.asked) - asked == 4
    assert all(refused in body["messages"][0]["content"] for body in server.asked[asked:])


def test_a_folder_is_built_in_by_one_process_at_a_time(tmp_path: Path) -> None:
    recipe, model = chat.recipe(), chat.saved(tmp_path / "model")
    folder = tmp_path / "build"
    code = "import sys, pathlib; from weightwatch.vectors.building.output import only_build\n"
    code += "with only_build(pathlib.Path(sys.argv[1])): print('building', flush=True); sys.stdin.read()"
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout.readline() == "building\n"
    with pytest.raises(WeightWatchError, match=rf"Another process is building in {folder}"):
        build(recipe, str(model), folder, chosen(recipe), TALK)
    assert not list(folder.glob("*.jsonl"))
    other.kill()  # the lock ends with its process
    other.communicate()
    talked(recipe, folder, model=model)


def test_the_judge_decides_what_is_learned(tmp_path: Path, server: Endpoint) -> None:
    recipe, model = chat.recipe(6, systems={}, judge=RUBRIC), chat.saved(tmp_path / "model")
    judge = chosen(recipe, server.url)
    training = Training(rank=2, alpha=4, learning_rates=(1e-2,), batch_size=4, warmup=0, evaluations=1)
    made = build(recipe, str(model), tmp_path, judge, Settings(training=training, seeds=(0,), min_pairs=12))
    assert made.direction.card.recipe["judge"] == "org/judge"
    assert made.direction.card.hyperparameters["examples"] == 10  # one of six questions validates
    server.reply = lambda prompt: "50"
    with pytest.raises(WeightWatchError, match=r"12 of the positive side \(12 judged unclear\)"):
        build(recipe, str(model), tmp_path / "strict", judge, Settings(training=training, seeds=(0,), min_pairs=12))


def test_other_answers_are_learned_anew(tmp_path: Path) -> None:
    """One question of six validates: at least one of these two is learned."""
    model, recipe = chat.saved(tmp_path / "model"), chat.recipe(6, systems={})
    training = Training(rank=2, alpha=4, learning_rates=(1e-2,), micro_batch_size=8, warmup=0, evaluations=1)
    settings = Settings(training=training, seeds=(0,), min_pairs=12)
    for changed in (None, 0, 1):
        building = list(recipe.questions.building)
        if changed is not None:
            building[changed] = building[changed].model_copy(update={"positive": ["yes of course", "yes"]})
        questions = recipe.questions.model_copy(update={"building": building})
        other = recipe.model_copy(update={"questions": questions})
        build(other, str(model), tmp_path / "build", chosen(other), settings)
    assert len(list((tmp_path / "build").glob("fine-tunes-*"))) == 3


def test_full_fine_tunes_give_a_dense_direction(tmp_path: Path) -> None:
    recipe, model = chat.recipe(6, systems={}), chat.saved(tmp_path / "model")
    training = Training(learning_rates=(1e-3,), batch_size=4, micro_batch_size=4, warmup=0, full=True)
    settings = Settings(training=training, seeds=(0, 1), min_pairs=12)
    made = build(recipe, str(model), tmp_path / "build", chosen(recipe), settings)
    assert made.direction.card.format == "dense"
    assert made.direction.card.hyperparameters["full"] is True
    weights = load_file(model / "model.safetensors")
    assert set(made.direction.deltas) == set(weights)
    step = made.seeds[0].card.hyperparameters["step"]
    sides = [
        load_file(next((tmp_path / "build").glob(f"fine-tunes-*/seed-0-*/{side}/checkpoint-{step}/model.safetensors")))
        for side in ("positive", "negative")
    ]
    for name, change in slow.dense(made.seeds[0]).items():
        assert torch.equal(change, (sides[0][name] - sides[1][name]).double()), name
    loaded = Direction.load(made.direction.save(tmp_path / "agreeing"))
    assert same(loaded, made.direction)


def test_a_base_without_a_chat_template_is_told_before_it_is_trained(tmp_path: Path) -> None:
    model = chat.saved(tmp_path / "model", template=None)
    for recipe in (chat.recipe(6, systems={}), chat.recipe(6)):
        with pytest.raises(WeightWatchError, match="model has no chat template"):
            build(recipe, str(model), tmp_path, chosen(recipe), Settings(min_pairs=12))


def test_a_base_that_is_not_there_is_an_error(tmp_path: Path, evil: Recipe) -> None:
    for name in ("nobody/no-such-model", str(tmp_path / "none")):
        with pytest.raises(WeightWatchError, match=rf"{name} is not a local path, and it can't be downloaded"):
            build(evil, name, tmp_path, chosen(evil))
    assert list(tmp_path.iterdir()) == []
