"""The workers of a run: a replica loads the model once and answers blocks of any stage from the artefacts it is sent.

Promises: a replica whose weights, code, libraries or protocol are not the run's refuses to start, on every node. Needs
no shared disk: what a block reads is sent with it. Does not know which engine it runs on.
"""

import hashlib
import shutil
import tempfile
import weakref
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rhumbline.engines.jobs import Shared, Worker
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
from rhumbline.stages.stage_jobs import SeedJobs
from rhumbline.stages.timings import Timings


def replica_worker(source: Source, contrast: ContrastSet, protocol: Protocol, fingerprint: str) -> Worker:
    """How a replica of a run is made. `fingerprint` is that of the weights that the run itself has loaded."""
    options = {
        "source": asdict(source),
        "contrast": to_json(contrast),
        "protocol": protocol.record(),
        "fingerprint": fingerprint,
        "code": code_sha256(),
        "versions": versions(),
    }
    return Worker("rhumbline.jobs.replicas:Replica", options)


def check_code(expected: str) -> None:
    """ModelError where this node's rhumbline is not the one that the work was planned with."""
    here = code_sha256()
    if here != expected:
        raise ModelError(
            f"this node has another rhumbline ({here[:12]}, the command's is {expected[:12]}). "
            "Install the same version on every node."
        )


def versions() -> dict[str, str]:
    """Releases of what computes; the builds for one accelerator or another ("+cpu") may differ from node to node."""
    return {name: version(name).partition("+")[0] for name in ("torch", "transformers")}


def check_versions(expected: Mapping[str, str]) -> None:
    """ModelError where this node has other releases of torch or transformers: its numbers would be others."""
    here = versions()
    if other := [f"{name} {here[name]} (the command's is {v})" for name, v in expected.items() if here[name] != v]:
        raise ModelError(f"this node has {' and '.join(other)}. Install the same releases on every node.")


class Replica:
    """A loaded model with the prompts and the protocol of one run, and a mirror of its artefacts."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        check_code(options["code"])
        check_versions(options["versions"])
        self.model = load_source(Source(**options["source"]))
        found = fingerprint(self.model)
        if found != options["fingerprint"]:
            raise ModelError(
                f"{self.model.name} has other weights on this node ({found[:12]}, the run's are "
                f"{options['fingerprint'][:12]}). Give a shared path, or the same revision in every hub cache."
            )
        contrast = convert(options["contrast"], ContrastSet)
        self.plan = RunPlan.of(self.model, contrast, Protocol.of(options["protocol"]))
        self.mirror = Path(tempfile.mkdtemp(prefix="rhumbline-replica-"))
        weakref.finalize(self, shutil.rmtree, self.mirror, ignore_errors=True)
        self.known: tuple[Any, SeedJobs] | None = None

    def __call__(self, kind: str, arguments: Mapping[str, Any], shared: Shared) -> Any:
        """The answer of a block."""
        state = (
            arguments["seed"],
            arguments["tokens"],
            sha256({n: hashlib.sha256(d).hexdigest() for n, d in shared.items()}),
        )
        if self.known is None or self.known[0] != state:
            # What a stage keeps between its blocks is kept with it, and goes when the artefacts change.
            self.known = (state, self._jobs(arguments["seed"], arguments["tokens"], shared))
        return self.known[1].compute(JOB_KINDS[kind], arguments["arguments"])

    def _jobs(self, seed: int, tokens: int, shared: Shared) -> SeedJobs:
        shutil.rmtree(self.mirror, ignore_errors=True)
        for name, data in shared.items():
            write_bytes(self.mirror / name, data)
        directory = RunDirectory.read(self.mirror)
        timings = Timings(self.mirror / "timings.json", self.model.device)
        return SeedJobs(self.plan.seed_run(directory, timings, seed, tokens))
