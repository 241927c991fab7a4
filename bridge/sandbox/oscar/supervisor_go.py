"""What stands in a job's pod for the Go supervisor: reads the event, decides what it is, runs the script.

A program of its own (`python -I -S supervisor_go.py POD`), with the standard library alone. It follows
`grycap/oscar-supervisor`; only the storage is missing, as in `supervisor.py`. Unlike that one it hands
on the script's exit status, keeps what a failing script wrote to itself, and fails on hardly any event.
"""

from __future__ import annotations

import base64
import io
import json
import math
import os
import subprocess
import sys
import zipfile
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import unquote_plus

_STORAGE_SOURCES = {"aws:s3": "S3", "minio:s3": "MINIO", "OneTrigger": "ONEDATA", "rucio": "RUCIO"}
_ESCAPES = str.maketrans({character: f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"})


def _log(level: str, text: str) -> None:
    now = datetime.now(UTC)
    print(f"{now:%Y-%m-%d %H:%M:%S},{now.microsecond // 1000:03} - supervisor - {level} - {text}",
          file=sys.stderr, flush=True)  # fmt: skip


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(text)
    return number


def _no_constant(text: str) -> Any:
    raise ValueError(text)


def decode(text: str) -> Any:
    """`json.Unmarshal` into an `interface{}`: every number is a float64. Raises ValueError."""
    return json.loads(text, parse_int=_finite, parse_float=_finite, parse_constant=_no_constant)


def encode(value: Any) -> str:
    """`json.Marshal`: sorted keys, no spaces, and numbers as float64s are written."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{encode(key)}:{encode(value[key])}" for key in sorted(value)) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(encode, value)) + "]"
    if isinstance(value, float):
        if value == 0 or 1e-6 <= abs(value) < 1e21:
            text = format(Decimal(repr(value)), "f")
            return text.rstrip("0").rstrip(".") if "." in text else text
        return repr(value).replace("e-0", "e-")
    text = json.dumps(value, ensure_ascii=False)
    return text.translate(_ESCAPES) if isinstance(value, str) else text


def _as_object(raw: Any) -> dict[str, Any] | None:
    if isinstance(raw, str):
        try:
            raw = decode(raw)
        except (ValueError, RecursionError):
            return None
    return raw if isinstance(raw, dict) else None


def parse(raw: Any) -> tuple[str, Any]:
    """`ParseEvent` of `internal/events/events.go`: the kind of an event, and what is saved of it."""
    event = _as_object(raw)
    if event is None:
        return "UNKNOWN", raw
    if "httpMethod" in event:
        parameters = event.get("queryStringParameters")
        for key, value in (parameters if isinstance(parameters, dict) else {}).items():
            os.environ[f"CONT_VAR_{key}"] = value if isinstance(value, str) else encode(value)
        return parse(event.get("body", ""))
    if "event" in event and "subscription" in event:
        return "DCACHE", _as_object(event["event"]) or event
    payload = event.get("payload")
    if "event_type" in event and isinstance(payload, dict) and "scope" in payload:
        return "RUCIO", event
    if "event" in event:
        return parse(event["event"])
    records = event.get("Records")
    record = records[0] if isinstance(records, list) and records else None
    kind = _STORAGE_SOURCES.get(str(record.get("eventSource"))) if isinstance(record, dict) else None
    if kind is None or record is None:
        return "UNKNOWN", raw
    try:
        key = unquote_plus(record["s3"]["object"]["key"])
    except (LookupError, TypeError):
        key = "<nil>"
    os.environ["STORAGE_OBJECT_KEY"] = key
    os.environ["EVENT"] = encode(event)
    return kind, event


def save(event: Any, path: Path) -> None:
    """`saveEventRaw`: JSON as it came, base64 decoded, and what is neither as it came, too."""
    if not isinstance(event, str):
        path.write_text(encode(event), errors="surrogateescape")
        return
    try:
        decode(event)
    except (ValueError, RecursionError):
        try:
            # Go's decoder leaves out line ends and nothing else.
            path.write_bytes(base64.b64decode(event.replace("\r", "").replace("\n", ""), validate=True))
        except ValueError:
            path.write_text(event, errors="surrogateescape")
    else:
        path.write_text(event, errors="surrogateescape")


def _response(kind: str, output: str, folder: Path) -> str:
    """`CreateResponse` of `internal/supervisor/supervisor.go`."""
    if kind != "UNKNOWN":
        return output
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if len(files) > 1:
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in files:
                archive.write(file, file.relative_to(folder))
        return base64.b64encode(packed.getvalue()).decode()
    return base64.b64encode(files[0].read_bytes()).decode() if files else ""


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
    _log("INFO", "Script file found in '/oscar/config/script.sh'")
    output = ""
    try:
        script = subprocess.run(["/bin/sh", str(pod / "script.sh")], capture_output=True, check=False)
    except OSError as error:
        # The error of `ExecuteFunction` is looked at by nobody: a script that never ran ends well.
        _log("ERROR", f"Error starting script: fork/exec /bin/sh: {(error.strerror or '').lower()}")
    else:
        if script.returncode:
            # A script that was killed has the code -1 in Go, which is 255 for a parent.
            code = max(script.returncode, -1)
            _log("ERROR", f"Script exited with code {code}")
            sys.exit(code % 256)
        written, errors = (stream.decode("utf-8", "replace") for stream in (script.stdout, script.stderr))
        for line in filter(None, written.split("\n")):
            print(line, file=sys.stderr)
        for line in filter(None, errors.split("\n")):
            _log("ERROR", line)
        output = written + errors
    (pod / "uploads").touch()
    _log("INFO", "Creating response")
    print(_response(kind, output, pod / "output"), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
