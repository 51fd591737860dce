"""A hostile chat template is an error: it can neither run nor allocate without limit."""

import itertools
import resource
import signal
import subprocess
import sys
from functools import partial

import pytest

from rhumbline.errors import TemplateError
from rhumbline.models import templates
from rhumbline.models.resource_limits import LimitExceeded, limited
from rhumbline.models.templates import render
from rhumbline.prompts.chat_options import ChatOptions

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the limits are those of Linux")

HARMLESS = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
HOSTILE = {
    "nested loops": LOOP,
    "a loop within a macro": "{% macro f(n) %}" + LOOP + "{% endmacro %}{{ f(1) }}",
    "a long text": "{{ 'a' * 10**11 }}",
    "a text that doubles": (
        "{% set ns = namespace(t='a' * 4096) %}"
        "{% for i in range(60) %}{% set ns.t = ns.t ~ ns.t %}{% endfor %}{{ ns.t }}"
    ),
    "a large number": "{{ 9 ** (9 ** 9) }}",
    "padding": "{{ '%99999999999d' % 1 }}",
}


def state():
    return (
        resource.getrlimit(resource.RLIMIT_AS),
        signal.getsignal(signal.SIGVTALRM),
        signal.getitimer(signal.ITIMER_VIRTUAL),
        signal.getitimer(signal.ITIMER_PROF),
    )


@pytest.mark.parametrize("template", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_template_is_an_error(template, tokenizer, monkeypatch):
    monkeypatch.setattr(templates, "limited", partial(limited, seconds=0.3))
    before = state()
    with pytest.raises(TemplateError, match="chat template"):
        render(tokenizer, ChatOptions(template=HARMLESS + template), "Hello", None)
    assert state() == before


def test_a_harmless_template_is_rendered_and_no_limit_remains(tokenizer):
    before = state()
    assert render(tokenizer, ChatOptions(template=HARMLESS), "Hello", None) == "<user>Hello<assistant>"
    assert state() == before


def test_one_endless_operation_ends_the_process():
    """A comparison of lists that share their parts doubles its time with each level, and no signal handler runs."""
    program = (
        "from rhumbline.models.resource_limits import limited\n"
        "a, b = [], []\n"
        "for _ in range(60): a, b = [a, a], [b, b]\n"
        "with limited(seconds=0.1, grace=0.1): a == b\n"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == -signal.SIGPROF


def test_the_limits_end_with_the_context():
    with pytest.raises(LimitExceeded), limited(seconds=0.05):
        sum(1 for _ in itertools.count())
    with pytest.raises(MemoryError), limited(n_bytes=2**20):
        bytearray(2**28)
    assert len(bytearray(2**28)) == 2**28
