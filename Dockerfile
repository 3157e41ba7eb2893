# Images of the server and of the operator, built from the repository:
#
#   docker build --target server   --tag metastore:dev .
#   docker build --target operator --tag metastore-operator:dev .
#
# Both are distroless: no shell, user 65532, and they run with a read-only root file system.

FROM docker.io/library/rust:1-bookworm AS build
RUN apt-get update && apt-get install --yes --no-install-recommends clang cmake && rm -rf /var/lib/apt/lists/*
ENV XDG_CACHE_HOME=/cache
WORKDIR /source
COPY . .
# The cache mounts keep what was compiled between builds; the programs are copied out of them.
RUN --mount=type=cache,target=/cache \
    --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/source/target \
    bash -c 'set -euo pipefail; source .ci/scripts/environment.sh; \
        cargo build --release --locked --bins --package metastore-server --package metastore-ctl --package metastore-operator; \
        mkdir -p /programs; \
        for program in metastore metastorectl metastoreutl metastore-operator kubectl-metastore; do \
            cp target/release/$program /programs/; \
        done'

FROM gcr.io/distroless/cc-debian12:nonroot AS operator
COPY --from=build /programs/ /usr/local/bin/
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/metastore-operator"]

FROM gcr.io/distroless/cc-debian12:nonroot AS server
COPY --from=build /programs/ /usr/local/bin/
USER 65532:65532
EXPOSE 2379 2380 2381
VOLUME /var/lib/metastore
WORKDIR /var/lib/metastore
ENTRYPOINT ["/usr/local/bin/metastore"]
