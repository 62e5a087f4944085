# Two images from one file:
#   docker build -t sluice:0.1.0-cuda .                for NVIDIA GPUs
#   docker build -t sluice:0.1.0-cpu --target cpu .    without CUDA, to try Sluice out
#
# The base is plain Python. CUDA, cuBLAS, cuDNN and NCCL come with torch's wheels; an nvidia/cuda base would bring them
# a second time, and nothing would load those. The host brings the driver (CUDA 13 needs 580 or newer) and the NVIDIA
# container toolkit. Python 3.11 is what the tests run on; a release pins this tag to a digest with --build-arg.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

# What both images are installed with. None of it gets into them.
FROM ${PYTHON_IMAGE} AS build
# Bytecode is compiled here, because nothing can be written where the images run.
ENV UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy UV_PYTHON_DOWNLOADS=never
WORKDIR /src
COPY requirements-uv.txt requirements-runtime.txt ./
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --disable-pip-version-check --require-hashes -r requirements-uv.txt
RUN python -m venv --without-pip /opt/sluice

FROM build AS wheel
COPY pyproject.toml README.md LICENSE requirements.txt ./
COPY consumer/ consumer/
# The build backend is locked by hash too: its lines are in requirements.txt.
RUN --mount=type=cache,target=/root/.cache/uv \
    uv build --wheel --build-constraints requirements.txt --require-hashes --out-dir /dist .

# The dependencies come before the program, so that a change of the program does not move 5.8 GB.
FROM build AS cuda-env
RUN --mount=type=cache,target=/root/.cache/uv \
    uv pip install --python /opt/sluice/bin/python --require-hashes -r requirements-runtime.txt

# torch for CPUs is not among the locked files, because PyTorch serves it from an index of its own: its version is the
# locked one, its hash is not checked. What only the CUDA build needs is left out.
FROM build AS cpu-env
RUN --mount=type=cache,target=/root/.cache/uv \
    grep -oE '^(torch|torchvision|triton|nvidia-[a-z0-9-]+|cuda-[a-z]+)==' requirements-runtime.txt \
      | grep -v '^nvidia-ml-py' | tr -d = > not-locked.txt \
 && uv pip install --python /opt/sluice/bin/python --torch-backend cpu \
      $(grep -oE '^(torch|torchvision)==[0-9.]+' requirements-runtime.txt) \
 && uv pip install --python /opt/sluice/bin/python --require-hashes --excludes not-locked.txt \
      -r requirements-runtime.txt

# What both images share.
FROM ${PYTHON_IMAGE} AS runtime
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Sluice" \
      org.opencontainers.image.description="A Kafka consumer group that turns camera frames into detections on a GPU" \
      org.opencontainers.image.licenses="AGPL-3.0-or-later" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
RUN groupadd --gid 10001 sluice \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin sluice
# /tmp is the only place that must be writable. LOGNAME serves a platform that picks a UID of its own: torch asks for
# the user's name. 0.0.0.0 because a container's own network is the boundary.
ENV PATH=/opt/sluice/bin:$PATH \
    PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp LOGNAME=sluice XDG_CACHE_HOME=/tmp/cache YOLO_CONFIG_DIR=/tmp/ultralytics MPLCONFIGDIR=/tmp/matplotlib \
    SLUICE_HTTP__HOST=0.0.0.0
WORKDIR /tmp
EXPOSE 8080
STOPSIGNAL SIGTERM
# Healthy once the model is warm and the loop turns. http.client, because urllib would ask a proxy for 127.0.0.1.
HEALTHCHECK --interval=10s --timeout=5s --start-period=300s --retries=3 CMD ["python", "-c", "import http.client, os, sys; c = http.client.HTTPConnection('127.0.0.1', int(os.environ.get('SLUICE_HTTP__PORT', '8080')), timeout=3); c.request('GET', '/readyz'); sys.exit(c.getresponse().status != 200)"]
ENTRYPOINT ["sluice"]
CMD ["run"]

FROM runtime AS cpu
COPY --from=cpu-env /opt/sluice /opt/sluice
RUN --mount=type=bind,from=wheel,source=/dist,target=/dist --mount=type=bind,from=build,source=/usr/local/bin/uv,target=/uv \
    /uv pip install --python /opt/sluice/bin/python --no-cache --compile-bytecode --no-deps /dist/sluice_vision-*.whl \
 && ln -s /opt/sluice/lib/python3*/site-packages/consumer/tools/assets/demo.pt /opt/sluice/demo.pt
USER 10001:10001

# The last stage is what `docker build .` makes.
FROM runtime AS cuda
ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=cuda-env /opt/sluice /opt/sluice
RUN --mount=type=bind,from=wheel,source=/dist,target=/dist --mount=type=bind,from=build,source=/usr/local/bin/uv,target=/uv \
    /uv pip install --python /opt/sluice/bin/python --no-cache --compile-bytecode --no-deps /dist/sluice_vision-*.whl \
 && ln -s /opt/sluice/lib/python3*/site-packages/consumer/tools/assets/demo.pt /opt/sluice/demo.pt
USER 10001:10001
