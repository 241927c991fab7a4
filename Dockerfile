# Two stages: wheels are built where a compiler may be needed, and only they reach the image that runs.
FROM docker.io/library/python:3.13-slim-bookworm AS build
WORKDIR /src
COPY requirements.lock ./
RUN python -m venv /opt/bridge \
 && /opt/bridge/bin/pip install --no-cache-dir --disable-pip-version-check --require-hashes -r requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY bridge ./bridge
RUN /opt/bridge/bin/pip install --no-cache-dir --disable-pip-version-check --no-deps .

FROM docker.io/library/python:3.13-slim-bookworm
LABEL org.opencontainers.image.title="OSCAR Event Bridge" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN useradd --system --uid 10001 --user-group --home-dir /var/lib/oscar-bridge --create-home oscar-bridge
COPY --from=build /opt/bridge /opt/bridge
ENV PATH=/opt/bridge/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
VOLUME /var/lib/oscar-bridge
EXPOSE 9464
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=10s \
  CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:9464/livez', timeout=3)"]
ENTRYPOINT ["oscar-bridge"]
CMD ["run", "-c", "/etc/oscar-bridge/bridge.yaml"]
