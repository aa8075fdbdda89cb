"""The grid of an experiment: its cells, what tells two apart, and which job runs which."""

import copy
import dataclasses
import json
import re
from pathlib import Path

import gin
import pytest
from absl import flags
from absl.testing import flagsaver

from prompt_tuning.cli import gin_parsing
from prompt_tuning.data import source
from prompt_tuning.errors import UserError
from prompt_tuning.experiments import bindings, devices, dry_run, records, schedulers
from prompt_tuning.experiments.grid import Experiment

CONFIGS = gin_parsing.configs_folder()
FILES = sorted(
    path.relative_to(CONFIGS).as_posix()
    for path in CONFIGS.glob("experiments/**/*.gin")
    if path.parent.name != "common"
)


@pytest.fixture(autouse=True)
def _nothing_parsed():
    with flagsaver.flagsaver():
        flags.FLAGS.mark_as_parsed()
        yield
    gin.clear_config()


@pytest.fixture
def experiment(tmp_path, monkeypatch):
    """Two seeds, three methods of which one is only evaluated, two tasks."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.gin").write_text("# a\ninclude 'b.gin'\nA = 1\n")
    (tmp_path / "b.gin").write_text("B = 'x'  # b\n")
    return Experiment(
        name="e",
        output="out",
        steps={
            "train": {"command": "train", "gin_file": "a.gin", "RANDOM_SEED": "$seed", "LR": 0.3},
            "test": {"command": "eval", "FILE": "$cell/train/best.npy", "TASK": ["$task", "$DIR"]},
        },
        axes={
            "seed": (0, 1),
            "method": {
                "one": {"gin_file": ["one.gin"], "train": {"LR": 0.1}},
                "two": {"STEPS": 5},
                "none": {"steps": ("test",), "LR": 2},
            },
            "task": ("rte", {"cb": {"test": {"LENGTH": 7}}}),
        },
        variables={"DIR": "data"},
        exclude=({"method": "none", "seed": "!0"}, {"method": ["one", "two"], "task": "!rte"}),
    )


def test_the_cells(experiment, tmp_path):
    (tmp_path / "one.gin").write_text("M = 1\n")
    cells = {cell.name: cell for cell in experiment.cells(["."])}
    assert list(cells) == [
        "0-one-rte",
        "0-two-rte",
        "0-none-rte",
        "0-none-cb",
        "1-one-rte",
        "1-two-rte",
    ]
    assert cells["1-one-rte"].axes == {"seed": "1", "method": "one", "task": "rte"}
    train, test = cells["1-one-rte"].steps
    assert train.arguments("f") == [
        "--gin_file=a.gin",
        "--gin_file=one.gin",
        "--gin.MODEL_DIR=f/train",
        "--gin.RANDOM_SEED=1",
        "--gin.LR=0.1",
    ]
    assert test.arguments("f") == [
        "--gin_file=one.gin",
        "--gin.EVAL_OUTPUT_DIR=f/test",
        "--gin.FILE=f/train/best.npy",
        "--gin.TASK=['rte', 'data']",
    ]
    [only] = cells["0-none-cb"].steps
    assert only.settings == {
        "FILE": "$cell/train/best.npy",
        "TASK": ["cb", "data"],
        "LR": 2,
        "LENGTH": 7,
    }


def digests(experiment: Experiment) -> dict[str, str]:
    return {cell.name: cell.digest for cell in experiment.cells(["."])}


@pytest.fixture
def small(experiment):
    return dataclasses.replace(
        experiment,
        axes={"seed": (0, 1), "method": {"two": {"STEPS": 5}}, "task": ("rte",)},
        exclude=(),
    )


def test_a_changed_setting_is_another_cell(small, tmp_path):
    before = digests(small)
    assert len(set(before.values())) == 2
    for changed in (
        dataclasses.replace(small, variables={"DIR": "elsewhere"}),
        dataclasses.replace(small, steps={"train": {**small.steps["train"], "LR": 0.2}}),
        dataclasses.replace(small, steps={"test": small.steps["test"]}, axes={"task": ("rte",)}),
    ):
        assert not set(digests(changed).values()) & set(before.values())


def test_what_is_no_setting_leaves_a_cell_as_it_is(small):
    before = digests(small)
    other = dataclasses.replace(
        small,
        name="other",
        output="elsewhere",
        axes={"method": small.axes["method"], "task": ("rte", "cb"), "seed": (1, 2)},
    )
    assert digests(other)["two-rte-1"] == before["1-two-rte"]


def test_gin_files_belong_to_a_cell(small, tmp_path, monkeypatch):
    before = digests(small)

    def after(name: str, text: str) -> dict[str, str]:
        bindings.of_file.cache_clear()
        (tmp_path / name).write_text(text)
        return digests(small)

    assert after("b.gin", "# another comment\nB   =  'x'\n") == before
    assert after("a.gin", "import json\nfrom a.b import c\nA = 1\ninclude 'b.gin'\n") == before
    assert after("b.gin", "B = 'z'\nB = 'x'\n") == before
    assert after("b.gin", "B = 'y'\n") != before
    with pytest.raises(UserError, match=r"gin_file 'c.gin': no such file; searched: \."):
        after("a.gin", "include 'c.gin'\n")


def test_a_default_that_a_setting_replaces_is_not_part_of_a_cell(small, tmp_path):
    before = digests(small)
    bindings.of_file.cache_clear()
    (tmp_path / "b.gin").write_text("B = 'x'\nLR = 7\n")
    assert digests(small) == before


def test_settings_in_layers(small):
    """Later ones win, and gin files add up."""
    base = {"command": "train", "gin_file": "a.gin", "LR": 1, "STEPS": 1}
    layers = (base, ({"LR": 2}, {"gin_file": "b.gin", "LR": 3}))
    axes = {"task": {"x": ({"STEPS": 2}, {"train": ({"LR": 4}, {"LR": 5})})}}
    [cell] = dataclasses.replace(small, steps={"train": layers}, axes=axes).cells(["."])
    [step] = cell.steps
    assert (step.command, step.files) == ("train", ("a.gin", "b.gin"))
    assert step.settings == {"LR": 5, "STEPS": 2}


def test_bindings_that_a_parameter_depends_on():
    bound = {
        "run.data": {"%": "DATA"},
        "run.size": 3,
        "DATA": {"@": "task_data", "called": True},
        "source.task_data.files": [{"@": "mine/files.of", "called": False}],
        "files.of.name": "a",
        "mine/files.of.labels": {"%": "LABELS"},
        "LABELS": ("b",),
        "OTHER": 1,
    }
    assert bindings.reachable(bound, "run.data").keys() == bound.keys() - {"run.size", "OTHER"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": "a/b"}, "letters, digits"),
        ({"output": "gs://b/c"}, "must be a folder"),
        ({"steps": {"train": {"command": "fly"}}}, "command = 'fly'; choose from train, eval"),
        ({"axes": {"seed": ()}}, "axis 'seed' = (): has no values"),
        ({"axes": {"seed": 0}}, "axis 'seed' = 0: must be a list or a mapping"),
        ({"axes": {"seed": "12"}}, "axis 'seed' = '12': must be a list or a mapping"),
        ({"axes": {"seed": ("a b",)}}, "axis 'seed': 'a b' is part of names"),
        ({"axes": {"seed": ("a-b",)}}, "'a-b' is part of names"),
        ({"exclude": ({"size": "1"},)}, "exclude: there is no axis 'size'"),
        ({"exclude": ({"seed": ("!0", "!1")},)}, "exclude: 'seed' = ('!0', '!1'): must be values"),
        ({"exclude": ({"seed": ("!0", 1)},)}, "exclude: 'seed' = ('!0', 1): must be values"),
        ({"exclude": ({"seed": ()},)}, "exclude: 'seed' = (): must be values"),
        ({"exclude": ({"seed": 0}, {"seed": "!0"})}, "leaves no cell"),
        ({"exclude": ({},)}, "leaves no cell"),
        ({"axes": {"seed": (0, 1, "0")}}, "axis 'seed': has the value '0' twice"),
        ({"axes": {"seed": {0: {}, "0": {}}}}, "axis 'seed': has the value '0' twice"),
        ({"axes": {"seed": ({"5": {"LR": 1}, "10": {}}, "5")}}, "has the value '5' twice"),
        ({"axes": {"seed": ({"5": {}}, ({"10": {}}, {5: {"LR": 1}}))}}, "has the value '5' twice"),
        ({"axes": {"seed": (0,), "task": {"x": {"steps": ("fly",)}}}}, "there is no 'fly'"),
        ({"axes": {"seed": (0,)}}, "there is no $task; available: DIR, cell, seed, step"),
        ({"axes": {"seed": (0, 1), "task": ("a",)}, "steps": {}}, "have the same settings"),
    ],
)
def test_mistakes(experiment, change, said):
    with pytest.raises(UserError) as actual:
        dataclasses.replace(experiment, **{"exclude": (), **change}).cells(["."])
    assert said in str(actual.value) and "\n" not in str(actual.value)


@pytest.mark.parametrize(
    ("exclude", "said"),
    [
        ({"task": "rt"}, "exclude: axis 'task' has no value 'rt'; choose from rte, cb"),
        ({"task": "!rt"}, "axis 'task' has no value 'rt'"),
        ({"seed": ["0", 2]}, "axis 'seed' has no value '2'"),
        ({"seed": "0", "method": "rte"}, "axis 'method' has no value 'rte'"),
        ({"seed": 0, "method": "two"}, ""),
        ({"task": "wic"}, ""),  # of which this run has no cells
    ],
)
def test_values_of_rules(experiment, exclude, said):
    rules = dataclasses.replace(experiment, exclude=(exclude,))
    if not said:
        rules.check_rules({"task": {"wic"}})
        return
    with pytest.raises(UserError) as actual:
        rules.check_rules({"task": {"wic"}})
    assert said in str(actual.value) and "\n" not in str(actual.value)


def test_values_that_axes_have_in_files(tmp_path):
    """Those that later bindings replace are among them, those of other macros are not."""
    axes = "{'seed': %SEEDS, 'task': (%TASKS, 'all'), 'size': {'s': {'A': 'b'}}}"
    (tmp_path / "a.gin").write_text(
        f"SEEDS = (0, 1)\nTASKS = {{'rte': {{}}}}\nOTHER = ('x',)\ngrid.Experiment.axes = {axes}\n"
    )
    (tmp_path / "mine.gin").write_text(
        "include 'a.gin'\nSEEDS = (2,)\ngrid.Experiment:\n  axes = {'task': ('cb',)}\n"
    )
    assert bindings.axis_values("mine.gin", (str(tmp_path),)) == {
        "seed": {"0", "1", "2"},
        "task": {"rte", "all", "cb"},
        "size": {"s"},
    }


NAMED = {  # axes, raw names of what each cell measures, and names in tables
    "files of two tasks": (
        {"seed": (0, 1), "task": ("cr", "sst2")},
        lambda cell: [source.FILES_TASK],
        lambda cell: [cell["task"]],
    ),
    "files of one task": (
        {"seed": (0, 1)},
        lambda cell: [source.FILES_TASK],
        lambda cell: ["files"],
    ),
    "files with few examples": (
        {"seed": (0, 1), "task": ("cr", "sst2")},
        lambda cell: [f"{source.FILES_TASK}_16shot_seed{cell['seed']}"],
        lambda cell: [cell["task"]],
    ),
    "tasks with few examples and sentinels": (
        {"seed": (0, 1), "task": ({"rte": {"MIXTURE_OR_TASK_NAME": "rte_v1"}}, "cb")},
        lambda cell: [
            f"rte_v1_16shot_seed{cell['seed']}",
            f"cb_sentinel_8shot_seed{cell['seed']}",
            "wic_sentinel",
        ],
        lambda cell: ["rte", "cb", "wic"],
    ),
    "two settings of one task": (
        {
            "seed": (0, 1),
            "task": {name: {"MIXTURE_OR_TASK_NAME": "rte_v1", "L": name} for name in ("a", "b")},
        },
        lambda cell: ["rte_v1"],
        lambda cell: [cell["task"]],
    ),
}


@pytest.mark.parametrize("name", NAMED)
def test_names_of_tasks_in_tables(name, experiment, tmp_path):
    axes, raw, expected = NAMED[name]
    steps = {"train": {"command": "train", "RANDOM_SEED": "$seed"}}
    if "task" in axes:
        steps["train"]["TRAIN_FILE"] = "$task"
    experiment = dataclasses.replace(experiment, axes=axes, exclude=(), steps=steps)
    cells = experiment.cells(["."])
    for cell in cells:
        folder = experiment.cell_folder(cell)
        folder.mkdir(parents=True)
        results = [{"task": task, "metrics": {"accuracy": 0.5}} for task in raw(cell.axes)]
        record = {"status": "done", "results": results, "seconds": 1, "config": None}
        (folder / "record.json").write_text(json.dumps(record))
    table, _ = records.collect(experiment, cells)
    for line in table:
        assert [result["task"] for result in line["results"]] == expected(line["axes"])


@pytest.mark.parametrize("count", [1, 3, 7])
def test_parts_are_all_cells_once(count):
    cells = list(range(7))
    parts = [schedulers.mine(cells, index, count) for index in range(count)]
    assert sorted(cell for part in parts for cell in part) == cells
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize(
    ("flags", "environ", "expected"),
    [
        ((None, None), {}, (0, 1, "")),
        ((2, 5), {"SLURM_ARRAY_TASK_ID": "1"}, (2, 5, "--cell_index")),
        (
            (None, None),
            {
                "SLURM_ARRAY_TASK_ID": "7",
                "SLURM_ARRAY_TASK_MIN": "3",
                "SLURM_ARRAY_TASK_STEP": "2",
                "SLURM_ARRAY_TASK_COUNT": "4",
            },
            (2, 4, "SLURM_ARRAY_TASK_ID"),
        ),
        (  # an array of some of the parts
            (None, 16),
            {
                "SLURM_ARRAY_TASK_ID": "7",
                "SLURM_ARRAY_TASK_MIN": "7",
                "SLURM_ARRAY_TASK_COUNT": "1",
            },
            (7, 16, "SLURM_ARRAY_TASK_ID"),
        ),
        ((None, 4), {"JOB_COMPLETION_INDEX": "3"}, (3, 4, "JOB_COMPLETION_INDEX")),
        ((None, None), {"JOB_COMPLETION_INDEX": "3"}, (0, 1, "")),
    ],
)
def test_which_part(flags, environ, expected):
    assert schedulers.part(*flags, environ) == expected


@pytest.mark.parametrize(
    ("flags", "environ", "said"),
    [
        ((5, 5), {}, "--cell_index: part 5 of 5"),
        ((1, None), {}, "part 1 of an unknown number"),
        ((None, 3), {}, "--cell_count=3: set --cell_index"),
        ((None, None), {"SLURM_ARRAY_TASK_ID": "x"}, "SLURM_ARRAY_TASK_ID = 'x'"),
    ],
)
def test_a_part_that_cannot_be(flags, environ, said):
    with pytest.raises(UserError, match=said):
        schedulers.part(*flags, environ)


def test_devices_are_divided(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 1, 2, 3, 4, 5, 6, 7})
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    first, second = devices.shares(2)
    assert first.cores == (0, 1, 2, 3) and second.cores == (4, 5, 6, 7)
    assert first.environ == {"CUDA_VISIBLE_DEVICES": "4,5"}
    assert second.environ == {"CUDA_VISIBLE_DEVICES": "6,7"}
    assert devices.shares(1) == [devices.Share()]
    with pytest.raises(UserError, match="--workers=5: must be at most 4, the number of GPUs here"):
        devices.shares(5)


def test_tpu_chips_are_divided(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(8)))
    monkeypatch.setattr(devices, "_tpu_chips", lambda: ["0", "1", "2", "3"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    shares = devices.shares(2)
    assert [share.environ["TPU_VISIBLE_CHIPS"] for share in shares] == ["0,1", "2,3"]
    assert shares[0].environ["TPU_CHIPS_PER_PROCESS_BOUNDS"] == "1,2,1"
    with pytest.raises(UserError, match="--workers=3: must divide 4, the number of TPU chips"):
        devices.shares(3)


def load(name: str) -> Experiment:
    where = {"DATA_DIR": "'data'", "CAPTIONS_DIR": "'captions'"}
    text = (CONFIGS / name).read_text()
    given = [
        f"{macro} = {value}"
        for macro, value in where.items()
        if macro in text or (macro == "DATA_DIR" and "ladder" in name)
    ]
    bound = gin_parsing.parse(Experiment, [name], given, kind="experiments")
    return Experiment(**copy.deepcopy(bound))


@pytest.mark.parametrize("name", FILES)
def test_settings_of_every_config(name):
    """Of each experiment a cell for each combination of gin files and macros."""
    actual = load(name)
    actual.check_rules({})
    cells = actual.cells([str(CONFIGS)])
    kinds = {
        (step.name, step.files, tuple(step.settings)): step for cell in cells for step in cell.steps
    }
    for step in kinds.values():
        dry_run.planned(step)
    assert actual.name == "_".join(name.removesuffix(".gin").split("/")[1:])
    assert actual.modules([str(CONFIGS)])


def test_the_example_of_the_documentation(tmp_path):
    """It has the cells that docs/reproduce.md says, and its settings are right."""
    text = (Path(__file__).parents[2] / "docs" / "reproduce.md").read_text()
    [example] = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    (tmp_path / "mine.gin").write_text(example)
    bound = gin_parsing.parse(Experiment, [str(tmp_path / "mine.gin")], [], kind="experiments")
    cells = Experiment(**copy.deepcopy(bound)).cells([str(CONFIGS)])
    steps = [step for cell in cells for step in cell.steps]
    assert [sum(step.name == name for step in steps) for name in ("train", "transfer")] == [7, 3]
    for step in cells[1].steps:
        dry_run.planned(step)


@pytest.mark.parametrize("folder", ["", "ladder/"])
def test_cells_that_experiments_share(folder):
    """The default length, start and backbone are those of E1; the ladder's stages are apart."""
    paths = {
        path.split("/")[-1].split(".")[0].split("_")[0]: path
        for path in FILES
        if Path(path).parent == Path("experiments", folder) and "/e" in path
    }
    cells = {name: load(path).cells([str(CONFIGS)]) for name, path in paths.items()}
    known = {cell.digest for cell in cells["e1"]}
    shared = {
        name: {dict(cell.axes).get(axis) for cell in cells[name] if cell.digest in known}
        for name, axis in (
            ("e2", "length"),
            ("e3", "initializer"),
            ("e4", "pretraining"),
            ("e5", "adaptation_percent" if folder else "adaptation_steps"),
        )
    }
    assert shared == {
        "e2": {"20" if folder else "100"},
        "e3": {"class_label"},
        "e4": set() if folder else {"lm_adaptation"},
        "e5": set() if folder else {"100000"},
    }
    assert {cell.digest for cell in cells["e10"]} <= known
