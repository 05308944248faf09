"""tools/bench with benchmarks that take no time."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import importlib.machinery
import importlib.util
import json
import os
import sys
from pathlib import Path

import pytest

PROGRAM = """
import json, sys
flags = dict(word.lstrip("-").split("=") for word in sys.argv[1:])
if flags["repeats"] == "13":
    sys.exit(7)
side = {"median": 8.0, "low": 7.0, "high": 9.0}
result = {"threads": int(flags["threads"]), "versions": {"tensorflow": "9.9"},
          "step": [{"meta_batch_size": 3, "unit": "s per step", "reference": side,
                    "ours": dict(side, median=2.0)}],
          "training": {"unit": "iterations per second", "memory_mb_gained": 1.5,
                       "reference": dict(side, median=2.0), "ours": side,
                       "ours_bfloat16": dict(side, median=16.0), "ours_of": 3}}
with open(flags["json"], "w") as file:
    json.dump(result, file)
"""


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """The program as a module, of a repository with one model."""
    path = Path(__file__).resolve().parent / "bench"
    loader = importlib.machinery.SourceFileLoader("tools_bench", str(path))
    module = importlib.util.module_from_spec(
        importlib.util.spec_from_file_location("tools_bench", str(path), loader=loader))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    loader.exec_module(module)
    (tmp_path / "Model").mkdir()
    (tmp_path / "Model" / "bench.py").write_text(PROGRAM)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "COMMANDS", {"Model": ["bench.py"]})
    monkeypatch.setattr(module, "PYTHONS", {"2": sys.executable})
    return module


def test_table_of_all_parts_and_variants(bench, tmp_path, capsys):
    assert bench.main(["--threads=2", f"--output_dir={tmp_path / 'out'}"]) == 0
    table = (tmp_path / "out" / "table.md").read_text()
    assert table in capsys.readouterr().out
    rows = json.loads((tmp_path / "out" / "table.json").read_text())
    assert [(row["part"], row["seconds_share"]) for row in rows] == [
        ("step, meta batch 3", 0.25), ("training", 0.25), ("training bfloat16", 0.125)]
    assert {(row["tensorflow"], row["threads"]) for row in rows} == {("9.9", 2)}
    assert all(row["memory_mb"] > 1 for row in rows) and rows[1]["gained_mb"] == 1.5
    assert os.path.exists(str(tmp_path / "out" / "Model_tf2.json"))


def test_a_benchmark_that_fails_is_named(bench, tmp_path, capsys):
    assert bench.main(["--repeats=13", f"--output_dir={tmp_path / 'out'}"]) == 1
    assert "Model: bench.py failed" in capsys.readouterr().err
    assert not os.path.exists(str(tmp_path / "out" / "table.md"))


def test_unknown_models_and_missing_environments_are_refused(bench, monkeypatch, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        bench.main(["Other"])
    assert ended.value.code == 2 and "Other: not one of Model" in capsys.readouterr().err
    monkeypatch.setattr(bench, "PYTHONS", {"2": "no/python"})
    assert bench.main([f"--output_dir={tmp_path / 'out'}"]) == 2
    assert "run tools/test.sh once" in capsys.readouterr().err
