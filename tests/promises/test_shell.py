"""What goes into Kafka comes out of the job's shell: through echo, Kubernetes and the supervisor."""

from __future__ import annotations

import json
import string
from typing import Any

import pytest

from bridge.testing import until
from tests.support.world import World

TEXTS = {
    "every ASCII character": "".join(map(chr, range(128))),
    "runs of spaces": "  a   b \t\t c    ",
    "globs": "* ? [a-z] [!x] /etc/* ~ {a,b}",
    "newlines": "one\ntwo\r\n\nthree\n",
    "quotes and backslashes": r"""'"`\ \\ \n \t \0 \x41 \c""" + "\\",
    "a secret of the pod": "$(OSCAR_SECRET) $$(OSCAR_SECRET) $$ $OSCAR_SECRET ${OSCAR_SECRET} `id` $(id)",
    "non-ASCII": "Grüße, 北京, \u202e, 🌱, \u00a0, \ufeff",
    "punctuation": string.punctuation * 3,
    "options of echo": "-n -e -E --",
}
DOCUMENTS: dict[str, Any] = {
    **{name: {"text": text, text: [text, {"inner": text}]} for name, text in TEXTS.items()},
    "nothing": {},
    "arrays": {"a": [], "b": [1, [2, [3]], "[", {"*": ["?"]}]},
    "deep": {"a": {"b": {"c": {"d": [None, True, False, -0.0, 1e-7]}}}},
}
RAW = {
    "a top-level array": b'[1, 2, {"a": "*"}]',
    "a top-level number": b"1234",
    "null": b"null",
    "true": b"true",
    "a top-level string": b'"some   text * $(OSCAR_SECRET)"',
    "binary": bytes(range(256)) * 5,
    "text that is no JSON": "lines\nof  text, * and $(OSCAR_SECRET) – ünïcode\n".encode(),
    "almost JSON": b'{"a": 1,}',
    "base64 that would be taken for JSON": b"\xd7m\xf8",  # encodes to 1234
}


@pytest.mark.timeout(180)
async def test_every_value_arrives_as_it_was(running_world: World) -> None:
    world = running_world
    world.oscar.settings.pod_secrets["OSCAR_SECRET"] = "the secret of the pod"
    documents = [json.dumps(document, ensure_ascii=False).encode() for document in DOCUMENTS.values()]
    sent = [*documents, *RAW.values(), None]
    daemon = world.daemon()
    daemon.start()
    world.ids.update(enumerate(await world.bed.produce(sent, keys=[b"k"] * len(sent))))
    jobs = world.oscar.jobs
    await until(
        lambda: sum(job.phase == "Succeeded" for job in jobs.all()) == len(sent),
        seconds=90,
        what=f"{len(sent)} jobs, there are {[job.phase for job in jobs.all()]}",
    )
    arrived = [job.input_seen for n in world.ids if (job := world.oscar.job(world.job_of(n)))]
    assert len(arrived) == len(sent)
    for offset, (name, document) in enumerate(DOCUMENTS.items()):
        seen = arrived[offset]
        assert seen is not None, name
        assert json.loads(seen) == document, name
        assert b"the secret" not in seen, name
    for offset, (name, raw) in enumerate(RAW.items(), start=len(DOCUMENTS)):
        assert arrived[offset] == raw, name
    assert arrived[-1] in (b"", b"\n"), "a tombstone is an event without data"


async def test_131065_bytes_start_a_job_and_131066_are_a_dead_letter_with_both_sizes(
    running_world: World,
) -> None:
    world = running_world
    frame = len(b'{"a":""}')
    fits = b'{"a":"' + b"x" * (131_065 - frame) + b'"}'
    daemon = world.daemon()
    daemon.start()
    await world.bed.produce([fits, fits.replace(b'"}', b'x"}')])
    await until(lambda: daemon.said("dead letter", cause="too_large"), what="the dead letter")
    await until(
        lambda: [job.phase for job in world.oscar.jobs.all()] == ["Succeeded"], what="the one that fits"
    )
    (job,) = world.oscar.jobs.all()
    assert job.input_seen is not None
    assert json.loads(job.input_seen) == json.loads(fits)
    (letter,) = daemon.said("dead letter")
    assert "131066" in letter["detail"]
    assert "131065" in letter["detail"]
    assert await daemon.stop() == 0
