"""dCache's REST API as this source uses it: requests and answers, the namespace, the stream's events."""
