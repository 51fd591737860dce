"""The workers of a run: a replica loads the model once and computes jobs of any stage.

Guarantees: a replica with other weights, code, libraries or another protocol than the run raises an error, on every
node. No shared disk is needed, because the artefacts that a job reads are sent with it. Independent of the engine.
"""

import hashlib
import shutil
import tempfile
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rhumbline.engines.engine import Shared, Worker
from rhumbline.errors import ModelError
from rhumbline.models.loading import fingerprint, load_source
from rhumbline.models.sources import Source
from rhumbline.prompts.contrasts import ContrastSet
from rhumbline.protocol import Protocol
from rhumbline.records.codec import convert, to_json
from rhumbline.records.directory import RunDirectory
from rhumbline.records.files import sha256, write_bytes
from rhumbline.records.source_hash import code_sha256
from rhumbline.stages.order import JOB_KINDS
from rhumbline.stages.run_plan import RunPlan
from rhumbline.stages.stage_jobs import RemoteArguments, SeedJobs
from rhumbline.stages.timings import Timings


@dataclass(frozen=True)
class ReplicaOptions:
    """What a replica loads, and what it must agree with."""

    source: Source
    contrast: ContrastSet
    protocol: Protocol
    fingerprint: str
    code: str
    versions: dict[str, str]


def replica_worker(source: Source, contrast: ContrastSet, protocol: Protocol, fingerprint: str) -> Worker:
    """The worker of a run; `fingerprint` is that of the weights that the run has loaded."""
    options = ReplicaOptions(source, contrast, protocol, fingerprint, code_sha256(), versions())
    return Worker("rhumbline.jobs.replicas:Replica", to_json(options))


def check_code(expected: str) -> None:
    """ModelError if this node has another rhumbline than the command."""
    here = code_sha256()
    if here != expected:
        raise ModelError(
            f"this node has another rhumbline ({here[:12]}; the command has {expected[:12]}). Install the same version "
            "on every node."
        )


def versions() -> dict[str, str]:
    """Releases of torch and transformers; the build for an accelerator ("+cpu") can differ between nodes."""
    return {name: version(name).partition("+")[0] for name in ("torch", "transformers")}


def check_versions(expected: Mapping[str, str]) -> None:
    """ModelError if this node has other releases of torch or transformers, which can give other numbers."""
    here = versions()
    if other := [f"{name} {here[name]} (the command has {v})" for name, v in expected.items() if here[name] != v]:
        raise ModelError(f"this node has {' and '.join(other)}. Install the same releases on every node.")


class Replica:
    """A loaded model with the prompts and the protocol of one run, and a copy of the artefacts that its jobs read."""

    def __init__(self, options: Any) -> None:
        run = convert(options, ReplicaOptions)
        check_code(run.code)
        check_versions(run.versions)
        self.model = load_source(run.source)
        here = fingerprint(self.model)
        if here != run.fingerprint:
            raise ModelError(
                f"{self.model.name} has other weights on this node ({here[:12]}; those of the run: "
                f"{run.fingerprint[:12]}). Pass a shared path, or use the same revision in every hub cache."
            )
        self.plan = RunPlan.of(self.model, run.contrast, run.protocol)
        self.folder = Path(tempfile.mkdtemp(prefix="rhumbline-replica-"))
        weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        self.state: tuple[int, int, str] | None = None
        self.jobs: SeedJobs | None = None

    def __call__(self, kind: str, arguments: Any, shared: Shared) -> Any:
        """The output of a job. What a stage keeps between its jobs is kept until the artefacts change."""
        job = convert(arguments, RemoteArguments)
        state = (job.seed, job.tokens, sha256({n: hashlib.sha256(d).hexdigest() for n, d in shared.items()}))
        if self.jobs is None or self.state != state:
            self.state, self.jobs = state, self._seed_jobs(job, shared)
        return self.jobs.compute(JOB_KINDS[kind], job.arguments)

    def _seed_jobs(self, job: RemoteArguments, shared: Shared) -> SeedJobs:
        shutil.rmtree(self.folder, ignore_errors=True)
        for name, data in shared.items():
            write_bytes(self.folder / name, data)
        directory = RunDirectory.read(self.folder)
        timings = Timings(self.folder / "timings.json", self.model.device)
        return SeedJobs(self.plan.seed_run(directory, timings, job.seed, job.tokens))
