"""Engines answer every job once, whatever the line to the workers is like; what is on disk is never run again."""

import json

import pytest

from rhumbline.engines.jobs import Answer, EngineError, Job, JobError, Log, Worker, answered, engine
from rhumbline.engines.local import Local, LocalPool
from rhumbline.engines.mock import Mock, MockPool
from rhumbline.engines.ray import Replica
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
def test_a_bad_line_changes_no_answer(seed, tmp_path):
    shared = {"a": b"1"}
    wanted = answered(LocalPool(squares()), JOBS, tmp_path / "local", shared)
    with Mock(seed, repeats=0.8).pool(Worker("test_engines:make_squares")) as pool:
        assert answered(pool, JOBS, tmp_path / "mock", shared) == wanted
    assert [row["square"] for row in wanted] == [x * x for x in range(7)]


def test_the_mock_does_shuffle_and_repeat():
    with Mock(1, repeats=0.8).pool(squares()) as pool:
        order = [answer.job for answer in pool.map(JOBS)]
    assert order != sorted(order)
    assert len(order) > len(JOBS)


def test_what_is_answered_is_not_run_again(tmp_path):
    calls: list[int] = []
    answered(LocalPool(squares(calls)), JOBS[:3], tmp_path)
    found = answered(LocalPool(squares(calls)), JOBS, tmp_path)
    assert calls == list(range(7))
    assert [row["square"] for row in found] == [x * x for x in range(7)]
    other = [Job("square", {"x": 1}, {"protocol": "another"})]
    answered(LocalPool(squares(calls)), other, tmp_path)
    assert calls[7:] == [1]  # another protocol is another job


class Twice:
    """Answers the job twice, and differently."""

    def map(self, jobs, shared=None):
        for value in ("first", "second"):
            yield Answer(0, value)


def test_the_first_answer_stands(tmp_path):
    assert answered(Twice(), JOBS[:1], tmp_path) == ["first"]
    assert answered(Twice(), JOBS[:1], tmp_path) == ["first"]


class Nothing:
    def map(self, jobs, shared=None):
        return iter(())


def test_a_lost_job_is_an_error_and_not_a_hole(tmp_path):
    with pytest.raises(EngineError, match="1 of 1 jobs were never answered"):
        answered(Nothing(), JOBS[:1], tmp_path)


def test_a_failed_job_costs_the_others_nothing(tmp_path):
    jobs = [Job("square", {"x": x}) for x in (1, -1, 2)]
    with pytest.raises(JobError, match=r"1 of 3 jobs failed; the first, square: below zero"):
        answered(LocalPool(squares()), jobs, tmp_path, log=Log(tmp_path / "jobs.log"))
    calls: list[int] = []
    with pytest.raises(JobError):
        answered(LocalPool(squares(calls)), jobs, tmp_path)
    assert calls == [-1]
    lines = [json.loads(line) for line in (tmp_path / "jobs.log").read_text().splitlines()]
    assert [line["error"] for line in lines] == [None, "below zero", None]


def test_a_bug_is_not_taken_for_a_failed_job():
    with pytest.raises(ZeroDivisionError):
        list(LocalPool(lambda kind, arguments, shared: 1 / 0).map(JOBS[:1]))


def test_a_disk_that_cannot_be_written_loses_nothing(tmp_path):
    answered(LocalPool(squares()), JOBS[:3], tmp_path / "answers")
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where a folder should be")
    with pytest.raises(OutputError, match="cannot be written"):
        answered(LocalPool(squares()), JOBS, blocked)
    with pytest.raises(OutputError, match=r"cannot be written"):
        answered(LocalPool(squares()), JOBS, tmp_path / "answers", log=Log(blocked / "jobs.log"))
    assert len(list((tmp_path / "answers").iterdir())) == 3


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("dask", {}, "unknown; use local, ray"),
        ("local", {"replicas": 2}, "belong to --engine ray"),
        ("local", {"gpus_per_replica": 1}, "belong to --engine ray"),
    ],
)
def test_wrong_engines_are_refused(name, options, said):
    with pytest.raises(InputError, match=said):
        engine(name, **options)


def test_the_local_engine_makes_or_takes_its_worker():
    assert engine("local") == Local()
    for worker in (Worker("test_engines:make_squares"), squares()):
        with Local().pool(worker) as pool:
            assert [a.value["square"] for a in pool.map(JOBS)] == [x * x for x in range(7)]


def test_authentication_stays_on_beyond_the_loopback(monkeypatch):
    pytest.importorskip("ray")
    from rhumbline.engines.ray import is_loopback

    assert is_loopback("ray://127.0.0.1:10001")
    assert is_loopback("localhost:6379")
    assert not is_loopback("ray://10.0.0.5:10001")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with (
        pytest.raises(InputError, match="whoever reaches a Ray cluster may run code"),
        engine("ray://10.0.0.5:10001").pool(Worker("test_engines:make_squares")),
    ):
        pass
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with (
        pytest.raises(InputError, match="with a cluster of this machine"),
        engine("ray").pool(Worker("test_engines:make_squares")),
    ):
        pass


def test_without_ray_the_extra_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(InputError, match=r"pip install 'rhumbline\[ray\]'"),
        engine("ray").pool(Worker("test_engines:make_squares")),
    ):
        pass


def test_a_failed_job_exits_as_what_it_raised(tmp_path):
    """A model that cannot be handled is none, wherever that is found out: 3, and 2 of bad input."""
    for error, code in ((ModelError("below zero"), 3), (InputError("none"), 2)):

        def do(kind, arguments, shared, error=error):
            raise error

        for pool in (LocalPool(do), MockPool(do, 0, 0.5)):
            with pytest.raises(JobError, match=str(error)) as raised:
                answered(pool, JOBS[:2], tmp_path)
            assert raised.value.exit_code == code
        replica = Replica()
        replica.do = do
        replica.hold({})
        assert replica.ask("square", "{}")[:3] == ("null", str(error), code)


class _Inits:
    """Ray as far as a connection asks for it."""

    def __init__(self):
        self.options = {}

    def init(self, **options):
        self.options = options


@pytest.mark.parametrize(("address", "given"), [(None, "local"), ("auto", "auto")])
def test_ray_starts_a_cluster_of_its_own_unless_it_is_told_of_one(monkeypatch, address, given):
    from rhumbline.engines.ray import Ray

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    ray = _Inits()
    Ray(address)._connect(ray)
    assert ray.options["address"] == given
