# Images that pin everything, targets cpu and gpu. docker/build.sh builds one, docker/shell.sh opens a shell in it,
# docker/check.sh replays this file without Docker.
#
# The only foreign parts are the base, by digest, and Debian's packages as they stood that day in Debian's snapshot
# archive. Confirm both before you rely on them: `docker buildx imagetools inspect debian:bookworm-slim` prints
# today's digest, https://snapshot.debian.org/archive/debian/ lists the days. All else is locked by hash in docker/.
ARG BASE_DIGEST=sha256:4b44499bc2a6c78d726f3b281e6798009c0ae1f034b0bfaf6a227147dcff928b
ARG SNAPSHOT=20241201T025825Z
ARG DEBIAN=http://snapshot.debian.org/archive/debian/${SNAPSHOT}
ARG DEBIAN_SECURITY=http://snapshot.debian.org/archive/debian-security/${SNAPSHOT}
# The snapshot's second, for programs that stamp what they write with a time.
ARG SOURCE_DATE_EPOCH=1733021905


FROM debian:bookworm-slim@${BASE_DIGEST} AS cpu
ARG DEBIAN
ARG DEBIAN_SECURITY
ARG SOURCE_DATE_EPOCH

# The snapshot fixes the versions. docker-clean would empty the cache that is kept between builds.
# hadolint ignore=DL3008
RUN --mount=type=cache,target=/var/cache/apt,sharing=locked \
    --mount=type=cache,target=/var/lib/apt/lists,sharing=locked \
    rm -f /etc/apt/sources.list.d/* /etc/apt/apt.conf.d/docker-clean \
    && printf 'deb [check-valid-until=no] %s %s main\n' \
        "$DEBIAN" bookworm "$DEBIAN" bookworm-updates "$DEBIAN_SECURITY" bookworm-security >/etc/apt/sources.list \
    && apt-get -o Acquire::Retries=5 update \
    && DEBIAN_FRONTEND=noninteractive apt-get -o Acquire::Retries=5 install --yes --no-install-recommends \
        ca-certificates git libgomp1 python3.11 python3.11-venv valgrind \
    && rm -rf /var/log/apt /var/log/*.log /var/cache/ldconfig/aux-cache

# Whoever runs the image with an id of their own (docker/shell.sh) writes caches into this home too.
RUN useradd --uid 1000 --create-home --shell /bin/bash branchynet \
    && chmod 1777 /home/branchynet \
    && install --directory --owner=branchynet --group=branchynet /branchynet

# docker/shell.sh mounts the checkout over this copy: the environment, outside it, serves both.
ENV BRANCHYNET_VENV=/opt/branchynet LANG=C.UTF-8
ENV PATH=$BRANCHYNET_VENV/bin:$PATH
WORKDIR /branchynet
COPY --chown=branchynet:branchynet . .
RUN --mount=type=cache,target=/root/.cache/pip docker/install.sh --dev

USER 1000
CMD ["bash"]


FROM cpu AS gpu
ARG SOURCE_DATE_EPOCH
USER 0
RUN --mount=type=cache,target=/root/.cache/pip docker/install.sh --gpu
USER 1000
# The host's driver, which is all that the image lacks.
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
