"""What values in the configuration may look like: durations, sizes, rates, URLs, addresses, secrets, TLS."""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic_core import PydanticCustomError

from bridge.core.errors import CredentialError
from bridge.net.addresses import host_and_port
from bridge.net.certificates import OwnCertificate
from bridge.net.tls import Context

NOT_THERE = "not_there"
"""The type of the error about a file or directory that is not there, or a secret's that is empty as yet;
another start may find it."""
_MOST_MEMBERS = 100
"""Of a document, or of what is in it: none has as many."""
_MOST_MISTAKES = 10
_LONGEST_PLACE = 100
"""Characters of the path to a mistake."""
_DURATION_UNITS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_RATE_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}

# Bounded digits: from the environment everything is text, and no value needs more.
_DURATION = re.compile(r"(-?[0-9]{1,15}(?:\.[0-9]{1,9})?)\s*(ms|s|m|h|d|)")
_SIZE = re.compile(r"(-?[0-9]{1,15}(?:\.[0-9]{1,9})?)\s*([KMG]i?B|B|)")
_RATE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)\s*/\s*([smh])")


class Model(BaseModel):
    """A part of the configuration: unknown keys are errors, values do not change, secrets are not shown."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class Document(Model):
    """What a running bridge is told or asked. Whatever is in it, to read it must not hold up the loop."""

    model_config = ConfigDict(str_max_length=4096)  # a path of dCache has no more

    @model_validator(mode="before")
    @classmethod
    def _is_small(cls, value: Any) -> Any:
        for each in (value, *value.values()) if isinstance(value, Mapping) else ():
            if isinstance(each, Mapping) and len(each) > _MOST_MEMBERS:
                raise ValueError(f"expected at most {_MOST_MEMBERS} members, found {len(each)}")
        return value

    @classmethod
    def read(cls, value: object) -> Self:
        """Read what came. Raises ValueError, with the first mistakes, where it can't be understood."""
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            raise ValueError(mistakes(error)) from error


def mistakes(error: ValidationError) -> str:
    """Tell what is wrong with a document: the first mistakes, for each may be of a stranger's making."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    told = [f"{str(each['loc'])[:_LONGEST_PLACE]}: {each['msg']}" for each in found[:_MOST_MISTAKES]]
    more = [f"and {len(found) - _MOST_MISTAKES} more"] if len(found) > _MOST_MISTAKES else []
    return "; ".join([*told, *more])


def duration(value: Any) -> float:
    """Read a duration as seconds. Raises ValueError."""
    text = str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value
    if not isinstance(text, str) or not (found := _DURATION.fullmatch(text.strip())):
        raise ValueError("expected seconds or a duration such as 500ms, 30s, 5m, 24h or 90d")
    seconds = float(found[1]) * _DURATION_UNITS[found[2]]
    if seconds <= 0:
        raise ValueError("expected a duration above 0")
    return seconds


def _size(value: Any) -> int:
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(text, str) or not (found := _SIZE.fullmatch(text.strip())):
        raise ValueError("expected bytes or a size such as 131065, 64KiB or 2GiB")
    size = int(float(found[1]) * _SIZE_UNITS[found[2]])
    if size <= 0:
        raise ValueError("expected a size above 0")
    return size


def _size_or_none(value: Any) -> int:
    return 0 if str(value).strip() == "0" else _size(value)


def written_size(count: float) -> str:
    """Write bytes as a person reads them."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 10 else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.0f} TiB" if count >= 10 else f"{count:.1f} TiB"


def _rate(value: Any) -> float:
    if isinstance(value, str) and (found := _RATE.fullmatch(value.strip())) and float(found[1]) > 0:
        return float(found[1]) / _RATE_UNITS[found[2]]
    raise ValueError("expected a rate such as 10/s, 600/m or 1000/h")


def _written_out(value: Any) -> Any:
    if value == "":
        raise ValueError("expected a path")  # else it would be the configuration's own directory
    if isinstance(value, str) and value.startswith("~"):
        raise ValueError("expected a path that is written out: no `~` is replaced")
    return value


def _located(path: Path, info: ValidationInfo) -> Path:
    return path if info.context is None else Path(info.context["directory"]) / path


def needs_no_files(info: ValidationInfo) -> bool:
    """Tell whether the files that the configuration names need not be on this machine."""
    return info.context is not None and not info.context.get("files", True)


def _readable(path: Path, info: ValidationInfo) -> Path:
    if needs_no_files(info):
        return path
    try:
        with path.open("rb"):
            return path
    except FileNotFoundError:
        raise _not_there(f"expected a readable file, but {path}: No such file or directory") from None
    except OSError as error:
        raise ValueError(f"expected a readable file, but {path}: {error.strerror}") from None


def _one_line(path: Path, info: ValidationInfo) -> Path:
    if needs_no_files(info):
        return path
    try:
        text = _secret_text(path)
    except UnicodeDecodeError:
        raise ValueError(f"expected a secret, but {path} is not text in UTF-8") from None
    if not text.strip():
        raise _not_there(f"expected a secret, but {path} is empty")
    if (lines := len(text.splitlines())) > 1:
        raise ValueError(f"expected a secret, which is one line, but {path} has {lines} lines")
    return path


def _secret_text(path: Path) -> str:
    return path.read_text(encoding="utf-8-sig").rstrip("\r\n")  # Windows' editors begin a file with a mark


def _not_there(message: str) -> PydanticCustomError:
    return PydanticCustomError(NOT_THERE, "{message}", {"message": message})


def _directory(path: Path, info: ValidationInfo) -> Path:
    if needs_no_files(info):
        return path
    if not path.exists():
        raise _not_there(f"expected a directory, but {path} is none")
    if not path.is_dir():
        raise ValueError(f"expected a directory, but {path} is none")
    return path


def _http_url(value: str) -> str:
    try:
        url = urlsplit(value)
        port_fits = url.port is None or url.port > 0
    except ValueError:
        raise ValueError("expected a URL such as https://oscar.example.org") from None
    if url.scheme not in ("http", "https") or not url.hostname or not port_fits:
        raise ValueError("expected a URL such as https://oscar.example.org")
    if url.username is not None or url.password is not None:
        raise ValueError("expected a URL without credentials: they belong under `auth`")
    if url.query or url.fragment or value.endswith(("?", "#")):
        raise ValueError("expected a URL without `?query` and `#fragment`")
    return value.rstrip("/")


def addresses(value: Any) -> Any:
    """Part a text with commas into its addresses; leave the rest to whoever validates them."""
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


def address(example: str) -> Callable[[str], str]:
    """Make a validator of HOST:PORT, which shows `example` where it expects one."""

    def validated(value: str) -> str:
        if "@" in value:  # not shown: what stands before it is a password
            raise ValueError("expected HOST:PORT alone, found credentials in it, for which there are keys")
        try:
            host_and_port(value)
        except ValueError:
            raise ValueError(f"expected HOST:PORT such as {example}, found {value!r}") from None
        return value

    return validated


Seconds = Annotated[float, BeforeValidator(duration)]
"""Seconds, written as a number or as 500ms, 30s, 5m, 24h, 90d."""
Bytes = Annotated[int, BeforeValidator(_size)]
"""Bytes, written as a number or as 64KiB, 2GiB, 10MB."""
BytesOrNone = Annotated[int, BeforeValidator(_size_or_none)]
"""The same, or 0."""
Rate = Annotated[float, BeforeValidator(_rate)]
"""Events a second, written as 10/s, 600/m, 1000/h."""
Located = Annotated[Path, BeforeValidator(_written_out), AfterValidator(_located)]
"""A path: a relative one begins at the configuration file, so that each command means the same one, from
wherever it is given."""
ReadableFile = Annotated[Located, AfterValidator(_readable)]
"""A file that can be read when the bridge starts."""
SecretFile = Annotated[ReadableFile, AfterValidator(_one_line)]
"""Such a file with a secret in it. One that is empty is like one that is not there: it may be written yet."""
Directory = Annotated[Located, AfterValidator(_directory)]
"""A directory that is there when the bridge starts."""
HttpUrl = Annotated[str, AfterValidator(_http_url)]
"""An http or https URL, perhaps with a path, without its last slash."""
Secret = Annotated[SecretStr, Field(min_length=1)]


def read_secret(path: Path) -> str:
    """Give the one line of a secret file, without what an editor adds. Raises CredentialError."""
    try:
        text = _secret_text(path)
    except UnicodeDecodeError:
        raise CredentialError(f"secret file {path} can't be read: it is not text in UTF-8") from None
    except OSError as error:
        raise CredentialError(f"secret file {path} can't be read: {error.strerror}") from error
    if not text.strip():
        raise CredentialError(f"secret file {path} is empty")
    if (lines := len(text.splitlines())) > 1:
        raise CredentialError(f"secret file {path} has {lines} lines: a secret is one")
    return text


def secret(value: SecretStr | None, file: Path | None) -> str | None:
    """Give a secret from `key` or from `key_file`, whichever is set. Raises CredentialError."""
    if file is not None:
        return read_secret(file)
    return None if value is None else value.get_secret_value()


def exactly_one(model: Model, key: str) -> None:
    """Raise ValueError unless one of `key` and `key_file` is given, and not both."""
    if (getattr(model, key) is None) == (getattr(model, f"{key}_file") is None):
        given = "both are" if getattr(model, key) is not None else "neither is"
        raise ValueError(f"expected exactly one of `{key}` and `{key}_file`, but {given} given")


def one_at_most(model: Model, one: str, other: str) -> None:
    """Raise ValueError where both keys are given."""
    if getattr(model, one) is not None and getattr(model, other) is not None:
        raise ValueError(f"expected one of {one} and {other}, not both")


def needs(model: Model, name: str, owner: str) -> None:
    """Raise ValueError where `name` is given without `owner`, by which alone it means anything."""
    if getattr(model, name) is not None and getattr(model, owner) is None:
        raise ValueError(f"{name} is given, so expected {owner} too")


class Tls(Model):
    """Whom to believe. With neither file nor directory: the system's certificate authorities."""

    ca_file: ReadableFile | None = None
    ca_path: Directory | None = None
    """A directory of certificates in PEM, hashed or plain, such as IGTF's /etc/grid-security/certificates."""
    verify: bool = True

    @model_validator(mode="after")
    def _loads(self, info: ValidationInfo) -> Self:
        if self.ca_file is None and self.ca_path is None:
            return self
        if not self.verify:
            raise ValueError(
                "`ca_file` and `ca_path` mean nothing with `verify: false`; remove one or the other"
            )
        if not needs_no_files(info):
            self.trust(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
        return self

    def trust(self, context: ssl.SSLContext) -> None:
        """Load the authorities given into `context`. Raises ValueError when a file or directory has none."""
        if self.ca_file is not None:
            try:
                context.load_verify_locations(cafile=self.ca_file)
            except ssl.SSLError:
                raise ValueError(f"expected certificates in PEM, but {self.ca_file} has none") from None
        if self.ca_path is not None and not _trust_directory(context, self.ca_path):
            raise ValueError(f"expected files with certificates in PEM, but {self.ca_path} has none")
        if self.ca_path is not None and isinstance(context, Context):
            context.refuse_revoked(self.ca_path)

    def issuer_context(self) -> Context:
        """Make the context for a token endpoint, which is verified in any case.

        Its authority may be one of the system's, or one of those given.
        """
        context = Context(ssl.PROTOCOL_TLS_CLIENT)
        context.load_default_certs()
        self.trust(context)
        return context

    def context(self) -> Context:
        """Make the context for connecting."""
        context = Context(ssl.PROTOCOL_TLS_CLIENT)
        if self.ca_file is None and self.ca_path is None:
            context.load_default_certs()
        else:
            self.trust(context)
        if not self.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


class ClientTls(Tls):
    """Whom to believe, and who we are. Files are read at each connecting, so renewed ones are taken up."""

    cert_file: ReadableFile | None = None
    """PEM: the client certificate with its chain."""
    key_file: ReadableFile | None = None
    """PEM; when it is not given, `cert_file` holds the key too."""

    @model_validator(mode="after")
    def _key_has_a_certificate(self) -> Self:
        needs(self, "key_file", "cert_file")
        return self

    def own_certificate(self) -> OwnCertificate | None:
        """Return the client certificate, if there is one."""
        return None if self.cert_file is None else OwnCertificate(self.cert_file)

    def show(self, context: ssl.SSLContext, password: str | None = None) -> None:
        """Load the certificate of `cert_file`, if it is given, into `context`. Raises OSError."""
        if self.cert_file is not None:
            # A password that is never None: OpenSSL would ask for a missing one at the terminal.
            context.load_cert_chain(self.cert_file, self.key_file, password or "")


class CertifiedKey(Model):
    """A certificate of ours, and its key."""

    cert_file: ReadableFile
    """PEM: the certificate and its chain; of a proxy the key too. Read again when it changes."""
    key_file: ReadableFile | None = None
    """PEM; null: it is in `cert_file`."""

    @model_validator(mode="after")
    def _loads(self, info: ValidationInfo) -> Self:
        if not needs_no_files(info):
            self.load(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
        return self

    def load(self, context: ssl.SSLContext) -> None:
        """Load them into `context`. Raise ValueError when they are no pair."""
        try:  # a password that is never None: OpenSSL would ask for a missing one at the terminal
            context.load_cert_chain(self.cert_file, self.key_file, password="")
        except (ssl.SSLError, OSError) as error:
            where = self.cert_file if self.key_file is None else f"{self.cert_file} and {self.key_file}"
            reason = error.strerror or error.__class__.__name__
            raise ValueError(f"expected a certificate and its key in PEM, but {where}: {reason}") from None


def _trust_directory(context: ssl.SSLContext, directory: Path) -> int:
    """Load every certificate of a directory; OpenSSL's own reading would see hashed names alone."""
    loaded = 0
    for path in sorted(directory.iterdir()):
        if path.suffix not in (".pem", ".crt", ".cer") and not path.suffix[1:].isdigit():
            continue
        try:
            text = path.read_text(encoding="ascii", errors="ignore")
            context.load_verify_locations(cadata=text[text.index("-----BEGIN CERTIFICATE-----") :])
        except (OSError, ValueError, ssl.SSLError):
            continue  # a dangling link, a key, a revoked authority's remains: the others still count
        loaded += 1
    return loaded
