# SPDX-License-Identifier: Apache-2.0
# CPU image: the quickstart, with the exact versions of constraints/cpu.txt.
#   docker build -f docker/cpu.Dockerfile -t tempo-verl:cpu .
FROM python:3.11-slim

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /app
COPY constraints constraints
# Set PIP_EXTRA_INDEX_URL (--build-arg) to an index with CPU builds of torch: without it Linux gets the CUDA build, which
# runs too but is gigabytes larger.
ARG PIP_EXTRA_INDEX_URL
RUN pip install -c constraints/cpu.txt torch==2.13.0

COPY pyproject.toml README.md LICENSE ./
COPY tempo_verl tempo_verl
RUN pip install -c constraints/cpu.txt ".[cpu,math]"

ENV HF_HUB_OFFLINE=1 WANDB_MODE=offline
ENTRYPOINT ["tempo-verl", "quickstart"]
