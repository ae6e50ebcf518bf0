# Rollout workers. The wheels of the gpu extra bring CUDA; the host brings the driver.
FROM python:3.11-slim-bookworm
ARG EXTRA=gpu

# vLLM compiles small kernels at run time and, on CPU, binds threads with libnuma.
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ libnuma1 \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/rollstream
COPY requirements requirements
RUN pip install --no-cache-dir --require-hashes -r requirements/uv.txt \
    && uv pip install --system --no-cache --require-hashes --compile-bytecode -r requirements/${EXTRA}.txt

COPY . .
RUN uv pip install --system --no-cache --no-deps --no-build-isolation --compile-bytecode .

RUN useradd --create-home --uid 10001 rollstream
USER rollstream
WORKDIR /home/rollstream
ENTRYPOINT ["rollstream"]
CMD ["rollout-worker"]
