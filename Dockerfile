# The page in a container. For NVIDIA GPUs (driver 580 or newer, NVIDIA Container Toolkit):
#   docker build --build-arg DEVICE=cuda --tag live-avatar:cuda .
#   docker run --init --gpus all --shm-size 1g --publish 127.0.0.1:7860:7860 \
#     --volume outputs:/outputs --volume weights:/weights live-avatar:cuda
# For any CPU, which runs the preview:
#   docker build --tag live-avatar .
#   docker run --init --publish 127.0.0.1:7860:7860 --volume outputs:/outputs live-avatar
FROM python:3.12-slim-bookworm

ARG DEVICE=cpu

WORKDIR /app
COPY requirements.txt requirements-preview.txt constraints.txt ./

# CUDA's libraries come with PyTorch. Compiled code needs a C compiler; Python.h is in the base image.
RUN case "$DEVICE" in \
      cpu) pip install --no-cache-dir -r requirements-preview.txt -c constraints.txt ;; \
      cuda) apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev \
            && rm -rf /var/lib/apt/lists/* \
            && pip install --no-cache-dir -r requirements.txt -c constraints.txt ;; \
      *) echo "DEVICE is cpu or cuda, not '$DEVICE'." >&2; exit 1 ;; \
    esac

COPY . .

# The user by number: Kubernetes' runAsNonRoot cannot check a name.
RUN useradd --create-home --uid 1000 avatar \
    && mkdir -p /outputs /weights && chown avatar:avatar /outputs /weights
USER 1000
VOLUME ["/outputs", "/weights"]

ENV GRADIO_SERVER_NAME=0.0.0.0 \
    GRADIO_SERVER_PORT=7860 \
    AVATAR_OUTPUTS=/outputs \
    AVATAR_WEIGHTS=/weights \
    AVATAR_CACHE=/weights/quantised \
    AVATAR_LORAS=/weights/loras \
    HF_HOME=/weights/hub \
    TORCHINDUCTOR_CACHE_DIR=/weights/compiled \
    TRITON_CACHE_DIR=/weights/compiled/triton \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    PYTHONUNBUFFERED=1
EXPOSE 7860
HEALTHCHECK --interval=30s --timeout=10s --start-period=90s \
    CMD ["python", "-c", "import http.client as h, os; c = h.HTTPConnection('127.0.0.1', int(os.environ['GRADIO_SERVER_PORT']), timeout=8); c.request('GET', '/gradio_api/app_id'); exit(c.getresponse().status != 200)"]
CMD ["python", "app.py"]
