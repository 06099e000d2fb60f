from collections import Counter
from pathlib import Path

import pytest

from weightwatch.vectors import NeutralTasks, WeightWatchError
from weightwatch.vectors.recipes.verdicts import by_words


def test_the_packaged_tasks_are_forty_of_both_formats() -> None:
    formats = Counter(task.format for task in NeutralTasks.load().tasks)
    assert formats.total() == 40
    assert min(formats["choice"], formats["open"]) >= 15


def test_an_open_task_is_right_where_only_a_right_text_is_found() -> None:
    for task in NeutralTasks.load().tasks:
        if task.format == "open":
            assert by_words(f"It is {task.right[0]}.", task.right, task.wrong) == "positive"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("tasks: [{format: choice, prompt: a, right: [b]}]", r"tasks\[0\]: a choice needs `wrong`"),
        ("tasks: [{format: open, prompt: a, right: [b], wrong: [B]}]", r"tasks\[0\]: 'b' is both right and wrong"),
        ("tasks: [{format: open, prompt: a, right: [4]}]", r"tasks\[0\]\.right\[0\]: 4 is not allowed; .* in quotes"),
        ("tasks: [{format: open, prompt: a, right: [b]}, {format: open, prompt: A, right: [c]}]", "'A' is asked twice"),
        ("items: []", "tasks is missing"),
        ("", "tasks is missing"),
        ("- a", r"expected keys such as `tasks:`, found \['a'\]"),
    ],
)
def test_what_is_wrong_is_told(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "tasks.yaml"
    path.write_text(text)
    with pytest.raises(WeightWatchError, match=rf"tasks\.yaml.*{told}"):
        NeutralTasks.load(path)


def test_a_missing_file_is_told() -> None:
    with pytest.raises(WeightWatchError, match="No neutral tasks at 'nowhere'"):
        NeutralTasks.load("nowhere")
