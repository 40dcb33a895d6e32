#!/usr/bin/env bash
# Makes the container image of a built binary, without a registry, a daemon or a base image:
#   image.sh BINARY OUT.tar [NAME:TAG]      an OCI archive, for `podman load`, `skopeo copy` or `docker load`
#
# From scratch: the binary, the libraries that it names, certificates, a user. Needs buildah (apt-get install buildah).
# Build the binary on the oldest system whose C library you want in the image: its libraries are taken from here.
set -euo pipefail
[[ $# -ge 2 ]] || { echo "usage: $0 BINARY OUT.tar [NAME:TAG]" >&2; exit 2; }
binary=$(realpath "$1")
out=$(realpath -m "$2")
cd "$(dirname "$0")/.."
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' Cargo.toml | head -n 1)
name=${3:-pixelgate:$version}
command -v buildah > /dev/null || { echo "buildah is missing: apt-get install buildah" >&2; exit 1; }
certificates=/etc/ssl/certs/ca-certificates.crt
[[ -s $certificates ]] || { echo "$certificates is missing: apt-get install ca-certificates" >&2; exit 1; }
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date +%s)}

work=$(mktemp -d)
# A store of its own, that needs no kernel module and leaves nothing behind.
build() { buildah --storage-driver vfs --root "$work/store" --runroot "$work/run" "$@"; }
trap 'build rm --all > /dev/null 2>&1 || true; rm -rf "$work"' EXIT

root=$work/root
install -D -m 0755 "$binary" "$root/usr/bin/pixelgate"
# Each library under its own name and path, the loader among them.
ldd "$binary" | sed -n -e 's/^.* => \(\/[^ ]*\) .*/\1/p' -e 's/^[[:space:]]*\(\/[^ ]*\) .*/\1/p' | sort -u |
    while read -r library; do
        install -D -m 0755 "$(realpath "$library")" "$root$library"
    done
install -D -m 0644 "$certificates" "$root$certificates"
printf 'pixelgate:x:10001:10001::/var/lib/pixelgate:/nonexistent\n' > "$root/etc/passwd"
printf 'pixelgate:x:10001:\n' > "$root/etc/group"
printf 'hosts: files dns\n' > "$root/etc/nsswitch.conf"
install -d -m 0700 -o 10001 -g 10001 "$root/var/lib/pixelgate"
install -d -m 1777 "$root/tmp"
install -D -m 0644 deploy/debian/copyright "$root/usr/share/doc/pixelgate/copyright"

container=$(build from scratch)
# Copied by hand: `buildah copy` would give all of it to root.
cp -a "$root/." "$(build mount "$container")/"
build umount "$container" > /dev/null
# The ops listener stays on loopback: publish it only on purpose, by PIXELGATE_OPS__LISTEN. Exec form, so that SIGTERM
# reaches the program.
build config \
    --user 10001:10001 --workingdir / --stop-signal SIGTERM \
    --port 8080 --volume /var/lib/pixelgate \
    --entrypoint '["/usr/bin/pixelgate"]' --cmd serve \
    --env PIXELGATE_DATA_DIR=/var/lib/pixelgate \
    --env PIXELGATE_SERVER__LISTEN=0.0.0.0:8080 \
    --env PIXELGATE_OPS__LISTEN=127.0.0.1:8081 \
    --env PIXELGATE_LOG__FORMAT=json \
    --label org.opencontainers.image.title=pixelgate \
    --label "org.opencontainers.image.version=$version" \
    --label "org.opencontainers.image.licenses=MIT OR Apache-2.0" \
    "$container"
build commit --quiet --timestamp "$SOURCE_DATE_EPOCH" "$container" "$name" > /dev/null
mkdir -p "$(dirname "$out")"
rm -f "$out"
build push --quiet "$name" "oci-archive:$out:$name" > /dev/null
echo "$out: $name, $(du -sb "$root" | cut -f1) bytes unpacked, $(stat -c %s "$out") bytes as an archive"
