"""`ssl_context`: stores of Java on a node of NiFi, as files beside the configuration."""

from __future__ import annotations

import shlex

from bridge.dcnios.draft import Draft, Entry
from bridge.dcnios.elements import Element
from bridge.dcnios.remarks import What

_NIFI = "/opt/nifi/nifi-current/data"
_PROTOCOL = "`tls` of the bridge speaks TLS 1.2 and newer by itself"


def _context(element: Element, entry: Entry) -> Element | None:
    context = element.inner("ssl_context")
    if context is None:
        entry.put("tls", {}, comment="the system's authorities")
        element.say(What.CHANGED, None, "no `ssl_context`: the system's authorities are believed")
    return context


def pkcs12(element: Element, entry: Entry, draft: Draft) -> None:
    """Make `tls` of Kafka's context: DCNiOS takes its trust store for PKCS#12, whatever it says."""
    context = _context(element, entry)
    if context is None:
        return
    name = context.required("Truststore_Filename")
    file = draft.bring(name)
    password = draft.secret(f"{entry.key}-truststore-password", context.secret("Truststore_Password"))
    value: dict[str, str | int | bool] = {"truststore_file": file, "truststore_password_file": password}
    context.say(What.KEPT, "Truststore_Filename", f"`tls.truststore_file: {file}`, beside the configuration")
    context.say(What.TO_DO, "Truststore_Filename", f"copy {_NIFI}/{name} from a node of NiFi to {file}")
    context.say(What.KEPT, "Truststore_Password", f"in {password}")
    context.leave_out("Truststore_Type", "DCNiOS takes it for PKCS12 in any case")
    context.leave_out("SSL_Protocol", _PROTOCOL)
    _own_certificate(context, value, entry, draft)
    context.finish()
    entry.put("tls", value, context.origin())


def _own_certificate(
    context: Element, value: dict[str, str | int | bool], entry: Entry, draft: Draft
) -> None:
    name = context.text("Keystore_Filename")
    kind = context.text("Keystore_Type") or ""
    if name is None:
        for key in ("Keystore_Type", "Keystore_Password"):
            context.leave_out(key, "there is no `Keystore_Filename`")
        return
    file = draft.bring(name, ".p12")
    value["pkcs12_file"] = file
    context.say(What.KEPT, "Keystore_Filename", f"`tls.pkcs12_file: {file}`, beside the configuration")
    if kind.upper() == "JKS":
        context.say(What.CHANGED, "Keystore_Type", "the bridge takes PKCS#12 alone")
        made = f"keytool -importkeystore -srckeystore {shlex.quote(name)} -destkeystore {shlex.quote(file)}"
        todo = f"make {file} of it on a node of NiFi: {made} -deststoretype PKCS12 (with the same password)"
    else:
        context.leave_out("Keystore_Type", "PKCS#12 is what the bridge takes")
        todo = f"copy {name} from a node of NiFi to {file}"
    context.say(What.TO_DO, "Keystore_Filename", todo)
    if context.has("Keystore_Password"):
        password = draft.secret(f"{entry.key}-keystore-password", context.secret("Keystore_Password"))
        value["pkcs12_password_file"] = password
        context.say(What.KEPT, "Keystore_Password", f"in {password}")


def pem(element: Element, entry: Entry, draft: Draft) -> None:
    """Make `tls` of Rucio's context, whose trust store is JKS unless it says otherwise."""
    context = _context(element, entry)
    if context is None:
        return
    name = context.required("Truststore_Filename")
    kind = context.text("Truststore_Type") or "JKS"
    file = draft.bring(name, ".pem")
    context.say(What.CHANGED, "Truststore_Filename", f"`tls.ca_file: {file}`: the bridge takes PEM here")
    store = f"-storetype {shlex.quote(kind)} -keystore {shlex.quote(name)}"
    made = f"keytool -list -rfc {store} > {shlex.quote(file)}"
    context.say(What.TO_DO, "Truststore_Filename", f"make {file} on a node of NiFi, and bring it: {made}")
    context.leave_out("Truststore_Password", "PEM has none; `keytool` asks for it")
    context.leave_out("Truststore_Type", "PEM is what the bridge takes here")
    context.leave_out("SSL_Protocol", _PROTOCOL)
    for key in ("Keystore_Filename", "Keystore_Type", "Keystore_Password"):
        context.leave_out(key, "user and password say who we are, as with DCNiOS")
    context.finish()
    entry.put("tls", {"ca_file": file}, context.origin("Truststore_Filename"))
