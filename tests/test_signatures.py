"""The recipe of docs/security.md: a signature shows who wrote a run, and `verify` that its files belong together."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from paths import ROOT

BLOCKS = re.findall(r"```bash\n(.*?)```", (ROOT / "docs" / "security.md").read_text(encoding="utf-8"), re.DOTALL)

pytestmark = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="needs ssh-keygen of OpenSSH")


@pytest.fixture
def signed(every_stage, tmp_path):
    """Paths of the recipe (run, key and list of signers) with a run that was signed by it."""
    run = Path(shutil.copytree(every_stage, tmp_path / "run"))
    key, signers = tmp_path / "key", tmp_path / "signers"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    signers.write_text(f"author@example.org {(tmp_path / 'key.pub').read_text()}")
    sign, check = BLOCKS

    def commands(text: str) -> list[str]:
        for old, new in (("RUN", run), ("~/.ssh/id_ed25519", key), ("-f signers", f"-f {signers}")):
            text = text.replace(old, str(new))
        return text.strip().splitlines()

    subprocess.run(commands(sign)[0], shell=True, check=True, capture_output=True)
    return run, commands(check)


def verified(run: Path, commands: list[str], call) -> tuple[bool, bool]:
    """Whether the signature and the run verify."""
    signature, run_check = commands
    assert run_check.split() == ["rhumbline", "verify", str(run)]
    return subprocess.run(signature, shell=True, capture_output=True).returncode == 0, call("verify", run)[0] == 0


def test_a_signed_run_verifies(signed, call):
    assert verified(*signed, call) == (True, True)


def test_changed_results_fail_the_signature(signed, call):
    run, commands = signed
    file = run / "results.json"
    file.write_text(file.read_text() + " ")
    assert verified(run, commands, call)[0] is False


def test_a_changed_artefact_fails_verify(signed, call):
    run, commands = signed
    (run / "seed-0" / "nulls.json").write_text("{}")
    assert verified(run, commands, call) == (True, False)
