# The server and its page on processors. For NVIDIA GPUs: Dockerfile.cuda.
#
#     docker build --tag sordino .
#     docker run --publish 5100:5100 --env SORDINO_API_KEY=KEY --volume ./softprompts:/library --volume sordino:/data sordino
#
# /library holds the soft prompts, /data base models, stories and runs. Both belong to the user 10001 in the image.
FROM python:3.11-slim-bookworm AS build
WORKDIR /build
RUN python -m venv /opt/sordino
ENV PATH=/opt/sordino/bin:$PATH
COPY constraints.txt ./
# Alone, as only its own index has PyTorch without CUDA's libraries, and to keep it when the sources change.
RUN pip install --no-cache-dir --no-deps --constraint constraints.txt --index-url https://download.pytorch.org/whl/cpu torch
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN pip install --no-cache-dir --constraint constraints.txt '.[ui,schema,texts,quantise]'

FROM python:3.11-slim-bookworm
RUN useradd --uid 10001 --create-home sordino \
    && install --directory --owner sordino --group sordino /library /data
COPY --from=build /opt/sordino /opt/sordino
ENV PATH=/opt/sordino/bin:$PATH \
    SORDINO_LIBRARY=/library \
    SORDINO_CACHE=/data/cache \
    HF_HOME=/data/hub \
    XDG_DATA_HOME=/data \
    XDG_CONFIG_HOME=/data/settings
USER 10001
WORKDIR /data
VOLUME ["/library", "/data"]
EXPOSE 5100
# A base model may have to be fetched before the server answers.
HEALTHCHECK --start-period=15m --interval=30s --timeout=5s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:5100/health', timeout=4)"]
ENTRYPOINT ["sordino"]
# Every address of the container, so it starts with a key only: SORDINO_API_KEY.
CMD ["serve", "--host", "0.0.0.0"]
