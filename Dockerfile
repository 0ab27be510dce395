# webhookd, for compose.yml and other uses:  docker build --tag webhookd .
# Set DATABASE_URL to the database, and run `webhookd migrate` once before.

FROM python:3.13-slim AS build
WORKDIR /source
COPY pyproject.toml setup.cfg setup.py README.md LICENSE ./
COPY webhookd webhookd
COPY sql sql
RUN python -m venv /opt/webhookd && /opt/webhookd/bin/pip install --no-cache-dir .

FROM python:3.13-slim
COPY --from=build /opt/webhookd /opt/webhookd
ENV PATH=/opt/webhookd/bin:$PATH
# This user id needs no account, and webhookd writes no files.
USER 10001:10001
EXPOSE 8000-8002
ENTRYPOINT ["webhookd"]
