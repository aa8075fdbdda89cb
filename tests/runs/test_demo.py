"""The table that `make demo` ends with."""

import re

import numpy as np

from prompt_tuning.checkpoint import prompts
from prompt_tuning.runs import demo


def test_the_demo_answers_three_tasks_at_once(tmp_path):
    prompts.save(tmp_path / "reviews.npy", np.zeros((20, 256), np.float32))
    model = demo.served(str(tmp_path / "reviews.npy"))
    header, *lines, accuracy = demo.mixed(model, most=16).splitlines()
    assert header.split() == ["task", "text", "answer", "p", "right", "answer"]
    assert [line.split()[0] for line in lines] == [name for name in model.tasks for _ in range(2)]
    shares = re.findall(r"(\w+) (\d\.\d\d)", accuracy.partition(": ")[2])
    assert accuracy.startswith("accuracy of 48 rows, mixed: ")
    assert {name for name, _ in shares} == {"demo_reviews", "demo_questions", "demo_topics"}
    for task, share in shares:  # as if each task had been asked alone
        rows = demo._test_rows(task, model.labels(task))[:16]
        answers = model.classify([row.inputs for row in rows], task)
        right = [answer.label == row.targets for answer, row in zip(answers, rows, strict=True)]
        assert share == f"{sum(right) / 16:.2f}"
