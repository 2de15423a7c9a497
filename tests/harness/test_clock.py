"""What few devices tell stands in the wall-clock table where one of them does, and nowhere else."""

from __future__ import annotations

from harness.report.layout import footnotes
from tests.harness.made_study import COST, cells, made_run, table


def test_mfu_and_energy_have_columns_where_a_row_has_them() -> None:
    gpu = COST.model_copy(update={"mfu": 0.4321, "peak_flop_s": 989.4e12})
    metered = COST.model_copy(update={"energy_j": 52_340.0, "energy_source": "GPU (NVML)"})
    runs = [made_run("umd", 0, cost=gpu), made_run("mae", 0, cost=metered), made_run("lmd", 0, cost=None)]
    made = table("Wall-clock", runs, [])
    rows = {name: cells(made, name) for name in ("umd", "mae", "lmd")}
    assert [row["MFU, %"] for row in rows.values()] == ["43.2", "—", "—"]
    assert [row["energy, kJ"] for row in rows.values()] == ["—", "52.3", "—"]
    assert rows["umd"]["peak memory"] == "700 MiB"
    said = footnotes(made)
    assert "of a peak of 989 TFLOP/s" in said
    assert "of the charged time, idle draw included: GPU (NVML)" in said


def test_nothing_measured_makes_no_column() -> None:
    row = cells(table("Wall-clock", [made_run("umd", 0)], []), "umd")
    assert not {"MFU, %", "energy, kJ"} & set(row)


def test_energy_is_a_mean_over_the_seeds_that_have_it() -> None:
    costs = [COST.model_copy(update={"energy_j": joules}) for joules in (10_000.0, 30_000.0, None)]
    runs = [made_run("umd", seed, cost=cost) for seed, cost in enumerate(costs)]
    assert cells(table("Wall-clock", runs, []), "umd")["energy, kJ"] == "20.0"
