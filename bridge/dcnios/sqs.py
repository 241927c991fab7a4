"""`GetSQS` and `GetS3`: a queue of SQS that DCNiOS made, as a source."""

from __future__ import annotations

from bridge.dcnios.draft import Draft, Entry
from bridge.dcnios.elements import Element
from bridge.dcnios.pace import Processor
from bridge.dcnios.remarks import What

PROCESSORS = {"GetSQS": Processor(1)}


def read(element: Element, entry: Entry, draft: Draft) -> None:
    """Make the source of one element."""
    _queue(element, entry)
    entry.put("region", element.required("AWS_DEFAULT_REGION"), element.origin("AWS_DEFAULT_REGION"))
    element.say(What.KEPT, "AWS_DEFAULT_REGION", "`region`")
    _keys(element, entry, draft)
    element.say(
        What.TO_DO,
        None,
        "DCNiOS made this queue so that anybody with an AWS account may send to it, and so start jobs: let "
        "`__sender_statement` of its policy allow s3.amazonaws.com alone, with the bucket as aws:SourceArn",
    )
    element.say(
        What.LOST,
        None,
        "messages that OSCAR did not take, since NiFi deletes them as it receives them, and all records of a "
        "notification but the first",
    )


def _queue(element: Element, entry: Entry) -> None:
    if element.kind == "GetSQS":
        entry.put("queue", element.required("queue_name"), element.origin("queue_name"))
        element.say(What.KEPT, "queue_name", "`queue`")
        return
    bucket = element.required("AWS_S3_BUCKET")
    entry.put("queue", f"{bucket}_events", element.origin("AWS_S3_BUCKET"), "made by DCNiOS for the bucket")
    element.say(
        What.CHANGED,
        "AWS_S3_BUCKET",
        f"`queue: {bucket}_events`; it and the bucket's notification `{bucket}_event` stay as they are",
    )
    element.leave_out("queue_name", "DCNiOS makes the queue's name of the bucket's")
    why = (
        "notifications of the bucket to others: DCNiOS replaced them with its own; look whether any is missed"
    )
    element.say(What.LOST, "AWS_S3_BUCKET", why)


def _keys(element: Element, entry: Entry, draft: Draft) -> None:
    if not (element.has("AWS_ACCESS_KEY_ID") and element.has("AWS_SECRET_ACCESS_KEY")):
        for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            element.leave_out(key, "DCNiOS needs both keys: the standard AWS chain is asked")
        element.say(
            What.TO_DO,
            None,
            "no keys here: give the bridge's environment those that DCNiOS ran with (variables, "
            "~/.aws/credentials, or a role)",
        )
        return
    entry.put("access_key_id", element.required("AWS_ACCESS_KEY_ID"), element.origin("AWS_ACCESS_KEY_ID"))
    file = draft.secret(f"{entry.key}-secret-access-key", element.secret("AWS_SECRET_ACCESS_KEY"))
    entry.put("secret_access_key_file", file, element.origin("AWS_SECRET_ACCESS_KEY"))
    why = "`access_key_id`; DCNiOS took it only where neither the environment nor ~/.aws/credentials had one"
    element.say(What.KEPT, "AWS_ACCESS_KEY_ID", why)
    element.say(What.KEPT, "AWS_SECRET_ACCESS_KEY", f"in {file}")
