#!/usr/bin/env bash
# Makes the Debian package of a built binary: build.sh BINARY OUT_DIR [VERSION]. Prints its path.
#
# Needs dpkg-deb and dpkg-shlibdeps (apt-get install dpkg-dev). The same input gives the same bytes, if SOURCE_DATE_EPOCH
# is set or this is a git checkout.
set -euo pipefail
[[ $# -ge 2 ]] || { echo "usage: $0 BINARY OUT_DIR [VERSION]" >&2; exit 2; }
binary=$(realpath "$1")
mkdir -p "$2"
out=$(realpath "$2")
cd "$(dirname "$0")/../.."
version=${3:-$(sed -n 's/^version = "\(.*\)"$/\1/p' Cargo.toml | head -n 1)}
architecture=$(dpkg --print-architecture)
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date +%s)}
export SOURCE_DATE_EPOCH

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
# dpkg takes a directory that others may read.
chmod 0755 "$root"
umask 022
here=deploy/debian
put() { install -D -m "$1" "$2" "$root/$3"; }

put 0755 "$binary" usr/bin/pixelgate
put 0644 "$here/pixelgate.toml" etc/pixelgate/pixelgate.toml
put 0644 config/pixelgate.toml usr/share/doc/pixelgate/examples/pixelgate.toml
put 0644 deploy/nginx.conf usr/share/doc/pixelgate/examples/nginx.conf
put 0644 deploy/pixelgate.rules.yml usr/share/doc/pixelgate/examples/pixelgate.rules.yml
put 0644 "$here/copyright" usr/share/doc/pixelgate/copyright

# The unit of deploy/, with the package's path, and a user that stays: commands such as `pixelgate token` run as it.
for unit in deploy/pixelgate.service deploy/pixelgate.socket; do
    [[ -e $unit ]] || continue
    put 0644 "$unit" "usr/lib/systemd/system/${unit##*/}"
done
unit=$root/usr/lib/systemd/system/pixelgate.service
for line in 'ExecStart=/usr/local/bin/pixelgate ' 'DynamicUser=yes' 'StateDirectoryMode=0750'; do
    grep -q "^$line" "$unit" || { echo "deploy/pixelgate.service has no line $line" >&2; exit 1; }
done
sed -i -e '/^# Install:/,/^$/d' \
    -e 's,^ExecStart=/usr/local/bin/,ExecStart=/usr/bin/,' \
    -e 's,^# A user of its own that exists while it runs; .*,# The package makes the user and the directory.,' \
    -e 's,^DynamicUser=yes,User=pixelgate\nGroup=pixelgate,' \
    -e 's,^StateDirectoryMode=0750,StateDirectoryMode=0700,' "$unit"

# What users of the package are told has changed.
{
    printf 'pixelgate (%s) stable; urgency=medium\n\n' "$version"
    printf '  * See docs/changelog.md of this version.\n\n'
    printf ' -- pixelgate maintainers <pixelgate@example.invalid>  %s\n' "$(date -u -R -d "@$SOURCE_DATE_EPOCH")"
} | gzip -9n > "$root/usr/share/doc/pixelgate/changelog.gz"
chmod 0644 "$root/usr/share/doc/pixelgate/changelog.gz"

work=$root.work
mkdir -p "$work/debian"
printf 'Source: pixelgate\n\nPackage: pixelgate\nArchitecture: any\n' > "$work/debian/control"
libraries=$(cd "$work" && dpkg-shlibdeps -O "$root/usr/bin/pixelgate" 2>/dev/null | sed -n 's/^shlibs:Depends=//p')
rm -rf "$work"

mkdir "$root/DEBIAN"
cat > "$root/DEBIAN/control" <<EOF
Package: pixelgate
Version: $version
Architecture: $architecture
Maintainer: pixelgate maintainers <pixelgate@example.invalid>
Installed-Size: $(du -sk --exclude=DEBIAN "$root" | cut -f1)
Depends: $libraries, adduser, ca-certificates
Section: net
Priority: optional
Description: Conversion event ingestion gateway
 Takes conversion events of websites, answers once they are on disk, and
 publishes each once to Apache Kafka.
EOF
echo /etc/pixelgate/pixelgate.toml > "$root/DEBIAN/conffiles"
for script in postinst prerm postrm; do
    install -m 0755 "$here/$script" "$root/DEBIAN/$script"
done
package=$out/pixelgate_${version}_$architecture.deb
dpkg-deb --root-owner-group -Z"${DPKG_DEB_COMPRESSOR_TYPE:-xz}" --build "$root" "$package" > /dev/null
echo "$package"
