# Roles without a model: tool workers, producers, topics, status.
FROM python:3.11-slim-bookworm

RUN apt-get update \
    && apt-get install -y --no-install-recommends bubblewrap libseccomp2 \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/rollstream
COPY requirements requirements
RUN pip install --no-cache-dir --require-hashes -r requirements/uv.txt \
    && uv pip install --system --no-cache --require-hashes --compile-bytecode -r requirements/light.txt

COPY . .
RUN uv pip install --system --no-cache --no-deps --no-build-isolation --compile-bytecode .

RUN useradd --create-home --uid 10001 rollstream
USER rollstream
WORKDIR /home/rollstream
ENTRYPOINT ["rollstream"]
