"""Batches of pre-training: a function of seed and step, and every example can be answered."""

import dataclasses

import numpy as np
import pytest

from prompt_tuning import embedded
from prompt_tuning.pretraining import cloze
from prompt_tuning.pretraining.choices import KINDS, VERDICTS
from prompt_tuning.pretraining.mixture import KINDS as BATCHES
from prompt_tuning.pretraining.mixture import Mixture, Phase
from prompt_tuning.pretraining.pairs import WORDS
from prompt_tuning.pretraining.table import KEPT_FOR_MEASURING, digest

EVERYTHING = Phase(10**6, *[1.0] * len(BATCHES))


@pytest.fixture(scope="module")
def mixture(corpus, labelled, table) -> Mixture:
    return Mixture(
        str(corpus), str(labelled), str(table), embedded.vocabulary(), (EVERYTHING,), batch_size=16
    )


def test_a_batch_is_a_function_of_seed_and_step(mixture):
    again = dataclasses.replace(mixture)
    again(3)  # what came before does not count
    other_seed = dataclasses.replace(mixture, seed=1)
    for step in range(12):
        first, second = mixture(step), again(step)
        for name in first:
            np.testing.assert_array_equal(first[name], second[name])
    tokens = [m(5)["encoder_input_tokens"].tobytes() for m in (mixture, other_seed)]
    assert tokens[0] != tokens[1]
    assert mixture(5)["encoder_input_tokens"].tobytes() != tokens[1]


def test_batches_start_at_a_step(mixture):
    batch = next(mixture.batches(4))
    np.testing.assert_array_equal(batch["encoder_input_tokens"], mixture(4)["encoder_input_tokens"])


@pytest.mark.parametrize("kind", BATCHES)
def test_each_kind_of_batch(mixture, kind):
    of_kind = dataclasses.replace(mixture, phases=(Phase(1, **{kind: 1.0}),))
    batch = of_kind(0)
    inputs, targets = batch["encoder_input_tokens"], batch["decoder_target_tokens"]
    assert inputs.dtype == targets.dtype == np.int32
    assert (inputs[:, 0] > 0).all() and (targets[:, 0] > 0).all()
    assert abs(inputs.size - 16 * 40) <= 128  # as many tokens as any other batch
    np.testing.assert_array_equal(batch["decoder_loss_weights"], targets > 0)
    np.testing.assert_array_equal(batch["decoder_input_tokens"][:, 1:], targets[:, :-1])


def test_some_batches_of_choices_are_half_as_many_of_twice_the_length(mixture):
    choices = dataclasses.replace(mixture, phases=(Phase(1, choices=1.0),))
    shapes = {choices(step)["encoder_input_tokens"].shape for step in range(12)}
    assert shapes == {(16, 40), (8, 80)}
    never = dataclasses.replace(choices, long_choices=0.0)
    assert {never(step)["encoder_input_tokens"].shape for step in range(12)} == {(16, 40)}


def test_phases_follow_one_another(mixture):
    phases = (Phase(2, cloze=1.0), Phase(4, choices=1.0))
    changed = dataclasses.replace(mixture, phases=phases, long_choices=0.0)
    lengths = [changed(step)["encoder_input_tokens"].shape[1] for step in (0, 1, 2, 3, 9)]
    assert lengths == [128, 128, 40, 40, 40]


@pytest.mark.parametrize("kind", KINDS)
def test_the_answer_of_a_choice_is_one_of_its_options(mixture, kind):
    rng = np.random.default_rng(0)
    for choice in mixture.choices().of_kind(kind, rng, 50):
        options = choice.options(rng)
        assert choice.answer in options
        assert len(options) == len(set(options))
        assert choice.text


def test_nearer_options_are_the_answers(mixture):
    teacher = mixture.teacher
    vectors = dict(zip(teacher.options, teacher.option_vectors.astype(np.float32), strict=True))
    windows = dict(zip(teacher.texts, teacher.window_vectors.astype(np.float32), strict=True))
    rng = np.random.default_rng(0)
    for text, answer, decoys in mixture.choices().of_kind("teacher", rng, 100):
        # An option may be in the table more than once; its last vector is the one found here.
        same = [teacher.options.count(option) for option in (answer, *decoys)]
        if max(same) == 1:
            near = [vectors[option] @ windows[text] for option in (answer, *decoys)]
            assert near[0] == max(near)


def test_some_windows_are_for_measuring_alone(mixture):
    rng = np.random.default_rng(0)
    kept = {text for i, text in enumerate(mixture.teacher.texts) if i % KEPT_FOR_MEASURING == 0}
    trained = {c.text for c in mixture.choices().of_kind("teacher", rng, 400)}
    measured = {c.text for c in mixture.choices(measuring=True).of_kind("teacher", rng, 50)}
    assert not trained & kept and measured <= kept


def test_a_verdict_is_asked_for_in_two_words(mixture):
    rng = np.random.default_rng(0)
    for choice in mixture.choices().of_kind("verdict", rng, 30):
        assert {choice.answer, *choice.decoys} in [set(pair) for pair in VERDICTS]


def test_pairs_say_same_where_the_teacher_does(mixture):
    rng = np.random.default_rng(0)
    similar = {(p.first, p.second): p.similarity for p in mixture.teacher.pairs}
    for text, answer in mixture.pairs().draw(rng, 100):
        actual = {s for (a, b), s in similar.items() if a in text and text.endswith(b)}
        first = {words[0] for words in WORDS}
        assert actual and (max(actual) > 0.5 if answer in first else min(actual) < 0.5)


def test_the_answer_of_a_cloze_question_is_in_its_paragraph(mixture):
    rng = np.random.default_rng(0)
    drawn = [cloze.draw(rng, mixture.documents) for _ in range(200)]
    actual = [pair for pair in drawn if pair is not None]
    assert len(actual) > 50
    assert all(answer in text for text, answer in actual)


def test_texts_held_back_are_not_read(corpus, labelled, table, mixture, monkeypatch):
    text = mixture.documents.corpus.texts[0][1]
    changed = dataclasses.replace(mixture)
    monkeypatch.setitem(changed.teacher.about, "held_back", [digest(text)])
    assert text not in [other for _, other in changed.documents.corpus.texts]
    assert len(changed.documents.corpus.texts) == len(mixture.documents.corpus.texts) - 1
