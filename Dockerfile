# webhookd, for compose.yml and others:  docker build --tag webhookd .
# Name the database in DATABASE_URL, and run `webhookd migrate` once before.

FROM python:3.13-slim AS build
WORKDIR /source
COPY pyproject.toml setup.cfg README.md LICENSE ./
COPY webhookd webhookd
COPY sql sql
RUN python -m venv /opt/webhookd && /opt/webhookd/bin/pip install --no-cache-dir .

FROM python:3.13-slim
COPY --from=build /opt/webhookd /opt/webhookd
ENV PATH=/opt/webhookd/bin:$PATH
# No account is needed for the number, and nothing is written.
USER 10001:10001
EXPOSE 8000-8002
ENTRYPOINT ["webhookd"]
