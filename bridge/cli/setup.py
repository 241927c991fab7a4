"""`oscar-bridge setup-s3`: a bucket is made to tell a source of its objects, after a plan was shown."""

from __future__ import annotations

import argparse
import asyncio
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from bridge.cli.options import Commands, chosen_source, load, wrong
from bridge.cli.output import say

if TYPE_CHECKING:
    from bridge.sources import SourceConfig
    from bridge.sources.sqs.config import SqsConfig
    from bridge.sources.sqs.setup import Wish

_CREATED = "s3:ObjectCreated:*"


def add_to(commands: Commands) -> None:
    """Add the command."""
    setup = commands.add_parser(
        "setup-s3", help="have a bucket of S3 (or of MinIO) tell a source of its objects: shows a plan first"
    )
    setup.add_argument("-c", "--config", type=Path, metavar="FILE", help="the configuration (YAML)")
    setup.add_argument("--source", help="which source of it (a key of `sources`)")
    queue = setup.add_argument_group("in place of both")
    queue.add_argument("--queue", help="the queue of SQS, by name or URL")
    queue.add_argument("--region", help="its region")
    queue.add_argument("--profile", help="a profile of the AWS configuration files")
    queue.add_argument("--endpoint-url", help="the server of SQS, when it is not AWS")
    setup.add_argument("--bucket", required=True, help="the bucket")
    setup.add_argument("--prefix", default="", help="only objects whose key begins so")
    setup.add_argument("--suffix", default="", help="only objects whose key ends so")
    setup.add_argument(
        "--event",
        action="append",
        metavar="EVENT",
        help=f"which events (default {_CREATED}); may be repeated",
    )
    setup.add_argument("--s3-endpoint-url", help="the server of S3, when it is neither AWS nor that of SQS")
    setup.add_argument(
        "--minio", metavar="ALIAS", help="print the commands of `mc`, for a source of type kafka"
    )
    setup.add_argument("--remove", action="store_true", help="take away what this command made, and no more")
    setup.add_argument("--apply", action="store_true", help="do what the plan says")
    setup.set_defaults(command=_setup)


def _setup(options: argparse.Namespace) -> int:
    key, config = _source(options)
    events = tuple(dict.fromkeys(options.event or [_CREATED]))
    if options.minio is not None:
        from bridge.sources.kafka.config import KafkaConfig

        if not isinstance(config, KafkaConfig):
            raise wrong(
                "--source", f"commands of `mc` are known for type kafka, and `{key}` is of type {config.type}"
            )
        if options.apply:
            raise wrong("--apply", "commands of `mc` are printed, and run by who has its alias")
        from bridge.sources.kafka.minio import commands

        for line in commands(
            config,
            key,
            alias=options.minio,
            bucket=options.bucket,
            prefix=options.prefix,
            suffix=options.suffix,
            events=events,
            remove=options.remove,
        ):
            say(line)
        return 0
    from bridge.sources.sqs.config import SqsConfig
    from bridge.sources.sqs.setup import Wish

    if not isinstance(config, SqsConfig):
        raise wrong("--source", f"S3 sends to a source of type sqs, and `{key}` is of type {config.type}")

    wish = Wish(
        bucket=options.bucket,
        prefix=options.prefix,
        suffix=options.suffix,
        events=events,
        s3_endpoint=options.s3_endpoint_url,
        remove=options.remove,
    )
    logging.getLogger().addHandler(logging.NullHandler())
    asyncio.run(_plan_and_apply(config, wish, make=options.apply))
    return 0


def _source(options: argparse.Namespace) -> tuple[str, SourceConfig]:
    """Return the source that is meant, and its key. Raises ConfigurationError."""
    if (options.config is None) == (options.queue is None):
        raise wrong("-c", "say which queue is meant: by -c FILE with --source, or by --queue")
    if options.config is not None:
        settings = load(options, files=False)
        key = chosen_source(options, settings)
        return key, settings.sources[key]
    from pydantic import ValidationError

    from bridge.sources.sqs.config import SqsConfig

    given = {name: getattr(options, name) for name in ("queue", "region", "profile", "endpoint_url")}
    try:
        return "--queue", SqsConfig(type="sqs", **given)
    except ValidationError as error:
        first = error.errors()[0]
        option = f"--{str(first['loc'][0]).replace('_', '-')}" if first["loc"] else "--queue"
        told = str(first["msg"]).removeprefix("Value error, ")
        raise wrong(option, told.replace("String should match", "expected text that matches")) from None


async def _plan_and_apply(config: SqsConfig, wish: Wish, *, make: bool) -> None:
    from bridge.sources.sqs.setup import apply, connect, look, plan

    async with connect(config, wish) as aws:
        planned = plan(await look(aws, config, wish), config, wish)
        for line in planned.lines:
            say(line, at_once=True)
        if not planned.changes:
            say("nothing is to be done")
        elif not make:
            say(f"changes: {len(planned.changes)}; --apply makes them")
        else:
            async for change in apply(aws, planned):
                say(f"done: {change.operation}", at_once=True)
