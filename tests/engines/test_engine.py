"""Every job has one result on every engine, on an unreliable one too; stored results are not computed again."""

import json

import pytest

from mock_engine import Mock, MockPool
from rhumbline.engines.engine import (
    EngineError,
    Job,
    JobError,
    JobResult,
    Local,
    LocalPool,
    Worker,
    engine,
    run_jobs,
)
from rhumbline.engines.ray import Actor, Ray, is_loopback
from rhumbline.errors import InputError, ModelError, OutputError


def squares(calls: list[int] | None = None):
    def do(kind, arguments, shared):
        if calls is not None:
            calls.append(arguments["x"])
        if arguments["x"] < 0:
            raise ModelError("below zero")
        return {"kind": kind, "square": arguments["x"] ** 2, "third": arguments["x"] / 3, "files": len(shared)}

    return do


def make_squares(options):
    return squares()


JOBS = [Job("square", {"x": x}, {"protocol": "p"}) for x in range(7)]


@pytest.mark.parametrize("seed", range(5))
def test_an_unreliable_engine_changes_no_result(seed, tmp_path):
    shared = {"a": b"1"}
    expected = run_jobs(LocalPool(squares()), JOBS, tmp_path / "local", shared)
    with Mock(seed, repeats=0.8).pool(Worker("test_engine:make_squares")) as pool:
        assert run_jobs(pool, JOBS, tmp_path / "mock", shared) == expected
    assert [row["square"] for row in expected] == [x * x for x in range(7)]


def test_the_mock_engine_shuffles_and_repeats():
    with Mock(1, repeats=0.8).pool(squares()) as pool:
        order = [result.job for result in pool.map(JOBS)]
    assert order != sorted(order)
    assert len(order) > len(JOBS)


def test_stored_results_are_not_computed_again(tmp_path):
    calls: list[int] = []
    run_jobs(LocalPool(squares(calls)), JOBS[:3], tmp_path)
    results = run_jobs(LocalPool(squares(calls)), JOBS, tmp_path)
    assert calls == list(range(7))
    assert [row["square"] for row in results] == [x * x for x in range(7)]
    other = [Job("square", {"x": 1}, {"protocol": "another"})]
    run_jobs(LocalPool(squares(calls)), other, tmp_path)
    assert calls[7:] == [1]  # another protocol is another job


class Twice:
    """Two different results for the job."""

    def map(self, jobs, shared=None):
        for value in ("first", "second"):
            yield JobResult(0, value)


def test_the_first_result_is_kept(tmp_path):
    assert run_jobs(Twice(), JOBS[:1], tmp_path) == ["first"]
    assert run_jobs(Twice(), JOBS[:1], tmp_path) == ["first"]


class Nothing:
    def map(self, jobs, shared=None):
        return iter(())


def test_a_job_without_a_result_is_an_error(tmp_path):
    with pytest.raises(EngineError, match="1 of 1 jobs have no result"):
        run_jobs(Nothing(), JOBS[:1], tmp_path)


def test_a_failed_job_does_not_affect_the_others(tmp_path):
    jobs = [Job("square", {"x": x}) for x in (1, -1, 2)]
    with pytest.raises(JobError, match=r"1 of 3 jobs failed; the first, square: below zero"):
        run_jobs(LocalPool(squares()), jobs, tmp_path, log=tmp_path / "jobs.log")
    calls: list[int] = []
    with pytest.raises(JobError):
        run_jobs(LocalPool(squares(calls)), jobs, tmp_path)
    assert calls == [-1]
    lines = [json.loads(line) for line in (tmp_path / "jobs.log").read_text().splitlines()]
    assert [line["error"] for line in lines] == [None, "below zero", None]


def test_an_unexpected_error_is_raised():
    with pytest.raises(ZeroDivisionError):
        list(LocalPool(lambda kind, arguments, shared: 1 / 0).map(JOBS[:1]))


def test_a_disk_error_keeps_the_stored_results(tmp_path):
    run_jobs(LocalPool(squares()), JOBS[:3], tmp_path / "results")
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where a folder should be")
    with pytest.raises(OutputError, match="cannot be written"):
        run_jobs(LocalPool(squares()), JOBS, blocked)
    with pytest.raises(OutputError, match=r"cannot be written"):
        run_jobs(LocalPool(squares()), JOBS, tmp_path / "results", log=blocked / "jobs.log")
    assert len(list((tmp_path / "results").iterdir())) == 3


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("dask", {}, "unknown. Use local, processes, ray"),
        ("local", {"replicas": 2}, "requires --engine processes or ray"),
        ("local", {"gpus_per_replica": 1}, "requires --engine ray"),
        ("processes", {"gpus_per_replica": 1}, "requires --engine ray"),
    ],
)
def test_wrong_engines_are_refused(name, options, message):
    with pytest.raises(InputError, match=message):
        engine(name, **options)


def test_the_local_engine_builds_a_worker_or_uses_a_function():
    assert engine("local") == Local()
    for worker in (Worker("test_engine:make_squares"), squares()):
        with Local().pool(worker) as pool:
            assert [result.value["square"] for result in pool.map(JOBS)] == [x * x for x in range(7)]


def test_authentication_is_required_beyond_the_loopback(monkeypatch):
    assert is_loopback("ray://127.0.0.1:10001")
    assert is_loopback("localhost:6379")
    assert not is_loopback("ray://10.0.0.5:10001")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with (
        pytest.raises(InputError, match="every machine that reaches a Ray cluster can run code"),
        engine("ray://10.0.0.5:10001").pool(Worker("test_engine:make_squares")),
    ):
        pass
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with (
        pytest.raises(InputError, match="with a cluster of this machine"),
        engine("ray").pool(Worker("test_engine:make_squares")),
    ):
        pass


def test_without_ray_the_extra_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(InputError, match=r"pip install 'rhumbline\[ray\]'"),
        engine("ray").pool(Worker("test_engine:make_squares")),
    ):
        pass


def test_a_failed_job_has_the_exit_code_of_its_error(tmp_path):
    """3 if the model cannot be handled, 2 for bad input, on every engine."""
    for error, code in ((ModelError("below zero"), 3), (InputError("none"), 2)):

        def do(kind, arguments, shared, error=error):
            raise error

        for pool in (LocalPool(do), MockPool(do, 0, 0.5)):
            with pytest.raises(JobError, match=str(error)) as raised:
                run_jobs(pool, JOBS[:2], tmp_path)
            assert raised.value.exit_code == code
        actor = Actor()
        actor.run_job = do
        actor.receive({})
        assert actor.run("square", "{}")[:3] == ("null", str(error), code)


class _Inits:
    """The part of Ray that a connection uses."""

    def __init__(self):
        self.options = {}

    def init(self, **options):
        self.options = options


@pytest.mark.parametrize(("address", "expected"), [(None, "local"), ("auto", "auto")])
def test_ray_starts_a_new_cluster_unless_an_address_is_given(monkeypatch, address, expected):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    ray = _Inits()
    Ray(address)._connect(ray)
    assert ray.options["address"] == expected
