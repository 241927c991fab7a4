"""The calls that a consumer makes for each ten messages, without what aiobotocore does around each call.

It resolves the endpoint, checks and copies the parameters, asks some twenty hooks and a policy for retries,
and copies the answer member by member: half of a call's cost. Endpoint, credentials, connections, signature
and the reading of a refusal are its own still.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.exceptions import ClientError, NoCredentialsError
from botocore.parsers import create_parser

from bridge.sources.json_reader import load

_SERVICE = "sqs"


class Calls:
    """Makes calls of AWS JSON 1.0 (https://smithy.io/2.0/aws/protocols/aws-json-1_0-protocol.html)."""

    def __init__(self, client: Any, user_agent: str) -> None:
        """Go the way of an open `client` of SQS's."""
        self._client = client
        self._url: str | None = None
        """Once it was asked for: it is one for all calls."""
        self._region = client.meta.region_name
        self._user_agent = user_agent
        self._http = client._endpoint.http_session  # noqa: SLF001 - nothing public gives it
        self._credentials = client._request_signer._credentials  # noqa: SLF001 - likewise
        self._errors = create_parser("json")

    async def call(self, operation: str, **parameters: Any) -> Mapping[str, Any]:
        """Give what SQS answers. Raises as a call of the client does, and ValueError for what is no JSON."""
        if self._credentials is None:
            raise NoCredentialsError
        if self._url is None:
            self._url = await self._find_url(operation)
        request = AWSRequest(
            method="POST",
            url=self._url,
            headers={
                "X-Amz-Target": f"AmazonSQS.{operation}",
                "Content-Type": "application/x-amz-json-1.0",
                "User-Agent": self._user_agent,
                "x-amzn-query-mode": "true",  # errors have the names that they have always had
            },
            data=json.dumps(parameters).encode("ascii"),
        )
        credentials = await self._credentials.get_frozen_credentials()
        SigV4Auth(credentials, _SERVICE, self._region).add_auth(request)
        response = await self._http.send(request.prepare())
        status, headers, body = response.status_code, response.headers, await response.content
        if status >= 300:
            told = {"status_code": status, "headers": headers, "body": body, "context": {}}
            raise ClientError(self._errors.parse(told, None), operation)
        if str(headers.get("content-type", "")).startswith("text/html"):
            answer: Any = {}
        else:
            answer = load(body) if body else {}
        if not isinstance(answer, dict):
            raise TypeError(f"{type(answer).__name__} in place of an object")
        answer["ResponseMetadata"] = {"HTTPHeaders": headers, "HTTPStatusCode": status}
        return answer

    async def _find_url(self, operation: str) -> str:
        """Ask the rules for endpoints; `meta.endpoint_url` is of older ones, which know fewer hosts."""
        model = self._client.meta.service_model.operation_model(operation)
        endpoint, _, _ = await self._client._resolve_endpoint_ruleset(model, {}, {})  # noqa: SLF001 - likewise
        parts = urlsplit(str(endpoint))
        return parts._replace(path=parts.path or "/").geturl()
