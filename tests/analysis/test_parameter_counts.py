"""`python -m prompt_tuning.report parameters`."""

import json

import pytest

from prompt_tuning.analysis import parameter_counts
from prompt_tuning.errors import UserError
from prompt_tuning.model.params import ParamSplit
from prompt_tuning.t5.config import preset


@pytest.fixture(scope="module")
def rows():
    return parameter_counts.rows(("small",))


def test_prompts_cost_what_the_paper_prints(rows):
    """Lester et al. 2021: 51,200 parameters, 0.0665 % of T5 v1.1 small."""
    row = next(row for row in rows if row.method == "prompt_tuning")
    assert (row.trained_parameters, row.inference_parameters) == (51_200, 51_200)
    assert f"{row.trained_parameters / (row.total_parameters - 51_200):.4%}" == "0.0665%"


@pytest.mark.parametrize("name", sorted(parameter_counts.METHODS.keys() - {"deep_prompt"}))
def test_scanned_layers_have_the_same_counts(name):
    """Counts are of scanned layers; deep prompts cannot be scanned."""
    method = parameter_counts.METHODS[name]
    scanned, layered = (
        ParamSplit.of(preset("nano", scan_layers=scan), method) for scan in (True, False)
    )
    for half in ("trained", "added", "frozen"):
        assert scanned.count(getattr(scanned, half)) == layered.count(getattr(layered, half))


def test_networks_are_not_kept_for_inference(rows):
    kept = {row.method: (row.trained_parameters, row.inference_parameters) for row in rows}
    assert kept["prompt_design"] == (0, 0)
    assert kept["model_tuning"] == (76_961_152,) * 2
    assert kept["p_tuning"][1] == 20 * 512
    assert kept["prefix_tuning"][1] == 2 * 20 * 6 * 64 * 24  # 24 attention blocks
    assert kept["prefix_tuning"][0] > 20 * kept["prefix_tuning"][1]


def test_names_are_those_of_the_gin_files(rows):
    from prompt_tuning.cli.gin_parsing import configs_folder

    files = {path.stem for path in (configs_folder() / "methods").glob("*.gin")}
    assert {row.method for row in rows} <= files


def test_table_and_rows(rows):
    lines = parameter_counts.table(rows).splitlines()
    assert len(lines) == 2 + len(rows)
    assert "51,200    0.0665%" in lines[3]
    written = json.loads(json.dumps(parameter_counts.content(("small",))))
    assert written["rows"][1] == {
        "method": "prompt_tuning",
        "size": "small",
        "trained_parameters": 51_200,
        "inference_parameters": 51_200,
        "total_parameters": 77_012_352,
    }
    assert set(written["lengths"]) == {"1", "100"}


def test_prompt_of_the_largest_size():
    """The paper's 409,600 parameters, 0.0037 % of 11,135,332,352."""
    rows = {row.method: row for row in parameter_counts.paper_rows(("xxl",), 100)}
    assert rows["prompt_tuning"].trained_parameters == 409_600
    assert rows["prompt_tuning"].total_parameters == 11_135_332_352 + 409_600
    assert rows["model_tuning"].trained_parameters == 11_135_332_352


@pytest.mark.parametrize(("size", "length"), [("small", 100), ("ladder_xs", 1), ("ladder_s", 7)])
def test_figure_follows_the_papers_formulas(size, length):
    """Keys and values of P positions in each attention block; a network of 512 per kind of block;
    WARP's prompt and a vector for each of two labels; the prompt; nothing.
    """
    config = preset(f"t5_1_1_{size}" if size == "small" else size)
    d, width = config.d_model, config.num_heads * config.head_dim
    encoder, decoder = config.num_encoder_layers, config.num_decoder_layers
    stacks = (encoder, decoder, decoder)  # self-attention, self-attention, cross-attention
    network = [(length * d) + (d * 512 + 512) + (513 * 2 * width * layers) for layers in stacks]
    actual = {
        row.method: (row.trained_parameters, row.inference_parameters)
        for row in parameter_counts.paper_rows((size,), length)
    }
    del actual["model_tuning"]
    assert actual == {
        "prefix_tuning": (sum(network), 2 * length * width * sum(stacks)),
        "warp": ((length + 2) * d,) * 2,
        "prompt_tuning": (length * d,) * 2,
        "prompt_design": (0, 0),
    }


def test_figure_shows_the_counts():
    sizes = ("ladder_s", "ladder_xs")
    above, below = parameter_counts.figure(sizes).axes
    counts = {(row.method, row.size): row for row in parameter_counts.paper_rows(sizes, 100)}
    x = [counts["model_tuning", size].total_parameters for size in ("ladder_xs", "ladder_s")]
    for axis, label, method, count in [
        (above, "prompt tuning", "prompt_tuning", "trained_parameters"),
        (above, "prefix tuning, inference", "prefix_tuning", "inference_parameters"),
        (below, "WARP", "warp", "trained_parameters"),
    ]:
        [line] = [line for line in axis.lines if line.get_label() == label]
        drawn = [getattr(counts[method, size], count) for size in ("ladder_xs", "ladder_s")]
        whole = (1, 1) if axis is above else (x[0] / 100, x[1] / 100)
        assert list(line.get_xdata()) == x
        assert line.get_ydata() == pytest.approx([drawn[0] / whole[0], drawn[1] / whole[1]])
    assert {axis.get_xscale() for axis in (above, below)} == {"log"}
    assert any(line.get_label() == "prompt design: 0" for line in above.lines)


def test_no_such_size():
    with pytest.raises(UserError, match=r"^--sizes=tiny: unknown size; available: small, base"):
        parameter_counts.rows(("tiny",))
