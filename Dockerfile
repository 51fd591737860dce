# The command line on a processor:
#   docker build -t rhumbline . && mkdir -p runs
#   docker run --rm --user "$(id -u):$(id -g)" --env HOME=/tmp -v "$PWD/runs:/runs" rhumbline demo --out /runs/demo
FROM python:3.12-slim AS build
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.12-slim
# PIP_ARGS: where pip finds torch; its build for processors alone is much smaller.
ARG PIP_ARGS=
COPY --from=build /wheels /wheels
RUN pip install --no-cache-dir $PIP_ARGS /wheels/*.whl && rm -r /wheels && useradd --create-home user
USER user
WORKDIR /home/user
ENTRYPOINT ["rhumbline"]
CMD ["--help"]
