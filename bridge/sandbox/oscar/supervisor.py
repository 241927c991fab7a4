"""What stands in a job's pod for faas-supervisor: reads the event, decides what it is, runs the script.

A program of its own (`python -I -S supervisor.py POD`), with the standard library alone. It follows
`grycap/faas-supervisor`, its crashes included; only the storage is missing: where the real one
downloads the object of a storage event, the script gets the event itself as its input file.
"""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any
from urllib.parse import unquote_plus

_STORAGE_SOURCES = {"aws:s3": "S3", "minio:s3": "MINIO", "OneTrigger": "ONEDATA", "rucio": "RUCIO"}


def _remember(name: str, value: str | None) -> None:
    if value:
        os.environ[name] = value


def _storage_event(event: Any) -> tuple[str, Any]:
    """`events/{s3,minio,onedata,rucio}.py`: only the first record is read."""
    record = event["Records"][0]
    kind = _STORAGE_SOURCES[record["eventSource"]]
    if kind == "ONEDATA":
        key, when = event["Key"], record["eventTime"]
    elif kind == "RUCIO":
        key, when = event["payload"]["name"], None
    else:
        record["s3"]["bucket"]["name"], record["s3"]["bucket"]["arn"]  # a KeyError there too
        key, when = unquote_plus(record["s3"]["object"]["key"]), record["eventTime"]
    _remember("STORAGE_OBJECT_KEY", key)
    _remember("EVENT_TIME", when)
    # The supervisor's own form of the event: it can be longer than what came, and pass the limit.
    _remember("EVENT", json.dumps(event))
    return kind, event.get("event") or event


def parse(event: Any) -> tuple[str, Any]:
    """The kind of an event and what is saved of it, in the order of `events/__init__.py`.

    `in` is meant as written there: on a top-level string it looks for a substring, on a number it
    is a TypeError; `event_type` without `payload` is a KeyError.
    """
    if not isinstance(event, dict):
        try:
            event = json.loads(event)
        except ValueError:
            return "UNKNOWN", event
    if "httpMethod" in event:
        for key, value in (event.get("queryStringParameters") or {}).items():
            _remember(f"CONT_VAR_{key}", value)
        return parse(event.get("body") or "")
    if "event" in event and "subscription" in event:
        inner = event.get("event") or event
        inner["name"]  # a KeyError there too
        return "DCACHE", inner
    if "event_type" in event and "scope" in event["payload"]:
        event["payload"]["name"]  # a KeyError there too
        return "RUCIO", event.get("event") or event
    if "event" in event:
        return parse(event["event"])
    if "Records" in event and event["Records"] and "eventSource" in event["Records"][0]:
        if event["Records"][0]["eventSource"] in _STORAGE_SOURCES:
            return _storage_event(event)
    elif isinstance(event, dict) and event.get("Records"):
        event["Records"][0]  # UnknownEvent looks at it too
    return "UNKNOWN", event


def save(event: Any, path: Path) -> None:
    """`save_event` of `events/unknown.py`.

    An object is written anew by `json.dumps`. A string that is no JSON is taken for base64, whose
    decoder skips what is not of its alphabet. Anything else (an array) is a TypeError.
    """
    if isinstance(event, dict):
        path.write_text(json.dumps(event))
        return
    try:
        json.loads(event)
    except ValueError:
        path.write_bytes(base64.b64decode(event))
    else:
        path.write_text(event)


def _response(kind: str, output: str, files: Path) -> str:
    """`create_response` of `faas/binary/supervisor.py`: several files go as one zip, in base64."""
    produced = [Path(folder) / name for folder, _, names in os.walk(files) for name in names]
    if kind != "UNKNOWN" or not produced:
        return output
    if len(produced) == 1:
        return base64.b64encode(produced[0].read_bytes()).decode()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for file in produced:
            archive.write(file, file.relative_to(files))
    return base64.b64encode(packed.getvalue()).decode()


def main(pod: Path) -> None:
    raw = sys.stdin.buffer.read()
    (pod / "stdin").write_bytes(raw)
    for name in ("input", "output"):
        (pod / name).mkdir()
    os.environ["TMP_INPUT_DIR"], os.environ["TMP_OUTPUT_DIR"] = str(pod / "input"), str(pod / "output")
    kind, event = parse(raw.decode("utf-8", "surrogateescape"))
    path = pod / "input" / "event_file"
    save(event, path)
    os.environ["INPUT_FILE_PATH"] = str(path)
    # The script's exit status is not looked at (`execute_function`): a script that fails makes a job
    # that succeeds. Only what ends this process makes one that fails, such as `kill -9 $PPID`, which
    # is what running out of memory does.
    script = subprocess.run(
        ["/bin/sh", str(pod / "script.sh")], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    # What is in the output folder goes to the storage, also when the script failed half way.
    (pod / "uploads").touch()
    print(_response(kind, script.stdout.decode("utf-8", "ignore"), pod / "output"), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
