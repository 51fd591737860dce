"""The Ray engine on a cluster of two nodes on this machine: a lost worker costs the jobs that it was running."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from paths import HELPERS, ROOT

ray = pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

import psutil  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402

from rhumbline.engines.engine import EngineError, Job, JobError, Worker, run_jobs  # noqa: E402
from rhumbline.engines.ray import Ray  # noqa: E402
from rhumbline.jobs.sweeps import read_sweep, run_sweep  # noqa: E402

SWEEP = """
models = ["organism:planted", "organism:several", "organism:weak"]
seeds = [0, 1]
[model]
device = "cpu"
[protocol]
max_new_tokens = 12
sizes = {train = 24, val = 12, test = 20}
nulls = {draws = 2, wide = 19, prompts = 6, procedure_prompts = 4}
dose = {strengths = [0, 0.5, 1], coefficients = [0, 1], draws = 1, prompts = 6}
stability = {refits = 4, sites = 2, prompts = 6}
"""


@pytest.fixture(scope="module", autouse=True)
def _environment():
    """Workers import the package and the tests; a cluster on the loopback address needs no token."""
    variables = {
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(HELPERS)]),
        "RAY_AUTH_MODE": "disabled",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    yield
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


@pytest.fixture
def cluster():
    """A head without workers and two nodes of one processor each; lost nodes are detected soon."""
    options = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": 100 * 2**20}
    quick = {"health_check_initial_delay_ms": 2000, "health_check_period_ms": 1000, "health_check_failure_threshold": 5}
    nodes = Cluster(initialize_head=True, head_node_args={**options, "_system_config": quick})
    nodes.nodes = [nodes.add_node(num_cpus=1, object_store_memory=100 * 2**20) for _ in range(2)]
    yield nodes
    ray.shutdown()
    nodes.shutdown()


@pytest.fixture
def pool_of(cluster, tmp_path):
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    (tmp_path / "count").mkdir()

    def get(make: str = "faulty_worker:make"):
        return Ray().pool(Worker(make, {"folder": str(tmp_path / "count")}))

    return get


def jobs(kind: str, n: int = 6) -> list[Job]:
    return [Job(kind, {"x": x}) for x in range(n)]


def attempts(tmp_path: Path, n: int = 6) -> list[int]:
    return [(tmp_path / "count" / f"attempts-{x}").stat().st_size for x in range(n)]


def test_a_lost_worker_costs_its_own_job(pool_of, tmp_path):
    """SIGKILL, no memory, a job that always kills its worker, and a job with an error, on one cluster."""
    expected = [{"square": x * x, "shared": {"file": 3}} for x in range(6)]
    with pool_of() as pool:
        assert pool.capacity() == 2
        for kind in ("killed", "starved"):
            assert run_jobs(pool, jobs(kind), tmp_path / kind, {"file": b"abc"}) == expected
            assert attempts(tmp_path) == [1, 1, 2, 1, 1, 1]
            for path in (tmp_path / "count").iterdir():
                path.unlink()
        with pytest.raises(
            JobError, match="1 of 6 jobs failed; the first, poison: 4 workers were lost while they ran it"
        ):
            run_jobs(pool, jobs("poison"), tmp_path / "poison")
        assert attempts(tmp_path) == [1, 1, 4, 1, 1, 1]
        with pytest.raises(JobError, match="ZeroDivisionError: two"):
            run_jobs(pool, jobs("broken"), tmp_path / "broken")
        assert len(list((tmp_path / "broken").iterdir())) == 5
    with (
        pytest.raises(EngineError, match=r"a worker cannot start: .*other weights on this node") as caught,
        pool_of("faulty_worker:refuse") as pool,
    ):
        list(pool.map(jobs("x")))
    assert caught.value.exit_code == 3


def test_a_lost_node_costs_its_jobs(cluster, pool_of, tmp_path):
    with pool_of() as pool:
        results = {}
        for result in pool.map(jobs("slow", 10)):
            results[result.job] = result.value["square"]
            if len(results) == 3:
                cluster.remove_node(cluster.nodes[1], allow_graceful=False)
        assert results == {x: x * x for x in range(10)}
    assert sum(attempts(tmp_path, 10)) in (10, 11)  # at most the one job of the node runs again


def test_a_full_object_store_is_an_error(pool_of, monkeypatch):
    def full(value):
        raise ray.exceptions.ObjectStoreFullError("full")

    with pool_of() as pool:
        monkeypatch.setattr(pool.ray, "put", full)
        with pytest.raises(EngineError, match="object store has no room for the 1 MiB"):
            list(pool.map(jobs("x"), {"file": b"a" * 2**20}))


def test_shared_files_larger_than_the_store_arrive(pool_of, tmp_path):
    """Ray writes objects to disk before its store is full."""
    with pool_of() as pool:
        results = run_jobs(pool, jobs("x", 2), tmp_path / "out", {"file": bytes(130 * 2**20)})
    assert [row["shared"]["file"] for row in results] == [130 * 2**20] * 2


def comparable(page: Path) -> str:
    before, _, rest = page.read_text().partition('<section id="cost">')
    return before + rest.partition("</section>")[2]


def without_cost(rows) -> list:
    return [replace(row, seconds=0.0, cpu_seconds=0.0, peak_memory_mb=0.0, engine="") for row in rows]


def test_a_sweep_with_a_lost_node_has_the_results_of_the_local_engine(cluster, tmp_path):
    """3 organisms x 2 seeds on two nodes, one of which is stopped during the sweep."""
    (tmp_path / "sweep.toml").write_text(SWEEP)
    sweep = read_sweep(tmp_path / "sweep.toml")
    local = run_sweep(sweep, tmp_path / "local")
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    killed = []

    def progress(text: str) -> None:
        if text.startswith("[2/") and not killed:
            killed.append(text)
            cluster.remove_node(cluster.nodes[1], allow_graceful=False)

    remote = run_sweep(sweep, tmp_path / "ray", Ray(), progress=progress)
    assert killed
    assert remote.failures == []
    assert {row.engine for row in remote.rows} == {"ray"}
    assert without_cost(remote.rows) == without_cost(local.rows)
    assert [row.verdict.split(" by ")[0] for row in local.rows[::2]] == [
        "SINGLE-DIRECTION-REPRODUCES",
        "NOT-SINGLE-DIRECTION",
        "NO-BASELINE-REFUSAL",
    ]
    assert comparable(remote.page) == comparable(local.page)


def test_jobs_of_a_run_on_two_nodes_give_the_run_of_one_process(cluster, tmp_path):
    from rhumbline.experiment import run
    from rhumbline.jobs.replicas import replica_worker
    from rhumbline.models.loading import fingerprint, load_source
    from rhumbline.models.sources import own_contrast

    (tmp_path / "sweep.toml").write_text(SWEEP)
    cell = read_sweep(tmp_path / "sweep.toml").cells()[0]
    model, contrast = load_source(cell.source), own_contrast(cell.source.model)
    protocol = replace(cell.protocol, full_grid=True)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    with Ray().pool(replica_worker(cell.source, contrast, protocol, fingerprint(model))) as pool:
        there = run(model, contrast, tmp_path / "there", protocol, pool=pool, engine="ray", page=False).results
    here = run(model, contrast, tmp_path / "here", protocol, page=False).results
    skip = {"environment", "timings", "sha256", "files"}
    assert {k: v for k, v in there.items() if k not in skip} == {k: v for k, v in here.items() if k not in skip}
    assert there["environment"]["engine"] == "ray"
    for name in ("outcomes.jsonl", "selection.json", "wide.json", "dose.json", "stability.json", "nulls.json"):
        assert (tmp_path / "there" / "seed-0" / name).read_bytes() == (tmp_path / "here" / "seed-0" / name).read_bytes()
    log = [json.loads(line) for line in (tmp_path / "there" / "jobs.log").read_text().splitlines()]
    assert {re.sub(r" \d+", "", line["job"]) for line in log} == {
        "candidates", "shuffled", "outcomes", "wide", "dose", "refits",
    }  # fmt: skip


# -- processes --------------------------------------------------------------------------------------------------------


def start_sweep(folder: Path, **more: str) -> subprocess.Popen:
    (folder / "sweep.toml").write_text(SWEEP)
    command = [sys.executable, "-m", "rhumbline.cli", "sweep", str(folder / "sweep.toml"), "--out", str(folder / "out")]
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | more
    return subprocess.Popen(
        [*command, "--engine", "ray"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )


def wait_until(condition, seconds: float = 900) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"the condition was not reached within {seconds} s"
        time.sleep(0.2)


def has_started(folder: Path) -> bool:
    return any("extraction" in p.read_text() for p in folder.glob("out/logs/*.log"))


def test_an_interrupted_sweep_leaves_no_process(tmp_path):
    process = start_sweep(tmp_path, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="0123456789abcdef" * 4)
    wait_until(lambda: has_started(tmp_path) or process.poll() is not None)
    assert process.poll() is None, process.communicate()
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) > 3
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    assert "Rerun the same command to resume" in " ".join(output.split())
    _, alive = psutil.wait_procs(family, timeout=30)
    assert [p for p in alive if p.status() != psutil.STATUS_ZOMBIE] == []


# Another process, because Ray reads the environment once per process.
HEAD = """
import sys
from ray.cluster_utils import Cluster
options = {"num_cpus": 2, "include_dashboard": False, "object_store_memory": 100 * 2**20}
print(Cluster(initialize_head=True, head_node_args=options).address, flush=True)
sys.stdin.read()
"""


def test_a_sweep_ends_if_the_head_is_lost_and_resumes(tmp_path):
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 4}
    head = subprocess.Popen(
        [sys.executable, "-c", HEAD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | token
    )
    assert head.stdout is not None
    process = start_sweep(tmp_path, RAY_ADDRESS=head.stdout.readline().strip(), **token)
    try:
        # A run has results before it has a page; it is finished when its result is logged.
        log = tmp_path / "out" / "jobs.log"
        wait_until(lambda: (log.is_file() and log.read_text().strip()) or process.poll() is not None)
        assert process.poll() is None, process.communicate()
        finished = [json.loads(line)["job"] for line in log.read_text().splitlines()]
        node = psutil.Process(head.pid)
        family = [*node.children(recursive=True), node]
        assert len(family) > 3
        for member in family:
            member.kill()
        head.wait()
        psutil.wait_procs(family, timeout=30)
        output, _ = process.communicate(timeout=120)
    finally:
        process.kill()
        head.kill()
    assert process.returncode == 2, output
    assert "the head node of the Ray cluster is lost" in " ".join(output.split())
    assert "Traceback" not in output
    done = {p: p.stat().st_mtime_ns for p in (tmp_path / "out" / "runs" / n / "results.json" for n in finished)}
    assert 1 <= len(done) < 6
    again = run_sweep(read_sweep(tmp_path / "sweep.toml"), tmp_path / "out")
    assert again.failures == []
    assert len(again.rows) == 6
    assert all(p.stat().st_mtime_ns == stamp for p, stamp in done.items())
