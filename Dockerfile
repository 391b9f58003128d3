# llvid on an NVIDIA GPU. CUDA comes with PyTorch's wheels; the host has the driver and the NVIDIA Container Toolkit.
# The project has no Docker to build this with: the tests check only that its sources are complete.
#
#   docker build -t llvid .
#   docker run --rm --gpus all llvid
#   docker run --rm --gpus all -v "$PWD:/data" -v llvid-models:/cache --user "$(id -u)" llvid ask clip.mp4 "What happens?"
FROM python:3.12-slim
RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/*

COPY pyproject.toml README.md LICENSE /src/
COPY llava_video_cli /src/llava_video_cli
COPY presets /src/presets
RUN pip install --no-cache-dir '/src[parquet,scenes,schema,serve,speech]' && rm -r /src

# Any user may write here: --user makes the files in /data those of the user on the host.
RUN useradd llvid && install -d -m 1777 /data /cache
ENV HOME=/cache USER=llvid
USER llvid
WORKDIR /data
ENTRYPOINT ["llvid"]
CMD ["demo"]
