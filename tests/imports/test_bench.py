"""benchmarks/bench.py: its table and its exit code, on real scripts with little to do."""

import sys
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parents[2] / "benchmarks")]

import bench  # noqa: E402
import row  # noqa: E402


def table(capsys):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in capsys.readouterr().out.splitlines()][2:]


def test_a_script_is_run_and_judged(capsys):
    """As many forwards as there are, whatever the machine does."""
    bench.main(["--only", "step_cost", "--quick"])
    found = {cells[0]: cells for cells in table(capsys)}
    assert len(found) == 4
    for name, bound in (("straightforward", 0.75), ("released", 0.78)):
        _, limit, value, noise, verdict = found[f"training step, forward equivalents, beside the {name} one"]
        assert float(limit) == bound and 0.4 < float(value) < 0.9 and float(noise) == 0
        assert (verdict == "kept") == (float(value) <= bound)
        assert float(found[f"training step, time, beside the {name} one"][2]) > 0


@pytest.mark.parametrize("value, code", [(1.0, 0), (1.05, 0), (1.2, 1)])
def test_a_bound_that_is_missed_beyond_the_noise(capsys, monkeypatch, value, code):
    monkeypatch.setattr(bench, "measured", lambda name, quick: [row.Row("kept", 1, 0.5), row.Row("asked", 1, value, 0.1)])
    assert bench.main(["--only", "load"]) == code
    assert [cells[-1] for cells in table(capsys)] == ["kept", "**missed**" if code else "kept"]


def test_what_fails_and_what_cannot_be_run(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    assert bench.main(["--only", "start_up"]) == 0 and "not run: no ComfyUI" in table(capsys)[0][2]
    monkeypatch.setattr(bench, "HERE", tmp_path)
    assert bench.main(["--only", "large_files"]) == 1 and table(capsys)[0][2].startswith("failed: ")


def test_noise():
    assert row.of_ratios("x", 1, [0.9, 1.0, 1.1]).value == 1.0 and row.of_ratios("x", 1, [2.0] * 5).noise == 0
    assert row.of_ratios("x", 1, [0.9, 1.0, 1.1] * 9).noise < row.of_ratios("x", 1, [0.9, 1.0, 1.1]).noise
    fastest = row.of_fastest("x", 1, [2.2, 2.0, 9.0], [4.0, 5.0, 4.0])
    assert fastest.value == 0.5 and abs(fastest.noise - 0.05) < 1e-9 and row.of_fastest("x", 1, [1.0], [1.0]).noise == 0


def test_all_scripts_with_a_bound_are_in_it():
    rows = {path.stem for path in bench.HERE.glob("*.py") if "from row import" in path.read_text()}
    assert rows == {*bench.QUICK, "bench"}
