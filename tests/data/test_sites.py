"""GLUE and SuperGLUE as their sites hand them out, on rows written for these tests."""

import functools
import json
import types
from pathlib import Path

import pytest
import tensorflow_datasets as tfds

from prompt_tuning.data.batches import TaskData
from prompt_tuning.data.catalogue import all_tasks
from prompt_tuning.data.catalogue.glue import BENCHMARKS, Benchmark, register_benchmarks
from prompt_tuning.data.readers import local_files
from prompt_tuning.data.readers.records import BadRows
from prompt_tuning.errors import UserError

LENGTHS = {"inputs": 64, "targets": 16}
NLI = [
    {"premise": "It pours.", "hypothesis": "It rains.", "label": "entailment", "idx": 0},
    {"premise": "It\u2019s dry.", "hypothesis": "It rains.", "label": "not_entailment", "idx": 1},
]
WSC_TEXT = "Ann told Kim that she slept."
PASSAGE = "<b>Sent 1: </b>Ann had two cats.<br>"
NEWS = "Ann Lee won in Bonn\n@highlight\nLee is from Ulm"
SUPER_GLUE = {
    "BoolQ": [
        {"question": "is it wet", "passage": "Rain -- Rain is wet.", "idx": 0, "label": True},
        {"question": "is it dry", "passage": "Rain -- Rain is wet.", "idx": 1, "label": False},
    ],
    "CB": [
        row | {"label": label} for row, label in zip(NLI, ("neutral", "contradiction"), strict=True)
    ],
    "COPA": [
        {
            "premise": "It rained.",
            "choice1": "It got wet.",
            "choice2": "It got dry.",
            "question": "effect",
            "label": label,
            "idx": label,
            "changed": False,
        }
        for label in (0, 1)
    ],
    "MultiRC": [
        {
            "idx": 4,
            "version": 1.1,
            "passage": {
                "text": PASSAGE,
                "questions": [
                    {
                        "question": "How many cats?",
                        "idx": 7,
                        "answers": [
                            {"text": "Two", "idx": 11, "label": 1},
                            {"text": "", "idx": 12, "label": 0},
                        ],
                    },
                    {
                        "question": "Whose?",
                        "idx": 8,
                        "answers": [{"text": "Ann's", "idx": 13, "label": 1}],
                    },
                ],
            },
        }
    ],
    "ReCoRD": [
        {
            "source": "News",
            "idx": 5,
            "passage": {
                "text": NEWS,
                "entities": [
                    {"start": 0, "end": 6},
                    {"start": 15, "end": 18},
                    {"start": 4, "end": 6},
                    {"start": 43, "end": 45},
                ],
            },
            "qas": [
                {
                    "query": "@placeholder is a town.",
                    "idx": 9,
                    "answers": [
                        {"start": 43, "end": 45, "text": "Ulm"},
                        {"start": 15, "end": 18, "text": "Bonn"},
                        {"start": 15, "end": 18, "text": "Bonn"},
                    ],
                },
                {
                    "query": "@placeholder won.",
                    "idx": 10,
                    "answers": [{"start": 0, "end": 6, "text": "Ann Lee"}],
                },
            ],
        }
    ],
    "RTE": NLI,
    "WiC": [
        {
            "word": "run",
            "sentence1": "a run of luck",
            "sentence2": "go for a run",
            "idx": number,
            "label": label,
            "start1": 2,
            "start2": 9,
            "end1": 5,
            "end2": 12,
            "version": 1.1,
        }
        for number, label in enumerate((False, True))
    ],
    "WSC": [
        {
            "text": WSC_TEXT,
            "target": {
                "span1_index": index,
                "span1_text": noun,
                "span2_index": 4,
                "span2_text": "she",
            },
            "idx": index,
            "label": label,
        }
        for index, noun, label in ((0, "ann", True), (2, "Kim", False))
    ],
}
DIAGNOSTICS = {
    "AX-b": [
        {
            "sentence1": "It pours.",
            "sentence2": "It rains.",
            "idx": 0,
            "label": "entailment",
            "logic": "",
        }
    ],
    "AX-g": [NLI[1] | {"pair_id": 3}],
}

MRPC = """\
Quality\t#1 ID\t#2 ID\t#1 String\t#2 String
1\t70\t80\t"It pours, he said.\tIt pours.
0\t71\t81\tIt pours.\tIt is "dry".
1\t72\t82\tIt is dry.\tIt is not wet.
"""
MRPC_TEST = MRPC.replace("Quality", "index")
MNLI_PARSES = "sentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\tsentence2_parse"
MNLI_HEAD = f"index\tpromptID\tpairID\tgenre\t{MNLI_PARSES}\tsentence1\tsentence2"
MNLI_ROWS = ("0\t1\t1c\tnews\t( )\t( )\t(R )\t(R )\tIt pours.\tIt rains.",) * 3
MNLI_LABELS = ("neutral", "entailment", "contradiction")


def table(head: str, *rows: str) -> str:
    return "\n".join((head, *rows, ""))


def mnli(labels: str) -> str:
    rows = zip(MNLI_ROWS, MNLI_LABELS, strict=True)
    columns = "\t".join("neutral" for _ in labels.split())
    return table(
        f"{MNLI_HEAD}\t{labels.replace(' ', chr(9))}\tgold_label",
        *(f"{row}\t{columns}\t{label}" for row, label in rows),
    )


COLA = 'gj04\t1\t\tIt rains.\ngj04\t0\t*\tRains it "not.\n'
STSB = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2"
STSB_ROWS = ("0\tmain\tMSRvid\t2012\t1\tnone\tnone\tIt pours.\tIt rains.",) * 2
MNLI_DEV = "label1 label2 label3 label4 label5"
GLUE = {
    "CoLA/train.tsv": COLA,
    "CoLA/dev.tsv": COLA,
    "CoLA/test.tsv": table("index\tsentence", "0\tIt rains.", "1\tIt pours."),
    "SST-2/train.tsv": table("sentence\tlabel", "so wet \t0", 'a "gem" \t1'),
    "SST-2/dev.tsv": table("sentence\tlabel", "so wet \t0", "a gem \t1"),
    "SST-2/test.tsv": table("index\tsentence", "0\tso wet"),
    "MRPC/train.tsv": MRPC,
    "MRPC/dev.tsv": MRPC,
    "MRPC/test.tsv": MRPC_TEST,
    "QQP/train.tsv": table(
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate", "3\t1\t2\tWhy?\tHow?\t0"
    ),
    "QQP/dev.tsv": table(
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
        "3\t1\t2\tWhy?\tHow?\t0",
        '4\t3\t4\tWhy "not?\tWhy not?\t1',
    ),
    "QQP/test.tsv": table("id\tquestion1\tquestion2", "0\tWhy?\tHow?"),
    "STS-B/train.tsv": table(f"{STSB}\tscore", *(f"{row}\t3.800" for row in STSB_ROWS)),
    "STS-B/dev.tsv": table(f"{STSB}\tscore", *(f"{row}\t5" for row in STSB_ROWS)),
    "STS-B/test.tsv": table(STSB, *STSB_ROWS),
    "MNLI/train.tsv": mnli("label1"),
    "MNLI/dev_matched.tsv": mnli(MNLI_DEV),
    "MNLI/dev_mismatched.tsv": mnli(MNLI_DEV),
    "MNLI/test_matched.tsv": table(MNLI_HEAD, *MNLI_ROWS),
    "MNLI/test_mismatched.tsv": table(MNLI_HEAD, *MNLI_ROWS),
    "diagnostic/diagnostic.tsv": table("index\tsentence1\tsentence2", "0\tIt pours.\tIt rains."),
}
for name, first, second, words in (
    ("QNLI", "question", "sentence", ("entailment", "not_entailment")),
    ("RTE", "sentence1", "sentence2", ("not_entailment", "entailment")),
    ("WNLI", "sentence1", "sentence2", ("1", "0")),
):
    rows = [f"{number}\tIs it?\tIt is." for number in range(2)]
    labelled = [f"{row}\t{word}" for row, word in zip(rows, words, strict=True)]
    GLUE[f"{name}/train.tsv"] = table(f"index\t{first}\t{second}\tlabel", *labelled)
    GLUE[f"{name}/dev.tsv"] = table(f"index\t{first}\t{second}\tlabel", *labelled[::-1])
    GLUE[f"{name}/test.tsv"] = table(f"index\t{first}\t{second}", *rows)


def lines(rows: list[dict]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def without_targets(rows: list[dict]) -> list[dict]:
    """Rows as the test splits of SuperGLUE are."""
    hidden = json.loads(json.dumps(rows))
    for row in hidden:
        row.pop("label", None)
        for query in row.get("qas", ()):
            query.pop("answers")
        if "questions" in row.get("passage", ()):
            for question in row["passage"]["questions"]:
                for answer in question["answers"]:
                    answer.pop("label")
    return hidden


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """A folder per suite."""
    root = tmp_path_factory.mktemp("sites")
    contents = {f"glue/{name}": text for name, text in GLUE.items()}
    for name, rows in SUPER_GLUE.items():
        contents[f"super_glue/{name}/train.jsonl"] = lines(rows)
        contents[f"super_glue/{name}/val.jsonl"] = lines(rows)
        contents[f"super_glue/{name}/test.jsonl"] = lines(without_targets(rows))
    for name, rows in DIAGNOSTICS.items():
        contents[f"super_glue/{name}/{name}.jsonl"] = lines(rows)
    for name, text in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return {suite: root / suite for suite in ("glue", "super_glue")}


def files_of(benchmark: Benchmark, root: Path) -> tuple[local_files.LocalFiles, dict[str, Path]]:
    """Where a task is read from, and its files."""
    places = (*benchmark.sites, *([benchmark.local] if benchmark.local else []))
    actual = [(local, paths) for local in places if (paths := local.paths(root))]
    return actual[0]


def by_tensorflow_datasets(benchmark: Benchmark, path: Path, split: str) -> list[dict]:
    """What the builder of TensorFlow Datasets makes of a file, with labels as numbers."""
    suite, config, _ = benchmark.tfds_name.replace(":", "/").split("/")
    builder = tfds.builder_cls(suite)
    self = types.SimpleNamespace(builder_config=builder.builder_configs[config])
    if config == "mrpc":
        files = {"train": path, "test": path, "dev_ids": path.with_name("dev_ids.tsv")}
        actual = builder._generate_example_mrpc_files(self, files, split)
        return list(actual)
    split = split if suite == "super_glue" else split.replace("validation", "dev").split("_")[0]
    actual = [example for _, example in builder._generate_examples(self, path, split)]
    labels = builder.builder_configs[config].label_classes or ()
    return [
        example | {"label": list(labels).index(example["label"])}
        if example.get("label") in labels
        else example
        for example in actual
    ]


@pytest.mark.parametrize(
    "benchmark",
    [b for b in BENCHMARKS if b.name != "mrpc"],
    ids=lambda benchmark: benchmark.task,
)
def test_rows_are_those_of_tensorflow_datasets(folders, benchmark):
    local, paths = files_of(benchmark, folders[benchmark.suite])
    assert set(benchmark.splits) <= set(paths)
    for split, path in paths.items():
        rows = local.rows(split, path, BadRows())
        expected = by_tensorflow_datasets(benchmark, path, split)
        names = set(local.columns) - {"pid", "qid", "aid"}
        names |= {"paragraph"} if benchmark.name == "multirc" else set()
        for row, other in zip(rows, expected, strict=True):
            if other.get("label") in ("0", "1"):  # which TensorFlow Datasets reads as numbers later
                other["label"] = int(other["label"])
            for name in names:
                approximate = benchmark.name == "stsb" and name == "label"  # a float32
                assert row[name] == (pytest.approx(other[name]) if approximate else other[name])
        if benchmark.name == "multirc":
            assert [row["idx"] for row in rows] == [other["idx"] for other in expected]


EXPECTED = {
    "super_glue_boolq_v102": ("passage: Rain -- Rain is wet. question: is it wet", "True"),
    "super_glue_wsc_v102_simple_eval": ("Ann told Kim that *she* slept.", "Ann"),
    "super_glue_record_v102": (
        "query: @placeholder is a town. entities: Ann Lee, Bonn, Lee, Ulm passage: Ann Lee won",
        "Bonn",
    ),
    "glue_mnli_matched_v200": ("hypothesis: It rains. premise: It pours.", "neutral"),
}


@pytest.mark.parametrize(("short", "text", "target"), [(k, *v) for k, v in EXPECTED.items()])
def test_texts_and_targets(folders, vocabulary, short, text, target):
    register_benchmarks(vocabulary, folders["glue" if short.startswith("glue") else "super_glue"])
    data = TaskData(f"taskless_{short}_examples", LENGTHS, 2)
    [validation] = data.eval_sets("validation")
    assert validation.inputs[0].startswith(text)
    assert validation.targets[0] == target
    test = data.eval_set("test")  # to predict on
    assert test.inputs[0] == validation.inputs[0]
    assert not any("<unk>" in note for note in test.notes)
    with pytest.raises(UserError, match="no task with metrics has the split 'test'"):
        data.eval_sets("test")


@pytest.fixture
def mrpc(tmp_path) -> Path:
    """MRPC as its source hands it out."""
    folder = tmp_path / "MRPC"
    folder.mkdir()
    (folder / "msr_paraphrase_train.txt").write_text("\ufeff" + MRPC.replace("\n", "\r\n"))
    (folder / "msr_paraphrase_test.txt").write_text("\ufeff" + MRPC)
    (folder / "dev_ids.tsv").write_text("71\t81\n72\t80\n")
    return folder


def test_mrpc_of_its_source(mrpc):
    [benchmark] = [b for b in BENCHMARKS if b.name == "mrpc"]
    local, paths = files_of(benchmark, mrpc.parent)
    names = ("sentence1", "sentence2", "label", "idx")
    for split, count in (("train", 2), ("validation", 1), ("test", 3)):
        rows = local.rows(split, paths[split], BadRows())
        assert [row["idx"] for row in rows] == list(range(count))
        if split != "test":
            other = by_tensorflow_datasets(
                benchmark, paths[split], split.replace("validation", "dev")
            )
            assert [[row[name] for name in names[:3]] for row in rows] == [
                [row[name] for name in names[:3]] for row in other
            ]
    (mrpc / "dev_ids.tsv").unlink()
    with pytest.raises(UserError, match=r"dev_ids\.tsv: no such file"):
        local.rows("train", paths["train"], BadRows())


MISTAKES = {
    "a label of another task": (
        {"RTE/val.jsonl": lines([NLI[0] | {"label": "neutral"}])},
        "rte_v102",
        r"val\.jsonl, line 1: 'label' is 'neutral', not a number from 0 to 1 \(entailment, not",
    ),
    "a truth value in place of a word": (
        {"RTE/val.jsonl": lines([NLI[0] | {"label": True}])},
        "rte_v102",
        "'label' is True, not",
    ),
    "a split for training without labels": (
        {"RTE/val.jsonl": lines(without_targets(NLI))},
        "rte_v102",
        "line 1: no field 'label'",
    ),
    "a row of another form": (
        {"MultiRC/val.jsonl": lines([{"passage": "text", "idx": 1}])},
        "multirc_v102",
        "line 1: not a row of multirc as its site writes them",
    ),
    "two files for one split": (
        {"RTE/val.jsonl": lines(NLI), "RTE/validation.jsonl": lines(NLI)},
        "rte_v102",
        r"validation\.jsonl and val\.jsonl: two files for one split",
    ),
    "a split twice, once compressed": (
        {"RTE/train.jsonl": lines(NLI), "RTE/train.jsonl.gz": ""},
        "rte_v102",
        r"train\.jsonl and train\.jsonl\.gz: two files for one split",
    ),
    "two sites' files of one task": (
        {"RTE/train.tsv": "", "RTE/train.jsonl": lines(NLI)},
        "rte_v102",
        r"train\.tsv and \S*train\.jsonl: both are of taskless_glue_rte_v200_examples; keep one",
    ),
    "two folders for one task": (
        {"CB/val.jsonl": lines(NLI), "cb/val.jsonl": lines(NLI)},
        "rte_v102",
        "CB and cb are folders of the same task; keep one",
    ),
}


@pytest.mark.parametrize(("files", "short", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_in_a_folder(tmp_path, vocabulary, files, short, message):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        read_validation(vocabulary, tmp_path, short)


def read_validation(vocabulary, folder: Path, short: str) -> None:
    all_tasks.register(vocabulary, folder)
    TaskData(f"taskless_super_glue_{short}_examples", LENGTHS, 2).eval_sets("validation")


@pytest.mark.parametrize("form", ["tsv", "jsonl", "saved"])
@pytest.mark.parametrize(
    ("split", "score", "right"),
    [
        ("train", 0, True),
        ("validation", 5.0, True),
        ("validation", 3.75, True),
        ("train", -1, False),
        ("validation", -1.0, False),
        ("validation", 7.5, False),
        ("train", 50, False),
        ("train", 5.0000001, False),
        ("test", -1, True),  # no label
        ("test", -1.0, True),
        ("test", -2, False),
        ("test", 50.0, False),
    ],
)
def test_scores_outside_the_scale(form, split, score, right, tmp_path):
    stsb = next(each for each in BENCHMARKS if each.name == "stsb")
    path = tmp_path / f"{split}.{form}"
    row = {"sentence1": "A man sings.", "sentence2": "A man hums.", "score": score}
    if form == "saved":
        pytest.importorskip("datasets").Dataset.from_list(
            [row | {"label": float(score)}]
        ).save_to_disk(path)
        rows = functools.partial(local_files._saved_rows, labels=(), scores=stsb.scores)
    else:
        row["score"] = str(score) if form == "tsv" else score
        path.write_text(
            lines([row]) if form == "jsonl" else "\t".join(row) + "\n" + "\t".join(row.values())
        )
        rows = (stsb.local if form == "jsonl" else stsb.sites[0]).rows
    if right:
        assert [each["label"] for each in rows(split, path, BadRows())] == [score]
        return
    name = "label" if form == "saved" else "score"
    with pytest.raises(UserError, match=f"'{name}' is '?{score}.*, not a number from 0 to 5"):
        rows(split, path, BadRows())


def test_targets_under_another_name_are_not_taken_for_hidden_ones(tmp_path):
    stsb = next(each for each in BENCHMARKS if each.name == "stsb")
    path = tmp_path / "test.jsonl"
    path.write_text(lines([{"sentence1": "A man sings.", "sentence2": "A man hums.", "label": 3}]))
    with pytest.raises(UserError, match=r"line 1: has a column 'label'.* 'score' in its place"):
        stsb.local.rows("test", path, BadRows())


def test_a_test_split_with_some_labels(tmp_path, vocabulary):
    (tmp_path / "RTE").mkdir()
    rows = [*without_targets(NLI), *NLI, NLI[0] | {"label": -1}]
    (tmp_path / "RTE" / "test.jsonl").write_text(lines(rows))
    register_benchmarks(vocabulary, tmp_path)
    data = TaskData("taskless_super_glue_rte_v102_examples", LENGTHS, 2)
    with pytest.raises(UserError, match=r"test\.jsonl: 3 of 5 rows have no 'label'"):
        data.eval_set("test")


def test_some_examples_are_of_whole_questions(folders, vocabulary):
    """Two answers to one question of MultiRC, one to the other."""
    register_benchmarks(vocabulary, folders["super_glue"])
    name = "taskless_super_glue_multirc_v102_examples"
    whole = TaskData(name, LENGTHS, 2).eval_set("validation")
    sizes = {1: {1, 2}, 2: {2, 3}, 3: {3}}
    for count, wanted in sizes.items():
        some = TaskData(name, LENGTHS, 2, eval_examples=count).eval_set("validation")
        assert len(some.inputs) in wanted
        for question in ("How many", "Whose"):
            inputs = [text for text in whole.inputs if question in text]
            assert [text for text in some.inputs if question in text] in ([], inputs)


def test_metrics_that_read_further_fields_are_of_these_rows(folders, vocabulary):
    register_benchmarks(vocabulary, folders["super_glue"])
    data = TaskData("taskless_super_glue_multirc_v102_examples", LENGTHS, 2)
    eval_set = data.eval_set("validation")
    targets = eval_set.targets
    for other in (targets[:2], targets[::-1]):
        if other == targets:
            continue
        for metric in eval_set.metric_fns:
            with pytest.raises(UserError, match="these targets are others or in another order"):
                metric(other, other)
