"""`dCache`: the arguments of DCNiOS's event client as a source."""

from __future__ import annotations

import argparse
import shlex
from pathlib import PurePosixPath
from typing import NoReturn

from bridge.dcnios.draft import SECRETS, Draft, Entry
from bridge.dcnios.elements import Element
from bridge.dcnios.pace import Processor
from bridge.dcnios.remarks import What

PROCESSORS = {
    "ExecuteProcess": Processor(None, on_all=False),
    "GetFile": Processor(10, on_all=False),
}
_EATEN = "dcache"
"""NiFi takes each file whose name begins so for events, and removes it."""


class _Arguments(argparse.ArgumentParser):
    """DCNiOS's event client puts `folder` behind its own arguments, so options in it count."""

    def __init__(self) -> None:
        super().__init__(add_help=False)
        self.add_argument("--auth", choices=["userpw", "x509", "oidc"], default="userpw")
        self.add_argument("--user")
        self.add_argument("--password")
        self.add_argument("--oidc-account")
        self.add_argument("--recursive", "-r", action="store_true")
        self.add_argument("--x509-trust", choices=["path", "builtin", "any"], default="builtin")
        self.add_argument("--x509-trust-path", default="/etc/grid-security/certificates")
        self.add_argument("--x509-proxy")
        self.add_argument("paths", nargs="+")

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def read(element: Element, entry: Entry, draft: Draft) -> None:
    """Make the source of one element."""
    entry.put("endpoint", element.required("endpoint"), element.origin("endpoint"))
    element.say(What.KEPT, "endpoint", f"`sources.{entry.key}.endpoint`")
    folder = element.required("folder")
    try:
        given = _Arguments().parse_args(shlex.split(folder))
    except ValueError:
        if folder:  # what is wrong with it could show a password that stands in it
            element.wrong("folder", "expected paths, and options of DCNiOS's event client such as -r")
        given = _Arguments().parse_args(["/"])
    _auth(element, entry, draft, given)
    _trust(element, entry, given)
    _paths(element, entry, given)
    entry.put("flags", ["IN_CLOSE_WRITE"], comment="as DCNiOS; the default takes files that are moved in too")
    entry.put(
        "first_start", "now", comment="files there before are skipped: start the bridge before NiFi stops"
    )
    _state(element)
    element.say(
        What.LOST,
        None,
        "files that came while NiFi or the stream was away, or after EVENT_LOSS; the bridge finds them by "
        "listing the folder",
    )


def _auth(element: Element, entry: Entry, draft: Draft, given: argparse.Namespace) -> None:
    origin = element.origin("folder" if given.auth != "userpw" or given.password else "password")
    if given.password:
        element.report.hide(given.password)
    if given.auth == "userpw":
        user, password = element.required("user"), element.secret("password")
        file = draft.secret(f"{entry.key}-password", given.password or password)
        value = {"type": "basic", "username": given.user or user, "password_file": file}
        entry.put("auth", {**value}, element.origin("user"))
        for key, instead in (("user", given.user), ("password", given.password)):
            if instead:
                element.leave_out(key, "the option in `folder` goes over it")
            else:
                element.say(What.KEPT, key, f"`auth`{'' if key == 'user' else f': in {file}'}")
        return
    for key in ("user", "password"):
        element.leave_out(key, f"`--auth {given.auth}` in `folder` uses neither user nor password")
    if given.auth == "x509":
        file = given.x509_proxy or "/tmp/x509up_u0"  # noqa: S108 - the client's default
        entry.put("auth", {"type": "x509", "cert_file": file}, origin)
        element.say(What.TO_DO, "folder", f"put the proxy certificate at {file}, and renew it there")
    else:
        file = f"{SECRETS}/{entry.key}-token"
        entry.put("auth", {"type": "bearer", "token_file": file}, origin)
        account = given.oidc_account or "ACCOUNT"
        why = f"the bridge asks no oidc-agent for dCache: keep {file} fresh with `oidc-token {account}`"
        element.say(What.TO_DO, "folder", why)


def _trust(element: Element, entry: Entry, given: argparse.Namespace) -> None:
    if given.x509_trust == "any":
        entry.put("tls", {"verify": False}, element.origin("folder"), "believes anybody, as before")
        element.say(What.TO_DO, "folder", "`--x509-trust any` believes anybody: give `tls.ca_path` instead")
    elif given.x509_trust == "path":
        entry.put("tls", {"ca_path": given.x509_trust_path}, element.origin("folder"))


def _paths(element: Element, entry: Entry, given: argparse.Namespace) -> None:
    paths = list(dict.fromkeys(path.rstrip("/") or "/" for path in given.paths))
    entry.put("paths", paths, element.origin("folder"))
    entry.put(
        "recursive", given.recursive, element.origin("folder"), "as DCNiOS" if not given.recursive else ""
    )
    changed = paths != given.paths
    told = "`paths`" + (", without a last slash, which dCache refuses, each once" if changed else "")
    below = "with" if given.recursive else "without"
    element.say(What.CHANGED if changed else What.KEPT, "folder", f"{told}, {below} what is below")


def _state(element: Element) -> None:
    name = element.text("statefile") or ""
    why = "the position is not taken over: start the bridge before you stop DCNiOS, and nothing is missed"
    element.leave_out("statefile", why)
    if PurePosixPath(name).name.startswith(_EATEN):
        element.say(
            What.LOST,
            "statefile",
            "its position: NiFi takes a file with this name for events, and removes it",
        )
