"""What a user says of the cluster: in a profile, a study file, options and words; the later wins."""

from __future__ import annotations

import pytest

from harness.cli import _study
from harness.errors import HarnessError
from harness.launch import options
from harness.launch.options import Launch
from harness.resolve import jobs

STUDY = 'methods = ["mae"]\nbudget = "6step"\n'


@pytest.fixture(autouse=True)
def no_profile(monkeypatch, tmp_path):
    monkeypatch.delenv("HARNESS_CLUSTER", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def asked(*words: str, profile: str | None = None, **given: object):
    """The study and the launch of a command line."""
    return _study(list(words), None, None, None, None, None, None, None, given, profile)[:2]


def file(path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


def test_later_layers_win_and_slurms_own_options_are_merged_key_by_key(tmp_path, monkeypatch):
    layers = (
        "gpus = 1\nnodes = 1\nmem = '1G'\npartition = 'a'\n[default.slurm]\nqos = 'p'\nnice = 1\nconstraint = 'p'\n"
    )
    monkeypatch.setenv("HARNESS_CLUSTER", file(tmp_path / "mine.toml", "[default]\n" + layers))
    sections = "[cluster]\ncluster = 'slurm'\ngpus = 2\nnodes = 2\npartition = 'b'\n[slurm]\nqos = 'f'\nnice = 2\n"
    study = file(tmp_path / "study.toml", STUDY + sections)
    _, launch = asked(study, "cluster.gpus=4", "slurm.nice=4", gpus=3, nodes=3)
    assert (launch.gpus, launch.nodes, launch.partition, launch.mem) == (4, 3, "b", "1G")
    assert launch.slurm == {"qos": "f", "nice": 4, "constraint": "p"}
    assert launch.cluster == "slurm"


def test_where_a_study_runs_is_no_part_of_what_it_asks_for_nor_of_a_runs_key(tmp_path):
    plain, _ = asked(file(tmp_path / "a.toml", STUDY))
    sections = "[cluster]\ngpus = 2\ntime = '4h'\n[slurm]\nqos = 'x'\n"
    launched, launch = asked(file(tmp_path / "b.toml", STUDY + sections), "slurm.nice=1", "cluster.mem=4G", nodes=2)
    assert launch.gpus == 2 and launch.mem == "4G"
    assert launched.asked() == plain.asked() and launched.folder_name() == plain.folder_name()
    assert [job.key for job in jobs(launched)] == [job.key for job in jobs(plain)]


def test_the_executor_may_be_said_in_one_word(tmp_path):
    assert asked(file(tmp_path / "a.toml", "cluster = 'local'\n" + STUDY))[1].cluster == "local"
    assert asked(file(tmp_path / "b.toml", STUDY), "cluster=inline")[1].cluster == "inline"
    assert asked(file(tmp_path / "c.toml", STUDY))[1] == Launch()


@pytest.mark.parametrize(
    ("word", "instead"),
    [
        ("slurm.gpus=2", "--gpus"),
        ("slurm.gpus-per-node=2", "--gpus"),
        ("slurm.gres=gpu:2", "--gpus"),
        ("slurm.time=4", "--time"),
        ("slurm.array=3", "--parallel"),
        ("slurm.cpus-per-task=2", "cluster.cpus=VALUE"),
        ("slurm.mem=4G", "cluster.mem=VALUE"),
        ("slurm.ntasks=4", "cluster.processes=VALUE"),
        ("slurm.signal=USR1@10", "cluster.signal_s=VALUE"),
        ("slurm.job-name=x", "leave it out"),
        ("slurm.requeue=false", "leave it out"),
        ("slurm.dependency=afterok:1", "leave it out"),
    ],
)
def test_what_the_harness_sets_itself_is_refused_with_what_to_type_instead(tmp_path, word, instead):
    with pytest.raises(HarnessError, match="is set by the harness itself") as refused:
        asked(file(tmp_path / "a.toml", STUDY), word)
    assert instead in refused.value.next_step


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90), ("30min", 1800), ("1.5h", 5400), ("2d", 172800), ("30", 1800), ("5:30", 330), ("4:00:00", 14400),
        ("1-00", 86400), ("1-02:30", 95400), ("1-02:03:04", 93784),
    ],
)  # fmt: skip
def test_spellings_of_a_time_limit(text, seconds):
    assert Launch(time=text).limit_s == seconds


@pytest.mark.parametrize("text", ["soon", "-5", "1-", "a-02:00", "1:2:3:4", "infinite", "0", "30s", "1:-2"])
def test_a_time_that_is_none_is_refused(text):
    with pytest.raises(HarnessError, match="time"):
        options.build({"time": text})


def test_numbers_are_text_where_text_is_meant(tmp_path):
    _, launch = asked(file(tmp_path / "a.toml", STUDY + "[cluster]\ntime = 30\naccount = 1234\n"))
    assert (launch.limit_s, launch.account) == (1800, "1234")


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["cluster.gpu=2"], "unknown setting 'cluster.gpu'"),
        (["cluster.gpus=-1"], "gpus is at least 0"),
        (["cluster.nodes=0"], "nodes is at least 1"),
        (["cluster.signal_s=1"], "signal_s is at least 5"),
        (["cluster=cloud"], "cluster.cluster='cloud' does not fit"),
        (["cluster=3"], "cluster=3 is no section"),
        (["slurm=x"], "slurm='x' is no section"),
        (["cluster.slurm=x"], "slurm='x' is no section"),
    ],
)
def test_settings_that_do_not_fit_are_refused_by_name(tmp_path, words, found):
    with pytest.raises(HarnessError) as refused:
        asked(file(tmp_path / "a.toml", STUDY), *words)
    assert found in str(refused.value)


def test_a_profile_is_found_by_its_name_or_its_file(tmp_path):
    home = tmp_path / "config" / "recognise-and-draw" / "cluster.toml"
    file(home, "[default]\ngpus = 1\n[big]\ngpus = 8\n")
    other = file(tmp_path / "other.toml", "[default]\ngpus = 5\n")
    study = file(tmp_path / "study.toml", STUDY)
    found = [asked(study, profile=name)[1].gpus for name in (None, "big", other)]
    assert found == [1, 8, 5]


def test_a_profile_that_is_not_there_or_does_not_fit_is_told(tmp_path, monkeypatch):
    with pytest.raises(HarnessError, match="there is no"):
        options.profile("big")
    with pytest.raises(HarnessError, match="no profile at"):
        options.profile(str(tmp_path / "none.toml"))
    monkeypatch.setenv("HARNESS_CLUSTER", str(tmp_path / "gone.toml"))
    with pytest.raises(HarnessError, match="no profile at"):
        options.profile(None)
    monkeypatch.setenv("HARNESS_CLUSTER", file(tmp_path / "mine.toml", "[big]\ngpus = 8\n"))
    assert options.profile(None) == {}
    with pytest.raises(HarnessError, match="did you mean 'big'"):
        options.profile("bigg")
    file(tmp_path / "mine.toml", "[big\n")
    with pytest.raises(HarnessError, match="is no TOML"):
        options.profile(None)
    file(tmp_path / "mine.toml", "gpus = 8\n[big]\n")
    with pytest.raises(HarnessError, match="outside of any table") as refused:
        options.profile(None)
    assert "[default]" in refused.value.next_step


def test_the_same_is_refused_on_the_command_line(harness, tmp_path):
    status, _, said = harness("run", "--methods", "mae", "--budget", "6step", "--out", tmp_path, "slurm.gpus=2")
    assert status == 2 and "--gpus" in said
    status, _, said = harness(
        "run", "--methods", "mae", "--budget", "6step", "--out", tmp_path, "--cluster", "inline", "--gpus", "2"
    )
    assert status == 2 and "--gpus is for jobs" in said
    assert not list(tmp_path.glob("*/study.json")), "nothing was begun"
