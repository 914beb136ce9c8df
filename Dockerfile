# Two images of one source:
#
#     docker build --tag circles:local .                           the application, on Ray Serve; also for KubeRay
#     docker build --tag circles-kserve:local --target kserve .    the model server, without Ray
#
# In both, the code lies in /app and its Python in /opt/venv, both of root; the program runs as user 1000 and writes to
# /tmp only (in the application, Ray to /dev/shm too, and uploads go to /data), so the root file system may be read-only.

# For nodes with GPUs: RAY_IMAGE=rayproject/ray:2.60.0-py311-gpu and WITH_TORCH=1 (kuberay/components/gpu).
ARG RAY_IMAGE=rayproject/ray:2.60.0-py311-cpu
ARG PYTHON_IMAGE=python:3.11.14-slim-bookworm


FROM ${PYTHON_IMAGE} AS uv
WORKDIR /build
COPY requirements.lock ./
RUN sed -n '/^uv==/,/[^\\]$/p' requirements.lock > uv.txt \
    && python -m venv /opt/uv \
    && /opt/uv/bin/pip install --no-cache-dir --require-hashes --requirement uv.txt


# What runs is installed where it will be run: an environment names its interpreter by its path. Every package comes in
# the version of requirements.lock and is checked against its hashes there, also setuptools, by which /app is built.
FROM ${PYTHON_IMAGE} AS kserve-build
COPY --from=uv /opt/uv/bin/uv /usr/local/bin/uv
ENV UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy UV_NO_PROGRESS=1 UV_PYTHON_DOWNLOADS=never VIRTUAL_ENV=/opt/venv
WORKDIR /app
COPY pyproject.toml requirements.lock ./
RUN --mount=type=cache,target=/root/.cache/uv \
    uv venv --python python3.11 /opt/venv \
    && uv pip install --require-hashes --constraints requirements.lock --requirements pyproject.toml --extra kserve
COPY LICENSE README.md ./
COPY circles circles
COPY deployments deployments
RUN --mount=type=cache,target=/root/.cache/uv \
    uv pip install --no-deps --build-constraints requirements.lock --editable . \
    && python3.11 -m compileall -q circles deployments \
    && chmod -R u=rwX,go=rX /app /opt/venv


FROM ${RAY_IMAGE} AS serve-build
# hadolint ignore=DL3002
USER 0
COPY --from=uv /opt/uv/bin/uv /usr/local/bin/uv
ENV UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy UV_NO_PROGRESS=1 UV_PYTHON_DOWNLOADS=never VIRTUAL_ENV=/opt/venv
WORKDIR /app
COPY pyproject.toml requirements.lock ./
RUN --mount=type=cache,target=/root/.cache/uv \
    uv venv --python python3.11 /opt/venv \
    && uv pip install --require-hashes --constraints requirements.lock --requirements pyproject.toml --extra serve
# PyTorch, for DETECTOR=heatmap-torch: WITH_TORCH=1 adds it. Its wheel differs by source and so has no hash in the lock;
# where the default source has only the CUDA build, EXTRA_INDEX_URL can name one of CPU wheels.
ARG WITH_TORCH=
ARG EXTRA_INDEX_URL=
RUN --mount=type=cache,target=/root/.cache/uv \
    if [ -n "$WITH_TORCH" ]; then \
        uv pip install --constraints requirements.lock --requirements pyproject.toml --extra torch \
            ${EXTRA_INDEX_URL:+--extra-index-url "$EXTRA_INDEX_URL" --index-strategy unsafe-best-match}; \
    fi
COPY LICENSE README.md serve_config.yaml ./
COPY kuberay/base/serve.env serve.env
COPY circles circles
COPY deployments deployments
COPY serve_app serve_app
RUN --mount=type=cache,target=/root/.cache/uv \
    uv pip install --no-deps --build-constraints requirements.lock --editable . \
    && python3.11 -m compileall -q circles deployments serve_app \
    && chmod -R u=rwX,go=rX /app /opt/venv


FROM ${PYTHON_IMAGE} AS kserve
ARG VERSION=unknown
ARG REVISION=unknown
ARG CREATED=unknown
LABEL org.opencontainers.image.title="circles-kserve" \
    org.opencontainers.image.description="Finds circular objects in photographs: model server for KServe's protocols" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}" \
    org.opencontainers.image.created="${CREATED}"
COPY --from=kserve-build /opt/venv /opt/venv
COPY --from=kserve-build /app /app
ENV PATH=/opt/venv/bin:$PATH HOME=/tmp PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
WORKDIR /app
USER 1000:1000
EXPOSE 9090 9091
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9090/v2/health/ready', timeout=4)"]
# Further arguments, as a ServingRuntime has them, come behind these, and win.
ENTRYPOINT ["python", "-m", "deployments.kserve_model", "--host=0.0.0.0"]


FROM ${RAY_IMAGE} AS serve
ARG VERSION=unknown
ARG REVISION=unknown
ARG CREATED=unknown
LABEL org.opencontainers.image.title="circles" \
    org.opencontainers.image.description="Finds circular objects in photographs: one Ray Serve application" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}" \
    org.opencontainers.image.created="${CREATED}"
USER 0
COPY --from=serve-build /opt/venv /opt/venv
COPY --from=serve-build /app /app
# Our Ray comes before the base image's, of the same version, which lacks our packages. HOME: Ray keeps its token there.
ENV PATH=/opt/venv/bin:$PATH HOME=/tmp PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
    DATABASE_URL=sqlite:////data/db.sqlite3 STORAGE_URL=file:/data/images \
    RAY_SERVE_HAPROXY_BINARY_PATH=/opt/venv/bin/circles-haproxy TRUSTED_PROXIES=1
# KubeRay's commands and probes need the tools named here. The base image lets its user become root by sudo; nobody
# becomes anybody here.
RUN for tool in bash grep ray wget; do command -v "$tool" || exit 1; done \
    && find /usr -xdev -type f -perm /6000 -exec chmod a-s {} + \
    && mkdir --mode=750 /data \
    && chown 1000:1000 /data
WORKDIR /app
USER 1000:1000
EXPOSE 8000 9000 8080
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
CMD ["python", "-m", "serve_app.container"]
