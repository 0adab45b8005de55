# Images for prediction and training. Build one of the two targets from the root of a checkout:
#
#   docker build --target cpu --build-arg TORCH_INDEX=URL -t medseg:cpu .
#   docker build --target cuda -t medseg:cuda .
#
# TORCH_INDEX is the package index of PyTorch's build for processors, which its installation page names; without it, pip
# installs the larger build for CUDA devices. VERSION is the version that medseg reports.
FROM python:3.11-slim-bookworm AS build
ARG VERSION=0.1.0
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY medseg medseg
RUN SETUPTOOLS_SCM_PRETEND_VERSION=${VERSION} pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

# What both targets share: a user without privileges, and no writable code.
FROM python:3.11-slim-bookworm AS base
ENV PYTHONUNBUFFERED=1 \
    MPLCONFIGDIR=/tmp/matplotlib \
    XDG_CACHE_HOME=/tmp/cache
RUN useradd --create-home --uid 1000 medseg
COPY constraints.txt /opt/medseg/constraints.txt
COPY --from=build /wheels /opt/medseg/wheels

FROM base AS cpu
ARG TORCH_INDEX=""
ARG EXTRAS=dicom,onnx,openvino,serve
# The versions of the constraints file belong to the build for CUDA devices; the index may hold others that fit together.
RUN if [ -n "${TORCH_INDEX}" ]; then \
      pip install --no-cache-dir --index-url "${TORCH_INDEX}" "torch>=2.10" "torchvision>=0.25" \
      && grep -v -E "^(torch|torchvision|triton|nvidia-.*|cuda-.*)==" /opt/medseg/constraints.txt > /tmp/constraints.txt; \
    else \
      cp /opt/medseg/constraints.txt /tmp/constraints.txt; \
    fi \
    && wheel=$(echo /opt/medseg/wheels/medseg-*.whl) \
    && pip install --no-cache-dir --constraint /tmp/constraints.txt "${wheel}[${EXTRAS}]" \
    && rm /tmp/constraints.txt
USER 1000
WORKDIR /data
ENTRYPOINT ["medseg"]
CMD ["--help"]

FROM base AS cuda
ARG EXTRAS=dicom,onnx,serve
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
RUN wheel=$(echo /opt/medseg/wheels/medseg-*.whl) \
    && pip install --no-cache-dir --constraint /opt/medseg/constraints.txt "${wheel}[${EXTRAS}]"
USER 1000
WORKDIR /data
ENTRYPOINT ["medseg"]
CMD ["--help"]
