"""Worker processes of this machine: a lost one costs the job that it was running, and none is left."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from paths import HELPERS, ROOT
from rhumbline.engines.engine import (
    EngineError,
    Job,
    JobError,
    Worker,
    begin_jobs,
    engine,
    run_jobs,
    stored_result,
)
from rhumbline.engines.processes import Processes, cores
from rhumbline.errors import InputError, ModelError

FILES = {"file": b"abc"}
EXPECTED = [{"square": x * x, "shared": {"file": 3}} for x in range(6)]


def jobs(kind: str, n: int = 6) -> list[Job]:
    return [Job(kind, {"x": x}) for x in range(n)]


@pytest.fixture
def pool_of(tmp_path):
    (tmp_path / "count").mkdir()

    def get(make: str = "faulty_worker:make", replicas: int = 2):
        return Processes(replicas).pool(Worker(make, {"folder": str(tmp_path / "count")}))

    return get


def test_a_lost_worker_costs_its_own_job(pool_of, tmp_path):
    """SIGKILL, no memory, a job that always kills its worker, and a job with an error."""
    with pool_of() as pool:
        for kind in ("killed", "starved"):
            assert run_jobs(pool, jobs(kind), tmp_path / kind, FILES) == EXPECTED
            found = [(tmp_path / "count" / f"attempts-{x}").stat().st_size for x in range(6)]
            assert found == [1, 1, 2, 1, 1, 1]
            for path in (tmp_path / "count").iterdir():
                path.unlink()
        with pytest.raises(JobError, match="1 of 6 jobs failed; the first, poison: 4 worker processes were lost"):
            run_jobs(pool, jobs("poison"), tmp_path / "poison", FILES)
        with pytest.raises(JobError, match="1 of 6 jobs failed; the first, broken: ZeroDivisionError: two"):
            run_jobs(pool, jobs("broken"), tmp_path / "broken", FILES)
        assert len(list((tmp_path / "broken").iterdir())) == 5
        with pytest.raises(JobError, match=r"1 of 6 jobs failed; the first, unwritable: TypeError: .*set"):
            run_jobs(pool, jobs("unwritable"), tmp_path / "unwritable", FILES)
        children = [process.child for process in pool.processes]
        assert len(children) == 2
    assert not any(child.is_alive() for child in children)


def test_workers_get_the_shared_files_of_each_call(pool_of, tmp_path):
    with pool_of() as pool:
        for i, files in enumerate(({"a": b"1"}, {"b": b"22", "c": b""}, {})):
            results = run_jobs(pool, jobs("plain", 4), tmp_path / str(i), files)
            assert {json.dumps(result["shared"]) for result in results} == {
                json.dumps({name: len(data) for name, data in files.items()})
            }


def test_a_worker_that_cannot_be_built_ends_the_call(pool_of, tmp_path):
    """The exit code is that of the worker, for which the model cannot be handled."""
    with (
        pool_of("faulty_worker:refuse") as pool,
        pytest.raises(EngineError, match="cannot start: other weights") as caught,
    ):
        run_jobs(pool, jobs("plain"), tmp_path / "results")
    assert caught.value.exit_code == ModelError.exit_code


def test_jobs_that_were_not_awaited_are_stopped(pool_of, tmp_path):
    with pool_of() as pool:
        results = pool.map(jobs("slow"))
        next(results)
        children = [process.child for process in pool.processes]
        results.close()
    assert not any(child.is_alive() for child in children)
    assert len(list((tmp_path / "count").iterdir())) < len(jobs("slow"))


def test_jobs_of_one_call_run_while_results_of_another_are_read(pool_of, tmp_path):
    with pool_of(replicas=1) as pool:
        long = pool.begin([Job("slow", {"x": 20})])
        assert sorted(result.value["square"] for result in pool.map(jobs("plain"))) == [x * x for x in range(6)]
        assert (tmp_path / "count" / "attempts-20").is_file()
        assert [result.value["square"] for result in long] == [400]


def test_results_that_are_not_awaited_yet_are_stored(pool_of, tmp_path):
    """A command that is interrupted then has them; each is reported once, when it is awaited."""
    reported: list[int] = []
    with pool_of(replicas=1) as pool:
        early = jobs("plain", 2)
        report = lambda job, result: reported.append(job.arguments["x"])  # noqa: E731
        finish = begin_jobs(pool, early, tmp_path / "results", FILES, log=tmp_path / "log", report=report)
        other = [Job("plain", {"x": x}) for x in range(10, 14)]
        list(pool.map(other))
        assert all(stored_result(tmp_path / "results", job).is_file() for job in early)
        assert reported == []
        assert finish() == EXPECTED[:2]
    assert sorted(reported) == [0, 1]
    assert len((tmp_path / "log").read_text().splitlines()) == 2


def test_jobs_for_idle_workers_are_behind_those_of_other_calls(pool_of, tmp_path):
    with pool_of(replicas=1) as pool:
        first = pool.begin([Job("slow", {"x": 20})])
        idle = pool.begin([Job("plain", {"x": 10})], when_idle=True)
        assert len(list(pool.map(jobs("plain")))) == 6
        assert not (tmp_path / "count" / "attempts-10").is_file()
        assert [result.value["square"] for some in (idle, first) for result in some] == [100, 400]


def test_jobs_whose_results_are_never_read_are_stopped_with_the_pool(pool_of):
    with pool_of() as pool:
        pool.begin(jobs("slow"))
        children = [process.child for process in pool.processes]
    assert {child.exitcode for child in children} == {-signal.SIGTERM}


def test_workers_that_have_no_job_are_not_awaited(pool_of):
    """They may still load a model, for which an interrupted command would wait."""
    with pool_of("faulty_worker:load_long", replicas=3) as pool:
        children = [process.child for process in pool.processes]
        assert all(child.is_alive() for child in children)
    assert {child.exitcode for child in children} == {-signal.SIGTERM}


def test_the_threads_of_the_user_are_kept(pool_of, tmp_path, monkeypatch):
    for asked, expected in ((None, str(max(1, cores() // 2))), ("3", "3")):
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        if asked is not None:
            monkeypatch.setenv("OMP_NUM_THREADS", asked)
        with pool_of() as pool:
            (result,) = run_jobs(pool, jobs("threads", 1), tmp_path / f"threads-{asked}")
        assert result["threads"] == expected


SCRIPT = """
import sys
import torch
from rhumbline.engines.engine import Job, Worker
from rhumbline.engines.processes import Processes

if __name__ == "__main__":
    with Processes(2).pool(Worker("faulty_worker:make", {"folder": sys.argv[1]})) as pool:
        print(next(pool.map([Job("threads", {"x": 0})])).value["of torch"])
"""
TORCH = """
threads = ["all cores"]
get_num_threads = threads.pop
set_num_threads = threads.append
"""
"""The part of torch that a worker uses: torch itself takes seconds to import."""


def test_a_script_that_imports_torch_does_not_give_each_worker_all_cores(tmp_path):
    """A new process imports the script of the user before it is a worker."""
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "torch.py").write_text(TORCH)
    variables = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    variables["PYTHONPATH"] = os.pathsep.join([str(ROOT / "src"), str(HELPERS)])
    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path)]
    done = subprocess.run(command, env=variables, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == str(max(1, cores() // 2))


def test_the_workers_are_built_before_there_is_a_job(pool_of, tmp_path):
    with pool_of("faulty_worker:announce", replicas=3) as pool:
        deadline = time.monotonic() + 60
        while len(list((tmp_path / "count").iterdir())) < 3:
            assert time.monotonic() < deadline, "the workers were not built"
            time.sleep(0.05)
        run_jobs(pool, jobs("plain", 1), tmp_path / "one")
        assert len(pool.processes) == 3


def test_the_engine_by_name():
    assert engine("processes") == Processes()
    assert engine("processes", replicas=3) == Processes(3)
    assert 1 <= cores() <= (os.cpu_count() or 1)
    with pytest.raises(InputError, match="requires --engine ray"):
        engine("processes", gpus_per_replica=1)
    with pytest.raises(TypeError, match="built from a Worker"), Processes().pool(lambda kind, a, shared: None):
        pass


@pytest.mark.slow
def test_jobs_of_a_run_in_two_processes_give_the_run_of_one(tmp_path):
    from rhumbline.experiment import run
    from rhumbline.jobs.replicas import replica_worker
    from rhumbline.models.loading import fingerprint, load_source
    from rhumbline.models.sources import Source, own_contrast
    from rhumbline.presets.protocols import preset
    from rhumbline.prompts.contrasts import Sizes
    from rhumbline.verification import verify

    source = Source("organism:planted", device="cpu", dtype="float32")
    model, contrast = load_source(source), own_contrast(source.model)
    protocol = replace(preset("rhumbline", seeds=(0,), sizes=Sizes(24, 12, 20), max_new_tokens=12), full_grid=True)
    with Processes(2).pool(replica_worker(source, contrast, protocol, fingerprint(model))) as pool:
        there = run(model, contrast, tmp_path / "there", protocol, pool=pool, engine="processes", page=False).results
    here = run(model, contrast, tmp_path / "here", protocol, page=False).results
    skip = {"environment", "timings", "sha256", "files"}
    assert {k: v for k, v in there.items() if k not in skip} == {k: v for k, v in here.items() if k not in skip}
    assert there["environment"]["engine"] == "processes"
    assert (tmp_path / "there" / "jobs.log").is_file()
    assert verify(tmp_path / "there") == []
    for name in ("outcomes.jsonl", "selection.json", "wide.json", "dose.json", "stability.json", "nulls.json"):
        assert (tmp_path / "there" / "seed-0" / name).read_bytes() == (tmp_path / "here" / "seed-0" / name).read_bytes()
