# diffir on a CPU (Dockerfile.cuda is for NVIDIA cards):
#   docker build -t diffir_sr .
#   docker run --rm --user "$(id -u):$(id -g)" -v "$PWD:/data" diffir_sr restore photo.jpg -o restored
#   docker run --rm -p 127.0.0.1:7860:7860 diffir_sr serve --host 0.0.0.0 --port 7860
FROM python:3.12-slim-bookworm AS build
WORKDIR /source
COPY setup.py pyproject.toml MANIFEST.in README.md LICENSE Makefile ./
COPY diffir_sr diffir_sr
COPY options options
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.12-slim-bookworm
# Libraries of the system that opencv-python is linked with.
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgl1 libglib2.0-0 \
    && rm -rf /var/lib/apt/lists/*
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN pip install torch torchvision --index-url https://download.pytorch.org/whl/cpu
COPY scripts/install_basicsr.py /tmp/
RUN python /tmp/install_basicsr.py
COPY --from=build /wheels /tmp/wheels
RUN pip install "$(ls /tmp/wheels/*.whl)[video,heif,peers,onnx,hub,web]"
# Caches of downloads go to a place that any user may write, since --user is usually not the one below.
ENV XDG_CACHE_HOME=/tmp/cache HF_HOME=/tmp/cache/huggingface TORCH_HOME=/tmp/cache/torch
RUN useradd --create-home diffir
USER diffir
WORKDIR /data
EXPOSE 7860
ENTRYPOINT ["diffir"]
CMD ["--help"]
