# syntax=docker/dockerfile:1
# Images from one file, none run as root, versions from requirements/ alone:
#   docker build --target gateway -t bonsai-gateway .        the front door alone, without torch
#   docker build --target rm_server -t bonsai-rm-server .    the reward-model server, without vLLM
#   docker build --target trainers -t bonsai-trainers .      `bonsai train ...`, with vLLM for rollouts
#   docker build --target serving -t bonsai-serving .        everything, `bonsai up` and vLLM too (the default)
# For NVIDIA GPUs add --build-arg LOCK=cuda, which the gateway does not need, and let vLLM's own image serve:
#   docker build --target vllm-cuda -t bonsai-vllm-cuda .    theirs, run without root
#
#   docker run -p 127.0.0.1:8000:8000 bonsai-gateway --policy-url http://POLICY:8100 --reward-url http://REWARD:8001
#   docker run -p 127.0.0.1:8000:8000 -v "$PWD/runs:/models:ro" bonsai-serving up --host 0.0.0.0 \
#       --policy /models/demo/dpo --reward-model /models/demo/reward
# deploy/compose.yaml starts all of them together; docs/deploy.md says more.
ARG PYTHON=3.12.13-slim-bookworm
ARG VLLM=v0.32.0

FROM python:${PYTHON} AS base
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# The folders are volumes' places: a new volume takes its owner from them.
RUN useradd --uid 10001 --create-home bonsai \
    && install --directory --owner bonsai /var/lib/bonsai /home/bonsai/.cache /home/bonsai/.cache/huggingface
WORKDIR /app

FROM base AS gateway-build
COPY requirements/cpu.lock requirements/cpu.lock
COPY pyproject.toml README.md LICENSE ./
COPY gateway gateway
# The lock only bounds what pyproject.toml asks for, so nothing of the engines comes along.
RUN python -m venv /opt/gateway \
    && /opt/gateway/bin/pip install --constraint requirements/cpu.lock setuptools \
    && /opt/gateway/bin/pip install --constraint requirements/cpu.lock --no-build-isolation '.[tracing]'

FROM base AS gateway
COPY --from=gateway-build /opt/gateway /opt/gateway
ENV PATH=/opt/gateway/bin:$PATH
USER 10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=15s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/health/live', timeout=2)"]
ENTRYPOINT ["bonsai", "gateway", "--host", "0.0.0.0", "--port", "8000"]

FROM base AS rm_server-build
ARG LOCK=cpu
COPY requirements requirements
COPY pyproject.toml README.md LICENSE ./
COPY rm_server rm_server
# PyPI has the CUDA build alone under torch's version; the CPU build comes from PyTorch's own index.
RUN python -m venv /opt/rm_server \
    && if [ "$LOCK" = cpu ]; then /opt/rm_server/bin/pip install --no-deps \
        --index-url https://download.pytorch.org/whl/cpu "$(grep '^torch==' requirements/cpu.lock)"; fi \
    && /opt/rm_server/bin/pip install --constraint "requirements/$LOCK.lock" setuptools \
    && /opt/rm_server/bin/pip install --constraint "requirements/$LOCK.lock" --no-build-isolation \
        '.[reward-server,tracing]'

FROM base AS rm_server
COPY --from=rm_server-build /opt/rm_server /opt/rm_server
ENV PATH=/opt/rm_server/bin:$PATH
USER 10001
EXPOSE 8001
# A large checkpoint takes minutes to verify and load; failures in that time do not count.
HEALTHCHECK --interval=10s --timeout=3s --start-period=600s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8001/health/ready', timeout=2)"]
ENTRYPOINT ["python", "-m", "rm_server", "--host", "0.0.0.0", "--port", "8001"]

FROM base AS environment
ARG LOCK=cpu
# vLLM's CPU build links against libnuma1; its CUDA build compiles kernels when it starts. No versions: Debian's
# mirrors drop all but the newest.
# hadolint ignore=DL3008
RUN apt-get update \
    && if [ "$LOCK" = cuda ]; then apt-get install --yes --no-install-recommends gcc libc6-dev; fi \
    && apt-get install --yes --no-install-recommends libnuma1 && rm -rf /var/lib/apt/lists/*
COPY requirements requirements
COPY pyproject.toml README.md LICENSE ./
COPY gateway gateway
COPY rm_server rm_server
COPY trainers trainers
COPY loadtests loadtests
RUN python requirements/install.py --lock "$LOCK"
ENV PATH=/app/.venv/bin:$PATH
# Logs, caches and results; checkpoints are mounted.
RUN install --directory --owner bonsai /app/runs
USER 10001

FROM environment AS trainers
# A run is watched by its own progress lines and its exit code; it serves nothing that could be asked.
HEALTHCHECK NONE
ENTRYPOINT ["bonsai", "train"]
CMD ["--help"]

FROM vllm/vllm-openai:${VLLM} AS vllm-cuda
RUN useradd --uid 10001 --create-home bonsai \
    && install --directory --owner bonsai /home/bonsai/.cache /home/bonsai/.cache/huggingface
# What is compiled is kept under the home folder; torch asks for the user's name.
ENV HOME=/home/bonsai USER=bonsai
USER 10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=1200s \
    CMD ["python3", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/health', timeout=2)"]
ENTRYPOINT ["python3", "-m", "vllm.entrypoints.openai.api_server", "--host", "0.0.0.0", "--port", "8000"]

FROM environment AS serving
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=300s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/health/live', timeout=2)"]
ENTRYPOINT ["bonsai"]
CMD ["--help"]
