"""`python -m prompt_tuning.report parameters`."""

import json

import pytest

from prompt_tuning import parameter_report, report


@pytest.fixture(scope="module")
def rows():
    return parameter_report.rows(("small",))


def test_prompts_cost_what_the_paper_prints(rows):
    """Lester et al. 2021: 51,200 parameters, 0.0665 % of T5 v1.1 small."""
    row = next(row for row in rows if row.method == "prompt_tuning")
    assert (row.trained_parameters, row.inference_parameters) == (51_200, 51_200)
    assert f"{row.trained_parameters / (row.total_parameters - 51_200):.4%}" == "0.0665%"


def test_networks_are_not_kept_for_inference(rows):
    kept = {row.method: (row.trained_parameters, row.inference_parameters) for row in rows}
    assert kept["prompt_design"] == (0, 0)
    assert kept["model_tuning"] == (76_961_152,) * 2
    assert kept["p_tuning"][1] == 20 * 512
    assert kept["prefix_tuning"][1] == 2 * 20 * 6 * 64 * 24  # 24 attention blocks
    assert kept["prefix_tuning"][0] > 20 * kept["prefix_tuning"][1]


def test_names_are_those_of_the_gin_files(rows):
    from prompt_tuning.cli import configs_folder

    files = {path.stem for path in (configs_folder() / "methods").glob("*.gin")}
    assert {row.method for row in rows} <= files


def test_table_plot_and_rows(rows, tmp_path):
    lines = parameter_report.table(rows).splitlines()
    assert len(lines) == 2 + len(rows)
    assert "51,200    0.0665%" in lines[3]
    parameter_report.plot(tmp_path / "plot.png", rows)
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    report.write_json(tmp_path / "rows.json", parameter_report.content(rows))
    written = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert written[1] == {
        "method": "prompt_tuning",
        "size": "small",
        "trained_parameters": 51_200,
        "inference_parameters": 51_200,
        "total_parameters": 77_012_352,
    }
