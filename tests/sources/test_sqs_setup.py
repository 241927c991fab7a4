"""`oscar-bridge setup-s3`: what it makes and what it leaves, seen by boto3 on a real server of S3 and SQS."""

from __future__ import annotations

import asyncio
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError
from botocore.parsers import ResponseParserError

from bridge.cli import main
from bridge.core.errors import BridgeError
from bridge.core.event import Event
from bridge.sources.sqs import KIND, setup
from bridge.sources.sqs.config import SqsConfig
from bridge.sources.sqs.setup import Aws, There, Wish, apply, plan
from tests.servers.moto import ACCESS_KEY_ID, ACCOUNT, REGION, SECRET_ACCESS_KEY, Moto


class Site:
    """A bucket, and the command for it."""

    def __init__(self, moto: Moto, name: str, directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.s3, self.sqs = moto.client("s3"), moto.client("sqs")
        self.bucket = self.queue = name
        self.arn = f"arn:aws:sqs:{REGION}:{ACCOUNT}:{name}"
        self._capsys = capsys
        self.s3.create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": REGION})
        (directory / "secret").write_text(SECRET_ACCESS_KEY)
        self.config = directory / "bridge.yaml"
        self.config.write_text(
            f"state_dir: {directory}\n"
            "clusters: {main: {endpoint: 'http://h', auth: {type: basic, username: a, password: b}}}\n"
            "services: {plants: {}}\n"
            f"sources: {{bucket: {{type: sqs, queue: {name}, region: {REGION}, endpoint_url: '{moto.url}', "
            f"access_key_id: {ACCESS_KEY_ID}, secret_access_key_file: secret}}}}\n"
            "routes: [{from: bucket, to: plants}]\n"
        )

    def run(self, *more: str, status: int = 0) -> str:
        """What the command prints, on either side."""
        options = ["-c", str(self.config), "--source", "bucket", "--bucket", self.bucket, *more]
        assert main(["setup-s3", *options]) == status
        told = self._capsys.readouterr()
        assert SECRET_ACCESS_KEY not in told.out + told.err
        return told.out + told.err

    @property
    def url(self) -> str:
        return str(self.sqs.get_queue_url(QueueName=self.queue)["QueueUrl"])

    @property
    def attributes(self) -> dict[str, str]:
        return dict(self.sqs.get_queue_attributes(QueueUrl=self.url, AttributeNames=["All"])["Attributes"])

    @property
    def notification(self) -> dict[str, Any]:
        told = self.s3.get_bucket_notification_configuration(Bucket=self.bucket)
        return {key: value for key, value in told.items() if key != "ResponseMetadata"}

    def received(self) -> list[Event]:
        """The events that the source makes of what is in the queue, which is emptied."""
        config = SqsConfig(type="sqs", queue=self.queue)
        events: list[Event] = []
        while messages := self.sqs.receive_message(QueueUrl=self.url, MaxNumberOfMessages=10).get("Messages"):
            for message in messages:
                self.sqs.delete_message(QueueUrl=self.url, ReceiptHandle=message["ReceiptHandle"])
                event = Event(
                    id=message["MessageId"], source="bucket", type="", data=message["Body"].encode()
                )
                told = KIND.events_of(config, event)
                events += [one for one in told if isinstance(one, Event)]
        return events


@pytest.fixture
def site(moto: Moto, unique: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Site:
    return Site(moto, unique.lower().replace("_", "-"), tmp_path, capsys)


def statement_for(site: Site) -> dict[str, Any]:
    (statement,) = json.loads(site.attributes["Policy"])["Statement"]
    return dict(statement)


def test_a_plan_changes_nothing(site: Site) -> None:
    told = site.run("--prefix", "in/")
    assert [line[0] for line in told.splitlines()] == ["q", "+", "p", "+", "n", "+", "c"]
    assert "changes: 3; --apply makes them" in told
    assert site.queue not in str(site.sqs.list_queues())
    assert site.notification == {}


def test_what_is_made_lets_this_bucket_alone_send_and_is_made_once(site: Site) -> None:
    site.run("--prefix", "in/", "--suffix", ".nc", "--apply")
    statement = statement_for(site)
    assert {key: value for key, value in statement.items() if key != "Sid"} == {
        "Effect": "Allow",
        "Principal": {"Service": "s3.amazonaws.com"},
        "Action": "sqs:SendMessage",
        "Resource": site.arn,
        "Condition": {
            "ArnEquals": {"aws:SourceArn": f"arn:aws:s3:::{site.bucket}"},
            "StringEquals": {"aws:SourceAccount": ACCOUNT},
        },
    }
    (entry,) = site.notification["QueueConfigurations"]
    assert (entry["QueueArn"], entry["Events"]) == (site.arn, ["s3:ObjectCreated:*"])
    assert site.attributes["MessageRetentionPeriod"] == str(14 * 86400)
    before = site.attributes, site.notification
    assert "nothing is to be done" in site.run("--prefix", "in/", "--suffix", ".nc", "--apply")
    assert (site.attributes, site.notification) == before
    for key in ("in/a.nc", "in/b c+d.nc", "in/a.txt", "out/a.nc"):
        site.s3.put_object(Bucket=site.bucket, Key=key, Body=b"x")
    assert sorted(str(event.subject) for event in site.received()) == ["in/a.nc", "in/b c+d.nc"]


def test_another_prefix_takes_the_place_of_the_first(site: Site) -> None:
    site.run("--prefix", "in/", "--apply")
    told = site.run("--prefix", "new/", "--apply")
    assert "prefix in/" in next(line for line in told.splitlines() if line.startswith("-"))
    assert told.count("done: ") == 1
    (entry,) = site.notification["QueueConfigurations"]
    assert entry["Filter"]["Key"]["FilterRules"] == [{"Name": "prefix", "Value": "new/"}]


def foreign(site: Site) -> dict[str, Any]:
    """Give the bucket a notification, and the queue a statement, of somebody else's."""
    url = site.sqs.create_queue(QueueName=site.queue, Attributes={"VisibilityTimeout": "77"})["QueueUrl"]
    other = f"{site.queue}-other"
    site.sqs.create_queue(QueueName=other)
    others = {
        "Sid": "theirs",
        "Effect": "Allow",
        "Principal": {"AWS": "*"},
        "Action": "sqs:SendMessage",
        "Resource": site.arn,
    }
    policy = json.dumps({"Version": "2012-10-17", "Id": "old", "Statement": others})
    site.sqs.set_queue_attributes(QueueUrl=url, Attributes={"Policy": policy})
    entry = {
        "Id": "thumbnails",
        "QueueArn": f"{site.arn}-other",
        "Events": ["s3:ObjectCreated:*"],
        "Filter": {"Key": {"FilterRules": [{"Name": "prefix", "Value": "thumbs/"}]}},
    }
    site.s3.put_bucket_notification_configuration(
        Bucket=site.bucket, NotificationConfiguration={"QueueConfigurations": [entry]}
    )
    return {"entry": entry, "statement": others}


def test_what_others_made_stays_through_making_and_removing(site: Site) -> None:
    theirs = foreign(site)
    before = site.notification
    told = site.run("--prefix", "in/", "--apply")
    assert "and stays as it is" in told
    assert "thumbnails: s3:ObjectCreated:*, prefix thumbs/" in told
    assert site.notification["QueueConfigurations"][0] == theirs["entry"]
    assert len(site.notification["QueueConfigurations"]) == 2
    policy = json.loads(site.attributes["Policy"])
    assert policy["Id"] == "old"
    assert policy["Statement"][0] == theirs["statement"]
    assert len(policy["Statement"]) == 2
    assert site.attributes["VisibilityTimeout"] == "77"
    assert "1 statement of others' stays" in site.run("--prefix", "in/")
    told = site.run("--remove", "--apply")
    assert "was not made by this command" in told
    assert site.notification == before
    assert json.loads(site.attributes["Policy"])["Statement"] == [theirs["statement"]]
    assert "nothing is to be done" in site.run("--remove", "--apply")


def test_the_queue_is_removed_once_it_is_empty(site: Site) -> None:
    site.run("--apply")
    site.s3.put_object(Bucket=site.bucket, Key="a", Body=b"x")
    assert "- the queue" not in site.run("--remove")
    assert site.notification != {}, "a plan alone"
    told = site.run("--remove", "--apply")
    assert "messages are in it" in told
    assert site.notification == {}
    assert "Policy" not in site.attributes
    assert [event.subject for event in site.received()] == ["a"]
    assert "- the queue, which is empty" in site.run("--remove", "--apply")
    assert site.queue not in str(site.sqs.list_queues())
    assert "nothing is to be done" in site.run("--remove", "--apply")


def test_two_buckets_of_one_queue_stand_beside_each_other(site: Site) -> None:
    site.run("--apply")
    first, site.bucket = site.bucket, f"{site.bucket}-2"
    site.s3.create_bucket(Bucket=site.bucket, CreateBucketConfiguration={"LocationConstraint": REGION})
    site.run("--apply")
    assert len(json.loads(site.attributes["Policy"])["Statement"]) == 2
    assert site.received() == []
    assert "stays: its policy has 1 statement of others'" in site.run("--remove", "--apply")
    assert f"arn:aws:s3:::{first}" in json.dumps(statement_for(site))


def test_what_s3_would_refuse_is_told_before(site: Site) -> None:
    theirs = foreign(site)
    told = site.run("--apply", status=1)
    assert "notifies of the same objects already: thumbnails" in told
    assert site.notification["QueueConfigurations"] == [theirs["entry"]]
    site.bucket = "no-such-bucket"
    assert "NoSuchBucket" in site.run(status=1)


def test_a_queue_by_arguments_needs_no_configuration(
    site: Site, moto: Moto, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY_ID)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_ACCESS_KEY)
    where = ["--queue", site.queue, "--region", REGION, "--endpoint-url", moto.url, "--bucket", site.bucket]
    assert main(["setup-s3", *where, "--apply"]) == 0
    assert len(site.notification["QueueConfigurations"]) == 1
    where[3] = "us-east-1"
    assert main(["setup-s3", *where]) == 1
    assert f"is in region {REGION}, and the queue in us-east-1" in capsys.readouterr().err


QUEUE = SqsConfig(type="sqs", queue="uploads", region=REGION)
WISH = Wish(bucket="b", prefix="in/", suffix=".nc")


def there(**more: Any) -> There:
    return There(
        **{
            "account": ACCOUNT,
            "partition": "aws",
            "region": REGION,
            "queue_url": None,
            "attributes": {},
            "tags": {},
            "notification": {},
            **more,
        }
    )


LAMBDA = {"Id": "resize", "LambdaFunctionArn": "arn:aws:lambda:eu-west-1:1:function:resize"}
TOPIC = {"TopicArn": "arn:aws:sns:eu-west-1:1:t", "Events": ["s3:ObjectRemoved:*"]}


def test_every_kind_of_notification_stays() -> None:
    notification = {
        "LambdaFunctionConfigurations": [
            {**LAMBDA, "Events": ["s3:ObjectCreated:Put", "s3:ObjectRestore:*"]}
        ],
        "TopicConfigurations": [TOPIC],
        "EventBridgeConfiguration": {},
    }
    notification["LambdaFunctionConfigurations"][0]["Filter"] = {  # type: ignore[index] # of a dict of lists
        "Key": {"FilterRules": [{"Name": "Suffix", "Value": ".jpg"}]}
    }
    made = plan(there(notification=notification), QUEUE, WISH)
    put = made.changes[-1].parameters["NotificationConfiguration"]
    assert {key: put[key] for key in notification} == notification
    gone = plan(there(notification=put), QUEUE, Wish(bucket="b", remove=True))
    put = gone.changes[0].parameters["NotificationConfiguration"]
    assert put == {**notification, "QueueConfigurations": []}


@pytest.mark.parametrize(
    ("events", "rules", "overlaps"),
    [
        (["s3:ObjectCreated:*"], {}, True),
        (["s3:ObjectCreated:Put"], {}, True),
        (["s3:ObjectRemoved:*"], {}, False),
        (["s3:ObjectRemoved:*", "s3:ObjectCreated:Copy"], {"Prefix": "in/a"}, True),
        (["s3:ObjectCreated:*"], {"Prefix": "i", "Suffix": "a.nc"}, True),
        (["s3:ObjectCreated:*"], {"Prefix": "out/"}, False),
        (["s3:ObjectCreated:*"], {"Suffix": ".jpg"}, False),
    ],
)
def test_entries_that_overlap_are_known_before_s3_refuses_them(
    events: list[str], rules: dict[str, str], overlaps: bool
) -> None:
    filters = [{"Name": name, "Value": value} for name, value in rules.items()]
    entry = {**LAMBDA, "Events": events, "Filter": {"Key": {"FilterRules": filters}}}
    seen = there(notification={"LambdaFunctionConfigurations": [entry]})
    if overlaps:
        with pytest.raises(BridgeError, match="resize: "):
            plan(seen, QUEUE, WISH)
    else:
        assert len(plan(seen, QUEUE, WISH).changes) == 3


def test_what_can_not_be_is_told_at_once() -> None:
    for queue, seen, told in (
        ("uploads.fifo", there(), "no FIFO queue"),
        (f"https://sqs.{REGION}.amazonaws.com/999/uploads", there(), "only its own account"),
        ("uploads", there(queue_url="u", attributes={"Policy": "{"}), "no policy of IAM's"),
    ):
        with pytest.raises(BridgeError, match=told):
            plan(seen, SqsConfig(type="sqs", queue=queue, region=REGION), WISH)


def test_an_encrypted_queue_is_told_what_its_key_must_allow() -> None:
    seen = there(queue_url="u", attributes={"KmsMasterKeyId": "alias/mine"})
    assert any("kms:GenerateDataKey" in line for line in plan(seen, QUEUE, WISH).lines)


class Scripted:
    """A client whose one operation answers in turn as its script says."""

    def __init__(self, *script: Any) -> None:
        self.script = list(script)
        self.calls = 0

    async def operation(self, **_parameters: Any) -> Any:
        self.calls += 1
        step = self.script.pop(0)
        if isinstance(step, Exception):
            raise step
        return await step() if callable(step) else step


class Page:
    """A client to which a proxy's login page answers."""

    async def get_caller_identity(self) -> Any:
        return {"ResponseMetadata": {"HTTPStatusCode": 200}}


def refusal(code: str, operation: str, message: str = "no", status: int = 400) -> ClientError:
    told = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(told, operation)  # type: ignore[arg-type] # the rest is not looked at


async def hang() -> None:
    await asyncio.get_running_loop().create_future()


@pytest.mark.parametrize(
    ("failure", "told"),
    [
        (refusal("AccessDenied", "CreateQueue", status=403), "sqs:CreateQueue is not allowed"),
        (refusal("AccessDeniedException", "ListQueueTags"), "sqs:ListQueueTags is not allowed"),
        (
            refusal("AccessDenied", "PutBucketNotificationConfiguration", status=403),
            "s3:PutBucketNotification is not allowed",
        ),
        (EndpointConnectionError(endpoint_url="https://h"), "Could not connect"),
        (hang, "no answer in 0.01 s"),
        (ValueError("nonsense"), "no answer of AWS's"),
        (ResponseParserError("<html>"), "no answer of AWS's"),
    ],
)
async def test_what_fails_is_told_with_the_right_that_lacks(
    failure: Any, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup, "CALL_SECONDS", 0.01)
    with pytest.raises(BridgeError) as raised:
        await Aws({"sqs": Scripted(failure)}).call("sqs", "operation")
    assert told in str(raised.value)


async def test_a_web_page_is_no_answer() -> None:
    with pytest.raises(BridgeError, match="no answer of AWS's: it has no 'Account'"):
        await setup.look(Aws({"sts": Page()}), QUEUE, WISH)


async def test_s3_is_asked_again_until_it_sees_the_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup, "_UNTIL_VALID", (0.0, 0.0))
    unseen = refusal("InvalidArgument", "Put", "Unable to validate the following destination configurations")
    made = setup.Plan()
    made.change("s3", "operation", "+ it")
    client = Scripted(unseen, unseen, {})
    assert [change.lines async for change in apply(Aws({"s3": client}), made)] == [("+ it",)]
    assert client.calls == 3
    client = Scripted(unseen, unseen, unseen)
    with pytest.raises(BridgeError, match="Unable to validate"):
        [change async for change in apply(Aws({"s3": client}), made)]
    client = Scripted(refusal("InvalidArgument", "Put", "Something else"))
    with pytest.raises(BridgeError, match="Something else"):
        [change async for change in apply(Aws({"s3": client}), made)]


BRIDGE = """\
state_dir: /tmp
clusters: {main: {endpoint: "http://h", auth: {type: basic, username: a, password: b}}}
services: {plants: {}}
sources:
  files: {type: kafka, bootstrap_servers: "k1:9093,k2:9093", topics: [uploads], group_id: g,
      security_protocol: SASL_SSL, sasl_mechanism: SCRAM-SHA-512, username: "o'brien", password: swordfish}
  plain: {type: kafka, bootstrap_servers: "k1:9092", topics: [a, b], group_id: g}
routes: [{from: files, to: plants}, {from: plain, to: plants}]
"""


def minio(tmp_path: Path, *more: str) -> int:
    file = tmp_path / "bridge.yaml"
    file.write_text(BRIDGE)
    return main(["setup-s3", "-c", str(file), "--bucket", "b", *more])


def test_for_minio_the_commands_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rule = ["myminio/b", "arn:minio:sqs::oscar_files:kafka", "--event", "put", "--prefix", "in $x/"]
    assert minio(tmp_path, "--source", "files", "--minio", "myminio", "--prefix", "in $x/") == 0
    told = capsys.readouterr().out
    assert "swordfish" not in told
    hint, config, restart, add, _ = (shlex.split(line) for line in told.splitlines())
    assert hint[0] == "#", "the source opens nothing yet"
    assert config == [
        *("mc", "admin", "config", "set", "myminio", "notify_kafka:oscar_files"),
        *("brokers=k1:9093,k2:9093", "topic=uploads", "tls=on", "sasl=on", "sasl_mechanism=sha512"),
        *("sasl_username=o'brien", "sasl_password=$KAFKA_PASSWORD"),
        *("queue_dir=/var/lib/minio/events", "queue_limit=100000"),
    ]
    assert restart == ["mc", "admin", "service", "restart", "myminio"]
    assert add == ["mc", "event", "add", *rule, "--ignore-existing"]
    assert minio(tmp_path, "--source", "files", "--minio", "myminio", "--prefix", "in $x/", "--remove") == 0
    remove, reset, _ = (shlex.split(line) for line in capsys.readouterr().out.splitlines())
    assert remove == ["mc", "event", "rm", *rule]
    assert reset == ["mc", "admin", "config", "reset", "myminio", "notify_kafka:oscar_files"]


@pytest.mark.parametrize(
    ("more", "status", "told"),
    [
        (["--source", "files"], 2, "S3 sends to a source of type sqs"),
        (["--source", "file"], 2, "did you mean `files`?"),
        (["--source", "plain", "--minio", "m"], 1, "`topics` should name one"),
        (["--source", "files", "--minio", "m", "--event", "s3:ObjectTagging:*"], 1, "`mc event` knows"),
        (["--source", "files", "--minio", "m", "--apply"], 2, "--apply: commands of `mc` are printed"),
        (["--source", "files", "--queue", "q"], 2, "by -c FILE with --source, or by --queue"),
    ],
)
def test_what_is_not_said_well_is_told(
    tmp_path: Path, more: list[str], status: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert minio(tmp_path, *more) == status
    assert told in capsys.readouterr().err
    assert main(["setup-s3", "--queue", "q/", "--bucket", "b"]) == 2
    assert "--queue: expected a URL" in capsys.readouterr().err
