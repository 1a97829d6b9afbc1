# syntax=docker/dockerfile:1
# Two images from one file, versions from requirements/cpu.lock alone, neither run as root:
#   docker build --target gateway -t bonsai-gateway .    the front door alone, without torch
#   docker build --target serving -t bonsai-serving .    everything for a machine without a GPU (the default)
#
#   docker run -p 8000:8000 bonsai-gateway --policy-url http://POLICY:8100 --reward-url http://REWARD:8001
#   docker run -p 8000:8000 -v "$PWD/runs:/models:ro" bonsai-serving up --host 0.0.0.0 \
#       --policy /models/demo/dpo --reward-model /models/demo/reward
ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS base
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN useradd --uid 10001 --create-home bonsai
WORKDIR /app

FROM base AS gateway-build
COPY requirements/cpu.lock requirements/cpu.lock
COPY pyproject.toml README.md LICENSE ./
COPY gateway gateway
# The lock only bounds what pyproject.toml asks for, so nothing of the engines comes along.
RUN python -m venv /opt/gateway && /opt/gateway/bin/pip install --constraint requirements/cpu.lock .

FROM base AS gateway
COPY --from=gateway-build /opt/gateway /opt/gateway
ENV PATH=/opt/gateway/bin:$PATH
USER 10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=15s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/health/live', timeout=2)"]
ENTRYPOINT ["bonsai", "gateway", "--host", "0.0.0.0", "--port", "8000"]

FROM base AS serving
# vLLM's CPU build links against it. No version: Debian's mirrors drop all but the newest.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends libnuma1 && rm -rf /var/lib/apt/lists/*
COPY requirements requirements
COPY pyproject.toml README.md LICENSE ./
COPY gateway gateway
COPY rm_server rm_server
COPY trainers trainers
COPY loadtests loadtests
RUN python requirements/install.py --lock cpu
ENV PATH=/app/.venv/bin:$PATH
# Logs and caches; checkpoints are mounted.
RUN install --directory --owner bonsai /app/runs
USER 10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=300s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/health/live', timeout=2)"]
ENTRYPOINT ["bonsai"]
CMD ["--help"]
